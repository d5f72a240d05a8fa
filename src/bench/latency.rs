//! Latencies of many operations and what one reads off them.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// What takes longer counts as this long: an hour.
const LONGEST_NANOS: u64 = 3_600_000_000_000;

/// Durations at a resolution of three digits.
#[derive(Debug, Clone)]
pub(crate) struct Latencies {
    histogram: Histogram<u64>,
}

/// Percentiles in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) count: u64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
}

impl Latencies {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self { histogram: Histogram::new_with_bounds(1, LONGEST_NANOS, 3)? })
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.histogram.saturating_record(nanos.max(1));
    }

    pub(crate) fn percentiles(&self) -> Percentiles {
        Percentiles {
            count: self.histogram.len(),
            p50_ms: self.at(0.5),
            p99_ms: self.at(0.99),
            p999_ms: self.at(0.999),
        }
    }

    fn at(&self, quantile: f64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "three digits are kept anyway")]
        let nanos = self.histogram.value_at_quantile(quantile) as f64;
        nanos / 1e6
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
        let read = latencies.percentiles();
        assert_eq!(read.count, 1000);
        assert!((read.p50_ms - 500.0).abs() < 1.0, "{read:?}");
        assert!((read.p99_ms - 990.0).abs() < 2.0, "{read:?}");
        assert!((read.p999_ms - 999.0).abs() < 2.0, "{read:?}");
    }
}
