//! What a store counts. Label sets are bounded: a fixed number of namespaces has a label, codes are few.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use woodpecker_base::disk::Space;

/// What is counted for each namespace, without a lookup for each message.
pub struct NamespaceMetrics {
    appended_bytes: Counter,
    appended_entries: Counter,
    read_bytes: Counter,
    held: Gauge,
}

impl std::fmt::Debug for NamespaceMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NamespaceMetrics").finish_non_exhaustive()
    }
}

impl NamespaceMetrics {
    pub fn new(label: &str) -> Self {
        let label = label.to_owned();
        Self {
            appended_bytes: counter!("woodpecker_logstore_appended_bytes_total", "tenant" => label.clone()),
            appended_entries: counter!("woodpecker_logstore_appended_entries_total", "tenant" => label.clone()),
            read_bytes: counter!("woodpecker_logstore_read_bytes_total", "tenant" => label.clone()),
            held: gauge!("woodpecker_logstore_held_bytes", "tenant" => label),
        }
    }

    pub fn appended(&self, entries: usize, bytes: u64) {
        self.appended_entries.increment(entries as u64);
        self.appended_bytes.increment(bytes);
    }

    pub fn read(&self, bytes: usize) {
        self.read_bytes.increment(bytes as u64);
    }

    /// Namespaces that share a label count together.
    pub fn grew(&self, bytes: u64) {
        self.held.increment(as_f64(bytes));
    }

    pub fn shrank(&self, bytes: u64) {
        self.held.decrement(as_f64(bytes));
    }
}

/// How long appends took from the wire to the disk.
pub fn append_latency() -> Histogram {
    histogram!("woodpecker_logstore_append_seconds")
}

pub fn appended(latency: &Histogram, took: Duration) {
    latency.record(took.as_secs_f64());
}

pub fn refused(code: &'static str) {
    counter!("woodpecker_logstore_refused_total", "code" => code).increment(1);
}

pub fn fenced() {
    counter!("woodpecker_logstore_fences_total").increment(1);
}

/// Replicas that hold what does not pass its checksum.
pub fn corrupt() {
    counter!("woodpecker_logstore_corrupt_total").increment(1);
}

pub fn replicas(count: usize) {
    gauge!("woodpecker_logstore_replicas").set(as_f64(count as u64));
}

pub fn load(load: u32) {
    gauge!("woodpecker_logstore_load").set(f64::from(load));
}

pub fn disk(space: Space) {
    gauge!("woodpecker_logstore_disk_total_bytes").set(as_f64(space.total));
    gauge!("woodpecker_logstore_disk_free_bytes").set(as_f64(space.free));
}

/// 1 if the store knows in which zone it is.
pub fn has_zone(known: bool) {
    gauge!("woodpecker_logstore_has_zone").set(if known { 1.0 } else { 0.0 });
}

/// 1 while the store takes appends, 0 after its disk failed and while it is full.
pub fn writable(writable: bool) {
    gauge!("woodpecker_logstore_writable").set(if writable { 1.0 } else { 0.0 });
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn as_f64(value: u64) -> f64 {
    value as f64
}
