use metrics::set_default_local_recorder;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use woodpecker_base::health::State;

use super::cluster::{Cluster, eventually, layout, settings};

const INFO: &str = "milvus_streamingcoord_pchannel_info";
const UNSERVED: &str = "milvus_streamingcoord_pchannel_unserved";
const LEADER: &str = "milvus_streamingcoord_leader";

/// The sum over all series of a gauge whose labels hold `label`; `None` if there are none.
fn sum(page: &PrometheusHandle, gauge: &str, label: &str) -> Option<f64> {
    let page = page.render();
    let values = page.lines().filter(|line| line.split(['{', ' ']).next() == Some(gauge) && line.contains(label));
    values.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).reduce(|all, value| all + value)
}

// On one thread, so that the coordinator's tasks have this test's recorder as well.
#[tokio::test]
async fn the_gauges_say_who_leads_and_which_channels_nobody_serves() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let page = recorder.handle();
    let _here = set_default_local_recorder(&recorder);
    let cluster = Cluster::new();
    let mut node = cluster.node().await;
    let (coordinator, tasks) = cluster.bare(settings(2));
    eventually("two channels are served", || layout(&coordinator.channels()).get(&node.id) == Some(&2)).await;
    eventually("it leads", || sum(&page, LEADER, "") == Some(1.0)).await;
    assert_eq!(sum(&page, UNSERVED, "channel_name"), Some(0.0));

    node.kill();
    eventually("nobody serves them", || sum(&page, UNSERVED, "channel_name") == Some(2.0)).await;
    assert_eq!(sum(&page, INFO, "_ASSIGNED"), Some(4.0), "the stored state does not say so");

    tasks.stop();
    eventually("it does not lead any more", || sum(&page, LEADER, "") == Some(0.0)).await;
    assert_eq!((sum(&page, INFO, ""), sum(&page, UNSERVED, "")), (Some(0.0), Some(0.0)), "{}", page.render());
}

#[tokio::test]
async fn a_new_leader_shows_the_channels_that_are_settled() {
    let cluster = Cluster::new();
    let node = cluster.node().await;
    let (first, first_tasks) = cluster.bare(settings(2));
    eventually("assigned", || layout(&first.channels()).get(&node.id) == Some(&2)).await;
    first_tasks.stop();
    eventually("stopped", || first.state() == State::Stopping).await;

    let recorder = PrometheusBuilder::new().build_recorder();
    let page = recorder.handle();
    let _here = set_default_local_recorder(&recorder);
    let (second, tasks) = cluster.bare(settings(2));
    eventually("taken over", || layout(&second.channels()).get(&node.id) == Some(&2)).await;
    assert_eq!(sum(&page, INFO, "_ASSIGNED"), Some(4.0), "{}", page.render());
    tasks.stop();
}
