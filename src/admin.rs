//! HTTP for operators and probes: `/healthz`, `/livez`, `/readyz`, `/metrics`, `/log/level`, and the role's own pages.

mod guard;
mod probes;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use axum::{
    Json, Router,
    extract::{ConnectInfo, DefaultBodyLimit, State, connect_info::Connected},
    http::StatusCode,
    middleware,
    routing::get,
    serve::IncomingStream,
};
use futures::StreamExt;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::{Deserialize, Serialize};
use woodpecker_base::{
    clock::Clock,
    health::HealthReporter,
    net::{Connection, Gate, Listener},
    tasks::Tasks,
};

use self::guard::Guard;
use crate::telemetry::{self, LogLevel};

/// The roles of the process, by the names that the protocol has for them.
pub(crate) type Roles = Vec<(&'static str, HealthReporter)>;

/// How long a request may take that has come before the stop.
const FAREWELL: Duration = Duration::from_secs(1);
/// How often what the histograms hold is tidied up.
const UPKEEP: Duration = Duration::from_secs(5);
/// After a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the pages show and do.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) roles: Roles,
    pub(crate) metrics: PrometheusHandle,
    pub(crate) level: LogLevel,
    /// The role's own pages.
    pub(crate) pages: Router,
    pub(crate) gate: Gate,
    /// Largest request.
    pub(crate) request_bytes: usize,
    pub(crate) clock: Clock,
}

/// Serves the usual pages, and the role's own, until the tasks are stopped. Returns the bound address.
///
/// # Errors
/// The address cannot be bound.
pub(crate) async fn serve(address: SocketAddr, admin: Admin, tasks: &Tasks) -> anyhow::Result<SocketAddr> {
    let listener = Listener::bind(address).await?.behind(&admin.gate);
    let bound = listener.address().parse().context("the address that was bound")?;
    let (upkeep, clock) = (admin.metrics.clone(), admin.clock.clone());
    let mut ticker = clock.ticker(UPKEEP);
    tasks.spawn_until_stopped(async move {
        loop {
            ticker.tick().await;
            upkeep.run_upkeep();
        }
    });
    let router = router(admin).into_make_service_with_connect_info::<Peer>();
    let incoming = Incoming { listener, bound, clock: clock.clone() };
    let token = tasks.token().clone();
    tasks.spawn(async move {
        let server = axum::serve(incoming, router).with_graceful_shutdown(token.clone().cancelled_owned());
        // A probe that keeps its connection open must not hold up the stop.
        let served = async { server.await.map_err(|error| tracing::warn!(%error, "admin server ended")) };
        let cut = async {
            token.cancelled().await;
            clock.sleep(FAREWELL).await;
        };
        tokio::select! {
            _ = served => {}
            () = cut => {}
        }
    });
    Ok(bound)
}

fn router(admin: Admin) -> Router {
    let guard = Arc::new(Guard::new(&admin.gate));
    let Admin { roles, metrics, level, pages, request_bytes, .. } = admin;
    let probes = Router::new()
        .route("/healthz", get(probes::healthz))
        // That this is answered at all says that the process lives; what it depends on is no reason to end it.
        .route("/livez", get(async || "OK"))
        .route("/readyz", get(probes::readyz))
        .with_state(roles);
    Router::new()
        .route("/metrics", get(async move || telemetry::page(&metrics)))
        .route("/log/level", get(level_now).put(set_level))
        .with_state(level)
        .merge(probes)
        .merge(pages)
        .layer(DefaultBodyLimit::max(request_bytes))
        .layer(middleware::from_fn_with_state(guard, guard::check))
}

#[derive(Debug, Serialize, Deserialize)]
struct Level {
    level: String,
}

async fn level_now(State(level): State<LogLevel>) -> Json<Level> {
    Json(Level { level: level.now() })
}

async fn set_level(
    State(level): State<LogLevel>,
    Json(wanted): Json<Level>,
) -> Result<Json<Level>, (StatusCode, String)> {
    level.set(&wanted.level).map_err(|error| (StatusCode::BAD_REQUEST, format!("{error:#}")))?;
    Ok(Json(Level { level: level.now() }))
}

/// The port's connections, for the HTTP server.
struct Incoming {
    listener: Listener,
    bound: SocketAddr,
    clock: Clock,
}

impl axum::serve::Listener for Incoming {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            match self.listener.next().await {
                Some(Ok(connection)) => {
                    let peer = connection.peer().unwrap_or(self.bound);
                    return (connection, peer);
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "the admin port takes no connection for a moment");
                    self.clock.sleep(ACCEPT_PAUSE).await;
                }
                None => std::future::pending().await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.bound)
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
struct Peer(SocketAddr);

impl Connected<IncomingStream<'_, Incoming>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Incoming>) -> Self {
        Self(*stream.remote_addr())
    }
}

/// Where requests carry their peer.
type From = ConnectInfo<Peer>;
