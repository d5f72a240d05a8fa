//! The emergency brake for consumers, on the admin port of a process with a node: `/node/consumers`.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use serde_json::{Value, json};
use streaming_node::{Node, NodeCell};

/// What is answered instead: a state and why.
type Problem = (StatusCode, &'static str);

/// Shows whether the node's consumers stand still, makes them, and lets them go on.
pub(super) fn pages(cell: NodeCell) -> Router {
    Router::new()
        .route("/node/consumers", get(async |State(cell): State<NodeCell>| Ok::<_, Problem>(shown(&*running(&cell)?))))
        .route("/node/consumers/pause", post(async |State(cell): State<NodeCell>| set(&cell, true)))
        .route("/node/consumers/resume", post(async |State(cell): State<NodeCell>| set(&cell, false)))
        .with_state(cell)
}

fn running(cell: &NodeCell) -> Result<Arc<Node>, Problem> {
    cell.get().ok_or((StatusCode::SERVICE_UNAVAILABLE, "the node is starting"))
}

fn shown(node: &Node) -> Json<Value> {
    Json(json!({ "paused": node.scanners_are_paused() }))
}

fn set(cell: &NodeCell, paused: bool) -> Result<Json<Value>, Problem> {
    let node = running(cell)?;
    node.pause_scanners(paused);
    tracing::warn!(paused, "an operator paused the node's consumers, or let them go on");
    Ok(shown(&node))
}
