//! The stream service over loopback: client, gRPC, node, engine.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::future::try_join_all;
use streaming_client::{Client, ConsumeOptions, Consumer, Delivery, Discovery, Edges, Producer, Settings};
use streaming_types::{DeliverPolicy, LocalNode, MessageId, channel::vchannel_name};
use woodpecker_base::clock::{Clock, Instant};

use super::{
    Plan, SMALL, keep_in_flight,
    latency::{Latencies, Rates},
};
use crate::{roles::Machine, verbs::line_message};

pub(super) const PRODUCERS: usize = 4;
/// Small messages each producer has on its way.
pub(super) const SMALL_IN_FLIGHT: usize = 512;
/// Small messages of each producer for each operation of the latency measurements: enough to be under way for most of a second.
pub(super) const SMALL_FACTOR: usize = 100;
/// For large messages, small ones, and latencies.
const CHANNELS: usize = 3;
const READY: Duration = Duration::from_secs(60);

/// A client with a channel for each kind of measurement.
pub(super) struct Stream {
    plan: Plan,
    pub(super) clock: Clock,
    pub(super) client: Client,
    large: String,
    small: String,
    pub(super) producer: Producer,
    /// Follows the producer's channel.
    pub(super) consumer: Consumer,
}

impl Stream {
    /// Over gRPC, or beside the node that is in this process.
    pub(super) async fn connect(
        address: &str,
        local: Option<Arc<dyn LocalNode>>,
        machine: &Machine,
        plan: Plan,
    ) -> anyhow::Result<Self> {
        let is_local = local.is_some();
        let client = client(address, local, machine).await?;
        // Each way has channels of its own, so that neither reads what the other wrote.
        let first = if is_local { CHANNELS } else { 0 };
        let channels = client.channels().into_iter().skip(first).take(CHANNELS);
        let names: Vec<String> = channels.map(|channel| channel.pchannel.name().to_owned()).collect();
        let [large, small, latency] = names.as_slice() else { bail!("needs at least {} channels", 2 * CHANNELS) };
        let producer = client.producer(latency);
        // The first message opens both streams; it is not measured.
        let first = append_one(&producer).await?;
        let mut consumer = client.consume(ConsumeOptions::new(latency, DeliverPolicy::StartFrom(first)))?;
        consumer.next().await?;
        let (large, small, clock) = (large.clone(), small.clone(), machine.clock.clone());
        Ok(Self { plan, clock, client, large, small, producer, consumer })
    }

    /// One round of large messages, one producer.
    pub(super) async fn append(&self, rates: &mut Rates) -> anyhow::Result<()> {
        let Plan { entry, entries, in_flight, .. } = self.plan;
        let started = self.clock.now();
        append_all(&self.client, &self.large, entry, entries, in_flight).await?;
        rates.record((entry * entries) as u64, started.elapsed());
        Ok(())
    }

    /// One round of small messages, several producers on one channel. In messages per second.
    pub(super) async fn append_small(&self, rates: &mut Rates) -> anyhow::Result<()> {
        let Self { client, small, .. } = self;
        let each = self.plan.operations * SMALL_FACTOR;
        let started = self.clock.now();
        try_join_all((0..PRODUCERS).map(|_| append_all(client, small, SMALL, each, SMALL_IN_FLIGHT))).await?;
        rates.record((each * PRODUCERS) as u64, started.elapsed());
        Ok(())
    }

    /// Reads the large messages of all rounds.
    pub(super) async fn read(&self, rates: &mut Rates) -> anyhow::Result<()> {
        let mut consumer = self.client.consume(ConsumeOptions::new(&self.large, DeliverPolicy::All))?;
        let wanted = self.plan.entries * self.plan.rounds;
        let (mut messages, mut bytes) = (0, 0);
        let started = self.clock.now();
        while messages < wanted {
            if let Delivery::Message(message) = consumer.next().await? {
                messages += 1;
                bytes += message.payload.len();
            }
        }
        rates.record(bytes as u64, started.elapsed());
        Ok(())
    }

    /// One message after another, each timed to its ack and to its delivery at a consumer that waits at the tail.
    pub(super) async fn latencies(&mut self, acks: &mut Latencies, deliveries: &mut Latencies) -> anyhow::Result<()> {
        for _ in 0..self.plan.operations {
            let delivered = async {
                let delivery = self.consumer.next().await?;
                anyhow::ensure!(matches!(delivery, Delivery::Message(_)), "no message");
                Ok(self.clock.now())
            };
            let ((begun, acked), delivered) = tokio::try_join!(append_timed(&self.producer, &self.clock), delivered)?;
            acks.record(acked - begun);
            deliveries.record(delivered - begun);
        }
        Ok(())
    }

    pub(super) async fn close(self) {
        self.client.close().await;
    }
}

pub(super) async fn client(
    address: &str,
    local: Option<Arc<dyn LocalNode>>,
    machine: &Machine,
) -> anyhow::Result<Client> {
    let settings = Settings { local, ..Settings::new(Discovery::Address(address.to_owned())) };
    let edges = Edges {
        connector: machine.security.connector.clone(),
        clock: machine.clock.clone(),
        random: machine.random.clone(),
    };
    let client = Client::connect(settings, edges)?;
    client.wait_ready(READY).await?;
    Ok(client)
}

async fn append_one(producer: &Producer) -> anyhow::Result<MessageId> {
    let vchannel = vchannel_name(producer.channel(), 1, 0);
    let message = line_message(&vchannel, Bytes::from(vec![b'x'; SMALL]))?;
    Ok(producer.append(message).await?.await.context("append")?.id)
}

async fn append_timed(producer: &Producer, clock: &Clock) -> anyhow::Result<(Instant, Instant)> {
    let begun = clock.now();
    append_one(producer).await?;
    Ok((begun, clock.now()))
}

/// Appends so many small messages to the first channel of a process.
pub(super) async fn fill(address: &str, count: usize, machine: &Machine) -> anyhow::Result<()> {
    let client = client(address, None, machine).await?;
    let channel = client.channels().first().context("no channel")?.pchannel.name().to_owned();
    append_all(&client, &channel, SMALL, count, SMALL_IN_FLIGHT * PRODUCERS).await?;
    client.close().await;
    Ok(())
}

async fn append_all(client: &Client, channel: &str, bytes: usize, count: usize, most: usize) -> anyhow::Result<()> {
    let producer = client.producer(channel);
    let vchannel = vchannel_name(channel, 1, 0);
    let payload = Bytes::from(vec![b'x'; bytes]);
    let begin = async || Ok(producer.append(line_message(&vchannel, payload.clone())?).await?);
    keep_in_flight(count, most, begin).await
}
