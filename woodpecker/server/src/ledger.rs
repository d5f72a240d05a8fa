//! The small facts that a store must not forget, in a metadata store of its own: its identity, its namespaces, fences,
//! releases, what was known to be acked, and which volumes there must be.
//!
//! Writes are grouped: while one commit is on its way to the disk the next gathers, so that the fences of a thousand logs
//! that move at once cost a few commits.

mod records;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use woodpecker_base::{
    metadata::{MetadataError, MetadataStore, Txn},
    tasks::Tasks,
};
use woodpecker_core::ids::VolumeId;

pub use self::records::{End, Facts, NamespaceRecord, ReplicaRecord, StoreMeta};
use crate::{
    failure::{Failure, Part},
    lock,
    refusal::Refusal,
    released::Released,
    replica::ReplicaKey,
};

/// Writes facts; one task commits them.
pub struct Ledger {
    failure: Arc<Failure>,
    pending: Mutex<Pending>,
    work: Notify,
    done: watch::Sender<Done>,
}

#[derive(Default)]
struct Pending {
    /// The last value of each key that waits to be committed; `None` deletes it.
    writes: BTreeMap<String, Option<Bytes>>,
    /// Key prefixes to delete, before the writes.
    prefixes: Vec<String>,
    ticket: u64,
}

#[derive(Debug, Clone, Default)]
struct Done {
    /// Everything up to this ticket is durable.
    ticket: u64,
    /// Of those up to here that are not known to be durable it is unknown, and why: their commit failed, and the next one
    /// carries them again.
    failed: Option<(u64, Arc<str>)>,
}

/// A write that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[must_use = "it is durable only when it is settled"]
pub struct Ticket(u64);

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("done", &self.done.borrow()).finish_non_exhaustive()
    }
}

impl Ledger {
    /// Reads all facts and starts the task that writes new ones; it ends, with all committed, when `tasks` stop.
    ///
    /// # Errors
    /// [`Refusal::Corrupt`] when a record cannot be read; [`Refusal::Unavailable`] when the file cannot.
    pub async fn open(
        store: Arc<dyn MetadataStore>,
        failure: Arc<Failure>,
        tasks: &Tasks,
    ) -> Result<(Arc<Self>, Facts), Refusal> {
        let snapshot = store.list("").await.map_err(|error| Refusal::Unavailable(error.to_string().into()))?;
        let facts = Facts::read(&snapshot.items)?;
        let (pending, work, done) = (Mutex::default(), Notify::new(), watch::Sender::default());
        let ledger = Arc::new(Self { failure, pending, work, done });
        let (writing, token) = (ledger.clone(), tasks.token().clone());
        tasks.spawn(async move {
            while !token.is_cancelled() {
                tokio::select! {
                    () = token.cancelled() => {}
                    () = writing.work.notified() => {}
                }
                writing.commit_pending(&*store).await;
            }
            // What was put while the last commit was on its way.
            writing.commit_pending(&*store).await;
            writing.done.send_modify(|done| done.failed = Some((u64::MAX, "the store is stopping".into())));
        });
        Ok((ledger, facts))
    }

    /// Waits until a write is durable.
    ///
    /// # Errors
    /// [`Refusal::Failed`]: whether it is durable is unknown, and it may become so later.
    pub async fn settled(&self, Ticket(ticket): Ticket) -> Result<(), Refusal> {
        let mut done = self.done.subscribe();
        let failed = |done: &Done| done.failed.clone().filter(|(through, _)| *through >= ticket);
        let settled = done.wait_for(|done| done.ticket >= ticket || failed(done).is_some()).await;
        // The sender lives in the ledger, so that there always is an answer.
        match settled.map(|done| (done.ticket >= ticket, failed(&done))) {
            Ok((false, Some((_, reason)))) => Err(Refusal::Failed(reason)),
            _ => Ok(()),
        }
    }

    pub fn put_store(&self, meta: &StoreMeta) -> Ticket {
        self.put(records::STORE.to_owned(), Some(records::encode(meta)))
    }

    pub fn put_namespace(&self, name: &str, record: &NamespaceRecord) -> Ticket {
        self.put(records::namespace(name), Some(records::encode(record)))
    }

    pub fn put_volume(&self, id: VolumeId) -> Ticket {
        self.put(records::volume(id), Some(Bytes::new()))
    }

    pub fn put_replica(&self, key: ReplicaKey, record: ReplicaRecord) -> Ticket {
        self.put(records::replica(key), Some(records::encode(&record)))
    }

    /// Notes a release; what was known of the replica itself goes.
    pub fn put_released(&self, key: ReplicaKey, released: &Released) -> Ticket {
        // In this order, which is also the order of the keys: never is a replica forgotten and not released.
        let _ = self.put(records::released(key), Some(records::encode(released)));
        self.put(records::replica(key), None)
    }

    /// Forgets the replicas and releases of a namespace whose record says that it is gone.
    pub fn forget_namespace(&self, number: u32) -> Ticket {
        let mut pending = lock(&self.pending);
        let prefixes = records::of_namespace(number);
        pending.writes.retain(|key, _| !prefixes.iter().any(|prefix| key.starts_with(prefix)));
        pending.prefixes.extend(prefixes);
        self.issue(&mut pending)
    }

    fn put(&self, key: String, value: Option<Bytes>) -> Ticket {
        let mut pending = lock(&self.pending);
        pending.writes.insert(key, value);
        self.issue(&mut pending)
    }

    fn issue(&self, pending: &mut Pending) -> Ticket {
        pending.ticket += 1;
        self.work.notify_one();
        Ticket(pending.ticket)
    }

    /// Commits what could not be committed.
    pub fn try_again(&self) {
        self.work.notify_one();
    }

    async fn commit_pending(&self, store: &dyn MetadataStore) {
        let (writes, prefixes, ticket) = {
            let mut pending = lock(&self.pending);
            (std::mem::take(&mut pending.writes), std::mem::take(&mut pending.prefixes), pending.ticket)
        };
        let outcome = commit(store, &writes, &prefixes).await;
        match outcome {
            Ok(()) => {
                self.failure.clear(Part::Facts);
                self.done.send_modify(|done| done.ticket = ticket);
            }
            Err(error) => {
                let reason: Arc<str> = format!("its facts cannot be written, which is tried again: {error}").into();
                lock(&self.pending).put_back(writes, prefixes);
                self.failure.set(Part::Facts, &reason);
                self.done.send_modify(|done| done.failed = Some((ticket, reason)));
            }
        }
    }
}

impl Pending {
    /// What could not be committed goes before what came meanwhile.
    fn put_back(&mut self, writes: BTreeMap<String, Option<Bytes>>, prefixes: Vec<String>) {
        for (key, value) in writes {
            if !self.prefixes.iter().any(|prefix| key.starts_with(prefix)) {
                self.writes.entry(key).or_insert(value);
            }
        }
        self.prefixes.splice(..0, prefixes);
    }
}

async fn commit(
    store: &dyn MetadataStore,
    writes: &BTreeMap<String, Option<Bytes>>,
    prefixes: &[String],
) -> Result<(), MetadataError> {
    for prefix in prefixes {
        store.commit(Txn::new().delete_prefix(prefix.clone())).await?;
    }
    let mut writes = writes.iter().peekable();
    while writes.peek().is_some() {
        let some = writes.by_ref().take(Txn::MAX_OPERATIONS);
        let txn = some.fold(Txn::new(), |txn, (key, value)| match value {
            Some(value) => txn.put(key.clone(), value.clone()),
            None => txn.delete(key.clone()),
        });
        store.commit(txn).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        time::Duration,
    };

    use async_trait::async_trait;
    use futures::future::join_all;
    use woodpecker_base::{
        clock::Clock,
        metadata::{Interfered, Interference, MemoryStore, RedbStore, TxnOutcome},
    };
    use woodpecker_core::ids::StoreId;

    use super::*;

    fn key(segment: u64) -> ReplicaKey {
        ReplicaKey { namespace: 1, log: 7, segment }
    }

    async fn open(path: &std::path::Path) -> (Arc<RedbStore>, Tasks, Arc<Ledger>, Facts) {
        let store = Arc::new(RedbStore::open(path, Clock::system()).await.unwrap());
        let tasks = Tasks::new();
        let (ledger, facts) = Ledger::open(store.clone(), Arc::default(), &tasks).await.unwrap();
        (store, tasks, ledger, facts)
    }

    #[tokio::test]
    async fn facts_come_back_and_many_at_once_share_commits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let (store, tasks, ledger, facts) = open(&path).await;
        assert!(facts.store.is_none() && facts.replicas.is_empty());
        let meta = StoreMeta { id: StoreId(171), decommissioning: true };
        let _ = ledger.put_store(&meta);
        let _ = ledger.put_volume(VolumeId(5));
        let _ = ledger.put_namespace("by-dev/x", &NamespaceRecord { number: 1, deleted: false });
        let record =
            |segment| ReplicaRecord { fenced: segment, committed: 3, end: Some(End { entries: 3, epoch: segment }) };
        let tickets: Vec<_> = (0..500).map(|segment| ledger.put_replica(key(segment), record(segment))).collect();
        for settled in join_all(tickets.into_iter().map(|ticket| ledger.settled(ticket))).await {
            settled.unwrap();
        }
        let mut released = Released::default();
        released.insert(8, |_| false);
        ledger.settled(ledger.put_released(key(8), &released)).await.unwrap();
        let commits = store.list("").await.unwrap().revision;
        assert!(commits < 20, "{commits} commits for 500 fences");
        let unsettled = ledger.put_replica(key(999), record(9));
        assert!(tasks.drain(&Clock::system(), Duration::from_secs(5)).await);
        ledger.settled(unsettled).await.unwrap();
        drop(ledger);
        Arc::into_inner(store).unwrap().close().await;

        let (_store, _tasks, _ledger, facts) = open(&path).await;
        assert_eq!(facts.store, Some(meta));
        assert!(facts.volumes.contains(&VolumeId(5)));
        assert_eq!(facts.namespaces["by-dev/x"].number, 1);
        assert_eq!(facts.replicas.len(), 500);
        assert_eq!(facts.replicas[&key(499)], record(499));
        assert!(!facts.replicas.contains_key(&key(8)) && facts.released[&(1, 7)].contains(8));
    }

    /// Refuses to commit while it is on.
    #[derive(Debug, Default)]
    struct Refusing(AtomicBool);

    #[async_trait]
    impl Interference for Refusing {
        async fn commit(&self, store: &dyn MetadataStore, txn: Txn) -> Result<TxnOutcome, MetadataError> {
            if self.0.load(Ordering::Relaxed) {
                return Err(MetadataError::Unavailable("no room".to_owned()));
            }
            store.commit(txn).await
        }
    }

    #[tokio::test]
    async fn what_could_not_be_committed_is_with_the_next_commit_and_newer_facts_win() {
        let memory = Arc::new(MemoryStore::new(Clock::system()));
        let store = Arc::new(Interfered::new(memory, Refusing::default()));
        let tasks = Tasks::new();
        let (ledger, _) = Ledger::open(store.clone(), Arc::default(), &tasks).await.unwrap();
        let record = |fenced| ReplicaRecord { fenced, ..ReplicaRecord::default() };
        ledger.settled(ledger.put_replica(key(1), record(1))).await.unwrap();

        store.by.0.store(true, Ordering::Relaxed);
        let of_other = ReplicaKey { namespace: 11, ..key(1) };
        for (key, fenced) in [(key(1), 2), (key(2), 2), (of_other, 2)] {
            let refusal = ledger.settled(ledger.put_replica(key, record(fenced))).await.unwrap_err();
            assert!(matches!(refusal, Refusal::Failed(_)), "{refusal:?}");
        }
        ledger.settled(ledger.forget_namespace(11)).await.unwrap_err();
        store.by.0.store(false, Ordering::Relaxed);
        ledger.settled(ledger.put_replica(key(1), record(3))).await.unwrap();

        let facts = Facts::read(&store.list("").await.unwrap().items).unwrap();
        let known: Vec<_> = facts.replicas.into_iter().map(|(key, record)| (key, record.fenced)).collect();
        assert_eq!(known, [(key(1), 3), (key(2), 2)]);
    }

    /// Holds commits up until it is told to let go.
    #[derive(Debug)]
    struct Holding(watch::Sender<bool>);

    #[async_trait]
    impl Interference for Holding {
        async fn commit(&self, store: &dyn MetadataStore, txn: Txn) -> Result<TxnOutcome, MetadataError> {
            self.0.subscribe().wait_for(|go_on| *go_on).await.unwrap();
            store.commit(txn).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_put_while_a_commit_is_on_its_way_is_committed_before_the_end() {
        let memory = Arc::new(MemoryStore::new(Clock::system()));
        let store = Arc::new(Interfered::new(memory, Holding(watch::Sender::new(false))));
        let tasks = Tasks::new();
        let (ledger, _) = Ledger::open(store.clone(), Arc::default(), &tasks).await.unwrap();
        let first = ledger.put_replica(key(1), ReplicaRecord::default());
        Clock::system().sleep(Duration::from_secs(1)).await;
        let second = ledger.put_replica(key(2), ReplicaRecord::default());
        let clock = Clock::system();
        let ending = tasks.drain(&clock, Duration::from_secs(5));
        let letting_go = async {
            clock.sleep(Duration::from_secs(1)).await;
            store.by.0.send_replace(true);
        };
        assert!(tokio::join!(ending, letting_go).0);
        ledger.settled(first).await.unwrap();
        ledger.settled(second).await.unwrap();
        assert_eq!(Facts::read(&store.list("").await.unwrap().items).unwrap().replicas.len(), 2);
    }

    #[tokio::test]
    async fn a_namespace_that_is_gone_leaves_only_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let (store, tasks, ledger, _) = open(&path).await;
        let _ = ledger.put_replica(key(1), ReplicaRecord::default());
        let other = ReplicaKey { namespace: 11, ..key(1) };
        let _ = ledger.put_replica(other, ReplicaRecord::default());
        let _ = ledger.put_namespace("gone", &NamespaceRecord { number: 1, deleted: true });
        ledger.settled(ledger.forget_namespace(1)).await.unwrap();
        assert!(tasks.drain(&Clock::system(), Duration::from_secs(5)).await);
        drop(ledger);
        Arc::into_inner(store).unwrap().close().await;
        let (_store, _tasks, _ledger, facts) = open(&path).await;
        assert!(facts.namespaces["gone"].deleted);
        assert_eq!(facts.replicas.into_keys().collect::<Vec<_>>(), [other]);
    }
}
