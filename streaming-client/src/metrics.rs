//! What the client counts (streaming.md §8). Handles are made once per channel: looking one up for each message costs more
//! than the message.

use std::time::Duration;

use metrics::{Counter, Histogram, counter, histogram};

pub(crate) struct AppendMetrics {
    channel: String,
    is_local: bool,
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
    pub(crate) fn new(channel: &str, is_local: bool) -> Self {
        let model = if is_local { "local" } else { "remote" };
        let total = |status: &'static str| counter!("milvus_streaming_produce_total", "channel_name" => channel.to_owned(), "access_model" => model, "status" => status);
        Self {
            channel: channel.to_owned(),
            is_local,
            acknowledged: total("ok"),
            refused: total("refused"),
            retried: total("retried"),
            bytes: counter!("milvus_streaming_produce_bytes", "channel_name" => channel.to_owned(), "access_model" => model, "status" => "ok"),
            duration: histogram!("milvus_streaming_produce_success_duration_seconds", "channel_name" => channel.to_owned(), "access_model" => model),
        }
    }

    /// What is counted from here on goes to a node in this process, or to one elsewhere.
    pub(crate) fn over(&mut self, is_local: bool) {
        if self.is_local != is_local {
            *self = Self::new(&self.channel, is_local);
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
