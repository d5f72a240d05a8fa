//! How slow the machine is while a test runs: whoever else uses it makes everything late, and no fault of what is tested.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::anyhow;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Wakes up again and again, and syncs a page where the logs are.
pub(crate) struct Machine {
    stop: Arc<AtomicBool>,
    looking: JoinHandle<io::Result<Duration>>,
}

impl Machine {
    pub(crate) fn watch(directory: &Path) -> io::Result<Self> {
        let (page, stop) = (File::create(directory.join("machine"))?, Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let looking = thread::spawn(move || {
            let mut slowest = Duration::ZERO;
            while !stopped.load(Ordering::Relaxed) {
                let begun = Instant::now();
                thread::sleep(PAUSE);
                page.write_all_at(&[7; 4096], 0)?;
                page.sync_data()?;
                slowest = slowest.max(begun.elapsed().saturating_sub(PAUSE));
            }
            Ok(slowest)
        });
        Ok(Self { stop, looking })
    }

    /// The longest that it took to be awake and to have synced a page.
    pub(crate) fn slowest(self) -> anyhow::Result<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.looking.join().map_err(|_| anyhow!("the look at the machine panicked"))??)
    }
}
