//! The node's session: registered, kept, replaced when it is lost, and ended in good order.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use woodpecker_base::{
    backoff::Backoff,
    health::State,
    server_id,
    session::{Session, SessionError, SessionRecord},
    tasks::Tasks,
};

use crate::{
    node::Parts,
    service::{ROLE, Services},
    tenure::Tenure,
};

/// Deadline of a farewell that the metadata store does not hear.
const FAREWELL: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Tells the task that keeps the session what the node is about to do.
#[derive(Debug)]
pub struct Registration {
    tenure: Tenure,
    leaving: CancellationToken,
    left: CancellationToken,
}

impl Registration {
    pub fn new(tenure: Tenure) -> Self {
        Self { tenure, leaving: CancellationToken::new(), left: CancellationToken::new() }
    }

    /// Registers the node and keeps it registered until it leaves.
    pub async fn begin(
        &self,
        services: &Services,
        parts: &Parts,
        tasks: &Tasks,
        address: &str,
    ) -> Result<(), SessionError> {
        let keeper = Keeper {
            services: services.clone(),
            parts: parts.clone(),
            tasks: tasks.clone(),
            address: address.to_owned(),
            tenure: self.tenure.clone(),
            leaving: self.leaving.clone(),
            left: self.left.clone(),
        };
        // The coordinator may give the node something before we hear that there is a session.
        self.tenure.rest_on(Weak::new());
        let session = keeper.register().await?;
        tasks.spawn(keeper.keep(session));
        Ok(())
    }

    /// The node gives away what it has.
    pub fn announce(&self) {
        self.leaving.cancel();
    }

    /// The node has nothing left.
    pub fn end(&self) {
        self.left.cancel();
    }
}

struct Keeper {
    services: Services,
    parts: Parts,
    tasks: Tasks,
    address: String,
    tenure: Tenure,
    leaving: CancellationToken,
    left: CancellationToken,
}

impl Keeper {
    async fn register(&self) -> Result<Arc<Session>, SessionError> {
        let settings = &self.services.settings;
        let identity = &self.services.identity;
        let record = SessionRecord {
            labels: settings.labels.clone(),
            ..SessionRecord::new(ROLE, identity.server_id(), &self.address, &settings.version)
        };
        let (store, root) = (Arc::clone(&self.parts.metadata), &settings.metadata_root);
        let (clock, ttl) = (&self.parts.clock, settings.session_ttl);
        let session = Arc::new(Session::register(store, clock, &self.tasks, root, record, ttl).await?);
        self.tenure.rest_on(Arc::downgrade(&session));
        Ok(session)
    }

    async fn keep(self, mut session: Arc<Session>) {
        loop {
            tokio::select! {
                biased;
                () = self.leaving.cancelled() => return self.leave(session).await,
                () = session.lost() => {}
            }
            tracing::warn!(server_id = session.record().server_id, "the session is lost; closing and registering anew");
            drop(session);
            let missing = "the session is lost: everything is closed, registering anew";
            self.parts.health.report(State::Initializing, vec![missing.to_owned()]);
            // Others may own what was ours by now; nothing of the old server id goes on under the new one.
            self.services.wals.release().await;
            let Some(next) = self.leaving.run_until_cancelled(self.register_anew()).await else { return };
            session = next;
            self.parts.health.report(State::Healthy, Vec::new());
        }
    }

    async fn register_anew(&self) -> Arc<Session> {
        let mut backoff = Backoff::new(self.parts.clock.clone(), &self.parts.random, FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let root = &self.services.settings.metadata_root;
            let registered = match server_id::allocate(&*self.parts.metadata, root).await {
                Ok(server_id) => {
                    self.services.wals.begin_anew(server_id);
                    self.register().await
                }
                Err(error) => Err(error.into()),
            };
            match registered {
                Ok(session) => return session,
                Err(error) => tracing::warn!(%error, "registering failed, trying again"),
            }
            backoff.wait().await;
        }
    }

    async fn leave(&self, session: Arc<Session>) {
        let clock = &self.parts.clock;
        if !matches!(clock.timeout(FAREWELL, session.announce_stopping()).await, Ok(Ok(()))) {
            tracing::warn!("the metadata store did not hear that the node is stopping");
        }
        self.left.cancelled().await;
        let Some(session) = Arc::into_inner(session) else { return };
        if !matches!(clock.timeout(FAREWELL, session.revoke()).await, Ok(Ok(()))) {
            tracing::warn!("the session was not ended; it ends with its lease");
        }
    }
}
