//! Sessions: how a process says in the metadata store that it lives, and how others see it.
//!
//! Keys and JSON are those of the protocol, so that components of other make find ours and ours find theirs. A session
//! hangs on a lease. Losing sight of the store is not losing the session: the lease may live on and be kept again.

mod keeper;
mod record;
mod view;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

pub use self::{
    record::{SessionRecord, first_streaming_version},
    view::{SessionKeys, SessionView, watch_sessions},
};
use crate::{
    backoff::Backoff,
    clock::{Clock, Instant},
    metadata::{Compare, LeaseId, MetadataError, MetadataStore, Revision, Txn, TxnOutcome},
    random::Random,
    tasks::Tasks,
};

/// How often a registration is tried while the key is someone else's or the store does not answer.
const ATTEMPTS: usize = 30;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// The tasks of a session have nothing to finish.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// Where sessions live under `<meta_root>`.
#[must_use]
pub fn session_prefix(meta_root: &str) -> String {
    format!("{meta_root}/session/")
}

/// Whether a session still stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    Alive,
    /// The store does not answer since then. The session stands as long as the lease does.
    Unreachable {
        since: Instant,
    },
    /// The lease is gone, or someone deleted or took a key. It never comes back; register anew under a new id.
    Lost,
}

/// Why a session was not registered or changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SessionError {
    #[error("session key {key} is held by server {holder} at {address}")]
    Held { key: String, holder: i64, address: String },
    #[error("session lost")]
    Lost,
    #[error(transparent)]
    Metadata(#[from] MetadataError),
}

impl SessionError {
    /// A stable code for documentation and programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Held { .. } => "SESSION_HELD",
            Self::Lost => "SESSION_LOST",
            Self::Metadata(error) => error.code(),
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Held { .. } => true,
            Self::Lost => false,
            Self::Metadata(error) => error.is_retryable(),
        }
    }

    /// Whether a key may have been written; it goes with its lease.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        matches!(self, Self::Metadata(error) if error.has_side_effects())
    }
}

/// A registered session: a lease that is kept alive, and the keys that hang on it. Dropping it without
/// [`Session::revoke`] leaves the keys to the lease, as a crash would.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    key: String,
    record: Mutex<SessionRecord>,
    held: Mutex<Vec<Held>>,
    tasks: Tasks,
}

/// A key of the session's, and the revision that created it.
#[derive(Debug, Clone)]
struct Held {
    key: String,
    created: Revision,
    record: SessionRecord,
}

/// What the session's tasks share with it.
#[derive(Debug)]
struct Shared {
    store: Arc<dyn MetadataStore>,
    clock: Clock,
    lease: LeaseId,
    state: watch::Sender<SessionState>,
    valid_until: Mutex<Instant>,
}

impl Session {
    /// Registers `record` under `<meta_root>/session/<role>-<server id>` and keeps it alive until it is lost or revoked.
    /// `ttl` is how long others wait after the last sign of life. An outage of about half a minute is waited out.
    ///
    /// # Errors
    /// [`SessionError::Held`] when another process has the key; the store's.
    pub async fn register(
        store: Arc<dyn MetadataStore>,
        clock: &Clock,
        tasks: &Tasks,
        meta_root: &str,
        record: SessionRecord,
        ttl: Duration,
    ) -> Result<Self, SessionError> {
        // The server id is this process's alone: a seed that spreads processes and repeats in a simulation.
        let random = Random::seeded(record.server_id.unsigned_abs());
        let mut patience = Patience { backoff: pauses(clock, &random), attempts: ATTEMPTS };
        let (lease, asked) = loop {
            let asked = clock.now();
            match store.grant_lease(ttl).await {
                Ok(lease) => break (lease, asked),
                Err(error) => patience.after(error.into()).await?,
            }
        };
        let shared = Arc::new(Shared {
            store,
            clock: clock.clone(),
            lease,
            state: watch::Sender::new(SessionState::Alive),
            valid_until: Mutex::new(asked + ttl),
        });
        let session = Self {
            key: format!("{}{}-{}", session_prefix(meta_root), record.role, record.server_id),
            record: Mutex::new(SessionRecord { lease_id: lease.0, ..record }),
            held: Mutex::new(Vec::new()),
            tasks: tasks.branch(),
            shared: shared.clone(),
        };
        session.tasks.spawn_until_stopped(keeper::keep(shared, ttl, pauses(clock, &random)));
        while let Err(error) = session.claim(&session.key, &session.record()).await {
            patience.after(error).await?;
        }
        Ok(session)
    }

    /// Takes a key on the session's lease, if it is free or was left by an earlier process at the same address (two
    /// processes cannot listen on one address: the one with the smaller id is gone, its lease is not yet). Its loss is
    /// the session's loss. Returns the revision it was created at.
    pub(crate) async fn claim(&self, key: &str, record: &SessionRecord) -> Result<Revision, SessionError> {
        let (store, lease) = (&self.shared.store, self.shared.lease);
        loop {
            let create = Txn::new().when(Compare::Absent(key.into())).put_leased(key, record.encode(), lease);
            if let TxnOutcome::Committed(created) = self.shared.commit(create).await? {
                return Ok(self.hold(key, created, record));
            }
            let Some(found) = store.get(key).await? else { continue };
            if found.lease == Some(lease) {
                // Our own put, whose answer was lost.
                return Ok(self.hold(key, found.create_revision, record));
            }
            let holder = SessionRecord::decode(&found.value).unwrap_or_default();
            if holder.address != record.address || holder.server_id >= record.server_id {
                return Err(SessionError::Held { key: key.into(), holder: holder.server_id, address: holder.address });
            }
            tracing::info!(key, holder.server_id, "removing the key of an earlier process at this address");
            let same = Compare::ModRevision(key.into(), found.mod_revision);
            self.shared.commit(Txn::new().when(same).delete(key)).await?;
        }
    }

    fn hold(&self, key: &str, created: Revision, record: &SessionRecord) -> Revision {
        let mut held = lock(&self.held);
        if !held.iter().any(|other| other.key == key && other.created == created) {
            let pauses = pauses(&self.shared.clock, &Random::seeded(created.unsigned_abs()));
            self.tasks.spawn_until_stopped(keeper::watch_key(self.shared.clone(), key.to_owned(), created, pauses));
            held.push(Held { key: key.to_owned(), created, record: record.clone() });
        }
        created
    }

    /// What is registered.
    #[must_use]
    pub fn record(&self) -> SessionRecord {
        lock(&self.record).clone()
    }

    /// The full key in the metadata store.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The lease that the session hangs on; other keys may be put under it.
    #[must_use]
    pub fn lease(&self) -> LeaseId {
        self.shared.lease
    }

    /// The state, now and from now on.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<SessionState> {
        self.shared.state.subscribe()
    }

    /// Until when, on this process' own clock, nobody can have seen the lease end: the last confirmed keep-alive's start
    /// plus the time to live. What no fence guards must stop then.
    #[must_use]
    pub fn valid_until(&self) -> Instant {
        *lock(&self.shared.valid_until)
    }

    /// Resolves when the session is lost.
    pub async fn lost(&self) {
        let mut state = self.state();
        // The sender lives in this session.
        let _ = state.wait_for(|state| *state == SessionState::Lost).await;
    }

    /// Tells everyone that this process is about to leave; it is given nothing new, and what it has is moved away. All
    /// keys of the session say so, an exclusive one among them.
    ///
    /// # Errors
    /// [`SessionError::Lost`] when there is nothing to mark any more; the store's.
    pub async fn announce_stopping(&self) -> Result<(), SessionError> {
        let held = lock(&self.held).clone();
        let txn = held.into_iter().fold(Txn::new(), |txn, Held { key, created, record }| {
            let record = SessionRecord { stopping: true, ..record };
            let same = Compare::CreateRevision(key.clone(), created);
            txn.when(same).put_leased(key, record.encode(), self.shared.lease)
        });
        match self.shared.commit(txn).await? {
            TxnOutcome::Committed(_) => {
                lock(&self.record).stopping = true;
                Ok(())
            }
            TxnOutcome::Conflict => {
                self.shared.advance(SessionState::Lost);
                Err(SessionError::Lost)
            }
        }
    }

    /// Ends the session at once: its keys are deleted.
    ///
    /// # Errors
    /// The store's; the lease then ends by itself.
    pub async fn revoke(self) -> Result<(), SessionError> {
        // First, so that the end that was asked for is not reported as a loss.
        self.tasks.drain(&self.shared.clock, STOP_GRACE).await;
        Ok(self.shared.store.revoke_lease(self.shared.lease).await?)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

impl Shared {
    /// Commits what needs the lease; without it the session is lost.
    async fn commit(&self, txn: Txn) -> Result<TxnOutcome, SessionError> {
        self.store.commit(txn).await.map_err(|error| match error {
            MetadataError::LeaseGone(_) => {
                self.advance(SessionState::Lost);
                SessionError::Lost
            }
            error => error.into(),
        })
    }

    /// Lost is final.
    fn advance(&self, to: SessionState) {
        self.state.send_if_modified(|now| {
            let changes = *now != SessionState::Lost && *now != to;
            if changes {
                tracing::info!(lease = self.lease.0, from = ?now, ?to, "session");
                *now = to;
            }
            changes
        });
    }
}

/// Pauses between attempts, as long as there are any left.
struct Patience {
    backoff: Backoff,
    attempts: usize,
}

impl Patience {
    async fn after(&mut self, error: SessionError) -> Result<(), SessionError> {
        self.attempts -= 1;
        if self.attempts == 0 || !error.is_retryable() {
            return Err(error);
        }
        tracing::info!(%error, "cannot register yet");
        self.backoff.wait().await;
        Ok(())
    }
}

pub(crate) fn pauses(clock: &Clock, random: &Random) -> Backoff {
    Backoff::new(clock.clone(), random, FIRST_PAUSE, LAST_PAUSE)
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
