//! Appending through breaks, fences, refusals and fail-over.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use streaming_client::{AppendError, Order, Producer};
use streaming_types::{MessageId, StreamingCode, StreamingError};
use woodpecker_base::clock::Clock;

use crate::fake::{CHANNEL, Cluster, Node, OnOpen, OnProduce, VCHANNEL, channel, eventually, message, soon, text};

/// Appends `texts(range)` in order, pipelined, and waits for all.
async fn append_all(producer: &Producer, range: std::ops::Range<usize>) {
    let mut appends = Vec::new();
    for number in range {
        appends.push(soon(producer.append(message(text(number)))).await.unwrap());
    }
    for result in soon(join_all(appends)).await {
        result.unwrap();
    }
}

fn texts(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(text).collect()
}

#[tokio::test]
async fn append_says_where_the_message_stands() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    let producer = client.producer(VCHANNEL);
    assert_eq!(producer.channel(), CHANNEL);
    append_all(&producer, 0..3).await;
    let result = soon(soon(producer.append(message("fourth"))).await.unwrap()).await.unwrap();
    assert_eq!(result.id, MessageId::new(1, 3));
    assert_eq!(result.time_tick.0, 130);
    assert_eq!(result.last_confirmed_id, Some(MessageId::new(1, 1)));
    assert_eq!(cluster.wal.payloads().len(), 4);
}
