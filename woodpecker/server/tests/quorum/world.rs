//! Log stores with a disk each, the metadata store where they register, and processes that use them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use woodpecker_base::{clock::Clock, metadata::MemoryStore, net::tcp_connector, random::Random, tasks::Tasks};
use woodpecker_core::ids::{Epoch, LogId, Placement, SegmentKey};
use woodpecker_server::Quota;
use woodpecker_store::{
    backend::{Backend, SegmentWriter},
    conformance::Owner,
    quorum::{
        QuorumBackend, QuorumSettings,
        selection::{Affinity, SelectionPolicy, Spread, Strategy},
    },
};

use crate::site::Site;

pub const PREFIX: &str = "by-dev/woodpecker";
pub const LIMIT: Duration = Duration::from_secs(30);

pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match Clock::system().timeout(LIMIT, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what} took longer than {LIMIT:?}"),
    }
}

pub struct World {
    pub metadata: Arc<MemoryStore>,
    /// How many stores a segment has.
    replicas: usize,
    sites: tokio::sync::Mutex<Vec<Site>>,
    processes: Mutex<Vec<(Arc<dyn Backend>, Tasks)>>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("World")
    }
}

impl World {
    /// So many stores; each segment has all of them.
    pub async fn new(stores: usize) -> Self {
        Self::with_quotas(stores, &BTreeMap::new()).await
    }

    /// The same; instances that are named may use only so much of each.
    pub async fn with_quotas(stores: usize, quotas: &BTreeMap<String, Quota>) -> Self {
        let metadata = Arc::new(MemoryStore::new(Clock::system()));
        let mut sites = Vec::new();
        for _ in 0..stores {
            sites.push(Site::new(metadata.clone(), quotas.clone()).await);
        }
        Self { metadata, replicas: stores, sites: tokio::sync::Mutex::new(sites), processes: Mutex::default() }
    }

    pub fn backend(&self) -> (Arc<QuorumBackend>, Tasks) {
        self.backend_of("instance")
    }

    /// A process of that instance.
    pub fn backend_of(&self, instance: &str) -> (Arc<QuorumBackend>, Tasks) {
        let tasks = Tasks::new();
        let strategy = Strategy::Spread { zone: Spread::Any, resource_group: Spread::Any, region: Spread::Any };
        let selection = SelectionPolicy { replicas: self.replicas, strategy, affinity: Affinity::Soft };
        let settings = QuorumSettings::new(instance, selection);
        let edges = (Clock::system(), Random::system());
        let metadata = self.metadata.clone();
        let backend = QuorumBackend::start(settings, metadata, PREFIX, tcp_connector(), edges, &tasks);
        (Arc::new(backend), tasks)
    }

    pub async fn process(&self) -> Arc<dyn Backend> {
        let (backend, tasks) = self.backend();
        let backend: Arc<dyn Backend> = backend;
        self.processes.lock().unwrap().push((backend.clone(), tasks));
        backend
    }

    pub fn kill(&self, process: &Arc<dyn Backend>) {
        let processes = self.processes.lock().unwrap();
        let (_, tasks) = processes.iter().find(|(known, _)| Arc::ptr_eq(known, process)).unwrap();
        tasks.stop();
    }

    /// Stops a store in good order and starts it again.
    pub async fn restart(&self, site: usize) {
        let mut sites = self.sites.lock().await;
        sites[site].stop().await;
        sites[site].start(self.metadata.clone()).await;
    }

    pub async fn stop(&self, site: usize) {
        self.sites.lock().await[site].stop().await;
    }

    pub async fn start(&self, site: usize) {
        self.sites.lock().await[site].start(self.metadata.clone()).await;
    }
}

/// A segment that is being written.
pub struct Open {
    pub key: SegmentKey,
    pub owner: Owner,
    pub writer: Arc<dyn SegmentWriter>,
}

pub fn key(log: u64) -> SegmentKey {
    SegmentKey { log: LogId(log), segment: 1 }
}

pub fn entry(number: u64) -> Bytes {
    Bytes::from(format!("entry {number}"))
}

impl Open {
    pub async fn create(backend: &Arc<QuorumBackend>, log: u64) -> Self {
        let owner = Owner::default();
        let writer = within("create", backend.create(key(log), Epoch(1), Arc::new(owner.clone()))).await.unwrap();
        Self { key: key(log), owner, writer }
    }

    pub fn placement(&self) -> &Placement {
        self.writer.placement()
    }

    pub async fn fill(&self, from: u64, to: u64) {
        for number in from..to {
            assert_eq!(self.writer.append(vec![entry(number)]).unwrap(), number);
            self.owner.wait_acked(number + 1).await;
        }
    }
}

/// Reads what there is from the beginning, up to `end`, and compares every entry.
pub async fn read(backend: &Arc<QuorumBackend>, open: &Open, end: Option<u64>, expected: u64) {
    let reader = backend.open(open.key, open.placement(), end).await.unwrap();
    let mut next = 0;
    while next < expected {
        within("an entry", reader.readable(next)).await;
        for bytes in within("a read", reader.read(next, 1 << 20)).await.unwrap() {
            assert_eq!(bytes, entry(next));
            next += 1;
        }
    }
    assert!(reader.read(expected, 1 << 20).await.unwrap().is_empty());
}
