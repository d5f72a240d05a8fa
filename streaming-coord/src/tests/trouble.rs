//! Channels that cannot be served for a while: how often it is tried, and what operators see.

use std::time::Duration;

use metrics::set_default_local_recorder;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use streaming_proto::rootcoord::{GetPChannelInfoRequest, root_coord_client::RootCoordClient};

use super::{
    cluster::{Cluster, eventually, settings},
    discovery::Raw,
};
use crate::{CHANNEL_TROUBLE, Settings};

const CHANNEL: &str = "by-dev-rootcoord-dml_0";
const FULL: &str = "WAL_DISK_FULL: No space left on device (os error 28); make room on that disk";

fn patient() -> Settings {
    let mut settings = settings(1);
    settings.nodes.retry_max = Duration::from_secs(1);
    settings
}

fn failing_since(page: &PrometheusHandle) -> Option<f64> {
    let series = format!("milvus_streamingcoord_pchannel_failing_since{{channel_name=\"{CHANNEL}\"}} ");
    page.render().lines().find_map(|line| line.strip_prefix(&series)?.parse().ok())
}

async fn told(address: &str) -> Option<String> {
    let mut client = RootCoordClient::connect(format!("http://{address}")).await.unwrap();
    let request = GetPChannelInfoRequest { pchannel: CHANNEL.to_owned(), ..GetPChannelInfoRequest::default() };
    let answer = client.get_p_channel_info(request).await.unwrap().into_inner().status.unwrap();
    assert_eq!((answer.code, answer.reason.as_str()), (0, ""), "a success to peers");
    answer.extra_info.get(CHANNEL_TROUBLE).cloned()
}

// On one thread, so that the coordinator's tasks have this test's recorder as well.
#[tokio::test]
async fn a_wal_that_ends_soon_after_each_opening_is_opened_ever_more_rarely_and_operators_see_why() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let page = recorder.handle();
    let _here = set_default_local_recorder(&recorder);
    let cluster = Cluster::new();
    let began = cluster.clock.wall().as_secs();
    let node = cluster.node().await;
    node.script(|script| script.ended = Some(FULL.to_owned()));
    let coordinator = cluster.coordinator(patient()).await;
    let mut client = Raw::open(&coordinator.address).await;
    let since = cluster.clock.now();
    for term in 2..10 {
        client
            .until(|layout| layout.get(&node.id).is_some_and(|channels| channels[..] == [(CHANNEL.into(), term)]))
            .await;
        client.report(term).await;
    }
    // Half of what they may be: 10, 20, 40, …, 640 ms.
    let least = Duration::from_millis(635);
    assert!(cluster.clock.now() - since >= least, "8 terms in {:?}", cluster.clock.now() - since);
    eventually("it says what is missing, since when, and why", || {
        let missing = coordinator.health.now().missing;
        missing.len() == 1 && [CHANNEL, "8 failed attempts since 20", FULL].iter().all(|part| missing[0].contains(part))
    })
    .await;
    let trouble = told(&coordinator.address).await;
    assert!(trouble.as_ref().is_some_and(|trouble| trouble.contains(FULL)), "{trouble:?}");
    assert!(failing_since(&page).is_some_and(|since| since >= began as f64), "{}", page.render());

    node.script(|script| script.ended = None);
    eventually("it is served, and that it failed is forgotten after a while", || failing_since(&page) == Some(0.0))
        .await;
    assert_eq!(coordinator.health.now().missing, [""; 0]);
    assert_eq!(told(&coordinator.address).await, None);
    coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn a_wal_that_ends_after_it_was_served_for_a_while_is_the_first_that_failed() {
    let cluster = Cluster::new();
    let node = cluster.node().await;
    let coordinator = cluster.coordinator(settings(1)).await;
    let mut client = Raw::open(&coordinator.address).await;
    for term in 2..6 {
        client
            .until(|layout| layout.get(&node.id).is_some_and(|channels| channels[..] == [(CHANNEL.into(), term)]))
            .await;
        let limit = cluster.clock.now() + Duration::from_secs(20);
        while let Some(trouble) = told(&coordinator.address).await {
            assert!(trouble.starts_with("1 failed attempts"), "{trouble}");
            assert!(cluster.clock.now() < limit, "it is never forgotten: {trouble}");
            cluster.clock.sleep(Duration::from_millis(5)).await;
        }
        client.report(term).await;
    }
    coordinator.stop().await.unwrap();
}
