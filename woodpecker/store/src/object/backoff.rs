//! Waits between attempts: doubling, with full jitter.

use std::time::Duration;

use woodpecker_base::random::Random;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);

pub struct Backoff {
    limit: Duration,
    random: Random,
}

impl Backoff {
    pub fn new(random: &Random) -> Self {
        Self { limit: FIRST, random: random.clone() }
    }

    /// How long to wait before the next attempt.
    pub fn next(&mut self) -> Duration {
        let limit = u64::try_from(self.limit.as_micros()).unwrap_or(u64::MAX).max(1);
        self.limit = (self.limit * 2).min(LONGEST);
        Duration::from_micros(self.random.u64() % limit)
    }
}
