//! Where a reader is in a volume, and the blocks it found ahead.

use std::collections::VecDeque;

use woodpecker_core::ids::SegmentKey;

use crate::{
    backend::StoreError,
    format::BlockEntry,
    object::{
        sections::{SUMMARY_EVERY, Summary},
        view::{View, follow},
    },
};

/// Heads read at once.
const STEP: u64 = 32;
/// Blocks found but not read yet that a reader remembers.
const MOST_FOUND: usize = 1024;

/// A block of the segment, and the object that holds it.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    pub seq: u64,
    pub block: BlockEntry,
}

impl Found {
    fn next(&self) -> u64 {
        self.block.first + u64::from(self.block.count)
    }

    /// Bytes of the entries alone, without their lengths.
    fn payload(&self) -> usize {
        (self.block.length as usize).saturating_sub(self.block.count as usize * 4)
    }
}

#[derive(Debug)]
pub struct Scan {
    /// The next object to look into.
    seq: u64,
    /// The entry that the next block found must start with.
    next: u64,
    found: VecDeque<Found>,
    /// The last objects held nothing of the segment.
    barren: bool,
}

impl Scan {
    pub fn at(seq: u64, next: u64) -> Self {
        Self { seq, next, found: VecDeque::new(), barren: false }
    }

    pub fn seq(&self) -> u64 {
        self.seq
    }

    pub fn next(&self) -> u64 {
        self.next
    }

    /// Moves to entry `from`: forward from where it is, or from the place that `hint` knows, or from the start.
    pub fn place(&mut self, from: u64, hint: Option<(u64, u64)>, from_batch: u64) {
        let known = self.found.front().map_or(self.next, |found| found.block.first);
        if from < known {
            *self = Self::at(from_batch, 0);
        }
        while self.found.front().is_some_and(|found| found.next() <= from) {
            self.found.pop_front();
        }
        if let Some((seq, first)) = hint
            && self.found.is_empty()
            && first > self.next
        {
            *self = Self::at(seq, first);
        }
    }

    /// Whether entry `from` was found, and so many bytes after its block, or as many blocks as it remembers.
    pub fn covers(&self, from: u64, bytes: usize) -> bool {
        // The first block may start before `from`: it counts for nothing.
        let ahead = self.found.iter().skip(1).map(Found::payload).sum::<usize>();
        self.next > from && (ahead >= bytes || self.found.len() >= MOST_FOUND)
    }

    /// The block of entry `from`, and those after it until they hold `bytes`.
    pub fn found(&self, from: u64, bytes: usize) -> Vec<Found> {
        let mut wanted: Vec<Found> = Vec::new();
        let mut ahead = 0;
        for found in self.found.iter().filter(|found| found.next() > from) {
            if !wanted.is_empty() {
                if ahead >= bytes {
                    break;
                }
                ahead += found.payload();
            }
            wanted.push(*found);
        }
        wanted
    }

    /// Looks into the next objects below `limit`.
    pub async fn step(&mut self, view: &View, key: SegmentKey, from: u64, limit: u64) -> Result<(), StoreError> {
        if self.found.is_empty() && (self.next < from || self.barren) {
            self.skip(view, key, from).await?;
        }
        let to = limit.min(self.seq + STEP);
        let mut barren = true;
        for (seq, head) in view.heads(self.seq, to).await? {
            let known = view.known();
            if seq >= known.limit() {
                return Ok(());
            }
            match head {
                Some(head) => {
                    for block in head.batch.blocks.iter().filter(|block| block.key == key) {
                        self.next = follow(self.next, block.first, block.next(), key, seq)?;
                        barren = false;
                        if self.next > from {
                            self.found.push_back(Found { seq, block: *block });
                        }
                    }
                }
                None if seq < known.settled => {}
                None => {
                    let what = format!("object {seq} of volume {} vanished", view.volume);
                    return Err(StoreError::Unavailable(what.into()));
                }
            }
            self.seq = seq + 1;
        }
        self.barren = barren;
        Ok(())
    }

    /// Jumps over objects that hold nothing the reader wants: behind the last summary that counts no more than `from`
    /// entries. Bisects, so it reads few objects.
    async fn skip(&mut self, view: &View, key: SegmentKey, from: u64) -> Result<(), StoreError> {
        let mut low = self.seq / SUMMARY_EVERY;
        let mut high = view.known().settled / SUMMARY_EVERY + 1;
        while high.saturating_sub(low) > 1 {
            let middle = low + (high - low) / 2;
            let head = view.bucket.head(view.volume, middle * SUMMARY_EVERY).await?;
            match head.and_then(|head| Summary::entries_of(&head.batch, key)) {
                Some(next) if next >= self.next && next <= from => {
                    low = middle;
                    (self.seq, self.next) = (middle * SUMMARY_EVERY + 1, next);
                }
                _ => high = middle,
            }
        }
        Ok(())
    }
}
