//! Pauses between retries.

use std::time::Duration;

use woodpecker_base::random::Random;

/// Pauses that double from `min` to `max`. Each is shortened at random by up to half, so that many clients that failed
/// together do not return together.
#[derive(Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
    rng: fastrand::Rng,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration, random: &Random) -> Self {
        Self { min, max, failures: 0, rng: random.fork() }
    }

    /// The pause after one more failure.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.after(self.failures);
        self.failures = self.failures.saturating_add(1);
        pause
    }

    /// The pause after `failures` earlier ones in a row.
    pub(crate) fn after(&mut self, failures: u32) -> Duration {
        let full = self.min.saturating_mul(2_u32.saturating_pow(failures)).min(self.max);
        full.mul_f64(1.0 - self.rng.f64() / 2.0)
    }

    /// Something went well: the next pause is the shortest again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_the_limit_with_jitter() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::new(min, max, &Random::seeded(7));
        for failures in 0..100 {
            let full = min.saturating_mul(2_u32.saturating_pow(failures)).min(max);
            let pause = backoff.pause();
            assert!(pause <= full && pause >= full / 2, "pause {failures} was {pause:?}");
        }
        backoff.reset();
        assert!(backoff.pause() <= min);
    }
}
