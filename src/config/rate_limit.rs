//! When the writers of a write-ahead log are slowed down: keys of Milvus, in the node's own terms.

use std::time::Duration;

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use streaming_node::{Adaptive, Flow, Marks, Recovering, Slowdown};

use super::units;

/// Sources of pressure. The tightest limit of all counts.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct WalRateLimit {
    /// What goes at once when a limit begins, or after a pause.
    #[schemars(with = "units::SizeText")]
    pub(crate) default_burst: ByteSize,
    /// What goes in a second even when producers are told to send nothing, for those that do not understand it.
    #[schemars(with = "units::SizeText")]
    pub(crate) trickle: ByteSize,
    /// Thresholds are shares of the process' memory in use.
    pub(crate) node_memory: Source<f64>,
    /// Thresholds are the size of what the next owner would have to replay.
    #[schemars(with = "Source<units::SizeText>")]
    pub(crate) recovery_storage: Source<ByteSize>,
    /// Thresholds are times by which the slowest registered consumer is behind.
    pub(crate) consumer_lag: Source<Lag>,
    /// Thresholds are what is appended in a second.
    #[schemars(with = "Source<units::SizeText>")]
    pub(crate) append_rate: Source<ByteSize>,
}

/// A time, with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct Lag(
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    Duration,
);

/// One source of pressure.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Source<T> {
    /// Whether it counts.
    pub(crate) enabled: bool,
    /// Below this the pressure is gone.
    pub(crate) recover_threshold: T,
    /// From this on writers are slowed down.
    pub(crate) slowdown_threshold: T,
    /// From this on nothing is to be sent; zero is never.
    pub(crate) reject_threshold: T,
    pub(crate) adaptive_rate_limit: AdaptiveRateLimit,
}

/// How the rate falls and rises.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct AdaptiveRateLimit {
    pub(crate) slowdown: SlowdownRate,
    pub(crate) recovery: RecoveryRate,
}

/// Under pressure. Sizes are rates, of a second.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct SlowdownRate {
    /// Pressure that lasts no longer does nothing.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) startup_delay_interval: Duration,
    /// Where the rate begins.
    #[schemars(with = "units::SizeText")]
    pub(crate) hwm: ByteSize,
    /// Where it stops falling.
    #[schemars(with = "units::SizeText")]
    pub(crate) lwm: ByteSize,
    /// How often it falls.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) decrease_interval: Duration,
    /// To which share of itself.
    pub(crate) decrease_ratio: f64,
    /// After so long at the lowest rate producers are told to send nothing; zero is never.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) reject_delay_interval: Duration,
}

/// When the pressure is gone. Sizes are rates, of a second.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct RecoveryRate {
    /// Where the rate stops rising.
    #[schemars(with = "units::SizeText")]
    pub(crate) hwm: ByteSize,
    /// Where it begins, after the lowest.
    #[schemars(with = "units::SizeText")]
    pub(crate) lwm: ByteSize,
    /// How often it rises.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) increase_interval: Duration,
    /// By how much.
    #[schemars(with = "units::SizeText")]
    pub(crate) incremental: ByteSize,
    /// After so long at the highest rate the limit ends.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) normal_delay_interval: Duration,
}

impl Default for WalRateLimit {
    fn default() -> Self {
        let Flow { burst, trickle, memory, tail, lag, rate } = Flow::default();
        Self {
            default_burst: ByteSize(burst),
            trickle: ByteSize(trickle),
            node_memory: Source::of(&memory, share),
            recovery_storage: Source::of(&tail, ByteSize),
            consumer_lag: Source::of(&lag, |ms| Lag(Duration::from_millis(ms))),
            append_rate: Source::of(&rate, ByteSize),
        }
    }
}

impl WalRateLimit {
    /// In the node's terms.
    pub(crate) fn flow(&self) -> Flow {
        Flow {
            burst: self.default_burst.as_u64(),
            trickle: self.trickle.as_u64(),
            memory: self.node_memory.marks(|used| percent(*used)),
            tail: self.recovery_storage.marks(ByteSize::as_u64),
            lag: self.consumer_lag.marks(|Lag(behind)| u64::try_from(behind.as_millis()).unwrap_or(u64::MAX)),
            rate: self.append_rate.marks(ByteSize::as_u64),
        }
    }
}

impl<T> Source<T> {
    fn of(marks: &Marks, threshold: impl Fn(u64) -> T) -> Self {
        let Marks { enabled, eases, high, critical, adaptive: Adaptive { slowdown, recovery } } = marks;
        Self {
            enabled: *enabled,
            recover_threshold: threshold(*eases),
            slowdown_threshold: threshold(*high),
            reject_threshold: threshold(*critical),
            adaptive_rate_limit: AdaptiveRateLimit {
                slowdown: SlowdownRate {
                    startup_delay_interval: slowdown.startup_delay,
                    hwm: ByteSize(slowdown.hwm),
                    lwm: ByteSize(slowdown.lwm),
                    decrease_interval: slowdown.decrease_interval,
                    decrease_ratio: share(slowdown.decrease_ratio),
                    reject_delay_interval: slowdown.reject_delay,
                },
                recovery: RecoveryRate {
                    hwm: ByteSize(recovery.hwm),
                    lwm: ByteSize(recovery.lwm),
                    increase_interval: recovery.increase_interval,
                    incremental: ByteSize(recovery.increment),
                    normal_delay_interval: recovery.normal_delay,
                },
            },
        }
    }

    fn marks(&self, number: impl Fn(&T) -> u64) -> Marks {
        let AdaptiveRateLimit { slowdown, recovery } = &self.adaptive_rate_limit;
        Marks {
            enabled: self.enabled,
            eases: number(&self.recover_threshold),
            high: number(&self.slowdown_threshold),
            critical: number(&self.reject_threshold),
            adaptive: Adaptive {
                slowdown: Slowdown {
                    startup_delay: slowdown.startup_delay_interval,
                    hwm: slowdown.hwm.as_u64(),
                    lwm: slowdown.lwm.as_u64(),
                    decrease_interval: slowdown.decrease_interval,
                    decrease_ratio: percent(slowdown.decrease_ratio),
                    reject_delay: slowdown.reject_delay_interval,
                },
                recovery: Recovering {
                    hwm: recovery.hwm.as_u64(),
                    lwm: recovery.lwm.as_u64(),
                    increase_interval: recovery.increase_interval,
                    increment: recovery.incremental.as_u64(),
                    normal_delay: recovery.normal_delay_interval,
                },
            },
        }
    }
}

/// A share in percent; what is no share becomes a percentage that the node refuses.
#[expect(clippy::cast_possible_truncation, reason = "it is clamped before")]
pub(super) fn percent(share: f64) -> u64 {
    (share * 100.0).round().clamp(0.0, 1e9) as u64
}

/// Percent as a share.
#[expect(clippy::cast_precision_loss, reason = "percentages are small")]
pub(super) fn share(percent: u64) -> f64 {
    percent as f64 / 100.0
}
