//! An open segment in a volume that this process writes.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use tokio::sync::watch;
use woodpecker_core::ids::SegmentKey;

use super::volume::{Append, Volume};
use crate::backend::{Placement, SegmentEnd, SegmentOwner, SegmentWriter, StoreError};

/// Largest total of entry bytes in one append.
pub const MAX_APPEND_BYTES: usize = 32 << 20;
/// How many of a segment's latest blocks are remembered by place.
const RECENT: usize = 256;

/// Lives as long as the engine's handle, and whatever of it is queued or under way.
#[derive(Debug)]
pub struct Segment {
    pub key: SegmentKey,
    owner: Arc<dyn SegmentOwner>,
    next: Mutex<u64>,
    progress: watch::Sender<Progress>,
    /// Object and first entry of the latest blocks.
    recent: Mutex<VecDeque<(u64, u64)>>,
}

/// What readers in this process wait on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// How many entries are durable.
    pub durable: u64,
    /// The segment takes no more appends.
    pub stopped: bool,
}

impl Segment {
    pub fn new(key: SegmentKey, owner: Arc<dyn SegmentOwner>) -> Self {
        Self { key, owner, next: Mutex::default(), progress: watch::Sender::default(), recent: Mutex::default() }
    }

    /// The entries from `first` on, below `next`, are durable in object `seq`.
    pub fn stored(&self, seq: u64, first: u64, next: u64) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back((seq, first));
        drop(recent);
        self.progress.send_modify(|progress| progress.durable = next);
        self.owner.acked(next);
    }

    /// Takes no more appends; true for the one call that stopped it, which must see to it that the owner is told.
    pub fn stop(&self) -> bool {
        let mut first = false;
        self.progress.send_modify(|progress| first = !std::mem::replace(&mut progress.stopped, true));
        first
    }

    /// Tells the owner why it was stopped.
    pub fn tell(&self, end: SegmentEnd) {
        self.owner.ended(end);
    }

    /// How many entries it took.
    pub fn appended(&self) -> u64 {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_stopped(&self) -> bool {
        self.progress.borrow().stopped
    }

    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// A place at or before entry `from`: the object to start looking in, and the first entry there.
    pub fn place_before(&self, from: u64) -> Option<(u64, u64)> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let at = recent.partition_point(|(_, first)| *first <= from);
        recent.get(at.checked_sub(1)?).copied()
    }
}

/// The engine's handle.
#[derive(Debug)]
pub struct Writer {
    pub segment: Arc<Segment>,
    pub volume: Arc<Volume>,
    pub placement: Placement,
}

impl SegmentWriter for Writer {
    fn placement(&self) -> &Placement {
        &self.placement
    }

    fn append(&self, entries: Vec<Bytes>) -> Result<u64, StoreError> {
        let bytes: usize = entries.iter().map(Bytes::len).sum();
        if bytes > MAX_APPEND_BYTES {
            return Err(StoreError::TooLarge { bytes, limit: MAX_APPEND_BYTES });
        }
        let mut next = self.segment.next.lock().unwrap_or_else(PoisonError::into_inner);
        if self.segment.is_stopped() {
            return Err(StoreError::Ended);
        }
        let first = *next;
        if entries.is_empty() {
            return Ok(first);
        }
        let after = first + entries.len() as u64;
        self.volume.queue(Append { segment: Arc::clone(&self.segment), first, entries, bytes })?;
        *next = after;
        Ok(first)
    }
}
