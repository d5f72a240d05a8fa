//! What an operator can set for a log store.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{quota::Quota, watermark::Watermarks};

/// Settings of a log store; unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The prefixes of the log engines that the store serves: it registers under `<prefix>/logstores/` of each.
    pub registries: Vec<String>,
    /// `host:port` that others dial; without it, the address the listener is bound to.
    pub advertised_address: Option<String>,
    /// Where the store stands, as placement and readers weigh it.
    pub region: String,
    pub zone: String,
    pub resource_group: String,
    /// How long others wait after the store's last sign of life.
    #[serde(with = "humantime_serde")]
    pub session_ttl: Duration,
    pub in_flight: InFlight,
    pub watermarks: Watermarks,
    /// How often the disk is looked at.
    #[serde(with = "humantime_serde")]
    pub disk_interval: Duration,
    /// How long a replica must have been quiet before what is known to be acked of it is written down.
    #[serde(with = "humantime_serde")]
    pub quiet: Duration,
    /// What a namespace that is not named may use.
    pub default_quota: Quota,
    pub quotas: BTreeMap<String, Quota>,
    /// How long streams may take to end at a stop.
    #[serde(with = "humantime_serde")]
    pub shutdown_grace: Duration,
}

/// Entry bytes that may be on their way to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InFlight {
    /// Of one stream: beyond, it is not read.
    pub stream: u64,
    /// Of one namespace: beyond, its streams are not read.
    pub namespace: u64,
    /// Of all: beyond, appends are refused for a moment.
    pub total: u64,
}

impl Default for InFlight {
    fn default() -> Self {
        Self { stream: 32 << 20, namespace: 128 << 20, total: 512 << 20 }
    }
}

/// Records are written in one transaction.
const REGISTRIES: usize = 64;
/// In-flight bytes are counted in units of this many, and an append as one unit at least.
const UNIT: u64 = 1_024;

/// How many units so many bytes are.
pub fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT).max(1)).unwrap_or(u32::MAX)
}

impl InFlight {
    /// The units of one stream, one namespace and all.
    pub fn units(self) -> [usize; 3] {
        [self.stream, self.namespace, self.total].map(|bytes| usize::try_from(units(bytes)).unwrap_or(usize::MAX))
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            registries: vec!["by-dev/woodpecker".into()],
            advertised_address: None,
            region: String::new(),
            zone: String::new(),
            resource_group: String::new(),
            session_ttl: Duration::from_secs(10),
            in_flight: InFlight::default(),
            watermarks: Watermarks::default(),
            disk_interval: Duration::from_secs(1),
            quiet: Duration::from_secs(1),
            default_quota: Quota::default(),
            quotas: BTreeMap::new(),
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

/// A setting that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct SettingsError {
    pub key: &'static str,
    pub problem: String,
}

impl Settings {
    /// What a namespace may use.
    #[must_use]
    pub fn quota(&self, namespace: &str) -> Quota {
        self.quotas.get(namespace).copied().unwrap_or(self.default_quota)
    }

    /// Finds the first setting that cannot work.
    ///
    /// # Errors
    /// That one.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let wrong = |key, problem: &str| Err(SettingsError { key, problem: problem.to_owned() });
        let bad = |prefix: &String| prefix.is_empty() || prefix.starts_with('/') || prefix.ends_with('/');
        if self.registries.is_empty() || self.registries.len() > REGISTRIES || self.registries.iter().any(bad) {
            return wrong(
                "registries",
                "must be 1 to 64 prefixes that are not empty and do not begin or end with a slash",
            );
        }
        if self.session_ttl < Duration::from_secs(1) {
            return wrong("session_ttl", "is less than a second");
        }
        if self.disk_interval.is_zero() || self.quiet.is_zero() {
            return wrong("disk_interval", "it and `quiet` must be more than zero");
        }
        let InFlight { stream, namespace, total } = self.in_flight;
        if stream < UNIT || stream > namespace || namespace > total || total > u64::from(u32::MAX) {
            return wrong("in_flight", "a stream's bytes must fit in a namespace's, those in all, and all in 4 GiB");
        }
        match self.watermarks.problem() {
            Some(problem) => wrong("watermarks", problem),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watermark::Mark;

    #[test]
    fn what_cannot_work_is_named() {
        assert_eq!(Settings::default().validate(), Ok(()));
        let hard = Mark { used: 0.5, free: 1 << 30 };
        for (broken, key) in [
            (Settings { registries: vec!["a/".into()], ..Settings::default() }, "registries"),
            (Settings { session_ttl: Duration::ZERO, ..Settings::default() }, "session_ttl"),
            (Settings { quiet: Duration::ZERO, ..Settings::default() }, "disk_interval"),
            (Settings { in_flight: InFlight { stream: 1, ..InFlight::default() }, ..Settings::default() }, "in_flight"),
            (
                Settings { watermarks: Watermarks { hard, ..Watermarks::default() }, ..Settings::default() },
                "watermarks",
            ),
        ] {
            assert_eq!(broken.validate().unwrap_err().key, key);
        }
    }
}
