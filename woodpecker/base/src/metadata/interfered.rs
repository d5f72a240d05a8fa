//! A metadata store with something in the way: what tests lose, hold up or refuse.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{KeyValue, LeaseId, MetadataError, MetadataStore, Revision, Snapshot, Txn, TxnOutcome, Watch};

/// What is asked of a store, except for commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Get,
    List,
    Watch,
    GrantLease,
    KeepAlive,
    RevokeLease,
}

/// What stands between a store and who uses it. Lets everything through unless it says otherwise.
#[async_trait]
pub trait Interference: fmt::Debug + Send + Sync + 'static {
    /// Comes before each call but commits; an error is its answer, and the store does not see it.
    async fn before(&self, call: Call) -> Result<(), MetadataError> {
        let _ = call;
        Ok(())
    }

    /// Commits, or not, and answers as it likes.
    async fn commit(&self, store: &dyn MetadataStore, txn: Txn) -> Result<TxnOutcome, MetadataError> {
        store.commit(txn).await
    }
}

/// A store with an [`Interference`] before it.
#[derive(Debug, Clone)]
pub struct Interfered<I> {
    store: Arc<dyn MetadataStore>,
    pub by: I,
}

impl<I: Interference> Interfered<I> {
    /// The store as `by` lets it be used.
    pub fn new(store: Arc<dyn MetadataStore>, by: I) -> Self {
        Self { store, by }
    }
}

#[async_trait]
impl<I: Interference> MetadataStore for Interfered<I> {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, MetadataError> {
        self.by.before(Call::Get).await?;
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, MetadataError> {
        self.by.before(Call::List).await?;
        self.store.list(prefix).await
    }

    async fn commit(&self, txn: Txn) -> Result<TxnOutcome, MetadataError> {
        self.by.commit(&*self.store, txn).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, MetadataError> {
        self.by.before(Call::Watch).await?;
        self.store.watch(prefix, from).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, MetadataError> {
        self.by.before(Call::GrantLease).await?;
        self.store.grant_lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, MetadataError> {
        self.by.before(Call::KeepAlive).await?;
        self.store.keep_alive(lease).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), MetadataError> {
        self.by.before(Call::RevokeLease).await?;
        self.store.revoke_lease(lease).await
    }
}
