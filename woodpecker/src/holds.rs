//! Registered readers of this process: what they have not read is not collected. All of them hang on one lease, which
//! one task keeps alive; a lease that is lost is replaced, and everything registered anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::Mutex as AsyncMutex;
use woodpecker_base::{
    clock::Clock,
    metadata::{LeaseId, MetadataError},
    tasks::Tasks,
};
use woodpecker_core::ids::{EntryId, LogId};

use crate::{LogError, catalog::Catalog, view::View};

/// How long a dead process' readers are still respected.
const TTL: Duration = Duration::from_secs(60);
/// How often the lease is kept alive, and positions are told.
const BEAT: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub(crate) struct Holds {
    catalog: Arc<Catalog>,
    clock: Clock,
    tasks: Tasks,
    held: Mutex<Held>,
    /// The lease that everything hangs on, once there is something.
    lease: AsyncMutex<Option<LeaseId>>,
}

type Name = (LogId, String);

#[derive(Debug, Default)]
struct Held {
    readers: BTreeMap<Name, Position>,
    /// May be registered, and are nobody's: dropped, or not known to be registered yet.
    leaving: BTreeSet<Name>,
}

#[derive(Debug, Clone, Copy)]
struct Position {
    next: EntryId,
    /// What the metadata store was told.
    told: EntryId,
}

/// One reader's registration; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    holds: Arc<Holds>,
    view: Arc<View>,
    name: Name,
}

impl Holds {
    pub fn new(catalog: Arc<Catalog>, clock: Clock, tasks: Tasks) -> Arc<Self> {
        let (held, lease) = (Mutex::default(), AsyncMutex::default());
        Arc::new(Self { catalog, clock, tasks, held, lease })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a reader. When this returns, nothing from `next` on that still exists is collected.
    pub async fn add(self: &Arc<Self>, view: &Arc<View>, name: &str, next: EntryId) -> Result<Hold, MetadataError> {
        let name = (view.id, self.catalog.unique(name));
        let mut lease = self.lease.lock().await;
        let id = match *lease {
            Some(id) => id,
            None => {
                let id = self.catalog.grant_lease(TTL).await?;
                self.tasks.spawn_until_stopped(keep(Arc::downgrade(self), self.clock.clone()));
                *lease.insert(id)
            }
        };
        self.held().leaving.insert(name.clone());
        match self.catalog.register(name.0, &name.1, next, id).await {
            Err(MetadataError::LeaseGone(_)) => {
                let id = self.renew(&mut lease).await?;
                self.catalog.register(name.0, &name.1, next, id).await?;
            }
            other => other?,
        }
        // Under the lock of the lease: whoever replaces it registers all that is held.
        {
            let mut held = self.held();
            held.leaving.remove(&name);
            held.readers.insert(name.clone(), Position { next, told: next });
        }
        drop(lease);
        view.attach_holder();
        Ok(Hold { holds: self.clone(), view: view.clone(), name })
    }

    /// Another lease in place of one that is gone, with all registrations.
    async fn renew(&self, lease: &mut Option<LeaseId>) -> Result<LeaseId, MetadataError> {
        let id = self.catalog.grant_lease(TTL).await?;
        tracing::warn!(old = ?*lease, new = id.0, "the lease of registered readers was lost; what they held may be gone");
        let all: Vec<(Name, EntryId)> = self.held().readers.iter().map(|(name, at)| (name.clone(), at.next)).collect();
        for ((log, name), next) in all {
            self.catalog.register(log, &name, next, id).await?;
        }
        *lease = Some(id);
        Ok(id)
    }

    /// Keeps the lease alive and tells how far readers are.
    async fn beat(&self) -> Result<(), LogError> {
        let mut lease = self.lease.lock().await;
        let Some(id) = *lease else { return Ok(()) };
        match self.catalog.keep_alive(id).await {
            Err(MetadataError::LeaseGone(_)) => {
                self.renew(&mut lease).await?;
                return Ok(());
            }
            other => other?,
        };
        let moved: Vec<(Name, EntryId)> = {
            let held = self.held();
            held.readers.iter().filter(|(_, at)| at.next > at.told).map(|(name, at)| (name.clone(), at.next)).collect()
        };
        for (name, next) in moved {
            if self.catalog.advance_reader(name.0, &name.1, next, id).await?
                && let Some(at) = self.held().readers.get_mut(&name)
            {
                at.told = next;
            }
        }
        self.let_go().await
    }

    /// Ends the registrations that are nobody's. Under the lock of the lease, so that nothing registers them anew.
    async fn let_go(&self) -> Result<(), LogError> {
        let leaving: Vec<Name> = self.held().leaving.iter().cloned().collect();
        // Together, since nothing keeps the lease alive meanwhile.
        self.catalog.unregister(&leaving).await?;
        self.held().leaving.retain(|name| !leaving.contains(name));
        Ok(())
    }
}

async fn keep(holds: Weak<Holds>, clock: Clock) {
    loop {
        clock.sleep(BEAT).await;
        let Some(holds) = holds.upgrade() else { return };
        if let Err(error) = holds.beat().await {
            tracing::debug!(%error, "registered readers cannot be kept alive now");
        }
    }
}

impl Hold {
    /// Everything before `next` is read.
    pub fn advance(&self, next: EntryId) {
        if let Some(at) = self.holds.held().readers.get_mut(&self.name) {
            at.next = at.next.max(next);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.view.detach_holder();
        {
            let mut held = self.holds.held();
            held.readers.remove(&self.name);
            held.leaving.insert(self.name.clone());
        }
        let holds = self.holds.clone();
        self.holds.tasks.spawn_until_stopped(async move {
            let _lease = holds.lease.lock().await;
            if let Err(error) = holds.let_go().await {
                tracing::debug!(%error, "registrations of readers that are gone stay until the next beat");
            }
        });
    }
}
