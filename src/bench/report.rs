//! What a run found: figures, and each as a ratio to the medium's own.

use std::fmt::Write;

use anyhow::Context;
use comfy_table::{Table, presets};
use serde::Serialize;

use super::{
    PARALLEL, SMALL, Size,
    engine::{Engine, Writes},
    limit::Limits,
    stream::Stream,
};

#[derive(Debug)]
pub(super) struct Report {
    backend: &'static str,
    size: Size,
    pub(super) medium: Option<Limits>,
    pub(super) engine: Option<Engine>,
    pub(super) stream: Option<Stream>,
    pub(super) writes: Option<Writes>,
}

/// One line: a figure of ours beside the medium's.
#[derive(Debug, Serialize)]
pub(super) struct Figure {
    what: String,
    unit: &'static str,
    ours: f64,
    medium: f64,
    /// Ours divided by the medium's: of rates more is better, of latencies less.
    ratio: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct Figures {
    backend: &'static str,
    entry_bytes: usize,
    parallel: usize,
    figures: Vec<Figure>,
}

impl Report {
    pub(super) fn new(backend: &'static str, size: Size) -> Self {
        Self { backend, size, medium: None, engine: None, stream: None, writes: None }
    }

    pub(super) fn figures(&self) -> anyhow::Result<Figures> {
        let medium = self.medium.context("the medium was not measured")?;
        let engine = self.engine.context("the engine was not measured")?;
        let stream = self.stream.context("the stream was not measured")?;
        let writes = self.writes.context("writes were not measured")?;
        let figure = |what: &str, unit, ours: f64, medium: f64| Figure {
            what: what.to_owned(),
            unit,
            ours,
            medium,
            ratio: ours / medium,
        };
        let mib = |rate: f64| rate / f64::from(1 << 20);
        let throughput = |what: &str, ours, medium| figure(what, "MiB/s", mib(ours), mib(medium));
        let latency = |what: &str, ours, medium| figure(what, "ms", ours, medium);
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let small_bytes = stream.small_messages * SMALL as f64;
        let many = format!("writes of the medium per second, {} logs / one log", writes.logs);
        let figures = vec![
            throughput("engine append", engine.append_rate, medium.write_rate),
            throughput("stream append", stream.append_rate, medium.write_rate),
            throughput("stream append, 4 producers of 1 KiB", small_bytes, medium.write_rate),
            throughput("engine catch-up read", engine.read_rate, medium.read_rate),
            throughput("stream catch-up read", stream.read_rate, medium.read_rate),
            latency("engine ack p50", engine.ack.p50_ms, medium.write.p50_ms),
            latency("engine ack p99", engine.ack.p99_ms, medium.write.p99_ms),
            latency("engine ack p99.9", engine.ack.p999_ms, medium.write.p999_ms),
            latency("stream ack p50", stream.ack.p50_ms, medium.write.p50_ms),
            latency("stream ack p99", stream.ack.p99_ms, medium.write.p99_ms),
            latency("stream ack p99.9", stream.ack.p999_ms, medium.write.p999_ms),
            latency("produce to consume p50", stream.delivery.p50_ms, medium.write.p50_ms),
            latency("produce to consume p99", stream.delivery.p99_ms, medium.write.p99_ms),
            latency("produce to consume p99.9", stream.delivery.p999_ms, medium.write.p999_ms),
            figure("messages of 1 KiB per second, 4 producers", "1/s", stream.small_messages, f64::NAN),
            figure(&many, "1/s", writes.many_logs, writes.one_log),
        ];
        Ok(Figures { backend: self.backend, entry_bytes: self.size.entry, parallel: PARALLEL, figures })
    }

    pub(super) fn table(&self) -> anyhow::Result<String> {
        let found = self.figures()?;
        let mut text = String::new();
        writeln!(
            text,
            "backend {}, entries of {} bytes, {} in flight; latencies with one writer and {SMALL} bytes",
            found.backend, found.entry_bytes, found.parallel
        )?;
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(["WHAT", "UNIT", "OURS", "MEDIUM", "RATIO"]);
        for figure in found.figures {
            let shown = |value: f64| if value.is_finite() { format!("{value:.3}") } else { "-".to_owned() };
            table.add_row([
                figure.what,
                figure.unit.to_owned(),
                shown(figure.ours),
                shown(figure.medium),
                shown(figure.ratio),
            ]);
        }
        write!(text, "{table}")?;
        Ok(text)
    }
}
