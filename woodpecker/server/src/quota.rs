//! How much one namespace may use.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use woodpecker_base::clock::Instant;

/// Limits of one namespace on one store; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Quota {
    /// Entry bytes appended in a second, on average; a second's worth may come at once.
    pub bytes_per_second: u64,
    /// Entry bytes of replicas that are not released.
    pub bytes_kept: u64,
    /// Logs with a replica that is not released.
    pub logs: u64,
}

/// Tokens that come at a steady rate, up to a second's worth. What is spent may exceed what is there: the debt is waited
/// for by whoever comes next, so that any size passes.
#[derive(Debug)]
pub struct TokenBucket {
    rate: u64,
    tokens: f64,
    at: Instant,
}

impl TokenBucket {
    /// A full bucket. A rate of 0 limits nothing.
    pub fn new(rate: u64, now: Instant) -> Self {
        Self { rate, tokens: as_f64(rate), at: now }
    }

    /// How long until the debt is paid; zero when there is none.
    pub fn debt(&mut self, now: Instant) -> Duration {
        self.fill(now);
        if self.rate == 0 || self.tokens > 0.0 {
            return Duration::ZERO;
        }
        let wait = Duration::try_from_secs_f64(-self.tokens / as_f64(self.rate)).unwrap_or(Duration::MAX);
        wait.max(Duration::from_millis(1))
    }

    pub fn spend(&mut self, amount: u64, now: Instant) {
        self.fill(now);
        self.tokens -= as_f64(amount);
    }

    fn fill(&mut self, now: Instant) {
        let rate = as_f64(self.rate);
        self.tokens = (self.tokens + rate * now.duration_since(self.at).as_secs_f64()).min(rate);
        self.at = now;
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate need not be exact to the byte")]
fn as_f64(amount: u64) -> f64 {
    amount as f64
}

#[cfg(test)]
mod tests {
    use woodpecker_base::clock::Clock;

    use super::*;

    #[test]
    fn a_second_passes_at_once_and_the_rest_waits_for_its_debt() {
        let start = Clock::system().now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut bucket = TokenBucket::new(1_000, start);
        let mut spend = |amount, ms| {
            let debt = bucket.debt(at(ms));
            bucket.spend(amount, at(ms));
            debt.as_millis()
        };
        assert_eq!(spend(900, 0), 0);
        assert_eq!(spend(600, 0), 0, "any size passes while there is a token");
        assert_eq!(spend(0, 0), 500);
        assert_eq!(spend(0, 400), 100);
        assert_eq!(spend(1, 501), 0);
        assert_eq!(spend(1_000, 60_000), 0);
        assert_eq!(spend(0, 60_000), 1, "a long pause gives no more than a second's worth");
        let mut free = TokenBucket::new(0, start);
        free.spend(u64::MAX, start);
        assert_eq!(free.debt(start), Duration::ZERO);
    }
}
