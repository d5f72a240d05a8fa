//! Timestamps and ids that are never given out twice, not even across a restart, a fail-over or a clock that steps
//! back: what may be given out lies below a ceiling that was made durable beforehand.

mod ids;
mod timestamps;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, watch};
use woodpecker_base::{clock::Clock, tasks::Tasks};

pub(crate) use self::{
    ids::Ids,
    timestamps::{Timestamps, physical_ms},
};
use crate::catalog::{Catalog, CatalogError, Record};

/// The most numbers one call may ask for.
pub(crate) const MAX_COUNT: u32 = 1 << 18;

/// How long a call waits for a higher ceiling before it makes do with what is left below the present one.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long to wait after a ceiling could not be stored.
const RETRY: Duration = Duration::from_millis(200);

/// The pure part of an allocator.
pub(crate) trait Sequence: Send + 'static {
    /// The first of `count` consecutive numbers, or `None` while no ceiling allows them. `stalled` says that the
    /// ceiling cannot be raised for now, so that what is left must last.
    fn take(&mut self, count: u32, wall_ms: u64, stalled: bool) -> Option<u64>;

    /// The ceiling that should be made durable soon, if the present one is running low.
    fn wanted(&self, wall_ms: u64) -> Option<u64>;

    /// A new ceiling is durable.
    fn raise(&mut self, ceiling: u64);
}

/// Nothing is left below the durable ceiling, and it cannot be raised for now, or ever if another coordinator leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the reservation in the metadata store is used up and cannot be renewed")]
pub(crate) struct Exhausted;

/// Gives out numbers; a task of its own keeps the ceiling ahead.
pub(crate) struct Allocator<S> {
    inner: Arc<Inner<S>>,
}

struct Inner<S> {
    sequence: Mutex<S>,
    clock: Clock,
    /// A call has seen that a higher ceiling is wanted.
    wanted: Notify,
    outlook: watch::Sender<Outlook>,
}

/// How the last try at raising the ceiling went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outlook {
    Rising,
    /// It failed, and is tried again.
    Stalled,
    /// It never will again: another coordinator leads.
    Closed,
}

impl<S> fmt::Debug for Allocator<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Allocator").finish_non_exhaustive()
    }
}

impl<S: Sequence> Allocator<S> {
    /// Starts the task that keeps the ceiling in `record` ahead of `sequence`.
    pub(crate) fn start(sequence: S, record: Record, catalog: Catalog, clock: Clock, tasks: &Tasks) -> Self {
        let outlook = watch::Sender::new(Outlook::Rising);
        let inner = Arc::new(Inner { sequence: Mutex::new(sequence), clock, wanted: Notify::new(), outlook });
        tasks.spawn_until_stopped(inner.clone().keep_ahead(record, catalog));
        Self { inner }
    }

    /// The first of `count` consecutive numbers, all larger than any given out before.
    pub(crate) async fn take(&self, count: u32) -> Result<u64, Exhausted> {
        let inner = &self.inner;
        let deadline = inner.clock.now() + PATIENCE;
        let mut outlook = inner.outlook.subscribe();
        loop {
            let now = *outlook.borrow_and_update();
            if now == Outlook::Closed {
                return Err(Exhausted);
            }
            if let Some(first) = inner.take(count, now == Outlook::Stalled) {
                return Ok(first);
            }
            let left = deadline.saturating_duration_since(inner.clock.now());
            if inner.clock.timeout(left, outlook.changed()).await.is_err() {
                return inner.take(count, true).ok_or(Exhausted);
            }
        }
    }
}

impl<S: Sequence> Inner<S> {
    fn sequence(&self) -> MutexGuard<'_, S> {
        self.sequence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, count: u32, stalled: bool) -> Option<u64> {
        let wall_ms = self.clock.wall_ms();
        let mut sequence = self.sequence();
        let first = sequence.take(count, wall_ms, stalled);
        if sequence.wanted(wall_ms).is_some() {
            self.wanted.notify_one();
        }
        first
    }

    async fn keep_ahead(self: Arc<Self>, mut record: Record, catalog: Catalog) {
        loop {
            self.wanted.notified().await;
            let Some(ceiling) = self.wanted() else { continue };
            match catalog.store_number(&mut record, ceiling).await {
                Ok(()) => {
                    self.sequence().raise(ceiling);
                    self.outlook.send_replace(Outlook::Rising);
                }
                Err(CatalogError::Deposed) => {
                    self.outlook.send_replace(Outlook::Closed);
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "the reservation of timestamps or ids cannot be renewed for now");
                    self.outlook.send_replace(Outlook::Stalled);
                    self.clock.sleep(RETRY).await;
                    self.wanted.notify_one();
                }
            }
        }
    }

    fn wanted(&self) -> Option<u64> {
        let wall_ms = self.clock.wall_ms();
        self.sequence().wanted(wall_ms)
    }
}

#[cfg(test)]
mod tests;
