//! One segment of a local volume: its writing side and its reading side.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use woodpecker_base::{clock::Clock, random::Random};
use woodpecker_core::ids::SegmentKey;

use crate::backend::{Placement, SegmentEnd, SegmentOwner, SegmentReader, SegmentWriter, StoreError};

use super::{blocking, queue::Queue, volume::Volume};

/// Largest total of entry bytes in one append, and so in one block.
pub(super) const MAX_APPEND_BYTES: usize = 32 << 20;
/// A read of a file takes at least this much, and keeps what was not asked for yet.
const READ_AHEAD: u64 = 1 << 20;
/// How often a segment that another process writes is looked at: the pause doubles while nothing comes.
const POLL: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

/// An open segment of a volume that this process writes.
#[derive(Debug)]
pub(super) struct Segment {
    pub key: SegmentKey,
    placement: Placement,
    owner: Arc<dyn SegmentOwner>,
    numbering: Mutex<Numbering>,
    pub live: Arc<Live>,
    pub lane: u32,
}

/// How a segment starts in a volume.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Start {
    /// The number of its first entry in this volume.
    pub first: u64,
    /// Segments of one lane wait for one another; lanes take turns.
    pub lane: u32,
}

/// What readers of this process see of an open segment. Owners-to-be of one segment share it: one of them will append.
#[derive(Debug, Default)]
pub(super) struct Live {
    acked: watch::Sender<u64>,
    /// The entries acked last, oldest first.
    tail: Mutex<VecDeque<TailBlock>>,
}

#[derive(Debug)]
struct Numbering {
    next: u64,
    ended: bool,
}

#[derive(Debug)]
struct TailBlock {
    first: u64,
    entries: Vec<Bytes>,
}

impl Segment {
    pub(super) fn new(
        key: SegmentKey,
        placement: Placement,
        owner: Arc<dyn SegmentOwner>,
        live: Arc<Live>,
        start: Start,
    ) -> Self {
        let numbering = Mutex::new(Numbering { next: start.first, ended: false });
        Self { key, placement, owner, numbering, live, lane: start.lane }
    }

    fn numbering(&self) -> MutexGuard<'_, Numbering> {
        self.numbering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.numbering().ended
    }

    /// Takes no more appends and tells the owner, once.
    pub(super) fn end(&self, end: SegmentEnd) {
        let ended = std::mem::replace(&mut self.numbering().ended, true);
        if !ended {
            self.owner.ended(end);
        }
    }

    /// The entries of a block are durable: wakes the readers and tells the owner.
    pub(super) fn ack(&self, first: u64, entries: Vec<Bytes>) {
        let next = first + entries.len() as u64;
        self.live.tail().push_back(TailBlock { first, entries });
        self.live.acked.send_replace(next);
        self.owner.acked(next);
    }
}

impl Live {
    /// What readers see of a segment whose entries below `first` are elsewhere.
    pub(super) fn starting_at(first: u64) -> Self {
        Self { acked: watch::Sender::new(first), tail: Mutex::default() }
    }

    fn tail(&self) -> MutexGuard<'_, VecDeque<TailBlock>> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the oldest block kept for tail readers.
    pub(super) fn forget_oldest(&self) {
        self.tail().pop_front();
    }

    /// Entries of `from..limit` that are still in memory; `None` if the first is not.
    fn remembered(&self, from: u64, limit: u64, max_bytes: usize) -> Option<Vec<Bytes>> {
        let tail = self.tail();
        let at = tail.partition_point(|block| block.first + block.entries.len() as u64 <= from);
        if tail.get(at)?.first > from {
            return None;
        }
        let numbered = tail.range(at..).flat_map(|block| (block.first..).zip(&block.entries));
        let wanted = numbered.skip_while(|(number, _)| *number < from).take_while(|(number, _)| *number < limit);
        Some(fitting(wanted.map(|(_, entry)| entry), max_bytes))
    }
}

/// The first entry, and those after it that fit.
fn fitting<'a>(entries: impl Iterator<Item = &'a Bytes>, max_bytes: usize) -> Vec<Bytes> {
    let mut bytes = 0;
    let mut fitting = Vec::new();
    for entry in entries {
        if !fitting.is_empty() && bytes + entry.len() > max_bytes {
            break;
        }
        bytes += entry.len();
        fitting.push(entry.clone());
    }
    fitting
}

/// The appending side.
#[derive(Debug)]
pub(super) struct Writer {
    pub segment: Arc<Segment>,
    pub queue: Arc<Queue>,
}

impl SegmentWriter for Writer {
    fn placement(&self) -> &Placement {
        &self.segment.placement
    }

    fn append(&self, entries: Vec<Bytes>) -> Result<u64, StoreError> {
        let bytes: usize = entries.iter().map(Bytes::len).sum();
        if bytes > MAX_APPEND_BYTES {
            return Err(StoreError::TooLarge { bytes, limit: MAX_APPEND_BYTES });
        }
        // Held until the entries are queued, so that the queue has them in the order of their numbers.
        let mut numbering = self.segment.numbering();
        if numbering.ended {
            return Err(StoreError::Ended);
        }
        let first = numbering.next;
        if !entries.is_empty() {
            let count = entries.len() as u64;
            self.queue.push(&self.segment, first, entries, bytes)?;
            numbering.next += count;
        }
        Ok(first)
    }
}

/// The reading side.
#[derive(Debug)]
pub(super) struct Reader {
    pub key: SegmentKey,
    /// The first batch of the volume that may hold a block of it.
    pub from_batch: u64,
    /// How many entries the segment has, if that is final.
    pub end: Option<u64>,
    /// The segment as its writer in this process has it.
    pub live: Option<Arc<Live>>,
    pub volume: Arc<Volume>,
    pub clock: Clock,
    pub random: Random,
    pub cursor: Mutex<Cursor>,
}

/// What a reader keeps from one call to the next.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    /// Entries that were read from a file and not all asked for yet, from this number on.
    ahead: (u64, Vec<Bytes>),
    /// The file that the last read was in.
    file: u64,
    /// How many entries are known to be durable, of a segment that another process may be writing.
    durable: u64,
}

impl Reader {
    fn cursor(&self) -> MutexGuard<'_, Cursor> {
        self.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many entries may be read, as far as is known without looking at the disk.
    fn known(&self) -> u64 {
        match (self.end, &self.live) {
            (Some(end), _) => end,
            (None, Some(live)) => *live.acked.borrow(),
            (None, None) => self.cursor().durable,
        }
    }

    /// Whether only the disk can say if there is more.
    fn polls(&self) -> bool {
        self.end.is_none() && self.live.is_none()
    }

    async fn poll(&self) -> Result<u64, StoreError> {
        let (volume, key, from_batch) = (self.volume.clone(), self.key, self.from_batch);
        let known = self.cursor().durable;
        let durable = blocking(&self.volume.dir.disk, move || volume.durable(key, from_batch, known)).await?;
        let mut cursor = self.cursor();
        cursor.durable = cursor.durable.max(durable);
        Ok(cursor.durable)
    }

    async fn read_file(&self, from: u64, limit: u64, max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        let (volume, key, from_batch) = (self.volume.clone(), self.key, self.from_batch);
        let hint = {
            let cursor = self.cursor();
            if from >= cursor.ahead.0 { cursor.file } else { 0 }
        };
        let bytes = READ_AHEAD.max(max_bytes as u64);
        let read = move || volume.read(key, from_batch, from, bytes, hint);
        let (entries, file) = blocking(&self.volume.dir.disk, read).await?;
        let mut cursor = self.cursor();
        cursor.ahead = (from, entries);
        cursor.file = file;
        Ok(cursor.take(from, limit, max_bytes).unwrap_or_default())
    }
}

impl Cursor {
    /// Entries of `from..limit` that an earlier read of a file brought along.
    fn take(&self, from: u64, limit: u64, max_bytes: usize) -> Option<Vec<Bytes>> {
        let (first, entries) = &self.ahead;
        let skip = usize::try_from(from.checked_sub(*first)?).ok()?;
        let take = usize::try_from(limit - from).unwrap_or(usize::MAX);
        let fitting = fitting(entries.get(skip..)?.iter().take(take), max_bytes);
        (!fitting.is_empty()).then_some(fitting)
    }
}

#[async_trait]
impl SegmentReader for Reader {
    async fn read(&self, from: u64, max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        let mut limit = self.known();
        if from >= limit && self.polls() {
            limit = self.poll().await?;
        }
        if from >= limit {
            return Ok(Vec::new());
        }
        if let Some(entries) = self.live.as_ref().and_then(|live| live.remembered(from, limit, max_bytes)) {
            return Ok(entries);
        }
        let ahead = self.cursor().take(from, limit, max_bytes);
        match ahead {
            Some(entries) => Ok(entries),
            None => self.read_file(from, limit, max_bytes).await,
        }
    }

    async fn tail(&self) -> Result<u64, StoreError> {
        if self.polls() { self.poll().await } else { Ok(self.known()) }
    }

    async fn readable(&self, from: u64) {
        if self.known() > from {
            return;
        }
        match (self.end, &self.live) {
            // Nothing comes after the end.
            (Some(_), _) => std::future::pending().await,
            (None, Some(live)) => {
                // Fails never: `live` holds the sender.
                let _ = live.acked.subscribe().wait_for(|acked| *acked > from).await;
            }
            (None, None) => {
                let (mut pause, longest) = POLL;
                // An error is for `read` to tell.
                while self.poll().await.is_ok_and(|durable| durable <= from) {
                    // Spread, so that many readers of one volume do not look at once.
                    let spread = pause.mul_f64(0.75 + 0.5 * self.random.fork().f64());
                    self.clock.sleep(spread).await;
                    pause = (pause * 2).min(longest);
                }
            }
        }
    }
}
