//! Whether the store's disk failed: then it takes no more appends until it is started again.

use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;

use crate::metrics;

/// The first failure; the others follow from it.
#[derive(Debug, Default)]
pub struct Failure {
    reason: OnceLock<Arc<str>>,
    /// Told when it happens.
    pub happened: Notify,
}

impl Failure {
    pub fn set(&self, reason: &Arc<str>) {
        if self.reason.set(reason.clone()).is_ok() {
            tracing::error!(%reason, "the store takes no more appends until it is started again; reads go on");
            metrics::writable(false);
            self.happened.notify_waiters();
        }
    }

    pub fn reason(&self) -> Option<Arc<str>> {
        self.reason.get().cloned()
    }
}
