//! HTTP for operators and probes: `/healthz`, `/livez`, `/readyz`, `/metrics`.

use std::{net::SocketAddr, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use woodpecker_base::{
    clock::Clock,
    health::{Health, HealthReporter},
    tasks::Tasks,
};

/// The roles of the process, by the names that the protocol has for them.
pub(crate) type Roles = Vec<(&'static str, HealthReporter)>;

#[derive(Clone)]
struct Admin {
    roles: Roles,
    metrics: PrometheusHandle,
}

/// Serves the usual pages, and the role's own, until the tasks are stopped. Returns the bound address.
///
/// # Errors
/// The address cannot be bound.
pub(crate) async fn serve(
    address: SocketAddr,
    roles: Roles,
    metrics: PrometheusHandle,
    pages: Router,
    clock: Clock,
    tasks: &Tasks,
) -> anyhow::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let upkeep = metrics.clone();
    let ticking = clock.clone();
    tasks.spawn_until_stopped(async move {
        let mut ticker = ticking.ticker(Duration::from_secs(5));
        loop {
            ticker.tick().await;
            upkeep.run_upkeep();
        }
    });
    let router = Router::new()
        .route("/healthz", get(healthz))
        // That this is answered at all says that the process lives; what it depends on is no reason to end it.
        .route("/livez", get(async || "OK"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(async |State(admin): State<Admin>| admin.metrics.render()))
        .with_state(Admin { roles, metrics })
        .merge(pages);
    let token = tasks.token().clone();
    tasks.spawn(async move {
        let server = axum::serve(listener, router).with_graceful_shutdown(token.clone().cancelled_owned());
        // A probe that keeps its connection open must not hold up the stop.
        let served = async { server.await.map_err(|error| tracing::warn!(%error, "admin server ended")) };
        let cut = async {
            token.cancelled().await;
            clock.sleep(Duration::from_secs(1)).await;
        };
        tokio::select! {
            _ = served => {}
            () = cut => {}
        }
    });
    Ok(bound)
}

/// What `/healthz` says, field for field as the probes of Milvus read it.
#[derive(Debug, Serialize)]
struct Healthz {
    state: String,
    detail: Vec<Component>,
}

#[derive(Debug, Serialize)]
struct Component {
    name: &'static str,
    code: i32,
}

/// 200 when every role is healthy or standing by, 500 otherwise.
async fn healthz(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    let roles: Vec<_> = admin.roles.iter().map(|(name, reporter)| (*name, reporter.now().state)).collect();
    let bad = roles.iter().find(|(_, state)| !state.is_good());
    let status = if bad.is_some() { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
    let state = bad.map_or_else(|| "OK".to_owned(), |(name, state)| format!("component {name} state is {state:?}"));
    let detail = roles.iter().map(|(name, state)| Component { name, code: state.code() }).collect();
    answer(status, &headers, state.clone(), Healthz { state, detail })
}

/// What `/readyz` says of a role.
#[derive(Debug, Serialize)]
struct Readiness {
    name: &'static str,
    ready: bool,
    state: String,
    missing: Vec<String>,
}

/// 200 when every role does all that it is there for, 503 otherwise, with what is missing.
async fn readyz(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    let roles: Vec<(_, Health)> = admin.roles.iter().map(|(name, reporter)| (*name, reporter.now())).collect();
    let ready = roles.iter().all(|(_, health)| health.is_ready());
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut text = String::from(if ready { "OK" } else { "not ready" });
    for (name, health) in &roles {
        text.push_str(&format!("\n{name}: {:?}", health.state));
        text.extend(health.missing.iter().map(|missing| format!("\n{name}: {missing}")));
    }
    let body: Vec<_> = roles
        .into_iter()
        .map(|(name, health)| Readiness {
            name,
            ready: health.is_ready(),
            state: format!("{:?}", health.state),
            missing: health.missing,
        })
        .collect();
    answer(status, &headers, text, body)
}

/// JSON for who asks for it, text otherwise.
fn answer(status: StatusCode, headers: &HeaderMap, text: String, json: impl Serialize) -> Response {
    let asks = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if [ACCEPT, CONTENT_TYPE].into_iter().any(|name| asks(name).contains("application/json")) {
        (status, Json(json)).into_response()
    } else {
        (status, text).into_response()
    }
}
