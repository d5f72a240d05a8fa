//! Whether the store's disk failed: then it takes no more appends until it is started again, or until there is room again
//! if that was what it failed for.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::watch;

/// The first failure; the others follow from it.
#[derive(Debug, Default)]
pub struct Failure {
    failed: AtomicBool,
    reason: watch::Sender<Option<Arc<str>>>,
}

impl Failure {
    pub fn set(&self, reason: &Arc<str>) {
        let first = self.reason.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                *known = Some(reason.clone());
                self.failed.store(true, Ordering::Release);
            }
            first
        });
        if first {
            tracing::error!(%reason, "the store takes no more appends; reads go on");
        }
    }

    /// The store takes appends again.
    pub fn clear(&self) {
        let reason = self.reason.send_replace(None);
        self.failed.store(false, Ordering::Release);
        if let Some(reason) = reason {
            tracing::info!(%reason, "there is room again: the store takes appends");
        }
    }

    /// The reason from now on.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.reason.subscribe()
    }

    pub fn reason(&self) -> Option<Arc<str>> {
        if self.failed.load(Ordering::Acquire) { self.reason.borrow().clone() } else { None }
    }
}
