//! Numbered messages that are appended while something goes wrong, and what must hold of them afterwards.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use streaming_client::{Client, ConsumeOptions, Delivery};
use streaming_proto::messages::{InsertMessageHeader, PartitionSegmentAssignment};
use streaming_types::{DeliverPolicy, Message, MessageBuilder, MessageId, channel::vchannel_name};
use tokio::task::JoinHandle;

pub(crate) const CHANNEL: &str = "by-dev-rootcoord-dml_0";
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
/// More steps than a log takes, one after the other, to go on elsewhere: each a process that has to wake up, and a sync.
const STEPS: u32 = 20;

/// Appends numbered messages, one after another, until told to stop. What it returns was acknowledged, in order.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<anyhow::Result<Vec<Acked>>>,
}

pub(crate) struct Acked {
    pub(crate) number: u64,
    pub(crate) id: MessageId,
    pub(crate) sent: Instant,
    pub(crate) at: Instant,
}

fn message(number: u64) -> anyhow::Result<Message> {
    let partition = PartitionSegmentAssignment { partition_id: 1, rows: 1, ..PartitionSegmentAssignment::default() };
    let header = InsertMessageHeader { collection_id: 1, partitions: vec![partition] };
    Ok(MessageBuilder::new(&header).vchannel(vchannel_name(CHANNEL, 1, 0)).payload(number.to_string()).build()?)
}

impl Load {
    pub(crate) fn start(client: &Client) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, client) = (stop.clone(), client.clone());
        let task = tokio::spawn(async move {
            let producer = client.producer(CHANNEL);
            let (mut acked, mut pending) = (Vec::new(), std::collections::VecDeque::new());
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) || !pending.is_empty() {
                if pending.len() < 16 && !stopped.load(Ordering::Relaxed) {
                    pending.push_back((number, Instant::now(), producer.append(message(number)?).await?));
                    number += 1;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                } else if let Some((number, sent, append)) = pending.pop_front() {
                    let id = append.await?.id;
                    acked.push(Acked { number, id, sent, at: Instant::now() });
                }
            }
            Ok(acked)
        });
        Self { stop, task }
    }

    /// Appends for so many seconds. What it returns was acknowledged, in order.
    pub(crate) async fn run(client: &Client, seconds: u64) -> anyhow::Result<Vec<Acked>> {
        let load = Self::start(client);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        load.finish().await
    }

    pub(crate) async fn finish(self) -> anyhow::Result<Vec<Acked>> {
        self.stop.store(true, Ordering::Relaxed);
        tokio::time::timeout(LIMIT, self.task).await??
    }
}

/// Reads the channel from the beginning until `last` was seen.
pub(crate) async fn read_until(client: &Client, last: MessageId) -> anyhow::Result<Vec<(MessageId, u64)>> {
    let mut consumer = client.consume(ConsumeOptions::new(CHANNEL, DeliverPolicy::All))?;
    let mut found = Vec::new();
    let reading = async {
        loop {
            if let Delivery::Message(message) = consumer.next().await? {
                found.push((message.id, std::str::from_utf8(&message.payload)?.parse()?));
                if message.id == last {
                    return anyhow::Ok(());
                }
            }
        }
    };
    tokio::time::timeout(LIMIT, reading).await??;
    Ok(found)
}

/// Nothing that was acknowledged is missing, and every message is there once and in order: what a producer sends again has
/// the key that it had the first time.
pub(crate) fn check(found: &[(MessageId, u64)], acked: &[Acked]) {
    assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0), "ids are not increasing");
    for (next, (id, number)) in (0..).zip(found) {
        assert_eq!(*number, next, "at {id}");
    }
    let by_id: BTreeMap<_, _> = found.iter().copied().collect();
    for Acked { number, id, .. } in acked {
        assert_eq!(by_id.get(id), Some(number), "{number} was acknowledged at {id}");
    }
    assert!(found.len() >= acked.len(), "{} of {}", found.len(), acked.len());
}

pub(crate) fn longest_pause(acked: &[Acked]) -> Duration {
    acked.windows(2).map(|pair| pair[1].at - pair[0].at).max().unwrap_or_default()
}

/// No append was acknowledged more than `limit` after the one before it, and what the machine was slow by: `slowest` is what it
/// took for one step at most.
pub(crate) fn check_pauses(acked: &[Acked], limit: Duration, slowest: Duration) {
    let paused = longest_pause(acked);
    println!("longest pause {paused:?}, slowest step {slowest:?}");
    assert!(paused < limit + STEPS * slowest, "paused for {paused:?}, where a step takes {slowest:?} at most");
}

/// The latency that `of_thousand` of a thousand appends stay below.
pub(crate) fn percentile<'a>(acked: impl Iterator<Item = &'a Acked>, of_thousand: usize) -> Duration {
    let mut times: Vec<Duration> = acked.map(|acked| acked.at - acked.sent).collect();
    times.sort_unstable();
    times.get(times.len() * of_thousand / 1_000).copied().unwrap_or_default()
}
