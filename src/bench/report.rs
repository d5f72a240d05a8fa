//! What a run found: figures, and each as a ratio to the medium's own.

use std::fmt::Write;

use comfy_table::{Table, presets};
use serde::Serialize;

use super::{
    SMALL,
    latency::{Latencies, Rates},
};

/// One line: a figure of ours beside what it is compared with.
#[derive(Debug, Serialize)]
struct Figure {
    what: String,
    unit: &'static str,
    ours: f64,
    /// The medium's own, in the same run.
    medium: Option<f64>,
    /// Ours divided by the medium's: of rates more is better, of latencies less.
    ratio: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(super) struct Report {
    backend: &'static str,
    entry_bytes: usize,
    /// Entries on their way at once where throughput is measured.
    in_flight: usize,
    /// Bytes of one write of the medium where throughput is measured, and how many of them at once.
    block_bytes: usize,
    parallel: usize,
    rounds: usize,
    figures: Vec<Figure>,
}

impl Report {
    pub(super) fn new(
        backend: &'static str,
        entry_bytes: usize,
        in_flight: usize,
        (block_bytes, parallel): (usize, usize),
        rounds: usize,
    ) -> Self {
        Self { backend, entry_bytes, in_flight, block_bytes, parallel, rounds, figures: Vec::new() }
    }

    /// Bytes per second, round by round.
    pub(super) fn throughput(&mut self, what: &str, ours: &Rates, medium: &Rates) {
        let mib = |rate: f64| rate / f64::from(1 << 20);
        self.compare(what, "MiB/s", mib(ours.median()), Some(mib(medium.median())), Some(ours.ratio(medium)));
    }

    /// Percentiles over all rounds.
    pub(super) fn latency(&mut self, what: &str, ours: &Latencies, medium: &Latencies) {
        for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
            let (ours, medium) = (ours.at(quantile), medium.at(quantile));
            self.compare(&format!("{what} {name}"), "ms", ours, Some(medium), Some(ours / medium));
        }
    }

    /// A figure beside another one that is not the medium's, or beside none.
    pub(super) fn figure(&mut self, what: &str, unit: &'static str, ours: f64) {
        self.compare(what, unit, ours, None, None);
    }

    /// A figure beside another one of the same unit.
    pub(super) fn compare(
        &mut self,
        what: &str,
        unit: &'static str,
        ours: f64,
        medium: Option<f64>,
        ratio: Option<f64>,
    ) {
        self.figures.push(Figure { what: what.to_owned(), unit, ours, medium, ratio });
    }

    pub(super) fn table(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        writeln!(
            text,
            "backend {}: entries of {} bytes, {} in flight; the medium by itself: blocks of {} bytes, {} at once; \
             medians of {} rounds; latencies with one writer and {SMALL} bytes",
            self.backend, self.entry_bytes, self.in_flight, self.block_bytes, self.parallel, self.rounds
        )?;
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(["WHAT", "UNIT", "OURS", "MEDIUM", "RATIO"]);
        let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
        for figure in &self.figures {
            table.add_row([
                figure.what.clone(),
                figure.unit.to_owned(),
                shown(Some(figure.ours)),
                shown(figure.medium),
                shown(figure.ratio),
            ]);
        }
        write!(text, "{table}")?;
        Ok(text)
    }
}
