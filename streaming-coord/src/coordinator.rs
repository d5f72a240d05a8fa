//! The role: stands for election, leads, stands again.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures::StreamExt;
use tonic::service::RoutesBuilder;
use woodpecker_base::{
    backoff::Backoff,
    election::{Leadership, campaign},
    health::State,
    metadata::MetadataError,
    server_id,
    session::{Session, SessionError, SessionKeys, SessionRecord, watch_sessions},
    tasks::Tasks,
};

use crate::{
    active::{Active, BeginError, Parts},
    balancer::ChannelStatus,
    catalog::CatalogError,
    metrics, services,
    settings::{OnLeadershipLoss, Settings, SettingsError},
    shared::{Phase, Shared},
};

/// The role that clients and nodes look for.
const ROLE: &str = "mixcoord";

/// Why a coordinator did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    #[error("setting {0}")]
    Settings(#[from] SettingsError),
    /// What the metadata store holds makes no sense, or it refuses us; nothing is done that could make it worse.
    #[error("metadata: {0}")]
    Metadata(String),
    /// Another coordinator may lead, and the settings say to end then.
    #[error("the leadership was lost")]
    LeadershipLost,
    #[error("gRPC server: {0}")]
    Server(#[from] tonic::transport::Error),
}

impl CoordinatorError {
    /// A stable code for documentation and programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Settings(_) => "COORDINATOR_SETTINGS",
            Self::Metadata(_) => "COORDINATOR_METADATA",
            Self::LeadershipLost => "COORDINATOR_LEADERSHIP_LOST",
            Self::Server(_) => "COORDINATOR_SERVER",
        }
    }

    /// Whether starting again may help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::LeadershipLost | Self::Server(_))
    }

    /// Whether channels may have been assigned before it.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        !matches!(self, Self::Settings(_))
    }
}

/// A running coordinator. It runs until the tasks it was started with are stopped; dropping it does not stop it.
#[derive(Debug)]
pub struct Coordinator {
    shared: Arc<Shared>,
    role: tokio::task::JoinHandle<Result<(), CoordinatorError>>,
}

impl Coordinator {
    /// Starts to stand for election. `address` is what others dial if the settings name nothing else. Serve
    /// [`Coordinator::register`]'s services at once: calls wait until the coordinator is active.
    ///
    /// # Errors
    /// [`CoordinatorError::Settings`].
    pub fn start(settings: Settings, address: &str, parts: Parts, tasks: &Tasks) -> Result<Self, CoordinatorError> {
        settings.validate()?;
        let address = settings.advertised_address.clone().unwrap_or_else(|| address.to_owned());
        let shared = Arc::new(Shared::new(settings, parts.clock.clone()));
        tasks.spawn(shared.clone().report(parts.health.clone()));
        let role = Role { shared: shared.clone(), parts, address, tasks: tasks.clone() };
        Ok(Self { role: tasks.spawn(role.run()), shared })
    }

    /// Adds the coordinator's gRPC services. Each of them checks `cluster` and `serverid` against this coordinator only,
    /// so services of a node may stand beside them on one port.
    pub fn register(&self, routes: &mut RoutesBuilder) {
        services::register(&self.shared, routes);
    }

    /// Every channel as this coordinator sees it; empty while it is not active.
    #[must_use]
    pub fn channels(&self) -> Arc<Vec<ChannelStatus>> {
        self.shared.status.borrow().clone()
    }

    /// What it does at the moment.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.phase.borrow().state()
    }

    /// Waits until it leads; false if it stops before.
    pub async fn until_active(&self) -> bool {
        let mut phase = self.shared.phase.subscribe();
        let decided = phase.wait_for(|phase| matches!(phase, Phase::Active(_) | Phase::Stopping)).await;
        decided.is_ok_and(|phase| matches!(*phase, Phase::Active(_)))
    }

    /// The server id of the current registration; `None` before there is one.
    #[must_use]
    pub fn server_id(&self) -> Option<i64> {
        Some(self.shared.server_id()).filter(|id| *id != 0)
    }

    /// Waits until it has ended, and says why.
    ///
    /// # Errors
    /// What ended it, unless it was asked to.
    pub async fn ended(&mut self) -> Result<(), CoordinatorError> {
        match (&mut self.role).await {
            Ok(outcome) => outcome,
            Err(error) => Err(CoordinatorError::Metadata(format!("the role's task has ended: {error}"))),
        }
    }
}

/// The task of the role.
struct Role {
    shared: Arc<Shared>,
    parts: Parts,
    address: String,
    tasks: Tasks,
}

/// How a registration ended that was not asked to.
enum Ended {
    /// The session, and with it the leadership, is gone.
    Lost,
    /// The server id is too small to lead; a new one will do.
    Outranked,
    Failed(CoordinatorError),
}

impl Role {
    async fn run(self) -> Result<(), CoordinatorError> {
        let mut backoff = backoff(&self.parts);
        loop {
            match self.stand().await {
                None => return Ok(()),
                Some(Ended::Outranked) => {}
                Some(Ended::Lost) if self.shared.settings.on_leadership_loss == OnLeadershipLoss::Exit => {
                    self.retire(Phase::Stopping);
                    return Err(CoordinatorError::LeadershipLost);
                }
                Some(Ended::Lost) => backoff.wait().await,
                Some(Ended::Failed(error)) => {
                    self.retire(Phase::Stopping);
                    return Err(error);
                }
            }
        }
    }

    /// One registration, from its beginning to its end; `None` if it ended because it was asked to.
    async fn stand(&self) -> Option<Ended> {
        self.retire(Phase::Initializing);
        let stop = self.tasks.token();
        let session = match stop.run_until_cancelled(self.register()).await {
            Some(Ok(session)) => Arc::new(session),
            Some(Err(error)) => return Some(Ended::Failed(error)),
            None => {
                self.retire(Phase::Stopping);
                return None;
            }
        };
        let reign = self.tasks.branch();
        let ended = stop.run_until_cancelled(self.lead(&session, &reign)).await;
        self.retire(if ended.is_none() { Phase::Stopping } else { Phase::Initializing });
        reign.drain(&self.parts.clock, self.shared.settings.shutdown_grace).await;
        // Whoever stands by need not wait for the lease to end by itself.
        if let Some(session) = Arc::into_inner(session) {
            let revoked = self.parts.clock.timeout(self.shared.settings.metadata_timeout, session.revoke()).await;
            if let Ok(Err(error)) = revoked {
                tracing::warn!(%error, "the session ends with its lease");
            }
        }
        ended
    }

    /// Stands for election and, once elected, leads until the session is lost. All that leads runs in `reign`.
    async fn lead(&self, session: &Arc<Session>, reign: &Tasks) -> Ended {
        let phase = &self.shared.phase;
        phase.send_replace(Phase::StandBy);
        let Settings { metadata_root, .. } = &self.shared.settings;
        let elected = tokio::select! {
            elected = campaign(&self.parts.metadata, &self.parts.clock, metadata_root, session) => elected,
            never = self.note_leader() => match never {},
        };
        self.shared.leader.send_replace(None);
        let leadership = match elected {
            Ok(leadership) => leadership,
            Err(error) => {
                tracing::warn!(%error, "not elected");
                return Ended::Lost;
            }
        };
        phase.send_replace(Phase::Initializing);
        tracing::info!(server_id = self.shared.server_id(), "elected");
        let began = tokio::select! {
            began = self.begin(session, &leadership, reign) => began,
            () = session.lost() => Err(Ended::Lost),
        };
        match began {
            Ok(active) => phase.send_replace(Phase::Active(Arc::new(active))),
            Err(ended) => return ended,
        };
        tracing::info!(server_id = self.shared.server_id(), "active");
        session.lost().await;
        tracing::warn!(server_id = self.shared.server_id(), "the session, and with it the leadership, is lost");
        Ended::Lost
    }

    /// Keeps in mind where another coordinator leads.
    async fn note_leader(&self) -> Infallible {
        let Parts { metadata, clock, random, .. } = &self.parts;
        let root = &self.shared.settings.metadata_root;
        let mut views = watch_sessions(metadata.clone(), root, SessionKeys::Exclusive(ROLE), clock.clone(), random);
        while let Some(view) = views.next().await {
            // While the store cannot be reached, the last one seen may lead.
            if let Ok(view) = view {
                let mut addresses = view.sessions.into_values().map(|session| session.address);
                let leader = addresses.find(|address| !address.is_empty() && *address != self.address);
                self.shared.leader.send_replace(leader);
            }
        }
        std::future::pending().await
    }

    async fn begin(&self, session: &Arc<Session>, leadership: &Leadership, reign: &Tasks) -> Result<Active, Ended> {
        let mut backoff = backoff(&self.parts);
        loop {
            match Active::begin(&self.shared, &self.parts, (session, leadership), reign).await {
                Ok(active) => return Ok(active),
                Err(BeginError::Outranked { ours, earlier }) => {
                    tracing::info!(ours, earlier, "the server id is too small to lead");
                    return Err(Ended::Outranked);
                }
                Err(BeginError::Catalog(CatalogError::Deposed)) => return Err(Ended::Lost),
                Err(BeginError::Catalog(error)) if error.is_retryable() => {
                    tracing::warn!(%error, "the catalogue cannot be read for now");
                    backoff.wait().await;
                }
                Err(error) => return Err(Ended::Failed(CoordinatorError::Metadata(error.to_string()))),
            }
        }
    }

    async fn register(&self) -> Result<Session, CoordinatorError> {
        let Settings { metadata_root, version, session_ttl, .. } = &self.shared.settings;
        let mut backoff = backoff(&self.parts);
        loop {
            let store = &self.parts.metadata;
            let registered = async {
                // A new id for each registration: it is what orders the assignments of one leader after another's.
                let id = server_id::allocate(&**store, metadata_root).await?;
                let record = SessionRecord { exclusive: true, ..SessionRecord::new(ROLE, id, &self.address, version) };
                let (clock, tasks) = (&self.parts.clock, &self.tasks);
                let session =
                    Session::register(store.clone(), clock, tasks, metadata_root, record, *session_ttl).await?;
                Ok::<_, SessionError>((id, session))
            };
            match registered.await {
                Ok((id, session)) => {
                    self.shared.set_server_id(id);
                    return Ok(session);
                }
                Err(SessionError::Metadata(error @ MetadataError::Invalid(_))) => {
                    return Err(CoordinatorError::Metadata(error.to_string()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot register for now");
                    backoff.wait().await;
                }
            }
        }
    }

    /// Ends what only an active coordinator has; clients keep the last assignment they were given.
    fn retire(&self, phase: Phase) {
        self.shared.phase.send_replace(phase);
        self.shared.assignment.send_replace(None);
        let before = self.shared.status.send_replace(Arc::default());
        metrics::channels(&before, &[]);
        metrics::broadcasts(false);
    }
}

fn backoff(parts: &Parts) -> Backoff {
    Backoff::new(parts.clock.clone(), &parts.random, Duration::from_millis(100), Duration::from_secs(3))
}
