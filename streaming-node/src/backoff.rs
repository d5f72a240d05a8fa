//! How long to wait before trying again.

use std::time::Duration;

/// The pause after `failures` failures in a row: `first`, doubled with each further one up to `longest`, and a random
/// part of its second half taken off, so that many who failed together do not come back together.
pub fn backoff(first: Duration, longest: Duration, failures: u32, rng: &mut fastrand::Rng) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    first.saturating_mul(1 << doublings).min(longest).mul_f64(1.0 - rng.f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_vary() {
        let mut rng = fastrand::Rng::with_seed(1);
        for (failures, full) in [(0, 100), (1, 100), (2, 200), (4, 800), (5, 1000), (u32::MAX, 1000)] {
            let pause = backoff(Duration::from_millis(100), Duration::from_secs(1), failures, &mut rng);
            let full = Duration::from_millis(full);
            assert!(pause <= full && pause >= full / 2, "{failures}: {pause:?}");
        }
    }
}
