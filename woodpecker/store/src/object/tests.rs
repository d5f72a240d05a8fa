use std::path::Path;

use tempfile::TempDir;
use test_peers::{
    S3,
    s3::{Fault, Op},
};

use super::{
    store::{ObjectStoreSettings, Provider, Secret},
    *,
};
use crate::conformance::Medium;

/// A store, and the processes that use it.
#[derive(Debug)]
pub struct Shared {
    store: Arc<dyn ObjectStore>,
    settings: ObjectSettings,
    processes: Mutex<Vec<(Arc<dyn Backend>, Tasks)>>,
    _peer: Option<S3>,
    _directory: Option<TempDir>,
}

impl Shared {
    fn on(settings: &ObjectStoreSettings, peer: Option<S3>, directory: Option<TempDir>) -> Self {
        Self {
            store: settings.open().unwrap(),
            settings: ObjectSettings::default(),
            processes: Mutex::default(),
            _peer: peer,
            _directory: directory,
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
