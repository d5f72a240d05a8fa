//! A steady thousand messages a second: how long they take, and what many subscribers do to that.

use std::{cell::RefCell, time::Duration};

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use streaming_client::Delivery;
use streaming_node::Memory;
use streaming_types::channel::vchannel_name;
use woodpecker_base::clock::Instant;

use super::{SMALL, latency::Latencies, stream::Stream};
use crate::verbs::line_message;

/// Time between two messages.
const PACE: Duration = Duration::from_millis(1);
/// Messages for each operation of the other latency measurements: enough for a percentile of so few that take long.
pub(super) const FACTOR: usize = 10;

/// Latencies of the producer and of one consumer at the tail.
pub(super) struct Paced {
    pub(super) acks: Latencies,
    pub(super) deliveries: Latencies,
}

impl Paced {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self { acks: Latencies::new()?, deliveries: Latencies::new()? })
    }
}

impl Stream {
    /// So many messages at a steady pace, each timed to its ack and to its delivery.
    pub(super) async fn pace(&mut self, count: usize, into: &mut Paced) -> anyhow::Result<()> {
        let Self { clock, producer, consumer, .. } = self;
        let Paced { acks, deliveries } = into;
        let vchannel = vchannel_name(producer.channel(), 1, 0);
        let payload = Bytes::from(vec![b'x'; SMALL]);
        let begun: RefCell<Vec<Instant>> = RefCell::default();
        let producing = async {
            let mut unacked = FuturesUnordered::new();
            let mut due = clock.now();
            for _ in 0..count {
                due += PACE;
                loop {
                    tokio::select! {
                        biased;
                        Some(took) = unacked.next() => acks.record(took?),
                        () = clock.sleep_until(due) => break,
                    }
                }
                let message = line_message(&vchannel, payload.clone())?;
                let began = clock.now();
                begun.borrow_mut().push(began);
                let append = producer.append(message).await?;
                let clock = clock.clone();
                unacked.push(async move { append.await.map(|_| clock.now() - began) });
            }
            while let Some(took) = unacked.next().await {
                acks.record(took?);
            }
            anyhow::Ok(())
        };
        let consuming = async {
            for number in 0..count {
                let delivery = consumer.next().await?;
                ensure!(matches!(delivery, Delivery::Message(_)), "no message");
                let now = clock.now();
                let began = begun.borrow().get(number).copied();
                deliveries.record(now - began.context("a message nobody sent")?);
            }
            anyhow::Ok(())
        };
        tokio::try_join!(producing, consuming)?;
        Ok(())
    }
}

/// Bytes of memory that this process holds.
pub(super) fn memory() -> anyhow::Result<u64> {
    Ok(Memory::process().usage().context("this system does not say how much memory a process holds")?.used)
}
