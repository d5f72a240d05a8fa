//! The stream service over loopback: client, gRPC, node, engine.

use std::{collections::VecDeque, time::Duration};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::future::try_join_all;
use streaming_client::{Append, Client, ConsumeOptions, Consumer, Delivery, Discovery, Edges, Producer, Settings};
use streaming_types::{DeliverPolicy, channel::vchannel_name};
use woodpecker_base::{
    clock::{Clock, Instant},
    net::tcp_connector,
};

use super::{
    Plan, SMALL,
    latency::{Latencies, Rates},
};
use crate::{roles::Machine, verbs::line_message};

pub(super) const PRODUCERS: usize = 4;
/// Small messages each producer has on its way.
const SMALL_IN_FLIGHT: usize = 512;
/// Small messages of each producer for each operation of the latency measurements.
const SMALL_FACTOR: usize = 20;
const READY: Duration = Duration::from_secs(60);

/// A client with a channel for each kind of measurement.
pub(super) struct Stream {
    plan: Plan,
    clock: Clock,
    client: Client,
    large: String,
    small: String,
    producer: Producer,
    /// Follows the producer's channel.
    consumer: Consumer,
}

impl Stream {
    pub(super) async fn connect(address: &str, machine: &Machine, plan: Plan) -> anyhow::Result<Self> {
        let settings = Settings::new(Discovery::Address(address.to_owned()));
        let edges = Edges { connector: tcp_connector(), clock: machine.clock.clone(), random: machine.random.clone() };
        let client = Client::connect(settings, edges)?;
        client.wait_ready(READY).await?;
        let names: Vec<String> = client.channels().iter().map(|channel| channel.pchannel.name().to_owned()).collect();
        let [large, small, latency, ..] = names.as_slice() else { bail!("needs at least 3 channels") };
        let producer = client.producer(latency);
        let mut consumer = client.consume(ConsumeOptions::new(latency, DeliverPolicy::All))?;
        // The first message opens both streams; it is not measured.
        append_timed(&producer, &machine.clock).await?;
        consumer.next().await?;
        let (large, small, clock) = (large.clone(), small.clone(), machine.clock.clone());
        Ok(Self { plan, clock, client, large, small, producer, consumer })
    }

    /// One round of large messages, one producer.
    pub(super) async fn append(&self, rates: &mut Rates) -> anyhow::Result<()> {
        let Plan { entry, entries, in_flight, .. } = self.plan;
        let started = self.clock.now();
        self.append_all(&self.large, entry, entries, in_flight).await?;
        rates.record((entry * entries) as u64, started.elapsed());
        Ok(())
    }

    /// One round of small messages, several producers on one channel. In messages per second.
    pub(super) async fn append_small(&self, rates: &mut Rates) -> anyhow::Result<()> {
        let each = self.plan.operations * SMALL_FACTOR;
        let started = self.clock.now();
        try_join_all((0..PRODUCERS).map(|_| self.append_all(&self.small, SMALL, each, SMALL_IN_FLIGHT))).await?;
        rates.record((each * PRODUCERS) as u64, started.elapsed());
        Ok(())
    }

    async fn append_all(&self, channel: &str, bytes: usize, count: usize, most: usize) -> anyhow::Result<()> {
        let producer = self.client.producer(channel);
        let vchannel = vchannel_name(channel, 1, 0);
        let payload = Bytes::from(vec![b'x'; bytes]);
        let mut in_flight: VecDeque<Append> = VecDeque::new();
        for _ in 0..count {
            if in_flight.len() == most
                && let Some(oldest) = in_flight.pop_front()
            {
                oldest.await?;
            }
            in_flight.push_back(producer.append(line_message(&vchannel, payload.clone())?).await?);
        }
        for append in in_flight {
            append.await?;
        }
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

async fn append_timed(producer: &Producer, clock: &Clock) -> anyhow::Result<(Instant, Instant)> {
    let vchannel = vchannel_name(producer.channel(), 1, 0);
    let message = line_message(&vchannel, Bytes::from(vec![b'x'; SMALL]))?;
    let begun = clock.now();
    producer.append(message).await?.await.context("append")?;
    Ok((begun, clock.now()))
}
