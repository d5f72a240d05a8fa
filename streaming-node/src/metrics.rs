//! What a node counts. Names are those that dashboards of Milvus know.

use std::time::Duration;

use metrics::{Histogram, counter, gauge, histogram};

use crate::flow::Limit;

pub fn scanner_opened(model: &'static str) {
    gauge!("milvus_wal_scanner_total", "scanner_model" => model).increment(1.0);
}

pub fn scanner_closed(model: &'static str) {
    gauge!("milvus_wal_scanner_total", "scanner_model" => model).decrement(1.0);
}

pub fn scanner_moved(from: &'static str, to: &'static str) {
    scanner_closed(from);
    scanner_opened(to);
}

pub fn time_tick_violation() {
    counter!("milvus_wal_scan_time_tick_violation_message_total").increment(1);
}

/// An entry of a log that is no message.
pub fn bad_record() {
    counter!("milvus_wal_scan_bad_record_total").increment(1);
}

/// A group was closed by a tick, in the log or in memory only.
pub fn sync(persisted: bool) {
    counter!("milvus_wal_sync_total", "type" => if persisted { "persisted" } else { "memory" }).increment(1);
}

pub fn producer_opened() {
    gauge!("milvus_streamingnode_producer_total").increment(1.0);
}

pub fn producer_closed() {
    gauge!("milvus_streamingnode_producer_total").decrement(1.0);
}

pub fn consumer_opened() {
    gauge!("milvus_streamingnode_consumer_total").increment(1.0);
}

pub fn consumer_closed() {
    gauge!("milvus_streamingnode_consumer_total").decrement(1.0);
}

/// Messages that became durable, and their bytes.
pub fn appended(messages: usize, bytes: usize) {
    counter!("milvus_wal_append_message_total", "status" => "ok").increment(messages as u64);
    counter!("milvus_wal_append_message_bytes", "status" => "ok").increment(bytes as u64);
}

/// From the taking of a message to its answer.
pub fn append_took(status: &'static str) -> Histogram {
    histogram!("milvus_wal_append_message_duration_seconds", "status" => status)
}

/// A message that was answered with an error.
pub fn refused() {
    counter!("milvus_wal_append_message_total", "status" => "error").increment(1);
}

/// Bytes in the write-ahead buffer of a pchannel.
pub fn buffered(pchannel: &str, bytes: usize) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    gauge!("milvus_wal_write_ahead_buffer_size_bytes", "channel_name" => pchannel.to_owned()).set(bytes as f64);
}

/// The tick of the last checkpoint of a pchannel that is in the metadata store.
pub fn checkpointed(pchannel: &str, tick: u64) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    gauge!("milvus_wal_recovery_persisted_time_tick", "channel_name" => pchannel.to_owned()).set(tick as f64);
}

/// Bytes of a log that a new owner had to read behind its checkpoint, and how long that took.
pub fn replayed(bytes: u64, took: Duration) {
    counter!("milvus_wal_recovery_replayed_bytes_total").increment(bytes);
    histogram!("milvus_wal_recovery_replay_duration_seconds").record(took.as_secs_f64());
}

/// The last segment of a pchannel's log that was given up.
pub fn truncated(pchannel: &str, segment: u64) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    gauge!("milvus_wal_truncated_segment", "channel_name" => pchannel.to_owned()).set(segment as f64);
}

/// How long the oldest append of a pchannel waits for its outcome.
pub fn append_waits(pchannel: &str, waits: Duration) {
    gauge!("milvus_wal_append_oldest_waiting_seconds", "channel_name" => pchannel.to_owned()).set(waits.as_secs_f64());
}

/// Transactions that are open on a pchannel.
pub fn transactions(pchannel: &str, open: usize) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    gauge!("milvus_wal_inflight_txn_total", "channel_name" => pchannel.to_owned()).set(open as f64);
}

/// Messages whose idempotency key was known already.
pub fn repeats(messages: usize) {
    if messages > 0 {
        counter!("milvus_wal_append_repeat_total").increment(messages as u64);
    }
}

/// A segment was sealed.
pub fn sealed(policy: &'static str) {
    counter!("milvus_wal_segment_assign_flushed_segment_total", "policy" => policy).increment(1);
}

/// What the writers of a pchannel are limited to, in bytes a second; -1 without a limit.
pub fn rate_limited(pchannel: &str, limit: Limit) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    let rate = match limit {
        Limit::None => -1.0,
        Limit::Rate(rate) => rate as f64,
        Limit::Reject => 0.0,
    };
    gauge!("milvus_wal_rate_limit_bytes", "channel_name" => pchannel.to_owned()).set(rate);
}
