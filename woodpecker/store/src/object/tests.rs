use std::path::Path;

use bytes::Bytes;
use tempfile::TempDir;
use test_peers::{
    S3,
    s3::{Fault, Op},
};

use super::{
    store::{ObjectStoreSettings, Provider, Secret},
    *,
};
use woodpecker_core::ids::{Epoch, LogId};

use crate::{
    backend::SegmentEnd,
    conformance::{Medium, Owner},
};

mod costs;
mod fencing;
mod reading;
mod reclaiming;

/// A store, and the processes that use it.
#[derive(Debug)]
pub struct Shared {
    store: Arc<dyn ObjectStore>,
    settings: ObjectSettings,
    processes: Mutex<Vec<(Arc<dyn Backend>, Tasks)>>,
    peer: Option<S3>,
    directory: Option<TempDir>,
}

impl Shared {
    fn on(settings: &ObjectStoreSettings, peer: Option<S3>, directory: Option<TempDir>) -> Self {
        Self {
            store: settings.open().unwrap(),
            settings: ObjectSettings::default(),
            processes: Mutex::default(),
            peer,
            directory,
        }
    }

    fn memory() -> Self {
        Self::on(&ObjectStoreSettings { provider: Provider::Memory, ..ObjectStoreSettings::default() }, None, None)
    }

    fn file() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = Path::join(directory.path(), "bucket");
        let settings = ObjectStoreSettings { provider: Provider::File, path, ..ObjectStoreSettings::default() };
        Self::on(&settings, None, Some(directory))
    }

    async fn s3(faults: impl FnOnce(&S3)) -> Self {
        let s3 = S3::start("bucket").await.unwrap();
        faults(&s3);
        Self::on(&s3_settings(&s3), Some(s3), None)
    }

    fn with(mut self, change: impl FnOnce(&mut ObjectSettings)) -> Self {
        change(&mut self.settings);
        self
    }

    fn peer(&self) -> &S3 {
        self.peer.as_ref().unwrap()
    }

    fn backend(&self) -> (Arc<ObjectBackend>, Tasks) {
        let tasks = Tasks::new();
        let (clock, random) = (Clock::system(), Random::system());
        let backend = ObjectBackend::new(Arc::clone(&self.store), self.settings.clone(), clock, random, tasks.clone());
        (Arc::new(backend), tasks)
    }
}

fn s3_settings(s3: &S3) -> ObjectStoreSettings {
    ObjectStoreSettings {
        bucket: "bucket".to_owned(),
        endpoint: s3.endpoint(),
        region: S3::REGION.to_owned(),
        access_key: S3::ACCESS_KEY.to_owned(),
        secret_key: Secret(S3::SECRET_KEY.to_owned()),
        allow_http: true,
        ..ObjectStoreSettings::default()
    }
}

#[async_trait]
impl Medium for Shared {
    async fn process(&self) -> Arc<dyn Backend> {
        let (backend, tasks) = self.backend();
        let backend: Arc<dyn Backend> = backend;
        self.processes.lock().unwrap().push((Arc::clone(&backend), tasks));
        backend
    }

    async fn kill(&self, process: Arc<dyn Backend>) {
        let processes = self.processes.lock().unwrap();
        let (_, tasks) = processes.iter().find(|(known, _)| Arc::ptr_eq(known, &process)).unwrap();
        tasks.stop();
    }
}

/// A segment being written, with its owner.
struct Log {
    key: SegmentKey,
    owner: Owner,
    writer: Arc<dyn SegmentWriter>,
}

impl Log {
    async fn create(backend: &Arc<ObjectBackend>, log: u64) -> Self {
        let key = SegmentKey { log: LogId(log), segment: 1 };
        let owner = Owner::default();
        let writer = backend.create(key, Epoch(1), Arc::new(owner.clone())).await.unwrap();
        Self { key, owner, writer }
    }

    fn placement(&self) -> &Placement {
        self.writer.placement()
    }

    fn append(&self, entry: impl Into<Bytes>) -> u64 {
        self.writer.append(vec![entry.into()]).unwrap()
    }

    /// Appends one entry and waits until it is acked.
    async fn write(&self, entry: impl Into<Bytes>) {
        let number = self.append(entry);
        self.owner.wait_acked(number + 1).await;
    }

    async fn reader(&self, backend: &Arc<ObjectBackend>, end: Option<u64>) -> Arc<dyn SegmentReader> {
        backend.open(self.key, self.placement(), end).await.unwrap()
    }
}

/// Everything from `from` on, in reads of so many bytes.
async fn read_from(reader: &Arc<dyn SegmentReader>, from: u64, max_bytes: usize) -> Vec<Bytes> {
    let mut all: Vec<Bytes> = Vec::new();
    loop {
        let entries = reader.read(from + all.len() as u64, max_bytes).await.unwrap();
        if entries.is_empty() {
            return all;
        }
        all.extend(entries);
    }
}

fn failing(s3: &S3) {
    for op in Op::ALL {
        s3.faults().chance(op, 0.05, Fault::Refuse(503));
        s3.faults().chance(op, 0.05, Fault::Refuse(500));
        s3.faults().chance(op, 0.05, Fault::LoseAnswer);
        s3.faults().chance(op, 0.05, Fault::Misreport(500));
    }
}

mod on_memory {
    crate::conformance_tests!(super::Shared::memory());
}

mod on_files {
    crate::conformance_tests!(super::Shared::file());
}

mod on_s3 {
    crate::conformance_tests!(super::Shared::s3(|_| ()).await);
}

mod on_failing_s3 {
    crate::conformance_tests!(super::Shared::s3(super::failing).await);
}
