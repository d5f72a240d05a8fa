//! A log store in a process of its own, with its pages on the admin port.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context;
use axum::{
    Json, Router,
    extract::{self, Path},
    http::StatusCode,
    routing::{delete, get, post},
};
use serde_json::{Value, json};
use streaming_proto::logstore::StatusResponse;
use woodpecker_base::{
    backoff::Backoff,
    health::{HealthReporter, State},
    metadata::{MetadataError, RedbStore},
};
use woodpecker_server::{LogStore, NamespaceStatus, Parts, Refusal};

use super::{banner, cluster::listen, process::Process, storage};
use crate::cli::ServerArgs;

/// Between attempts to reach the metadata store.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// The store, once it runs: the admin port is there before it.
type Handle = Arc<OnceLock<LogStore>>;

/// Runs a log store until it is told to stop. It serves what it holds before it is registered.
///
/// # Errors
/// It cannot start, or does not stop in time.
pub(crate) async fn logstore(arguments: ServerArgs) -> anyhow::Result<()> {
    let handle = Handle::default();
    let Some(process) = Process::start_with(&arguments, "logstore", pages(handle.clone())).await? else {
        return Ok(());
    };
    let (config, machine) = (&process.config, &process.machine);
    let path = config.data_path("logstore");
    let facts = path.join("store.redb");
    let facts = RedbStore::open(&facts, machine.clock.clone())
        .await
        .with_context(|| format!("woodpecker.storage.rootPath: {}", facts.display()))?;
    let parts = Parts {
        path,
        disk: machine.disk.clone(),
        facts: Arc::new(facts),
        clock: machine.clock.clone(),
        random: machine.random.clone(),
    };
    let section = &config.woodpecker.logstore;
    let listener = listen(machine, "woodpecker.logstore", &section.ip, section.port).await?;
    let address = listener.address().to_owned();
    let store = LogStore::start(config.log_store(), parts).await?;
    let store = handle.get_or_init(|| store);
    let addresses = process.addresses(&[("logstore", &address), ("id", store.id())]);
    process
        .run(async {
            let serving = store.serve(listener, process.tasks.token().clone());
            tokio::pin!(serving);
            let registered = tokio::select! {
                ended = &mut serving => return Ok(ended?),
                registered = register(&process, store, &address) => registered,
            };
            if let Err(error) = registered {
                process.tasks.stop();
                serving.await?;
                return Err(error);
            }
            let health = &process.health.logstore;
            let (mut failures, mut refusing) = (store.failures(), store.refusing());
            say(health, failures.borrow_and_update().as_deref());
            note(health, *refusing.borrow_and_update());
            banner::print("logstore", &addresses, None);
            loop {
                tokio::select! {
                    biased;
                    ended = &mut serving => return Ok(ended?),
                    () = process.tasks.stopped() => break,
                    Ok(()) = failures.changed() => say(health, failures.borrow_and_update().as_deref()),
                    Ok(()) = refusing.changed() => note(health, *refusing.borrow_and_update()),
                }
            }
            health.report(State::Stopping, Vec::new());
            Ok(serving.await?)
        })
        .await
}

/// Makes a store that serves known to others, however long the metadata store is out of sight.
///
/// # Errors
/// The metadata store cannot be used with these settings.
async fn register(process: &Process, store: &LogStore, address: &str) -> anyhow::Result<()> {
    let machine = &process.machine;
    let mut pauses = Backoff::new(machine.clock.clone(), &machine.random, PAUSES.0, PAUSES.1);
    let metadata = loop {
        let error = match Box::pin(storage::metadata(&process.config, machine)).await {
            Ok(metadata) => break metadata,
            Err(error) => error,
        };
        if !error.downcast_ref().is_some_and(MetadataError::is_retryable) {
            return Err(error);
        }
        tracing::warn!(error = format!("{error:#}"), "the store cannot register for now; it serves what it holds");
        let missing = format!("not registered, which new segments wait for: {error:#}");
        process.health.logstore.report(State::Initializing, vec![missing]);
        pauses.wait().await;
    };
    store.register(address, metadata);
    store.until_registered().await;
    Ok(())
}

/// What the store holds is read and fenced whatever became of its disk.
fn say(health: &HealthReporter, failure: Option<&str>) {
    let missing = failure.map(|reason| format!("no append is taken: {reason}"));
    health.report(State::Healthy, missing.into_iter().collect());
}

/// A store without room stays in service for those who read, and says so.
fn note(health: &HealthReporter, refusing: Option<&str>) {
    health.note(refusing.map(str::to_owned).into_iter().collect());
}

/// What an operator may see and do.
fn pages(handle: Handle) -> Router {
    Router::new()
        .route("/logstore/status", get(status))
        .route("/logstore/namespaces", get(namespaces))
        .route("/logstore/namespaces/{*name}", delete(delete_namespace))
        .route(
            "/logstore/decommission",
            post(async |extract::State(handle): extract::State<Handle>| decommission(&handle, false).await),
        )
        .route(
            "/logstore/decommission/cancel",
            post(async |extract::State(handle): extract::State<Handle>| decommission(&handle, true).await),
        )
        .with_state(handle)
}

/// What is answered instead: a state and why.
type Problem = (StatusCode, String);

fn running(handle: &Handle) -> Result<&LogStore, Problem> {
    handle.get().ok_or_else(|| (StatusCode::SERVICE_UNAVAILABLE, "the store is starting".to_owned()))
}

fn failed(refusal: &Refusal) -> Problem {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{}: {refusal}", refusal.code()))
}

fn shown(store: &LogStore, status: &StatusResponse) -> Json<Value> {
    let state = status.state().as_str_name().trim_start_matches("STATE_").to_lowercase();
    Json(json!({
        "store": status.store,
        "state": state,
        "replicas": status.replicas,
        "bytesHeld": status.bytes_held,
        "diskTotal": status.disk_total,
        "diskFree": status.disk_free,
        "load": status.load,
        "safeToRemove": status.safe_to_remove,
        "failure": store.failure().as_deref(),
    }))
}

async fn status(extract::State(handle): extract::State<Handle>) -> Result<Json<Value>, Problem> {
    let store = running(&handle)?;
    Ok(shown(store, &store.status()))
}

async fn namespaces(extract::State(handle): extract::State<Handle>) -> Result<Json<Vec<NamespaceStatus>>, Problem> {
    Ok(Json(running(&handle)?.namespaces()))
}

async fn delete_namespace(
    extract::State(handle): extract::State<Handle>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    let replicas = running(&handle)?.delete_namespace(&name).await.map_err(|refusal| failed(&refusal))?;
    Ok(Json(json!({ "replicas": replicas })))
}

async fn decommission(handle: &Handle, cancel: bool) -> Result<Json<Value>, Problem> {
    let store = running(handle)?;
    let status = store.decommission(cancel).await.map_err(|refusal| failed(&refusal))?;
    Ok(shown(store, &status))
}
