//! How fast one source of pressure lets a WAL be written. Pure.
//!
//! Under pressure the rate falls step by step, and at the bottom, after a while, to nothing. When the pressure is gone it
//! rises step by step, and at the top, after a while, the limit ends.

use std::time::Duration;

use woodpecker_base::clock::Instant;

use crate::settings::Adaptive;

/// What a source says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pressure {
    /// Below where it eases.
    None,
    /// Neither here nor there: what goes on goes on.
    Some,
    /// Above where writers have to be slower.
    High,
    /// Above where nothing more may come.
    Critical,
}

impl Pressure {
    /// Of a measure with three marks, of which the highest may be absent (0).
    pub fn of(measure: u64, eases: u64, high: u64, critical: u64) -> Self {
        if critical > 0 && measure >= critical {
            Self::Critical
        } else if measure >= high {
            Self::High
        } else if measure < eases {
            Self::None
        } else {
            Self::Some
        }
    }
}

/// How fast writers may be. Orders from the tightest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    Reject,
    /// Bytes per second.
    Rate(u64),
    None,
}

/// See the module.
#[derive(Debug)]
pub struct Controller {
    settings: Adaptive,
    mode: Mode,
    /// Since when.
    since: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Normal,
    /// Under pressure, for too short a time to do anything.
    Startup,
    Slow(u64),
    /// At the lowest rate.
    Floor,
    Reject,
    Recover(u64),
    /// At the highest rate.
    Ceiling,
}

impl Controller {
    pub fn new(settings: Adaptive, now: Instant) -> Self {
        Self { settings, mode: Mode::Normal, since: now }
    }

    /// The limit from now on. Call it about once a second.
    pub fn update(&mut self, pressure: Pressure, now: Instant) -> Limit {
        match pressure {
            Pressure::Critical => self.enter(Mode::Reject, now),
            Pressure::High => self.slow_down(now),
            Pressure::Some => {}
            Pressure::None => self.recover(now),
        }
        self.limit()
    }

    fn limit(&self) -> Limit {
        match self.mode {
            Mode::Normal | Mode::Startup => Limit::None,
            Mode::Slow(rate) | Mode::Recover(rate) => Limit::Rate(rate),
            Mode::Floor => Limit::Rate(self.settings.slowdown.lwm),
            Mode::Ceiling => Limit::Rate(self.settings.recovery.hwm),
            Mode::Reject => Limit::Reject,
        }
    }

    fn enter(&mut self, mode: Mode, now: Instant) {
        if self.mode != mode {
            self.mode = mode;
            self.since = now;
        }
    }

    fn slow_down(&mut self, now: Instant) {
        let slowdown = &self.settings.slowdown;
        let (floor, steps) = (slowdown.lwm, self.steps(slowdown.decrease_interval, now));
        let passed = now.duration_since(self.since);
        match self.mode {
            Mode::Normal if !slowdown.startup_delay.is_zero() => self.enter(Mode::Startup, now),
            Mode::Startup if passed < slowdown.startup_delay => {}
            Mode::Normal | Mode::Startup | Mode::Ceiling => self.enter(Mode::Slow(slowdown.hwm.max(floor)), now),
            Mode::Recover(rate) => self.enter(Mode::Slow(rate.min(slowdown.hwm).max(floor)), now),
            Mode::Slow(rate) if steps > 0 => {
                let slower = (0..steps.min(64)).fold(rate, |rate, _| scaled(rate, slowdown.decrease_ratio));
                self.enter(if slower <= floor { Mode::Floor } else { Mode::Slow(slower) }, now);
            }
            Mode::Floor if !slowdown.reject_delay.is_zero() && passed >= slowdown.reject_delay => {
                self.enter(Mode::Reject, now);
            }
            Mode::Slow(_) | Mode::Floor | Mode::Reject => {}
        }
    }

    fn recover(&mut self, now: Instant) {
        let recovery = &self.settings.recovery;
        let (ceiling, steps) = (recovery.hwm, self.steps(recovery.increase_interval, now));
        match self.mode {
            Mode::Normal => {}
            Mode::Startup => self.enter(Mode::Normal, now),
            Mode::Slow(rate) => self.enter(Mode::Recover(rate.min(ceiling)), now),
            Mode::Floor | Mode::Reject => self.enter(Mode::Recover(recovery.lwm.min(ceiling)), now),
            Mode::Recover(rate) if steps > 0 => {
                let faster = rate.saturating_add(recovery.increment.saturating_mul(steps));
                self.enter(if faster >= ceiling { Mode::Ceiling } else { Mode::Recover(faster) }, now);
            }
            Mode::Ceiling if now.duration_since(self.since) >= recovery.normal_delay => self.enter(Mode::Normal, now),
            Mode::Recover(_) | Mode::Ceiling => {}
        }
    }

    fn steps(&self, interval: Duration, now: Instant) -> u64 {
        let passed = now.duration_since(self.since).as_millis();
        u64::try_from(passed / interval.as_millis().max(1)).unwrap_or(u64::MAX)
    }
}

/// `rate` times `ratio`, which is in percent.
fn scaled(rate: u64, percent: u64) -> u64 {
    rate.saturating_mul(percent) / 100
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use woodpecker_base::clock::Clock;

    use super::*;
    use crate::settings::{Recovering, Slowdown};

    const MB: u64 = 1 << 20;

    fn settings() -> Adaptive {
        Adaptive {
            slowdown: Slowdown {
                startup_delay: Duration::from_secs(2),
                hwm: 16 * MB,
                lwm: 4 * MB,
                decrease_interval: Duration::from_secs(10),
                decrease_ratio: 50,
                reject_delay: Duration::from_secs(20),
            },
            recovery: Recovering {
                hwm: 8 * MB,
                lwm: 2 * MB,
                increase_interval: Duration::from_secs(1),
                increment: 3 * MB,
                normal_delay: Duration::from_secs(5),
            },
        }
    }

    #[tokio::test]
    async fn rate_falls_by_steps_to_the_floor_and_then_to_nothing() {
        let start = Clock::system().now();
        let mut controller = Controller::new(settings(), start);
        let mut at = |seconds: u64| controller.update(Pressure::High, start + Duration::from_secs(seconds));
        assert_eq!([at(0), at(1)], [Limit::None; 2], "a moment's pressure does nothing");
        assert_eq!([at(2), at(11)], [Limit::Rate(16 * MB); 2]);
        assert_eq!([at(12), at(21)], [Limit::Rate(8 * MB); 2]);
        assert_eq!([at(22), at(41)], [Limit::Rate(4 * MB); 2], "the floor");
        assert_eq!(at(42), Limit::Reject);
    }

    #[tokio::test]
    async fn rate_rises_by_steps_until_the_limit_ends() {
        let start = Clock::system().now();
        let mut controller = Controller::new(settings(), start);
        assert_eq!(controller.update(Pressure::Critical, start), Limit::Reject, "at once");
        assert_eq!(controller.update(Pressure::Some, start), Limit::Reject, "until it eases");
        let mut at = |seconds: u64| controller.update(Pressure::None, start + Duration::from_secs(seconds));
        assert_eq!(at(1), Limit::Rate(2 * MB));
        assert_eq!(at(2), Limit::Rate(5 * MB));
        assert_eq!([at(3), at(7)], [Limit::Rate(8 * MB); 2], "the ceiling");
        assert_eq!(at(8), Limit::None);
    }

    #[tokio::test]
    async fn pressure_that_comes_back_slows_from_where_it_was() {
        let start = Clock::system().now();
        let mut controller = Controller::new(settings(), start);
        controller.update(Pressure::Critical, start);
        controller.update(Pressure::None, start);
        assert_eq!(controller.update(Pressure::None, start + Duration::from_secs(1)), Limit::Rate(5 * MB));
        assert_eq!(controller.update(Pressure::High, start + Duration::from_secs(2)), Limit::Rate(5 * MB));
    }

    #[test]
    fn marks_tell_the_pressure() {
        let of = |measure| Pressure::of(measure, 10, 20, 30);
        assert_eq!(
            [of(9), of(10), of(20), of(30)],
            [Pressure::None, Pressure::Some, Pressure::High, Pressure::Critical]
        );
        assert_eq!(Pressure::of(u64::MAX, 10, 20, 0), Pressure::High, "never critical");
    }

    fn pressure() -> impl Strategy<Value = Pressure> {
        prop_oneof![Just(Pressure::None), Just(Pressure::Some), Just(Pressure::High), Just(Pressure::Critical)]
    }

    proptest! {
        #[test]
        fn rates_stay_in_their_bounds_and_ease_always_ends_them(
            steps in prop::collection::vec((pressure(), 0..40u64), 0..60)
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let _guard = runtime.enter();
            let mut now = Clock::system().now();
            let mut controller = Controller::new(settings(), now);
            for (pressure, seconds) in steps {
                now += Duration::from_secs(seconds);
                if let Limit::Rate(rate) = controller.update(pressure, now) {
                    prop_assert!((2 * MB..=16 * MB).contains(&rate));
                }
            }
            for _ in 0..12 {
                now += Duration::from_secs(1);
                controller.update(Pressure::None, now);
            }
            prop_assert_eq!(controller.update(Pressure::None, now), Limit::None);
        }
    }
}
