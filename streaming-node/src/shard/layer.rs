//! Gives every insert a segment, and keeps collections and partitions as messages make them.
//!
//! It stands above the time ticks, because a message that creates a segment needs one too, and below the lock: arrival
//! order is tick order here, so what is decided when a group passes holds for its place in the log. Nothing waits for a
//! segment to be durable: a log that does not take its `CreateSegment` takes nothing after it either.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::FutureExt;
use streaming_proto::messages::{
    AlterCollectionMessageHeader, CreateCollectionMessageHeader, CreatePartitionMessageHeader,
    CreateSegmentMessageBody, CreateSegmentMessageHeader, DeleteMessageHeader, DropPartitionMessageHeader,
    FlushMessageHeader, InsertMessageHeader, ManualFlushMessageHeader, PartitionSegmentAssignment,
    SchemaChangeMessageHeader, SegmentAssignment,
};
use streaming_types::{
    MessageBuilder, MessageType, StreamingError, channel::is_control_channel, message::Header,
    properties::PropertyError,
};
use tower::Service;
use woodpecker_base::{clock::Clock, random::Random};

use super::{
    ids::IdPool,
    segment::Segment,
    table::{Load, Room, Table},
};
use crate::{
    recovery::state::{LARGEST_SCHEMA, schema_in},
    settings::Segments as Limits,
    wal::group::{Append, Group},
};

/// `data.SegmentLevel`: what inserts grow.
const L1: i32 = 2;

/// A WAL's table, shared with the task that seals.
#[derive(Debug, Clone, Default)]
pub struct Shards(Arc<Mutex<Table>>);

impl Shards {
    pub fn new(table: Table) -> Self {
        Self(Arc::new(Mutex::new(table)))
    }

    pub fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a WAL still works with it.
    pub fn is_used(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// Wraps a service of groups in [`Sharding`].
pub struct ShardLayer {
    pub pchannel: Arc<str>,
    pub shards: Shards,
    pub ids: IdPool,
    pub limits: Limits,
    pub clock: Clock,
    pub random: Random,
}

impl ShardLayer {
    pub fn layer<S>(self, inner: S) -> Sharding<S> {
        let Self { pchannel, shards, ids, limits, clock, random } = self;
        Sharding { inner, pchannel, shards, ids, limits, clock, random }
    }
}

/// See the module.
pub struct Sharding<S> {
    inner: S,
    pchannel: Arc<str>,
    shards: Shards,
    ids: IdPool,
    limits: Limits,
    clock: Clock,
    random: Random,
}

impl<S> Service<Group> for Sharding<S>
where
    S: Service<Group, Response = Group, Error = Infallible>,
    S::Future: Unpin,
{
    type Response = Group;
    type Error = Infallible;
    type Future = Sharded<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if self.shards.lock().is_managed() {
            ready!(self.ids.poll_ready(cx));
        }
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut group: Group) -> Self::Future {
        let created = self.pass(&mut group);
        let shards = (!created.is_empty()).then(|| self.shards.clone());
        Sharded { inner: self.inner.call(group), shards }
    }
}

impl<S> Sharding<S> {
    /// Decides about every message of a group; returns the ids of the segments that are created on the way.
    fn pass(&mut self, group: &mut Group) -> Vec<i64> {
        let Self { pchannel, shards, ids, limits, clock, random, .. } = self;
        let mut table = shards.lock();
        let concerns = |append: &Append| append.kind == MessageType::CreateCollection || is_sharded(append.kind);
        // Clients take no answer to a flush that does not say what it ended.
        for flush in group.appends.iter_mut().filter(|append| append.kind == MessageType::ManualFlush) {
            flush.flushed = Some(Vec::new());
        }
        if !table.is_managed() && !group.appends.iter().any(|append| append.kind == MessageType::CreateCollection) {
            return Vec::new();
        }
        let (mut created, mut passed) = (Vec::new(), Vec::with_capacity(group.appends.len() + 1));
        for mut append in std::mem::take(&mut group.appends) {
            let here = append.scope(pchannel).filter(|vchannel| !is_control_channel(vchannel)).map(str::to_owned);
            let outcome = match here.filter(|_| concerns(&append)) {
                None => Ok(None),
                Some(vchannel) if append.kind == MessageType::Insert => {
                    let mut grower = Grower { table: &mut table, ids, limits, clock, random };
                    grower.insert(&vchannel, &mut append)
                }
                Some(vchannel) => change(&mut table, &vchannel, &mut append).map(|()| None),
            };
            match outcome {
                Ok(segment) => {
                    created.extend(segment.as_ref().map(|(id, _)| *id));
                    passed.extend(segment.map(|(_, create)| Append::own(MessageType::CreateSegment, create, None)));
                    passed.push(append);
                }
                Err(error) => {
                    append.outcome = Some(Err(error));
                    group.settled.push(append);
                }
            }
        }
        group.appends = passed;
        created
    }
}

/// A group on its way through [`Sharding`].
pub struct Sharded<F> {
    inner: F,
    /// If it creates segments.
    shards: Option<Shards>,
}

impl<F> Future for Sharded<F>
where
    F: Future<Output = Result<Group, Infallible>> + Unpin,
{
    type Output = Result<Group, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Ok(group) = ready!(self.inner.poll_unpin(cx));
        if let Some(shards) = &self.shards {
            let mut table = shards.lock();
            for append in group.appends.iter().filter(|append| append.kind == MessageType::CreateSegment) {
                if let (Some(vchannel), Ok(header)) =
                    (append.vchannel(), append.message.header::<CreateSegmentMessageHeader>())
                {
                    table.created(vchannel, header.segment_id, append.tick);
                }
            }
        }
        Poll::Ready(Ok(group))
    }
}

/// Kinds that mean something to collections or segments.
fn is_sharded(kind: MessageType) -> bool {
    matches!(
        kind,
        MessageType::Insert
            | MessageType::Delete
            | MessageType::DropCollection
            | MessageType::CreatePartition
            | MessageType::DropPartition
            | MessageType::Flush
            | MessageType::ManualFlush
            | MessageType::SchemaChange
            | MessageType::AlterCollection
    )
}

/// What finds room for an insert.
struct Grower<'a> {
    table: &'a mut Table,
    ids: &'a mut IdPool,
    limits: &'a Limits,
    clock: &'a Clock,
    random: &'a Random,
}

impl Grower<'_> {
    /// Writes a segment into an insert; returns the message that creates it first, and its id, if it is new.
    fn insert(
        &mut self,
        vchannel: &str,
        append: &mut Append,
    ) -> Result<Option<(i64, streaming_types::Message)>, StreamingError> {
        let mut header: InsertMessageHeader = header(append)?;
        // Its source took it, and a follower that refused what its source holds would stand still for ever.
        if append.replicate.is_some() && self.table.check(vchannel, header.collection_id).is_err() {
            rewrite(append, |header: &mut InsertMessageHeader| {
                header.partitions.iter_mut().for_each(|partition| partition.segment_assignment = None);
            })?;
            return Ok(None);
        }
        let [partition] = header.partitions.as_mut_slice() else {
            let cause = format!("an insert names one partition, not {}", header.partitions.len());
            return Err(StreamingError::unrecoverable(cause));
        };
        if partition.binary_size == 0 {
            partition.binary_size = append.bytes as u64;
        }
        let PartitionSegmentAssignment { partition_id, rows, binary_size: bytes, .. } = *partition;
        let (load, now) = (Load { partition_id, bytes, rows }, self.clock.now());
        let assign = |table: &mut Table| table.assign(vchannel, header.collection_id, load, self.limits, now);
        let (segment_id, create) = match assign(self.table)? {
            Room::Segment(id) => (id, None),
            Room::Needed => {
                let id = self.ids.take().ok_or_else(|| StreamingError::inner("no id for a new segment yet"))?;
                let create = self.create(vchannel, header.collection_id, partition_id, id)?;
                assign(self.table)?;
                (id, Some((id, create)))
            }
        };
        append
            .message
            .rewrite_header(|header: &mut InsertMessageHeader| {
                if let Some(partition) = header.partitions.first_mut() {
                    partition.binary_size = bytes;
                    partition.segment_assignment = Some(SegmentAssignment { segment_id });
                }
            })
            .map_err(|error| unreadable(&error))?;
        Ok(create)
    }

    fn create(
        &mut self,
        vchannel: &str,
        collection_id: i64,
        partition_id: i64,
        segment_id: i64,
    ) -> Result<streaming_types::Message, StreamingError> {
        let header = CreateSegmentMessageHeader {
            collection_id,
            partition_id,
            segment_id,
            storage_version: self.limits.storage_version,
            max_segment_size: self.limits.jittered_bytes(self.random.u64()),
            max_rows: 0,
            level: L1,
        };
        let message = MessageBuilder::new(&header).vchannel(vchannel).body(&CreateSegmentMessageBody {});
        let message = message.build().map_err(|error| StreamingError::inner(error.to_string()))?;
        self.table.grow(vchannel, Segment::created(&header, self.clock.now()));
        Ok(message)
    }
}

/// Takes a message other than an insert.
fn change(table: &mut Table, vchannel: &str, append: &mut Append) -> Result<(), StreamingError> {
    let schema = schema_in(append.kind, &append.message.payload);
    if let Some(size) = schema.as_ref().map(Bytes::len).filter(|size| *size > LARGEST_SCHEMA) {
        let cause = format!("a schema of {size} bytes is larger than {LARGEST_SCHEMA}");
        return Err(StreamingError::unrecoverable(cause));
    }
    match append.kind {
        MessageType::CreateCollection => {
            let header: CreateCollectionMessageHeader = header(append)?;
            if schema.is_none() {
                return Err(StreamingError::unrecoverable("the body of the collection cannot be read"));
            }
            table.create(vchannel, header.collection_id, header.partition_ids);
        }
        MessageType::DropCollection => table.drop_collection(vchannel),
        MessageType::CreatePartition => {
            let header: CreatePartitionMessageHeader = header(append)?;
            table.create_partition(vchannel, header.partition_id);
        }
        MessageType::DropPartition => {
            let header: DropPartitionMessageHeader = header(append)?;
            table.drop_partition(vchannel, header.partition_id);
        }
        MessageType::Delete => {
            let header: DeleteMessageHeader = header(append)?;
            // As of an insert.
            if append.replicate.is_none() {
                table.check(vchannel, header.collection_id)?;
            }
        }
        MessageType::Flush => {
            let FlushMessageHeader { segment_id, .. } = header(append)?;
            if !table.flush(segment_id) {
                return Err(StreamingError::ignored_operation("another message has ended the segment"));
            }
        }
        MessageType::ManualFlush => {
            let ManualFlushMessageHeader { collection_id, flush_ts, .. } = header(append)?;
            // A tick of its source says nothing of our segments: they begin at later ones.
            let flush_ts = if append.replicate.is_some() { u64::MAX } else { flush_ts };
            let flushed = table.fence(vchannel, collection_id, flush_ts);
            rewrite(append, |header: &mut ManualFlushMessageHeader| header.segment_ids.clone_from(&flushed))?;
            append.flushed = Some(flushed);
        }
        MessageType::SchemaChange => {
            let SchemaChangeMessageHeader { collection_id, .. } = header(append)?;
            let flushed = table.fence(vchannel, collection_id, u64::MAX);
            rewrite(append, |header: &mut SchemaChangeMessageHeader| header.flushed_segment_ids = flushed)?;
        }
        MessageType::AlterCollection => {
            let AlterCollectionMessageHeader { collection_id, update_mask, .. } = header(append)?;
            if update_mask.is_some_and(|mask| mask.paths.iter().any(|path| path == "schema")) {
                let flushed = table.fence(vchannel, collection_id, u64::MAX);
                rewrite(append, |header: &mut AlterCollectionMessageHeader| header.flushed_segment_ids = flushed)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn header<H: Header>(append: &Append) -> Result<H, StreamingError> {
    append.message.header().map_err(|error| unreadable(&error))
}

fn rewrite<H: Header>(append: &mut Append, change: impl FnOnce(&mut H)) -> Result<(), StreamingError> {
    append.message.rewrite_header(change).map_err(|error| unreadable(&error))
}

fn unreadable(error: &PropertyError) -> StreamingError {
    StreamingError::unrecoverable(error.to_string())
}

#[cfg(test)]
pub mod samples {
    use std::ops::Range;

    use async_trait::async_trait;

    use super::*;
    use crate::ids::{IdError, IdSource};

    /// Ids from 1 on.
    #[derive(Debug, Default)]
    struct Ids(std::sync::atomic::AtomicI64);

    #[async_trait]
    impl IdSource for Ids {
        async fn allocate_ids(&self, count: u32) -> Result<Range<i64>, IdError> {
            let first = 1 + self.0.fetch_add(count.into(), std::sync::atomic::Ordering::SeqCst);
            Ok(first..first + i64::from(count))
        }
    }

    /// The layer of pchannel `p`, on which no collection lives.
    pub fn layer() -> ShardLayer {
        let (clock, random) = (Clock::system(), Random::seeded(1));
        ShardLayer {
            pchannel: "p".into(),
            shards: Shards::default(),
            ids: IdPool::new(Arc::new(Ids::default()), clock.clone(), &random),
            limits: Limits::default(),
            clock,
            random,
        }
    }
}
