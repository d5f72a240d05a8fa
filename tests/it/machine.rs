//! How slow the machine is while a test runs: whoever else uses it makes everything late, and no fault of what is tested.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// A step that takes so long is a stall: what waits for several of these may be taken for lost.
const STALL: Duration = Duration::from_millis(200);

/// Wakes up again and again, and syncs a page where the logs are, until it is dropped.
pub(crate) struct Machine(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    slowest: Duration,
    stalls: usize,
}

impl Machine {
    pub(crate) fn watch(directory: &Path) -> io::Result<Self> {
        let (page, machine) = (File::create(directory.join("machine"))?, Self(Arc::default()));
        let watched = Arc::downgrade(&machine.0);
        thread::spawn(move || -> io::Result<()> {
            while let Some(seen) = watched.upgrade() {
                let begun = Instant::now();
                thread::sleep(PAUSE);
                page.write_all_at(&[7; 4096], 0)?;
                page.sync_data()?;
                let took = begun.elapsed().saturating_sub(PAUSE);
                let mut seen = locked(&seen);
                seen.slowest = seen.slowest.max(took);
                seen.stalls += usize::from(took > STALL);
            }
            Ok(())
        });
        Ok(machine)
    }

    /// The longest that it took to be awake and to have synced a page.
    pub(crate) fn slowest(&self) -> Duration {
        locked(&self.0).slowest
    }

    /// How often a log may have gone on elsewhere because of the machine: away from what stalled, and back.
    pub(crate) fn rolls(&self) -> usize {
        2 * locked(&self.0).stalls
    }
}

fn locked(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
