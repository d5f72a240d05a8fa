//! Ids that are unique in the cluster: positive, rising, taken from batches.

use super::Sequence;

const BATCH: u64 = 1_000_000;

/// Ids start at 1; a restart leaves out what was left of the batch.
#[derive(Debug)]
pub(crate) struct Ids {
    next: u64,
    /// Durable; all that was ever given out is below it.
    ceiling: u64,
}

impl Ids {
    /// Continues at `ceiling`, the durable one of whoever gave out ids before.
    pub(crate) fn recover(ceiling: u64) -> Self {
        Self { next: ceiling.max(1), ceiling }
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
        let mut ids = Ids::recover(0);
        assert_eq!(ids.take(1, 0, false), None);
        ids.raise(ids.wanted(0).unwrap());
        assert_eq!(ids.take(10, 0, false), Some(1));
        assert_eq!(ids.take(1, 0, false), Some(11));
        let mut restarted = Ids::recover(ids.ceiling);
        restarted.raise(restarted.wanted(0).unwrap());
        assert!(restarted.take(1, 0, false).unwrap() > 11);
    }

    #[test]
    fn a_batch_that_does_not_fit_waits_for_the_next_ceiling() {
        let mut ids = Ids::recover(0);
        ids.raise(10);
        assert_eq!(ids.take(10, 0, false), None);
        assert_eq!(ids.take(9, 0, false), Some(1));
        assert_eq!(ids.take(1, 0, false), None);
    }
}
