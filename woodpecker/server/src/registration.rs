//! The store's registration: a record on a lease, by which clients find the store and weigh it. Losing it loses nothing
//! but new segments: appends go on, guarded by fences, and the store registers anew.

use std::{sync::Arc, time::Duration};

use streaming_proto::logstore::State;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use woodpecker_base::{
    backoff::Backoff,
    clock::Clock,
    metadata::{Compare, LeaseId, MetadataError, MetadataStore, Revision, Txn, TxnOutcome},
    random::Random,
};
use woodpecker_core::quorum::store_record::{self, StoreRecord, StoreState};

use crate::{
    settings::Settings,
    store::{Advertised, Store},
};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// Deadline of a farewell that the metadata store does not hear.
const FAREWELL: Duration = Duration::from_secs(2);
/// News of load and state go out no more often than this.
const NEWS_PAUSE: Duration = Duration::from_secs(1);

/// Keeps the store registered.
#[derive(Debug)]
pub struct Registration {
    metadata: Arc<dyn MetadataStore>,
    clock: Clock,
    random: Random,
    ttl: Duration,
    keys: Vec<String>,
    record: StoreRecord,
    news: watch::Receiver<Advertised>,
    /// Whether it is registered at the moment.
    registered: watch::Sender<bool>,
}

/// What one registration holds.
struct Held {
    lease: LeaseId,
    /// When the record was last written, under every key.
    written: Revision,
}

/// Why a registration ended or was not made.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error("{key} is taken by the store at {address}: two stores with one identity, or an earlier run that may live")]
    Taken { key: String, address: String },
    #[error("the record is gone")]
    Gone,
}

impl Registration {
    pub fn new(
        store: &Store,
        address: String,
        metadata: Arc<dyn MetadataStore>,
        random: Random,
        registered: watch::Sender<bool>,
    ) -> Self {
        let Settings { registries, region, zone, resource_group, session_ttl, .. } = &*store.settings;
        let record = StoreRecord {
            id: store.identity,
            address,
            region: region.clone(),
            zone: zone.clone(),
            resource_group: resource_group.clone(),
            load: 0,
            state: StoreState::Active,
        };
        Self {
            metadata,
            clock: store.clock.clone(),
            random,
            ttl: *session_ttl,
            keys: registries.iter().map(|prefix| store_record::key(prefix, store.identity)).collect(),
            record,
            news: store.advertised(),
            registered,
        }
    }

    /// Registers, keeps the lease alive and the record new, registers anew when it is lost; until told to stop.
    pub async fn keep(mut self, stop: CancellationToken) {
        let mut pauses = Backoff::new(self.clock.clone(), &self.random, FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let Some(made) = stop.run_until_cancelled(self.make()).await else { return };
            match made {
                Ok(held) => {
                    self.registered.send_replace(true);
                    pauses.reset();
                    let lease = held.lease;
                    let ended = stop.run_until_cancelled(self.stay(held)).await;
                    self.registered.send_replace(false);
                    let Some(error) = ended else { return self.leave(lease).await };
                    tracing::warn!(%error, "the store's registration is lost; it registers anew, and appends go on");
                }
                Err(error) => tracing::warn!(%error, "the store cannot register for now"),
            }
            if stop.run_until_cancelled(pauses.wait()).await.is_none() {
                return;
            }
        }
    }

    /// Puts the record under every key, if those are free or an earlier run of the store left them.
    async fn make(&mut self) -> Result<Held, Lost> {
        let lease = self.metadata.grant_lease(self.ttl).await?;
        let mut txn = Txn::new();
        for key in &self.keys {
            txn = match self.metadata.get(key).await? {
                None => txn.when(Compare::Absent(key.clone())),
                Some(found) => {
                    let holder = StoreRecord::decode(&found.value).map(|record| record.address).unwrap_or_default();
                    if holder != self.record.address {
                        // Not left to run out: with it nothing was registered.
                        let _unregistered = self.metadata.revoke_lease(lease).await;
                        return Err(Lost::Taken { key: key.clone(), address: holder });
                    }
                    txn.when(Compare::ModRevision(key.clone(), found.mod_revision))
                }
            };
        }
        let written = self.write(txn, lease).await?;
        Ok(Held { lease, written })
    }

    async fn write(&mut self, txn: Txn, lease: LeaseId) -> Result<Revision, Lost> {
        // Told only when it is committed: until then it stays news.
        let told = *self.news.borrow();
        let Advertised { state, load } = told;
        self.record.load = load;
        self.record.state = match state {
            State::Unspecified | State::Active => StoreState::Active,
            State::Slowed => StoreState::Slowed,
            State::ReadOnly => StoreState::ReadOnly,
            State::Decommissioning => StoreState::Decommissioning,
            State::Decommissioned => StoreState::Decommissioned,
        };
        let txn = self.keys.iter().fold(txn, |txn, key| txn.put_leased(key, self.record.encode(), lease));
        match self.metadata.commit(txn).await? {
            TxnOutcome::Committed(revision) => {
                if *self.news.borrow_and_update() != told {
                    self.news.mark_changed();
                }
                Ok(revision)
            }
            TxnOutcome::Conflict => Err(Lost::Gone),
        }
    }

    /// Says why it is no longer registered.
    async fn stay(&mut self, mut held: Held) -> Lost {
        let mut pauses = Backoff::new(self.clock.clone(), &self.random, FIRST_PAUSE, self.ttl / 6);
        let mut next = self.ttl / 3;
        loop {
            let news = self.news.has_changed().unwrap_or(false);
            tokio::select! {
                () = self.clock.sleep(if news { next.min(NEWS_PAUSE) } else { next }) => {}
                Ok(()) = self.news.changed(), if !news => {
                    self.news.mark_changed();
                    continue;
                }
            }
            let (clock, limit) = (self.clock.clone(), self.ttl / 2);
            next = match clock.timeout(limit, self.renew(&mut held)).await {
                Ok(Ok(())) => {
                    pauses.reset();
                    self.ttl / 3
                }
                // Out of sight is not lost: the lease runs.
                Ok(Err(Lost::Metadata(error))) if error.is_retryable() => pauses.delay(),
                Err(_) => pauses.delay(),
                Ok(Err(lost)) => return lost,
            };
        }
    }

    /// Keeps the lease, and sees that the record is there and says what is so.
    async fn renew(&mut self, held: &mut Held) -> Result<(), Lost> {
        self.metadata.keep_alive(held.lease).await?;
        if self.news.has_changed().unwrap_or(false) {
            let same = |txn: Txn, key: &String| txn.when(Compare::ModRevision(key.clone(), held.written));
            let txn = self.keys.iter().fold(Txn::new(), same);
            held.written = self.write(txn, held.lease).await?;
            return Ok(());
        }
        for key in &self.keys {
            let found = self.metadata.get(key).await?;
            if found.and_then(|found| found.lease) != Some(held.lease) {
                return Err(Lost::Gone);
            }
        }
        Ok(())
    }

    async fn leave(&self, lease: LeaseId) {
        let revoked = self.clock.timeout(FAREWELL, self.metadata.revoke_lease(lease)).await;
        if !matches!(revoked, Ok(Ok(()))) {
            tracing::warn!("the store's registration was not ended; it ends with its lease");
        }
    }
}
