//! What an operator can see of the channels.

use serde::Serialize;

use crate::pchannel::State;

/// A channel as the active coordinator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChannelStatus {
    pub name: String,
    pub term: i64,
    pub state: ChannelState,
    /// Whether it is assigned to a node that may keep it.
    pub served: bool,
    /// Server id of the node that has the channel or that it is on its way to.
    pub node: Option<i64>,
    /// Whether an attempt at changing that is running.
    pub busy: bool,
    /// Attempts that failed since the last that succeeded.
    pub failures: u32,
    /// Why the last one failed.
    pub last_error: Option<String>,
}

/// Where a channel is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChannelState {
    /// Never assigned.
    Uninitialized,
    /// On its way to a node.
    Assigning,
    /// Served.
    Assigned,
    /// Seen to fail; about to be assigned again.
    Unavailable,
}

impl From<State> for ChannelState {
    fn from(state: State) -> Self {
        match state {
            State::Uninitialized => Self::Uninitialized,
            State::Assigning => Self::Assigning,
            State::Assigned => Self::Assigned,
            State::Unavailable => Self::Unavailable,
        }
    }
}
