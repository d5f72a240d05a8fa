//! What is written to one cluster, and whether another one holds the same.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, ensure};
use streaming_client::{AppendError, ConsumeOptions, Delivery, TxnError};
use streaming_proto::messages::{InsertMessageHeader, PartitionSegmentAssignment};
use streaming_types::{
    DeliverPolicy, ImmutableMessage, Message, MessageBuilder, MessageType, StreamingCode, channel::vchannel_name,
};
use tokio::task::JoinHandle;

use super::site::{LIMIT, Site};

pub(super) fn message(channel: &str, payload: impl Into<bytes::Bytes>) -> anyhow::Result<Message> {
    let partition = PartitionSegmentAssignment { partition_id: 1, rows: 1, ..PartitionSegmentAssignment::default() };
    let header = InsertMessageHeader { collection_id: 1, partitions: vec![partition] };
    let message = MessageBuilder::new(&header).vchannel(vchannel_name(channel, 1, 0)).payload(payload);
    Ok(message.property("user", channel).build()?)
}

/// Larger than an entry of the log.
const LARGE: usize = 5 << 20;

fn ends_writing(error: &AppendError) -> bool {
    matches!(error, AppendError::Refused(refusal) if refusal.code() == StreamingCode::ReplicateViolation)
}

/// Appends to one channel until it is told to stop, or the channel takes no more because its cluster follows another one.
/// Returns what was acknowledged.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<anyhow::Result<Vec<String>>>,
}

impl Load {
    pub(super) fn start(site: &Site, index: usize, label: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, client, channel) = (stop.clone(), site.client.clone(), site.channel(index));
        let task = tokio::spawn(async move {
            let producer = client.producer(&channel);
            let mut acked = Vec::new();
            for n in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let text = format!("{label} {n}");
                let appended = match n % 10 {
                    9 => {
                        let run = async {
                            let mut txn = producer.begin(&vchannel_name(&channel, 1, 0), None).await?;
                            for part in 0..3 {
                                let body = message(&channel, format!("{text}/{part}"));
                                txn.append(body.map_err(|error| TxnError::InvalidBody(error.to_string()))?).await?;
                            }
                            txn.commit().await
                        };
                        run.await.map(drop).map_err(|error| match error {
                            TxnError::Append(error) => Some(error),
                            // The change of the role ended it.
                            _ => None,
                        })
                    }
                    5 if n % 100 == 5 => {
                        let large = format!("{text} {}", "x".repeat(LARGE));
                        producer.append(message(&channel, large)?).await?.await.map(drop).map_err(Some)
                    }
                    _ => producer.append(message(&channel, text.clone())?).await?.await.map(drop).map_err(Some),
                };
                match appended {
                    Ok(()) => acked.push(text),
                    Err(Some(error)) if ends_writing(&error) => break,
                    Err(None) => {}
                    Err(Some(error)) => return Err(error.into()),
                }
            }
            Ok(acked)
        });
        Self { stop, task }
    }

    pub(super) async fn finish(self) -> anyhow::Result<Vec<String>> {
        self.stop.store(true, Ordering::Relaxed);
        self.ended().await
    }

    pub(super) async fn ended(self) -> anyhow::Result<Vec<String>> {
        tokio::time::timeout(LIMIT, self.task).await.context("the load did not end")??
    }
}

/// What readers see of a message whichever cluster they read.
fn seen(message: &ImmutableMessage) -> One {
    let user = message.properties.user().map(|(key, value)| format!("{key}={value}"));
    (message.properties.message_type().ok(), message.payload.to_vec(), user.collect())
}

/// Type, payload, and the properties that the producer gave. The header names segments of its own cluster.
type One = (Option<MessageType>, Vec<u8>, Vec<String>);
type Seen = Vec<Vec<One>>;

/// Everything in a channel up to the message `last`, transactions as one.
pub(super) async fn read(site: &Site, index: usize, last: &str) -> anyhow::Result<Seen> {
    let mut consumer = site.client.consume(ConsumeOptions::new(site.channel(index), DeliverPolicy::All))?;
    let mut found = Vec::new();
    let reading = async {
        loop {
            let messages = match consumer.next().await? {
                Delivery::Message(message) => vec![message],
                Delivery::Txn(txn) => std::iter::once(txn.begin).chain(txn.bodies).chain([txn.commit]).collect(),
                Delivery::TimeTick { .. } => continue,
            };
            let ends = messages.iter().any(|message| message.payload == last);
            found.push(messages.iter().map(seen).collect::<Vec<_>>());
            if ends {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(LIMIT, reading).await.with_context(|| format!("{last:?} is not in {}", site.name))??;
    // The topology came to each in its own way.
    found.retain(|messages: &Vec<One>| messages[0].0 != Some(MessageType::AlterReplicateConfig));
    Ok(found)
}

/// Appends a last message, and finds that both clusters hold the same, with all that was acknowledged in it, once.
pub(super) async fn check(
    source: &Site,
    target: &Site,
    index: usize,
    acked: &[String],
    last: &str,
) -> anyhow::Result<()> {
    let channel = source.channel(index);
    source.client.producer(&channel).append(message(&channel, last.to_owned())?).await?.await?;
    let (ours, theirs) = (read(source, index, last).await?, read(target, index, last).await?);
    compare(&ours, &theirs)?;
    holds(&theirs, acked)
}

fn compare(ours: &Seen, theirs: &Seen) -> anyhow::Result<()> {
    let at = ours.iter().zip(theirs).position(|(a, b)| a != b).unwrap_or_else(|| ours.len().min(theirs.len()));
    let (one, other) = (ours.get(at), theirs.get(at));
    ensure!(
        ours == theirs,
        "{} and {} deliveries, different from {at} on: {one:?}, {other:?}",
        ours.len(),
        theirs.len()
    );
    Ok(())
}

fn holds(found: &Seen, acked: &[String]) -> anyhow::Result<()> {
    for label in acked {
        let (begins, parts) = (format!("{label} "), format!("{label}/0"));
        let is = |payload: &[u8]| {
            payload == label.as_bytes() || payload.starts_with(begins.as_bytes()) || payload == parts.as_bytes()
        };
        let count = found.iter().flatten().filter(|(_, payload, _)| is(payload)).count();
        ensure!(count == 1, "{label:?} was acknowledged and is there {count} times");
    }
    Ok(())
}
