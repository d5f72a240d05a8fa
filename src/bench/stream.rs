//! The stream service over loopback: client, gRPC, node, engine.

use std::{collections::VecDeque, time::Duration};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::future::try_join_all;
use streaming_client::{Append, Client, ConsumeOptions, Delivery, Discovery, Edges, Producer, Settings};
use streaming_types::{DeliverPolicy, channel::vchannel_name};
use woodpecker_base::{
    clock::{Clock, Instant},
    net::tcp_connector,
};

use super::{
    PARALLEL, SMALL, Size,
    engine::rate,
    latency::{Latencies, Percentiles},
};
use crate::{roles::Machine, verbs::line_message};

const PRODUCERS: usize = 4;
/// Small messages each producer has on its way.
const SMALL_IN_FLIGHT: usize = 512;
const READY: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy)]
pub(super) struct Stream {
    /// Bytes per second of large messages, one producer.
    pub(super) append_rate: f64,
    /// Small messages per second, several producers on one channel.
    pub(super) small_messages: f64,
    /// Bytes per second, reading it all again.
    pub(super) read_rate: f64,
    /// One producer, one small message after another.
    pub(super) ack: Percentiles,
    /// From the call of append to the delivery at a consumer, for the same messages.
    pub(super) delivery: Percentiles,
}

pub(super) async fn measure(address: &str, machine: &Machine, size: Size) -> anyhow::Result<Stream> {
    eprintln!("measuring the stream");
    let settings = Settings::new(Discovery::Address(address.to_owned()));
    let edges = Edges { connector: tcp_connector(), clock: machine.clock.clone(), random: machine.random.clone() };
    let client = Client::connect(settings, edges)?;
    client.wait_ready(READY).await?;
    let names: Vec<String> = client.channels().iter().map(|channel| channel.pchannel.name().to_owned()).collect();
    let [bulk, small, latency, ..] = names.as_slice() else { bail!("needs at least 3 channels") };

    let append_rate = {
        let elapsed = append_all(&client, &machine.clock, bulk, size.entry, size.entries, PARALLEL).await?;
        rate(size.entry * size.entries, elapsed)
    };
    let read_rate = read_all(&client, &machine.clock, bulk, size).await?;
    let each = size.operations * 20;
    let started = machine.clock.now();
    try_join_all((0..PRODUCERS).map(|_| append_all(&client, &machine.clock, small, SMALL, each, SMALL_IN_FLIGHT)))
        .await?;
    let small_messages = rate(each * PRODUCERS, started.elapsed());
    let (ack, delivery) = latencies(&client, &machine.clock, latency, size.operations).await?;
    client.close().await;
    Ok(Stream { append_rate, small_messages, read_rate, ack, delivery })
}

async fn append_all(
    client: &Client,
    clock: &Clock,
    channel: &str,
    bytes: usize,
    count: usize,
    parallel: usize,
) -> anyhow::Result<Duration> {
    let producer = client.producer(channel);
    let vchannel = vchannel_name(channel, 1, 0);
    let payload = Bytes::from(vec![b'x'; bytes]);
    let mut in_flight: VecDeque<Append> = VecDeque::new();
    let started = clock.now();
    for _ in 0..count {
        if in_flight.len() == parallel
            && let Some(oldest) = in_flight.pop_front()
        {
            oldest.await?;
        }
        in_flight.push_back(producer.append(line_message(&vchannel, payload.clone())?).await?);
    }
    for append in in_flight {
        append.await?;
    }
    Ok(started.elapsed())
}

async fn read_all(client: &Client, clock: &Clock, channel: &str, size: Size) -> anyhow::Result<f64> {
    let mut consumer = client.consume(ConsumeOptions::new(channel, DeliverPolicy::All))?;
    let (mut messages, mut bytes) = (0, 0);
    let started = clock.now();
    while messages < size.entries {
        if let Delivery::Message(message) = consumer.next().await? {
            messages += 1;
            bytes += message.payload.len();
        }
    }
    Ok(rate(bytes, started.elapsed()))
}

/// One message after another, each timed to its ack and to its delivery at a consumer that waits at the tail.
async fn latencies(
    client: &Client,
    clock: &Clock,
    channel: &str,
    count: usize,
) -> anyhow::Result<(Percentiles, Percentiles)> {
    let producer = client.producer(channel);
    let mut consumer = client.consume(ConsumeOptions::new(channel, DeliverPolicy::All))?;
    // The first message opens both streams; it is not measured.
    append_timed(&producer, clock).await?;
    consumer.next().await?;
    let (mut acks, mut deliveries) = (Latencies::new()?, Latencies::new()?);
    for _ in 0..count {
        let delivered = async {
            let delivery = consumer.next().await?;
            anyhow::ensure!(matches!(delivery, Delivery::Message(_)), "no message");
            Ok(clock.now())
        };
        let ((begun, acked), delivered) = tokio::try_join!(append_timed(&producer, clock), delivered)?;
        acks.record(acked - begun);
        deliveries.record(delivered - begun);
    }
    Ok((acks.percentiles(), deliveries.percentiles()))
}

async fn append_timed(producer: &Producer, clock: &Clock) -> anyhow::Result<(Instant, Instant)> {
    let vchannel = vchannel_name(producer.channel(), 1, 0);
    let message = line_message(&vchannel, Bytes::from(vec![b'x'; SMALL]))?;
    let begun = clock.now();
    producer.append(message).await?.await.context("append")?;
    Ok((begun, clock.now()))
}
