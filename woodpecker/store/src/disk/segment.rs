//! One segment of a local volume as its writer has it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use woodpecker_base::level::Level;
use woodpecker_core::ids::SegmentKey;

use crate::backend::{Placement, SegmentEnd, SegmentOwner, SegmentWriter, StoreError};

use super::queue::Queue;

/// Largest total of entry bytes in one append, and so in one block.
pub(super) const MAX_APPEND_BYTES: usize = 32 << 20;

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
    pub acked: Level,
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
        let mut tail = self.live.tail();
        if tail.is_empty() {
            // Of most segments there is one, and segments are many.
            tail.reserve_exact(1);
        }
        tail.push_back(TailBlock { first, entries });
        drop(tail);
        self.live.acked.raise(next);
        self.owner.acked(next);
    }
}

impl Live {
    /// What readers see of a segment whose entries below `first` are elsewhere.
    pub(super) fn starting_at(first: u64) -> Self {
        Self { acked: Level::new(first), tail: Mutex::default() }
    }

    fn tail(&self) -> MutexGuard<'_, VecDeque<TailBlock>> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the oldest block kept for tail readers.
    pub(super) fn forget_oldest(&self) {
        self.tail().pop_front();
    }

    /// Entries of `from..limit` that are still in memory; `None` if the first is not.
    pub(super) fn remembered(&self, from: u64, limit: u64, max_bytes: usize) -> Option<Vec<Bytes>> {
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
pub(super) fn fitting<'a>(entries: impl Iterator<Item = &'a Bytes>, max_bytes: usize) -> Vec<Bytes> {
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
