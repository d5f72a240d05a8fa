//! The shipping side of replication.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::ensure;
use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use woodpecker_base::net::is_host_and_port;

use super::{Config, units};

/// What the role `replicate` reads from, and how much is on its way.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Replicate {
    /// `host:port` of the coordinator of the cluster whose logs are shipped; empty means that it is found through the
    /// metadata store.
    pub(crate) source: String,
    /// Messages of one channel that the target has not answered.
    pub(crate) in_flight_messages: u64,
    /// Their bytes; a transaction goes as one, whatever its size.
    #[schemars(with = "units::SizeText")]
    pub(crate) in_flight_bytes: ByteSize,
    /// How to get into the clusters that follow, by their id in the topology. One that is not named is reached as the roles
    /// of the own cluster are.
    pub(crate) targets: BTreeMap<String, ReplicateTarget>,
}

/// What another cluster trusts, and what it is known by. The files are read again when they change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ReplicateTarget {
    /// File with the authorities that sign the certificates of its roles, PEM; without one it is reached as the own cluster
    /// is. The certificate that is shown to it is that of `tls`, if there is one.
    pub(crate) ca: PathBuf,
    /// The name in their certificates, if it is not the host that is dialled.
    pub(crate) server_name: String,
    /// File with the token to show, which needs the role `write` there. Without one none is shown to a cluster that has a
    /// `ca` of its own, and the process' own to another.
    pub(crate) token_file: PathBuf,
}

impl Default for Replicate {
    fn default() -> Self {
        Self {
            source: String::new(),
            in_flight_messages: 1024,
            in_flight_bytes: ByteSize::mib(32),
            targets: BTreeMap::new(),
        }
    }
}

impl Config {
    /// What of the configuration concerns the shipping side.
    pub(crate) fn replicator(&self) -> streaming_replicate::Settings {
        let Replicate { in_flight_messages, in_flight_bytes, .. } = &self.replicate;
        streaming_replicate::Settings {
            in_flight_messages: usize::try_from(*in_flight_messages).unwrap_or(usize::MAX),
            in_flight_bytes: usize::try_from(in_flight_bytes.as_u64()).unwrap_or(usize::MAX),
            ..streaming_replicate::Settings::default()
        }
    }

    pub(super) fn validate_replicate(&self) -> anyhow::Result<()> {
        let Replicate { source, in_flight_messages, in_flight_bytes, .. } = &self.replicate;
        ensure!(source.is_empty() || is_host_and_port(source), "replicate.source: {source:?} is not host:port");
        ensure!(*in_flight_messages > 0, "replicate.inFlightMessages: must be more than zero");
        ensure!(in_flight_bytes.as_u64() > 0, "replicate.inFlightBytes: must be more than zero");
        Ok(())
    }
}
