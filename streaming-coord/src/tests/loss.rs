//! A metadata store that fails one write, which may have come through all the same.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use woodpecker_base::{
    clock::Clock,
    metadata::{Interfered, Interference, MemoryStore, MetadataError, MetadataStore, Txn, TxnOutcome, Write},
};

/// Which write fails, by its key and its value.
type Which = fn(&str, &[u8]) -> bool;

/// What fails next, if anything, and whether it comes through.
#[derive(Debug, Default)]
pub(crate) struct Loss(Mutex<Option<(Which, bool)>>);

impl Loss {
    /// A store in memory that suffers it.
    pub(crate) fn on(store: &MemoryStore) -> Arc<Interfered<Self>> {
        Arc::new(Interfered::new(Arc::new(store.clone()), Self::default()))
    }

    pub(crate) fn on_a_new_store() -> Arc<Interfered<Self>> {
        Self::on(&MemoryStore::new(Clock::system()))
    }

    /// Fails the next write that is such.
    pub(crate) fn fail(&self, which: Which) {
        *self.0.lock().unwrap() = Some((which, false));
    }

    /// As [`Self::fail`], and the write comes through.
    pub(crate) fn fail_though_written(&self, which: Which) {
        *self.0.lock().unwrap() = Some((which, true));
    }

    /// Whether it has failed.
    pub(crate) fn is_over(&self) -> bool {
        self.0.lock().unwrap().is_none()
    }
}

#[async_trait]
impl Interference for Loss {
    async fn commit(&self, store: &dyn MetadataStore, txn: Txn) -> Result<TxnOutcome, MetadataError> {
        let is = |which: Which| {
            let mut writes = txn.writes.iter();
            writes.any(|write| matches!(write, Write::Put { key, value, .. } if which(key, value)))
        };
        let Some((_, comes_through)) = self.0.lock().unwrap().take_if(|(which, _)| is(*which)) else {
            return store.commit(txn).await;
        };
        if comes_through {
            store.commit(txn).await?;
        }
        Err(MetadataError::Unavailable("no answer".into()))
    }
}
