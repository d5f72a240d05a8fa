//! Transactions, messages in pieces and repeated appends, with the owner of their channel killed amid them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use streaming_client::{Client, ConsumeOptions, Delivery, Producer, TxnError};
use streaming_proto::messages::{InsertMessageHeader, PartitionSegmentAssignment};
use streaming_types::{DeliverPolicy, Message, MessageBuilder, MessageId, channel::vchannel_name};
use tokio::task::JoinSet;

use crate::cluster::{Backend, Cluster};

const CHANNEL: &str = "by-dev-rootcoord-dml_0";
const LIMIT: Duration = Duration::from_secs(120);
const WRITERS: u64 = 6;
/// Larger than an entry of the log, so that it is written in pieces.
const LARGE: usize = 5 << 20;

fn message(writer: u64, text: String) -> anyhow::Result<Message> {
    let partition = PartitionSegmentAssignment { partition_id: 1, rows: 1, ..PartitionSegmentAssignment::default() };
    let header = InsertMessageHeader { collection_id: 1, partitions: vec![partition] };
    let collection = i64::try_from(writer % 3 + 1)?;
    Ok(MessageBuilder::new(&header).vchannel(vchannel_name(CHANNEL, collection, 0)).payload(text).build()?)
}

/// What one writer was told is in the log, and what may be.
#[derive(Default)]
struct Written {
    /// By where it stands: the labels of the messages that consumers get there together.
    known: BTreeMap<MessageId, Vec<String>>,
    /// Transactions that were not committed, and must not be seen.
    given_up: BTreeSet<String>,
    last: Option<Instant>,
}

async fn write(producer: Producer, writer: u64, stop: Arc<AtomicBool>) -> anyhow::Result<Written> {
    let mut written = Written::default();
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let label = format!("{writer}/{n}");
        let outcome = match n % 5 {
            0 | 1 => plain(&producer, writer, label.clone()).await.map(|id| Some((id, vec![label.clone()])))?,
            2 if n % 25 == 2 => {
                let text = format!("{label} {}", "x".repeat(LARGE));
                plain(&producer, writer, text).await.map(|id| Some((id, vec![label.clone()])))?
            }
            kind => txn(&producer, writer, &label, kind == 4).await?,
        };
        match outcome {
            Some((id, labels)) => {
                written.known.insert(id, labels);
            }
            None => {
                written.given_up.insert(label);
            }
        }
        written.last = Some(Instant::now());
    }
    Ok(written)
}

async fn plain(producer: &Producer, writer: u64, text: String) -> anyhow::Result<MessageId> {
    Ok(producer.append(message(writer, text)?).await?.await?.id)
}

/// A transaction of three messages; `None` when it was not committed.
async fn txn(
    producer: &Producer,
    writer: u64,
    label: &str,
    give_up: bool,
) -> anyhow::Result<Option<(MessageId, Vec<String>)>> {
    let labels: Vec<_> = (0..3).map(|body| format!("{label}/{body}")).collect();
    let messages = labels.iter().map(|label| message(writer, label.clone())).collect::<anyhow::Result<Vec<_>>>()?;
    let vchannel = messages[0].properties.vchannel().context("vchannel")?.to_owned();
    if !give_up {
        let committed = producer.append_together(&vchannel, messages).await?;
        return Ok(Some((committed.id, labels)));
    }
    let mut txn = producer.begin(&vchannel, None).await?;
    for message in messages {
        match txn.append(message).await {
            Ok(()) => {}
            Err(TxnError::Expired(_)) => break,
            Err(error) => return Err(error.into()),
        }
    }
    txn.rollback().await?;
    Ok(None)
}

/// Everything that a consumer gets from the beginning up to `last`, together as it came.
async fn read_until(client: &Client, last: MessageId) -> anyhow::Result<BTreeMap<MessageId, Vec<String>>> {
    let label = |payload: &[u8]| String::from_utf8_lossy(payload).split(' ').next().unwrap_or_default().to_owned();
    let mut consumer = client.consume(ConsumeOptions::new(CHANNEL, DeliverPolicy::All))?;
    let mut found = BTreeMap::new();
    let reading = async {
        loop {
            let (id, labels) = match consumer.next().await? {
                Delivery::Message(message) => {
                    ensure!(message.payload.len() < 100 || message.payload.len() > LARGE, "a torn message");
                    (message.id, vec![label(&message.payload)])
                }
                Delivery::Txn(txn) => (txn.commit.id, txn.bodies.iter().map(|body| label(&body.payload)).collect()),
                Delivery::TimeTick { .. } => continue,
            };
            ensure!(found.insert(id, labels).is_none(), "{id} came twice");
            if id == last {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(LIMIT, reading).await??;
    Ok(found)
}

async fn killing_the_owner_tears_and_doubles_nothing(backend: Backend) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(backend, 2).await?;
    let client = cluster.client().await?;
    client.wait_channel(CHANNEL, LIMIT).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write(client.producer(CHANNEL), writer, stop.clone()));
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let killed = cluster.kill_owner(&client, CHANNEL).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    stop.store(true, Ordering::Relaxed);
    let mut known = BTreeMap::new();
    let mut given_up = BTreeSet::new();
    while let Some(written) = tokio::time::timeout(LIMIT, writers.join_next()).await? {
        let written = written??;
        ensure!(written.last.is_some_and(|last| last > killed), "a writer did not go on at the other node");
        known.extend(written.known);
        given_up.extend(written.given_up);
    }
    let end = plain(&client.producer(CHANNEL), 0, "end".to_owned()).await?;
    known.insert(end, vec!["end".to_owned()]);
    let found = read_until(&client, end).await?;
    // Exactly what was acknowledged: each once, at its place, transactions whole, and nothing that was given up.
    let missing = known.iter().find(|(id, labels)| found.get(*id) != Some(*labels));
    ensure!(missing.is_none(), "acknowledged and not there: {missing:?}");
    let extra = found.iter().find(|(id, _)| !known.contains_key(*id));
    ensure!(extra.is_none(), "there and not acknowledged: {extra:?}");
    ensure!(known.values().any(|labels| labels.len() == 3) && !given_up.is_empty(), "nothing was tested");
    client.close().await;
    cluster.verify(CHANNEL)
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_owner_amid_transactions_tears_and_doubles_nothing_on_a_local_disk() -> anyhow::Result<()> {
    killing_the_owner_tears_and_doubles_nothing(Backend::Local).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_owner_amid_transactions_tears_and_doubles_nothing_on_object_storage() -> anyhow::Result<()> {
    killing_the_owner_tears_and_doubles_nothing(Backend::Object).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_owner_amid_transactions_tears_and_doubles_nothing_on_log_stores() -> anyhow::Result<()> {
    killing_the_owner_tears_and_doubles_nothing(Backend::Quorum).await
}
