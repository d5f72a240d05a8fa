//! A node on a listener of its own.

use std::{sync::Arc, time::Duration};

use streaming_proto::FILE_DESCRIPTOR_SET;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use woodpecker_base::{
    backoff::Backoff,
    clock::{Clock, Instant},
    health::{HealthReporter, State},
    metadata::MetadataStore,
    net::{Connector, Listener},
    random::Random,
    tasks::Tasks,
};

use crate::{Flow, Memory, Node, NodeCell, Parts, RootCoord, Settings, StartError, service::SERVICES};

/// Everything of the outside world that a node touches.
#[derive(Debug)]
pub struct Edges {
    pub listener: Listener,
    /// Makes connections to the coordinator.
    pub connector: Connector,
    pub metadata: Arc<dyn MetadataStore>,
    pub logs: woodpecker::Client,
    pub clock: Clock,
    pub random: Random,
    /// Where the node says how it is.
    pub health: HealthReporter,
    /// Where the rest of the process finds the node.
    pub cell: NodeCell,
    /// Replaces the marks of the settings' `flow` while the node runs, as often as it changes.
    pub flow: watch::Receiver<Flow>,
    /// Whether the node's consumers stand still, at the start and whenever it changes.
    pub paused: watch::Receiver<bool>,
}

/// Enough in flight on one stream for a batch of large messages, without one stream holding up the others.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
const FRAME: u32 = 64 << 10;
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Between attempts to reach a metadata store that is away at the start.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A start that waits for what is not there yet.
struct Waiting {
    deadline: Instant,
    clock: Clock,
    health: HealthReporter,
}

impl Waiting {
    /// Waits, and says what for, if another attempt may help.
    async fn after(&mut self, error: StartError, pauses: &mut Backoff) -> Result<(), StartError> {
        if !error.is_retryable() || self.clock.now() >= self.deadline {
            return Err(error);
        }
        tracing::warn!(%error, "the node cannot start yet; trying again");
        self.health.report(State::Initializing, vec![error.to_string()]);
        pauses.wait().await;
        Ok(())
    }
}

/// How a server that hosts [`Node::routes`] is set up.
#[must_use]
pub fn server() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

/// Runs a node until `shutdown`, then drains it: streams end, WALs are given up cleanly, the session goes.
///
/// # Errors
/// [`StartError`]; after the start only that the listener failed.
pub async fn serve(settings: Settings, edges: Edges, shutdown: CancellationToken) -> Result<(), StartError> {
    let Edges { listener, connector, metadata, logs, clock, random, health, cell, flow, paused } = edges;
    let address = settings.advertised_address.clone().unwrap_or_else(|| listener.address().to_owned());
    let grace = settings.close_timeout;
    let root = RootCoord::new(Arc::clone(&metadata), &settings.metadata_root, &settings.cluster, connector);
    let root = Arc::new(root);
    let parts = Parts {
        metadata,
        logs,
        timestamps: Arc::<RootCoord>::clone(&root),
        ids: Arc::<RootCoord>::clone(&root),
        acks: root,
        memory: Memory::process(),
        clock: clock.clone(),
        random,
        health: health.clone(),
        flow,
        paused,
    };
    let limit = settings.start_timeout;
    let mut pauses = Backoff::new(clock.clone(), &parts.random, PAUSES.0, PAUSES.1);
    let mut waiting = Waiting { deadline: clock.now() + limit, clock: clock.clone(), health: health.clone() };
    let starting = async {
        loop {
            match Node::start(settings.clone(), parts.clone()).await {
                Err(error) => waiting.after(error, &mut pauses).await?,
                started => return started,
            }
        }
    };
    let Some(started) = shutdown.run_until_cancelled(starting).await else { return Ok(()) };
    let node = Arc::new(started?);
    cell.set(&node);

    let tasks = Tasks::new();
    let stop = tasks.token().clone();
    let routes = health.serve(node.routes(), FILE_DESCRIPTOR_SET, &SERVICES, &tasks);
    let mut guarded = server().layer(listener.guard());
    let served = guarded.add_routes(routes).serve_with_incoming_shutdown(listener, stop.cancelled_owned());
    let mut server = tasks.spawn(served);
    let registering = async {
        loop {
            match node.register(&address).await {
                Err(error) => waiting.after(error, &mut pauses).await?,
                Ok(()) => return Ok(()),
            }
        }
    };
    let registered = shutdown.run_until_cancelled(registering).await.unwrap_or(Ok(()));
    if registered.is_ok() {
        tokio::select! {
            () = shutdown.cancelled() => {}
            ended = &mut server => {
                node.drain().await;
                return ended.unwrap_or(Ok(())).map_err(StartError::from);
            }
        }
    }
    node.drain().await;
    // Streams end by themselves once their WALs are closed; a peer that does not read does not keep the node.
    tasks.drain(&clock, grace).await;
    registered
}
