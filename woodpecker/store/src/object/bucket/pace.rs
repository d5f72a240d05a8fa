//! A token bucket: so many PUTs per second, a second's worth at once.

use std::time::Duration;

use woodpecker_base::clock::Instant;

#[derive(Debug)]
pub struct Pace {
    per_second: f64,
    tokens: f64,
    filled: Instant,
}

impl Pace {
    pub fn new(per_second: u32, now: Instant) -> Self {
        let per_second = f64::from(per_second.max(1));
        Self { per_second, tokens: per_second, filled: now }
    }

    /// Takes one token, or says when there will be one.
    pub fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_second).min(self.per_second);
        self.filled = now;
        if self.tokens < 1.0 {
            return Err(now + Duration::from_secs_f64((1.0 - self.tokens) / self.per_second));
        }
        self.tokens -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use woodpecker_base::clock::Clock;

    use super::*;

    #[tokio::test]
    async fn a_second_holds_so_many_and_more_must_wait() {
        let start = Clock::system().now();
        let mut pace = Pace::new(10, start);
        for _ in 0..10 {
            pace.take(start).unwrap();
        }
        let next = pace.take(start).unwrap_err();
        assert_eq!(next - start, Duration::from_millis(100));
        pace.take(next + Duration::from_millis(1)).unwrap();
        pace.take(next).unwrap_err();
        let later = start + Duration::from_secs(60);
        assert_eq!((0..100).filter(|_| pace.take(later).is_ok()).count(), 10);
    }
}
