//! Configuration: one struct, filled from defaults, files, the environment and the command line, in that order.
//!
//! Key names are Milvus' where the meaning is the same, so that who knows the one finds the other; a file of Milvus' own is
//! refused, as most of it is about other components. Sizes and durations carry their unit (`64MiB`, `200ms`). An unknown key
//! or an impossible value stops the start and is named.

mod labels;
mod live;
mod load;
mod logstore;
mod rate_limit;
mod replicate;
mod schema;
mod secret;
mod security;
mod segments;
mod storage;
mod streaming;
mod telemetry;
mod units;
mod validate;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use self::{
    live::is_live,
    load::{Sources, changes, load},
    logstore::LogStore,
    replicate::{Replicate, ReplicateTarget},
    schema::{reference, schema},
    secret::Secret,
    security::{Auth, Limits, Tls},
    segments::{DataCoord, segments},
    storage::{AffinityMode, Etcd, Metastore, MetastoreType, Minio, Quorum, SelectStrategy, StorageType, Woodpecker},
    streaming::Streaming,
    telemetry::{Log, LogFormat, Trace, TraceExporter},
    units::duration,
};

/// Everything that can be set.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Config {
    pub(crate) msg_channel: MsgChannel,
    pub(crate) common: Common,
    pub(crate) root_coord: RootCoord,
    pub(crate) streaming_node: StreamingNode,
    pub(crate) streaming: Streaming,
    pub(crate) data_coord: DataCoord,
    pub(crate) replicate: Replicate,
    pub(crate) metastore: Metastore,
    pub(crate) etcd: Etcd,
    pub(crate) woodpecker: Woodpecker,
    pub(crate) minio: Minio,
    pub(crate) admin: Admin,
    pub(crate) tls: Tls,
    pub(crate) auth: Auth,
    pub(crate) limits: Limits,
    pub(crate) log: Log,
    pub(crate) trace: Trace,
}

/// Names of channels; the cluster's name travels with every call.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct MsgChannel {
    /// Names that channels begin with.
    pub(crate) chan_name_prefix: ChanNamePrefix,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ChanNamePrefix {
    /// The cluster's name: calls that carry another one are refused.
    pub(crate) cluster: String,
    /// Channels are `<cluster>-<this>_<i>`.
    pub(crate) root_coord_dml: String,
}

impl Default for ChanNamePrefix {
    fn default() -> Self {
        Self { cluster: "by-dev".into(), root_coord_dml: "rootcoord-dml".into() }
    }
}

/// What concerns every role.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Common {
    /// Sessions in the metadata store.
    pub(crate) session: Session,
    /// Channel names of one's own.
    pub(crate) pre_created_topic: PreCreatedTopic,
    /// How long a graceful stop may take before the process gives up and exits with an error; 25 s unless it is set.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<units::DurationText>")]
    pub(crate) graceful_stop_timeout: Option<Duration>,
    /// How long a role that starts waits for a metadata or object store that cannot be reached, before it gives up.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) start_timeout: Duration,
    /// How often the configuration file, certificates and tokens are looked at for changes.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) reload_interval: Duration,
}

impl Default for Common {
    fn default() -> Self {
        Self {
            session: Session::default(),
            pre_created_topic: PreCreatedTopic::default(),
            graceful_stop_timeout: None,
            start_timeout: Duration::from_secs(600),
            reload_interval: Duration::from_secs(10),
        }
    }
}

impl Common {
    pub(crate) fn grace(&self) -> Duration {
        self.graceful_stop_timeout.unwrap_or(Duration::from_secs(25))
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Session {
    /// Time to live of a session's lease: how long after its last sign of life a process counts as dead.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) ttl: Duration,
}

impl Default for Session {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(10) }
    }
}

/// Channel names given one by one, in place of `<cluster>-<rootCoordDml>_<i>`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct PreCreatedTopic {
    /// Whether they are used.
    pub(crate) enabled: bool,
    /// The names, in order. Behind the last `_` of one there is no `v`: it would be a vchannel's.
    pub(crate) names: Vec<String>,
}

/// The coordinator.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct RootCoord {
    /// Address to listen on.
    pub(crate) ip: String,
    /// Port to listen on; 0 takes a free one.
    pub(crate) port: u16,
    /// `host:port` that others dial; empty means the address it listens on, which 0.0.0.0 and `::` are not.
    pub(crate) advertise: String,
    /// Number of physical channels.
    pub(crate) dml_channel_num: u32,
}

impl Default for RootCoord {
    fn default() -> Self {
        Self { ip: "127.0.0.1".into(), port: 53100, advertise: String::new(), dml_channel_num: 16 }
    }
}

/// A streaming node.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct StreamingNode {
    /// Address to listen on.
    pub(crate) ip: String,
    /// Port to listen on; 0 takes a free one.
    pub(crate) port: u16,
    /// `host:port` that others dial; empty means the address it listens on, which 0.0.0.0 and `::` are not.
    pub(crate) advertise: String,
    /// Labels of the node's session, such as `RESOURCE_GROUP`; the variables `MILVUS_SERVER_LABEL_<NAME>`, and for nodes
    /// alone `MILVUS_SERVER_LABEL_SN_<NAME>`, set one each.
    pub(crate) labels: BTreeMap<String, String>,
}

impl Default for StreamingNode {
    fn default() -> Self {
        Self { ip: "127.0.0.1".into(), port: 22222, advertise: String::new(), labels: BTreeMap::new() }
    }
}

/// HTTP for operators: health, metrics.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Admin {
    /// Whether the port is there.
    pub(crate) enabled: bool,
    /// Address to listen on.
    pub(crate) ip: String,
    /// Port to listen on; 0 takes a free one.
    pub(crate) port: u16,
}

impl Default for Admin {
    fn default() -> Self {
        Self { enabled: true, ip: "127.0.0.1".into(), port: 9091 }
    }
}

impl Config {
    /// The configuration with every secret replaced, as YAML.
    pub(crate) fn dump(&self) -> anyhow::Result<String> {
        Ok(serde_saphyr::to_string(self)?)
    }

    /// Whether anything is kept in the object store that `minio` describes.
    pub(crate) fn uses_object_store(&self) -> bool {
        let sealing = self.woodpecker.maintenance.sealing == Some(true);
        sealing || self.woodpecker.storage.uses(StorageType::Object)
    }

    /// Files for the connections to what is no role of ours; they are read when a process starts.
    pub(crate) fn files_of_stores(&self) -> Vec<PathBuf> {
        let etcd = (self.metastore.kind == MetastoreType::Etcd && self.etcd.ssl.enabled).then_some(&self.etcd.ssl);
        let etcd = etcd.into_iter().flat_map(|ssl| [&ssl.tls_ca_cert, &ssl.tls_cert, &ssl.tls_key]);
        let objects = self.uses_object_store().then_some(&self.minio.ssl.tls_ca_cert);
        let named = etcd.chain(objects).filter(|file| !file.is_empty()).map(PathBuf::from);
        let collector = (self.trace.exporter == TraceExporter::Otlp).then(|| self.trace.otlp.tls_ca_cert.clone());
        named.chain(collector.filter(|file| !file.as_os_str().is_empty())).collect()
    }

    /// Names of the physical channels, in order.
    pub(crate) fn channels(&self) -> Vec<String> {
        if self.common.pre_created_topic.enabled {
            return self.common.pre_created_topic.names.clone();
        }
        let prefix = &self.msg_channel.chan_name_prefix;
        (0..self.root_coord.dml_channel_num)
            .map(|i| format!("{}-{}_{i}", prefix.cluster, prefix.root_coord_dml))
            .collect()
    }

    /// Prefix of all Milvus-style metadata keys.
    pub(crate) fn meta_root(&self) -> String {
        format!("{}/{}", self.etcd.root_path, self.etcd.meta_sub_path)
    }

    /// Where the embedded metadata store is.
    pub(crate) fn metadata_file(&self) -> PathBuf {
        match self.metastore.path.as_str() {
            "" => self.data_path("metadata.redb"),
            path => path.into(),
        }
    }

    /// Where a path that was left empty goes, under the data directory.
    pub(crate) fn data_path(&self, below: &str) -> PathBuf {
        PathBuf::from(&self.woodpecker.storage.root_path).join(below)
    }
}
