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
    /// Until when it gets no new segments, and why.
    excluded: Option<(Instant, String)>,
}

impl Known {
    fn is_excluded(&self, now: Instant) -> bool {
        self.excluded.as_ref().is_some_and(|(until, _)| *until > now)
    }

    fn forgive(&mut self) {
        (self.failures, self.excluded) = (0, None);
    }

    /// Why it gets no new segments, if it gets none.
    fn why_not(&self, now: Instant) -> Option<String> {
        match (self.record.state, &self.excluded) {
            _ if !self.registered => Some("is not registered".to_owned()),
            (StoreState::Active | StoreState::Slowed, Some((until, why))) if *until > now => {
                Some(format!("is left out for now: {why}"))
            }
            (StoreState::Active | StoreState::Slowed, _) => None,
            (state, _) => Some(format!("says that it is {state:?}")),
        }
    }
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
        let usable = stores.values().filter(|known| known.registered && !known.is_excluded(now));
        policy.select(usable.map(|known| &known.record), &mut |below| rng.u64(..below.max(1)))
    }

    /// What keeps stores from getting new segments, a clause for each of them.
    pub fn why_not(&self) -> String {
        let now = self.clock.now();
        let why_not = |known: &Known| Some((known.record.address.clone(), known.why_not(now)?));
        let reasons: Vec<_> = self.stores().values().filter_map(why_not).collect();
        reasons.into_iter().map(|(address, why)| format!("; {address} {why}")).collect()
    }

    /// The store failed: it gets no new segments for a while, at least so long. What comes while it gets none is of the
    /// same failure, of which each of its segments may tell.
    pub fn exclude(&self, id: StoreId, at_least: Duration, why: &str) {
        let (first, limit) = EXCLUDED;
        let mut backoff = Backoff::new(self.clock.clone(), &self.random, first, limit);
        let now = self.clock.now();
        let mut stores = self.stores();
        let Some(known) = stores.get_mut(&id).filter(|known| !known.is_excluded(now + at_least)) else { return };
        let pause = if known.is_excluded(now) {
            at_least
        } else {
            known.failures = known.failures.saturating_add(1);
            backoff.delay_after(known.failures - 1).max(at_least)
        };
        known.excluded = Some((now + pause, why.to_owned()));
        tracing::warn!(store = %id, why, ?pause, "a log store gets no new segments for now");
        metrics::counter!("woodpecker_quorum_store_exclusions_total").increment(1);
    }

    /// The store did what it was asked.
    pub fn succeeded(&self, id: StoreId) {
        if let Some(known) = self.stores().get_mut(&id) {
            known.forgive();
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
                // A store that comes back, or has room again, has a new chance at once.
                let had_no_room = known.record.state == StoreState::ReadOnly && record.state != StoreState::ReadOnly;
                if !known.registered || known.record.address != record.address || had_no_room {
                    known.forgive();
                }
                (known.record, known.registered) = (record, true);
            }
            None => {
                let known = Known { record, registered: true, failures: 0, excluded: None };
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

#[cfg(test)]
mod tests {
    use woodpecker_base::metadata::{MemoryStore, Txn};

    use super::*;

    const PREFIX: &str = "test";
    const ID: StoreId = StoreId(1);

    fn record(state: StoreState) -> StoreRecord {
        let place = String::new();
        let (region, zone, resource_group) = (place.clone(), place.clone(), place);
        StoreRecord { id: ID, address: "store-1:18080".to_owned(), region, zone, resource_group, load: 0, state }
    }

    async fn put(metadata: &MemoryStore, state: StoreState) {
        let put = Txn::new().put(store_record::key(PREFIX, ID), record(state).encode());
        metadata.commit(put).await.unwrap();
    }

    /// A directory that knows one store.
    async fn directory(tasks: &Tasks) -> (Arc<MemoryStore>, Arc<Directory>) {
        let metadata = Arc::new(MemoryStore::new(Clock::system()));
        put(&metadata, StoreState::Active).await;
        let directory = Directory::start(metadata.clone(), PREFIX, Clock::system(), Random::seeded(7), tasks);
        assert!(directory.listed(Duration::from_secs(5)).await);
        (metadata, directory)
    }

    async fn until_why_not(directory: &Directory, why: &str) {
        let told = async {
            while directory.why_not() != why {
                directory.clock.sleep(Duration::from_millis(1)).await;
            }
        };
        let told = directory.clock.timeout(Duration::from_secs(5), told).await;
        assert!(told.is_ok(), "{:?} and not {why:?}", directory.why_not());
    }

    fn left_out(directory: &Directory) -> Option<Duration> {
        let (stores, now) = (directory.stores(), directory.clock.now());
        let known = stores.get(&ID).filter(|known| known.is_excluded(now))?;
        known.excluded.as_ref().map(|(until, _)| *until - now)
    }

    #[tokio::test(start_paused = true)]
    async fn one_failure_that_many_segments_tell_of_is_one() {
        let tasks = Tasks::new();
        let (_metadata, directory) = directory(&tasks).await;
        for _ in 0..1_000 {
            directory.exclude(ID, Duration::ZERO, "its disk failed");
        }
        assert!(left_out(&directory).unwrap() <= EXCLUDED.0);
        directory.exclude(ID, Duration::from_secs(5), "it is full for so long at least");
        assert_eq!(left_out(&directory), Some(Duration::from_secs(5)));
        directory.exclude(ID, Duration::ZERO, "no shorter");
        assert_eq!(left_out(&directory), Some(Duration::from_secs(5)));
        directory.clock.sleep(Duration::from_secs(6)).await;
        assert_eq!(left_out(&directory), None);
        directory.exclude(ID, Duration::ZERO, "it failed again");
        assert!(left_out(&directory).unwrap() >= EXCLUDED.0, "the second failure in a row");
    }

    #[tokio::test]
    async fn a_store_that_gets_no_segments_is_named_with_the_reason_and_one_that_has_room_again_gets_some_at_once() {
        let tasks = Tasks::new();
        let (metadata, directory) = directory(&tasks).await;
        assert_eq!(directory.why_not(), "");
        directory.exclude(ID, Duration::from_secs(60), "no space");
        assert_eq!(directory.why_not(), "; store-1:18080 is left out for now: no space");
        put(&metadata, StoreState::ReadOnly).await;
        until_why_not(&directory, "; store-1:18080 says that it is ReadOnly").await;
        put(&metadata, StoreState::Active).await;
        until_why_not(&directory, "").await;
        assert_eq!(left_out(&directory), None);
        metadata.commit(Txn::new().delete(store_record::key(PREFIX, ID))).await.unwrap();
        until_why_not(&directory, "; store-1:18080 is not registered").await;
    }
}
