//! What can change while a process runs: files are looked at now and then, and on SIGHUP.

use std::{path::PathBuf, time::Duration};

use tokio::signal::unix::{Signal, SignalKind, signal};
use woodpecker_base::{clock::Clock, tasks::Tasks};

/// Files, and what is done when one of them changes.
pub(super) struct Watched {
    what: &'static str,
    files: Vec<PathBuf>,
    /// Their content when they were used last; a file that cannot be read has none.
    used: Vec<Option<Vec<u8>>>,
    apply: Box<dyn FnMut() -> anyhow::Result<()> + Send>,
}

impl Watched {
    /// Files that were used as they are now.
    pub(super) fn new(
        what: &'static str,
        files: Vec<PathBuf>,
        apply: impl FnMut() -> anyhow::Result<()> + Send + 'static,
    ) -> Self {
        let used = contents(&files);
        Self { what, files, used, apply: Box::new(apply) }
    }

    /// Files that are read at the start only. That they changed is told as what could not be used, until a restart.
    pub(super) fn until_restart(what: &'static str, files: Vec<PathBuf>) -> Self {
        let (started, read) = (contents(&files), files.clone());
        Self::new(what, files, move || {
            anyhow::ensure!(contents(&read) == started, "a restart is needed to use what is in the files now");
            Ok(())
        })
    }

    /// Uses the files if they changed, or if it is asked for. What fails is tried again at the next look.
    fn look(&mut self, asked: bool) {
        let found = contents(&self.files);
        if self.files.is_empty() || (!asked && found == self.used) {
            return;
        }
        let what = self.what;
        match (self.apply)() {
            Ok(()) => {
                tracing::info!(what, "reloaded");
                metrics::counter!("streaming_reloads_total", "what" => what).increment(1);
                self.used = found;
            }
            Err(error) => {
                tracing::warn!(what, error = format!("{error:#}"), "not reloaded, the old stays in use");
                metrics::counter!("streaming_reload_failures_total", "what" => what).increment(1);
            }
        }
    }
}

fn contents(files: &[PathBuf]) -> Vec<Option<Vec<u8>>> {
    files.iter().map(|file| std::fs::read(file).ok()).collect()
}

/// Looks every `interval`, and on SIGHUP, until the tasks are stopped.
///
/// # Errors
/// The signal cannot be waited for.
pub(super) fn watch(mut watched: Vec<Watched>, interval: Duration, clock: Clock, tasks: &Tasks) -> std::io::Result<()> {
    let mut hangups: Signal = signal(SignalKind::hangup())?;
    tasks.spawn_until_stopped(async move {
        loop {
            let asked = tokio::select! {
                _ = hangups.recv() => true,
                () = clock.sleep(interval) => false,
            };
            watched.iter_mut().for_each(|each| each.look(asked));
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[test]
    fn a_file_is_used_when_it_changes_and_tried_again_when_that_fails() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "one").unwrap();
        let tried = Arc::new(AtomicUsize::new(0));
        let (counter, read) = (tried.clone(), file.clone());
        let mut watched = Watched::new("test", vec![file.clone()], move || {
            counter.fetch_add(1, Ordering::Relaxed);
            anyhow::ensure!(std::fs::read_to_string(&read)? != "bad", "bad");
            Ok(())
        });
        let mut look = |asked| {
            watched.look(asked);
            tried.swap(0, Ordering::Relaxed)
        };
        assert_eq!((look(false), look(true)), (0, 1));
        std::fs::write(&file, "bad").unwrap();
        assert_eq!((look(false), look(false)), (1, 1));
        std::fs::write(&file, "two").unwrap();
        assert_eq!((look(false), look(false)), (1, 0));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(look(false), 1, "a file that is gone is told of");
    }

    #[test]
    fn what_is_read_at_the_start_only_is_told_of_until_it_is_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "one").unwrap();
        let mut watched = Watched::until_restart("test", vec![file.clone()]);
        let mut used = |asked| {
            watched.look(asked);
            watched.used == contents(&watched.files)
        };
        assert!(used(false) && used(true));
        std::fs::write(&file, "two").unwrap();
        assert!(!used(false) && !used(false));
        std::fs::write(&file, "one").unwrap();
        assert!(used(false));
    }
}
