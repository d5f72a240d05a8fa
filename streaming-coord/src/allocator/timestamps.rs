//! Hybrid timestamps: milliseconds since the Unix epoch in the upper 46 bits, a counter in the lower 18.

use std::time::Duration;

use super::Sequence;

const LOGICAL_BITS: u32 = 18;

/// Follows the wall clock, only ever forward, and never reaches the durable ceiling. When half of the window up to the
/// ceiling is used and the ceiling cannot be raised, time stands still and the counter goes on, so that the other half
/// outlasts an outage.
#[derive(Debug)]
pub(crate) struct Timestamps {
    /// The last one given out.
    last: u64,
    /// Durable; all that was ever given out is below it.
    ceiling: u64,
    window_ms: u64,
}

impl Timestamps {
    /// Continues above `ceiling`, the durable one of whoever gave out timestamps before.
    pub(crate) fn recover(ceiling: u64, window: Duration) -> Self {
        let window_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 40);
        Self { last: ceiling, ceiling, window_ms }
    }

    /// Wall time as a timestamp, no later than what leaves half of the window in reserve.
    fn present(&self, wall_ms: u64) -> u64 {
        timestamp(wall_ms).min(self.ceiling.saturating_sub(self.reserve()))
    }

    fn reserve(&self) -> u64 {
        timestamp(self.window_ms / 2)
    }
}

impl Sequence for Timestamps {
    fn take(&mut self, count: u32, wall_ms: u64, stalled: bool) -> Option<u64> {
        let present = self.present(wall_ms);
        if !stalled && present < timestamp(wall_ms) {
            return None;
        }
        let first = self.last.checked_add(1)?.max(present);
        let last = first.checked_add(u64::from(count).checked_sub(1)?)?;
        if last >= self.ceiling {
            return None;
        }
        self.last = last;
        Some(first)
    }

    fn wanted(&self, wall_ms: u64) -> Option<u64> {
        let now = timestamp(wall_ms).max(self.last);
        let left = self.ceiling.saturating_sub(now);
        (left < timestamp(self.window_ms) / 4 * 3).then(|| now.saturating_add(timestamp(self.window_ms)))
    }

    fn raise(&mut self, ceiling: u64) {
        self.ceiling = self.ceiling.max(ceiling);
    }
}

/// The first timestamp of a millisecond.
pub(super) fn timestamp(ms: u64) -> u64 {
    ms.saturating_mul(1 << LOGICAL_BITS)
}

/// The millisecond of a timestamp.
pub(crate) fn physical_ms(timestamp: u64) -> u64 {
    timestamp >> LOGICAL_BITS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(3);
    const NOW: u64 = 1_700_000_000_000;

    fn raised(ceiling: u64, wall_ms: u64) -> Timestamps {
        let mut timestamps = Timestamps::recover(ceiling, WINDOW);
        let wanted = timestamps.wanted(wall_ms).unwrap();
        timestamps.raise(wanted);
        timestamps
    }

    #[test]
    fn nothing_is_given_out_before_a_ceiling_is_durable() {
        assert_eq!(Timestamps::recover(0, WINDOW).take(1, NOW, false), None);
        assert_eq!(Timestamps::recover(0, WINDOW).take(1, NOW, true), None);
    }

    #[test]
    fn follows_the_wall_clock() {
        let mut timestamps = raised(0, NOW);
        assert_eq!(timestamps.take(1, NOW, false), Some(NOW << 18));
        assert_eq!(timestamps.take(5, NOW, false), Some((NOW << 18) + 1));
        assert_eq!(timestamps.take(1, NOW + 1, false), Some((NOW + 1) << 18));
    }

    #[test]
    fn a_clock_that_steps_back_does_not_take_the_timestamps_along() {
        let mut timestamps = raised(0, NOW);
        let before = timestamps.take(1, NOW, false).unwrap();
        assert_eq!(timestamps.take(1, NOW - 3_600_000, false), Some(before + 1));
    }

    #[test]
    fn a_successor_starts_above_everything_its_predecessor_could_give_out() {
        let mut old = raised(0, NOW);
        let ceiling = old.ceiling;
        let mut successor = raised(ceiling, NOW - 10_000);
        let mut last = 0;
        while let Some(first) = old.take(100_000, NOW + 60_000, true) {
            last = first + 99_999;
        }
        assert!(successor.take(1, NOW - 10_000, false).unwrap() > last);
    }

    #[test]
    fn half_a_window_outlasts_an_outage_of_a_minute() {
        let mut timestamps = raised(0, NOW);
        let mut last = 0;
        for ms in 0..60_000 {
            let first = timestamps.take(1000, NOW + ms, true).expect("the reserve lasts");
            assert!(first > last);
            last = first + 999;
        }
    }

    #[test]
    fn count_zero_gives_nothing() {
        assert_eq!(raised(0, NOW).take(0, NOW, false), None);
    }

    proptest! {
        #[test]
        fn strictly_rising_and_below_the_durable_ceiling(
            steps in proptest::collection::vec((1u32..400_000, 0i64..4000, any::<bool>(), any::<bool>(), any::<bool>()), 1..200),
        ) {
            let mut wall = NOW;
            let mut durable = 0;
            let mut timestamps = Timestamps::recover(durable, WINDOW);
            let mut last = 0;
            for (count, step, back, stalled, crash) in steps {
                wall = if back { wall - step.unsigned_abs() } else { wall + step.unsigned_abs() };
                if !stalled && let Some(wanted) = timestamps.wanted(wall) {
                    prop_assert!(wanted > durable);
                    durable = wanted;
                    timestamps.raise(wanted);
                }
                if let Some(first) = timestamps.take(count, wall, stalled) {
                    prop_assert!(first > last);
                    last = first + u64::from(count) - 1;
                    prop_assert!(last < durable);
                }
                if crash {
                    timestamps = Timestamps::recover(durable, WINDOW);
                }
            }
        }
    }
}
