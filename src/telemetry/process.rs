//! What this process takes of its machine, as Linux tells it, under the names that dashboards know. What the system does not
//! tell is not shown.

use std::fs;

use metrics::gauge;

/// Parts of a second that Linux counts processor time in, on every machine of ours.
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads everything anew.
pub(super) fn show() {
    let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let (status, limits) = (read("status"), read("limits"));
    if let Some(ticks) = processor_ticks(&read("stat")) {
        gauge!("process_cpu_seconds_total").set(ticks / TICKS_PER_SECOND);
    }
    if let Some(kib) = field(&status, "VmRSS:") {
        gauge!("process_resident_memory_bytes").set(kib * 1024.0);
    }
    if let Some(threads) = field(&status, "Threads:") {
        gauge!("process_threads").set(threads);
    }
    if let Some(most) = field(&limits, "Max open files") {
        gauge!("process_max_fds").set(most);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        gauge!("process_open_fds").set(u32::try_from(open.count()).unwrap_or(u32::MAX));
    }
}

/// The number behind a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// In user and in system mode. The second field is the program's name in parentheses, which may hold anything.
fn processor_ticks(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    Some(user + fields.next()?.parse::<f64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_writes_is_read() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194560 99 0 0 0 150 50 0 0 20 0 9 0 12345 1000 200 18446744073709551615";
        assert_eq!(processor_ticks(stat), Some(200.0));
        assert_eq!(processor_ticks("7 (cut off"), None);
        assert_eq!(field("Name:\tx\nVmRSS:\t    2048 kB\nThreads:\t9\n", "VmRSS:"), Some(2048.0));
        assert_eq!(
            field("Max open files            1024                 524288               files", "Max open files"),
            Some(1024.0)
        );
        assert_eq!(
            field("Max open files            unlimited            unlimited            files", "Max open files"),
            None
        );
    }
}
