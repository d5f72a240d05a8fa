//! What the client does: ordered appends for as long as things go wrong, then one read of everything.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, ensure};
use streaming_client::{Client, ConsumeOptions, Delivery, Discovery, Edges, Settings};
use streaming_proto::messages::{InsertMessageHeader, PartitionSegmentAssignment};
use streaming_types::{DeliverPolicy, Message, MessageBuilder, MessageId, channel::vchannel_name};
use woodpecker_base::random::Random;

use crate::{cluster::clock, net::connector, trace::Trace};

const CHANNEL: &str = "by-dev-rootcoord-dml_0";
const LIMIT: Duration = Duration::from_secs(120);
const IN_FLIGHT: usize = 16;
/// Appends at least, and after the last fault.
const APPENDS: u64 = 200;
const APPENDS_AFTER: usize = 50;

/// What the client and whoever makes the faults know of each other.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
pub struct State {
    /// Where the channel's owner was last seen.
    pub owner: String,
    /// Acknowledged appends.
    pub acked: usize,
    /// Nothing will go wrong any more.
    pub healed: bool,
}

impl Progress {
    /// What is known now.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Appends, reads, checks.
///
/// # Errors
/// An operation failed although all faults end, or an acknowledged entry is missing, doubled or out of order.
pub async fn run(progress: Progress, discovery: Discovery, random: Random, trace: Trace) -> anyhow::Result<()> {
    let edges = Edges { connector: connector(), clock: clock(), random: random.clone() };
    let client = Client::connect(Settings::new(discovery), edges)?;
    client.wait_channel(CHANNEL, LIMIT).await?;
    let acked = append(&client, &progress, &random, &trace).await?;
    let last = acked.last().context("nothing was acknowledged")?;
    let found = clock().timeout(LIMIT, read_until(&client, last.1)).await.context("reading took too long")??;
    trace.here(format_args!("read {} up to {}", found.len(), last.1));
    check(&found, &acked)?;
    client.close().await;
    Ok(())
}

fn message(number: u64) -> anyhow::Result<Message> {
    let partition = PartitionSegmentAssignment { partition_id: 1, rows: 1, ..PartitionSegmentAssignment::default() };
    let header = InsertMessageHeader { collection_id: 1, partitions: vec![partition] };
    Ok(MessageBuilder::new(&header).vchannel(vchannel_name(CHANNEL, 1, 0)).payload(number.to_string()).build()?)
}

/// Appends numbered messages until enough were acknowledged after the last fault; returns what was, in order.
async fn append(
    client: &Client,
    progress: &Progress,
    random: &Random,
    trace: &Trace,
) -> anyhow::Result<Vec<(u64, MessageId)>> {
    let producer = client.producer(CHANNEL);
    let (mut acked, mut pending) = (Vec::new(), VecDeque::new());
    let (mut number, mut left, mut pace) = (0, APPENDS_AFTER, random.fork());
    while left > 0 || number < APPENDS || !pending.is_empty() {
        if pending.len() < IN_FLIGHT && (left > 0 || number < APPENDS) {
            pending.push_back((number, producer.append(message(number)?).await?));
            number += 1;
            left -= usize::from(progress.state().healed && left > 0);
            clock().sleep(Duration::from_millis(pace.u64(0..60))).await;
        } else if let Some((number, append)) = pending.pop_front() {
            let id = append.await.with_context(|| format!("append {number}"))?.id;
            acked.push((number, id));
            trace.here(format_args!("ack {number} {id}"));
            let mut state = progress.state();
            state.acked = acked.len();
            if let Some(channel) = client.describe(CHANNEL) {
                state.owner = channel.owner.address;
            }
        }
    }
    Ok(acked)
}

/// Reads the channel from the beginning until `last` was seen.
async fn read_until(client: &Client, last: MessageId) -> anyhow::Result<Vec<(MessageId, u64)>> {
    let mut consumer = client.consume(ConsumeOptions::new(CHANNEL, DeliverPolicy::All))?;
    let mut found = Vec::new();
    while found.last().is_none_or(|(id, _)| *id != last) {
        if let Delivery::Message(message) = consumer.next().await? {
            found.push((message.id, std::str::from_utf8(&message.payload)?.parse()?));
        }
    }
    Ok(found)
}

/// Nothing that was acknowledged is missing or doubled, and first copies are in order.
fn check(found: &[(MessageId, u64)], acked: &[(u64, MessageId)]) -> anyhow::Result<()> {
    for pair in found.windows(2) {
        ensure!(pair[0].0 < pair[1].0, "{:?} was read after {:?}", pair[1], pair[0]);
    }
    let mut next = 0;
    for (id, number) in found {
        ensure!(*number <= next, "{number} at {id} came before {next}");
        next = next.max(number + 1);
    }
    // Ids are strictly increasing, so a map by id loses none.
    let by_id: BTreeMap<_, _> = found.iter().copied().collect();
    for (number, id) in acked {
        ensure!(by_id.get(id) == Some(number), "{number} was acknowledged at {id}, where {:?} is", by_id.get(id));
    }
    ensure!(next == acked.len() as u64, "{next} were read, {} acknowledged", acked.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(entry: i64) -> MessageId {
        MessageId::new(1, entry)
    }

    #[test]
    fn the_check_finds_what_is_lost_doubled_or_out_of_order() {
        let acked = [(0, id(1)), (1, id(2)), (2, id(4))];
        let good = [(id(1), 0), (id(2), 1), (id(3), 1), (id(4), 2)];
        check(&good, &acked).unwrap();
        let lost = [(id(1), 0), (id(3), 1), (id(4), 2)];
        let doubled = [(id(1), 0), (id(2), 1), (id(2), 1), (id(4), 2)];
        let swapped = [(id(1), 0), (id(2), 2), (id(3), 1), (id(4), 2)];
        for bad in [&lost[..], &doubled, &swapped, &good[..3]] {
            check(bad, &acked).unwrap_err();
        }
    }
}
