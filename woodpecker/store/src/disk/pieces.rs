//! What a volume that an earlier process wrote holds, by segment.

use std::collections::BTreeMap;

use woodpecker_core::ids::{Placement, SegmentKey};

use crate::backend::StoreError;

use super::{index::BlockAt, volume::Volume};

/// The entries of one segment in one volume. A segment of a [`Backend`](crate::backend::Backend) has one piece; a replica
/// that was repaired by a later process has several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub key: SegmentKey,
    pub placement: Placement,
    /// The number of its first entry.
    pub first: u64,
    /// The number after its last entry.
    pub end: u64,
    /// Of its entries, as its writer counted them.
    pub bytes: u64,
    /// Whether nothing is missing between the two: a file of the volume may have been lost.
    pub whole: bool,
}

impl Piece {
    fn add(&mut self, blocks: &[BlockAt]) {
        for block in blocks {
            self.whole &= block.first == self.end;
            self.end = block.next();
            // A block has four bytes more for each: its length.
            self.bytes += u64::from(block.length).saturating_sub(4 * u64::from(block.count));
        }
    }
}

impl Volume {
    /// Every segment that has entries here and was not deleted. What was found is synced: the process that wrote it may
    /// have died before it did, and what is counted once must stay.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the volume is damaged before its end.
    pub(super) fn pieces(&self) -> Result<Vec<Piece>, StoreError> {
        let files = self.settled_files()?;
        let mut pieces: BTreeMap<SegmentKey, Piece> = BTreeMap::new();
        for (number, from_batch) in files {
            self.in_file(number, |_, index| {
                for key in index.segments() {
                    let blocks = index.blocks(key);
                    let first = blocks.first().map_or(0, |block| block.first);
                    let placement = Placement::Volume { volume: self.dir.id, from_batch };
                    let fresh = Piece { key, placement, first, end: first, bytes: 0, whole: true };
                    pieces.entry(key).or_insert(fresh).add(blocks);
                }
            })?;
        }
        pieces.retain(|key, _| !self.is_deleted(*key));
        Ok(pieces.into_values().collect())
    }
}
