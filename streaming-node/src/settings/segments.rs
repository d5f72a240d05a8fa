//! When segments that grow have grown enough.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::SettingsError;

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Segments {
    /// Bytes of a segment, before the share and the jitter below.
    pub max_bytes: u64,
    /// Share of that at which a segment is sealed, in percent.
    pub seal_percent: u64,
    /// How much smaller a segment may be made at random, in percent, so that not all are sealed at a time.
    pub jitter_percent: u64,
    /// A segment is sealed at this age …
    #[serde(with = "humantime_serde")]
    pub lifetime: Duration,
    /// … or when nothing was written to it for so long …
    #[serde(with = "humantime_serde")]
    pub idle: Duration,
    /// … and more bytes than this are in it.
    pub idle_bytes: u64,
    /// When all that grows on the node is more than this share of its memory, in percent …
    pub growing_high_percent: u64,
    /// … the largest are sealed until it is no more than this.
    pub growing_low_percent: u64,
    /// They are as well when so much of the node's memory is used, in percent.
    pub memory_percent: u64,
    /// The form in which those who consume segments store them.
    pub storage_version: i64,
}

impl Default for Segments {
    fn default() -> Self {
        Self {
            max_bytes: 1 << 30,
            seal_percent: 12,
            jitter_percent: 10,
            lifetime: Duration::from_secs(24 * 3600),
            idle: Duration::from_secs(600),
            idle_bytes: 16 << 20,
            growing_high_percent: 20,
            growing_low_percent: 10,
            memory_percent: 60,
            storage_version: 2,
        }
    }
}

impl Segments {
    /// The smallest size that a segment is made with: what is larger fits into none for certain.
    pub(crate) fn smallest_bytes(&self) -> u64 {
        self.jittered_bytes(u64::MAX)
    }

    /// The size of a new segment, smaller the larger `random` is.
    pub(crate) fn jittered_bytes(&self, random: u64) -> u64 {
        let largest = self.max_bytes / 100 * self.seal_percent;
        let jitter = u128::from(largest / 100 * self.jitter_percent) * u128::from(random) / u128::from(u64::MAX);
        largest - u64::try_from(jitter).unwrap_or(0)
    }

    pub(super) fn validate(&self) -> Result<(), SettingsError> {
        let refuse = |key, problem: &str| Err(SettingsError { key, problem: problem.to_owned() });
        if self.max_bytes < 1 << 20 {
            return refuse("segments.max_bytes", "must be at least 1 MiB");
        }
        for (key, percent) in [
            ("segments.seal_percent", self.seal_percent),
            ("segments.growing_high_percent", self.growing_high_percent),
            ("segments.memory_percent", self.memory_percent),
        ] {
            if !(1..=100).contains(&percent) {
                return refuse(key, "must be between 1 and 100");
            }
        }
        if self.jitter_percent > 90 {
            return refuse("segments.jitter_percent", "must be at most 90");
        }
        if self.growing_low_percent > self.growing_high_percent {
            return refuse("segments.growing_low_percent", "must not be above growing_high_percent");
        }
        if self.lifetime.is_zero() || self.idle.is_zero() {
            return refuse("segments.lifetime", "neither lifetime nor idle may be zero");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_vary_within_the_jitter() {
        let segments = Segments::default();
        let largest = segments.jittered_bytes(0);
        assert_eq!(largest, (1 << 30) / 100 * 12);
        assert_eq!(segments.smallest_bytes(), largest - largest / 100 * 10);
        let middle = segments.jittered_bytes(u64::MAX / 2);
        assert!(segments.smallest_bytes() < middle && middle < largest);
    }
}
