//! The metadata store of a single process, durable in one file. The file is the truth; reads and watches are served
//! from a copy in memory, which a thread of its own keeps one durable commit behind the file. History is not kept over a
//! restart, and leases found at the start end at once: only one process has the file, so whoever had them is gone.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt, StreamExt, stream};
use tokio::sync::{mpsc, oneshot, watch};

use self::file::{Create, MetadataFile};
use super::{
    KeyValue, LeaseId, MetadataError, MetadataStore, Revision, Snapshot, Txn, TxnOutcome, Watch,
    state::{Change, Cursor, State},
    whole_seconds,
};
use crate::{
    clock::{Clock, Instant},
    disk::{Disk, RealDisk},
};

mod file;
#[cfg(test)]
mod tests;

/// Requests that may wait for the writer.
const QUEUE: usize = 1_024;
/// A disk that takes longer than this for a commit is reported as unavailable.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// After a failed commit and a failed attempt to mend it, how long until the next.
const MEND_PAUSE: Duration = Duration::from_secs(1);

/// A metadata store in one file. Only one process can have it open.
#[derive(Debug)]
pub struct RedbStore {
    clock: Clock,
    state: Arc<Mutex<State>>,
    changed: watch::Receiver<u64>,
    requests: mpsc::Sender<Request>,
    ended: oneshot::Receiver<()>,
}

type Answer<T> = oneshot::Sender<Result<T, MetadataError>>;

#[derive(Debug)]
enum Request {
    Commit(Txn, Answer<TxnOutcome>),
    Grant(Duration, Answer<LeaseId>),
    KeepAlive(LeaseId, Answer<Duration>),
    Revoke(LeaseId, Answer<()>),
}

impl RedbStore {
    /// Opens the file, creating it and its directory if need be.
    ///
    /// # Errors
    /// Invalid if another process has it open or if it is damaged; unavailable if the disk fails.
    pub async fn open(path: &Path, clock: Clock) -> Result<Self, MetadataError> {
        Self::open_with(path, clock, Box::new(file::create)).await
    }

    async fn open_with(path: &Path, clock: Clock, create: Create) -> Result<Self, MetadataError> {
        let (requests, queue) = mpsc::channel(QUEUE);
        let (opened, opening) = oneshot::channel();
        let (ending, ended) = oneshot::channel();
        RealDisk
            .spawn_writer("metadata", write((path.to_owned(), create), clock.clone(), opened, queue, ending).boxed());
        let (state, changed) = opening.await.map_err(|_| stopped())??;
        Ok(Self { clock, state, changed, requests, ended })
    }

    /// Closes the file, after what is already asked for; then it can be opened again.
    pub async fn close(self) {
        drop(self.requests);
        // An error also means that the writer is gone.
        let _ = self.ended.await;
    }

    /// Forgets history up to and including `revision`: watches that need it resynchronize.
    pub fn compact(&self, revision: Revision) {
        lock(&self.state).compact(revision);
    }

    async fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Result<T, MetadataError> {
        let (answer, answered) = oneshot::channel();
        let asking = async {
            self.requests.send(request(answer)).await.map_err(|_| stopped())?;
            answered.await.map_err(|_| stopped())?
        };
        let late = |_| Err(MetadataError::Unavailable(format!("the metadata file took more than {ANSWER_LIMIT:?}")));
        self.clock.timeout(ANSWER_LIMIT, asking).await.unwrap_or_else(late)
    }
}

#[async_trait]
impl MetadataStore for RedbStore {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, MetadataError> {
        Ok(lock(&self.state).get(key))
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, MetadataError> {
        Ok(lock(&self.state).list(prefix))
    }

    async fn commit(&self, txn: Txn) -> Result<TxnOutcome, MetadataError> {
        self.ask(|answer| Request::Commit(txn, answer)).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, MetadataError> {
        let watching = (self.state.clone(), self.changed.clone(), Cursor::new(prefix, from), VecDeque::new());
        let next = |(state, mut changed, mut cursor, mut pending): (Arc<Mutex<State>>, _, Cursor, VecDeque<_>)| async {
            loop {
                if let Some(event) = pending.pop_front() {
                    return Some((Ok(event), (state, changed, cursor, pending)));
                }
                watch::Receiver::<u64>::mark_unchanged(&mut changed);
                pending = cursor.advance(&lock(&state));
                if pending.is_empty() {
                    // The stream ends with the writer: nothing will change any more.
                    changed.changed().await.ok()?;
                }
            }
        };
        Ok(stream::unfold(watching, next).boxed())
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, MetadataError> {
        self.ask(|answer| Request::Grant(ttl, answer)).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, MetadataError> {
        self.ask(|answer| Request::KeepAlive(lease, answer)).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), MetadataError> {
        self.ask(|answer| Request::Revoke(lease, answer)).await
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn stopped() -> MetadataError {
    MetadataError::Unavailable("the metadata file's writer has stopped".to_owned())
}

type Opened = Result<(Arc<Mutex<State>>, watch::Receiver<u64>), MetadataError>;

/// The writer's thread: opens the file, then carries out one request after the other until nobody can ask any more.
async fn write(
    (path, create): (PathBuf, Create),
    clock: Clock,
    opened: oneshot::Sender<Opened>,
    mut queue: mpsc::Receiver<Request>,
    ending: oneshot::Sender<()>,
) {
    let (file, state) = match MetadataFile::open(&path, create) {
        Ok((file, state)) => (file, Arc::new(Mutex::new(state))),
        Err(error) => return drop(opened.send(Err(error))),
    };
    let (changed, observer) = watch::channel(0);
    let origin = clock.now();
    let mut writer = Writer { file, state: state.clone(), changed, clock, origin, failed: None };
    writer.expire();
    if opened.send(Ok((state, observer))).is_err() {
        return;
    }
    loop {
        let deadline = lock(&writer.state).next_deadline();
        tokio::select! {
            request = queue.recv() => match request {
                Some(request) => writer.serve(request),
                None => break,
            },
            () = writer.until(deadline) => writer.expire(),
        }
    }
    drop(writer);
    // Nobody waits for the end if the store was dropped without closing it.
    let _ = ending.send(());
}

struct Writer {
    file: MetadataFile,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    clock: Clock,
    origin: Instant,
    failed: Option<Failed>,
}

/// After a failed commit the file takes no more, and what it holds is unknown.
struct Failed {
    error: MetadataError,
    /// When it may be written anew.
    mend_at: Instant,
}

impl Writer {
    async fn until(&self, deadline: Option<Duration>) {
        match (deadline.map(|deadline| self.origin + deadline), &self.failed) {
            (Some(deadline), None) => self.clock.sleep_until(deadline).await,
            (Some(deadline), Some(failed)) => self.clock.sleep_until(deadline.max(failed.mend_at)).await,
            (None, _) => std::future::pending().await,
        }
    }

    fn elapsed(&self) -> Duration {
        self.clock.now() - self.origin
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// An answer nobody waits for any more is dropped.
    fn serve(&mut self, request: Request) {
        self.expire();
        match request {
            Request::Commit(txn, answer) => drop(answer.send(self.commit(&txn))),
            Request::Grant(ttl, answer) => drop(answer.send(self.grant(whole_seconds(ttl)))),
            Request::KeepAlive(lease, answer) => drop(answer.send(self.keep_alive(lease))),
            Request::Revoke(lease, answer) => drop(answer.send(self.end(lease))),
        }
    }

    fn commit(&mut self, txn: &Txn) -> Result<TxnOutcome, MetadataError> {
        let evaluated = self.state().evaluate(txn)?;
        let Some(change) = evaluated else { return Ok(TxnOutcome::Conflict) };
        Ok(TxnOutcome::Committed(self.apply(change)?))
    }

    fn grant(&mut self, ttl: Duration) -> Result<LeaseId, MetadataError> {
        let lease = self.state().next_lease();
        self.store(|file| file.add_lease(lease, ttl))?;
        let now = self.elapsed();
        self.state().add_lease(lease, ttl, now);
        Ok(lease)
    }

    fn keep_alive(&mut self, lease: LeaseId) -> Result<Duration, MetadataError> {
        self.mend()?;
        let now = self.elapsed();
        self.state().keep_alive(lease, now)
    }

    fn end(&mut self, lease: LeaseId) -> Result<(), MetadataError> {
        let change = self.state().evaluate_end(lease);
        change.map_or(Ok(()), |change| self.apply(change).map(drop))
    }

    fn expire(&mut self) {
        let now = self.elapsed();
        loop {
            let Some(lease) = self.state().expired(now) else { return };
            if let Err(error) = self.end(lease) {
                tracing::error!(%error, ?lease, "a lease cannot be ended");
                return;
            }
        }
    }

    fn apply(&mut self, change: Change) -> Result<Revision, MetadataError> {
        self.store(|file| file.apply(&change))?;
        let revision = self.state().apply(change);
        self.changed.send_modify(|version| *version += 1);
        Ok(revision)
    }

    fn store(&mut self, work: impl FnOnce(&MetadataFile) -> Result<(), MetadataError>) -> Result<(), MetadataError> {
        self.mend()?;
        work(&self.file)
            .inspect_err(|error| self.failed = Some(Failed { error: error.clone(), mend_at: self.clock.now() }))
    }

    /// After a failed commit, writes the file anew as it was known before it: then the commit did not happen. Its outcome
    /// was told to be unknown.
    fn mend(&mut self) -> Result<(), MetadataError> {
        let Some(Failed { error, mend_at }) = &self.failed else { return Ok(()) };
        if self.clock.now() < *mend_at {
            return Err(error.clone());
        }
        let content = self.state().content();
        self.failed = match self.file.rewrite(&content) {
            Ok(()) => None,
            Err(error) => Some(Failed { error, mend_at: self.clock.now() + MEND_PAUSE }),
        };
        match &self.failed {
            None => tracing::info!("the metadata file failed and was written anew"),
            Some(Failed { error, .. }) => return Err(error.clone()),
        }
        Ok(())
    }
}
