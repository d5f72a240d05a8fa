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

/// Tokens that come at a steady rate, up to a second's worth. What is taken may exceed what is there: the debt is waited
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

    /// Takes `amount`, or says how long until the debt is paid.
    pub fn take(&mut self, amount: u64, now: Instant) -> Result<(), Duration> {
        if self.rate == 0 {
            return Ok(());
        }
        let rate = as_f64(self.rate);
        self.tokens = (self.tokens + rate * now.duration_since(self.at).as_secs_f64()).min(rate);
        self.at = now;
        if self.tokens <= 0.0 {
            let wait = Duration::try_from_secs_f64(-self.tokens / rate).unwrap_or(Duration::MAX);
            return Err(wait.max(Duration::from_millis(1)));
        }
        self.tokens -= as_f64(amount);
        Ok(())
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
        assert_eq!(bucket.take(900, at(0)), Ok(()));
        assert_eq!(bucket.take(600, at(0)), Ok(()), "any size passes while there is a token");
        assert_eq!(bucket.take(1, at(0)), Err(Duration::from_millis(500)));
        assert_eq!(bucket.take(1, at(400)), Err(Duration::from_millis(100)));
        assert_eq!(bucket.take(1, at(501)), Ok(()));
        assert_eq!(bucket.take(1_000, at(60_000)), Ok(()), "a long pause gives no more than a second's worth");
        assert!(bucket.take(1, at(60_000)).is_err());
        assert_eq!(TokenBucket::new(0, start).take(u64::MAX, start), Ok(()));
    }
}
