//! What an operator can see of the channels.

use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use crate::pchannel::State;

/// Under which of the extra informations of `GetPChannelInfo` the active coordinator gives [`ChannelStatus::trouble`]. Peers
/// that do not know it pass over it.
pub const CHANNEL_TROUBLE: &str = "trouble";
/// The end of the year 9999, behind which no time can be written.
const LAST_S: u64 = 253_402_300_799;

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
    /// Attempts that failed, or whose WAL ended soon, since the channel was last served for a while.
    pub failures: u32,
    /// When the first of them failed, in seconds since the Unix epoch.
    pub failing_since_s: Option<u64>,
    /// Why the last one failed.
    pub last_error: Option<String>,
}

impl ChannelStatus {
    /// How it goes with bringing the channel to a node, if something failed lately.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let Self { failures, .. } = self;
        let since = time(self.failing_since_s?);
        let doing = match (self.served, self.busy) {
            (true, _) => "served again",
            (false, true) => "an attempt is running",
            (false, false) => "waiting for the next attempt",
        };
        let cause = self.last_error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
        Some(format!("{failures} failed attempts since {since}, {doing}{cause}"))
    }
}

/// As people read it.
pub(super) fn time(unix_s: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix_s.min(LAST_S))).to_string()
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
