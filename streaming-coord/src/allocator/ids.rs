//! Ids that are unique in the cluster: positive, rising, taken from batches.

use super::{Sequence, timestamps::timestamp};

const BATCH: u64 = 1_000_000;
/// A clock that is out of its mind takes the ids no further than half way.
const LATEST: u64 = 1 << 62;

/// Those of a reign start at its time: a metadata store that is brought back from a backup knows less than was given out
/// since, and nobody takes so many ids in so little time.
#[derive(Debug)]
pub(crate) struct Ids {
    next: u64,
    /// Durable; all that was ever given out is below it.
    ceiling: u64,
}

impl Ids {
    /// Continues at `ceiling`, the durable one of whoever gave out ids before, or at the time that it is.
    pub(crate) fn recover(ceiling: u64, wall_ms: u64) -> Self {
        Self { next: timestamp(wall_ms).min(LATEST).max(ceiling).max(1), ceiling }
    }
}

impl Sequence for Ids {
    fn take(&mut self, count: u32, _wall_ms: u64, _stalled: bool) -> Option<u64> {
        let end = self.next.checked_add(u64::from(count))?;
        if count == 0 || end > self.ceiling {
            return None;
        }
        Some(std::mem::replace(&mut self.next, end))
    }

    fn wanted(&self, _wall_ms: u64) -> Option<u64> {
        (self.ceiling < self.next.saturating_add(BATCH / 2)).then(|| self.next.saturating_add(BATCH))
    }

    fn raise(&mut self, ceiling: u64) {
        self.ceiling = self.ceiling.max(ceiling);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unique_across_a_restart() {
        let mut ids = Ids::recover(0, 0);
        assert_eq!(ids.take(1, 0, false), None);
        ids.raise(ids.wanted(0).unwrap());
        assert_eq!(ids.take(10, 0, false), Some(1));
        assert_eq!(ids.take(1, 0, false), Some(11));
        let mut restarted = Ids::recover(ids.ceiling, 0);
        restarted.raise(restarted.wanted(0).unwrap());
        assert!(restarted.take(1, 0, false).unwrap() > 11);
    }

    #[test]
    fn unique_though_the_metadata_were_brought_back_from_a_backup() {
        let (now, later) = (1_700_000_000_000, 1_700_000_001_000);
        let mut ids = Ids::recover(10, now);
        ids.raise(ids.wanted(now).unwrap());
        let before = ids.take(100_000, now, false).unwrap();
        let mut again = Ids::recover(10, later);
        again.raise(again.wanted(later).unwrap());
        assert!(again.take(1, later, false).unwrap() >= before + 100_000);
        let mut mad = Ids::recover(10, u64::MAX);
        mad.raise(mad.wanted(0).unwrap());
        assert!(i64::try_from(mad.take(1, 0, false).unwrap()).is_ok());
    }

    #[test]
    fn a_batch_that_does_not_fit_waits_for_the_next_ceiling() {
        let mut ids = Ids::recover(0, 0);
        ids.raise(10);
        assert_eq!(ids.take(10, 0, false), None);
        assert_eq!(ids.take(9, 0, false), Some(1));
        assert_eq!(ids.take(1, 0, false), None);
    }
}
