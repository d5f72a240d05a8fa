//! What the shipping side counts, for each pair of channels.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use metrics::{Counter, Gauge, counter, gauge};

#[derive(Clone)]
pub(crate) struct Metrics {
    messages: Counter,
    bytes: Counter,
    sessions: Counter,
    connected: Gauge,
    /// Milliseconds by which the target is behind the source's newest tick.
    lag: Gauge,
    in_flight: Gauge,
    /// In milliseconds, what the target has reached; 0 when there is nothing to ship.
    reached_ms: Arc<AtomicU64>,
}

impl Metrics {
    pub(crate) fn new(source: &str, target: &str) -> Self {
        let labels = [("source_channel_name", source.to_owned()), ("target_channel_name", target.to_owned())];
        Self {
            messages: counter!("milvus_cdc_replicated_messages_total", &labels),
            bytes: counter!("milvus_cdc_replicated_bytes_total", &labels),
            sessions: counter!("milvus_cdc_stream_rpc_reconnect_times", &labels),
            connected: gauge!("milvus_cdc_stream_rpc_connections", &labels),
            lag: gauge!("milvus_cdc_replicate_lag", &labels),
            in_flight: gauge!("milvus_cdc_in_flight_messages", &labels),
            reached_ms: Arc::default(),
        }
    }

    /// A session begins; it lasts until what this returns is dropped.
    pub(crate) fn connected(&self) -> Connected<'_> {
        self.sessions.increment(1);
        self.connected.set(1.0);
        Connected(&self.connected)
    }

    pub(crate) fn replicated(&self, bytes: usize) {
        self.messages.increment(1);
        self.bytes.increment(bytes as u64);
    }

    /// The target has everything up to then, and so many messages are on their way to it.
    pub(crate) fn reached(&self, ms: u64, in_flight: usize) {
        self.reached_ms.store(ms, Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "a count of messages")]
        self.in_flight.set(in_flight as f64);
    }

    /// Shows by how much the target is behind. It is more by the minute if nothing reaches it, and nobody else says so.
    pub(crate) fn show(&self, now_ms: u64) {
        let lag = match self.reached_ms.load(Ordering::Relaxed) {
            0 => 0,
            reached => now_ms.saturating_sub(reached),
        };
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of a lag")]
        self.lag.set(lag as f64);
    }
}

/// A session that stands.
pub(crate) struct Connected<'a>(&'a Gauge);

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.set(0.0);
    }
}
