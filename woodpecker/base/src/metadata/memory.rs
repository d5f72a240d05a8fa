//! The metadata store in memory, for tests and the simulation. No task runs for it: leases expire when the store is
//! called, and a waiting watch keeps the timer for the next one.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, stream};
use tokio::sync::watch;

use super::{
    KeyValue, LeaseId, MetadataError, MetadataStore, Revision, Snapshot, Txn, TxnOutcome, Watch, WatchEvent,
    state::{Cursor, State},
    whole_seconds,
};
use crate::clock::Clock;

/// One client's handle on a store in memory. Clones share the handle's reachability; [`MemoryStore::connect`] makes
/// another client of the same store.
#[derive(Clone)]
pub struct MemoryStore {
    server: Arc<Server>,
    reachable: Arc<watch::Sender<bool>>,
}

struct Server {
    clock: Clock,
    elapsed: Box<dyn Fn() -> Duration + Send + Sync>,
    state: Mutex<State>,
    /// Bumped whenever a watch may have something to deliver, or an earlier deadline to wait for.
    changed: watch::Sender<u64>,
}

impl MemoryStore {
    /// An empty store whose leases follow the clock's monotonic time.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let origin = clock.now();
        let monotonic = clock.clone();
        Self::with_time(clock, move || monotonic.now().saturating_duration_since(origin))
    }

    /// An empty store whose leases follow `elapsed`: for a simulation in which every host has a runtime, and so a
    /// monotonic clock, of its own.
    pub fn with_time(clock: Clock, elapsed: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        let server = Server {
            clock,
            elapsed: Box::new(elapsed),
            state: Mutex::new(State::new()),
            changed: watch::Sender::new(0),
        };
        Self { server: Arc::new(server), reachable: Arc::new(watch::Sender::new(true)) }
    }

    /// Another client of the same store, with a reachability of its own.
    #[must_use]
    pub fn connect(&self) -> Self {
        Self { server: self.server.clone(), reachable: Arc::new(watch::Sender::new(true)) }
    }

    /// Cuts this client off, or lets it in again. While cut off its calls fail as unavailable and its watches stand
    /// still; its leases run on.
    pub fn set_reachable(&self, reachable: bool) {
        self.reachable.send_replace(reachable);
    }

    /// Forgets history up to and including `revision`: watches that need it resynchronize.
    pub fn compact(&self, revision: Revision) {
        self.server.lock().compact(revision);
    }

    fn state(&self) -> Result<MutexGuard<'_, State>, MetadataError> {
        if *self.reachable.borrow() { Ok(self.server.lock()) } else { Err(cut_off()) }
    }
}

fn cut_off() -> MetadataError {
    MetadataError::Unavailable("cut off from the store".to_owned())
}

impl Server {
    /// The state as of now: what has expired is gone.
    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = (self.elapsed)();
        while let Some(change) = state.expired(now).and_then(|lease| state.evaluate_end(lease)) {
            state.apply(change);
            self.notify();
        }
        state
    }

    fn notify(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    /// Resolves when the next lease runs out; never if there is none.
    async fn next_expiry(&self, deadline: Option<Duration>) {
        match deadline {
            Some(deadline) => self.clock.sleep(deadline.saturating_sub((self.elapsed)())).await,
            None => std::future::pending().await,
        }
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("reachable", &*self.reachable.borrow()).finish_non_exhaustive()
    }
}

#[async_trait]
impl MetadataStore for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, MetadataError> {
        Ok(self.state()?.get(key))
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, MetadataError> {
        Ok(self.state()?.list(prefix))
    }

    async fn commit(&self, txn: Txn) -> Result<TxnOutcome, MetadataError> {
        let mut state = self.state()?;
        let Some(change) = state.evaluate(&txn)? else { return Ok(TxnOutcome::Conflict) };
        let revision = state.apply(change);
        self.server.notify();
        Ok(TxnOutcome::Committed(revision))
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, MetadataError> {
        drop(self.state()?);
        let watching = Watching {
            server: self.server.clone(),
            cursor: Cursor::new(prefix, from),
            pending: VecDeque::new(),
            changed: self.server.changed.subscribe(),
            reachable: self.reachable.subscribe(),
            told: false,
        };
        Ok(stream::unfold(watching, |mut watching| async { Some((watching.next().await, watching)) }).boxed())
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, MetadataError> {
        let mut state = self.state()?;
        let id = state.next_lease();
        state.add_lease(id, whole_seconds(ttl), (self.server.elapsed)());
        self.server.notify();
        Ok(id)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, MetadataError> {
        self.state()?.keep_alive(lease, (self.server.elapsed)())
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), MetadataError> {
        let mut state = self.state()?;
        if let Some(change) = state.evaluate_end(lease) {
            state.apply(change);
            self.server.notify();
        }
        Ok(())
    }
}

struct Watching {
    server: Arc<Server>,
    cursor: Cursor,
    pending: VecDeque<WatchEvent>,
    changed: watch::Receiver<u64>,
    reachable: watch::Receiver<bool>,
    /// Whether the present time out of reach was reported.
    told: bool,
}

impl Watching {
    async fn next(&mut self) -> Result<WatchEvent, MetadataError> {
        loop {
            let reachable = *self.reachable.borrow_and_update();
            if !reachable && !self.told {
                self.told = true;
                return Err(cut_off());
            }
            if !reachable {
                if self.reachable.changed().await.is_err() {
                    // The client is gone and nobody can let the watch in again.
                    std::future::pending::<()>().await;
                }
                continue;
            }
            self.told = false;
            if let Some(event) = self.pending.pop_front() {
                return Ok(event);
            }
            self.changed.mark_unchanged();
            let deadline = {
                let state = self.server.lock();
                self.pending = self.cursor.advance(&state);
                state.next_deadline()
            };
            if !self.pending.is_empty() {
                continue;
            }
            tokio::select! {
                _ = self.changed.changed() => {}
                () = self.server.next_expiry(deadline) => {}
                Ok(()) = self.reachable.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, future::ready};

    use super::*;
    use crate::metadata::{
        Compare,
        conformance::{self, Subject},
    };

    async fn put(store: &MemoryStore, key: &str, value: &'static str) -> Revision {
        match store.commit(Txn::new().put(key, value)).await.unwrap() {
            TxnOutcome::Committed(revision) => revision,
            TxnOutcome::Conflict => panic!("nothing to conflict with"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_contract_holds() {
        let clock = Clock::system();
        let store = MemoryStore::new(clock.clone());
        let compacted = store.clone();
        let compact = Box::new(move |revision| {
            compacted.compact(revision);
            ready(()).boxed()
        });
        conformance::all(&Subject { store: Arc::new(store), clock, compact }).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_watch_alone_drives_lease_expiry() {
        let clock = Clock::system();
        let store = MemoryStore::new(clock.clone());
        let lease = store.grant_lease(Duration::from_millis(1_500)).await.unwrap();
        let txn = Txn::new().put_leased("s/a", "1", lease).put_leased("s/b", "2", lease).put("s/c", "3");
        let TxnOutcome::Committed(revision) = store.commit(txn).await.unwrap() else { panic!() };
        let mut watch = store.watch("s/", revision + 1).await.unwrap();
        let started = clock.now();
        let first = watch.next().await.unwrap().unwrap();
        assert_eq!(first, WatchEvent::Delete { key: "s/a".into(), revision: revision + 1 });
        assert_eq!(clock.now() - started, Duration::from_secs(2));
        let second = watch.next().await.unwrap().unwrap();
        assert_eq!(second, WatchEvent::Delete { key: "s/b".into(), revision: revision + 1 });
        let left = store.list("s/").await.unwrap();
        assert_eq!(left.items.iter().map(|item| item.key.as_str()).collect::<Vec<_>>(), ["s/c"]);
        assert!(matches!(store.keep_alive(lease).await, Err(MetadataError::LeaseGone(gone)) if gone == lease));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_cut_off_is_told_once_and_catches_up() {
        let store = MemoryStore::new(Clock::system());
        let other = store.connect();
        let mut watch = other.watch("k", 1).await.unwrap();
        other.set_reachable(false);
        assert!(watch.next().await.unwrap().unwrap_err().is_retryable());
        assert!(other.get("k").await.unwrap_err().is_retryable());
        let revision = put(&store, "k", "v").await;
        let silent = Clock::system().timeout(Duration::from_secs(60), watch.next()).await;
        assert!(silent.is_err(), "delivered while cut off: {silent:?}");
        other.set_reachable(true);
        let WatchEvent::Put(item) = watch.next().await.unwrap().unwrap() else { panic!() };
        assert_eq!((item.key.as_str(), item.mod_revision), ("k", revision));
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_behind_a_compaction_resynchronizes_and_goes_on() {
        let store = MemoryStore::new(Clock::system());
        put(&store, "k/1", "a").await;
        let compacted = put(&store, "k/2", "b").await;
        store.compact(compacted);
        let mut watch = store.watch("k/", 1).await.unwrap();
        let WatchEvent::Resync(snapshot) = watch.next().await.unwrap().unwrap() else { panic!() };
        assert_eq!((snapshot.revision, snapshot.items.len()), (compacted, 2));
        let txn = Txn::new().when(Compare::Present("k/1".into())).delete_prefix("k/");
        let outcome = store.commit(txn).await.unwrap();
        assert_eq!(outcome, TxnOutcome::Committed(compacted + 1));
        let deleted = WatchEvent::Delete { key: "k/1".into(), revision: compacted + 1 };
        assert_eq!(watch.next().await.unwrap().unwrap(), deleted);
    }
}
