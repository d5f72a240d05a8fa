//! Logs and traces.

use std::{path::PathBuf, time::Duration};

use anyhow::{bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, filter::Targets};

use super::{Config, units};

/// Logs, on standard error.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Log {
    /// A level (`info`) or a filter (`info,woodpecker=debug`).
    pub(crate) level: String,
    /// How a line looks.
    pub(crate) format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// Traces of messages from producer to consumer.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Trace {
    /// Where spans go.
    pub(crate) exporter: TraceExporter,
    /// Part of the traces that begin here which is recorded, 0 to 1; a trace that another process began is recorded if
    /// that one does.
    pub(crate) sample_fraction: f64,
    /// The collector.
    pub(crate) otlp: Otlp,
}

impl Default for Trace {
    fn default() -> Self {
        Self { exporter: TraceExporter::Noop, sample_fraction: 0.01, otlp: Otlp::default() }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TraceExporter {
    /// Nowhere: tracing costs nothing.
    #[default]
    Noop,
    /// To a collector, by OTLP over gRPC.
    Otlp,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Otlp {
    /// URL of the collector's gRPC port; with https it is spoken to over TLS.
    pub(crate) endpoint: String,
    /// File with the authorities that signed its certificate, PEM; empty for the system's.
    #[serde(rename = "tlsCACert")]
    pub(crate) tls_ca_cert: PathBuf,
    /// Limit for one export.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) timeout: Duration,
}

impl Default for Otlp {
    fn default() -> Self {
        Self { endpoint: "http://127.0.0.1:4317".into(), tls_ca_cert: PathBuf::new(), timeout: Duration::from_secs(10) }
    }
}

impl Config {
    pub(super) fn validate_telemetry(&self) -> anyhow::Result<()> {
        // The one knows what a level is, the other is what filters.
        let level = self.log.level.as_str();
        if level.parse::<Targets>().is_err() || EnvFilter::try_new(level).is_err() {
            bail!("log.level: {:?} is neither a level nor a filter", self.log.level);
        }
        let Trace { sample_fraction, otlp, exporter } = &self.trace;
        ensure!(
            (0.0..=1.0).contains(sample_fraction),
            "trace.sampleFraction: {sample_fraction} is not between 0 and 1"
        );
        if *exporter == TraceExporter::Otlp {
            let url = otlp.endpoint.starts_with("http://") || otlp.endpoint.starts_with("https://");
            ensure!(url, "trace.otlp.endpoint: {:?} is no URL with http or https", otlp.endpoint);
        }
        Ok(())
    }
}
