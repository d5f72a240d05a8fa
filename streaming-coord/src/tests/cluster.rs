//! The pieces: coordinators, nodes that record what they are told and misbehave on demand, and clients.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use streaming_proto::streaming::{
    FullStreamingNodeAssignmentWithVersion, StreamingCode, StreamingNodeManagerAssignRequest,
    StreamingNodeManagerAssignResponse, StreamingNodeManagerCollectStatusRequest,
    StreamingNodeManagerCollectStatusResponse, StreamingNodeManagerRemoveRequest, StreamingNodeManagerRemoveResponse,
    StreamingNodeMetrics, StreamingNodeRwwalMetrics, StreamingNodeWalMetrics,
    streaming_node_handler_service_server::StreamingNodeHandlerServiceServer,
    streaming_node_manager_service_server::{StreamingNodeManagerService, StreamingNodeManagerServiceServer},
    streaming_node_wal_metrics::Metrics,
};
use streaming_types::{
    StreamingError,
    metadata::{check_destination, set_wal_ended},
};
use tokio::sync::watch;
use tonic::{Request, Response, Status, transport::Server};
use woodpecker_base::{
    clock::Clock,
    health::HealthReporter,
    metadata::{MemoryStore, MetadataStore},
    net::{Listener, tcp_connector},
    random::Random,
    server_id,
    session::{Session, SessionRecord},
    tasks::Tasks,
};

use super::log::{LogService, Logs};
use crate::{Balance, ChannelStatus, Coordinator, CoordinatorError, Edges, Parts, Settings, serve};

pub(super) const ROOT: &str = "by-dev/meta";
/// Longer than a busy machine keeps a process from saying that it lives.
pub(super) const TTL: Duration = Duration::from_secs(5);

/// Settings that make a test quick.
pub(super) fn settings(channels: u32) -> Settings {
    let mut settings = Settings { session_ttl: TTL, ..Settings::default() };
    settings.channels.count = channels;
    settings.nodes.status_interval = Duration::from_millis(50);
    settings.nodes.status_timeout = Duration::from_millis(500);
    settings.nodes.retry_initial = Duration::from_millis(10);
    settings.nodes.retry_max = Duration::from_millis(100);
    settings.balance.interval = Duration::from_millis(100);
    settings.standby_hold = Duration::from_millis(300);
    settings.ready_timeout = Duration::from_secs(5);
    settings
}

/// A metadata store and what stands on it.
pub(super) struct Cluster {
    pub(super) store: Arc<dyn MetadataStore>,
    pub(super) clock: Clock,
}

impl Cluster {
    pub(super) fn new() -> Self {
        Self::on(Arc::new(MemoryStore::new(Clock::system())))
    }

    pub(super) fn on(store: Arc<dyn MetadataStore>) -> Self {
        Self { store, clock: Clock::system() }
    }

    pub(super) fn parts(&self, settings: &Settings) -> Parts {
        Parts {
            balance: watch::channel(settings.balance.clone()).1,
            connector: tcp_connector(),
            metadata: self.store.clone(),
            clock: self.clock.clone(),
            random: Random::seeded(1),
            health: HealthReporter::default(),
        }
    }

    /// A coordinator that serves, whether it leads or not.
    pub(super) async fn coordinator(&self, settings: Settings) -> TestCoordinator {
        let listener = listener().await;
        let address = listener.address().to_owned();
        let tasks = Tasks::new();
        let Parts { connector, metadata, clock, random, health, balance } = self.parts(&settings);
        let edges = Edges { listener, connector, metadata, clock, random, health: health.clone(), balance };
        let served = tasks.spawn(serve(settings, edges, tasks.token().clone()));
        TestCoordinator { address, tasks, served, health }
    }

    /// A coordinator without a server, for tests that look inside.
    pub(super) fn bare(&self, settings: Settings) -> (Coordinator, Tasks) {
        let parts = self.parts(&settings);
        Self::with(settings, parts)
    }

    /// As [`Self::bare`], and its balance can be changed.
    pub(super) fn adjustable(&self, settings: Settings) -> (Coordinator, Tasks, watch::Sender<Balance>) {
        let (balance, changes) = watch::channel(settings.balance.clone());
        let parts = Parts { balance: changes, ..self.parts(&settings) };
        let (coordinator, tasks) = Self::with(settings, parts);
        (coordinator, tasks, balance)
    }

    fn with(settings: Settings, parts: Parts) -> (Coordinator, Tasks) {
        // One address is one process: a second coordinator there would count as the first one started anew.
        static PORT: AtomicU16 = AtomicU16::new(1);
        let address = format!("127.0.0.1:{}", PORT.fetch_add(1, Ordering::Relaxed));
        let tasks = Tasks::new();
        let coordinator = Coordinator::start(settings, &address, parts, &tasks).unwrap();
        (coordinator, tasks)
    }

    /// A node with a session.
    pub(super) async fn node(&self) -> TestNode {
        self.node_in(None).await
    }

    /// A node of a resource group.
    pub(super) async fn node_in(&self, group: Option<&str>) -> TestNode {
        TestNode::start(&self.store, &self.clock, group).await
    }
}

pub(super) async fn listener() -> Listener {
    Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap()
}

pub(super) struct TestCoordinator {
    pub(super) address: String,
    pub(super) health: HealthReporter,
    tasks: Tasks,
    served: tokio::task::JoinHandle<Result<(), CoordinatorError>>,
}

impl TestCoordinator {
    /// Asks it to end, and waits until it has.
    pub(super) async fn stop(self) -> Result<(), CoordinatorError> {
        self.tasks.stop();
        self.served.await.unwrap()
    }
}

/// Waits until something holds.
pub(super) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let clock = Clock::system();
    let deadline = clock.now() + Duration::from_secs(40);
    while !holds() {
        assert!(clock.now() < deadline, "never: {what}");
        clock.sleep(Duration::from_millis(5)).await;
    }
}

/// Channels by node, of those that are assigned.
pub(super) fn layout(channels: &[ChannelStatus]) -> BTreeMap<i64, usize> {
    let mut layout = BTreeMap::new();
    for channel in channels.iter().filter(|channel| channel.state == crate::ChannelState::Assigned) {
        *layout.entry(channel.node.unwrap()).or_default() += 1;
    }
    layout
}

/// What a node was told of one channel, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    Assign(i64),
    Remove(i64),
}

/// How a node behaves.
#[derive(Debug, Clone, Default)]
pub(super) struct Script {
    /// Assigns to refuse, by channel; `usize::MAX` for all.
    pub(super) refuse: BTreeMap<String, usize>,
    /// How long an Assign takes, by channel.
    pub(super) slow: BTreeMap<String, Duration>,
    /// Status calls to fail, and to answer without the WALs.
    pub(super) fail_status: bool,
    pub(super) untold: bool,
    /// Removes to fail, and to leave without an answer.
    pub(super) fail_remove: bool,
    pub(super) hold_remove: bool,
    /// Why each WAL ended by itself.
    pub(super) ended: Option<String>,
    pub(super) lag_ms: u64,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) script: Script,
    pub(super) told: BTreeMap<String, Vec<Told>>,
    /// Channels that are open, with their terms.
    pub(super) open: BTreeMap<String, i64>,
    /// Status calls.
    pub(super) asked: usize,
}

/// A node process: a server that keeps the rules of the manager service, and a session.
pub(super) struct TestNode {
    pub(super) id: i64,
    pub(super) state: Arc<Mutex<State>>,
    pub(super) logs: Arc<Mutex<Logs>>,
    session: Option<Session>,
    tasks: Tasks,
}

impl TestNode {
    async fn start(store: &Arc<dyn MetadataStore>, clock: &Clock, group: Option<&str>) -> Self {
        let listener = listener().await;
        let id = server_id::allocate(&**store, ROOT).await.unwrap();
        let state: Arc<Mutex<State>> = Arc::default();
        state.lock().unwrap().script.lag_ms = 0;
        let tasks = Tasks::new();
        let labels = group.map(|group| ("RESOURCE_GROUP".to_owned(), group.to_owned())).into_iter().collect();
        let record = SessionRecord { labels, ..SessionRecord::new("streamingnode", id, listener.address(), "2.6.2") };
        let service = StreamingNodeManagerServiceServer::new(Manager { id, state: state.clone() });
        let logs = LogService::default();
        let log_service = StreamingNodeHandlerServiceServer::new(logs.clone());
        let server = Server::builder().add_service(service).add_service(log_service).serve_with_incoming(listener);
        tasks.spawn_until_stopped(server);
        let session = Session::register(store.clone(), clock, &tasks, ROOT, record, TTL).await.unwrap();
        Self { id, state, logs: logs.0, session: Some(session), tasks }
    }

    /// Says that it is going away, and goes on serving.
    pub(super) async fn announce_stopping(&mut self) {
        self.session.as_mut().unwrap().announce_stopping().await.unwrap();
    }

    /// Dies: answers nothing any more, and its session runs out.
    pub(super) fn kill(&mut self) {
        self.tasks.stop();
        self.session = None;
    }

    pub(super) fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.state.lock().unwrap().script);
    }

    pub(super) fn told(&self, channel: &str) -> Vec<Told> {
        self.state.lock().unwrap().told.get(channel).cloned().unwrap_or_default()
    }

    pub(super) fn open(&self) -> BTreeMap<String, i64> {
        self.state.lock().unwrap().open.clone()
    }

    /// Ends a WAL by itself.
    pub(super) fn end(&self, channel: &str) {
        self.state.lock().unwrap().open.remove(channel);
    }

    pub(super) fn asked(&self) -> usize {
        self.state.lock().unwrap().asked
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

struct Manager {
    id: i64,
    state: Arc<Mutex<State>>,
}

impl Manager {
    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        Ok(check_destination(request.metadata(), "by-dev", self.id)?)
    }
}

#[tonic::async_trait]
impl StreamingNodeManagerService for Manager {
    async fn assign(
        &self,
        request: Request<StreamingNodeManagerAssignRequest>,
    ) -> Result<Response<StreamingNodeManagerAssignResponse>, Status> {
        self.check(&request)?;
        let info = request.into_inner().pchannel.unwrap();
        let slow = {
            let mut state = self.state.lock().unwrap();
            state.told.entry(info.name.clone()).or_default().push(Told::Assign(info.term));
            if let Some(left) = state.script.refuse.get_mut(&info.name).filter(|left| **left > 0) {
                *left -= 1;
                return Err(StreamingError::unknown("the log cannot be opened").into());
            }
            state.script.slow.get(&info.name).copied()
        };
        if let Some(slow) = slow {
            Clock::system().sleep(slow).await;
        }
        self.state.lock().unwrap().open.insert(info.name, info.term);
        Ok(Response::new(StreamingNodeManagerAssignResponse {}))
    }

    async fn remove(
        &self,
        request: Request<StreamingNodeManagerRemoveRequest>,
    ) -> Result<Response<StreamingNodeManagerRemoveResponse>, Status> {
        self.check(&request)?;
        let info = request.into_inner().pchannel.unwrap();
        let (hold, ended) = {
            let mut state = self.state.lock().unwrap();
            state.told.entry(info.name.clone()).or_default().push(Told::Remove(info.term));
            if state.script.fail_remove {
                return Err(StreamingError::inner("not now").into());
            }
            if state.open.get(&info.name).is_some_and(|term| *term <= info.term) {
                state.open.remove(&info.name);
            }
            (state.script.hold_remove, state.script.ended.clone())
        };
        if hold {
            std::future::pending::<()>().await;
        }
        let mut response = Response::new(StreamingNodeManagerRemoveResponse {});
        if let Some(why) = ended {
            set_wal_ended(response.metadata_mut(), &why);
        }
        Ok(response)
    }

    async fn collect_status(
        &self,
        request: Request<StreamingNodeManagerCollectStatusRequest>,
    ) -> Result<Response<StreamingNodeManagerCollectStatusResponse>, Status> {
        self.check(&request)?;
        let mut state = self.state.lock().unwrap();
        state.asked += 1;
        if state.script.fail_status {
            return Err(Status::unknown("no status today"));
        }
        if state.script.untold {
            let metrics = Some(StreamingNodeMetrics::default());
            return Ok(Response::new(StreamingNodeManagerCollectStatusResponse { metrics }));
        }
        let now_ms = 1_700_000_000_000;
        let wals = state
            .open
            .iter()
            .map(|(name, term)| StreamingNodeWalMetrics {
                info: Some(streaming_proto::streaming::PChannelInfo {
                    name: name.clone(),
                    term: *term,
                    ..Default::default()
                }),
                metrics: Some(Metrics::Rw(StreamingNodeRwwalMetrics {
                    mvcc_time_tick: now_ms << 18,
                    recovery_time_tick: (now_ms - state.script.lag_ms) << 18,
                })),
            })
            .collect();
        let metrics = Some(StreamingNodeMetrics { wals });
        Ok(Response::new(StreamingNodeManagerCollectStatusResponse { metrics }))
    }
}

/// Channels by node, as clients are told.
pub(super) fn published(assignment: &FullStreamingNodeAssignmentWithVersion) -> BTreeMap<i64, Vec<(String, i64)>> {
    assignment
        .assignments
        .iter()
        .map(|entry| {
            let channels = entry.channels.iter().map(|channel| (channel.name.clone(), channel.term)).collect();
            (entry.node.as_ref().unwrap().server_id, channels)
        })
        .collect()
}

/// The code that a streaming service answered with.
pub(super) fn code(status: &Status) -> StreamingCode {
    assert_eq!(status.message(), "", "the text of a streaming status is empty");
    StreamingError::check_status(status).unwrap_err().code()
}
