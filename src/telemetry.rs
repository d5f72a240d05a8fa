//! Logs and metrics of a process; traces are in [`spans`].

mod process;
mod spans;

use std::{
    io::IsTerminal,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    layer::SubscriberExt,
    reload::{self, Handle},
    util::SubscriberInitExt,
};

pub(crate) use self::spans::Spans;
use crate::config::{Config, LogFormat};

/// Buckets in seconds, from 50 µs: an append on a local disk takes a tenth of a millisecond.
const SECONDS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
const BYTES: &[f64] =
    &[64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0];

/// What is logged, which can be changed at any time. Clones are one.
#[derive(Clone)]
pub(crate) struct LogLevel {
    filter: Handle<EnvFilter, Registry>,
    now: Arc<Mutex<String>>,
}

impl LogLevel {
    /// A level or a filter, as it was set last.
    pub(crate) fn now(&self) -> String {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Logs by another level or filter from now on.
    ///
    /// # Errors
    /// It is neither; the old one stays.
    pub(crate) fn set(&self, level: &str) -> anyhow::Result<()> {
        let filter = EnvFilter::try_new(level).with_context(|| format!("{level:?} is neither a level nor a filter"))?;
        self.filter.reload(filter)?;
        level.clone_into(&mut self.now.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }
}

/// Sends logs to standard error, so that standard output carries data only, and spans where the configuration says.
///
/// # Errors
/// The level is no filter, the collector's address is none, or logging was set up before.
pub(crate) fn init(config: &Config, role: &str) -> anyhow::Result<(LogLevel, Spans)> {
    let level = &config.log.level;
    let (filter, handle) = reload::Layer::new(EnvFilter::try_new(level)?);
    let lines =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let lines = match config.log.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let spans = Spans::open(&config.trace, role)?;
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans.layer()).try_init()?;
    Ok((LogLevel { filter: handle, now: Arc::new(Mutex::new(level.clone())) }, spans))
}

/// Installs the metrics recorder and returns what renders `/metrics`.
///
/// # Errors
/// A recorder was installed before.
pub(crate) fn init_metrics() -> anyhow::Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_bytes".into()), BYTES)?
        .install_recorder()?;
    metrics::gauge!("streaming_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
}

/// The page of metrics, as of now.
pub(crate) fn page(metrics: &PrometheusHandle) -> String {
    process::show();
    metrics.render()
}
