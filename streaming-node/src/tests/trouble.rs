//! WALs that end by themselves or cannot be opened, and who is told why.

use std::time::Duration;

use metrics::set_default_local_recorder;
use metrics_exporter_prometheus::PrometheusBuilder;
use streaming_proto::streaming::StreamingNodeManagerRemoveRequest;
use streaming_types::{PChannel, StreamingCode};
use woodpecker_base::tasks::Tasks;

use super::{
    hanging::{NO_SPACE, Writing},
    harness::{PCHANNEL, TestNode, VCHANNEL, World, code_of, insert, rw},
};
use crate::Settings;

/// Removes a channel, and returns what the answer says of an end that came by itself.
async fn removed(node: &TestNode, pchannel: &PChannel) -> Option<String> {
    let request = StreamingNodeManagerRemoveRequest { pchannel: Some(pchannel.to_proto()) };
    let answer = node.manager().remove(node.request(request)).await.unwrap();
    let why = answer.metadata().get_bin("wal-ended-bin")?.to_bytes().unwrap();
    Some(String::from_utf8(why.to_vec()).unwrap())
}

// On one thread, so that the node's tasks have this test's recorder as well.
#[tokio::test]
async fn a_full_disk_is_told_to_who_removes_and_who_assigns_and_the_wal_opens_when_there_is_room() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let page = recorder.handle();
    let _here = set_default_local_recorder(&recorder);
    let world = World::new();
    let node = world.serving().await;
    let mut produce = node.producer(&rw(1)).await;
    world.writing.send_replace(Writing::Full);
    let refused = produce.append(insert(VCHANNEL, "no room")).await;
    assert_eq!(code_of(refused), Some(StreamingCode::ChannelFenced));
    let is_told = |why: &str| why.contains("WAL_DISK_FULL") && why.contains(NO_SPACE) && why.contains("make room");
    for _ in 0..2 {
        let why = removed(&node, &rw(1)).await.expect("a reason, also for who asks again");
        assert!(is_told(&why), "{why}");
    }
    let refused = node.assign(&rw(2)).await.unwrap_err();
    assert!(is_told(refused.cause()), "{refused}");
    let series = format!("milvus_wal_failure_total{{channel_name=\"{PCHANNEL}\",code=\"WAL_DISK_FULL\"}} 2");
    assert!(page.render().contains(&series), "{}", page.render());

    world.writing.send_replace(Writing::Works);
    node.assign(&rw(3)).await.unwrap();
    node.producer(&rw(3)).await.append(insert(VCHANNEL, "goes on")).await.unwrap();
    assert_eq!(removed(&node, &rw(3)).await, None, "it was told to");
}

#[tokio::test(start_paused = true)]
async fn an_open_whose_first_tick_has_no_outcome_fails_in_bounded_time() {
    let (world, tasks) = (World::new(), Tasks::new());
    world.writing.send_replace(Writing::Hangs);
    let opener = world.opener(Settings::default(), &tasks, &tasks);
    let opened = world.clock.timeout(2 * Settings::default().append_timeout, opener.open(&rw(1), 1)).await;
    assert_eq!(opened.expect("an end").unwrap_err().code(), "WAL_STUCK");
    world.writing.send_replace(Writing::Works);
    opener.open(&rw(2), 1).await.unwrap();
    tasks.stop();
}

#[tokio::test(start_paused = true)]
async fn an_open_that_storage_keeps_from_succeeding_says_why_within_a_minute() {
    let (world, tasks) = (World::new(), Tasks::new());
    world.writing.send_replace(Writing::Away);
    let opener = world.opener(Settings::default(), &tasks, &tasks);
    let opened = world.clock.timeout(Duration::from_secs(60), opener.open(&rw(1), 1)).await;
    let error = opened.expect("an end").unwrap_err();
    assert!(error.code() == "STORE_UNAVAILABLE" && error.to_string().contains("the bucket is not there"), "{error}");
    tasks.stop();
}
