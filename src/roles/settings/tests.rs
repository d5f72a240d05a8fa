use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{coord, node};
use crate::config::{Sources, load};

/// Leaves of a node's settings, by their dotted names.
type Leaves = BTreeMap<String, Value>;

fn leaves(value: &Value, name: &str, into: &mut Leaves) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                let name = if name.is_empty() { field.clone() } else { format!("{name}.{field}") };
                leaves(value, &name, into);
            }
        }
        leaf => drop(into.insert(name.to_owned(), leaf.clone())),
    }
}

fn with(assignments: &[&str]) -> anyhow::Result<Leaves> {
    let assignments = assignments.iter().map(|&text| text.to_owned()).collect();
    let settings = node(&load(&Sources { assignments, ..Sources::default() })?)?;
    let mut found = Leaves::new();
    leaves(&serde_json::to_value(settings)?, "", &mut found);
    Ok(found)
}

/// What is set, and what it makes of which setting of a node.
fn keys() -> Vec<(String, String, Value)> {
    let plain = [
        ("msgChannel.chanNamePrefix.cluster=other", "cluster", json!("other")),
        ("etcd.rootPath=other", "metadata_root", json!("other/meta")),
        ("streamingNode.advertise=node:1", "advertised_address", json!("node:1")),
        ("streaming.logging.appendSlowThreshold=7s", "append_slow_threshold", json!("7s")),
        ("common.startTimeout=7s", "start_timeout", json!("7s")),
        ("common.session.ttl=3s", "session_ttl", json!("3s")),
        ("streaming.maxMessageSize=1MiB", "max_message_bytes", json!(1 << 20)),
        ("streaming.maxEntrySize=1MiB", "entry_bytes", json!(1 << 20)),
        ("streaming.nodeMaxHeld=3GiB", "node_held_bytes", json!(3_u64 << 30)),
        ("streaming.txn.defaultKeepaliveTimeout=7s", "txn_keepalive", json!("7s")),
        ("streaming.producerMaxInFlight=17MiB", "producer_in_flight_bytes", json!(17 << 20)),
        ("woodpecker.client.segmentAppend.maxInFlight=99MiB", "in_flight_bytes", json!(99 << 20)),
        ("streaming.walWriteAheadBuffer.capacity=1MiB", "buffer_bytes", json!(1 << 20)),
        ("streaming.walWriteAheadBuffer.nodeCapacity=2MiB", "node_buffer_bytes", json!(2 << 20)),
        ("streaming.walWriteAheadBuffer.keepalive=5s", "buffer_age", json!("5s")),
        ("streaming.timeTickInterval=50ms", "heartbeat", json!("50ms")),
        ("streaming.walClose.gracefulTimeout=3s", "close_timeout", json!("3s")),
        ("streaming.walAppend.timeout=7s", "append_timeout", json!("7s")),
        ("streaming.idempotency.maxBytesPerWindow=1MiB", "idempotency_bytes", json!(1 << 20)),
        ("streaming.idempotency.recoverySize=3MiB", "recovery.window_bytes", json!(3 << 20)),
        ("streaming.walRecovery.persistInterval=1s", "recovery.persist_interval", json!("1s")),
        ("streaming.walRecovery.persistSize=5MiB", "recovery.persist_bytes", json!(5 << 20)),
        ("streaming.walRateLimit.defaultBurst=1MiB", "flow.burst", json!(1 << 20)),
        ("streaming.walRateLimit.trickle=1KiB", "flow.trickle", json!(1 << 10)),
        ("dataCoord.segment.maxSize=512MiB", "segments.max_bytes", json!(512 << 20)),
        ("dataCoord.segment.sealProportion=0.5", "segments.seal_percent", json!(50)),
        ("dataCoord.segment.sealProportionJitter=0.2", "segments.jitter_percent", json!(20)),
        ("dataCoord.segment.maxLife=1h", "segments.lifetime", json!("1h")),
        ("dataCoord.segment.maxIdleTime=1m", "segments.idle", json!("1m")),
        ("dataCoord.segment.minSizeFromIdleToSealed=1MiB", "segments.idle_bytes", json!(1 << 20)),
        ("dataCoord.segment.storageVersion=3", "segments.storage_version", json!(3)),
        ("streaming.flush.memoryThreshold=0.7", "segments.memory_percent", json!(70)),
        ("streaming.flush.growingSegmentBytesHwmThreshold=0.3", "segments.growing_high_percent", json!(30)),
        ("streaming.flush.growingSegmentBytesLwmThreshold=0.05", "segments.growing_low_percent", json!(5)),
    ]
    .map(|(set, leaf, value)| (set.to_owned(), leaf.to_owned(), value));
    plain.into_iter().chain(rate_limits()).collect()
}

/// The same of the sources of pressure, which have the same keys each.
fn rate_limits() -> Vec<(String, String, Value)> {
    let mut keys = Vec::new();
    let sources = [
        ("nodeMemory", "memory", ["0.5", "0.92", "0.99"].map(str::to_owned), [json!(50), json!(92), json!(99)]),
        (
            "recoveryStorage",
            "tail",
            ["1MiB", "3GiB", "17GiB"].map(str::to_owned),
            [json!(1 << 20), json!(3_u64 << 30), json!(17_u64 << 30)],
        ),
        (
            "consumerLag",
            "lag",
            ["1m", "61m", "3h"].map(str::to_owned),
            [json!(60_000), json!(3_660_000), json!(10_800_000)],
        ),
        (
            "appendRate",
            "rate",
            ["1MiB", "33MiB", "34MiB"].map(str::to_owned),
            [json!(1 << 20), json!(33 << 20), json!(34 << 20)],
        ),
    ];
    for (source, marks, texts, values) in sources {
        let key = |rest: &str| format!("streaming.walRateLimit.{source}.{rest}");
        let leaf = |rest: &str| format!("flow.{marks}.{rest}");
        let thresholds = [("recover", "eases"), ("slowdown", "high"), ("reject", "critical")];
        for (((threshold, mark), text), value) in thresholds.into_iter().zip(texts).zip(values) {
            keys.push((key(&format!("{threshold}Threshold={text}")), leaf(mark), value));
        }
        let enabled = marks == "rate";
        keys.push((key(&format!("enabled={enabled}")), leaf("enabled"), json!(enabled)));
        keys.extend(
            [
                ("slowdown.startupDelayInterval=7s", "slowdown.startup_delay", json!("7s")),
                ("slowdown.hwm=99MiB", "slowdown.hwm", json!(99 << 20)),
                ("slowdown.lwm=3MiB", "slowdown.lwm", json!(3 << 20)),
                ("slowdown.decreaseInterval=7s", "slowdown.decrease_interval", json!("7s")),
                ("slowdown.decreaseRatio=0.5", "slowdown.decrease_ratio", json!(50)),
                ("slowdown.rejectDelayInterval=7s", "slowdown.reject_delay", json!("7s")),
                ("recovery.hwm=99MiB", "recovery.hwm", json!(99 << 20)),
                ("recovery.lwm=3MiB", "recovery.lwm", json!(3 << 20)),
                ("recovery.increaseInterval=7s", "recovery.increase_interval", json!("7s")),
                ("recovery.incremental=3MiB", "recovery.increment", json!(3 << 20)),
                ("recovery.normalDelayInterval=7s", "recovery.normal_delay", json!("7s")),
            ]
            .map(|(set, name, value)| {
                (key(&format!("adaptiveRateLimit.{set}")), leaf(&format!("adaptive.{name}")), value)
            }),
        );
    }
    keys
}

#[test]
fn every_setting_of_a_node_has_a_key_that_reaches_it_and_nothing_else() {
    let defaults = with(&[]).unwrap();
    let mut reached: Vec<String> = Vec::new();
    for (set, leaf, value) in keys() {
        let mut expected = defaults.clone();
        let before = expected.insert(leaf.clone(), value.clone());
        assert!(before.is_some_and(|before| before != value), "{set} shows nothing of {leaf}");
        assert_eq!(with(&[&set]).unwrap(), expected, "{set}");
        reached.push(leaf);
    }
    reached.sort();
    // What a node announces is the protocol's version, which is not an operator's choice.
    let all: Vec<_> = defaults.into_keys().filter(|leaf| leaf != "version").collect();
    assert_eq!(reached, all);
}

#[test]
fn labels_of_a_node_and_its_group_reach_both_sides() {
    let leaves = with(&["streamingNode.labels.RESOURCE_GROUP=blue"]).unwrap();
    assert_eq!(leaves["labels.RESOURCE_GROUP"], json!("blue"));
    let assignments = ["streaming.primaryResourceGroup=blue", "streaming.strictResourceGroupIsolation.enabled=true"];
    let assignments = assignments.map(str::to_owned).to_vec();
    let balance = coord(&load(&Sources { assignments, ..Sources::default() }).unwrap()).unwrap().balance;
    assert_eq!((balance.primary_group.as_str(), balance.strict_groups), ("blue", true));
}

#[test]
fn what_is_set_of_the_balance_reaches_the_coordinator() {
    let coordinator = |assignments: &[&str]| {
        let assignments = assignments.iter().map(|&text| text.to_owned()).collect();
        let mut found = Leaves::new();
        let settings = coord(&load(&Sources { assignments, ..Sources::default() }).unwrap()).unwrap();
        leaves(&serde_json::to_value(settings).unwrap(), "", &mut found);
        found
    };
    for (key, value, leaf) in [
        ("triggerInterval", "7s", "balance.interval"),
        ("assignTimeout", "7s", "nodes.assign_timeout"),
        ("removeTimeout", "7s", "nodes.remove_timeout"),
        ("balancePolicy.minRebalanceIntervalThreshold", "7s", "balance.min_rebalance_interval"),
        ("balancePolicy.allowRebalanceRecoveryLagThreshold", "7s", "balance.max_recovery_lag"),
        ("balancePolicy.allowRebalance", "false", "balance.allow_rebalance"),
    ] {
        let mut expected = coordinator(&[]);
        expected.insert(leaf.to_owned(), if value == "7s" { json!("7s") } else { json!(false) });
        assert_eq!(coordinator(&[&format!("streaming.walBalancer.{key}={value}")]), expected, "{key}");
    }
}

#[test]
fn defaults_are_the_roles_own() {
    let config = load(&Sources::default()).unwrap();
    let (own, coordinators) = (streaming_coord::Settings::default(), coord(&config).unwrap());
    assert_eq!((coordinators.nodes, coordinators.balance), (own.nodes, own.balance));
    assert_eq!(node(&config).unwrap(), streaming_node::Settings::default());
}

#[test]
fn impossible_values_name_the_key_that_was_set() {
    for (set, key) in [
        ("streaming.maxEntrySize=1B", "streaming.maxEntrySize"),
        ("streaming.walClose.gracefulTimeout=0s", "streaming.walClose.gracefulTimeout"),
        ("streaming.walRateLimit.nodeMemory.recoverThreshold=0.99", "streaming.walRateLimit.nodeMemory"),
        (
            "streaming.walRateLimit.appendRate.adaptiveRateLimit.slowdown.decreaseRatio=8.0",
            "streaming.walRateLimit.appendRate",
        ),
        ("dataCoord.segment.sealProportion=12.0", "dataCoord.segment.sealProportion"),
        ("streaming.flush.growingSegmentBytesLwmThreshold=0.9", "streaming.flush.growingSegmentBytesLwmThreshold"),
    ] {
        let error = with(&[set]).unwrap_err().to_string();
        assert!(error.starts_with(key), "{set}: {error}");
    }
}

#[test]
fn impossible_values_of_the_coordinator_name_the_key_that_was_set() {
    for (set, key) in [
        (&["msgChannel.chanNamePrefix.rootCoordDml=a/b"][..], "rootCoord.dmlChannelNum and msgChannel.chanNamePrefix"),
        (
            &["common.preCreatedTopic.enabled=true", "common.preCreatedTopic.names=[\"a/b\"]"],
            "common.preCreatedTopic.names",
        ),
    ] {
        let assignments = set.iter().map(|&text| text.to_owned()).collect();
        let config = load(&Sources { assignments, ..Sources::default() }).unwrap();
        let error = coord(&config).map(drop).unwrap_err().to_string();
        assert!(error.starts_with(key), "{set:?}: {error}");
    }
}
