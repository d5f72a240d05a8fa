//! The log engine by itself: one process, no network.

use std::{collections::VecDeque, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use futures::future::join_all;
use woodpecker::{Append, Client, Position, Writer};
use woodpecker_base::clock::Clock;

use super::{
    PARALLEL, SMALL, Size,
    latency::{Latencies, Percentiles},
};

/// How long each side of the comparison of many logs with one runs.
const WRITES_WINDOW: Duration = Duration::from_secs(5);
/// Every log gets an entry this often.
const WRITES_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy)]
pub(super) struct Engine {
    /// Bytes per second.
    pub(super) append_rate: f64,
    /// Bytes per second, from the first entry to the last.
    pub(super) read_rate: f64,
    /// One writer, one small entry after another.
    pub(super) ack: Percentiles,
}

/// Writes of the medium per second.
#[derive(Debug, Clone, Copy)]
pub(super) struct Writes {
    pub(super) logs: usize,
    pub(super) one_log: f64,
    pub(super) many_logs: f64,
}

pub(super) async fn measure(logs: &Client, clock: &Clock, size: Size) -> anyhow::Result<Engine> {
    eprintln!("measuring the engine");
    let log = logs.open_or_create_log("bench-throughput").await?;
    let writer = log.open_writer().await?;
    let payload = Bytes::from(vec![b'x'; size.entry]);
    let mut in_flight: VecDeque<Append> = VecDeque::new();
    let started = clock.now();
    for _ in 0..size.entries {
        if in_flight.len() == PARALLEL
            && let Some(oldest) = in_flight.pop_front()
        {
            oldest.await?;
        }
        in_flight.push_back(writer.append(vec![payload.clone()]));
    }
    for append in in_flight {
        append.await?;
    }
    let append_rate = rate(size.entry * size.entries, started.elapsed());
    writer.close().await?;

    let mut reader = log.reader(Position::Earliest);
    let (mut entries, mut bytes) = (0, 0);
    let started = clock.now();
    while entries < size.entries {
        for entry in reader.next().await? {
            entries += 1;
            bytes += entry.payload.len();
        }
    }
    let read_rate = rate(bytes, started.elapsed());

    let log = logs.open_or_create_log("bench-latency").await?;
    let writer = log.open_writer().await?;
    let payload = Bytes::from(vec![b'x'; SMALL]);
    let mut latencies = Latencies::new()?;
    for _ in 0..size.operations {
        let begun = clock.now();
        writer.append(vec![payload.clone()]).await?;
        latencies.record(begun.elapsed());
    }
    writer.close().await?;
    Ok(Engine { append_rate, read_rate, ack: latencies.percentiles() })
}

/// The same rate of entries per log on one log, then on many: how often is the medium written?
pub(super) async fn writes(
    logs: &Client,
    clock: &Clock,
    size: Size,
    counter: impl Fn() -> f64,
) -> anyhow::Result<Writes> {
    eprintln!("measuring writes of the medium with 1 and with {} logs", size.logs);
    let mut writers = Vec::new();
    for i in 0..size.logs {
        let log = logs.open_or_create_log(&format!("bench-many-{i}")).await?;
        writers.push(log.open_writer().await?);
    }
    let one_log = writes_of(writers.get(..1).context("no log")?, clock, &counter).await?;
    let many_logs = writes_of(&writers, clock, &counter).await?;
    for writer in &writers {
        writer.close().await?;
    }
    Ok(Writes { logs: size.logs, one_log, many_logs })
}

/// One entry per log after another, as soon as the last is durable but not more often than the pause says.
async fn writes_of(writers: &[Writer], clock: &Clock, counter: impl Fn() -> f64) -> anyhow::Result<f64> {
    let payload = Bytes::from(vec![b'x'; SMALL]);
    let (started, before) = (clock.now(), counter());
    while started.elapsed() < WRITES_WINDOW {
        let round = clock.now();
        for appended in join_all(writers.iter().map(|writer| writer.append(vec![payload.clone()]))).await {
            appended?;
        }
        clock.sleep_until(round + WRITES_PAUSE).await;
    }
    Ok((counter() - before) / started.elapsed().as_secs_f64())
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
pub(super) fn rate(bytes: usize, elapsed: Duration) -> f64 {
    bytes as f64 / elapsed.as_secs_f64().max(1e-9)
}
