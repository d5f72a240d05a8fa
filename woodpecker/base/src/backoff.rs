//! Waiting between attempts.

use std::time::Duration;

use crate::{clock::Clock, random::Random};

/// Waits that double from a first one up to a limit. Each is drawn between half of its length and all of it, so that
/// those who failed together do not come back together.
#[derive(Debug)]
pub struct Backoff {
    clock: Clock,
    rng: fastrand::Rng,
    first: Duration,
    limit: Duration,
    next: Duration,
}

impl Backoff {
    /// A sequence of waits between `first` and `limit`.
    #[must_use]
    pub fn new(clock: Clock, random: &Random, first: Duration, limit: Duration) -> Self {
        Self { clock, rng: random.fork(), first, limit, next: first }
    }

    /// The next wait.
    pub fn delay(&mut self) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(self.limit);
        self.jitter(full)
    }

    /// The wait after `failures` earlier ones in a row, for one who counts them himself, for each of many requests.
    pub fn delay_after(&mut self, failures: u32) -> Duration {
        let full = self.first.saturating_mul(2_u32.saturating_pow(failures)).min(self.limit);
        self.jitter(full)
    }

    fn jitter(&mut self, full: Duration) -> Duration {
        full.mul_f64(0.5 + self.rng.f64() / 2.0)
    }

    /// Waits.
    pub async fn wait(&mut self) {
        let delay = self.delay();
        self.clock.sleep(delay).await;
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_limit_and_start_over() {
        let (first, limit) = (Duration::from_millis(100), Duration::from_millis(450));
        let mut backoff = Backoff::new(Clock::system(), &Random::seeded(7), first, limit);
        for (failures, full) in (0..).zip([100, 200, 400, 450, 450]) {
            for delay in [backoff.delay(), backoff.delay_after(failures)] {
                assert!(delay >= Duration::from_millis(full / 2) && delay <= Duration::from_millis(full), "{delay:?}");
            }
        }
        assert!(backoff.delay_after(u32::MAX) <= limit);
        backoff.reset();
        assert!(backoff.delay() <= first);
    }
}
