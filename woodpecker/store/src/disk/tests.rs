use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use tempfile::TempDir;
use woodpecker_base::{
    clock::Clock,
    disk::{Disk, RealDisk},
    random::Random,
};

use super::{LocalBackend, LocalSettings};
use crate::{backend::Backend, conformance::Medium};

/// Small enough that tests meet every seam between files.
fn small() -> LocalSettings {
    LocalSettings { file_bytes: 256 << 10, tail_bytes: 16 << 10, index_bytes: 1 << 20, ..LocalSettings::default() }
}

async fn backend(root: impl Into<PathBuf>, settings: LocalSettings, disk: Arc<dyn Disk>) -> LocalBackend {
    LocalBackend::open(root, settings, disk, Clock::system(), Random::system()).await.unwrap()
}

/// Processes that share a directory on the real disk.
#[derive(Debug)]
struct Directory {
    dir: TempDir,
    processes: Mutex<Vec<Arc<dyn Backend>>>,
}

impl Default for Directory {
    fn default() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), processes: Mutex::default() }
    }
}

#[async_trait]
impl Medium for Directory {
    async fn process(&self) -> Arc<dyn Backend> {
        let backend: Arc<dyn Backend> = Arc::new(backend(self.dir.path(), small(), Arc::new(RealDisk)).await);
        self.processes.lock().unwrap().push(backend.clone());
        backend
    }

    async fn kill(&self, process: Arc<dyn Backend>) {
        self.processes.lock().unwrap().retain(|known| !Arc::ptr_eq(known, &process));
    }
}

crate::conformance_tests!(Directory::default());
