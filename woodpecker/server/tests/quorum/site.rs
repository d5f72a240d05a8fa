//! A log store in this process, on a disk of its own. The tests of the log engine take it from here too.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use woodpecker_base::{
    clock::Clock,
    disk::RealDisk,
    metadata::{MemoryStore, RedbStore},
    net::Listener,
    random::Random,
    tasks::Tasks,
};
use woodpecker_server::{LogStore, Mark, Parts, Quota, Settings, Watermarks};

const LIMIT: Duration = Duration::from_secs(30);

/// A log store that can be stopped and started again on its disk.
pub struct Site {
    dir: TempDir,
    quotas: BTreeMap<String, Quota>,
    running: Option<Running>,
}

struct Running {
    store: LogStore,
    facts: Arc<RedbStore>,
    tasks: Tasks,
    stop: CancellationToken,
}

impl Site {
    /// A store with an empty disk, registered. Namespaces that are named may use only so much.
    pub async fn new(metadata: Arc<MemoryStore>, quotas: BTreeMap<String, Quota>) -> Self {
        let mut site = Self { dir: tempfile::tempdir().unwrap(), quotas, running: None };
        site.start(metadata).await;
        site
    }

    pub async fn start(&mut self, metadata: Arc<MemoryStore>) {
        let facts = Arc::new(RedbStore::open(&self.dir.path().join("store.redb"), Clock::system()).await.unwrap());
        // The machine that runs the tests may be almost full.
        let never = Mark { used: 1.0, free: 0 };
        let settings = Settings {
            watermarks: Watermarks { soft: never, hard: never },
            quiet: Duration::from_millis(20),
            session_ttl: Duration::from_secs(2),
            quotas: self.quotas.clone(),
            ..Settings::default()
        };
        let parts = Parts {
            path: self.dir.path().to_owned(),
            disk: Arc::new(RealDisk),
            facts: facts.clone(),
            clock: Clock::system(),
            random: Random::system(),
        };
        let store = LogStore::start(settings, parts).await.unwrap();
        let listener = Listener::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let (tasks, stop) = (Tasks::new(), CancellationToken::new());
        let (serving, token) = (store.clone(), stop.clone());
        tasks.spawn(async move { serving.run(listener, metadata, token).await.unwrap() });
        store.until_registered().await;
        self.running = Some(Running { store, facts, tasks, stop });
    }

    /// What it says of itself, while it runs.
    pub fn store(&self) -> &LogStore {
        &self.running.as_ref().unwrap().store
    }

    /// Ends it in good order.
    pub async fn stop(&mut self) {
        let Running { store, mut facts, tasks, stop } = self.running.take().unwrap();
        stop.cancel();
        assert!(tasks.drain(&Clock::system(), LIMIT).await, "the store did not stop");
        drop(store);
        let closed = async {
            loop {
                match Arc::try_unwrap(facts) {
                    Ok(facts) => return facts.close().await,
                    Err(shared) => facts = shared,
                }
                Clock::system().sleep(Duration::from_millis(1)).await;
            }
        };
        Clock::system().timeout(LIMIT, closed).await.expect("the facts are closed");
    }
}
