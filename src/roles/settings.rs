//! What of the configuration concerns each role.

use anyhow::anyhow;
use bytesize::ByteSize;
use streaming_node::SettingsError;

use crate::config::{Config, segments};

/// The coordinator's.
pub(super) fn coord(config: &Config) -> anyhow::Result<streaming_coord::Settings> {
    let defaults = streaming_coord::Settings::default();
    let balancer = &config.streaming.wal_balancer;
    let settings = streaming_coord::Settings {
        cluster: config.msg_channel.chan_name_prefix.cluster.clone(),
        metadata_root: config.meta_root(),
        channels: streaming_coord::Channels { names: config.channels(), ..defaults.channels },
        advertised_address: advertised(&config.root_coord.advertise),
        session_ttl: config.common.session.ttl,
        nodes: streaming_coord::Nodes {
            assign_timeout: balancer.assign_timeout,
            remove_timeout: balancer.remove_timeout,
            ..defaults.nodes
        },
        balance: balance(config),
        ..defaults
    };
    let valid = settings.validate();
    valid.map_err(|error| anyhow!("{}: {}", coord_key(error.key, config), error.what))?;
    Ok(settings)
}

/// How the coordinator spreads channels.
pub(super) fn balance(config: &Config) -> streaming_coord::Balance {
    let balancer = &config.streaming.wal_balancer;
    streaming_coord::Balance {
        interval: balancer.trigger_interval,
        allow_rebalance: balancer.balance_policy.allow_rebalance,
        min_rebalance_interval: balancer.balance_policy.min_rebalance_interval_threshold,
        max_recovery_lag: balancer.balance_policy.allow_rebalance_recovery_lag_threshold,
        initial_nodes: balancer.expected_initial_streaming_node_num,
        primary_group: config.streaming.primary_resource_group.clone(),
        strict_groups: config.streaming.strict_resource_group_isolation.enabled,
    }
}

/// Where an operator sets what a coordinator calls `name`.
fn coord_key(name: &'static str, config: &Config) -> &'static str {
    match name {
        "cluster" => "msgChannel.chanNamePrefix.cluster",
        "metadata_root" => "etcd.rootPath",
        "channels.names" if config.common.pre_created_topic.enabled => "common.preCreatedTopic.names",
        "channels.names" => "rootCoord.dmlChannelNum and msgChannel.chanNamePrefix",
        "advertised_address" => "rootCoord.advertise",
        "session_ttl" => "common.session.ttl",
        other => other,
    }
}

/// A node's.
pub(super) fn node(config: &Config) -> anyhow::Result<streaming_node::Settings> {
    let streaming = &config.streaming;
    let buffer = &streaming.wal_write_ahead_buffer;
    let bytes = |size: ByteSize| usize::try_from(size.as_u64());
    let settings = streaming_node::Settings {
        cluster: config.msg_channel.chan_name_prefix.cluster.clone(),
        metadata_root: config.meta_root(),
        advertised_address: advertised(&config.streaming_node.advertise),
        labels: config.streaming_node.labels.clone(),
        version: streaming_node::Settings::default().version,
        session_ttl: config.common.session.ttl,
        max_message_bytes: bytes(streaming.max_message_size)?,
        entry_bytes: bytes(streaming.max_entry_size)?,
        in_flight_bytes: bytes(config.woodpecker.client.segment_append.max_in_flight)?,
        producer_in_flight_bytes: bytes(streaming.producer_max_in_flight)?,
        buffer_bytes: bytes(buffer.capacity)?,
        node_buffer_bytes: bytes(buffer.node_capacity)?,
        node_held_bytes: bytes(streaming.node_max_held)?,
        buffer_age: buffer.keepalive,
        heartbeat: streaming.time_tick_interval,
        close_timeout: streaming.wal_close.graceful_timeout,
        append_timeout: streaming.wal_append.timeout,
        append_slow_threshold: streaming.logging.append_slow_threshold,
        start_timeout: config.common.start_timeout,
        idempotency_bytes: bytes(streaming.idempotency.max_bytes_per_window)?,
        txn_keepalive: streaming.txn.default_keepalive_timeout,
        recovery: streaming_node::Recovery {
            persist_interval: streaming.wal_recovery.persist_interval,
            persist_bytes: streaming.wal_recovery.persist_size.as_u64(),
            window_bytes: streaming.idempotency.recovery_size.as_u64(),
        },
        flow: streaming.wal_rate_limit.flow(),
        segments: segments(&config.data_coord.segment, &streaming.flush),
    };
    settings.validate().map_err(|SettingsError { key, problem }| anyhow!("{}: {problem}", node_key(key)))?;
    Ok(settings)
}

/// Where an operator sets what a node calls `name`.
fn node_key(name: &'static str) -> &'static str {
    match name {
        "cluster" => "msgChannel.chanNamePrefix.cluster",
        "metadata_root" => "etcd.rootPath",
        "advertised_address" => "streamingNode.advertise",
        "session_ttl" => "common.session.ttl",
        "max_message_bytes" => "streaming.maxMessageSize",
        "entry_bytes" => "streaming.maxEntrySize",
        "in_flight_bytes" => "woodpecker.client.segmentAppend.maxInFlight",
        "producer_in_flight_bytes" => "streaming.producerMaxInFlight",
        "node_held_bytes" => "streaming.nodeMaxHeld",
        "txn_keepalive" => "streaming.txn.defaultKeepaliveTimeout",
        "heartbeat" => "streaming.timeTickInterval",
        "close_timeout" => "streaming.walClose.gracefulTimeout",
        "append_timeout" => "streaming.walAppend.timeout",
        "recovery.persist_interval" => "streaming.walRecovery.persistInterval",
        "flow.burst" => "streaming.walRateLimit.defaultBurst",
        "flow.memory" => "streaming.walRateLimit.nodeMemory",
        "flow.tail" => "streaming.walRateLimit.recoveryStorage",
        "flow.lag" => "streaming.walRateLimit.consumerLag",
        "flow.rate" => "streaming.walRateLimit.appendRate",
        "segments.max_bytes" => "dataCoord.segment.maxSize",
        "segments.seal_percent" => "dataCoord.segment.sealProportion",
        "segments.jitter_percent" => "dataCoord.segment.sealProportionJitter",
        "segments.lifetime" => "dataCoord.segment.maxLife",
        "segments.memory_percent" => "streaming.flush.memoryThreshold",
        "segments.growing_high_percent" => "streaming.flush.growingSegmentBytesHwmThreshold",
        "segments.growing_low_percent" => "streaming.flush.growingSegmentBytesLwmThreshold",
        other => other,
    }
}

fn advertised(address: &str) -> Option<String> {
    (!address.is_empty()).then(|| address.to_owned())
}

#[cfg(test)]
mod tests;
