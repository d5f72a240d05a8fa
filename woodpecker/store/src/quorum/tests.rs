mod appending;
mod fake;
mod losing;
mod nearness;
mod recovering;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use woodpecker_base::{
    clock::Clock,
    metadata::{MemoryStore, MetadataStore, Txn},
    net::tcp_connector,
    random::Random,
    tasks::Tasks,
};
use woodpecker_core::{
    ids::{Epoch, LogId, Placement, ReplicaSet, SegmentKey, StoreId},
    quorum::{
        selection::{Affinity, SelectionPolicy, Spread, Strategy},
        store_record::{self, StoreRecord, StoreState},
    },
};

use super::{QuorumBackend, QuorumSettings};
use crate::{
    backend::{Backend, SegmentWriter, StoreError},
    conformance::{Medium, Owner},
};
use fake::FakeStore;

const PREFIX: &str = "test/woodpecker";
const LIMIT: Duration = Duration::from_secs(20);

/// Log stores, and the processes that use them.
#[derive(Debug)]
struct World {
    metadata: Arc<MemoryStore>,
    stores: Mutex<BTreeMap<StoreId, Arc<FakeStore>>>,
    processes: Mutex<Vec<(Arc<dyn Backend>, Tasks)>>,
}

impl World {
    async fn new(stores: u128) -> Self {
        let world = Self::empty();
        for id in 1..=stores {
            world.add(id).await;
        }
        world
    }

    fn empty() -> Self {
        let metadata = Arc::new(MemoryStore::new(Clock::system()));
        Self { metadata, stores: Mutex::default(), processes: Mutex::default() }
    }

    async fn add(&self, id: u128) {
        let (store, address) = FakeStore::start(id).await;
        self.register(store.id, address).await;
        self.stores.lock().unwrap().insert(store.id, store);
    }

    async fn register(&self, id: StoreId, address: String) {
        let record = StoreRecord {
            id,
            address,
            region: String::new(),
            zone: format!("zone-{}", id.0),
            resource_group: String::new(),
            load: 0,
            state: StoreState::Active,
        };
        let put = Txn::new().put(store_record::key(PREFIX, id), record.encode());
        self.metadata.commit(put).await.unwrap();
    }

    fn store(&self, id: StoreId) -> Arc<FakeStore> {
        self.stores.lock().unwrap().get(&id).unwrap().clone()
    }

    /// The store that holds this replica.
    fn replica(&self, placement: &Placement, replica: usize) -> Arc<FakeStore> {
        let Placement::Replicas(set) = placement else { panic!("{placement}") };
        self.store(set.stores()[replica])
    }

    fn backend(&self, change: impl FnOnce(&mut QuorumSettings)) -> (Arc<QuorumBackend>, Tasks) {
        let tasks = Tasks::new();
        let strategy = Strategy::Spread { zone: Spread::Any, resource_group: Spread::Any, region: Spread::Any };
        let selection = SelectionPolicy { replicas: 3, strategy, affinity: Affinity::Soft };
        let mut settings = QuorumSettings::new("instance", selection);
        change(&mut settings);
        let edges = (Clock::system(), Random::seeded(7));
        let connector = tcp_connector();
        let backend = QuorumBackend::start(settings, self.metadata.clone(), PREFIX, connector, edges, &tasks);
        (Arc::new(backend), tasks)
    }
}

/// Three stores that are made with the first process, since what makes a medium cannot wait.
#[derive(Debug)]
struct Three {
    world: tokio::sync::OnceCell<World>,
}

#[async_trait]
impl Medium for Three {
    async fn process(&self) -> Arc<dyn Backend> {
        let world = self.world.get_or_init(|| World::new(3)).await;
        let (backend, tasks) = world.backend(|_| ());
        let backend: Arc<dyn Backend> = backend;
        world.processes.lock().unwrap().push((backend.clone(), tasks));
        backend
    }

    async fn kill(&self, process: Arc<dyn Backend>) {
        let processes = self.world.get().unwrap().processes.lock().unwrap();
        let (_, tasks) = processes.iter().find(|(known, _)| Arc::ptr_eq(known, &process)).unwrap();
        tasks.stop();
    }
}

crate::conformance_tests!(Three { world: tokio::sync::OnceCell::new() });

/// A segment that is being written.
struct Open {
    key: SegmentKey,
    owner: Owner,
    writer: Arc<dyn SegmentWriter>,
}

fn key(log: u64) -> SegmentKey {
    SegmentKey { log: LogId(log), segment: 1 }
}

fn entry(number: u64) -> Bytes {
    Bytes::from(format!("entry {number}"))
}

impl Open {
    async fn create(backend: &Arc<QuorumBackend>, log: u64) -> Self {
        let owner = Owner::default();
        let created = backend.create(key(log), Epoch(1), Arc::new(owner.clone()));
        let writer = Clock::system().timeout(LIMIT, created).await.unwrap().unwrap();
        Self { key: key(log), owner, writer }
    }

    fn placement(&self) -> Placement {
        self.writer.placement().clone()
    }

    fn replicas(&self) -> Vec<StoreId> {
        let Placement::Replicas(set) = self.placement() else { panic!("{}", self.placement()) };
        set.stores().to_vec()
    }

    /// Appends entries `from..to`, each when the one before it is acked.
    async fn fill(&self, from: u64, to: u64) {
        for number in from..to {
            assert_eq!(self.writer.append(vec![entry(number)]).unwrap(), number);
            self.owner.wait_acked(number + 1).await;
        }
    }
}

/// Reads a closed segment and compares every entry.
async fn read_all(backend: &Arc<QuorumBackend>, key: SegmentKey, placement: &Placement, end: u64) {
    let reader = backend.open(key, placement, Some(end)).await.unwrap();
    let mut next = 0;
    while next < end {
        let entries = Clock::system().timeout(LIMIT, reader.read(next, 1 << 20)).await.unwrap().unwrap();
        assert!(!entries.is_empty(), "no entry {next} of {end}");
        for bytes in entries {
            assert_eq!(bytes, entry(next));
            next += 1;
        }
    }
}

async fn fence(backend: &Arc<QuorumBackend>, placement: &Placement, epoch: u64) -> Result<u64, StoreError> {
    Clock::system().timeout(LIMIT, backend.fence(key(1), placement, Epoch(epoch))).await.unwrap()
}
