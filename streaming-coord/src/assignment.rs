//! Who serves which channel, as clients are told.

use std::sync::Arc;

use streaming_proto::streaming::{
    CChannelAssignment, CChannelMeta, FullStreamingNodeAssignmentWithVersion, StreamingNodeAssignment, VersionPair,
};
use tokio::sync::watch;

use crate::{
    nodes::Nodes,
    pchannel::{Node, PChannel, node_info},
    replication::{Topology, is_listed},
};

/// A full assignment; `None` while this coordinator has none to give.
pub(crate) type Published = Option<Arc<FullStreamingNodeAssignmentWithVersion>>;

/// Publishes assignments of one reign. Versions rise: (server id of the leader, count of changes).
#[derive(Debug)]
pub(crate) struct Publisher {
    cluster: String,
    control_channel: String,
    topology: watch::Receiver<Topology>,
    next: VersionPair,
    sink: Arc<watch::Sender<Published>>,
}

impl Publisher {
    pub(crate) fn new(
        server_id: i64,
        cluster: String,
        control_channel: String,
        topology: watch::Receiver<Topology>,
        sink: Arc<watch::Sender<Published>>,
    ) -> Self {
        Self { cluster, control_channel, topology, next: VersionPair { global: server_id, local: 0 }, sink }
    }

    /// Waits for another topology.
    pub(crate) async fn topology_changed(&mut self) {
        if self.topology.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Publishes if anything that clients see has changed.
    pub(crate) fn publish<'a>(&mut self, nodes: &Nodes, channels: impl Iterator<Item = &'a PChannel>) {
        let assignments = assignments(nodes, channels);
        let topology = self.topology.borrow_and_update().clone();
        let topology = topology.filter(|topology| is_listed(topology, &self.cluster));
        let changed = self.sink.send_if_modified(|published| {
            let same_reign = published.as_ref().is_some_and(|last| {
                last.version.is_some_and(|version| version.global == self.next.global)
                    && last.assignments == assignments
                    && last.replicate_configuration.as_ref() == topology.as_deref()
            });
            if same_reign {
                return false;
            }
            *published = Some(Arc::new(FullStreamingNodeAssignmentWithVersion {
                version: Some(self.next),
                assignments,
                cchannel: Some(CChannelAssignment {
                    meta: Some(CChannelMeta { pchannel: self.control_channel.clone() }),
                }),
                replicate_configuration: topology.as_deref().cloned(),
                ..FullStreamingNodeAssignmentWithVersion::default()
            }));
            true
        });
        if changed {
            metrics::gauge!("milvus_streamingcoord_assignment_info").set(self.next.local as f64);
            self.next.local += 1;
        }
    }
}

/// Every node with a session, and every node that a channel is assigned to: a client that finds a channel on a node
/// that is not listed has nowhere to go. Channels on their way are absent, and clients wait for them.
fn assignments<'a>(nodes: &Nodes, channels: impl Iterator<Item = &'a PChannel>) -> Vec<StreamingNodeAssignment> {
    let mut listed: std::collections::BTreeMap<Node, Vec<_>> =
        nodes.0.values().map(|status| (status.node.clone(), Vec::new())).collect();
    for channel in channels {
        if let Some(owner) = channel.owner() {
            listed.entry(owner.clone()).or_default().push(channel.info());
        }
    }
    listed
        .into_iter()
        .map(|(node, channels)| StreamingNodeAssignment { node: Some(node_info(&node)), channels })
        .collect()
}

#[cfg(test)]
mod tests {
    use streaming_proto::common::{MilvusCluster, ReplicateConfiguration};

    use super::*;
    use crate::pchannel::{HandOver, tests::node};

    fn assigned(name: &str, to: i64) -> PChannel {
        let mut hand_over = HandOver::begin(&PChannel::fresh(name), node(to)).unwrap();
        hand_over.stored();
        hand_over.opened(1);
        hand_over.stored();
        hand_over.channel().clone()
    }

    fn publisher(server_id: i64, sink: &Arc<watch::Sender<Published>>) -> Publisher {
        let (_, topology) = watch::channel(None);
        Publisher::new(server_id, "own".into(), "a".into(), topology, sink.clone())
    }

    #[test]
    fn a_topology_without_the_cluster_itself_is_not_published() {
        let sink = Arc::new(watch::Sender::new(None));
        let (told, topology) = watch::channel(None);
        let mut publisher = Publisher::new(7, "own".into(), "a".into(), topology, sink.clone());
        let published = || sink.borrow().clone().unwrap().replicate_configuration.clone();
        for (cluster, seen) in [("other", false), ("own", true)] {
            let clusters = vec![MilvusCluster { cluster_id: cluster.into(), ..MilvusCluster::default() }];
            told.send_replace(Some(Arc::new(ReplicateConfiguration { clusters, ..Default::default() })));
            publisher.publish(&Nodes::default(), [].iter());
            assert_eq!(published().is_some(), seen, "{cluster}");
        }
    }

    #[test]
    fn only_assigned_channels_and_only_changes_are_published() {
        let sink = Arc::new(watch::Sender::new(None));
        let mut publisher = publisher(7, &sink);
        let channels = [assigned("a", 1), PChannel::fresh("b")];
        publisher.publish(&Nodes::default(), channels.iter());
        publisher.publish(&Nodes::default(), channels.iter());
        let first = sink.borrow().clone().unwrap();
        assert_eq!(first.version, Some(VersionPair { global: 7, local: 0 }));
        assert_eq!(first.assignments.len(), 1);
        assert_eq!(first.assignments[0].channels[0].term, 2);
        assert_eq!(first.cchannel.as_ref().unwrap().meta.as_ref().unwrap().pchannel, "a");

        publisher.publish(&Nodes::default(), [].iter());
        let second = sink.borrow().clone().unwrap();
        assert_eq!(second.version, Some(VersionPair { global: 7, local: 1 }));
        assert_eq!(second.assignments, []);
    }

    #[test]
    fn a_new_reign_publishes_even_what_has_not_changed() {
        let sink = Arc::new(watch::Sender::new(None));
        publisher(7, &sink).publish(&Nodes::default(), [].iter());
        publisher(9, &sink).publish(&Nodes::default(), [].iter());
        assert_eq!(sink.borrow().clone().unwrap().version, Some(VersionPair { global: 9, local: 0 }));
    }
}
