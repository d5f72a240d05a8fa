//! Traces: spans of the target `streaming::trace` go to a collector, if the configuration names one. Without, no layer
//! wants them, and a span that nobody wants is one load of an atomic.

use std::path::Path;

use anyhow::Context;
use opentelemetry::{KeyValue, global, trace::TracerProvider};
use opentelemetry_otlp::{
    Protocol, SpanExporter, WithExportConfig, WithTonicConfig,
    tonic_types::transport::{Certificate, ClientTlsConfig},
};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracerProvider},
};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Layer, filter::Targets, registry::LookupSpan};

use crate::config::{Trace, TraceExporter};

/// Whom TLS to the collector trusts.
fn trusted(file: &Path) -> anyhow::Result<ClientTlsConfig> {
    if file.as_os_str().is_empty() {
        return Ok(ClientTlsConfig::new().with_native_roots());
    }
    let pem = std::fs::read(file).with_context(|| format!("trace.otlp.tlsCACert: cannot read {}", file.display()))?;
    Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)))
}

/// Where spans of a process go.
pub(crate) struct Spans(Option<SdkTracerProvider>);

impl Spans {
    /// Nothing is sent before a span ends; a collector that is away loses spans and nothing else.
    pub(super) fn open(wanted: &Trace, role: &str) -> anyhow::Result<Self> {
        if wanted.exporter == TraceExporter::Noop {
            return Ok(Self(None));
        }
        let mut exporter = SpanExporter::builder()
            .with_tonic()
            .with_protocol(Protocol::Grpc)
            .with_endpoint(wanted.otlp.endpoint.clone())
            .with_timeout(wanted.otlp.timeout);
        if wanted.otlp.endpoint.starts_with("https://") {
            exporter = exporter.with_tls_config(trusted(&wanted.otlp.tls_ca_cert)?);
        }
        let exporter = exporter.build().context("trace.otlp")?;
        let resource = Resource::builder()
            .with_service_name(format!("streaming-{role}"))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(wanted.sample_fraction))))
            .with_resource(resource)
            .build();
        global::set_text_map_propagator(TraceContextPropagator::new());
        Ok(Self(Some(provider)))
    }

    /// The layer that hands spans on.
    pub(super) fn layer<S>(&self) -> Option<impl Layer<S>>
    where
        S: tracing::Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let provider = self.0.as_ref()?;
        let wanted = Targets::new().with_target("streaming::trace", LevelFilter::TRACE);
        Some(tracing_opentelemetry::layer().with_tracer(provider.tracer("streaming")).with_filter(wanted))
    }

    /// Sends what is left.
    pub(crate) fn close(&self) {
        if let Some(provider) = &self.0
            && let Err(error) = provider.shutdown()
        {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}
