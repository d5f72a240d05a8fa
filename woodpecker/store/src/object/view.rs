//! What this process knows of a volume: how far its objects are durable, and where it was fenced.
//!
//! A writer has at most [`MAX_IN_FLIGHT`] PUTs under way and counts up without a gap. So below the newest object, and
//! more than [`WINDOW`] away from it, every object was stored and none is a fence; what is missing there was collected.
//! Only the window has to be looked at closely, however long the volume is.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt};
use tokio::sync::{Mutex, watch};
use woodpecker_base::clock::Instant;
use woodpecker_core::ids::{SegmentKey, VolumeId};

use super::{
    bucket::{Bucket, Head},
    sections::{SUMMARY_EVERY, Summary},
};
use crate::{backend::StoreError, format::Kind};

/// PUTs a volume's writer may have in flight.
pub const MAX_IN_FLIGHT: u64 = 8;
/// Fences that one taker sets side by side when it races a writer.
pub const FENCES_AT_ONCE: u64 = 16;
/// Distance from the newest object below which a volume is settled: what a writer may have in flight, and the fences
/// that takers may have set beyond the first missing object, with room to spare. Part of the protocol.
pub const WINDOW: u64 = 64;
/// The newest objects that are never removed, for a taker tells the end of the volume by them: its window must be whole,
/// whichever object it takes for the newest.
pub const KEPT: u64 = 2 * WINDOW;
/// Heads read in parallel.
pub const PARALLEL: usize = 64;

/// What is known of a volume; it only grows, but for the fence, which may move down to an earlier one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Known {
    /// Every object below is durable, or was collected.
    pub end: u64,
    /// Every object below is surely data, or was collected.
    pub settled: u64,
    /// Nothing from here on exists.
    pub fence: Option<u64>,
}

impl Known {
    /// Where readers stop.
    pub fn limit(&self) -> u64 {
        self.fence.map_or(self.end, |fence| fence.min(self.end))
    }
}

#[derive(Debug)]
pub struct View {
    pub bucket: Arc<Bucket>,
    pub volume: VolumeId,
    known: watch::Sender<Known>,
    /// The writer is in this process and says itself how far it is.
    pushed: watch::Sender<bool>,
    refreshed: Mutex<Option<Instant>>,
}

impl View {
    pub fn new(bucket: Arc<Bucket>, volume: VolumeId, pushed: bool) -> Arc<Self> {
        Arc::new(Self {
            bucket,
            volume,
            known: watch::Sender::default(),
            pushed: watch::Sender::new(pushed),
            refreshed: Mutex::default(),
        })
    }

    pub fn known(&self) -> Known {
        *self.known.borrow()
    }

    /// The writer has stored every object below `end`.
    pub fn advance(&self, end: u64) {
        self.known.send_modify(|known| {
            known.end = known.end.max(end);
            known.settled = known.settled.max(end.saturating_sub(WINDOW));
        });
    }

    /// There is a fence at `seq`.
    pub fn fenced(&self, seq: u64) {
        self.known.send_if_modified(|known| {
            let earlier = known.fence.is_none_or(|fence| seq < fence);
            if earlier {
                known.fence = Some(seq);
            }
            earlier
        });
    }

    /// The writer in this process ended; from now on news must be looked for.
    pub fn writer_ended(&self) {
        self.pushed.send_replace(false);
    }

    pub fn is_pushed(&self) -> bool {
        *self.pushed.borrow()
    }

    /// Resolves when the writer in this process has something new, or ends.
    pub async fn pushed_news(&self, seen: u64) {
        let (mut known, mut pushed) = (self.known.subscribe(), self.pushed.subscribe());
        tokio::select! {
            biased;
            _ = known.wait_for(|known| known.limit() > seen) => {}
            _ = pushed.wait_for(|pushed| !pushed) => {}
        }
    }

    /// Looks for new objects, unless that was done within `max_age`. One look at a time serves all who ask.
    /// `hint` is an object that the caller knows of, or wants to know of.
    pub async fn refresh(&self, hint: u64, max_age: Duration) -> Result<Known, StoreError> {
        let clock = &self.bucket.clock;
        let mut refreshed = self.refreshed.lock().await;
        let recent = refreshed.is_some_and(|at| clock.now().saturating_duration_since(at) < max_age);
        if recent || self.is_pushed() {
            return Ok(self.known());
        }
        // A segment starts at most MAX_IN_FLIGHT objects ahead of the newest one: twice the window finds that one's.
        let from = self.known().end.max(hint.saturating_sub(2 * WINDOW));
        let mut listed = from.saturating_sub(1);
        let mut found = self.bucket.newest(self.volume, listed, WINDOW).await?;
        if found.is_none() && from > self.known().end {
            listed = self.known().end.saturating_sub(1);
            found = self.bucket.newest(self.volume, listed, WINDOW).await?;
        }
        if let Some((newest, window)) = found {
            let settled = newest.saturating_sub(WINDOW);
            // Where the window begins all was stored once. What is missing there was removed: the volume had ended.
            let begins = newest >= WINDOW && listed <= settled;
            let first = window.first().copied().filter(|_| begins).unwrap_or(settled);
            let mut end = self.known().end.max(first);
            for seq in window {
                if seq == end {
                    end += 1;
                }
            }
            self.known.send_if_modified(|known| {
                let before = *known;
                known.end = known.end.max(end);
                known.settled = known.settled.max(settled);
                *known != before
            });
        }
        *refreshed = Some(clock.now());
        Ok(self.known())
    }

    /// The heads of objects `from..to`, in parallel, in order; `None` where there is none. Fences are noted.
    pub async fn heads(&self, from: u64, to: u64) -> Result<Vec<(u64, Option<Arc<Head>>)>, StoreError> {
        let heads: Vec<_> = futures::stream::iter(from..to)
            .map(|seq| async move { Ok((seq, self.bucket.head(self.volume, seq).await?)) })
            .buffered(PARALLEL)
            .try_collect()
            .await?;
        for (seq, head) in &heads {
            if head.as_ref().is_some_and(|head| head.batch.header.id.kind == Kind::Fence) {
                self.fenced(*seq);
            }
        }
        Ok(heads)
    }

    /// Finds out whether there is a fence among what is known, by looking at all that may be one.
    pub async fn look_for_fence(&self) -> Result<Known, StoreError> {
        let known = self.known();
        if known.fence.is_none_or(|fence| fence > known.settled) {
            self.heads(known.settled, known.limit()).await?;
        }
        Ok(self.known())
    }

    /// How many entries the segment has below `limit`. Starts at the latest summary that knows the segment.
    pub async fn entries_below(&self, key: SegmentKey, from_batch: u64, limit: u64) -> Result<u64, StoreError> {
        let (mut seq, mut next) = self.start_below(key, from_batch, limit).await?;
        while seq < limit {
            let to = limit.min(seq + PARALLEL as u64);
            for (seq, head) in self.heads(seq, to).await? {
                let Some(head) = head else {
                    if seq < self.known().settled {
                        continue;
                    }
                    return Err(StoreError::Unavailable(format!("object {seq} of {} vanished", self.volume).into()));
                };
                for block in head.batch.blocks.iter().filter(|block| block.key == key) {
                    next = follow(next, block.first, block.next(), key, seq)?;
                }
            }
            seq = to;
        }
        Ok(next)
    }

    /// Where to start counting: after the latest summary below `limit` that knows the segment, or at `from_batch`.
    async fn start_below(&self, key: SegmentKey, from_batch: u64, limit: u64) -> Result<(u64, u64), StoreError> {
        let mut summary = limit.saturating_sub(1) / SUMMARY_EVERY * SUMMARY_EVERY;
        // A segment whose writer let go of it is in no later summary: look further and further back.
        while summary >= from_batch && limit > 0 {
            if let Some(head) = self.bucket.head(self.volume, summary).await?
                && let Some(next) = Summary::entries_of(&head.batch, key)
            {
                return Ok((summary + 1, next));
            }
            match summary.checked_sub(SUMMARY_EVERY) {
                Some(earlier) => summary = earlier,
                None => break,
            }
        }
        Ok((from_batch, 0))
    }
}

/// The number after a block that follows entry `expected`.
pub fn follow(expected: u64, first: u64, next: Option<u64>, key: SegmentKey, seq: u64) -> Result<u64, StoreError> {
    match next {
        Some(next) if first == expected => Ok(next),
        // What is missing was deleted; a block that comes again, or from nowhere, must not be.
        _ if first > expected => Err(StoreError::NotFound { what: format!("entry {expected} of segment {key}") }),
        _ => Err(StoreError::Corrupt {
            what: format!("segment {key}"),
            detail: format!("object {seq} has entry {first} where {expected} should be"),
        }),
    }
}
