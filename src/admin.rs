//! HTTP for operators and probes: `/healthz`, `/livez`, `/readyz`, `/metrics`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Json, Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use woodpecker_base::{clock::Clock, tasks::Tasks};

/// The state of one role of the process.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RoleHealth {
    pub(crate) role: &'static str,
    /// `Initializing`, `Healthy`, `StandBy`, `Stopping` or `Abnormal`.
    pub(crate) state: &'static str,
    pub(crate) detail: String,
}

/// What the probes ask: the state of every role, now.
pub(crate) type Health = Arc<dyn Fn() -> Vec<RoleHealth> + Send + Sync>;

#[derive(Clone)]
struct Admin {
    health: Health,
    metrics: PrometheusHandle,
}

/// Serves the usual pages, and the role's own, until the tasks are stopped. Returns the bound address.
///
/// # Errors
/// The address cannot be bound.
pub(crate) async fn serve(
    address: SocketAddr,
    health: Health,
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
        .route("/livez", get(async || "OK"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(async |State(admin): State<Admin>| admin.metrics.render()))
        .with_state(Admin { health, metrics })
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

/// 200 when every role is healthy or standing by, as Milvus' probe means it.
async fn healthz(State(admin): State<Admin>) -> impl IntoResponse {
    answer((admin.health)(), |state| matches!(state, "Healthy" | "StandBy"))
}

/// 200 when every role does its work; a standby does.
async fn readyz(State(admin): State<Admin>) -> impl IntoResponse {
    answer((admin.health)(), |state| matches!(state, "Healthy" | "StandBy"))
}

fn answer(roles: Vec<RoleHealth>, good: impl Fn(&str) -> bool) -> impl IntoResponse {
    let status =
        if roles.iter().all(|role| good(role.state)) { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    (status, Json(roles))
}
