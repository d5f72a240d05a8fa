//! Where metadata and log data live.

use std::time::Duration;

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use woodpecker_store::{object::ObjectSettings, seal::SealedSettings};

use super::{Secret, units};

/// The metadata store.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Metastore {
    /// Which metadata store.
    #[serde(rename = "type")]
    pub(crate) kind: MetastoreType,
    /// File of the embedded store; empty means `metadata.redb` in the data directory.
    pub(crate) path: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MetastoreType {
    /// A file of this process: one process only.
    #[default]
    Embedded,
    Etcd,
}

/// The etcd cluster; `rootPath` and `metaSubPath` are used with every metadata store.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Etcd {
    /// `host:port` or a URL each.
    pub(crate) endpoints: Vec<String>,
    /// Every key of this cluster begins so.
    pub(crate) root_path: String,
    /// Keys of the stream service are `<rootPath>/<this>/…`.
    pub(crate) meta_sub_path: String,
    /// The user.
    pub(crate) auth: EtcdAuth,
    /// TLS to etcd.
    pub(crate) ssl: EtcdSsl,
}

impl Default for Etcd {
    fn default() -> Self {
        Self {
            endpoints: vec!["127.0.0.1:2379".into()],
            root_path: "by-dev".into(),
            meta_sub_path: "meta".into(),
            auth: EtcdAuth::default(),
            ssl: EtcdSsl::default(),
        }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct EtcdAuth {
    /// Whether etcd is told who calls.
    pub(crate) enabled: bool,
    /// The user's name.
    pub(crate) user_name: String,
    /// The user's password.
    pub(crate) password: Secret,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct EtcdSsl {
    /// Whether etcd is spoken to over TLS.
    pub(crate) enabled: bool,
    /// File with the authorities that signed the servers' certificates, PEM.
    #[serde(rename = "tlsCACert")]
    pub(crate) tls_ca_cert: String,
    /// File with one's own certificate, for servers that ask for one.
    pub(crate) tls_cert: String,
    /// File with its key.
    pub(crate) tls_key: String,
}

/// The log engine.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Woodpecker {
    /// Its metadata.
    pub(crate) meta: WoodpeckerMeta,
    /// Where entries go.
    pub(crate) storage: WoodpeckerStorage,
    /// How logs are written and read.
    pub(crate) client: WoodpeckerClient,
    /// A log store.
    pub(crate) logstore: super::LogStore,
    /// What happens to logs in the background.
    pub(crate) maintenance: Maintenance,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct WoodpeckerMeta {
    /// Keys of the engine are `<etcd.rootPath>/<prefix>/…`.
    pub(crate) prefix: String,
}

impl Default for WoodpeckerMeta {
    fn default() -> Self {
        Self { prefix: "woodpecker".into() }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct WoodpeckerStorage {
    /// The backend of new segments; old ones are read from wherever they are.
    #[serde(rename = "type")]
    pub(crate) kind: StorageType,
    /// Other backends that logs may be on, or be moved to.
    pub(crate) also: Vec<StorageType>,
    /// The data directory.
    pub(crate) root_path: String,
}

impl Default for WoodpeckerStorage {
    fn default() -> Self {
        Self { kind: StorageType::Local, also: Vec::new(), root_path: "./data".into() }
    }
}

impl WoodpeckerStorage {
    /// Whether logs may be on this backend.
    pub(crate) fn uses(&self, kind: StorageType) -> bool {
        self.kind == kind || self.also.contains(&kind)
    }
}

/// What happens to logs in the background: sealing and garbage collection, in the coordinator's process.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Maintenance {
    /// Whether this process takes part in it.
    pub(crate) enabled: bool,
    /// Whether closed segments are brought into their final form in object storage. Without a value, they are if a
    /// backend uses object storage.
    pub(crate) sealing: Option<bool>,
    /// Age of a closed segment at which it is sealed.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) seal_after: Duration,
    /// Size from which on a closed segment is sealed at once.
    #[schemars(with = "units::SizeText")]
    pub(crate) seal_size: ByteSize,
    /// Segments worked on at the same time.
    pub(crate) parallelism: usize,
    /// Memory for the segments that are being sealed.
    #[schemars(with = "units::SizeText")]
    pub(crate) memory: ByteSize,
    /// How often it is looked for something to do.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) interval: Duration,
    /// How long truncated data is kept, counted from the close of its segment.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) keep_truncated: Duration,
    /// Share of the data directory's disk below which truncated data is not kept, and nothing waits to be sealed.
    pub(crate) min_free: f64,
    /// How often it is looked for what no record names.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) sweep_interval: Duration,
    /// How long what no record names is left alone.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) sweep_grace: Duration,
}

impl Default for Maintenance {
    fn default() -> Self {
        let defaults = woodpecker::MaintenanceSettings::default();
        Self {
            enabled: true,
            sealing: None,
            seal_after: defaults.seal_after,
            seal_size: ByteSize(defaults.seal_bytes),
            parallelism: defaults.parallelism,
            memory: ByteSize(defaults.memory_bytes as u64),
            interval: defaults.interval,
            keep_truncated: defaults.keep_truncated,
            min_free: 0.15,
            sweep_interval: defaults.sweep_interval,
            sweep_grace: defaults.sweep_grace,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StorageType {
    /// A volume on the local disk.
    #[default]
    Local,
    /// Objects in the store that `minio` describes.
    #[serde(alias = "minio")]
    Object,
    /// Log stores, of which most must have an entry.
    #[serde(alias = "service")]
    Quorum,
}

impl StorageType {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Object => "object",
            Self::Quorum => "quorum",
        }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct WoodpeckerClient {
    /// When a segment ends and the next begins.
    pub(crate) segment_rolling_policy: SegmentRollingPolicy,
    /// What appends may use.
    pub(crate) segment_append: SegmentAppend,
    /// What a process uses for logs on the backend `object`.
    pub(crate) object_storage: ObjectStorage,
    /// What a process uses to read sealed segments.
    pub(crate) sealed: Sealed,
    /// How log stores are used.
    pub(crate) quorum: Quorum,
}

/// How log stores are used.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Quorum {
    /// Where this process runs: replicas near it are read first.
    pub(crate) region: String,
    /// The availability zone of this process.
    pub(crate) az: String,
    /// Under which log stores register in the metadata store, `<etcd.rootPath>/<woodpecker.meta.prefix>` of who runs them;
    /// empty for this instance's own.
    pub(crate) log_store_prefix: String,
    /// Which log stores a new segment goes to.
    pub(crate) quorum_select_strategy: QuorumSelectStrategy,
}

/// Which log stores a new segment goes to.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct QuorumSelectStrategy {
    /// `soft` takes what comes closest to the strategy, `hard` nothing else.
    pub(crate) affinity_mode: AffinityMode,
    /// 3 or 5; a majority of them acks.
    pub(crate) replicas: usize,
    /// By zones (az) and resource groups (rg): one for all replicas, or as many as there are.
    pub(crate) strategy: SelectStrategy,
    /// One for each replica, with the strategy `custom`.
    pub(crate) custom_placement: Vec<CustomPlacement>,
}

impl Default for QuorumSelectStrategy {
    fn default() -> Self {
        Self {
            affinity_mode: AffinityMode::Soft,
            replicas: 3,
            strategy: SelectStrategy::Random,
            custom_placement: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AffinityMode {
    #[default]
    Soft,
    Hard,
}

/// Zones (az) and resource groups (rg): one for all replicas, or as many as there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SelectStrategy {
    #[default]
    Random,
    RandomGroup,
    SingleAzSingleRg,
    SingleAzMultiRg,
    MultiAzSingleRg,
    MultiAzMultiRg,
    CrossRegion,
    Custom,
}

/// Where one replica goes: whole names, in which `*` stands for any characters; empty for any.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct CustomPlacement {
    /// For people.
    pub(crate) name: String,
    pub(crate) region: String,
    pub(crate) az: String,
    pub(crate) resource_group: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct SegmentRollingPolicy {
    /// A segment of this size ends.
    #[schemars(with = "units::SizeText")]
    pub(crate) max_size: ByteSize,
    /// A segment of this age ends.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) max_interval: Duration,
}

impl Default for SegmentRollingPolicy {
    fn default() -> Self {
        Self { max_size: ByteSize::mib(256), max_interval: Duration::from_secs(600) }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct SegmentAppend {
    /// Bytes one log may have on their way to the medium.
    #[schemars(with = "units::SizeText")]
    pub(crate) max_in_flight: ByteSize,
}

impl Default for SegmentAppend {
    fn default() -> Self {
        Self { max_in_flight: ByteSize::mib(64) }
    }
}

/// What a process uses for logs on the backend `object`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ObjectStorage {
    /// Memory for entries of all logs that wait to be put; beyond it appends wait.
    #[schemars(with = "units::SizeText")]
    pub(crate) max_queued: ByteSize,
    /// PUTs of entries begun in a second at most. Where there are more appends, more of them share one.
    pub(crate) puts_per_second: u32,
    /// Memory for what was written or read lately.
    #[schemars(with = "units::SizeText")]
    pub(crate) cache_size: ByteSize,
}

impl Default for ObjectStorage {
    fn default() -> Self {
        let defaults = ObjectSettings::default();
        Self {
            max_queued: ByteSize(defaults.queued_bytes as u64),
            puts_per_second: defaults.puts_per_second,
            cache_size: ByteSize(defaults.cache_bytes),
        }
    }
}

/// What a process uses to read sealed segments.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Sealed {
    /// Memory for what was read lately.
    #[schemars(with = "units::SizeText")]
    pub(crate) cache_size: ByteSize,
}

impl Default for Sealed {
    fn default() -> Self {
        Self { cache_size: ByteSize(SealedSettings::default().cache_bytes) }
    }
}

/// The object store.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Minio {
    /// `aws` (any S3), `gcp`, `azure`, or `local` for a mounted file system.
    pub(crate) cloud_provider: String,
    /// Host, with or without a port, or a full URL. On `gcp` and `azure` the cloud's own unless it is set; on `azure` a host
    /// is what follows `<account>.blob.`.
    pub(crate) address: String,
    /// Port, if `address` has none.
    pub(crate) port: u16,
    /// Whether `address` is dialled with TLS.
    #[serde(rename = "useSSL")]
    pub(crate) use_ssl: bool,
    /// Whom TLS to it trusts.
    pub(crate) ssl: MinioSsl,
    /// Static key; empty for the identity of the machine or the pod. On `azure` the account, with either.
    #[serde(rename = "accessKeyID")]
    pub(crate) access_key_id: String,
    /// Its secret.
    pub(crate) secret_access_key: Secret,
    /// The bucket.
    pub(crate) bucket_name: String,
    /// Prefix inside the bucket; with `cloudProvider: local` the directory.
    pub(crate) root_path: String,
    /// The region that requests are signed for.
    pub(crate) region: String,
    /// Whether the bucket is part of the host's name instead of the path.
    pub(crate) use_virtual_host: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct MinioSsl {
    /// File with authorities that are trusted beside the system's, PEM.
    #[serde(rename = "tlsCACert")]
    pub(crate) tls_ca_cert: String,
}

impl Default for Minio {
    fn default() -> Self {
        Self {
            cloud_provider: "aws".into(),
            address: "127.0.0.1".into(),
            port: 9000,
            use_ssl: false,
            ssl: MinioSsl::default(),
            access_key_id: String::new(),
            secret_access_key: Secret::default(),
            bucket_name: "a-bucket".into(),
            root_path: "files".into(),
            region: "us-east-1".into(),
            use_virtual_host: false,
        }
    }
}

impl Minio {
    /// The endpoint as a URL; empty for what has none, or the cloud's own.
    pub(crate) fn endpoint(&self) -> String {
        match self.cloud_provider.as_str() {
            "local" => return String::new(),
            "gcp" | "azure" if self.address == Self::default().address => return String::new(),
            _ if self.address.contains("://") => return self.address.clone(),
            "gcp" => return format!("https://{}", self.address),
            "azure" => return format!("https://{}.blob.{}", self.access_key_id, self.address),
            _ => {}
        }
        let scheme = if self.use_ssl { "https" } else { "http" };
        let has_port = self.address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        if has_port {
            format!("{scheme}://{}", self.address)
        } else {
            format!("{scheme}://{}:{}", self.address, self.port)
        }
    }
}
