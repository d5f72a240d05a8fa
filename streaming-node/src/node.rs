//! The node: what is started, how it is reached, how it goes.

use std::sync::Arc;

use streaming_proto::common::StateCode;
use tonic::service::Routes;
use woodpecker_base::{clock::Clock, random::Random, tasks::Tasks};

use crate::{
    identity::Identity,
    service::Services,
    settings::{Settings, SettingsError},
    timestamps::TimestampSource,
    wal::open::Opener,
    wals::Wals,
};

/// What a node works with, injected.
#[derive(Debug, Clone)]
pub struct Parts {
    pub logs: woodpecker::Client,
    pub timestamps: Arc<dyn TimestampSource>,
    pub clock: Clock,
    pub random: Random,
}

/// A streaming node. Whoever hosts its [`Node::routes`] decides on which listener.
#[derive(Debug)]
pub struct Node {
    services: Services,
    tasks: Tasks,
    clock: Clock,
}

impl Node {
    /// Starts a node as server `server_id`. It serves nothing until the coordinator assigns it something.
    ///
    /// # Errors
    /// The first setting that cannot work.
    pub fn start(settings: Settings, server_id: i64, parts: Parts) -> Result<Self, SettingsError> {
        settings.validate()?;
        let settings = Arc::new(settings);
        let tasks = Tasks::new();
        let identity = Arc::new(Identity::new(settings.cluster.clone(), server_id));
        let opener = Opener {
            settings: Arc::clone(&settings),
            logs: parts.logs,
            timestamps: parts.timestamps,
            clock: parts.clock.clone(),
            random: parts.random,
            tasks: tasks.clone(),
        };
        let wals = Arc::new(Wals::new(opener, Arc::clone(&identity), tasks.clone()));
        identity.set_state(StateCode::Healthy);
        Ok(Self { services: Services { settings, identity, wals }, tasks, clock: parts.clock })
    }

    /// The node's gRPC services.
    #[must_use]
    pub fn routes(&self) -> Routes {
        self.services.routes()
    }

    /// Closes every WAL and stops.
    pub async fn drain(&self) {
        self.services.identity.set_state(StateCode::Stopping);
        self.services.wals.close().await;
        self.tasks.drain(&self.clock, self.services.settings.close_timeout).await;
    }
}
