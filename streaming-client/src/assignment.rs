//! Who serves which channel, as the coordinator last said.

use std::{collections::BTreeMap, sync::Arc};

use streaming_proto::{
    common::ReplicateConfiguration,
    streaming::{FullStreamingNodeAssignmentWithVersion, StreamingNodeAssignment},
};
use streaming_types::PChannel;

use crate::connections::Server;

pub(crate) mod locator;
pub(crate) mod watcher;

/// A live streaming node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Identity of the process; a restarted one has a new id.
    pub server_id: i64,
    /// Where it is dialled, `host:port`.
    pub address: String,
}

/// A physical channel that is assigned to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// Its name, the term of the ownership, and whether it can be written.
    pub pchannel: PChannel,
    pub owner: Node,
}

impl Channel {
    pub(crate) fn server(&self) -> Server {
        Server { address: self.owner.address.clone(), id: Some(self.owner.server_id) }
    }
}

/// Version of an assignment: the coordinator's server id, then its count of changes. Compared in that order, so that a
/// new coordinator's first word is newer than the last one's last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub global: i64,
    pub local: i64,
}

impl Version {
    /// Older than whatever a coordinator says.
    pub(crate) const NONE: Self = Self { global: -1, local: -1 };
}

/// One full assignment. A channel on its way between nodes is not in it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Assignment {
    pub(crate) version: Version,
    pub(crate) nodes: BTreeMap<i64, Node>,
    pub(crate) channels: BTreeMap<String, Channel>,
    pub(crate) control_channel: Option<String>,
    /// Which cluster follows which.
    pub(crate) topology: Option<Arc<ReplicateConfiguration>>,
}

impl Assignment {
    /// What is known before the coordinator said anything.
    pub(crate) fn none() -> Self {
        Self {
            version: Version::NONE,
            nodes: BTreeMap::new(),
            channels: BTreeMap::new(),
            control_channel: None,
            topology: None,
        }
    }

    /// Takes what the coordinator pushed. An entry that cannot be right (no node, no name, a term below 1) is left out
    /// with a warning: the other channels can still be served. Without a version nothing can be said: `None`.
    pub(crate) fn from_wire(wire: FullStreamingNodeAssignmentWithVersion) -> Option<Self> {
        let version = wire.version?;
        let mut assignment = Self { version: Version { global: version.global, local: version.local }, ..Self::none() };
        for entry in wire.assignments {
            assignment.add(entry);
        }
        assignment.control_channel = wire.cchannel.and_then(|control| control.meta).map(|meta| meta.pchannel);
        assignment.topology = wire.replicate_configuration.map(Arc::new);
        Some(assignment)
    }

    fn add(&mut self, entry: StreamingNodeAssignment) {
        let Some(node) = entry.node.filter(|node| !node.address.is_empty()) else {
            tracing::warn!(channels = entry.channels.len(), "assignment names no node: ignored");
            return;
        };
        let node = Node { server_id: node.server_id, address: node.address };
        for channel in entry.channels {
            let pchannel = match PChannel::from_proto(Some(&channel)) {
                Ok(pchannel) => pchannel,
                Err(error) => {
                    tracing::warn!(%error, "impossible assignment: ignored");
                    continue;
                }
            };
            let known = self.channels.get(pchannel.name());
            if known.is_none_or(|known| known.pchannel.term() < pchannel.term()) {
                let channel = Channel { pchannel, owner: node.clone() };
                self.channels.insert(channel.pchannel.name().to_owned(), channel);
            }
        }
        self.nodes.insert(node.server_id, node);
    }
}

#[cfg(test)]
mod tests {
    use streaming_proto::streaming::{PChannelInfo, StreamingNodeInfo, VersionPair};

    use super::*;

    fn channel(name: &str, term: i64) -> PChannelInfo {
        PChannelInfo { name: name.into(), term, access_mode: 0 }
    }

    fn node(server_id: i64, channels: Vec<PChannelInfo>) -> StreamingNodeAssignment {
        let node = StreamingNodeInfo { server_id, address: format!("node-{server_id}:22222") };
        StreamingNodeAssignment { node: Some(node), channels }
    }

    fn wire(assignments: Vec<StreamingNodeAssignment>) -> FullStreamingNodeAssignmentWithVersion {
        FullStreamingNodeAssignmentWithVersion {
            version: Some(VersionPair { global: 3, local: 0 }),
            assignments,
            ..Default::default()
        }
    }

    #[test]
    fn without_a_version_it_says_nothing() {
        assert_eq!(Assignment::from_wire(FullStreamingNodeAssignmentWithVersion::default()), None);
    }

    #[test]
    fn impossible_entries_are_left_out_and_the_rest_is_kept() {
        let nameless = StreamingNodeAssignment { node: None, channels: vec![channel("lost", 1)] };
        let owner = node(7, vec![channel("", 1), channel("zero", 0), channel("good", 2)]);
        let assignment = Assignment::from_wire(wire(vec![nameless, owner, node(8, vec![])])).expect("has a version");
        assert_eq!(assignment.channels.keys().collect::<Vec<_>>(), ["good"]);
        assert_eq!(assignment.nodes.keys().collect::<Vec<_>>(), [&7, &8], "a node without channels is listed");
    }

    #[test]
    fn of_two_owners_the_later_term_counts() {
        let entries = vec![node(1, vec![channel("c", 5)]), node(2, vec![channel("c", 4)])];
        let assignment = Assignment::from_wire(wire(entries)).expect("has a version");
        assert_eq!(assignment.channels["c"].owner.server_id, 1);
    }

    #[test]
    fn versions_compare_by_coordinator_then_count() {
        let version = |global, local| Version { global, local };
        assert!(version(2, 0) > version(1, 900));
        assert!(version(2, 1) > version(2, 0));
        assert!(version(0, 0) > Version::NONE);
    }
}
