//! Which log stores there are, where they are, and which of them failed lately.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use tokio::sync::watch;
use woodpecker_base::{
    backoff::Backoff,
    clock::{Clock, Instant},
    metadata::{KeyValue, MetadataError, MetadataStore, Watch, WatchEvent},
    random::Random,
    tasks::Tasks,
};
use woodpecker_core::{
    ids::{ReplicaSet, StoreId},
    quorum::{
        selection::{SelectionPolicy, Unplaceable},
        store_record::{self, StoreRecord, StoreState},
    },
};

/// How long a store that failed is left out: it doubles with each failure in a row.
const EXCLUDED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// The log stores as this process knows them. The last view stands while the metadata store is away.
#[derive(Debug)]
pub(super) struct Directory {
    clock: Clock,
    random: Random,
    stores: Mutex<BTreeMap<StoreId, Known>>,
    listed: watch::Sender<bool>,
}

#[derive(Debug)]
struct Known {
    /// The last that was read. An address outlives its registration: the store may only have lost sight of the metadata.
    record: StoreRecord,
    registered: bool,
    failures: u32,
    excluded_until: Option<Instant>,
}

impl Directory {
    /// Follows the records under `prefix`, in `tasks`.
    pub fn start(
        metadata: Arc<dyn MetadataStore>,
        prefix: &str,
        clock: Clock,
        random: Random,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let directory = Arc::new(Self { clock, random, stores: Mutex::default(), listed: watch::Sender::new(false) });
        tasks.spawn_until_stopped(follow(directory.clone(), metadata, store_record::keys(prefix)));
        directory
    }

    fn stores(&self) -> MutexGuard<'_, BTreeMap<StoreId, Known>> {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the stores were listed once, at most so long; whether they were.
    pub async fn listed(&self, limit: Duration) -> bool {
        let mut listed = self.listed.subscribe();
        self.clock.timeout(limit, listed.wait_for(|listed| *listed)).await.is_ok()
    }

    pub fn address(&self, id: StoreId) -> Option<String> {
        self.stores().get(&id).map(|known| known.record.address.clone())
    }

    /// How far a store is from here: 0 in this zone, 1 in this region, 2 elsewhere or unknown.
    pub fn distance(&self, id: StoreId, region: &str, zone: &str) -> u8 {
        match self.stores().get(&id) {
            Some(Known { record, .. }) if record.region == region && record.zone == zone => 0,
            Some(Known { record, .. }) if record.region == region => 1,
            _ => 2,
        }
    }

    /// Whether its lease lives.
    pub fn is_registered(&self, id: StoreId) -> bool {
        self.stores().get(&id).is_some_and(|known| known.registered)
    }

    /// All whose lease lives.
    pub fn registered(&self) -> Vec<StoreId> {
        let stores = self.stores();
        stores.iter().filter(|(_, known)| known.registered).map(|(id, _)| *id).collect()
    }

    /// Those that are being given up.
    pub fn leaving(&self) -> BTreeSet<StoreId> {
        let is_leaving =
            |known: &Known| matches!(known.record.state, StoreState::Decommissioning | StoreState::Decommissioned);
        self.stores().iter().filter(|(_, known)| is_leaving(known)).map(|(id, _)| *id).collect()
    }

    /// Chooses stores for a new segment from those that are registered and did not fail lately.
    pub fn select(&self, policy: &SelectionPolicy) -> Result<ReplicaSet, Unplaceable> {
        let (now, mut rng) = (self.clock.now(), self.random.fork());
        let stores = self.stores();
        let usable =
            stores.values().filter(|known| known.registered && known.excluded_until.is_none_or(|at| at <= now));
        policy.select(usable.map(|known| &known.record), &mut |below| rng.u64(..below.max(1)))
    }

    /// The store failed: it gets no new segments for a while, at least so long.
    pub fn exclude(&self, id: StoreId, at_least: Duration, why: &str) {
        let (first, limit) = EXCLUDED;
        let mut backoff = Backoff::new(self.clock.clone(), &self.random, first, limit);
        let mut stores = self.stores();
        let Some(known) = stores.get_mut(&id) else { return };
        let pause = backoff.delay_after(known.failures).max(at_least);
        known.failures = known.failures.saturating_add(1);
        known.excluded_until = Some(self.clock.now() + pause);
        tracing::warn!(store = %id, why, ?pause, "a log store gets no new segments for now");
        metrics::counter!("woodpecker_quorum_store_exclusions_total").increment(1);
    }

    /// The store did what it was asked.
    pub fn succeeded(&self, id: StoreId) {
        if let Some(known) = self.stores().get_mut(&id) {
            (known.failures, known.excluded_until) = (0, None);
        }
    }

    fn put(&self, item: &KeyValue) {
        let record = match StoreRecord::decode(&item.value) {
            Ok(record) => record,
            Err(error) => return tracing::warn!(key = item.key, %error, "skipped a log store that cannot be read"),
        };
        let mut stores = self.stores();
        match stores.get_mut(&record.id) {
            Some(known) => {
                // A store that comes back has a new chance at once.
                if !known.registered || known.record.address != record.address {
                    (known.failures, known.excluded_until) = (0, None);
                }
                (known.record, known.registered) = (record, true);
            }
            None => {
                let known = Known { record, registered: true, failures: 0, excluded_until: None };
                stores.insert(known.record.id, known);
            }
        }
    }

    fn gone(&self, is_gone: impl Fn(&StoreId) -> bool) {
        for (_, known) in self.stores().iter_mut().filter(|(id, _)| is_gone(id)) {
            known.registered = false;
        }
    }

    fn apply(&self, event: WatchEvent, keys: &str) {
        match event {
            WatchEvent::Put(item) => self.put(&item),
            WatchEvent::Delete { key, .. } => {
                let id: Option<StoreId> = key.strip_prefix(keys).and_then(|id| id.parse().ok());
                self.gone(|known| Some(*known) == id);
            }
            WatchEvent::Resync(snapshot) => {
                let left = |id: &StoreId| !snapshot.items.iter().any(|item| item.key == format!("{keys}{id}"));
                self.gone(left);
                for item in &snapshot.items {
                    self.put(item);
                }
                self.listed.send_replace(true);
            }
        }
    }
}

async fn follow(directory: Arc<Directory>, metadata: Arc<dyn MetadataStore>, keys: String) {
    let mut backoff = Backoff::new(directory.clock.clone(), &directory.random, RETRY.0, RETRY.1);
    loop {
        match start(&directory, &metadata, &keys).await {
            Ok(mut watch) => {
                backoff.reset();
                while let Some(event) = watch.next().await {
                    match event {
                        Ok(event) => directory.apply(event, &keys),
                        Err(error) => tracing::debug!(%error, "the watch of log stores is interrupted"),
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "the log stores cannot be listed"),
        }
        backoff.wait().await;
    }
}

async fn start(directory: &Directory, metadata: &Arc<dyn MetadataStore>, keys: &str) -> Result<Watch, MetadataError> {
    let snapshot = metadata.list(keys).await?;
    let watch = metadata.watch(keys, snapshot.revision + 1).await?;
    directory.apply(WatchEvent::Resync(snapshot), keys);
    Ok(watch)
}
