//! What many logs cost beside one: the same entries per second, on one log and spread over all of them.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use woodpecker::{Append, Client, Writer};
use woodpecker_base::clock::Clock;

use super::{SMALL, latency::Rates};

/// Every log gets this many entries per second, evenly spread over it.
const PER_SECOND: usize = 10;
/// How often entries are appended, to as many logs as are due.
const STEP: Duration = Duration::from_millis(5);
/// How long each side of the comparison is measured in a round.
const WINDOW: Duration = Duration::from_secs(3);
/// Logs that are opened or closed at once.
const AT_ONCE: usize = 64;

/// Writes of the medium per second, round by round.
#[derive(Debug, Default)]
pub(super) struct Writes {
    pub(super) one_log: Rates,
    pub(super) many_logs: Rates,
}

pub(super) async fn writes(
    logs: &Client,
    clock: &Clock,
    count: usize,
    rounds: usize,
    written: impl Fn() -> u64,
) -> anyhow::Result<Writes> {
    let writers: Vec<Writer> = stream::iter(0..count)
        .map(|number| async move {
            let log = logs.open_or_create_log(&format!("bench-many-{number}")).await?;
            anyhow::Ok(log.open_writer().await?)
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    let one = writers.get(..1).context("no log")?;
    let mut writes = Writes::default();
    for _ in 0..rounds {
        writes_of(one, count, clock, &written, &mut writes.one_log).await?;
        writes_of(&writers, count, clock, &written, &mut writes.many_logs).await?;
    }
    stream::iter(&writers)
        .map(|writer| async move { writer.close().await })
        .buffer_unordered(AT_ONCE)
        .try_for_each(|()| async { Ok(()) })
        .await?;
    Ok(writes)
}

/// Appends what so many logs append, to these in turn.
async fn writes_of(
    writers: &[Writer],
    load: usize,
    clock: &Clock,
    written: impl Fn() -> u64,
    rates: &mut Rates,
) -> anyhow::Result<()> {
    let payload = Bytes::from(vec![b'x'; SMALL]);
    let mut turn = writers.iter().cycle();
    let mut appends: Vec<Append> = Vec::new();
    let (started, before) = (clock.now(), written());
    let mut elapsed = Duration::ZERO;
    while elapsed < WINDOW {
        let due = usize::try_from(elapsed.as_micros())? * load * PER_SECOND / 1_000_000;
        for writer in turn.by_ref().take((due + 1).saturating_sub(appends.len())) {
            appends.push(writer.append(vec![payload.clone()]));
        }
        clock.sleep(STEP).await;
        elapsed = started.elapsed();
    }
    rates.record(written() - before, elapsed);
    for append in appends {
        append.await?;
    }
    Ok(())
}
