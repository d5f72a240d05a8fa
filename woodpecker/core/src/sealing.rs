//! What is to be done with a closed segment on its way to its final form.

use crate::record::ClosedSegment;

/// When a closed segment is worth sealing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealPolicy {
    /// Closed for so long, in milliseconds: what is truncated sooner need not be sealed.
    pub min_age_ms: u64,
    /// One of at least this many bytes does not wait.
    pub min_bytes: u64,
}

/// The next step of a closed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealStep {
    /// Write its final form, read that back, and let the record name it.
    Seal,
    /// The record names it: free the medium that it was written to.
    Free,
}

impl ClosedSegment {
    /// What to do with it now. Every step may be done twice, and by anyone.
    #[must_use]
    pub fn seal_step(&self, policy: SealPolicy, now_ms: u64) -> Option<SealStep> {
        match &self.sealed {
            Some(sealed) => (!sealed.freed).then_some(SealStep::Free),
            None => {
                let large = self.bytes.is_some_and(|bytes| bytes >= policy.min_bytes);
                let old = now_ms.saturating_sub(self.closed_ms) >= policy.min_age_ms;
                (large || old).then_some(SealStep::Seal)
            }
        }
    }

    /// The bytes of its entries, or what they take in the final form, as far as either is known.
    #[must_use]
    pub fn known_bytes(&self) -> Option<u64> {
        let sealed = || Some(self.sealed.as_ref()?.runs.iter().map(|run| run.bytes).sum());
        self.bytes.or_else(sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{Placement, SealId, VolumeId},
        record::{OpenSegment, Sealed},
    };

    #[test]
    fn a_segment_is_sealed_when_it_is_large_or_old_and_freed_after() {
        let placement = Placement::Volume { volume: VolumeId(1), from_batch: 0 };
        let opened = OpenSegment { segment: 1, backend: "local".into(), placement, created_ms: 0 };
        let policy = SealPolicy { min_age_ms: 100, min_bytes: 1_000 };
        let mut closed = ClosedSegment { opened, entries: 5, bytes: None, closed_ms: 1_000, sealed: None };
        assert_eq!(closed.seal_step(policy, 1_099), None);
        assert_eq!(closed.seal_step(policy, 1_100), Some(SealStep::Seal));
        // A clock that went back is no reason to hurry.
        assert_eq!(closed.seal_step(policy, 0), None);
        closed.bytes = Some(1_000);
        assert_eq!(closed.seal_step(policy, 1_000), Some(SealStep::Seal));
        let sealed = Sealed { id: SealId(1), runs: Vec::new(), sealed_ms: 2_000, freed: false };
        closed.sealed = Some(sealed.clone());
        assert_eq!(closed.seal_step(policy, 0), Some(SealStep::Free));
        closed.sealed = Some(Sealed { freed: true, ..sealed });
        assert_eq!(closed.seal_step(policy, u64::MAX), None);
    }
}
