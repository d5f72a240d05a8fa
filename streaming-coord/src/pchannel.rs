//! Who owns a pchannel, as the metadata store has it. Transitions make a new value; they take effect once it is stored.
//!
//! A term is the epoch of one ownership. It only grows, it is durable before a node hears of it, and no node is told
//! twice to open a WAL at the same term. A fresh channel has term 1, so the first term a node sees is 2.

mod hand_over;

use streaming_proto::streaming::{
    PChannelAccessMode, PChannelAssignmentLog, PChannelInfo, PChannelMeta, PChannelMetaState, StreamingNodeInfo,
};

pub(crate) use self::hand_over::{HandOver, Step};

/// A streaming node, for the life of its process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Node {
    pub(crate) server_id: i64,
    /// `host:port`
    pub(crate) address: String,
}

/// An ownership that may still exist on a node and has to be ended there before the next one begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ownership {
    pub(crate) term: i64,
    pub(crate) node: Node,
    pub(crate) mode: PChannelAccessMode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Known from the settings only, never assigned.
    Uninitialized,
    /// On its way to a node. What the node knows of it is unknown.
    Assigning,
    /// The node has said that it serves the channel.
    Assigned,
    /// A client has seen the assigned WAL fail.
    Unavailable,
}

/// A pchannel's ownership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PChannel {
    name: String,
    term: i64,
    mode: PChannelAccessMode,
    node: Option<Node>,
    state: State,
    histories: Vec<Ownership>,
    assigned_at_s: u64,
}

/// A stored pchannel that makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("stored pchannel {name:?} is damaged: {what}")]
pub(crate) struct Damaged {
    name: String,
    what: &'static str,
}

impl PChannel {
    /// A channel that was never assigned.
    pub(crate) fn fresh(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            term: 1,
            mode: PChannelAccessMode::PchannelAccessReadwrite,
            node: None,
            state: State::Uninitialized,
            histories: Vec::new(),
            assigned_at_s: 0,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn term(&self) -> i64 {
        self.term
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// The node that has the channel or that it is on its way to.
    pub(crate) fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// The node that serves the channel.
    pub(crate) fn owner(&self) -> Option<&Node> {
        self.node.as_ref().filter(|_| self.state == State::Assigned)
    }

    /// The present ownership.
    fn ownership(&self) -> Option<Ownership> {
        Some(Ownership { term: self.term, node: self.node.clone()?, mode: self.mode })
    }

    /// Unix time in seconds of the last completed assignment; 0 for none.
    pub(crate) fn assigned_at_s(&self) -> u64 {
        self.assigned_at_s
    }

    /// The channel at its present term, as nodes and clients name it.
    pub(crate) fn info(&self) -> PChannelInfo {
        PChannelInfo { name: self.name.clone(), term: self.term, access_mode: self.mode.into() }
    }

    /// The channel as it was under an earlier ownership.
    pub(crate) fn info_of(&self, past: &Ownership) -> PChannelInfo {
        PChannelInfo { name: self.name.clone(), term: past.term, access_mode: past.mode.into() }
    }

    /// The channel on its way to `node`; `None` if it is already there.
    fn assign_to(&self, node: Node) -> Option<Self> {
        if self.owner() == Some(&node) && self.mode == PChannelAccessMode::PchannelAccessReadwrite {
            return None;
        }
        let mut next = self.clone();
        if let Some(past) = self.ownership().filter(|_| self.state != State::Uninitialized) {
            // A node that ends a term ends those before it as well.
            next.histories.retain(|earlier| earlier.node != past.node);
            next.histories.push(past);
        }
        next.term += 1;
        next.mode = PChannelAccessMode::PchannelAccessReadwrite;
        next.node = Some(node);
        next.state = State::Assigning;
        Some(next)
    }

    /// The channel after its node said that it serves it.
    fn assigned(&self, now_s: u64) -> Self {
        Self { state: State::Assigned, histories: Vec::new(), assigned_at_s: now_s, ..self.clone() }
    }

    /// The channel after someone saw the WAL of `term` fail; `None` if that says nothing about the present.
    pub(crate) fn unavailable(&self, term: i64) -> Option<Self> {
        (self.state == State::Assigned && self.term == term).then(|| Self { state: State::Unavailable, ..self.clone() })
    }

    /// The stored form.
    pub(crate) fn to_meta(&self) -> PChannelMeta {
        PChannelMeta {
            channel: Some(self.info()),
            node: self.node.as_ref().map(node_info),
            state: match self.state {
                State::Uninitialized => PChannelMetaState::PchannelMetaStateUninitialized,
                State::Assigning => PChannelMetaState::PchannelMetaStateAssigning,
                State::Assigned => PChannelMetaState::PchannelMetaStateAssigned,
                State::Unavailable => PChannelMetaState::PchannelMetaStateUnavailable,
            }
            .into(),
            histories: self
                .histories
                .iter()
                .map(|past| PChannelAssignmentLog {
                    term: past.term,
                    node: Some(node_info(&past.node)),
                    access_mode: past.mode.into(),
                })
                .collect(),
            last_assign_timestamp_seconds: self.assigned_at_s,
        }
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`Damaged`] if nothing sensible can be done with it; guessing could bring two owners.
    pub(crate) fn from_meta(key_name: &str, meta: PChannelMeta) -> Result<Self, Damaged> {
        let damaged = |what| Damaged { name: key_name.to_owned(), what };
        let state = match meta.state() {
            PChannelMetaState::PchannelMetaStateUninitialized => State::Uninitialized,
            PChannelMetaState::PchannelMetaStateAssigning => State::Assigning,
            PChannelMetaState::PchannelMetaStateAssigned => State::Assigned,
            PChannelMetaState::PchannelMetaStateUnavailable => State::Unavailable,
            PChannelMetaState::PchannelMetaStateUnknown => return Err(damaged("its state is unknown")),
        };
        let info = meta.channel.ok_or_else(|| damaged("it names no channel"))?;
        if info.name != key_name {
            return Err(damaged("it is stored under another channel's key"));
        }
        if info.term < 1 {
            return Err(damaged("its term is below 1"));
        }
        let mode = access_mode(info.access_mode).ok_or_else(|| damaged("its access mode is unknown"))?;
        let node = meta.node.map(node_of);
        if node.is_none() && state != State::Uninitialized {
            return Err(damaged("it has been assigned, but to no node"));
        }
        let histories = meta
            .histories
            .into_iter()
            .map(|past| {
                Ok(Ownership {
                    term: past.term,
                    mode: access_mode(past.access_mode).ok_or_else(|| damaged("a past access mode is unknown"))?,
                    node: past.node.map(node_of).ok_or_else(|| damaged("a past owner is missing"))?,
                })
            })
            .collect::<Result<_, Damaged>>()?;
        Ok(Self {
            name: info.name,
            term: info.term,
            mode,
            node,
            state,
            histories,
            assigned_at_s: meta.last_assign_timestamp_seconds,
        })
    }
}

fn access_mode(value: i32) -> Option<PChannelAccessMode> {
    PChannelAccessMode::try_from(value).ok()
}

/// A node as the wire names it.
pub(crate) fn node_info(node: &Node) -> StreamingNodeInfo {
    StreamingNodeInfo { server_id: node.server_id, address: node.address.clone() }
}

fn node_of(info: StreamingNodeInfo) -> Node {
    Node { server_id: info.server_id, address: info.address }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn node(server_id: i64) -> Node {
        Node { server_id, address: format!("n{server_id}:1") }
    }

    #[test]
    fn the_first_term_a_node_sees_is_2() {
        let assigning = PChannel::fresh("c").assign_to(node(1)).unwrap();
        assert_eq!((assigning.term(), assigning.state()), (2, State::Assigning));
        assert_eq!(assigning.histories, []);
    }

    #[test]
    fn assigned_to_the_same_node_stays() {
        let assigned = PChannel::fresh("c").assign_to(node(1)).unwrap().assigned(5);
        assert_eq!(assigned.assign_to(node(1)), None);
        assert_eq!(assigned.assigned_at_s(), 5);
    }

    #[test]
    fn every_try_that_did_not_end_joins_the_histories() {
        let channel = PChannel::fresh("c").assign_to(node(1)).unwrap().assigned(5);
        let channel = channel.assign_to(node(2)).unwrap().assign_to(node(2)).unwrap();
        let terms: Vec<_> = channel.histories.iter().map(|past| (past.term, past.node.server_id)).collect();
        assert_eq!(terms, [(2, 1), (3, 2)]);
        assert_eq!(channel.term(), 4);
    }

    #[test]
    fn however_often_it_is_tried_each_node_is_in_the_histories_once() {
        let mut channel = PChannel::fresh("c").assign_to(node(1)).unwrap();
        for _ in 0..10 {
            channel = channel.assign_to(node(2)).unwrap().assign_to(node(3)).unwrap();
        }
        let ends: Vec<_> = channel.histories.iter().map(|past| (past.term, past.node.server_id)).collect();
        assert_eq!((channel.term(), ends), (22, vec![(2, 1), (20, 3), (21, 2)]));
    }

    #[test]
    fn only_a_report_about_the_present_term_counts() {
        let assigned = PChannel::fresh("c").assign_to(node(1)).unwrap().assigned(5);
        assert_eq!(assigned.unavailable(1), None);
        let unavailable = assigned.unavailable(2).unwrap();
        assert_eq!(unavailable.state(), State::Unavailable);
        assert_eq!(unavailable.owner(), None);
        assert_eq!(unavailable.unavailable(2), None);
        let again = unavailable.assign_to(node(1)).unwrap();
        assert_eq!((again.term(), again.histories.len()), (3, 1));
    }

    #[test]
    fn the_stored_form_reads_back() {
        let channel = PChannel::fresh("c").assign_to(node(1)).unwrap().assigned(5).assign_to(node(2)).unwrap();
        assert_eq!(PChannel::from_meta("c", channel.to_meta()).unwrap(), channel);
        assert_eq!(PChannel::from_meta("c", PChannel::fresh("c").to_meta()).unwrap(), PChannel::fresh("c"));
    }

    #[test]
    fn a_damaged_record_is_refused() {
        let good = PChannel::fresh("c").assign_to(node(1)).unwrap().to_meta();
        assert!(PChannel::from_meta("other", good.clone()).is_err());
        assert!(PChannel::from_meta("c", PChannelMeta { node: None, ..good.clone() }).is_err());
        assert!(PChannel::from_meta("c", PChannelMeta { state: 77, ..good.clone() }).is_err());
        assert!(PChannel::from_meta("c", PChannelMeta { channel: None, ..good }).is_err());
    }
}
