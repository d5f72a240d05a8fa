//! The role: a store on a listener of its own.

use std::{sync::Arc, time::Duration};

use streaming_proto::logstore::{StatusResponse, log_store_server::LogStoreServer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{
    service::{Routes, RoutesBuilder},
    transport::Server,
};
use woodpecker_base::{
    backoff::Backoff, clock::Clock, metadata::MetadataStore, net::Listener, random::Random, tasks::Tasks,
};

use crate::{
    refusal::Refusal,
    registration::Registration,
    service::Service,
    settings::Settings,
    store::{NamespaceStatus, Opened, Parts, StartError, Store},
};

/// Everything of the outside world that a log store touches.
#[derive(Debug)]
pub struct Edges {
    pub listener: Listener,
    /// Where stores register and clients look for them.
    pub metadata: Arc<dyn MetadataStore>,
    pub parts: Parts,
}

/// Enough in flight on one stream for large appends, without one stream holding up the others.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const FRAME: u32 = 64 << 10;
/// Every follower at a tail is a stream.
const MOST_STREAMS: u32 = 1 << 17;
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest request: one append as large as a block, and room for the rest of the message.
const MOST_REQUEST_BYTES: usize = 40 << 20;
const ORPHAN_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A running log store. Whoever hosts its [`LogStore::routes`] chooses the listener, calls [`LogStore::register`] once it
/// listens, and [`LogStore::drain`] before it stops.
#[derive(Debug, Clone)]
pub struct LogStore {
    pub(crate) store: Arc<Store>,
    random: Random,
    clock: Clock,
    /// Streams and upkeep.
    tasks: Tasks,
    /// The task that writes facts: ends last.
    ledger: Tasks,
    session: Tasks,
    registered: watch::Sender<bool>,
}

impl LogStore {
    /// Opens the data directory and starts the upkeep.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(settings: Settings, parts: Parts) -> Result<Self, StartError> {
        let (clock, random) = (parts.clock.clone(), parts.random.clone());
        let (tasks, ledger) = (Tasks::new(), Tasks::new());
        let grace = settings.shutdown_grace;
        let Opened { store, orphans } = match Store::start(settings, parts, &ledger).await {
            Ok(opened) => opened,
            Err(error) => {
                // The directory is free when this returns.
                ledger.drain(&clock, grace).await;
                return Err(error);
            }
        };
        tasks.spawn_until_stopped(store.clone().watch_disk());
        tasks.spawn_until_stopped(store.clone().write_committed());
        if !orphans.is_empty() {
            let pauses = Backoff::new(clock.clone(), &random, ORPHAN_PAUSES.0, ORPHAN_PAUSES.1);
            let cleaning = store.clone();
            tasks.spawn_until_stopped(async move { cleaning.delete_orphans(orphans, pauses).await });
        }
        let registered = watch::Sender::new(false);
        Ok(Self { store, random, clock, tasks, ledger, session: Tasks::new(), registered })
    }

    /// The store's identity, 32 lower-case hex digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.store.id
    }

    /// The gRPC services: the store, health and reflection.
    pub async fn routes(&self) -> Routes {
        let service = Service { store: self.store.clone(), tasks: self.tasks.clone() };
        let service = LogStoreServer::new(service)
            .max_decoding_message_size(MOST_REQUEST_BYTES)
            .max_encoding_message_size(usize::MAX);
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<LogStoreServer<Service>>().await;
        let mut routes = RoutesBuilder::default();
        routes.add_service(service).add_service(health_service);
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(streaming_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1();
        match reflection {
            Ok(reflection) => drop(routes.add_service(reflection)),
            Err(error) => tracing::warn!(%error, "no reflection"),
        }
        routes.routes()
    }

    /// Makes the store known at `address`, where it must be reachable by now, and keeps it so: while the metadata store is
    /// out of sight it is tried again and again.
    pub fn register(&self, address: &str, metadata: Arc<dyn MetadataStore>) {
        let address = self.store.settings.advertised_address.clone().unwrap_or_else(|| address.to_owned());
        let (random, registered) = (self.random.clone(), self.registered.clone());
        let registration = Registration::new(&self.store, address, metadata, random, registered);
        self.session.spawn(registration.keep(self.session.token().clone()));
    }

    /// Waits until the store is registered.
    pub async fn until_registered(&self) {
        // Fails never: the sender is this store's.
        let _ = self.registered.subscribe().wait_for(|registered| *registered).await;
    }

    /// Leaves the registry, ends the streams, makes durable what is queued, and closes the volume.
    pub async fn drain(&self) {
        let grace = self.store.settings.shutdown_grace;
        self.session.drain(&self.clock, grace).await;
        self.tasks.drain(&self.clock, grace).await;
        self.store.close().await;
        self.ledger.drain(&self.clock, grace).await;
    }

    /// Identity, state, load and disk.
    #[must_use]
    pub fn status(&self) -> StatusResponse {
        self.store.status()
    }

    /// Why the store takes no more appends, if its disk failed.
    #[must_use]
    pub fn failure(&self) -> Option<Arc<str>> {
        self.store.failure().reason()
    }

    /// The same from now on.
    #[must_use]
    pub fn failures(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.store.failure().subscribe()
    }

    /// Why all appends are refused though nothing failed, from now on: there is no room. Reads go on.
    #[must_use]
    pub fn refusing(&self) -> watch::Receiver<Option<&'static str>> {
        self.store.refusing()
    }

    /// Every namespace with what it uses.
    #[must_use]
    pub fn namespaces(&self) -> Vec<NamespaceStatus> {
        self.store.namespace_status()
    }

    /// Starts, or cancels, giving the store up.
    ///
    /// # Errors
    /// The store's facts cannot be written.
    pub async fn decommission(&self, cancel: bool) -> Result<StatusResponse, Refusal> {
        self.store.decommission(cancel).await
    }

    /// Releases every replica of a namespace, for ever, and says how many there were.
    ///
    /// # Errors
    /// The store's facts cannot be written, or the space did not come back.
    pub async fn delete_namespace(&self, name: &str) -> Result<u64, Refusal> {
        self.store.delete_namespace(name).await
    }

    /// Serves on a listener until `shutdown`, then drains; registered as soon as the metadata store lets it.
    ///
    /// # Errors
    /// The listener failed.
    pub async fn run(
        &self,
        listener: Listener,
        metadata: Arc<dyn MetadataStore>,
        shutdown: CancellationToken,
    ) -> Result<(), StartError> {
        // A listener takes connections before it is served.
        self.register(listener.address(), metadata);
        self.serve(listener, shutdown).await
    }

    /// Serves on a listener until `shutdown`, then drains. Whoever calls it sees to [`LogStore::register`].
    ///
    /// # Errors
    /// The listener failed.
    pub async fn serve(&self, listener: Listener, shutdown: CancellationToken) -> Result<(), StartError> {
        let serving = Tasks::new();
        let routes = self.routes().await;
        let stop = serving.token().clone().cancelled_owned();
        let mut guarded = server().layer(listener.guard());
        let mut server = serving.spawn(guarded.add_routes(routes).serve_with_incoming_shutdown(listener, stop));
        let ended = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            ended = &mut server => ended.unwrap_or(Ok(())).map_err(StartError::from),
        };
        self.drain().await;
        // Streams have ended; a peer that does not read does not keep the store.
        serving.drain(&self.clock, self.store.settings.shutdown_grace).await;
        ended
    }
}

/// How a server that hosts [`LogStore::routes`] is set up.
fn server() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_concurrent_streams(MOST_STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

/// Runs a log store until `shutdown`: streams end, what is queued becomes durable, the volume is closed, the registration
/// goes.
///
/// # Errors
/// [`StartError`]; after the start only that the listener failed.
pub async fn serve(settings: Settings, edges: Edges, shutdown: CancellationToken) -> Result<(), StartError> {
    let Edges { listener, metadata, parts } = edges;
    LogStore::start(settings, parts).await?.run(listener, metadata, shutdown).await
}
