//! What is measured again and again: latencies of operations, and rates of rounds.

use std::time::Duration;

use hdrhistogram::Histogram;

/// What takes longer counts as this long: an hour.
const LONGEST_NANOS: u64 = 3_600_000_000_000;

/// Durations at a resolution of three digits.
#[derive(Debug, Clone)]
pub(super) struct Latencies {
    histogram: Histogram<u64>,
}

impl Latencies {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self { histogram: Histogram::new_with_bounds(1, LONGEST_NANOS, 3)? })
    }

    pub(super) fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.histogram.saturating_record(nanos.max(1));
    }

    /// In milliseconds.
    pub(super) fn at(&self, quantile: f64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "three digits are kept anyway")]
        let nanos = self.histogram.value_at_quantile(quantile) as f64;
        nanos / 1e6
    }
}

/// One figure of every round, in units per second.
#[derive(Debug, Clone, Default)]
pub(super) struct Rates(Vec<f64>);

impl Rates {
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    pub(super) fn record(&mut self, units: u64, elapsed: Duration) {
        self.0.push(units as f64 / elapsed.as_secs_f64().max(1e-9));
    }

    pub(super) fn median(&self) -> f64 {
        median(self.0.clone())
    }

    /// What is left when everything goes through both, one after the other, on the same cores.
    pub(super) fn after(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(one, other)| 1.0 / (1.0 / one + 1.0 / other)).collect())
    }

    /// The median of the rounds' own ratios: what slows a machine down for a round slows both sides.
    pub(super) fn ratio(&self, to: &Self) -> f64 {
        median(self.0.iter().zip(&to.0).map(|(ours, other)| ours / other).collect())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle).copied().unwrap_or(f64::NAN);
    match values.get(middle.wrapping_sub(1)) {
        Some(lower) if values.len().is_multiple_of(2) => f64::midpoint(*lower, upper),
        _ => upper,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_read_in_milliseconds() {
        let mut latencies = Latencies::new().unwrap();
        for ms in 1..=1000 {
            latencies.record(Duration::from_millis(ms));
        }
        for (quantile, ms) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0)] {
            assert!((latencies.at(quantile) - ms).abs() < 2.0, "{quantile}: {}", latencies.at(quantile));
        }
    }

    #[test]
    fn a_slow_round_moves_neither_the_median_nor_the_ratio() {
        let (mut ours, mut medium) = (Rates::default(), Rates::default());
        for slow in [1, 1, 10, 1, 1] {
            ours.record(70, Duration::from_secs(slow));
            medium.record(100, Duration::from_secs(slow));
        }
        assert!((ours.median() - 70.0).abs() < 1e-9);
        assert!((ours.ratio(&medium) - 0.7).abs() < 1e-9);
        ours.record(30, Duration::from_secs(1));
        assert!((ours.median() - 70.0).abs() < 1e-9, "of an even count the middle of both");
        assert!(Rates::default().median().is_nan());
    }
}
