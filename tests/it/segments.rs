//! Segments of a collection, with the owner of its channel killed amid inserts and manual flushes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use prost::Message as _;
use streaming_client::{Client, ConsumeOptions, Delivery, Producer};
use streaming_proto::{
    messages::{
        CreateCollectionMessageHeader, CreateSegmentMessageHeader, InsertMessageHeader, ManualFlushExtraResponse,
        ManualFlushMessageHeader, PartitionSegmentAssignment,
    },
    msg::CreateCollectionRequest,
};
use streaming_types::{DeliverPolicy, ImmutableMessage, Message, MessageBuilder, MessageId, message::Header};
use tokio::task::JoinSet;

use crate::cluster::{Backend, Cluster};

const CHANNEL: &str = "by-dev-rootcoord-dml_0";
const VCHANNEL: &str = "by-dev-rootcoord-dml_0_1v0";
const LIMIT: Duration = Duration::from_secs(120);
const INSERTERS: usize = 4;

fn message<H: Header>(header: &H) -> anyhow::Result<Message> {
    Ok(MessageBuilder::new(header).vchannel(VCHANNEL).payload("body").build()?)
}

fn insert() -> anyhow::Result<Message> {
    let rows = PartitionSegmentAssignment { partition_id: 10, rows: 1, binary_size: 10, ..Default::default() };
    message(&InsertMessageHeader { collection_id: 1, partitions: vec![rows] })
}

/// What the writers share.
#[derive(Default)]
struct Writing {
    stop: AtomicBool,
    /// The tick of an insert that was acknowledged.
    inserted: AtomicU64,
}

/// What one writer was told: where each of its messages is, and what a flush ended.
type Told = BTreeMap<MessageId, Option<Vec<i64>>>;

async fn write(producer: Producer, flushes: bool, writing: Arc<Writing>) -> anyhow::Result<(Told, Instant)> {
    let mut told = Told::new();
    let mut last = Instant::now();
    while !writing.stop.load(Ordering::Relaxed) {
        let flush_ts = writing.inserted.load(Ordering::Relaxed);
        let flush = ManualFlushMessageHeader { collection_id: 1, flush_ts, segment_ids: Vec::new() };
        let message = if flushes { message(&flush)? } else { insert()? };
        let result = producer.append(message).await?.await?;
        let ended = if flushes {
            let extra = result.extra.context("a flush does not say what it ended")?;
            Some(ManualFlushExtraResponse::decode(extra.value.as_slice())?.segment_ids)
        } else {
            writing.inserted.fetch_max(result.time_tick.into(), Ordering::Relaxed);
            None
        };
        ensure!(told.insert(result.id, ended).is_none(), "{} was given to two messages", result.id);
        last = Instant::now();
    }
    Ok((told, last))
}

/// What the log holds, as it is read.
#[derive(Default)]
struct Found {
    /// Segments that grow, with the tick of their first insert.
    growing: BTreeMap<i64, Option<u64>>,
    known: BTreeSet<i64>,
    told: Told,
}

impl Found {
    fn take(&mut self, message: &ImmutableMessage) -> anyhow::Result<()> {
        let tick = message.time_tick()?.into();
        if let Ok(created) = message.header::<CreateSegmentMessageHeader>() {
            ensure!(self.known.insert(created.segment_id), "segment {} is created twice", created.segment_id);
            self.growing.insert(created.segment_id, None);
        } else if let Ok(insert) = message.header::<InsertMessageHeader>() {
            for rows in insert.partitions {
                let segment = rows.segment_assignment.context("no segment")?.segment_id;
                let first = self.growing.get_mut(&segment).context("an insert into a segment that does not grow")?;
                first.get_or_insert(tick);
            }
            ensure!(self.told.insert(message.id, None).is_none(), "{} came twice", message.id);
        } else if let Ok(flush) = message.header::<ManualFlushMessageHeader>() {
            for segment in &flush.segment_ids {
                ensure!(self.growing.remove(segment).is_some(), "segment {segment} is ended and does not grow");
            }
            let left = self.growing.iter().find(|(_, first)| first.is_some_and(|first| first <= flush.flush_ts));
            ensure!(left.is_none(), "{left:?} holds what is older than the flush at {}", flush.flush_ts);
            ensure!(self.told.insert(message.id, Some(flush.segment_ids)).is_none(), "{} came twice", message.id);
        }
        Ok(())
    }
}

async fn read_until(client: &Client, last: MessageId) -> anyhow::Result<Found> {
    let mut consumer = client.consume(ConsumeOptions::new(CHANNEL, DeliverPolicy::All))?;
    let mut found = Found::default();
    let reading = async {
        loop {
            let Delivery::Message(message) = consumer.next().await? else { continue };
            found.take(&message)?;
            if message.id == last {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(LIMIT, reading).await??;
    Ok(found)
}

async fn killing_the_owner_ends_each_segment_once(backend: Backend) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(backend, 2).await?;
    let client = cluster.client().await?;
    client.wait_channel(CHANNEL, LIMIT).await?;
    let producer = client.producer(CHANNEL);
    let create = CreateCollectionMessageHeader { collection_id: 1, partition_ids: vec![10], db_id: 1 };
    let body = CreateCollectionRequest { schema: "\n\u{1}x".into(), ..Default::default() };
    let create = MessageBuilder::new(&create).vchannel(VCHANNEL).body(&body).build()?;
    producer.append(create).await?.await?;
    let writing = Arc::new(Writing::default());
    let mut writers = JoinSet::new();
    for number in 0..=INSERTERS {
        writers.spawn(write(client.producer(CHANNEL), number == INSERTERS, writing.clone()));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let killed = cluster.kill_owner(&client, CHANNEL).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    writing.stop.store(true, Ordering::Relaxed);
    let mut told = Told::new();
    while let Some(written) = tokio::time::timeout(LIMIT, writers.join_next()).await? {
        let (of_one, last) = written??;
        ensure!(last > killed, "a writer did not go on at the other node");
        told.extend(of_one);
    }
    let end = producer.append(insert()?).await?.await?.id;
    told.insert(end, None);
    let found = read_until(&client, end).await?;
    let wrong = told.iter().find(|(id, ended)| found.told.get(*id) != Some(*ended));
    ensure!(wrong.is_none(), "acknowledged, and not so in the log: {wrong:?}");
    let extra = found.told.keys().find(|id| !told.contains_key(*id));
    ensure!(extra.is_none(), "in the log and not acknowledged: {extra:?}");
    ensure!(found.known.len() > 10, "nothing was tested: {} segments", found.known.len());
    client.close().await;
    cluster.verify(CHANNEL)
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_owner_amid_manual_flushes_ends_each_segment_once_on_a_local_disk() -> anyhow::Result<()> {
    killing_the_owner_ends_each_segment_once(Backend::Local).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_owner_amid_manual_flushes_ends_each_segment_once_on_object_storage() -> anyhow::Result<()> {
    killing_the_owner_ends_each_segment_once(Backend::Object).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_owner_amid_manual_flushes_ends_each_segment_once_on_log_stores() -> anyhow::Result<()> {
    killing_the_owner_ends_each_segment_once(Backend::Quorum).await
}
