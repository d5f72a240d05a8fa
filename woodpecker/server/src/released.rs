//! Which segments of a log were released: kept for ever, in little space.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// Runs of released segments are kept apart up to this many.
const RUNS: usize = 64;

/// Numbers of released segments as runs, ascending, first and last included.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Released(Vec<(u64, u64)>);

impl Released {
    pub fn contains(&self, segment: u64) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < segment);
        self.0.get(at).is_some_and(|(first, _)| *first <= segment)
    }

    /// Adds a segment. Where there are too many runs, the lowest two become one, unless a segment between them
    /// `is_held`: what lies so far below the newest was closed long ago, and nobody begins it any more.
    pub fn insert(&mut self, segment: u64, is_held: impl Fn(RangeInclusive<u64>) -> bool) {
        let at = self.0.partition_point(|(_, last)| *last < segment);
        if self.0.get(at).is_none_or(|(first, _)| *first > segment) {
            self.0.insert(at, (segment, segment));
        }
        self.join(at, |_| false);
        if let Some(before) = at.checked_sub(1) {
            self.join(before, |_| false);
        }
        let mut lowest = 0;
        while self.0.len() > RUNS && lowest + 1 < self.0.len() {
            if !self.join(lowest, |between| !is_held(between)) {
                lowest += 1;
            }
        }
    }

    /// Makes one run of the one at `at` and the next, if they touch or what is between them `may_go`.
    fn join(&mut self, at: usize, may_go: impl Fn(RangeInclusive<u64>) -> bool) -> bool {
        let (Some((_, last)), Some((first, end))) = (self.0.get(at).copied(), self.0.get(at + 1).copied()) else {
            return false;
        };
        let joins = first == last + 1 || may_go(last + 1..=first - 1);
        if joins {
            self.0.remove(at + 1);
            if let Some((_, last)) = self.0.get_mut(at) {
                *last = end;
            }
        }
        joins
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn old_runs_become_one_around_what_is_held() {
        let mut released = Released::default();
        for segment in (10..1_000).step_by(10) {
            released.insert(segment, |between| between.contains(&55));
        }
        assert!(released.0.len() <= RUNS, "{released:?}");
        assert!(released.contains(31), "never held, and long past");
        assert!(!released.contains(55), "held, and taken for released");
        assert!(!released.contains(985));
    }

    proptest! {
        #[test]
        fn few_segments_are_told_apart_exactly(segments in prop::collection::vec(1_u64..150, 0..60)) {
            let mut released = Released::default();
            let mut model = BTreeSet::new();
            for segment in segments {
                released.insert(segment, |_| false);
                model.insert(segment);
            }
            for segment in 0..160 {
                prop_assert_eq!(released.contains(segment), model.contains(&segment), "{}", segment);
            }
            let text = serde_json::to_string(&released).unwrap();
            prop_assert_eq!(serde_json::from_str::<Released>(&text).unwrap(), released);
        }
    }
}
