//! Sessions: how a process says in the metadata store that it lives, and how others see it.
//!
//! Keys and JSON are those of the protocol, so that components of other make find ours and ours find theirs. A session
//! hangs on a lease. Losing sight of the store is not losing the session: the lease may live on and be kept again.

mod keeper;
mod record;

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

pub use self::record::SessionRecord;
use crate::{
    clock::{Clock, Instant},
    metadata::{Compare, LeaseId, MetadataError, MetadataStore, Revision, Txn, TxnOutcome},
    tasks::Tasks,
};

/// How often a key that someone else holds is tried before giving up.
const CONFLICT_ATTEMPTS: u32 = 30;
const CONFLICT_PAUSE: Duration = Duration::from_millis(500);

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
    /// The lease is gone, or someone deleted or took the key. It never comes back; register anew under a new id.
    Lost,
}

/// Why a session was not registered.
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
    store: Arc<dyn MetadataStore>,
    lease: LeaseId,
    key: String,
    record: SessionRecord,
    state: Arc<watch::Sender<SessionState>>,
    valid_until: watch::Receiver<Instant>,
    tasks: Tasks,
}

impl Session {
    /// Registers `record` under `<meta_root>/session/<role>-<server id>` and keeps it alive until it is lost or revoked.
    /// `ttl` is how long others wait after the last sign of life.
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
        let asked = clock.now();
        let lease = store.grant_lease(ttl).await?;
        let (valid, valid_until) = watch::channel(asked + ttl);
        let tasks = tasks.child();
        let state = Arc::new(watch::Sender::new(SessionState::Alive));
        let key = format!("{}{}-{}", session_prefix(meta_root), record.role, record.server_id);
        let record = SessionRecord { lease_id: lease.0, ..record };
        let session = Self { store: store.clone(), lease, key, record, state, valid_until, tasks };
        keeper::spawn(&session.tasks, store, clock.clone(), lease, ttl, session.state.clone(), valid);
        session.claim_with_patience(clock).await?;
        Ok(session)
    }

    async fn claim_with_patience(&self, clock: &Clock) -> Result<(), SessionError> {
        let mut attempt = 1;
        loop {
            match self.claim(&self.key, &self.record).await {
                Ok(_) => return Ok(()),
                Err(error) if attempt == CONFLICT_ATTEMPTS || !error.is_retryable() => return Err(error),
                Err(error) => tracing::info!(%error, attempt, "session key is not free yet"),
            }
            attempt += 1;
            clock.sleep(CONFLICT_PAUSE).await;
        }
    }

    /// Takes another key on the same lease, if it is free or was left by an earlier process at the same address. Its
    /// loss is the session's loss. Returns the revision it was created at.
    pub(crate) async fn claim(&self, key: &str, record: &SessionRecord) -> Result<Revision, SessionError> {
        let create = |compare| Txn::new().when(compare).put_leased(key, record.encode(), self.lease);
        if let TxnOutcome::Committed(revision) = self.store.commit(create(Compare::Absent(key.into()))).await? {
            return Ok(self.hold(key, revision));
        }
        let Some(found) = self.store.get(key).await? else { return Err(held(key, &SessionRecord::default())) };
        let holder = SessionRecord::decode(&found.value).unwrap_or_default();
        if found.lease == Some(self.lease) {
            // Our own put, whose answer was lost.
            return Ok(self.hold(key, found.create_revision));
        }
        // Two processes cannot listen on one address: the one with the smaller id is gone, its lease is not yet.
        if holder.address == record.address && holder.server_id < record.server_id {
            self.store
                .commit(Txn::new().when(Compare::ModRevision(key.into(), found.mod_revision)).delete(key))
                .await?;
            if let TxnOutcome::Committed(revision) = self.store.commit(create(Compare::Absent(key.into()))).await? {
                return Ok(self.hold(key, revision));
            }
        }
        Err(held(key, &holder))
    }

    fn hold(&self, key: &str, created: Revision) -> Revision {
        keeper::watch_key(&self.tasks, self.store.clone(), key.into(), created, self.lease, self.state.clone());
        created
    }

    /// What is registered.
    #[must_use]
    pub fn record(&self) -> &SessionRecord {
        &self.record
    }

    /// The full key in the metadata store.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The state, now and from now on.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<SessionState> {
        self.state.subscribe()
    }

    /// Until when, on this process' own clock, nobody can have seen the lease end: the last confirmed keep-alive's start
    /// plus the time to live. What no fence guards must stop then.
    #[must_use]
    pub fn valid_until(&self) -> Instant {
        *self.valid_until.borrow()
    }

    /// Resolves when the session is lost.
    pub async fn lost(&self) {
        let mut state = self.state.subscribe();
        // The sender lives in this session.
        let _ = state.wait_for(|state| *state == SessionState::Lost).await;
    }

    /// Tells everyone that this process is about to leave; it is given nothing new, and what it has is moved away.
    ///
    /// # Errors
    /// [`SessionError::Lost`] when there is nothing to mark any more; the store's.
    pub async fn announce_stopping(&mut self) -> Result<(), SessionError> {
        self.record.stopping = true;
        let txn = Txn::new().when(Compare::Present(self.key.clone())).put_leased(
            self.key.clone(),
            self.record.encode(),
            self.lease,
        );
        match self.store.commit(txn).await? {
            TxnOutcome::Committed(_) => Ok(()),
            TxnOutcome::Conflict => Err(SessionError::Lost),
        }
    }

    /// Ends the session at once: its keys are deleted.
    ///
    /// # Errors
    /// The store's; the lease then ends by itself.
    pub async fn revoke(self) -> Result<(), SessionError> {
        self.tasks.stop();
        Ok(self.store.revoke_lease(self.lease).await?)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

fn held(key: &str, holder: &SessionRecord) -> SessionError {
    SessionError::Held { key: key.into(), holder: holder.server_id, address: holder.address.clone() }
}

#[cfg(test)]
mod tests;
