//! Whether the store's disk failed: then it takes no more appends until it is started again, or until there is room again
//! if that was what it failed for.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

use crate::{lock, metrics};

/// The first failure; the others follow from it.
#[derive(Debug, Default)]
pub struct Failure {
    failed: AtomicBool,
    reason: Mutex<Option<Arc<str>>>,
    /// Told when it happens.
    pub happened: Notify,
}

impl Failure {
    pub fn set(&self, reason: &Arc<str>) {
        {
            let mut known = lock(&self.reason);
            if known.is_some() {
                return;
            }
            *known = Some(reason.clone());
            self.failed.store(true, Ordering::Release);
        }
        tracing::error!(%reason, "the store takes no more appends; reads go on");
        metrics::writable(false);
        // Kept for a watcher that is busy just now.
        self.happened.notify_one();
    }

    /// The store takes appends again.
    pub fn clear(&self) {
        let reason = lock(&self.reason).take();
        self.failed.store(false, Ordering::Release);
        if let Some(reason) = reason {
            tracing::info!(%reason, "there is room again: the store takes appends");
            metrics::writable(true);
        }
    }

    pub fn reason(&self) -> Option<Arc<str>> {
        if self.failed.load(Ordering::Acquire) { lock(&self.reason).clone() } else { None }
    }
}
