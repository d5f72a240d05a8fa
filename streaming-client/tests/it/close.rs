//! Ends: of a consumer, of the last producer of a channel, of the client.

use std::time::Duration;

use streaming_client::{AppendError, ConsumeError, ConsumeOptions};
use streaming_types::DeliverPolicy;
use woodpecker_base::clock::Clock;

use crate::fake::{CHANNEL, Cluster, OnProduce, SOON, eventually, message, soon, text};

#[tokio::test]
async fn closing_the_client_finishes_appends_and_every_stream() {
    let cluster = Cluster::start().await;
    // The handshakes have time.
    let client = cluster.client_with(|settings| settings.timeouts.drain = SOON);
    let producer = client.producer(CHANNEL);
    let mut consumer = client.consume(ConsumeOptions::new(CHANNEL, DeliverPolicy::All)).unwrap();
    let mut appends = Vec::new();
    for number in 0..50 {
        appends.push(soon(producer.append(message(text(number)))).await.unwrap());
    }
    assert!(soon(client.close()).await, "in time");
    for append in appends {
        soon(append).await.expect("accepted before the close");
    }
    assert_eq!(cluster.wal.len(), 50);
    assert_eq!(cluster.node.seen(|seen| (seen.closed, seen.half_closed)), (1, 1));
    assert_eq!(cluster.coordinator.seen(|seen| (seen.closed, seen.half_closed)), (1, 1));
    assert_eq!(producer.append(message("late")).await.unwrap_err(), AppendError::Closed { sent: false });
    assert_eq!(soon(consumer.next()).await, Err(ConsumeError::Closed));
}

#[tokio::test]
async fn closing_gives_up_on_what_nobody_answers() {
    let cluster = Cluster::start().await;
    cluster.node.on_produce(|_| OnProduce::Ignore);
    let client = cluster.client_with(|settings| settings.timeouts.close = Duration::from_millis(300));
    let append = soon(client.producer(CHANNEL).append(message("m"))).await.unwrap();
    eventually("sent", || cluster.node.seen(|seen| seen.requests.len()) == 1).await;
    soon(client.close()).await;
    let error = soon(append).await.unwrap_err();
    assert_eq!(error, AppendError::Closed { sent: true });
    assert!(error.has_side_effects());
}

#[tokio::test]
async fn closing_does_not_hang_without_a_coordinator() {
    let mut cluster = Cluster::start().await;
    cluster.coordinator.process.kill();
    let client = cluster.client_with(|settings| settings.timeouts.close = Duration::from_millis(300));
    let append = soon(client.producer(CHANNEL).append(message("m"))).await.unwrap();
    soon(client.close()).await;
    assert_eq!(soon(append).await.unwrap_err(), AppendError::Closed { sent: false });
}

#[tokio::test]
async fn consumer_closes_by_the_handshake() {
    let cluster = Cluster::start().await;
    cluster.wal.append(message("m"));
    let client = cluster.client_with(|settings| settings.timeouts.drain = SOON);
    let mut consumer = client.consume(ConsumeOptions::new(CHANNEL, DeliverPolicy::All)).unwrap();
    soon(consumer.next()).await.unwrap();
    assert!(soon(consumer.close()).await);
    assert_eq!(cluster.node.seen(|seen| (seen.closed, seen.half_closed)), (1, 1));
}

#[tokio::test]
async fn consumer_closes_in_time_when_the_node_is_dead() {
    let mut cluster = Cluster::start().await;
    cluster.wal.append(message("m"));
    let mut consumer = cluster.client().consume(ConsumeOptions::new(CHANNEL, DeliverPolicy::All)).unwrap();
    soon(consumer.next()).await.unwrap();
    cluster.node.kill();
    assert!(!soon(consumer.close()).await);
}

#[tokio::test]
async fn last_producer_of_a_channel_takes_its_stream_along() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    let producer = client.producer(CHANNEL);
    let second = producer.clone();
    soon(soon(producer.append(message("m"))).await.unwrap()).await.unwrap();
    drop(producer);
    soon(soon(second.append(message("n"))).await.unwrap()).await.unwrap();
    assert_eq!(cluster.node.seen(|seen| seen.half_closed), 0);
    drop(second);
    eventually("closed", || cluster.node.seen(|seen| (seen.closed, seen.half_closed)) == (1, 1)).await;
    soon(soon(client.producer(CHANNEL).append(message("o"))).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn dropped_client_leaves_nothing_behind() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    let producer = client.producer(CHANNEL);
    soon(soon(producer.append(message("m"))).await.unwrap()).await.unwrap();
    drop(client);
    Clock::system().sleep(Duration::from_millis(50)).await;
    assert_eq!(cluster.coordinator.seen(|seen| seen.half_closed), 0, "the producer keeps it running");
    drop(producer);
    eventually("all closed", || {
        cluster.coordinator.seen(|seen| seen.half_closed) == 1 && cluster.node.seen(|seen| seen.half_closed) == 1
    })
    .await;
}
