//! How much is on its way, and how long to pause.

use std::time::Duration;

/// Settings of a [`Replicator`](crate::Replicator).
#[derive(Debug, Clone)]
pub struct Settings {
    /// Messages and bytes of one pchannel that the target has not answered. One larger message, or a transaction, goes
    /// alone.
    pub in_flight_messages: usize,
    pub in_flight_bytes: usize,
    /// Pauses after failures in a row: the first one, doubling up to the longest.
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    /// How often a pchannel is asked that followed another cluster, or none, and the source is told which part of its log is
    /// still needed.
    pub interval: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            in_flight_messages: 1024,
            in_flight_bytes: 32 << 20,
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            interval: Duration::from_secs(5),
        }
    }
}

/// A setting with which nothing can be shipped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("setting {name}: {reason}")]
pub struct InvalidSetting {
    pub name: &'static str,
    pub reason: &'static str,
}

impl InvalidSetting {
    /// A stable code for documentation and programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        "REPLICATOR_INVALID_SETTING"
    }

    /// Whether the same call may succeed later: never.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        false
    }

    /// Whether the failed call may have taken effect: never.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        false
    }
}

impl Settings {
    pub(crate) fn validate(&self) -> Result<(), InvalidSetting> {
        let refuse = |name, reason| Err(InvalidSetting { name, reason });
        if self.in_flight_messages == 0 {
            return refuse("in_flight_messages", "must be greater than zero");
        }
        if self.in_flight_bytes == 0 {
            return refuse("in_flight_bytes", "must be greater than zero");
        }
        if self.backoff_min.is_zero() || self.backoff_max < self.backoff_min {
            return refuse("backoff_max", "must not be shorter than backoff_min, which must be longer than zero");
        }
        if self.interval.is_zero() {
            return refuse("interval", "must be longer than zero");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_values_are_named() {
        let refused = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            settings.validate().err().map(|error| error.name)
        };
        assert_eq!(refused(|_| {}), None);
        assert_eq!(refused(|settings| settings.in_flight_messages = 0), Some("in_flight_messages"));
        assert_eq!(refused(|settings| settings.in_flight_bytes = 0), Some("in_flight_bytes"));
        assert_eq!(refused(|settings| settings.backoff_max = Duration::ZERO), Some("backoff_max"));
        assert_eq!(refused(|settings| settings.interval = Duration::ZERO), Some("interval"));
    }
}
