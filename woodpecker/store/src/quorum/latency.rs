//! How long a log store takes to answer a read, for deciding when to ask another as well.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

const SAMPLES: usize = 64;
/// While little is known.
const UNKNOWN: Duration = Duration::from_millis(50);
const LEAST: Duration = Duration::from_millis(2);
/// Of all reads, so many hundredths may be asked of a second store; what is saved up is worth this many.
const HEDGED_PERCENT: u32 = 10;
const SAVED: u32 = 10;

/// The latest answers of one store.
#[derive(Debug, Default)]
pub(super) struct Latency {
    samples: Mutex<VecDeque<Duration>>,
}

impl Latency {
    fn samples(&self) -> MutexGuard<'_, VecDeque<Duration>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn record(&self, took: Duration) {
        let mut samples = self.samples();
        if samples.len() == SAMPLES {
            samples.pop_front();
        }
        samples.push_back(took);
    }

    /// Nineteen of twenty answers come within this time.
    pub fn p95(&self) -> Duration {
        let mut sorted: Vec<Duration> = self.samples().iter().copied().collect();
        if sorted.len() < SAMPLES / 4 {
            return UNKNOWN;
        }
        sorted.sort_unstable();
        sorted.get(sorted.len() * 19 / 20).copied().unwrap_or(UNKNOWN).max(LEAST)
    }
}

/// How many reads may be asked of a second store, so that a slow cluster is not made slower.
#[derive(Debug)]
pub(super) struct HedgeBudget {
    hundredths: Mutex<u32>,
}

impl Default for HedgeBudget {
    fn default() -> Self {
        Self { hundredths: Mutex::new(SAVED * 100) }
    }
}

impl HedgeBudget {
    /// A read was made.
    pub fn earn(&self) {
        let mut hundredths = self.hundredths.lock().unwrap_or_else(PoisonError::into_inner);
        *hundredths = (*hundredths + HEDGED_PERCENT).min(SAVED * 100);
    }

    /// Whether one may be asked of a second store now.
    pub fn spend(&self) -> bool {
        let mut hundredths = self.hundredths.lock().unwrap_or_else(PoisonError::into_inner);
        let left = hundredths.checked_sub(100);
        *hundredths = left.unwrap_or(*hundredths);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_answer_in_twenty_does_not_move_the_p95() {
        let latency = Latency::default();
        assert_eq!(latency.p95(), UNKNOWN);
        for number in 0..64 {
            latency.record(Duration::from_millis(if number % 32 == 0 { 900 } else { 5 }));
        }
        assert_eq!(latency.p95(), Duration::from_millis(5));
        for _ in 0..8 {
            latency.record(Duration::from_millis(900));
        }
        assert_eq!(latency.p95(), Duration::from_millis(900));
    }

    #[test]
    fn one_read_in_ten_may_be_hedged() {
        let budget = HedgeBudget::default();
        assert_eq!((0..100).filter(|_| budget.spend()).count(), 10);
        for _ in 0..30 {
            budget.earn();
        }
        assert_eq!((0..100).filter(|_| budget.spend()).count(), 3);
    }
}
