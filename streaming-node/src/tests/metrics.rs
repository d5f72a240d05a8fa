//! What a node tells of its WALs.

use std::{sync::atomic::Ordering, time::Duration};

use metrics::set_default_local_recorder;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use streaming_types::{DeliverPolicy, StreamingCode, TxnContext};

use super::{
    harness::{PCHANNEL, VCHANNEL, World, code_of, eventually, insert, rw},
    parts::commit,
};
use crate::Settings;

/// The value of a channel's series.
fn shown(page: &PrometheusHandle, name: &str, more: &str) -> Option<f64> {
    let series = format!("{name}{{channel_name=\"{PCHANNEL}\"{more}}} ");
    page.render().lines().find_map(|line| line.strip_prefix(&series)?.parse().ok())
}

// On one thread, so that the node's tasks have this test's recorder as well.
#[tokio::test]
async fn a_wal_is_shown_while_it_is_open_and_its_gauges_are_empty_once_it_is_gone() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let page = recorder.handle();
    let _here = set_default_local_recorder(&recorder);
    let value = |name: &str, more: &str| shown(&page, name, more);
    let world = World::new();
    let settings = Settings { heartbeat: Duration::from_millis(10), ..Settings::default() };
    let node = world.node_with(1, settings).await;
    node.assign(&rw(3)).await.unwrap();
    assert_eq!(value("milvus_wal_info", ",wal_name=\"woodpecker\""), Some(3.0), "its value is the term");

    let mut consumer = node.consumer(&rw(3), DeliverPolicy::All, &[]).await;
    let sent = node.producer(&rw(3)).await.append(insert(VCHANNEL, "payload")).await.unwrap();
    consumer.payloads(1).await;
    #[expect(clippy::cast_precision_loss, reason = "seconds")]
    let at = (sent.timetick >> 18) as f64 / 1000.0;
    for tick in ["milvus_wal_last_allocated_time_tick", "milvus_wal_last_confirmed_time_tick"] {
        eventually(&world, tick, async || value(tick, "").filter(|shown| *shown >= at)).await;
    }
    for (series, more) in [
        ("milvus_wal_append_message_total", ",status=\"ok\""),
        ("milvus_wal_append_message_bytes_count", ",status=\"ok\""),
        ("milvus_wal_append_message_duration_seconds_count", ",status=\"ok\""),
        ("milvus_streamingnode_consumer_total", ""),
        ("milvus_wal_write_ahead_buffer_entry_total", ""),
        ("milvus_wal_write_ahead_buffer_capacity_bytes", ""),
    ] {
        let counted = async || value(series, more).filter(|counted| *counted >= 1.0);
        eventually(&world, series, counted).await;
    }
    assert!(value("milvus_wal_scanner_lag_seconds", "").is_some());

    // Nobody reads on, and time goes on.
    let behind = async || value("milvus_wal_scanner_lag_seconds", "").filter(|lag| *lag > 0.0);
    let mut produce = node.producer(&rw(3)).await;
    let filler = "x".repeat(1 << 20);
    for _ in 0..40 {
        produce.append(insert(VCHANNEL, &filler)).await.unwrap();
    }
    eventually(&world, "a consumer that does not read is behind", behind).await;

    drop((consumer, produce));
    node.remove(&rw(3)).await.unwrap();
    for (gauge, more) in [
        ("milvus_wal_info", ",wal_name=\"woodpecker\""),
        ("milvus_wal_last_confirmed_time_tick", ""),
        ("milvus_wal_write_ahead_buffer_size_bytes", ""),
        ("milvus_wal_scanner_lag_seconds", ""),
    ] {
        assert_eq!(value(gauge, more), Some(0.0), "{gauge}");
    }
}

#[tokio::test]
async fn limit_of_writers_is_not_shown_where_their_wal_is_gone() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let page = recorder.handle();
    let _here = set_default_local_recorder(&recorder);
    let limit = || shown(&page, "milvus_wal_rate_limit_bytes", "");
    let world = World::new();
    let node = world.serving().await;
    world.memory_percent.store(99, Ordering::SeqCst);
    eventually(&world, "a limit", async || limit().filter(|limit| *limit == 0.0)).await;
    node.remove(&rw(1)).await.unwrap();
    assert_eq!(limit(), Some(-1.0));
}

#[tokio::test]
async fn appends_are_counted_as_refused_whoever_refuses_them_unless_the_next_owner_is_to_take_them() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let page = recorder.handle();
    let _here = set_default_local_recorder(&recorder);
    let refused = || shown(&page, "milvus_wal_append_message_total", ",status=\"error\"");
    let world = World::new();
    let node = world.node_with(1, Settings { close_timeout: Duration::from_secs(1), ..Settings::default() }).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    let mut unknown = insert(VCHANNEL, "of a later release");
    unknown.properties.set("_t", "4711");
    let end = commit(VCHANNEL, TxnContext::new(7, 1000));
    for (message, code) in [(unknown, StreamingCode::Unrecoverable), (end.into(), StreamingCode::TransactionExpired)] {
        assert_eq!(code_of(produce.append(message).await), Some(code));
    }
    assert_eq!(refused(), Some(2.0));

    world.hung.send_replace(true);
    produce.send(insert(VCHANNEL, "in flight")).await;
    node.remove(&rw(1)).await.unwrap();
    assert_eq!(code_of(produce.answer().await.1), Some(StreamingCode::ChannelFenced));
    assert_eq!(refused(), Some(2.0));
}
