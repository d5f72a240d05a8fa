//! The stream service on top of the logs.

use std::time::Duration;

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{rate_limit::WalRateLimit, segments::Flush, units};

/// The stream service on top of the logs.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Streaming {
    /// What is kept in memory for subscribers at the tail.
    pub(crate) wal_write_ahead_buffer: WriteAheadBuffer,
    /// Cadence of the ticks an idle consumer sees.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) time_tick_interval: Duration,
    /// Largest message, payload and properties together.
    #[schemars(with = "units::SizeText")]
    pub(crate) max_message_size: ByteSize,
    /// Largest entry of a log; a larger message is split into several, which no client sees.
    #[schemars(with = "units::SizeText")]
    pub(crate) max_entry_size: ByteSize,
    /// What a node holds of messages beside its write-ahead buffers: half for appends in flight, half for transactions that
    /// consumers wait for. Without room appends wait for others, and a transaction is read from its log once more when it is
    /// committed.
    #[schemars(with = "units::SizeText")]
    pub(crate) node_max_held: ByteSize,
    /// What one producer may have in flight.
    #[schemars(with = "units::SizeText")]
    pub(crate) producer_max_in_flight: ByteSize,
    /// What is worth a line in the log.
    pub(crate) logging: Logging,
    /// What consumers that are behind read before they need it.
    pub(crate) wal_read_ahead_buffer: ReadAheadBuffer,
    /// Consumers of a node, all together.
    pub(crate) wal_scanner: WalScanner,
    /// Transactions.
    pub(crate) txn: TxnSettings,
    /// Appends.
    pub(crate) wal_append: WalAppend,
    /// The end of a WAL.
    pub(crate) wal_close: WalClose,
    /// How often a WAL writes down how far it is done.
    pub(crate) wal_recovery: WalRecovery,
    /// Boxed, as the largest of all.
    pub(crate) wal_rate_limit: Box<WalRateLimit>,
    /// What is remembered of appends, so that one that is sent again is stored once.
    pub(crate) idempotency: Idempotency,
    /// All segments that grow on a node, as shares of its memory.
    pub(crate) flush: Flush,
    /// How channels are spread over nodes.
    pub(crate) wal_balancer: WalBalancer,
    /// The resource group (label `RESOURCE_GROUP` of nodes) that channels are placed in; empty is all nodes.
    pub(crate) primary_resource_group: String,
    /// What holds for resource groups.
    pub(crate) strict_resource_group_isolation: StrictResourceGroupIsolation,
}

impl Default for Streaming {
    fn default() -> Self {
        Self {
            wal_write_ahead_buffer: WriteAheadBuffer::default(),
            time_tick_interval: Duration::from_millis(200),
            max_message_size: ByteSize::mib(16),
            max_entry_size: ByteSize::mib(2),
            node_max_held: ByteSize::gib(1),
            producer_max_in_flight: ByteSize::mib(32),
            logging: Logging::default(),
            wal_read_ahead_buffer: ReadAheadBuffer::default(),
            wal_scanner: WalScanner::default(),
            txn: TxnSettings::default(),
            wal_append: WalAppend::default(),
            wal_close: WalClose::default(),
            wal_recovery: WalRecovery::default(),
            wal_rate_limit: Box::default(),
            idempotency: Idempotency::default(),
            flush: Flush::default(),
            wal_balancer: WalBalancer::default(),
            primary_resource_group: String::new(),
            strict_resource_group_isolation: StrictResourceGroupIsolation::default(),
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Logging {
    /// An append that takes longer is logged, for each producer no more often than once a second.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) append_slow_threshold: Duration,
}

impl Default for Logging {
    fn default() -> Self {
        Self { append_slow_threshold: Duration::from_secs(1) }
    }
}

/// What consumers that are behind read before they need it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ReadAheadBuffer {
    /// Of all of them in a process together. A consumer without a share reads what it needs, when it needs it.
    #[schemars(with = "units::SizeText")]
    pub(crate) capacity: ByteSize,
}

impl Default for ReadAheadBuffer {
    fn default() -> Self {
        Self { capacity: ByteSize::b(woodpecker::Settings::READ_AHEAD_BYTES as u64) }
    }
}

/// Consumers of a node, all together.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct WalScanner {
    /// The emergency brake for consumers that break on what they read, and start over: each stands still where it is, except
    /// those that asked not to be paused. Appends go on. `/node/consumers` on the admin port does the same until a restart.
    pub(crate) pause_consumption: bool,
}

/// Transactions.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct TxnSettings {
    /// How long a transaction lives without a message, if its begin does not say.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) default_keepalive_timeout: Duration,
}

impl Default for TxnSettings {
    fn default() -> Self {
        Self { default_keepalive_timeout: streaming_types::txn::DEFAULT_KEEPALIVE }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct WalAppend {
    /// How long an append may be without an outcome before its WAL is given up, so that another owner serves it.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) timeout: Duration,
}

impl Default for WalAppend {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(60) }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct WalClose {
    /// How long closing a WAL may take before what is left is given up.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) graceful_timeout: Duration,
}

impl Default for WalClose {
    fn default() -> Self {
        Self { graceful_timeout: Duration::from_secs(10) }
    }
}

/// How often a WAL writes down how far it is done.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct WalRecovery {
    /// The longest time between two checkpoints of a WAL that is written to.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) persist_interval: Duration,
    /// The most that is written between two checkpoints, which is about what the next owner replays.
    #[schemars(with = "units::SizeText")]
    pub(crate) persist_size: ByteSize,
}

impl Default for WalRecovery {
    fn default() -> Self {
        Self { persist_interval: Duration::from_secs(10), persist_size: ByteSize::mib(64) }
    }
}

/// What is remembered of appends, so that one that is sent again is stored once.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Idempotency {
    /// Keys and results of one vchannel; four times as much of one WAL.
    #[schemars(with = "units::SizeText")]
    pub(crate) max_bytes_per_window: ByteSize,
    /// How much of a log's end the next owner reads for them. So much is kept of a log, whoever else is done with it.
    #[schemars(with = "units::SizeText")]
    pub(crate) recovery_size: ByteSize,
}

impl Default for Idempotency {
    fn default() -> Self {
        Self { max_bytes_per_window: ByteSize::mib(16), recovery_size: ByteSize::mib(32) }
    }
}

/// What holds for resource groups.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct StrictResourceGroupIsolation {
    /// Whether channels without a node wait while the primary group has none; else they go to any node meanwhile.
    pub(crate) enabled: bool,
}

/// How channels are spread over nodes.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct WalBalancer {
    /// How often the balance is looked at when nothing happens.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) trigger_interval: Duration,
    /// A new cluster assigns nothing before this many nodes are there; 0 waits for none.
    pub(crate) expected_initial_streaming_node_num: u32,
    /// How long a node may take to open a channel, its recovery included, before another one is asked.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) assign_timeout: Duration,
    /// How long a node may take to give a channel up before it is assigned without that.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) remove_timeout: Duration,
    /// When a channel is moved.
    pub(crate) balance_policy: BalancePolicy,
}

impl Default for WalBalancer {
    fn default() -> Self {
        let nodes = streaming_coord::Settings::default().nodes;
        Self {
            trigger_interval: Duration::from_secs(60),
            expected_initial_streaming_node_num: 0,
            assign_timeout: nodes.assign_timeout,
            remove_timeout: nodes.remove_timeout,
            balance_policy: BalancePolicy::default(),
        }
    }
}

/// When a channel is moved for the sake of balance.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct BalancePolicy {
    /// Whether channels are moved at all when a coordinator begins to lead; if not, only those without a node are assigned.
    /// `streaming balance suspend` and `resume` change it until then.
    pub(crate) allow_rebalance: bool,
    /// A channel is not moved again for this long.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) min_rebalance_interval_threshold: Duration,
    /// A channel whose checkpoint is further behind its end than this is not moved: its next owner would have to replay that.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) allow_rebalance_recovery_lag_threshold: Duration,
}

impl Default for BalancePolicy {
    fn default() -> Self {
        let defaults = streaming_coord::Balance::default();
        Self {
            allow_rebalance: defaults.allow_rebalance,
            min_rebalance_interval_threshold: defaults.min_rebalance_interval,
            allow_rebalance_recovery_lag_threshold: defaults.max_recovery_lag,
        }
    }
}

/// Recent messages kept in memory for subscribers at the tail.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct WriteAheadBuffer {
    /// Of one WAL.
    #[schemars(with = "units::SizeText")]
    pub(crate) capacity: ByteSize,
    /// Of all WALs of a node together.
    #[schemars(with = "units::SizeText")]
    pub(crate) node_capacity: ByteSize,
    /// What is older leaves the buffer.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) keepalive: Duration,
}

impl Default for WriteAheadBuffer {
    fn default() -> Self {
        Self { capacity: ByteSize::mib(64), node_capacity: ByteSize::gib(1), keepalive: Duration::from_secs(30) }
    }
}
