//! The streaming nodes: who has a session, who answers, and how to talk to each.

mod client;
mod health;
mod watcher;

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;
use woodpecker_base::clock::Instant;

pub(crate) use self::{
    client::{ManagerClient, NodeError},
    health::{Condition, Limits},
    watcher::Watcher,
};
use crate::pchannel::Node;

/// A node with a live session.
#[derive(Debug, Clone)]
pub(crate) struct NodeStatus {
    pub(crate) node: Node,
    /// The resource group that it says it belongs to.
    pub(crate) group: String,
    pub(crate) condition: Condition,
    pub(crate) client: ManagerClient,
    /// By channel, what the node last said of the WALs it serves.
    pub(crate) wals: BTreeMap<String, WalStatus>,
    /// When it was asked; `None` as long as it names none.
    pub(crate) asked: Option<Instant>,
}

impl NodeStatus {
    /// The channels that it serves, with their terms.
    fn serves(&self) -> Vec<(&str, i64)> {
        self.wals.iter().map(|(name, wal)| (name.as_str(), wal.term)).collect()
    }

    /// Whether the node, asked after `since`, does not serve a channel at a term. A term that has ended there never begins again.
    pub(crate) fn lacks(&self, channel: &str, term: i64, since: Option<Instant>) -> bool {
        self.asked.is_some_and(|asked| since.is_none_or(|since| asked > since))
            && self.wals.get(channel).is_none_or(|wal| wal.term != term)
    }
}

/// What a node says of a WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WalStatus {
    pub(crate) term: i64,
    /// How far its checkpoint is behind its end, in milliseconds.
    pub(crate) lag_ms: u64,
}

/// Every node with a live session, by server id.
#[derive(Debug, Clone, Default)]
pub(crate) struct Nodes(pub(crate) BTreeMap<i64, NodeStatus>);

impl Nodes {
    pub(crate) fn get(&self, server_id: i64) -> Option<&NodeStatus> {
        self.0.get(&server_id)
    }

    /// Whether nothing has changed that decides where channels may be.
    fn same_conditions(&self, other: &Self) -> bool {
        let same = |(one, other): (&NodeStatus, &NodeStatus)| {
            (&one.node, one.condition, one.serves()) == (&other.node, other.condition, other.serves())
        };
        self.0.len() == other.0.len() && self.0.values().zip(other.0.values()).all(same)
    }

    /// Whether channels may stay on the node.
    pub(crate) fn retains(&self, server_id: i64) -> bool {
        self.get(server_id).is_some_and(|status| status.condition.retains())
    }
}

/// The nodes as they are now, and a way to wait for a change.
#[derive(Debug, Clone)]
pub(crate) struct NodeView(pub(crate) watch::Receiver<Arc<Nodes>>);

impl NodeView {
    pub(crate) fn now(&self) -> Arc<Nodes> {
        self.0.borrow().clone()
    }

    /// Waits until the nodes are such; never returns if nobody watches them any more.
    pub(crate) async fn until(&mut self, mut holds: impl FnMut(&Nodes) -> bool + Send) {
        if self.0.wait_for(|nodes| holds(nodes)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
