//! How much of the memory that this process may use is used.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use woodpecker_base::clock::{Clock, Instant};

/// Where a container sees its own limit: control groups of version 2, and of version 1.
const CONTROL_GROUP: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/// How long a measure holds: reading it costs more than all else that an idle WAL does in a second.
const FRESH: Duration = Duration::from_millis(500);

/// Measures memory; cloned freely.
#[derive(Clone)]
pub struct Memory(Arc<dyn Fn() -> Option<Usage> + Send + Sync>);

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub used: u64,
    pub total: u64,
}

impl Usage {
    /// Used of total, in percent.
    pub fn percent(self) -> u64 {
        self.used.saturating_mul(100) / self.total.max(1)
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Memory").field(&self.usage()).finish()
    }
}

impl Memory {
    /// This process against the limit of its control group, or the machine's memory.
    #[must_use]
    pub fn process() -> Self {
        Self::from_fn(|| {
            let status = fs::read_to_string("/proc/self/status").ok()?;
            let machine = fs::read_to_string("/proc/meminfo").ok()?;
            let limits = CONTROL_GROUP.iter().filter_map(|file| limit(&fs::read_to_string(file).ok()?)).min();
            let total = kib(&machine, "MemTotal:")?.min(limits.unwrap_or(u64::MAX));
            Some(Usage { used: kib(&status, "VmRSS:")?, total })
        })
    }

    /// What `measure` says; `None` where it cannot be known.
    pub fn from_fn(measure: impl Fn() -> Option<Usage> + Send + Sync + 'static) -> Self {
        Self(Arc::new(measure))
    }

    /// The same for all WALs of a node, which ask as often as each of them does.
    pub(crate) fn shared(self, clock: Clock) -> Self {
        let last: Mutex<Option<(Instant, Option<Usage>)>> = Mutex::default();
        Self::from_fn(move || {
            let now = clock.now();
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            let known = last.filter(|(at, _)| now.duration_since(*at) < FRESH);
            last.insert(known.unwrap_or_else(|| (now, self.usage()))).1
        })
    }

    pub fn usage(&self) -> Option<Usage> {
        (self.0)()
    }
}

/// A limit of a control group: `max`, or in version 1 more than any machine has, where there is none.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The bytes of a line like `VmRSS:   123 kB`.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn lines_are_read() {
        let text = "VmPeak:\t 9 kB\nVmRSS:\t   1234 kB\n";
        assert_eq!(kib(text, "VmRSS:"), Some(1234 * 1024));
        assert_eq!(kib(text, "VmSwap:"), None);
    }

    #[test]
    fn limits_of_both_versions_are_read() {
        assert_eq!(limit("536870912\n"), Some(512 << 20));
        assert_eq!(limit("max\n"), None);
        // Of version 1, without a limit.
        assert!(limit("9223372036854771712\n").is_some_and(|bytes| bytes > 1 << 60));
    }

    #[tokio::test(start_paused = true)]
    async fn many_who_ask_at_once_share_a_measure() {
        let (clock, measured) = (Clock::system(), Arc::new(AtomicU64::new(0)));
        let count = Arc::clone(&measured);
        let memory = Memory::from_fn(move || Some(Usage { used: count.fetch_add(1, Ordering::Relaxed), total: 100 }));
        let memory = memory.shared(clock.clone());
        for used in 0..3 {
            assert!((0..1000).all(|_| memory.clone().usage().is_some_and(|usage| usage.used == used)));
            clock.sleep(FRESH).await;
        }
        assert_eq!(measured.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn process_uses_some_of_its_memory() {
        let usage = Memory::process().usage().unwrap();
        assert!(usage.used > 1 << 20 && usage.used < usage.total, "{usage:?}");
        assert!(usage.percent() < 100);
    }
}
