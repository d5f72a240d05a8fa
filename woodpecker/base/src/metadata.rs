//! The metadata store: a small, linearizable, ordered key-value store with transactions, watches and leases.
//!
//! Three implementations keep the same contract, proven by one conformance suite: etcd (a cluster), redb (one
//! process, durable), memory (tests and simulation). Keys are UTF-8, have no leading slash, and sort by bytes.

use std::{collections::BTreeSet, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub use self::{
    etcd::{EtcdSettings, EtcdStore, EtcdTls, EtcdUser},
    interfered::{Call, Interfered, Interference},
    memory::MemoryStore,
    redb::RedbStore,
};

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod etcd;
mod interfered;
mod memory;
mod redb;
mod state;

/// A point in the store's history. Every committed write transaction takes the next one; it never repeats or falls.
pub type Revision = i64;

/// Identity of a lease; unique for the life of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

/// A key with its value as of some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    pub key: String,
    pub value: Bytes,
    /// Revision of the transaction that created the key; a key that was deleted and put again has a new one.
    pub create_revision: Revision,
    /// Revision of the transaction that last wrote the key.
    pub mod_revision: Revision,
    /// The lease the key dies with, if any.
    pub lease: Option<LeaseId>,
}

/// All keys under a prefix, in key order, read at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// A watch started at `revision + 1` misses nothing that came after this read.
    pub revision: Revision,
    pub items: Vec<KeyValue>,
}

/// A condition of a [`Txn`]. All must hold for the writes to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    Absent(String),
    Present(String),
    /// The key exists and was last written at this revision.
    ModRevision(String, Revision),
    /// The key exists and was created at this revision: the same incarnation, whatever was written to it since.
    CreateRevision(String, Revision),
    /// The key exists and holds exactly these bytes.
    Value(String, Bytes),
}

/// A write of a [`Txn`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    Put { key: String, value: Bytes, lease: Option<LeaseId> },
    Delete { key: String },
    DeletePrefix { prefix: String },
}

/// Conditions and the writes that happen atomically if all of them hold. At most [`Txn::MAX_OPERATIONS`] writes and
/// as many compares, and no key is written twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub writes: Vec<Write>,
}

impl Txn {
    /// etcd's default limit of operations in one transaction; every implementation enforces it.
    pub const MAX_OPERATIONS: usize = 128;

    /// A transaction that always applies.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    /// Adds a put without a lease.
    #[must_use]
    pub fn put(self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.write(Write::Put { key: key.into(), value: value.into(), lease: None })
    }

    /// Adds a put of a key that is deleted when the lease ends.
    #[must_use]
    pub fn put_leased(self, key: impl Into<String>, value: impl Into<Bytes>, lease: LeaseId) -> Self {
        self.write(Write::Put { key: key.into(), value: value.into(), lease: Some(lease) })
    }

    /// Adds a delete; deleting an absent key is no error.
    #[must_use]
    pub fn delete(self, key: impl Into<String>) -> Self {
        self.write(Write::Delete { key: key.into() })
    }

    /// Adds a delete of all keys that start with `prefix`.
    #[must_use]
    pub fn delete_prefix(self, prefix: impl Into<String>) -> Self {
        self.write(Write::DeletePrefix { prefix: prefix.into() })
    }

    fn write(mut self, write: Write) -> Self {
        self.writes.push(write);
        self
    }

    /// Checks what every store refuses: too many operations, an empty key, a key written twice.
    fn validate(&self) -> Result<(), MetadataError> {
        if self.writes.len() > Self::MAX_OPERATIONS || self.compares.len() > Self::MAX_OPERATIONS {
            let (compares, writes) = (self.compares.len(), self.writes.len());
            return Err(MetadataError::Invalid(format!(
                "{compares} compares and {writes} writes in one transaction, the limit is {} each",
                Self::MAX_OPERATIONS
            )));
        }
        let mut keys = BTreeSet::new();
        let mut prefixes = BTreeSet::new();
        for write in &self.writes {
            let fresh = match write {
                Write::Put { key, .. } | Write::Delete { key } if key.is_empty() => {
                    return Err(MetadataError::Invalid("an empty key".to_owned()));
                }
                Write::Put { key, .. } | Write::Delete { key } => keys.insert(key.as_str()),
                Write::DeletePrefix { prefix } => prefixes.insert(prefix.as_str()),
            };
            if !fresh {
                return Err(MetadataError::Invalid(format!("{write:?} repeats a key of the transaction")));
            }
        }
        for prefix in prefixes.iter().copied() {
            let mut under = keys.range(prefix..).chain(prefixes.range(prefix..)).filter(|other| **other != prefix);
            let same = keys.contains(prefix);
            if same || under.any(|other| other.starts_with(prefix)) {
                return Err(MetadataError::Invalid(format!("a key under deleted prefix {prefix:?} is written again")));
            }
        }
        Ok(())
    }
}

/// A lease's time to live as stores count it.
fn whole_seconds(ttl: Duration) -> Duration {
    let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
    Duration::from_secs(seconds.max(1))
}

/// What became of a [`Txn`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxnOutcome {
    /// All compares held; the writes took effect at this revision. (Writes that change nothing, such as a delete of
    /// what is absent, take no revision: it is then the store's present one.)
    Committed(Revision),
    /// A compare did not hold; nothing was written.
    Conflict,
}

/// One change seen by a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    Put(KeyValue),
    Delete {
        key: String,
        revision: Revision,
    },
    /// The history the watch needed was compacted away: this is the whole prefix now. What is not in it is gone;
    /// the receiver replaces its view. Events that follow are newer than the snapshot.
    Resync(Snapshot),
}

/// Events in revision order. The stream reconnects by itself and does not end while the store lives; an error item is
/// a report (the store cannot be reached), after which the stream goes on trying.
pub type Watch = BoxStream<'static, Result<WatchEvent, MetadataError>>;

/// Why a metadata operation failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MetadataError {
    /// The store cannot be reached or did not answer in time. A write may or may not have taken effect.
    #[error("metadata store unavailable: {0}")]
    Unavailable(String),
    /// The lease does not exist: it expired or was revoked.
    #[error("lease {0:?} is gone")]
    LeaseGone(LeaseId),
    /// The request itself is wrong (too many operations, a key twice, refused credentials); retrying cannot help.
    #[error("metadata request refused: {0}")]
    Invalid(String),
}

impl MetadataError {
    /// A stable code for documentation and programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "METADATA_UNAVAILABLE",
            Self::LeaseGone(_) => "METADATA_LEASE_GONE",
            Self::Invalid(_) => "METADATA_INVALID",
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// Whether a failed write may still have taken effect.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

/// The contract every metadata store keeps.
///
/// - Reads are linearizable: a read that starts after a write was acknowledged sees it.
/// - A transaction is atomic and takes one revision.
/// - A watch from revision `r` delivers every change with revision ≥ `r` in order, each once, or a
///   [`WatchEvent::Resync`] in place of changes that no longer exist.
/// - A lease ends when it was not kept alive for its time to live, or by revocation; its keys are deleted in one
///   revision, and watches see it.
#[async_trait]
pub trait MetadataStore: Send + Sync + std::fmt::Debug + 'static {
    /// The key, or `None` where there is none.
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, MetadataError>;

    /// All keys that start with `prefix`, in key order, at one revision. Pages internally; no size limit of its own.
    async fn list(&self, prefix: &str) -> Result<Snapshot, MetadataError>;

    /// Applies the writes if all compares hold.
    async fn commit(&self, txn: Txn) -> Result<TxnOutcome, MetadataError>;

    /// Changes to keys that start with `prefix`, from revision `from` on (inclusive).
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, MetadataError>;

    /// A new lease. `ttl` is rounded up to whole seconds, at least one.
    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, MetadataError>;

    /// Restarts the lease's time to live, and says how long that is. [`MetadataError::LeaseGone`] if it ended.
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, MetadataError>;

    /// Ends the lease now; its keys are deleted. Revoking a lease that is gone is no error.
    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), MetadataError>;
}
