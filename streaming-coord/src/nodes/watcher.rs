//! Keeps the view of the nodes: sessions as they come and go, and what each node answers.

use std::{collections::BTreeMap, sync::Arc};

use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream, SelectAll},
};
use streaming_proto::streaming::{StreamingNodeMetrics, streaming_node_wal_metrics::Metrics};
use tokio::sync::watch;
use woodpecker_base::{
    clock::{Clock, Instant},
    metadata::MetadataError,
    net::Connector,
    session::{SessionRecord, SessionView, first_streaming_version},
};

use super::{Limits, ManagerClient, NodeError, NodeStatus, NodeView, Nodes, WalStatus, health::Health};
use crate::{allocator::physical_ms, pchannel::Node, settings::Settings};

/// How many nodes are asked at the same time.
const PARALLEL_PROBES: usize = 16;

/// What a node answered, and when it was asked.
type Answer = (Instant, Result<StreamingNodeMetrics, NodeError>);

/// What is known of one node.
struct Known {
    node: Node,
    group: String,
    stopping: bool,
    client: ManagerClient,
    health: Health,
    wals: BTreeMap<String, WalStatus>,
    names_wals: bool,
    asked: Option<Instant>,
}

/// Follows the sessions, asks every node for its status, and publishes the view.
pub(crate) struct Watcher {
    settings: Settings,
    connector: Connector,
    clock: Clock,
    known: BTreeMap<i64, Known>,
    view: watch::Sender<Arc<Nodes>>,
}

impl Watcher {
    pub(crate) fn new(settings: Settings, connector: Connector, clock: Clock) -> (Self, NodeView) {
        let (view, receiver) = watch::channel(Arc::default());
        (Self { settings, connector, clock, known: BTreeMap::new(), view }, NodeView(receiver))
    }

    /// Watches until it is dropped.
    pub(crate) async fn run(
        mut self,
        mut sessions: impl Stream<Item = Result<SessionView, MetadataError>> + Send + Unpin,
    ) {
        let mut ticker = self.clock.ticker(self.settings.nodes.status_interval);
        let mut answers = SelectAll::new();
        let mut asked = 0;
        loop {
            tokio::select! {
                Some(view) = sessions.next() => match view {
                    Ok(view) => {
                        let appeared = self.update(view.at_least(&first_streaming_version()).sessions);
                        asked += appeared.len();
                        answers.push(self.probe(appeared));
                    }
                    Err(error) => tracing::warn!(%error, "the node sessions cannot be read for now"),
                },
                _ = ticker.tick(), if asked == 0 => {
                    asked += self.known.len();
                    answers.push(self.probe(self.known.keys().copied().collect()));
                }
                Some((id, answer)) = answers.next() => {
                    asked -= 1;
                    if let Some(known) = self.known.get_mut(&id) {
                        known.note(id, answer, &self.clock);
                    }
                }
            }
            self.publish();
        }
    }

    /// Takes the sessions over; returns the nodes that are new.
    fn update(&mut self, sessions: BTreeMap<i64, SessionRecord>) -> Vec<i64> {
        self.known.retain(|id, known| sessions.get(id).is_some_and(|session| session.address == known.node.address));
        let mut appeared = Vec::new();
        for (id, session) in sessions {
            if let Some(known) = self.known.get_mut(&id) {
                known.stopping = session.stopping;
                continue;
            }
            let group = session.resource_group().to_owned();
            let node = Node { server_id: id, address: session.address };
            match ManagerClient::new(&node, &self.settings.cluster, &self.connector, self.clock.clone()) {
                Ok(client) => {
                    tracing::info!(node = id, address = node.address, group, "streaming node appeared");
                    let known = Known {
                        node,
                        group,
                        stopping: session.stopping,
                        client,
                        health: Health::default(),
                        wals: BTreeMap::new(),
                        names_wals: false,
                        asked: None,
                    };
                    self.known.insert(id, known);
                    appeared.push(id);
                }
                Err(error) => tracing::warn!(node = id, %error, "a session has an address that cannot be dialled"),
            }
        }
        appeared
    }

    /// Asks these nodes for their status, some at a time.
    fn probe(&self, ids: Vec<i64>) -> BoxStream<'static, (i64, Answer)> {
        let (limit, clock) = (self.settings.nodes.status_timeout, self.clock.clone());
        let clients: Vec<_> =
            ids.into_iter().filter_map(|id| Some((id, self.known.get(&id)?.client.clone()))).collect();
        stream::iter(clients)
            .map(move |(id, client)| {
                let clock = clock.clone();
                async move { (id, (clock.now(), client.status(limit).await)) }
            })
            .buffer_unordered(PARALLEL_PROBES)
            .boxed()
    }

    fn publish(&self) {
        let limits =
            Limits { failures: self.settings.nodes.lost_after_failures, period: self.settings.nodes.lost_after };
        let now = self.clock.now();
        let nodes = self
            .known
            .iter()
            .map(|(id, known)| {
                let condition = known.health.condition(known.stopping, now, limits);
                let status = NodeStatus {
                    node: known.node.clone(),
                    group: known.group.clone(),
                    condition,
                    client: known.client.clone(),
                    wals: known.wals.clone(),
                    asked: known.asked,
                };
                (*id, status)
            })
            .collect();
        self.view.send_if_modified(|view| {
            let next = Nodes(nodes);
            let changed = !view.same_conditions(&next);
            *view = Arc::new(next);
            changed
        });
    }
}

impl Known {
    fn note(&mut self, id: i64, (asked, answer): Answer, clock: &Clock) {
        match answer {
            Ok(metrics) => {
                self.health.answered();
                self.wals = wal_status(metrics);
                // Of one that never named any it is not known that it serves none: not every release says so much.
                self.names_wals |= !self.wals.is_empty();
                self.asked = self.names_wals.then_some(asked);
            }
            Err(error) if error.is_shutdown() => self.health.said_it_shuts_down(),
            Err(error) => {
                tracing::warn!(node = id, %error, "a streaming node does not answer");
                self.health.failed(clock.now());
            }
        }
    }
}

fn wal_status(metrics: StreamingNodeMetrics) -> BTreeMap<String, WalStatus> {
    let status = |wal: streaming_proto::streaming::StreamingNodeWalMetrics| {
        let info = wal.info?;
        let lag_ms = match wal.metrics {
            Some(Metrics::Rw(rw)) => physical_ms(rw.mvcc_time_tick).saturating_sub(physical_ms(rw.recovery_time_tick)),
            Some(Metrics::Ro(_)) => 0,
            // What is not told is not known to be little.
            None => u64::MAX,
        };
        Some((info.name, WalStatus { term: info.term, lag_ms }))
    };
    metrics.wals.into_iter().filter_map(status).collect()
}
