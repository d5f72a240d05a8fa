//! A coordinator on a listener of its own.

use std::{sync::Arc, time::Duration};

use streaming_proto::FILE_DESCRIPTOR_SET;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{service::RoutesBuilder, transport::Server};
use woodpecker_base::{
    clock::Clock,
    health::HealthReporter,
    metadata::MetadataStore,
    net::{Connector, Listener},
    random::Random,
    tasks::Tasks,
};

use crate::{Balance, Coordinator, CoordinatorError, Parts, Settings, services::SERVICES};

/// Everything of the outside world that a coordinator touches.
#[derive(Debug)]
pub struct Edges {
    pub listener: Listener,
    /// Makes connections to streaming nodes.
    pub connector: Connector,
    pub metadata: Arc<dyn MetadataStore>,
    pub clock: Clock,
    pub random: Random,
    /// Where the coordinator says how it is.
    pub health: HealthReporter,
    /// Replaces the settings' `balance` while the coordinator runs, as often as it changes.
    pub balance: watch::Receiver<Balance>,
}

const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs a coordinator until `shutdown`, then ends its reign, its session and its streams.
///
/// # Errors
/// What kept it from starting or ended it, unless it was asked to end.
pub async fn serve(settings: Settings, edges: Edges, shutdown: CancellationToken) -> Result<(), CoordinatorError> {
    let Edges { listener, connector, metadata, clock, random, health, balance } = edges;
    let grace = settings.shutdown_grace;
    let tasks = Tasks::under(&shutdown);
    let parts = Parts { connector, metadata, clock: clock.clone(), random, health: health.clone(), balance };
    let mut coordinator = Coordinator::start(settings, listener.address(), parts, &tasks)?;
    let mut routes = RoutesBuilder::default();
    coordinator.register(&mut routes);
    let routes = health.serve(routes.routes(), FILE_DESCRIPTOR_SET, &SERVICES, &tasks);
    let server = Server::builder()
        .layer(listener.guard())
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_routes(routes)
        .serve_with_incoming_shutdown(listener, tasks.token().clone().cancelled_owned());
    tokio::pin!(server);
    let outcome = tokio::select! {
        outcome = &mut server => {
            tasks.stop();
            return outcome.map_err(Into::into).and(coordinator.ended().await);
        }
        outcome = coordinator.ended() => outcome,
    };
    tasks.stop();
    // Clients that do not let go in time are cut off.
    if let Ok(Err(error)) = clock.timeout(grace, server).await {
        tracing::warn!(%error, "the gRPC server ended badly");
    }
    outcome
}
