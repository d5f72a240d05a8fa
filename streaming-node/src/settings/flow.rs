//! When the writers of a write-ahead log are slowed down, and how.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::SettingsError;

/// Sources of pressure. The tightest limit of all counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Flow {
    /// Bytes that go at once when a limit begins, or after a pause.
    pub burst: u64,
    /// Bytes a second that go even when producers are told to send nothing, for those that do not understand it.
    pub trickle: u64,
    /// Memory that the process uses of what it may, in percent.
    pub memory: Marks,
    /// Bytes of the log that the next owner would have to replay.
    pub tail: Marks,
    /// Milliseconds by which the slowest registered consumer is behind.
    pub lag: Marks,
    /// Bytes a second that are appended.
    pub rate: Marks,
}

/// The marks of one source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Marks {
    pub enabled: bool,
    /// Below this the pressure is gone.
    pub eases: u64,
    /// From this on writers are slowed down.
    pub high: u64,
    /// From this on nothing is to be sent; 0 is never.
    pub critical: u64,
    pub adaptive: Adaptive,
}

/// How the rate falls and rises.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adaptive {
    pub slowdown: Slowdown,
    pub recovery: Recovering,
}

/// Under pressure. Rates are bytes a second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slowdown {
    /// Pressure that lasts no longer does nothing.
    #[serde(with = "humantime_serde")]
    pub startup_delay: Duration,
    /// Where the rate begins.
    pub hwm: u64,
    /// Where it stops falling.
    pub lwm: u64,
    /// How often it falls.
    #[serde(with = "humantime_serde")]
    pub decrease_interval: Duration,
    /// To how many percent.
    pub decrease_ratio: u64,
    /// After so long at the lowest rate producers are told to send nothing; zero is never.
    #[serde(with = "humantime_serde")]
    pub reject_delay: Duration,
}

/// When the pressure is gone. Rates are bytes a second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recovering {
    /// Where the rate stops rising.
    pub hwm: u64,
    /// Where it begins, after the lowest.
    pub lwm: u64,
    /// How often it rises.
    #[serde(with = "humantime_serde")]
    pub increase_interval: Duration,
    /// By how much.
    pub increment: u64,
    /// After so long at the highest rate the limit ends.
    #[serde(with = "humantime_serde")]
    pub normal_delay: Duration,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl Default for Flow {
    /// Rates, delays, the burst and the marks of memory and of the append rate are those of Milvus 2.6.10, so that producers
    /// meet what they know. It slows down by the lag of its own flusher where we do by that of registered consumers: those
    /// have its rates, and never stop writers altogether, since one that is gone for good would. The marks of the tail are
    /// ours: 2 GiB are replayed in seconds. The trickle is the lowest rate of all.
    fn default() -> Self {
        let slowdown = |startup_delay, hwm, lwm, decrease_interval, decrease_ratio, reject_delay| Slowdown {
            startup_delay,
            hwm,
            lwm,
            decrease_interval,
            decrease_ratio,
            reject_delay,
        };
        let recovery = |hwm, lwm, increment, normal_delay| Recovering {
            hwm,
            lwm,
            increase_interval: seconds(1),
            increment,
            normal_delay,
        };
        Self {
            burst: 20 * MIB,
            trickle: 512 * KIB,
            memory: Marks {
                enabled: true,
                eases: 85,
                high: 90,
                critical: 95,
                adaptive: Adaptive {
                    slowdown: slowdown(seconds(0), 8 * MIB, 512 * KIB, seconds(30), 80, seconds(0)),
                    recovery: recovery(32 * MIB, 2 * MIB, 512 * KIB, seconds(10)),
                },
            },
            tail: Marks {
                enabled: true,
                eases: GIB / 2,
                high: 2 * GIB,
                critical: 16 * GIB,
                adaptive: Adaptive {
                    slowdown: slowdown(seconds(30), 16 * MIB, MIB, seconds(30), 80, seconds(120)),
                    recovery: recovery(32 * MIB, 2 * MIB, 512 * KIB, seconds(60)),
                },
            },
            lag: Marks {
                enabled: true,
                eases: 30 * 60 * 1000,
                high: 60 * 60 * 1000,
                critical: 0,
                adaptive: Adaptive {
                    slowdown: slowdown(seconds(10), 16 * MIB, 2 * MIB, seconds(30), 80, seconds(0)),
                    recovery: recovery(64 * MIB, 16 * MIB, 5 * MIB, seconds(5)),
                },
            },
            rate: Marks {
                enabled: false,
                eases: 28 * MIB,
                high: 32 * MIB,
                critical: 0,
                adaptive: Adaptive {
                    slowdown: slowdown(seconds(0), 32 * MIB, 2 * MIB, seconds(10), 90, seconds(0)),
                    recovery: recovery(32 * MIB, 4 * MIB, 512 * KIB, seconds(10)),
                },
            },
        }
    }
}

impl Flow {
    pub(super) fn validate(&self) -> Result<(), SettingsError> {
        let refuse = |key, problem: &str| Err(SettingsError { key, problem: problem.to_owned() });
        if self.burst == 0 || self.trickle == 0 {
            return refuse("flow.burst", "neither burst nor trickle may be zero");
        }
        for (key, marks) in [
            ("flow.memory", &self.memory),
            ("flow.tail", &self.tail),
            ("flow.lag", &self.lag),
            ("flow.rate", &self.rate),
        ] {
            let Adaptive { slowdown, recovery } = &marks.adaptive;
            if marks.eases > marks.high || (marks.critical > 0 && marks.critical < marks.high) {
                return refuse(key, "marks must rise: eases, high, critical");
            }
            if slowdown.lwm == 0 || recovery.lwm == 0 || slowdown.lwm > slowdown.hwm || recovery.lwm > recovery.hwm {
                return refuse(key, "rates must not be zero, and lwm not above hwm");
            }
            if !(1..100).contains(&slowdown.decrease_ratio) || slowdown.decrease_interval.is_zero() {
                return refuse(key, "the rate must fall: decrease_ratio between 1 and 99 percent, and an interval");
            }
            if recovery.increment == 0 || recovery.increase_interval.is_zero() {
                return refuse(key, "the rate must rise: an increment and an interval");
            }
        }
        Ok(())
    }
}
