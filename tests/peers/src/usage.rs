//! What the process of a test uses, as the kernel counts it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, time::Duration};

/// Resident memory in bytes.
#[must_use]
pub fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    kib << 10
}

/// Processor time so far, threads that have ended included.
#[must_use]
pub fn busy() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    // The name before the last parenthesis may hold anything; user and system time are the 12th and 13th field behind it.
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(10 * ticks)
}
