//! Processes that share a metadata store and a medium, and what tests do with logs.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use object_store::{ObjectStore, memory::InMemory};
use tempfile::TempDir;
use test_peers::S3;
use woodpecker::{
    Client, Entry, EntryId, Log, Maintenance, MaintenanceSettings, Pass, Position, Reader, Settings, Writer,
};
use woodpecker_base::{
    clock::Clock,
    disk::RealDisk,
    metadata::{Interfered, Interference, MemoryStore, MetadataStore},
    net::tcp_connector,
    random::Random,
    tasks::Tasks,
};
use woodpecker_server::Quota;
use woodpecker_store::{
    backend::Backend,
    disk::{LocalBackend, LocalSettings},
    memory::{MemoryBackend, MemoryMedium},
    object::{
        ObjectBackend, ObjectSettings,
        store::{ObjectStoreSettings, Secret},
    },
    quorum::{
        QuorumBackend, QuorumSettings,
        selection::{Affinity, SelectionPolicy, Spread, Strategy},
    },
    seal::{SealedSettings, SealedStore},
};

use crate::site::Site;

/// How long anything that should happen may take.
pub const SOON: Duration = Duration::from_secs(20);
/// Where log stores register.
const STORES: &str = "by-dev/woodpecker";
/// The name of the instance there.
const INSTANCE: &str = "instance";
/// How long nothing must happen to believe that it will not.
pub const QUIET: Duration = Duration::from_millis(200);

/// What outlives processes.
pub struct World {
    pub metadata: MemoryStore,
    medium: Medium,
    /// Where sealed segments go.
    pub objects: Arc<dyn ObjectStore>,
    random: Random,
    pub segment_bytes: u64,
    pub segment_age: Duration,
    pub in_flight_bytes: usize,
    /// Of one object of a sealed segment.
    pub run_bytes: usize,
}

enum Medium {
    Memory(MemoryMedium),
    Local(TempDir),
    Object {
        _peer: Option<S3>,
        store: Arc<dyn ObjectStore>,
    },
    /// Segments have three; their registrations.
    LogStores {
        sites: tokio::sync::Mutex<Vec<Site>>,
        registry: MemoryStore,
    },
}

/// A process: a client with its own volume and its own connection to the metadata store.
pub struct Process {
    pub client: Client,
    pub tasks: Tasks,
    pub metadata: MemoryStore,
}

impl World {
    pub async fn memory() -> Self {
        Self::new(Medium::Memory(MemoryMedium::new()))
    }

    pub async fn local() -> Self {
        Self::new(Medium::Local(tempfile::tempdir().expect("directory")))
    }

    pub async fn object() -> Self {
        let (mut world, s3) = Self::bucket().await;
        if let Medium::Object { _peer: peer, .. } = &mut world.medium {
            *peer = Some(s3);
        }
        world
    }

    /// On three log stores that listen on sockets.
    pub async fn quorum() -> Self {
        Self::stores(3, Quota::default()).await
    }

    /// On so many log stores, each of which the instance may use so much of.
    pub async fn stores(count: usize, quota: Quota) -> Self {
        let registry = MemoryStore::new(Clock::system());
        let quotas = BTreeMap::from([(INSTANCE.to_owned(), quota)]);
        let sites = join_all((0..count).map(|_| Site::new(Arc::new(registry.clone()), quotas.clone()))).await;
        Self::new(Medium::LogStores { sites: tokio::sync::Mutex::new(sites), registry })
    }

    /// The log stores, to do things to, and where they register.
    pub async fn sites(&self) -> (tokio::sync::MutexGuard<'_, Vec<Site>>, Arc<MemoryStore>) {
        match &self.medium {
            Medium::LogStores { sites, registry } => (sites.lock().await, Arc::new(registry.clone())),
            _ => panic!("no log stores"),
        }
    }

    /// On objects, with the store to do things to.
    pub async fn bucket() -> (Self, S3) {
        let s3 = S3::start("bucket").await.expect("peer starts");
        let settings = ObjectStoreSettings {
            bucket: "bucket".to_owned(),
            endpoint: s3.endpoint(),
            region: S3::REGION.to_owned(),
            access_key: S3::ACCESS_KEY.to_owned(),
            secret_key: Secret(S3::SECRET_KEY.to_owned()),
            allow_http: true,
            ..ObjectStoreSettings::default()
        };
        let store = settings.open().expect("store opens");
        (Self::new(Medium::Object { _peer: None, store }), s3)
    }

    /// The data directory, if there is one.
    pub fn directory(&self) -> Option<&Path> {
        match &self.medium {
            Medium::Local(directory) => Some(directory.path()),
            _ => None,
        }
    }

    fn new(medium: Medium) -> Self {
        let objects = match &medium {
            Medium::Object { store, .. } => store.clone(),
            _ => Arc::new(InMemory::new()),
        };
        Self {
            metadata: MemoryStore::new(Clock::system()),
            medium,
            objects,
            random: Random::seeded(7),
            segment_bytes: 64 << 20,
            segment_age: Duration::from_secs(3600),
            in_flight_bytes: 16 << 20,
            run_bytes: 64 << 10,
        }
    }

    /// Another process.
    pub async fn process(&self) -> Process {
        let metadata = self.metadata.connect();
        let tasks = Tasks::new();
        let backend = self.backend(&tasks).await;
        self.process_with(Arc::new(metadata.clone()), metadata, backend, tasks)
    }

    /// Another process, with something between it and the metadata store.
    pub async fn process_behind<I: Interference>(&self, by: I) -> (Process, Arc<Interfered<I>>) {
        let (tasks, metadata) = (Tasks::new(), self.metadata.connect());
        let backend = self.backend(&tasks).await;
        let store = Arc::new(Interfered::new(Arc::new(metadata.clone()), by));
        (self.process_with(store.clone(), metadata, backend, tasks), store)
    }

    /// A process's view of the medium.
    pub async fn backend(&self, tasks: &Tasks) -> Arc<dyn Backend> {
        match &self.medium {
            Medium::Memory(medium) => Arc::new(MemoryBackend::new(medium.clone(), tasks)),
            Medium::Local(directory) => {
                let settings = LocalSettings { file_bytes: 4 << 20, ..LocalSettings::default() };
                let (disk, random) = (Arc::new(RealDisk), Random::seeded(self.random.u64()));
                let backend = LocalBackend::open(directory.path(), settings, disk, Clock::system(), random);
                Arc::new(backend.await.expect("directory opens"))
            }
            Medium::Object { store, .. } => {
                // One append after another takes as many PUTs: the tests would wait for the budget.
                let settings = ObjectSettings { puts_per_second: 100_000, ..ObjectSettings::default() };
                let random = Random::seeded(self.random.u64());
                Arc::new(ObjectBackend::new(store.clone(), settings, Clock::system(), random, tasks.clone()))
            }
            Medium::LogStores { registry, .. } => {
                let strategy = Strategy::Spread { zone: Spread::Any, resource_group: Spread::Any, region: Spread::Any };
                let selection = SelectionPolicy { replicas: 3, strategy, affinity: Affinity::Soft };
                // Nobody waits for what a process does by itself.
                let settings = QuorumSettings {
                    mending: Duration::from_millis(200),
                    quota_patience: Duration::from_millis(500),
                    ..QuorumSettings::new(INSTANCE, selection)
                };
                let edges = (Clock::system(), Random::seeded(self.random.u64()));
                let metadata = Arc::new(registry.connect());
                Arc::new(QuorumBackend::start(settings, metadata, STORES, tcp_connector(), edges, tasks))
            }
        }
    }

    /// A process with something between it and the world.
    pub fn process_with(
        &self,
        store: Arc<dyn MetadataStore>,
        metadata: MemoryStore,
        backend: Arc<dyn Backend>,
        tasks: Tasks,
    ) -> Process {
        let settings = self.settings(&*backend);
        let backends = BTreeMap::from([(backend.name().to_owned(), backend)]);
        self.process_of(settings, store, metadata, backends, tasks)
    }

    /// Of a process that writes new segments to this medium.
    pub fn settings(&self, backend: &dyn Backend) -> Settings {
        Settings {
            metadata_prefix: "test/woodpecker".to_owned(),
            backend: backend.name().to_owned(),
            segment_bytes: self.segment_bytes,
            segment_age: self.segment_age,
            in_flight_bytes: self.in_flight_bytes,
            read_ahead_bytes: Settings::READ_AHEAD_BYTES,
        }
    }

    /// A process with these media.
    pub fn process_of(
        &self,
        settings: Settings,
        store: Arc<dyn MetadataStore>,
        metadata: MemoryStore,
        backends: BTreeMap<String, Arc<dyn Backend>>,
        tasks: Tasks,
    ) -> Process {
        let random = Random::seeded(self.random.u64());
        let sealed = SealedSettings { run_bytes: self.run_bytes, ..SealedSettings::default() };
        let sealed = SealedStore::new(self.objects.clone(), sealed, Clock::system(), random.clone());
        let client = Client::new(settings, store, backends, Clock::system(), random, tasks.clone()).with_sealed(sealed);
        Process { client, tasks, metadata }
    }
}

impl Process {
    pub async fn log(&self, name: &str) -> Log {
        self.client.open_or_create_log(name).await.expect("log opens")
    }

    /// Maintains all logs now, as if everything were old enough.
    pub async fn maintain(&self) -> Pass {
        self.maintain_with(eager()).await
    }

    pub async fn maintain_with(&self, settings: MaintenanceSettings) -> Pass {
        soon("maintenance", Maintenance::new(&self.client, settings).pass()).await.expect("a pass ends")
    }

    /// Ends it as a crash does: nothing is written or closed any more.
    pub fn kill(self) {
        self.metadata.set_reachable(false);
        self.tasks.stop();
    }
}

/// Nothing waits to be done.
pub fn eager() -> MaintenanceSettings {
    let none = Duration::ZERO;
    MaintenanceSettings { seal_after: none, keep_truncated: none, ..MaintenanceSettings::default() }
}

/// The future's output, which must come soon.
#[track_caller]
pub fn soon<F: Future>(what: &str, future: F) -> impl Future<Output = F::Output> {
    let at = std::panic::Location::caller();
    let what = what.to_owned();
    async move {
        let answer = Clock::system().timeout(SOON, future).await;
        answer.unwrap_or_else(|_| panic!("{what}: not within {SOON:?}, at {at}"))
    }
}

/// Nothing comes of the future for a while.
pub async fn quiet<F: Future>(future: F) -> bool {
    Clock::system().timeout(QUIET, future).await.is_err()
}

pub fn payload(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// Appends one entry and waits until it is durable.
pub async fn append(writer: &Writer, text: &str) -> EntryId {
    let appended = soon("append", writer.append(vec![payload(text)])).await.expect("append succeeds");
    assert_eq!(appended.count, 1);
    appended.first
}

/// Appends and waits for one after the other, with the ids.
pub async fn append_all(writer: &Writer, name: &str, count: usize) -> Vec<(EntryId, String)> {
    let mut written = Vec::with_capacity(count);
    for number in 0..count {
        let text = format!("{name}-{number}");
        written.push((append(writer, &text).await, text));
    }
    written
}

pub fn text(entry: &Entry) -> (EntryId, String) {
    (entry.id, String::from_utf8(entry.payload.to_vec()).expect("text"))
}

/// Exactly `count` entries; their ids rise.
pub async fn read(reader: &mut Reader, count: usize) -> Vec<(EntryId, String)> {
    let mut entries: Vec<(EntryId, String)> = Vec::new();
    while entries.len() < count {
        let some = soon(&format!("entry {} of {count}", entries.len()), reader.next()).await.expect("read succeeds");
        assert!(!some.is_empty(), "an answer has at least one entry");
        entries.extend(some.iter().map(text));
    }
    assert_eq!(entries.len(), count, "nothing but what was written");
    assert!(entries.is_sorted_by(|a, b| a.0 < b.0), "ids rise");
    entries
}

/// All that is in the log, until its tail.
pub async fn read_all(log: &Log) -> Vec<(EntryId, String)> {
    let mut entries: Vec<(EntryId, String)> = Vec::new();
    let Some(last) = log.last_entry().await.expect("last entry") else { return entries };
    let mut reader = log.reader(Position::Earliest);
    while entries.last().is_none_or(|(id, _)| *id < last) {
        let some = soon("everything", reader.next()).await.expect("read succeeds");
        entries.extend(some.iter().map(text));
    }
    assert!(entries.is_sorted_by(|a, b| a.0 < b.0), "ids rise");
    entries
}
