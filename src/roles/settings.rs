//! What of the configuration concerns each role.

use crate::config::Config;

/// The coordinator's.
pub(super) fn coord(config: &Config) -> streaming_coord::Settings {
    let defaults = streaming_coord::Settings::default();
    streaming_coord::Settings {
        cluster: config.msg_channel.chan_name_prefix.cluster.clone(),
        metadata_root: config.meta_root(),
        channels: streaming_coord::Channels { names: config.channels(), ..defaults.channels },
        advertised_address: advertised(&config.root_coord.advertise),
        session_ttl: config.common.session.ttl,
        balance: streaming_coord::Balance {
            interval: config.streaming.wal_balancer.trigger_interval,
            initial_nodes: config.streaming.wal_balancer.expected_initial_streaming_node_num,
            ..defaults.balance
        },
        ..defaults
    }
}

/// A node's.
pub(super) fn node(config: &Config) -> anyhow::Result<streaming_node::Settings> {
    let buffer = &config.streaming.wal_write_ahead_buffer;
    Ok(streaming_node::Settings {
        cluster: config.msg_channel.chan_name_prefix.cluster.clone(),
        metadata_root: config.meta_root(),
        advertised_address: advertised(&config.streaming_node.advertise),
        session_ttl: config.common.session.ttl,
        max_message_bytes: usize::try_from(config.streaming.max_message_size.as_u64())?,
        in_flight_bytes: usize::try_from(config.woodpecker.client.segment_append.max_in_flight.as_u64())?,
        buffer_bytes: usize::try_from(buffer.capacity.as_u64())?,
        buffer_age: buffer.keepalive,
        heartbeat: config.streaming.time_tick_interval,
        ..streaming_node::Settings::default()
    })
}

fn advertised(address: &str) -> Option<String> {
    (!address.is_empty()).then(|| address.to_owned())
}
