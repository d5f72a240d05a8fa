//! What a node counts. Names are those that dashboards of Milvus know.

use metrics::{counter, gauge};

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
