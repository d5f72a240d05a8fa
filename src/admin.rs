//! HTTP for operators and probes: `/healthz`, `/livez`, `/readyz`, `/metrics`, `/log/level`, and the role's own pages.

mod guard;
mod probes;

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use anyhow::Context;
use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    middleware,
    response::IntoResponse,
    routing::get,
};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
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

/// How long what is being answered may take when the port closes. A probe that keeps its connection open must not hold up the
/// stop.
const FAREWELL: Duration = Duration::from_secs(1);
/// How often what the histograms hold is tidied up.
const UPKEEP: Duration = Duration::from_secs(5);
/// Scrapers come again within a minute.
const SILENCE: Duration = Duration::from_secs(75);
const ARRIVAL: Duration = Duration::from_secs(30);
/// After a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a peer may take.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// A connection is kept on which no request, or only the beginning of one, comes.
    silence: Duration,
    /// The body of a request takes to arrive. How long it is worked on is not its peer's doing.
    arrival: Duration,
    /// Bytes of that.
    bytes: usize,
}

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
    let mut listener = Listener::bind(address).await?.behind(&admin.gate);
    let bound = listener.address().parse().context("the address that was bound")?;
    let (upkeep, clock) = (admin.metrics.clone(), admin.clock.clone());
    let mut ticker = clock.ticker(UPKEEP);
    tasks.spawn_until_stopped(async move {
        loop {
            ticker.tick().await;
            upkeep.run_upkeep();
        }
    });
    let limits = Limits { silence: SILENCE, arrival: ARRIVAL, bytes: admin.request_bytes };
    let (router, tasks, token) = (router(admin), tasks.clone(), tasks.token().clone());
    tasks.clone().spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = token.cancelled() => break,
                accepted = listener.next() => accepted,
            };
            match accepted {
                Some(Ok(connection)) => {
                    let answering = answer(connection, router.clone(), limits, clock.clone(), token.clone());
                    tasks.spawn(answering);
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "the admin port takes no connection for a moment");
                    clock.sleep(ACCEPT_PAUSE).await;
                }
                None => break,
            }
        }
    });
    Ok(bound)
}

/// Answers what comes on a connection, until its peer is gone or silent, or the port closes.
async fn answer(connection: Connection, router: Router, limits: Limits, clock: Clock, stopped: CancellationToken) {
    let (peer, answering) = (Peer(connection.peer()), clock.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let (router, clock) = (router.clone(), answering.clone());
        async move {
            let (head, body) = request.into_parts();
            match clock.timeout(limits.arrival, whole(Body::new(body), limits.bytes)).await {
                Ok(Ok(Some(body))) => router.oneshot(Request::from_parts(head, Body::from(body))).await,
                Ok(Ok(None)) => Ok(StatusCode::PAYLOAD_TOO_LARGE.into_response()),
                Ok(Err(_)) => Ok(StatusCode::BAD_REQUEST.into_response()),
                Err(_) => Ok(StatusCode::REQUEST_TIMEOUT.into_response()),
            }
        }
    });
    let mut http = http1::Builder::new();
    let http = http.timer(TokioTimer::new()).header_read_timeout(limits.silence);
    let mut serving = pin!(http.serve_connection(TokioIo::new(connection), service));
    // How a connection ends is its peer's business.
    tokio::select! {
        _ = serving.as_mut() => return,
        () = stopped.cancelled() => {}
    }
    serving.as_mut().graceful_shutdown();
    let _ = clock.timeout(FAREWELL, serving).await;
}

/// A body, if it has no more than so many bytes. The rest of a larger one is read too: who is still sending hears no answer.
async fn whole(body: Body, limit: usize) -> Result<Option<Bytes>, axum::Error> {
    let (mut parts, mut whole, mut fits) = (body.into_data_stream(), BytesMut::new(), true);
    while let Some(part) = parts.try_next().await? {
        fits &= whole.len() + part.len() <= limit;
        if fits {
            whole.extend_from_slice(&part);
        }
    }
    Ok(fits.then(|| whole.freeze()))
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

/// Who asks, where the network has addresses.
#[derive(Debug, Clone, Copy)]
struct Peer(Option<SocketAddr>);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const MOMENT: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn whose_request_never_ends_is_not_waited_for() {
        let (clock, limits) = (Clock::system(), Limits { silence: 2 * MOMENT, arrival: MOMENT, bytes: 1 << 10 });
        let router = Router::new().route("/log/level", get(async || "OK").put(set_anything));
        let head = "PUT /log/level HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n";
        for (request, limit, answered) in [
            (head.to_owned(), limits.silence, ""),
            (format!("{head}\r\nhalf"), limits.arrival, "HTTP/1.1 408 "),
            ("GET /log/level HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), limits.silence, "HTTP/1.1 200 "),
        ] {
            let (mut peer, stream) = duplex(1024);
            let (connection, began) = (Connection::new(stream, None), clock.now());
            let serving = answer(connection, router.clone(), limits, clock.clone(), CancellationToken::new());
            let mut said = String::new();
            let asking = async {
                peer.write_all(request.as_bytes()).await.unwrap();
                peer.read_to_string(&mut said).await.unwrap();
            };
            tokio::join!(serving, asking);
            assert!(clock.now() - began >= limit, "{request:?}");
            assert!(said.starts_with(answered), "{request:?}: {said}");
        }
    }

    async fn set_anything(_: String) {}
}
