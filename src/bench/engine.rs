//! The log engine by itself: one process, no network.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;
use woodpecker::{Client, Position, Writer};
use woodpecker_base::{clock::Clock, metadata::MetadataStore, tasks::Tasks};

use super::{
    Plan, SMALL, keep_in_flight,
    latency::{Latencies, Rates},
    stream::{PRODUCERS, SMALL_FACTOR, SMALL_IN_FLIGHT},
};
use crate::{
    config::Config,
    roles::{self, Machine},
};

const LARGE_LOG: &str = "bench-throughput";

/// Two logs with a writer each, for large and for small entries.
#[derive(Debug)]
pub(super) struct Engine {
    plan: Plan,
    clock: Clock,
    large: Writer,
    small: Writer,
}

impl Engine {
    pub(super) async fn open(logs: &Client, clock: &Clock, plan: Plan) -> anyhow::Result<Self> {
        let large = logs.open_or_create_log(LARGE_LOG).await?.open_writer().await?;
        let small = logs.open_or_create_log("bench-latency").await?.open_writer().await?;
        Ok(Self { plan, clock: clock.clone(), large, small })
    }

    /// One round of large entries.
    pub(super) async fn append(&self, rates: &mut Rates) -> anyhow::Result<()> {
        let Plan { entry, entries, in_flight: most, .. } = self.plan;
        let started = self.clock.now();
        append_all(&self.large, entry, entries, most).await?;
        rates.record((entry * entries) as u64, started.elapsed());
        Ok(())
    }

    /// One round of small entries, from as many sides as the stream has producers. In entries per second.
    pub(super) async fn append_many_small(&self, rates: &mut Rates) -> anyhow::Result<()> {
        let each = self.plan.operations * SMALL_FACTOR;
        let started = self.clock.now();
        try_join_all((0..PRODUCERS).map(|_| append_all(&self.small, SMALL, each, SMALL_IN_FLIGHT))).await?;
        rates.record((each * PRODUCERS) as u64, started.elapsed());
        Ok(())
    }

    /// One small entry after another.
    pub(super) async fn append_small(&self, latencies: &mut Latencies) -> anyhow::Result<()> {
        let payload = Bytes::from(vec![b'x'; SMALL]);
        for _ in 0..self.plan.operations {
            let begun = self.clock.now();
            self.small.append(vec![payload.clone()]).await?;
            latencies.record(begun.elapsed());
        }
        Ok(())
    }

    /// Lets go of the log of large entries, which is read from here on.
    pub(super) async fn close_large(&self) -> anyhow::Result<()> {
        Ok(self.large.close().await?)
    }

    pub(super) async fn close(&self) -> anyhow::Result<()> {
        Ok(self.small.close().await?)
    }
}

async fn append_all(writer: &Writer, bytes: usize, count: usize, most: usize) -> anyhow::Result<()> {
    let payload = Bytes::from(vec![b'x'; bytes]);
    keep_in_flight(count, most, async || Ok(writer.append(vec![payload.clone()]))).await
}

/// Reads all large entries through a client that has nothing in memory, as another process would.
pub(super) async fn read(
    config: &Config,
    machine: &Machine,
    metadata: &Arc<dyn MetadataStore>,
    plan: Plan,
    rates: &mut Rates,
) -> anyhow::Result<()> {
    let tasks = Tasks::new();
    let logs = roles::logs(config, machine, metadata.clone(), &tasks).await?;
    let log = logs.open_log(LARGE_LOG).await?;
    let wanted = plan.entries * plan.rounds;
    let mut reader = log.reader(Position::Earliest);
    let (mut entries, mut bytes) = (0, 0);
    let started = machine.clock.now();
    while entries < wanted {
        for entry in reader.next().await? {
            entries += 1;
            bytes += entry.payload.len();
        }
    }
    rates.record(bytes as u64, started.elapsed());
    logs.close().await;
    tasks.stop();
    Ok(())
}
