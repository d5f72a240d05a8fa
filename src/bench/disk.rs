//! What the disk can do by itself, used as the engine uses it.
//!
//! Blocks are appended to files of the engine's size, which grow as they are written, as a log does, and each is made
//! durable before the next: to write what was written before would be faster, but no log can live on that. Small
//! writes go into zeros that were written ahead, as the engine's do.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::oneshot;
use woodpecker_base::{
    clock::Clock,
    disk::{Disk, DiskFile, OpenMode, RealDisk},
};
use woodpecker_store::disk::LocalSettings;

use super::{SMALL, latency::Latencies};
use crate::roles::Machine;

/// Bytes of one write, which the engine gathers while it waits for the one before.
pub(super) const BLOCK: usize = 2 << 20;
/// One reader of the engine reads this much at once, in this many places.
const READ_BLOCK: usize = 1 << 20;
const READS: usize = 8;
/// A small write takes a page, so that none touches one that holds something durable.
const PAGE: usize = 4 << 10;
/// The file of small writes.
const SMALL_FILE: &str = "small";

/// A directory on the disk that the engine writes.
#[derive(Debug)]
pub(super) struct RawDisk {
    directory: PathBuf,
    /// The engine's files, if they are at hand.
    volumes: Option<PathBuf>,
    disk: Arc<dyn Disk>,
    clock: Clock,
    /// What was written: full but for the last.
    files: Vec<Arc<dyn DiskFile>>,
    /// Bytes in the last file.
    filled: usize,
    written: usize,
    small: Option<Small>,
}

/// The file of small writes and where the next goes.
#[derive(Debug)]
struct Small {
    file: Arc<dyn DiskFile>,
    at: u64,
}

impl RawDisk {
    pub(super) fn open(directory: PathBuf, volumes: Option<PathBuf>, machine: &Machine) -> anyhow::Result<Self> {
        machine.disk.create_dir_all(&directory)?;
        let (disk, clock) = (machine.disk.clone(), machine.clock.clone());
        let mut raw = Self { directory, volumes, disk, clock, files: Vec::new(), filled: 0, written: 0, small: None };
        // A run that was killed left its files.
        raw.clear()?;
        Ok(raw)
    }

    /// Appends blocks, each followed by fdatasync.
    pub(super) async fn write(&mut self, blocks: usize) -> anyhow::Result<Duration> {
        let file_bytes = usize::try_from(LocalSettings::default().file_bytes)?;
        let (disk, directory, clock) = (self.disk.clone(), self.directory.clone(), self.clock.clone());
        let (mut files, mut filled) = (self.files.clone(), self.filled);
        let wrote = on_disk(&self.disk, move || {
            let data: Vec<u8> = (0..=250).cycle().take(BLOCK).collect();
            let started = clock.now();
            for _ in 0..blocks {
                if files.is_empty() || filled + BLOCK > file_bytes {
                    files.push(create(&*disk, &directory.join(format!("{}.raw", files.len())))?);
                    filled = 0;
                }
                let file = files.last().context("no file")?;
                file.write_all_at(&data, filled as u64)?;
                file.sync_data()?;
                filled += BLOCK;
            }
            Ok((files, filled, started.elapsed()))
        });
        let (files, filled, elapsed) = wrote.await?;
        (self.files, self.filled) = (files, filled);
        self.written += blocks * BLOCK;
        Ok(elapsed)
    }

    /// Reads `bytes` of what was written, several blocks at once, each into memory of its own, as who hands it on must.
    pub(super) async fn read(&self, bytes: usize) -> anyhow::Result<Duration> {
        anyhow::ensure!(bytes <= self.written, "not so much was written");
        let per_file = usize::try_from(LocalSettings::default().file_bytes)?;
        let started = self.clock.now();
        let reads = (0..bytes.div_ceil(READ_BLOCK)).map(|block| {
            let at = block * READ_BLOCK;
            let file = self.files.get(at / per_file).cloned();
            on_disk(&self.disk, move || {
                let mut buffer = vec![0; READ_BLOCK];
                let read = file.context("no file")?.read_at(&mut buffer, (at % per_file) as u64)?;
                anyhow::ensure!(read == READ_BLOCK, "short read");
                Ok(buffer)
            })
        });
        stream::iter(reads).buffered(READS).try_for_each(|_| async { Ok(()) }).await?;
        Ok(started.elapsed())
    }

    /// Lets the system forget what it holds in memory of these files and of the engine's; false if it cannot.
    pub(super) fn forget(&self) -> anyhow::Result<bool> {
        let Some(volumes) = &self.volumes else { return Ok(false) };
        let mut directories = vec![self.directory.clone()];
        for volume in self.disk.list(volumes)? {
            directories.push(volumes.join(volume));
        }
        for directory in directories {
            forget(&*self.disk, &directory)?;
        }
        Ok(true)
    }

    /// One small durable write after another.
    pub(super) async fn write_small(&mut self, count: usize, latencies: &mut Latencies) -> anyhow::Result<()> {
        let (disk, clock, path) = (self.disk.clone(), self.clock.clone(), self.directory.join(SMALL_FILE));
        let (small, mut into) = (self.small.take(), latencies.clone());
        let wrote = on_disk(&self.disk, move || {
            let mut small = match small {
                Some(small) => small,
                None => Small { file: create(&*disk, &path)?, at: 0 },
            };
            small.file.preallocate(small.at + (count * PAGE) as u64)?;
            small.file.sync_data()?;
            let mut data = [b'x'; PAGE];
            data[SMALL..].fill(0);
            for _ in 0..count {
                let begun = clock.now();
                small.file.write_all_at(&data, small.at)?;
                small.file.sync_data()?;
                into.record(begun.elapsed());
                small.at += PAGE as u64;
            }
            Ok((small, into))
        });
        let (small, into) = wrote.await?;
        self.small = Some(small);
        *latencies = into;
        Ok(())
    }

    /// Removes what was written.
    pub(super) fn clear(&mut self) -> anyhow::Result<()> {
        (self.filled, self.written, self.small) = (0, 0, None);
        self.files.clear();
        for name in self.disk.list(&self.directory)? {
            if name == SMALL_FILE || name.ends_with(".raw") {
                self.disk.remove_file(&self.directory.join(name))?;
            }
        }
        Ok(())
    }
}

/// Lets the system forget what it holds in memory of a directory's files.
pub(super) fn forget(disk: &dyn Disk, directory: &Path) -> anyhow::Result<()> {
    for name in disk.list(directory)? {
        if Path::new(&name).extension().is_some_and(|extension| extension == "raw" || extension == "vol") {
            RealDisk.forget(&directory.join(name))?;
        }
    }
    Ok(())
}

fn create(disk: &dyn Disk, path: &Path) -> anyhow::Result<Arc<dyn DiskFile>> {
    disk.open(path, OpenMode::CreateNew).with_context(|| format!("cannot create {}", path.display()))
}

async fn on_disk<T: Send + 'static>(
    disk: &Arc<dyn Disk>,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let (done, result) = oneshot::channel();
    disk.run(Box::new(move || {
        let _ = done.send(work());
    }))
    .await;
    result.await.map_err(|_| anyhow!("the disk thread ended"))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[tokio::test]
    async fn a_run_leaves_nothing_and_minds_nothing_that_another_left() {
        let directory = tempfile::tempdir().unwrap();
        let machine = Machine::real(&Config::default()).unwrap();
        let open = || RawDisk::open(directory.path().to_owned(), None, &machine).unwrap();
        let mut killed = open();
        for _ in 0..2 {
            killed.write(1).await.unwrap();
            killed.write_small(1, &mut Latencies::new().unwrap()).await.unwrap();
        }
        let mut next = open();
        next.write(1).await.unwrap();
        next.write_small(1, &mut Latencies::new().unwrap()).await.unwrap();
        next.clear().unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
