mod damage;
mod faulty;
mod fencing;
mod pieces;
mod reading;
mod space;

use std::{
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use tempfile::TempDir;
use woodpecker_base::{
    clock::Clock,
    disk::{Disk, RealDisk},
    random::Random,
};
use woodpecker_core::ids::{Epoch, LogId, SegmentKey};

use super::{LocalBackend, LocalSettings};
use crate::{
    backend::{Backend, Placement, SegmentWriter, StoreError},
    conformance::{Medium, Owner},
};
use faulty::FaultyDisk;

/// Where the data directory is on a [`FaultyDisk`].
const ROOT: &str = "/data";

/// Small enough that tests meet every seam between files.
fn small() -> LocalSettings {
    LocalSettings { file_bytes: 256 << 10, tail_bytes: 16 << 10, index_bytes: 1 << 20, ..LocalSettings::default() }
}

async fn backend(root: impl Into<PathBuf>, settings: LocalSettings, disk: Arc<dyn Disk>) -> LocalBackend {
    LocalBackend::open(root, settings, disk, Clock::system(), Random::system()).await.unwrap()
}

fn key(log: u64) -> SegmentKey {
    SegmentKey { log: LogId(log), segment: 1 }
}

fn entry(key: SegmentKey, number: u64) -> Bytes {
    Bytes::from(format!("entry {number} of {key}"))
}

/// Reads all there is, checks every entry, and says how many there were.
async fn read_all(
    backend: &LocalBackend,
    key: SegmentKey,
    placement: &Placement,
    end: Option<u64>,
) -> Result<u64, StoreError> {
    let reader = backend.open(key, placement, end).await?;
    let mut next = 0;
    loop {
        let entries = reader.read(next, 1_000).await?;
        if entries.is_empty() {
            return Ok(next);
        }
        for bytes in entries {
            assert_eq!(bytes, entry(key, next));
            next += 1;
        }
    }
}

/// A process with one open segment, of log 1, on a disk that can fail.
struct One {
    disk: FaultyDisk,
    backend: LocalBackend,
    writer: Arc<dyn SegmentWriter>,
    owner: Owner,
}

impl One {
    async fn new(settings: LocalSettings) -> Self {
        let disk = FaultyDisk::default();
        let backend = backend(ROOT, settings, Arc::new(disk.clone())).await;
        let owner = Owner::default();
        let writer = backend.create(key(1), Epoch(1), Arc::new(owner.clone())).await.unwrap();
        Self { disk, backend, writer, owner }
    }

    async fn create(&self, log: u64) -> (Arc<dyn SegmentWriter>, Owner) {
        let owner = Owner::default();
        (self.backend.create(key(log), Epoch(1), Arc::new(owner.clone())).await.unwrap(), owner)
    }

    fn placement(&self) -> Placement {
        self.writer.placement().clone()
    }

    /// Appends entries as one batch and waits for the ack.
    async fn append(&self, numbers: Range<u64>) {
        let end = numbers.end;
        self.writer.append(numbers.map(|number| entry(key(1), number)).collect()).unwrap();
        self.owner.wait_acked(end).await;
    }
}

/// Processes that share a directory on the real disk.
#[derive(Debug)]
struct Directory {
    dir: TempDir,
}

impl Default for Directory {
    fn default() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }
}

#[async_trait]
impl Medium for Directory {
    async fn process(&self) -> Arc<dyn Backend> {
        Arc::new(backend(self.dir.path(), small(), Arc::new(RealDisk)).await)
    }

    /// Gives up the backend; its writer ends when it has written what is queued. [`Machine`] ends it at once.
    async fn kill(&self, process: Arc<dyn Backend>) {
        drop(process);
    }
}

mod on_the_real_disk {
    crate::conformance_tests!(super::Directory::default());
}

/// Processes on a machine that loses what was not synced.
#[derive(Debug, Default)]
struct Machine {
    disk: FaultyDisk,
    processes: Mutex<Vec<(Arc<dyn Backend>, FaultyDisk)>>,
}

#[async_trait]
impl Medium for Machine {
    async fn process(&self) -> Arc<dyn Backend> {
        let disk = self.disk.process();
        let backend: Arc<dyn Backend> = Arc::new(backend(ROOT, small(), Arc::new(disk.clone())).await);
        self.processes.lock().unwrap().push((backend.clone(), disk));
        backend
    }

    async fn kill(&self, process: Arc<dyn Backend>) {
        let processes = self.processes.lock().unwrap();
        processes.iter().find(|(known, _)| Arc::ptr_eq(known, &process)).unwrap().1.crash();
    }
}

mod on_a_machine_that_crashes {
    crate::conformance_tests!(super::Machine::default());
}
