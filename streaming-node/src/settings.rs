//! What an operator can set for a streaming node.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use woodpecker_base::net::is_host_and_port;

use crate::wal::txn::LONGEST_KEEPALIVE_MS;

mod flow;
mod segments;

pub use self::{
    flow::{Adaptive, Flow, Marks, Recovering, Slowdown},
    segments::Segments,
};

/// Settings of a streaming node; unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Name of the cluster; calls that name another one are refused.
    pub cluster: String,
    /// Where this cluster's keys begin in the metadata store, without slashes at either end.
    pub metadata_root: String,
    /// `host:port` that others dial; without it, the address the listener is bound to.
    pub advertised_address: Option<String>,
    /// Labels that the session carries; `RESOURCE_GROUP` is one that coordinators know.
    pub labels: BTreeMap<String, String>,
    /// Version that the session announces; coordinators look for 2.6.0 and later.
    pub version: String,
    /// Time to live of the session's lease.
    #[serde(with = "humantime_serde")]
    pub session_ttl: Duration,
    /// Largest message that is accepted: payload and properties together, in bytes.
    pub max_message_bytes: usize,
    /// Largest entry of a log, in bytes; a larger message is split into several, which no client sees.
    pub entry_bytes: usize,
    /// Bytes of messages one write-ahead log holds that are not durable yet.
    pub in_flight_bytes: usize,
    /// Bytes of messages one producer may have in flight.
    pub producer_in_flight_bytes: usize,
    /// Bytes of durable messages one write-ahead log keeps in memory for its readers.
    pub buffer_bytes: usize,
    /// Bytes that all of them keep together.
    pub node_buffer_bytes: usize,
    /// Bytes that a node holds of messages beside those buffers: half for those in flight, half for those of transactions
    /// that readers put together.
    pub node_held_bytes: usize,
    /// How long a durable message is kept there at most.
    #[serde(with = "humantime_serde")]
    pub buffer_age: Duration,
    /// How often a consumer gets a time tick at least.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// How long closing a write-ahead log may take before what is left is given up.
    #[serde(with = "humantime_serde")]
    pub close_timeout: Duration,
    /// How long an append may be without an outcome before the write-ahead log is given up, so that another owner serves it.
    #[serde(with = "humantime_serde")]
    pub append_timeout: Duration,
    /// How long a node that starts waits for a metadata store that cannot be reached, before it gives up.
    #[serde(with = "humantime_serde")]
    pub start_timeout: Duration,
    /// An append that takes longer is logged, for each producer no more often than once a second.
    #[serde(with = "humantime_serde")]
    pub append_slow_threshold: Duration,
    /// Bytes of idempotency keys and results that are remembered of one vchannel; four times as many of one write-ahead log.
    pub idempotency_bytes: usize,
    /// How long a transaction lives without a message, if its begin does not say.
    #[serde(with = "humantime_serde")]
    pub txn_keepalive: Duration,
    /// How a write-ahead log is made ready to be taken over.
    pub recovery: Recovery,
    /// When writers are slowed down.
    pub flow: Flow,
    /// How large and how old growing segments become.
    pub segments: Segments,
}

/// How often a write-ahead log writes down how far it is done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recovery {
    /// The longest time between two checkpoints of a log that is written to.
    #[serde(with = "humantime_serde")]
    pub persist_interval: Duration,
    /// The most bytes between two checkpoints, which is about what the next owner replays.
    pub persist_bytes: u64,
    /// How many bytes of a log's end the next owner reads for idempotency keys. So much is kept of a log, whoever else is
    /// done with it.
    pub window_bytes: u64,
}

impl Default for Recovery {
    fn default() -> Self {
        Self { persist_interval: Duration::from_secs(10), persist_bytes: 64 << 20, window_bytes: 32 << 20 }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cluster: "by-dev".to_owned(),
            metadata_root: "by-dev/meta".to_owned(),
            advertised_address: None,
            labels: BTreeMap::new(),
            version: "2.6.2".to_owned(),
            session_ttl: Duration::from_secs(10),
            max_message_bytes: streaming_types::DEFAULT_MAX_MESSAGE_BYTES,
            entry_bytes: 2 << 20,
            in_flight_bytes: 64 << 20,
            producer_in_flight_bytes: 32 << 20,
            buffer_bytes: 64 << 20,
            node_buffer_bytes: 1 << 30,
            node_held_bytes: 1 << 30,
            buffer_age: Duration::from_secs(30),
            heartbeat: Duration::from_millis(200),
            close_timeout: Duration::from_secs(10),
            append_timeout: Duration::from_secs(60),
            start_timeout: Duration::from_secs(600),
            append_slow_threshold: Duration::from_secs(1),
            idempotency_bytes: 16 << 20,
            txn_keepalive: streaming_types::txn::DEFAULT_KEEPALIVE,
            recovery: Recovery::default(),
            flow: Flow::default(),
            segments: Segments::default(),
        }
    }
}

/// A setting that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct SettingsError {
    pub key: &'static str,
    pub problem: String,
}

impl Settings {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// The first key whose value is impossible.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let refuse = |key, problem: &str| Err(SettingsError { key, problem: problem.to_owned() });
        if self.cluster.is_empty() {
            return refuse("cluster", "must not be empty");
        }
        let root = &self.metadata_root;
        if root.is_empty() || root.starts_with('/') || root.ends_with('/') {
            return refuse("metadata_root", "must neither be empty nor begin or end with a slash");
        }
        if !self.advertised_address.as_deref().is_none_or(is_host_and_port) {
            return refuse("advertised_address", "must be host:port");
        }
        if self.version.is_empty() {
            return refuse("version", "must not be empty");
        }
        if self.session_ttl < Duration::from_secs(1) {
            return refuse("session_ttl", "must be at least 1s");
        }
        if !(1..=MAX_GRPC_BYTES / 2).contains(&self.max_message_bytes) {
            return refuse("max_message_bytes", "must be between 1 and half of what one gRPC message holds (256 MiB)");
        }
        if !(1024..=16 << 20).contains(&self.entry_bytes) {
            return refuse("entry_bytes", "must be between 1 KiB and 16 MiB, which every backend takes");
        }
        for (key, bytes) in
            [("in_flight_bytes", self.in_flight_bytes), ("producer_in_flight_bytes", self.producer_in_flight_bytes)]
        {
            if bytes < self.max_message_bytes || u32::try_from(bytes).is_err() {
                return refuse(key, "must be at least max_message_bytes and below 4 GiB");
            }
        }
        if self.node_held_bytes / 2 < self.in_flight_bytes {
            return refuse("node_held_bytes", "half of it must be at least what one write-ahead log has in flight");
        }
        if !(Duration::from_millis(1)..=Duration::from_secs(10)).contains(&self.heartbeat) {
            return refuse("heartbeat", "must be between 1ms and 10s");
        }
        for (key, duration) in [("close_timeout", self.close_timeout), ("append_timeout", self.append_timeout)] {
            if duration.is_zero() {
                return refuse(key, "must not be zero");
            }
        }
        let longest = Duration::from_millis(LONGEST_KEEPALIVE_MS.unsigned_abs());
        if !(Duration::from_millis(1)..=longest).contains(&self.txn_keepalive) {
            return refuse("txn_keepalive", "must be between 1ms and 24h");
        }
        if self.recovery.persist_interval.is_zero() {
            return refuse("recovery.persist_interval", "must not be zero");
        }
        if self.recovery.persist_bytes == 0 {
            return refuse("recovery.persist_bytes", "must not be zero");
        }
        self.flow.validate()?;
        self.segments.validate()?;
        Ok(())
    }
}

/// Largest gRPC message a node takes or gives, as its peers expect it.
pub(crate) const MAX_GRPC_BYTES: usize = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_read_back() {
        let settings = Settings::default();
        assert_eq!(settings.validate(), Ok(()));
        let text = serde_json::to_string(&settings).unwrap();
        assert!(text.contains("\"heartbeat\":\"200ms\""), "{text}");
        assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), settings);
        assert_eq!(serde_json::from_str::<Settings>("{}").unwrap(), settings);
    }

    #[test]
    fn unknown_keys_are_named() {
        let error = serde_json::from_str::<Settings>(r#"{"hartbeat": "1s"}"#).unwrap_err();
        assert!(error.to_string().contains("hartbeat"), "{error}");
    }

    #[test]
    fn impossible_values_name_their_key() {
        let default = Settings::default;
        let bad = [
            ("cluster", Settings { cluster: String::new(), ..default() }),
            ("metadata_root", Settings { metadata_root: "/a".into(), ..default() }),
            ("advertised_address", Settings { advertised_address: Some("nowhere:0".into()), ..default() }),
            ("session_ttl", Settings { session_ttl: Duration::ZERO, ..default() }),
            ("max_message_bytes", Settings { max_message_bytes: 0, ..default() }),
            ("max_message_bytes", Settings { max_message_bytes: MAX_GRPC_BYTES, ..default() }),
            ("entry_bytes", Settings { entry_bytes: 1023, ..default() }),
            ("in_flight_bytes", Settings { in_flight_bytes: 1, ..default() }),
            ("producer_in_flight_bytes", Settings { producer_in_flight_bytes: 1, ..default() }),
            ("node_held_bytes", Settings { node_held_bytes: 127 << 20, ..default() }),
            ("heartbeat", Settings { heartbeat: Duration::ZERO, ..default() }),
            ("txn_keepalive", Settings { txn_keepalive: Duration::from_micros(1), ..default() }),
            ("close_timeout", Settings { close_timeout: Duration::ZERO, ..default() }),
            ("append_timeout", Settings { append_timeout: Duration::ZERO, ..default() }),
            (
                "recovery.persist_interval",
                Settings {
                    recovery: Recovery { persist_interval: Duration::ZERO, ..Recovery::default() },
                    ..default()
                },
            ),
            (
                "recovery.persist_bytes",
                Settings { recovery: Recovery { persist_bytes: 0, ..Recovery::default() }, ..default() },
            ),
        ];
        for (key, settings) in bad {
            assert_eq!(settings.validate().unwrap_err().key, key);
        }
    }
}
