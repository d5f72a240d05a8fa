//! What a coordinator counts. Names are those that dashboards of Milvus know.

use std::collections::BTreeSet;

use metrics::gauge;
use streaming_proto::streaming::PChannelMetaState;

use crate::balancer::{ChannelState, ChannelStatus};

/// 1 in the process that leads, 0 in those that stand by.
pub(crate) fn leads(leads: bool) {
    gauge!("milvus_streamingcoord_leader").set(if leads { 1.0 } else { 0.0 });
}

/// Whether a change of the topology is on its way to the channels, which is all that is broadcast.
pub(crate) fn broadcasts(pending: bool) {
    gauge!("milvus_streamingcoord_broadcaster_task_total", "state" => "pending").set(if pending { 1.0 } else { 0.0 });
}

/// Shows the channels as they are now; where one was before is 0 from then on.
pub(crate) fn channels(before: &[ChannelStatus], now: &[ChannelStatus]) {
    let (before, now): (BTreeSet<_>, BTreeSet<_>) =
        (before.iter().map(Shown::of).collect(), now.iter().map(Shown::of).collect());
    before.difference(&now).for_each(|gone| gone.set(0, false, 0));
    now.difference(&before).for_each(|new| new.set(new.term, new.unserved, new.failing_since_s));
}

/// What is shown of a channel.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Shown<'a> {
    name: &'a str,
    node: Option<i64>,
    state: &'static str,
    term: i64,
    unserved: bool,
    failing_since_s: u64,
}

impl<'a> Shown<'a> {
    fn of(channel: &'a ChannelStatus) -> Self {
        let state = match channel.state {
            ChannelState::Uninitialized => PChannelMetaState::PchannelMetaStateUninitialized,
            ChannelState::Assigning => PChannelMetaState::PchannelMetaStateAssigning,
            ChannelState::Assigned => PChannelMetaState::PchannelMetaStateAssigned,
            ChannelState::Unavailable => PChannelMetaState::PchannelMetaStateUnavailable,
        };
        let ChannelStatus { name, node, term, served, .. } = channel;
        Self {
            name,
            node: *node,
            state: state.as_str_name(),
            term: *term,
            unserved: !served,
            failing_since_s: channel.failing_since_s.unwrap_or_default(),
        }
    }

    /// The value of the first is the term: as a label it would make a new series for every assignment. Whether the channel is
    /// served stands apart from its state: it stays assigned while there is no other node to give it to.
    fn set(&self, term: i64, unserved: bool, failing_since_s: u64) {
        let node = self.node.map(|node| node.to_string()).unwrap_or_default();
        let (name, unserved) = (self.name.to_owned(), if unserved { 1.0 } else { 0.0 });
        gauge!("milvus_streamingcoord_pchannel_info", "channel_name" => name.clone(), "streaming_node" => node, "state" => self.state)
            .set(term as f64);
        gauge!("milvus_streamingcoord_pchannel_unserved", "channel_name" => name.clone()).set(unserved);
        gauge!("milvus_streamingcoord_pchannel_failing_since", "channel_name" => name).set(failing_since_s as f64);
    }
}
