//! What happens to logs without their writers: closed segments are brought into their final form, what nobody needs is
//! deleted, and what crashes left behind is swept up.
//!
//! Of all processes that offer to do it one leads at a time. Everything it does is a step that may be repeated, by itself
//! or by the next leader; every change of a record is a compare-and-swap that also asks whether it still leads.

use std::{fmt, sync::Arc, time::Duration};

use tokio::select;
use woodpecker_base::{
    backoff::Backoff,
    election::{Leadership, campaign},
    server_id,
    session::{Session, SessionError, SessionRecord},
    tasks::Tasks,
};
use woodpecker_core::sealing::SealPolicy;

use self::shift::Shift;
use crate::{Client, LogError, client::Inner};

mod collector;
mod inventory;
mod sealer;
mod shift;
mod sweep;

const ROLE: &str = "woodpecker-maintenance";
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How long a leader that was told to stop may take to end what it is at.
const GRACE: Duration = Duration::from_secs(5);

/// When and how much. Values, not parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaintenanceSettings {
    /// Whether closed segments are sealed; without an object store they never are.
    pub sealing: bool,
    /// A closed segment is sealed after this time: what is truncated sooner need not be.
    pub seal_after: Duration,
    /// A closed segment of at least this many bytes is sealed at once.
    pub seal_bytes: u64,
    /// Segments worked on at the same time.
    pub parallelism: usize,
    /// Memory for the segments that are being sealed, in bytes.
    pub memory_bytes: usize,
    /// How often it looks for work.
    pub interval: Duration,
    /// What is truncated is kept for so long after its segment was closed, unless space runs out.
    pub keep_truncated: Duration,
    /// How often leftovers are looked for.
    pub sweep_interval: Duration,
    /// What no record names is left alone for so long: somebody may be about to name it.
    pub sweep_grace: Duration,
    /// How long after a leader's death another one takes over.
    pub session_ttl: Duration,
}

impl Default for MaintenanceSettings {
    fn default() -> Self {
        Self {
            sealing: true,
            seal_after: Duration::from_secs(30),
            seal_bytes: 32 << 20,
            parallelism: 4,
            memory_bytes: 256 << 20,
            interval: Duration::from_secs(5),
            keep_truncated: Duration::from_secs(600),
            sweep_interval: Duration::from_secs(1_800),
            sweep_grace: Duration::from_secs(3_600),
            session_ttl: Duration::from_secs(10),
        }
    }
}

impl MaintenanceSettings {
    fn policy(&self) -> SealPolicy {
        SealPolicy { min_age_ms: millis(self.seal_after), min_bytes: self.seal_bytes }
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pass {
    pub sealed: u64,
    pub freed: u64,
    /// Segments whose data was deleted.
    pub collected: u64,
    /// Objects, volumes and replicas that nobody knew of.
    pub swept: u64,
    pub failed: u64,
}

/// The service. It does nothing until [`Maintenance::serve`] or [`Maintenance::pass`].
pub struct Maintenance {
    client: Arc<Inner>,
    settings: MaintenanceSettings,
    pressed: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl fmt::Debug for Maintenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maintenance").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Maintenance {
    /// Maintenance of all logs of the client's instance, through the client's backends.
    #[must_use]
    pub fn new(client: &Client, settings: MaintenanceSettings) -> Self {
        Self { client: client.inner.clone(), settings, pressed: Arc::new(|| false) }
    }

    /// `pressed` says whether space runs out: then truncated data is not kept, and nothing waits to be sealed.
    #[must_use]
    pub fn with_pressure(self, pressed: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self { pressed: Arc::new(pressed), ..self }
    }

    /// Stands for election, and leads when elected, until `tasks` are told to stop.
    pub async fn serve(&self, tasks: &Tasks) {
        let Inner { clock, random, .. } = &*self.client;
        let mut pauses = Backoff::new(clock.clone(), random, PAUSES.0, PAUSES.1);
        loop {
            match self.lead(tasks).await {
                Ok(()) => pauses.reset(),
                Err(error) => tracing::warn!(%error, "maintenance of logs pauses"),
            }
            select! {
                biased;
                () = tasks.stopped() => return,
                () = pauses.wait() => {}
            }
        }
    }

    /// Leads once, until there is nothing left to do now. Waits for another leader to end first.
    ///
    /// # Errors
    /// The metadata store's; also when another process leads before all is done. What failed in the work itself is
    /// counted and tried again by the next pass.
    pub async fn pass(&self) -> Result<Pass, LogError> {
        let tasks = self.client.tasks.branch();
        let (session, leadership) = Box::pin(self.elected(&tasks)).await.map_err(unelected)?;
        let mut shift = self.shift(&leadership, &tasks);
        let outcome = select! {
            biased;
            () = session.lost() => Err(unelected(SessionError::Lost)),
            rested = Box::pin(shift.run_to_rest()) => rested,
        };
        self.end(session, &tasks).await;
        outcome.map(|()| shift.done)
    }

    /// Told to stop, it gives the lead back, for the next to take it at once.
    async fn lead(&self, tasks: &Tasks) -> Result<(), LogError> {
        let tasks = tasks.branch();
        let (session, leadership) = select! {
            biased;
            () = tasks.stopped() => return Ok(()),
            elected = Box::pin(self.elected(&tasks)) => elected.map_err(unelected)?,
        };
        tracing::info!(revision = leadership.revision(), "this process maintains the logs");
        metrics::gauge!("woodpecker_maintenance_leader").set(1.0);
        let mut shift = self.shift(&leadership, &tasks);
        let outcome = select! {
            biased;
            () = tasks.stopped() => Ok(()),
            () = session.lost() => Ok(()),
            ended = Box::pin(shift.run()) => ended,
        };
        metrics::gauge!("woodpecker_maintenance_leader").set(0.0);
        // How far it is behind is for whoever leads next to say.
        shift::report(0, 0, 0);
        self.end(session, &tasks).await;
        outcome
    }

    async fn elected(&self, tasks: &Tasks) -> Result<(Session, Leadership), SessionError> {
        let Inner { clock, catalog, .. } = &*self.client;
        let (store, root) = (catalog.store(), catalog.prefix());
        let id = server_id::allocate(&**store, root).await?;
        // Nobody dials it: the address only has to be nobody else's.
        let record = SessionRecord::new(ROLE, id, &format!("maintenance-{id}"), env!("CARGO_PKG_VERSION"));
        let ttl = self.settings.session_ttl;
        let session = Session::register(store.clone(), clock, tasks, root, record, ttl).await?;
        let leadership = campaign(store, clock, root, &session).await?;
        Ok((session, leadership))
    }

    fn shift(&self, leadership: &Leadership, tasks: &Tasks) -> Shift {
        Shift::new(self.client.clone(), self.settings.clone(), self.pressed.clone(), leadership.guard(), tasks.branch())
    }

    async fn end(&self, session: Session, tasks: &Tasks) {
        if let Err(error) = session.revoke().await {
            tracing::debug!(%error, "the leadership ends with its lease");
        }
        tasks.drain(&self.client.clock, GRACE).await;
    }
}

fn unelected(error: SessionError) -> LogError {
    match error {
        SessionError::Metadata(error) => error.into(),
        error => woodpecker_base::metadata::MetadataError::Unavailable(error.to_string()).into(),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
