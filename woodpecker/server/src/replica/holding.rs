//! Which volumes hold a replica's entries. A replica that was begun in one run of the store and repaired in a later one
//! lies in two volumes.

use std::{cmp::Ordering, sync::Arc};

use woodpecker_core::ids::Placement;
use woodpecker_store::disk::Piece;

use crate::{metrics, refusal::Refusal};

/// The entries of a replica that lie in one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub placement: Placement,
    pub first: u64,
    /// The number after the last; `None` in the volume that is being written.
    pub end: Option<u64>,
}

/// The parts, in entry order, and what is wrong with them.
#[derive(Debug, Default)]
pub struct Holding {
    parts: Vec<Part>,
    bytes: u64,
    /// Why the replica cannot say what it holds.
    lost: Option<Arc<str>>,
}

impl Holding {
    /// Adds what a volume of an earlier run holds; in the order of the first entries. Returns how far the replica goes.
    pub fn found(&mut self, piece: &Piece) -> u64 {
        let end = self.end();
        if !piece.whole || piece.first > end {
            self.lose(format!("entries of the replica are missing in volume {}", piece.placement));
        }
        self.bytes += piece.bytes;
        // What two runs hold both is read from the earlier.
        if piece.end > end || self.parts.is_empty() {
            let first = if piece.first > end { piece.first } else { end };
            self.parts.push(Part { placement: piece.placement.clone(), first, end: Some(piece.end) });
        }
        self.end()
    }

    fn end(&self) -> u64 {
        self.parts.last().and_then(|part| part.end).unwrap_or(0)
    }

    /// The replica cannot say any more what it holds.
    pub fn lose(&mut self, why: impl Into<Arc<str>>) {
        let why = why.into();
        if self.lost.is_none() {
            metrics::corrupt();
        }
        self.lost.get_or_insert(why);
    }

    /// Begins a part in the volume that is being written.
    pub fn begin(&mut self, placement: Placement, first: u64) {
        // There is seldom another.
        self.parts.reserve_exact(1);
        self.parts.push(Part { placement, first, end: None });
    }

    /// The volume that was being written takes no more: its part ends at `end`.
    pub fn stopped(&mut self, end: u64) {
        if let Some(part) = self.parts.last_mut().filter(|part| part.end.is_none()) {
            part.end = Some(end.max(part.first));
        }
    }

    pub fn grew(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    pub fn shrank(&mut self, bytes: u64) {
        self.bytes -= bytes;
    }

    /// # Errors
    /// [`Refusal::Corrupt`] when the replica cannot say what it holds.
    pub fn check(&self) -> Result<(), Refusal> {
        self.lost.clone().map_or(Ok(()), |why| Err(Refusal::Corrupt(why)))
    }

    /// Whether there are entries, or may be.
    pub fn holds(&self) -> bool {
        !self.parts.is_empty() || self.lost.is_some()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The part that holds an entry.
    pub fn part(&self, entry: u64) -> Option<&Part> {
        let at = self.parts.binary_search_by(|part| match part.end {
            _ if entry < part.first => Ordering::Greater,
            Some(end) if entry >= end => Ordering::Less,
            _ => Ordering::Equal,
        });
        at.ok().and_then(|at| self.parts.get(at))
    }
}

#[cfg(test)]
mod tests {
    use woodpecker_core::ids::{LogId, SegmentKey, VolumeId};

    use super::*;

    fn piece(volume: u128, first: u64, end: u64) -> Piece {
        let key = SegmentKey { log: LogId(1), segment: 1 };
        let placement = Placement::Volume { volume: VolumeId(volume), from_batch: 0 };
        Piece { key, placement, first, end, bytes: end - first, whole: true }
    }

    fn volume_of(holding: &Holding, entry: u64) -> Option<u128> {
        match holding.part(entry)?.placement {
            Placement::Volume { volume, .. } => Some(volume.0),
            Placement::Replicas(_) => None,
        }
    }

    #[test]
    fn parts_of_several_runs_follow_one_another() {
        let mut holding = Holding::default();
        assert_eq!(holding.found(&piece(1, 0, 10)), 10);
        assert_eq!(holding.found(&piece(2, 10, 20)), 20);
        assert_eq!(holding.found(&piece(3, 15, 18)), 20);
        holding.begin(Placement::Volume { volume: VolumeId(4), from_batch: 3 }, 20);
        assert_eq!([0, 9, 10, 19, 20, 1_000].map(|at| volume_of(&holding, at)), [1, 1, 2, 2, 4, 4].map(Some));
        assert_eq!(holding.check(), Ok(()));
        assert_eq!(holding.bytes(), 23);
    }

    #[test]
    fn a_replica_with_a_hole_does_not_say_what_it_holds() {
        for pieces in [vec![piece(1, 3, 10)], vec![piece(1, 0, 5), piece(2, 6, 9)]] {
            let mut holding = Holding::default();
            for piece in &pieces {
                holding.found(piece);
            }
            assert!(matches!(holding.check(), Err(Refusal::Corrupt(_))), "{pieces:?}");
        }
        let mut holding = Holding::default();
        holding.found(&Piece { whole: false, ..piece(1, 0, 5) });
        assert!(holding.check().is_err());
        assert_eq!(volume_of(&holding, 2), Some(1), "what is there can be read");
    }
}
