//! What can be set on a coordinator.

use std::{collections::BTreeSet, time::Duration};

use serde::{Deserialize, Serialize};
use streaming_types::channel::is_physical;
use woodpecker_base::net::is_host_and_port;

/// Everything that can be set. The defaults suit a cluster of a few nodes; [`Settings::validate`] names what is wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Name of the cluster; a call that names another one is refused.
    pub cluster: String,
    /// Where this cluster's keys begin in the metadata store, without slashes at either end.
    pub metadata_root: String,
    pub channels: Channels,
    /// `host:port` that others dial; without it, the address the listener is bound to.
    pub advertised_address: Option<String>,
    /// Version that the session announces; clients look for 2.6.0 and later.
    pub version: String,
    /// Time to live of the session: how long after its last sign of life another coordinator may take over.
    #[serde(with = "humantime_serde")]
    pub session_ttl: Duration,
    pub on_leadership_loss: OnLeadershipLoss,
    pub nodes: Nodes,
    pub balance: Balance,
    /// How far ahead of time timestamps are reserved in the metadata store. A successor starts above the reservation.
    #[serde(with = "humantime_serde")]
    pub timestamp_window: Duration,
    /// Deadline of one request to the metadata store.
    #[serde(with = "humantime_serde")]
    pub metadata_timeout: Duration,
    /// How long a call waits for this coordinator to become active before it fails.
    #[serde(with = "humantime_serde")]
    pub ready_timeout: Duration,
    /// How long a standby keeps a silent AssignmentDiscover stream before it ends it, so that the client looks for the
    /// active coordinator again.
    #[serde(with = "humantime_serde")]
    pub standby_hold: Duration,
    /// How long a graceful stop may take.
    #[serde(with = "humantime_serde")]
    pub shutdown_grace: Duration,
}

/// The pchannels that the cluster is made of. Channels that were assigned once are served whether listed or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Channels {
    /// Number of channels, named `<cluster>-rootcoord-dml_<i>`; not looked at if there are names.
    pub count: u32,
    /// Names, in place of count.
    pub names: Vec<String>,
}

/// What a coordinator does that has lost its leadership.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLeadershipLoss {
    /// Stands for election again, under a new server id.
    Standby,
    /// Ends with an error.
    Exit,
}

/// Calls to streaming nodes, and when one counts as lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Nodes {
    /// How often every node is asked for its status.
    #[serde(with = "humantime_serde")]
    pub status_interval: Duration,
    /// Deadline of one status call.
    #[serde(with = "humantime_serde")]
    pub status_timeout: Duration,
    /// Status calls that must fail in a row, and for how long, before a node whose session lives counts as lost.
    pub lost_after_failures: u32,
    #[serde(with = "humantime_serde")]
    pub lost_after: Duration,
    /// Deadline of one Assign. A node opens, and recovers, a channel for as long as the call lasts.
    #[serde(with = "humantime_serde")]
    pub assign_timeout: Duration,
    /// Deadline of one Remove.
    #[serde(with = "humantime_serde")]
    pub remove_timeout: Duration,
    /// First and longest wait before a channel's next attempt, doubling in between.
    #[serde(with = "humantime_serde")]
    pub retry_initial: Duration,
    #[serde(with = "humantime_serde")]
    pub retry_max: Duration,
}

/// How channels are spread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Balance {
    /// How often the balance is looked at when nothing happens.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// Whether channels are moved for the sake of balance; if not, only those without a usable node are assigned.
    pub allow_rebalance: bool,
    /// A channel is not moved again for this long.
    #[serde(with = "humantime_serde")]
    pub min_rebalance_interval: Duration,
    /// A channel whose checkpoint is further behind its end than this is not moved.
    #[serde(with = "humantime_serde")]
    pub max_recovery_lag: Duration,
    /// A new cluster assigns nothing before this many nodes are there.
    pub initial_nodes: u32,
    /// The resource group whose nodes have the channels; empty is all nodes.
    pub primary_group: String,
    /// Whether channels without a node wait while that group has none; if not, they go to any node meanwhile.
    pub strict_groups: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cluster: "by-dev".into(),
            metadata_root: "by-dev/meta".into(),
            channels: Channels::default(),
            advertised_address: None,
            version: "2.6.2".into(),
            session_ttl: Duration::from_secs(10),
            on_leadership_loss: OnLeadershipLoss::Standby,
            nodes: Nodes::default(),
            balance: Balance::default(),
            timestamp_window: Duration::from_secs(3),
            metadata_timeout: Duration::from_secs(5),
            ready_timeout: Duration::from_secs(10),
            standby_hold: Duration::from_secs(30),
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

impl Default for Channels {
    fn default() -> Self {
        Self { count: 16, names: Vec::new() }
    }
}

impl Default for Nodes {
    fn default() -> Self {
        Self {
            status_interval: Duration::from_secs(5),
            status_timeout: Duration::from_secs(3),
            lost_after_failures: 5,
            lost_after: Duration::from_secs(30),
            assign_timeout: Duration::from_secs(600),
            remove_timeout: Duration::from_secs(60),
            retry_initial: Duration::from_millis(50),
            retry_max: Duration::from_secs(10),
        }
    }
}

impl Default for Balance {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(60),
            allow_rebalance: true,
            min_rebalance_interval: Duration::from_secs(300),
            max_recovery_lag: Duration::from_secs(1),
            initial_nodes: 0,
            primary_group: String::new(),
            strict_groups: false,
        }
    }
}

/// A setting that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {what}")]
pub struct SettingsError {
    /// The key, with dots between its parts.
    pub key: &'static str,
    pub what: String,
}

impl Settings {
    /// The most channels a cluster may have: each costs a key, a line in every assignment and an open log.
    pub const MAX_CHANNELS: u32 = 4096;

    /// Checks every value.
    ///
    /// # Errors
    /// The first key whose value is impossible.
    pub fn validate(&self) -> Result<(), SettingsError> {
        check("cluster", is_token(&self.cluster), "must be letters, digits, '-', '_' or '.'")?;
        let root = &self.metadata_root;
        check(
            "metadata_root",
            !root.is_empty() && root.split('/').all(is_token),
            "must be names joined by '/', with none at either end",
        )?;
        check("version", starts_with_number(&self.version), "must be a semantic version such as 2.6.2")?;
        if let Some(address) = &self.advertised_address {
            check("advertised_address", is_host_and_port(address), "must be host:port")?;
        }
        self.validate_channels()?;
        self.validate_durations()?;
        check("nodes.lost_after_failures", self.nodes.lost_after_failures > 0, "must be at least 1")
    }

    fn validate_channels(&self) -> Result<(), SettingsError> {
        let Channels { count, names } = &self.channels;
        if names.is_empty() {
            let fits = (1..=Self::MAX_CHANNELS).contains(count);
            return check("channels.count", fits, &format!("must be 1 to {}", Self::MAX_CHANNELS));
        }
        let few = u32::try_from(names.len()).is_ok_and(|names| names <= Self::MAX_CHANNELS);
        check("channels.names", few, &format!("must be at most {}", Self::MAX_CHANNELS))?;
        for name in names {
            check("channels.names", is_token(name), &format!("{name:?} must be letters, digits, '-', '_' or '.'"))?;
            // Clients would look for the part in front of it.
            let behind = format!("{name:?} is the name of a vchannel: behind its last '_' there must be no 'v'");
            check("channels.names", is_physical(name), &behind)?;
        }
        let distinct: BTreeSet<_> = names.iter().collect();
        check("channels.names", distinct.len() == names.len(), "must not repeat")
    }

    fn validate_durations(&self) -> Result<(), SettingsError> {
        for (key, value) in [
            ("session_ttl", self.session_ttl),
            ("timestamp_window", self.timestamp_window),
            ("metadata_timeout", self.metadata_timeout),
            ("ready_timeout", self.ready_timeout),
            ("standby_hold", self.standby_hold),
            ("shutdown_grace", self.shutdown_grace),
            ("nodes.status_interval", self.nodes.status_interval),
            ("nodes.status_timeout", self.nodes.status_timeout),
            ("nodes.assign_timeout", self.nodes.assign_timeout),
            ("nodes.remove_timeout", self.nodes.remove_timeout),
            ("nodes.retry_initial", self.nodes.retry_initial),
            ("balance.interval", self.balance.interval),
        ] {
            check(key, !value.is_zero(), "must be longer than 0")?;
        }
        check("session_ttl", self.session_ttl >= Duration::from_secs(1), "must be at least 1s")?;
        check("timestamp_window", self.timestamp_window >= Duration::from_millis(100), "must be at least 100ms")?;
        check("timestamp_window", self.timestamp_window <= Duration::from_secs(600), "must be at most 10m")?;
        let ordered = self.nodes.retry_max >= self.nodes.retry_initial;
        check("nodes.retry_max", ordered, "must not be shorter than nodes.retry_initial")
    }

    /// The configured pchannels, sorted.
    pub(crate) fn channel_names(&self) -> Vec<String> {
        let Channels { count, names } = &self.channels;
        let mut names = if names.is_empty() {
            (0..*count).map(|i| format!("{}-rootcoord-dml_{i}", self.cluster)).collect()
        } else {
            names.clone()
        };
        names.sort();
        names
    }
}

fn check(key: &'static str, holds: bool, what: &str) -> Result<(), SettingsError> {
    if holds { Ok(()) } else { Err(SettingsError { key, what: what.to_owned() }) }
}

/// Fit to stand in a key, a channel name and a header.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

fn starts_with_number(version: &str) -> bool {
    let parts: Vec<_> = version.splitn(3, '.').collect();
    matches!(parts.as_slice(), [major, minor, patch]
        if major.parse::<u32>().is_ok()
            && minor.parse::<u32>().is_ok()
            && patch.bytes().next().is_some_and(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bad_key(change: impl FnOnce(&mut Settings)) -> &'static str {
        let mut settings = Settings::default();
        change(&mut settings);
        settings.validate().expect_err("must be refused").key
    }

    #[test]
    fn the_defaults_are_valid() {
        Settings::default().validate().unwrap();
        assert_eq!(Settings::default().channel_names().len(), 16);
        assert_eq!(Settings::default().channel_names()[1], "by-dev-rootcoord-dml_1");
    }

    #[test]
    fn an_impossible_value_is_named() {
        assert_eq!(bad_key(|s| s.cluster.clear()), "cluster");
        assert_eq!(bad_key(|s| s.metadata_root = "/a/".into()), "metadata_root");
        assert_eq!(bad_key(|s| s.version = "new".into()), "version");
        assert_eq!(bad_key(|s| s.advertised_address = Some("host".into())), "advertised_address");
        assert_eq!(bad_key(|s| s.channels.count = 0), "channels.count");
        assert_eq!(bad_key(|s| s.channels.names = vec!["a".into(), "a".into()]), "channels.names");
        assert_eq!(bad_key(|s| s.channels.names = vec!["a/b".into()]), "channels.names");
        assert_eq!(bad_key(|s| s.channels.names = vec!["orders_v2".into()]), "channels.names");
        assert_eq!(bad_key(|s| s.nodes.assign_timeout = Duration::ZERO), "nodes.assign_timeout");
        assert_eq!(bad_key(|s| s.nodes.retry_max = Duration::from_millis(1)), "nodes.retry_max");
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = serde_json::from_str::<Settings>(r#"{"balance": {"intervall": "1s"}}"#).unwrap_err();
        assert!(error.to_string().contains("intervall"), "{error}");
    }

    #[test]
    fn durations_carry_their_unit() {
        let settings: Settings = serde_json::from_str(r#"{"session_ttl": "2s 500ms"}"#).unwrap();
        assert_eq!(settings.session_ttl, Duration::from_millis(2500));
    }
}
