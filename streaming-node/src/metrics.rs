//! What a node counts. Names are those that dashboards of Milvus know.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use streaming_types::TimeTick;

use crate::flow::Limit;

/// What is told of one WAL that this node appends to, without a lookup for each message.
pub struct WalMetrics {
    info: Gauge,
    messages: Counter,
    bytes: Histogram,
    persisted: Counter,
    in_memory: Counter,
    allocated: Gauge,
    confirmed: Gauge,
    waits: Gauge,
    transactions: Gauge,
    buffer_bytes: Gauge,
    buffer_capacity: Gauge,
    buffer_entries: Gauge,
    buffer_earliest: Gauge,
    buffer_latest: Gauge,
    scanner_lag: Gauge,
}

impl std::fmt::Debug for WalMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WalMetrics").finish_non_exhaustive()
    }
}

/// How a WAL is at the moment.
#[derive(Debug)]
pub struct Reading {
    /// The newest tick that was given out.
    pub allocated: TimeTick,
    /// The tick up to which readers have everything there is.
    pub confirmed: TimeTick,
    /// How long the oldest append has waited for its outcome.
    pub waits: Duration,
    /// Open transactions.
    pub transactions: usize,
    pub buffer: Held,
    /// How far the slowest scanner is, if there is one.
    pub slowest: Option<TimeTick>,
}

/// What a write-ahead buffer holds.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    pub bytes: usize,
    pub capacity: usize,
    pub entries: usize,
    /// Ticks of the first and the last entry.
    pub span: Option<(TimeTick, TimeTick)>,
}

impl WalMetrics {
    /// A WAL was opened at a term. The term is a value: as a label it would make a new series for every assignment.
    pub fn opened(pchannel: &str, term: i64) -> Self {
        let channel = || pchannel.to_owned();
        let metrics = Self {
            info: gauge!("milvus_wal_info", "channel_name" => channel(), "wal_name" => crate::wal::WAL_NAME),
            messages: counter!("milvus_wal_append_message_total", "channel_name" => channel(), "status" => "ok"),
            bytes: histogram!("milvus_wal_append_message_bytes", "channel_name" => channel(), "status" => "ok"),
            persisted: counter!("milvus_wal_sync_total", "channel_name" => channel(), "type" => "persisted"),
            in_memory: counter!("milvus_wal_sync_total", "channel_name" => channel(), "type" => "memory"),
            allocated: gauge!("milvus_wal_last_allocated_time_tick", "channel_name" => channel()),
            confirmed: gauge!("milvus_wal_last_confirmed_time_tick", "channel_name" => channel()),
            waits: gauge!("milvus_wal_append_oldest_waiting_seconds", "channel_name" => channel()),
            transactions: gauge!("milvus_wal_inflight_txn", "channel_name" => channel()),
            buffer_bytes: gauge!("milvus_wal_write_ahead_buffer_size_bytes", "channel_name" => channel()),
            buffer_capacity: gauge!("milvus_wal_write_ahead_buffer_capacity_bytes", "channel_name" => channel()),
            buffer_entries: gauge!("milvus_wal_write_ahead_buffer_entry_total", "channel_name" => channel()),
            buffer_earliest: gauge!("milvus_wal_write_ahead_buffer_earliest_time_tick", "channel_name" => channel()),
            buffer_latest: gauge!("milvus_wal_write_ahead_buffer_latest_time_tick", "channel_name" => channel()),
            scanner_lag: gauge!("milvus_wal_scanner_lag_seconds", "channel_name" => channel()),
        };
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        metrics.info.set(term as f64);
        metrics
    }

    /// A message became durable.
    pub fn appended(&self, bytes: impl ExactSizeIterator<Item = usize>) {
        self.messages.increment(bytes.len() as u64);
        #[expect(clippy::cast_precision_loss, reason = "the size of a message")]
        bytes.for_each(|bytes| self.bytes.record(bytes as f64));
    }

    /// A group was closed by a tick, in the log or in memory only.
    pub fn synced(&self, persisted: bool) {
        if persisted { &self.persisted } else { &self.in_memory }.increment(1);
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
    pub fn show(&self, reading: &Reading) {
        let Reading { allocated, confirmed, waits, transactions, buffer, slowest } = reading;
        self.allocated.set(seconds(*allocated));
        self.confirmed.set(seconds(*confirmed));
        self.waits.set(waits.as_secs_f64());
        self.transactions.set(*transactions as f64);
        self.buffer_bytes.set(buffer.bytes as f64);
        self.buffer_capacity.set(buffer.capacity as f64);
        self.buffer_entries.set(buffer.entries as f64);
        let (earliest, latest) = buffer.span.unwrap_or_default();
        self.buffer_earliest.set(seconds(earliest));
        self.buffer_latest.set(seconds(latest));
        self.scanner_lag.set(slowest.map_or(0.0, |slowest| (seconds(*confirmed) - seconds(slowest)).max(0.0)));
    }

    /// The WAL is elsewhere from now on, or nowhere.
    pub fn closed(&self) {
        let held = Held { bytes: 0, capacity: 0, entries: 0, span: None };
        let (nothing, waits) = (TimeTick::default(), Duration::ZERO);
        self.info.set(0.0);
        self.show(&Reading {
            allocated: nothing,
            confirmed: nothing,
            waits,
            transactions: 0,
            buffer: held,
            slowest: None,
        });
    }
}

/// When a tick was, in seconds since the Unix epoch.
fn seconds(tick: TimeTick) -> f64 {
    Duration::from_millis(tick.physical_ms()).as_secs_f64()
}

pub fn scanner_opened(pchannel: &str, model: &'static str) {
    scanners(pchannel, model).increment(1.0);
}

pub fn scanner_closed(pchannel: &str, model: &'static str) {
    scanners(pchannel, model).decrement(1.0);
}

pub fn scanner_moved(pchannel: &str, from: &'static str, to: &'static str) {
    scanner_closed(pchannel, from);
    scanner_opened(pchannel, to);
}

fn scanners(pchannel: &str, model: &'static str) -> Gauge {
    gauge!("milvus_wal_scanner_total", "channel_name" => pchannel.to_owned(), "scanner_model" => model)
}

pub fn time_tick_violation(pchannel: &str) {
    counter!("milvus_wal_scan_time_tick_violation_message_total", "channel_name" => pchannel.to_owned()).increment(1);
}

/// An entry of a log that is no message.
pub fn bad_record(pchannel: &str) {
    counter!("milvus_wal_scan_bad_record_total", "channel_name" => pchannel.to_owned()).increment(1);
}

/// A WAL could not be opened, or ended without being told to.
pub fn failed(pchannel: &str, code: &'static str) {
    counter!("milvus_wal_failure_total", "channel_name" => pchannel.to_owned(), "code" => code).increment(1);
}

/// Open Produce streams of a pchannel.
pub fn producers(pchannel: &str) -> Gauge {
    gauge!("milvus_streamingnode_producer_total", "channel_name" => pchannel.to_owned())
}

/// Open Consume streams of a pchannel.
pub fn consumers(pchannel: &str) -> Gauge {
    gauge!("milvus_streamingnode_consumer_total", "channel_name" => pchannel.to_owned())
}

/// From the taking of a message to its answer.
pub fn append_took(pchannel: &str, status: &'static str) -> Histogram {
    histogram!("milvus_wal_append_message_duration_seconds", "channel_name" => pchannel.to_owned(), "status" => status)
}

/// A message that was answered with an error, and is not there.
pub fn refused(pchannel: &str) {
    counter!("milvus_wal_append_message_total", "channel_name" => pchannel.to_owned(), "status" => "error")
        .increment(1);
}

/// How far the slowest registered consumer of a pchannel is behind: the log is kept for it.
pub fn consumers_behind(pchannel: &str, lag_ms: u64) {
    let lag = Duration::from_millis(lag_ms).as_secs_f64();
    gauge!("milvus_wal_consumer_lag_seconds", "channel_name" => pchannel.to_owned()).set(lag);
}

/// The tick of the last checkpoint of a pchannel that is in the metadata store.
pub fn checkpointed(pchannel: &str, tick: u64) {
    let at = seconds(TimeTick(tick));
    gauge!("milvus_wal_recovery_persisted_time_tick", "channel_name" => pchannel.to_owned()).set(at);
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
