//! The node: what is started, how it is reached, how it goes.

use std::sync::{Arc, OnceLock};

use streaming_types::LocalNode;
use tokio::sync::watch;
use tonic::service::Routes;
use woodpecker_base::{
    clock::Clock,
    health::{HealthReporter, State},
    metadata::{MetadataError, MetadataStore},
    random::Random,
    server_id,
    session::SessionError,
    tasks::Tasks,
};

use crate::{
    flow::Memory,
    identity::Identity,
    ids::IdSource,
    recovery::acks::BroadcastAcks,
    registration::Registration,
    service::Services,
    settings::{Flow, Settings, SettingsError},
    tenure::Tenure,
    timestamps::TimestampSource,
    wal::{allowance::Allowance, buffer::NodeBudget, open::Opener},
    wals::Wals,
};

/// What a node works with, injected.
#[derive(Debug, Clone)]
pub struct Parts {
    pub metadata: Arc<dyn MetadataStore>,
    pub logs: woodpecker::Client,
    pub timestamps: Arc<dyn TimestampSource>,
    pub ids: Arc<dyn IdSource>,
    pub acks: Arc<dyn BroadcastAcks>,
    pub memory: Memory,
    pub clock: Clock,
    pub random: Random,
    /// Where the node says how it is.
    pub health: HealthReporter,
    /// When writers are slowed down, as it is set at the moment.
    pub flow: watch::Receiver<Flow>,
    /// Whether consumers stand still, as it is set at the moment.
    pub paused: watch::Receiver<bool>,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("allocating a server id: {0}")]
    ServerId(#[from] MetadataError),
    #[error("registering the session: {0}")]
    Session(#[from] SessionError),
    #[error("serving gRPC: {0}")]
    Server(#[from] tonic::transport::Error),
}

impl StartError {
    /// A stable code for documentation and programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Settings(_) => "NODE_SETTINGS",
            Self::ServerId(error) => error.code(),
            Self::Session(error) => error.code(),
            Self::Server(_) => "NODE_SERVER",
        }
    }

    /// Whether starting again may succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Settings(_) => false,
            Self::ServerId(error) => error.is_retryable(),
            Self::Session(error) => error.is_retryable(),
            Self::Server(_) => true,
        }
    }

    /// Whether something may be left behind: a server id that nobody uses, a session that ends with its lease.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        !matches!(self, Self::Settings(_))
    }
}

/// Where a process finds its node. Clones are one place, which is empty until the node has started.
#[derive(Debug, Clone, Default)]
pub struct NodeCell(Arc<OnceLock<Arc<Node>>>);

impl NodeCell {
    /// The node, once it has started.
    #[must_use]
    pub fn get(&self) -> Option<Arc<Node>> {
        self.0.get().map(Arc::clone)
    }

    pub(crate) fn set(&self, node: &Arc<Node>) {
        // A process has one node; a second one would have a cell of its own.
        let _ = self.0.set(Arc::clone(node));
    }
}

/// A streaming node. Whoever hosts its [`Node::routes`] chooses the listener, calls [`Node::register`] once it listens
/// and [`Node::drain`] before it stops.
#[derive(Debug)]
pub struct Node {
    services: Services,
    parts: Parts,
    registration: Registration,
    paused: watch::Sender<bool>,
    tasks: Tasks,
}

impl Node {
    /// Starts a node under a new server id. It serves nothing until the coordinator assigns it something.
    ///
    /// # Errors
    /// The first setting that cannot work; the metadata store's.
    pub async fn start(settings: Settings, parts: Parts) -> Result<Self, StartError> {
        settings.validate()?;
        let settings = Arc::new(settings);
        let tasks = Tasks::new();
        let server_id = server_id::allocate(&*parts.metadata, &settings.metadata_root).await?;
        let identity = Arc::new(Identity::new(settings.cluster.clone(), server_id, parts.health.clone()));
        let mut set = parts.paused.clone();
        let paused = watch::Sender::new(*set.borrow_and_update());
        tasks.spawn_until_stopped(follow(set, paused.clone()));
        let tenure = Tenure::new(parts.clock.clone());
        let opener = Opener {
            settings: Arc::clone(&settings),
            metadata: Arc::clone(&parts.metadata),
            logs: parts.logs.clone(),
            timestamps: Arc::clone(&parts.timestamps),
            ids: Arc::clone(&parts.ids),
            acks: Arc::clone(&parts.acks),
            memory: parts.memory.clone().shared(parts.clock.clone()),
            growth: Arc::default(),
            tenure: tenure.clone(),
            paused: paused.clone(),
            clock: parts.clock.clone(),
            random: parts.random.clone(),
            tasks: tasks.clone(),
            buffers: Arc::new(NodeBudget::new(settings.node_buffer_bytes)),
            allowance: Allowance::new(settings.node_held_bytes),
            flow: parts.flow.clone(),
        };
        let wals = Arc::new(Wals::new(opener, Arc::clone(&identity), tasks.clone()));
        Ok(Self {
            services: Services { settings, identity, wals, clock: parts.clock.clone() },
            parts,
            registration: Registration::new(tenure),
            paused,
            tasks,
        })
    }

    /// The node's gRPC services. Each checks for itself that a call is meant for this cluster and this server, so other
    /// services may share the listener.
    #[must_use]
    pub fn routes(&self) -> Routes {
        self.services.routes()
    }

    /// The id under which peers know the node; a node that lost its session has a new one.
    #[must_use]
    pub fn server_id(&self) -> i64 {
        self.services.identity.server_id()
    }

    /// Lets every consumer stand still where it is, or go on: the emergency brake for consumers that break on what they
    /// read. Appends go on, and so do consumers that asked not to be paused. It holds until the next call, the next change
    /// of what is set, or the end of the process: a node starts as it is set.
    pub fn pause_scanners(&self, paused: bool) {
        self.paused.send_replace(paused);
    }

    /// Whether consumers stand still.
    #[must_use]
    pub fn scanners_are_paused(&self) -> bool {
        *self.paused.borrow()
    }

    /// Makes the node known at `address`, where its services must be reachable by now. A session that is lost later is
    /// replaced: what is open is closed, and the node comes back under a new server id.
    ///
    /// # Errors
    /// [`StartError::Session`].
    pub async fn register(&self, address: &str) -> Result<(), StartError> {
        self.registration.begin(&self.services, &self.parts, &self.tasks, address).await?;
        self.parts.health.report(State::Healthy, Vec::new());
        Ok(())
    }

    /// The node as clients in this process use it.
    #[must_use]
    pub fn local(&self) -> Arc<dyn LocalNode> {
        Arc::new(self.services.clone())
    }

    /// Announces that the node goes, closes every WAL, ends the session. Takes little longer than closing a WAL may.
    pub async fn drain(&self) {
        self.parts.health.report(State::Stopping, Vec::new());
        self.registration.announce();
        self.services.wals.close().await;
        self.registration.end();
        self.tasks.drain(&self.parts.clock, self.services.settings.close_timeout).await;
    }
}

/// Does what is set whenever that changes.
async fn follow(mut set: watch::Receiver<bool>, paused: watch::Sender<bool>) {
    while set.changed().await.is_ok() {
        paused.send_replace(*set.borrow_and_update());
    }
}
