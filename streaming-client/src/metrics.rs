//! What the client counts (streaming.md §8). Handles are made once per channel: looking one up for each message costs more
//! than the message.

use std::time::Duration;

use metrics::{Counter, Histogram, counter, histogram};

pub(crate) struct AppendMetrics {
    /// Appends by outcome: acknowledged, refused for good, or failed and to be sent again.
    acknowledged: Counter,
    refused: Counter,
    retried: Counter,
    /// Bytes acknowledged.
    bytes: Counter,
    /// From `append` to the acknowledgement.
    duration: Histogram,
}

impl AppendMetrics {
    pub(crate) fn new(channel: &str) -> Self {
        let total = |status: &'static str| counter!("milvus_streaming_produce_total", "channel_name" => channel.to_owned(), "access_model" => "remote", "status" => status);
        Self {
            acknowledged: total("ok"),
            refused: total("refused"),
            retried: total("retried"),
            bytes: counter!("milvus_streaming_produce_bytes", "channel_name" => channel.to_owned(), "access_model" => "remote", "status" => "ok"),
            duration: histogram!("milvus_streaming_produce_success_duration_seconds", "channel_name" => channel.to_owned(), "access_model" => "remote"),
        }
    }

    pub(crate) fn acknowledged(&self, bytes: usize, duration: Duration) {
        self.acknowledged.increment(1);
        self.bytes.increment(bytes as u64);
        self.duration.record(duration);
    }

    pub(crate) fn refused(&self) {
        self.refused.increment(1);
    }

    pub(crate) fn retried(&self) {
        self.retried.increment(1);
    }
}

pub(crate) struct ConsumeMetrics {
    bytes: Histogram,
}

impl ConsumeMetrics {
    pub(crate) fn new(pchannel: &str) -> Self {
        Self { bytes: histogram!("milvus_streaming_consume_bytes", "channel_name" => pchannel.to_owned()) }
    }

    #[expect(clippy::cast_precision_loss, reason = "a size in a histogram")]
    pub(crate) fn delivered(&self, bytes: usize) {
        self.bytes.record(bytes as f64);
    }
}
