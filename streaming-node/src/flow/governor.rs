//! Turns what is measured of one WAL and its node into the limit of its writers.

use std::sync::Arc;

use streaming_types::TimeTick;
use tokio::sync::watch;
use woodpecker_base::clock::{Clock, Instant};

use super::{
    controller::{Controller, Limit, Pressure},
    limiter::Limiter,
    memory::{Memory, Usage},
};
use crate::{
    metrics,
    recovery::keeper::Progress,
    settings::{Flow, Marks},
};

/// How often is measured.
pub const INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);

/// What is measured of a WAL.
#[derive(Debug, Clone, Copy, Default)]
pub struct Readings {
    /// Of the node's memory.
    pub memory: Option<Usage>,
    /// Bytes that the next owner would have to replay.
    pub tail: u64,
    /// Milliseconds by which the slowest registered consumer is behind.
    pub lag_ms: u64,
    /// Bytes a second that were let through.
    pub rate: u64,
}

/// Where a governor measures.
#[derive(Debug)]
pub struct Gauges {
    pub memory: Memory,
    pub progress: Arc<Progress>,
}

/// One WAL's sources of pressure and the limiter they decide about.
#[derive(Debug)]
pub struct Governor {
    pchannel: Arc<str>,
    settings: watch::Receiver<Flow>,
    sources: Vec<Source>,
    limiter: Limiter,
    limit: Limit,
}

#[derive(Debug)]
struct Source {
    name: &'static str,
    marks: Marks,
    measure: fn(&Readings) -> Option<u64>,
    controller: Controller,
}

impl Governor {
    pub fn new(pchannel: Arc<str>, mut settings: watch::Receiver<Flow>, limiter: Limiter, now: Instant) -> Self {
        let sources = Source::all(&settings.borrow_and_update(), now);
        Self { pchannel, settings, sources, limiter, limit: Limit::None }
    }

    /// Sets the limit that the newest readings ask for: the tightest of all sources'.
    pub fn update(&mut self, readings: &Readings, now: Instant) -> Limit {
        if self.settings.has_changed().unwrap_or_default() {
            // By other marks what was under pressure may not be, so every source begins anew.
            self.sources = Source::all(&self.settings.borrow_and_update(), now);
        }
        let mut tightest = (Limit::None, "none");
        for source in self.sources.iter_mut().filter(|source| source.marks.enabled) {
            let Marks { eases, high, critical, .. } = source.marks;
            // What cannot be measured does not press.
            let measured = (source.measure)(readings);
            let pressure = measured.map_or(Pressure::None, |measure| Pressure::of(measure, eases, high, critical));
            tightest = tightest.min((source.controller.update(pressure, now), source.name));
        }
        let (limit, source) = tightest;
        if limit != self.limit {
            tracing::warn!(pchannel = %self.pchannel, ?limit, source, "the limit of appends has changed");
            metrics::rate_limited(&self.pchannel, limit);
        }
        self.limit = limit;
        self.limiter.set(limit);
        limit
    }

    /// Measures and updates, for as long as it is polled.
    pub async fn run(mut self, gauges: Gauges, clock: Clock) {
        let mut due = clock.ticker(INTERVAL);
        let mut passed = self.limiter.passed();
        loop {
            due.tick().await;
            let now_passed = self.limiter.passed();
            let readings = Readings {
                memory: gauges.memory.usage(),
                tail: gauges.progress.tail(),
                lag_ms: gauges.progress.slowest().map_or(0, |slowest| lag(gauges.progress.met(), slowest)),
                rate: now_passed - passed,
            };
            passed = now_passed;
            metrics::consumers_behind(&self.pchannel, readings.lag_ms);
            self.update(&readings, clock.now());
        }
    }
}

impl Drop for Governor {
    /// The WAL is elsewhere from now on: what was told of it here holds no more.
    fn drop(&mut self) {
        metrics::consumers_behind(&self.pchannel, 0);
        if self.limit != Limit::None {
            metrics::rate_limited(&self.pchannel, Limit::None);
        }
    }
}

impl Source {
    fn all(settings: &Flow, now: Instant) -> Vec<Self> {
        let source = |name, marks: &Marks, measure: fn(&Readings) -> Option<u64>| Source {
            name,
            marks: marks.clone(),
            measure,
            controller: Controller::new(marks.adaptive.clone(), now),
        };
        vec![
            source("node_memory", &settings.memory, |readings| readings.memory.map(Usage::percent)),
            source("recovery", &settings.tail, |readings| Some(readings.tail)),
            source("consumers", &settings.lag, |readings| Some(readings.lag_ms)),
            source("append_rate", &settings.rate, |readings| Some(readings.rate)),
        ]
    }
}

fn lag(newest: u64, slowest: u64) -> u64 {
    TimeTick(newest).physical_ms().saturating_sub(TimeTick(slowest).physical_ms())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn governor(clock: &Clock) -> Governor {
        adjustable(clock).0
    }

    fn adjustable(clock: &Clock) -> (Governor, watch::Sender<Flow>) {
        let limiter = Limiter::new(1 << 20, 1 << 10, clock.clone());
        let (sender, settings) = watch::channel(Flow::default());
        (Governor::new("p".into(), settings, limiter, clock.now()), sender)
    }

    #[tokio::test(start_paused = true)]
    async fn other_marks_count_from_the_next_reading_on() {
        let clock = Clock::system();
        let (mut governor, settings) = adjustable(&clock);
        let busy = Readings { rate: 64 << 20, ..Readings::default() };
        assert_eq!(governor.update(&busy, clock.now()), Limit::None);
        settings.send_modify(|flow| flow.rate.enabled = true);
        assert!(matches!(governor.update(&busy, clock.now()), Limit::Rate(_)));
        settings.send_modify(|flow| flow.rate.enabled = false);
        assert_eq!(governor.update(&busy, clock.now()), Limit::None);
    }

    #[tokio::test(start_paused = true)]
    async fn tightest_source_wins_and_writers_are_told() {
        let clock = Clock::system();
        let mut governor = governor(&clock);
        let told = governor.limiter.subscribe();
        let calm = Readings { memory: Some(Usage { used: 10, total: 100 }), ..Readings::default() };
        assert_eq!(governor.update(&calm, clock.now()), Limit::None);
        let full = Readings { memory: Some(Usage { used: 92, total: 100 }), tail: 4 << 30, ..calm };
        let first = governor.update(&full, clock.now());
        let Limit::Rate(by_memory) = first else { panic!("{first:?}") };
        assert_eq!(*told.borrow(), first);
        // The recovery's pressure tells after a while, and by then the log is full.
        clock.sleep(Duration::from_secs(31)).await;
        assert!(governor.update(&full, clock.now()) < Limit::Rate(by_memory));
        let out = Readings { memory: Some(Usage { used: 99, total: 100 }), ..full };
        assert_eq!(governor.update(&out, clock.now()), Limit::Reject);
    }

    #[tokio::test(start_paused = true)]
    async fn disabled_and_unmeasured_sources_do_not_press() {
        let clock = Clock::system();
        let mut governor = governor(&clock);
        let readings = Readings { memory: None, rate: u64::MAX, ..Readings::default() };
        assert_eq!(governor.update(&readings, clock.now()), Limit::None, "the append rate is not limited by default");
    }
}
