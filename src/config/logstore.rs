//! A log store.

use std::{collections::BTreeMap, time::Duration};

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use woodpecker_server::SettingsError;

use super::{Config, units};

/// A log store, and what the instances that it serves may use.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct LogStore {
    /// Address to listen on.
    pub(crate) ip: String,
    /// Port to listen on; 0 takes a free one.
    pub(crate) port: u16,
    /// `host:port` that others dial; empty means the address it listens on, which 0.0.0.0 and `::` are not.
    pub(crate) advertise: String,
    /// The region: told to clients, which spread replicas.
    pub(crate) region: String,
    /// The availability zone: what fails together.
    pub(crate) zone: String,
    /// Clients may spread replicas over groups, or keep them in one.
    pub(crate) resource_group: String,
    /// Prefixes of the log engines that it serves; empty means that of `woodpecker.meta.prefix`.
    pub(crate) register_under: Vec<String>,
    /// When appends are slowed down and refused.
    pub(crate) disk: LogStoreDisk,
    /// Entry bytes that may be on their way to the disk.
    pub(crate) in_flight: LogStoreInFlight,
    /// What a namespace may use that is not named below; 0 is no limit.
    pub(crate) quota: LogStoreQuota,
    /// What each of these namespaces may use.
    pub(crate) quotas: BTreeMap<String, LogStoreQuota>,
}

impl Default for LogStore {
    fn default() -> Self {
        Self {
            ip: "127.0.0.1".into(),
            port: 18080,
            advertise: String::new(),
            region: String::new(),
            zone: String::new(),
            resource_group: String::new(),
            register_under: Vec::new(),
            disk: LogStoreDisk::default(),
            in_flight: LogStoreInFlight::default(),
            quota: LogStoreQuota::default(),
            quotas: BTreeMap::new(),
        }
    }
}

/// When appends are slowed down (soft) and refused (hard): at a part of the disk in use, or at so much room left,
/// whichever comes first.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct LogStoreDisk {
    /// Part of the disk in use from which on appends are slowed down.
    pub(crate) soft_used: f64,
    /// Room left below which appends are slowed down.
    #[schemars(with = "units::SizeText")]
    pub(crate) soft_free: ByteSize,
    /// Part of the disk in use from which on appends are refused.
    pub(crate) hard_used: f64,
    /// Room left below which appends are refused.
    #[schemars(with = "units::SizeText")]
    pub(crate) hard_free: ByteSize,
    /// How often the disk is looked at.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) interval: Duration,
}

impl Default for LogStoreDisk {
    fn default() -> Self {
        Self {
            soft_used: 0.80,
            soft_free: ByteSize::gib(2),
            hard_used: 0.90,
            hard_free: ByteSize::gib(1),
            interval: Duration::from_secs(1),
        }
    }
}

/// Entry bytes that may be on their way to the disk.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct LogStoreInFlight {
    /// Of one stream.
    #[schemars(with = "units::SizeText")]
    pub(crate) stream: ByteSize,
    /// Of one namespace.
    #[schemars(with = "units::SizeText")]
    pub(crate) namespace: ByteSize,
    /// Of all.
    #[schemars(with = "units::SizeText")]
    pub(crate) total: ByteSize,
}

impl Default for LogStoreInFlight {
    fn default() -> Self {
        Self { stream: ByteSize::mib(32), namespace: ByteSize::mib(128), total: ByteSize::mib(512) }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct LogStoreQuota {
    /// Bytes appended a second.
    #[schemars(with = "units::SizeText")]
    pub(crate) bytes_per_second: ByteSize,
    /// Bytes on the disk.
    #[schemars(with = "units::SizeText")]
    pub(crate) bytes_kept: ByteSize,
    /// Logs.
    pub(crate) logs: u64,
}

impl LogStoreQuota {
    fn of(&self) -> woodpecker_server::Quota {
        woodpecker_server::Quota {
            bytes_per_second: self.bytes_per_second.as_u64(),
            bytes_kept: self.bytes_kept.as_u64(),
            logs: self.logs,
        }
    }
}

impl Config {
    /// What of the configuration concerns a log store.
    pub(crate) fn log_store(&self) -> woodpecker_server::Settings {
        let LogStore { disk, in_flight, .. } = &self.woodpecker.logstore;
        let section = &self.woodpecker.logstore;
        let own = format!("{}/{}", self.etcd.root_path, self.woodpecker.meta.prefix);
        let registries = if section.register_under.is_empty() { vec![own] } else { section.register_under.clone() };
        woodpecker_server::Settings {
            registries,
            advertised_address: (!section.advertise.is_empty()).then(|| section.advertise.clone()),
            region: section.region.clone(),
            zone: section.zone.clone(),
            resource_group: section.resource_group.clone(),
            session_ttl: self.common.session.ttl,
            in_flight: woodpecker_server::InFlight {
                stream: in_flight.stream.as_u64(),
                namespace: in_flight.namespace.as_u64(),
                total: in_flight.total.as_u64(),
            },
            watermarks: woodpecker_server::Watermarks {
                soft: woodpecker_server::Mark { used: disk.soft_used, free: disk.soft_free.as_u64() },
                hard: woodpecker_server::Mark { used: disk.hard_used, free: disk.hard_free.as_u64() },
            },
            disk_interval: disk.interval,
            default_quota: section.quota.of(),
            quotas: section.quotas.iter().map(|(name, quota)| (name.clone(), quota.of())).collect(),
            ..woodpecker_server::Settings::default()
        }
    }

    pub(super) fn validate_log_store(&self) -> anyhow::Result<()> {
        self.log_store()
            .validate()
            .map_err(|SettingsError { key, problem }| anyhow::anyhow!("{}: {problem}", key_of(key)))
    }
}

/// Where an operator sets what a log store calls `name`.
fn key_of(name: &'static str) -> &'static str {
    match name {
        "registries" => "woodpecker.logstore.registerUnder",
        "advertised_address" => "woodpecker.logstore.advertise",
        "session_ttl" => "common.session.ttl",
        "in_flight" => "woodpecker.logstore.inFlight",
        "watermarks" => "woodpecker.logstore.disk",
        "disk_interval" => "woodpecker.logstore.disk.interval",
        other => other,
    }
}
