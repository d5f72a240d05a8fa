//! How an operator moves channels: a node is emptied before its machine is worked on, and has its share again afterwards.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;

use crate::{
    cluster::{Backend, Cluster},
    load::LIMIT,
    process::{printed, run},
};

/// Between two looks at the nodes.
const PAUSE: Duration = Duration::from_millis(100);
/// The coordinator looks at the balance every second here.
const SEVERAL_LOOKS: Duration = Duration::from_secs(3);

/// Whether the nodes have so many channels each, by their ids.
fn have(cluster: &Cluster, wanted: &[(i64, u64)]) -> anyhow::Result<bool> {
    let nodes = cluster.json(&["nodes"])?;
    let channels = |id: i64| nodes.as_array()?.iter().find(|node| node["id"] == id)?["channels"].as_u64();
    Ok(wanted.iter().all(|(id, count)| channels(*id) == Some(*count)))
}

fn settled(cluster: &Cluster, wanted: &[(i64, u64)]) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !have(cluster, wanted)? {
        ensure!(begun.elapsed() < LIMIT, "wanted {wanted:?}: {}", cluster.json(&["nodes"])?);
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_emptied_and_filled_again_by_verbs() -> anyhow::Result<()> {
    let often = [
        "rootCoord.dmlChannelNum=4",
        "streaming.walBalancer.triggerInterval=1s",
        "streaming.walBalancer.balancePolicy.minRebalanceIntervalThreshold=0s",
        "streaming.walBalancer.balancePolicy.allowRebalanceRecoveryLagThreshold=1h",
    ];
    let cluster = Cluster::start_set(Backend::Local, 2, "3s", &often).await?;
    let nodes = cluster.json(&["nodes"])?;
    let ids: Vec<_> = nodes.as_array().into_iter().flatten().filter_map(|node| node["id"].as_i64()).collect();
    let [first, second] = ids[..] else { anyhow::bail!("two nodes: {nodes}") };
    settled(&cluster, &[(first, 2), (second, 2)])?;
    let policy = |allow: bool, frozen: &[i64]| json!({"allowRebalance": allow, "frozenNodes": frozen});
    let balance = |words: &[&str]| cluster.json(&[&["balance"][..], words].concat());
    assert_eq!(balance(&["show"])?, policy(true, &[]));

    assert_eq!(balance(&["freeze", &first.to_string()])?, policy(true, &[first]));
    settled(&cluster, &[(first, 0), (second, 4)])?;
    // Suspended, it stays empty when it may have channels again.
    assert_eq!(balance(&["suspend"])?, policy(false, &[first]));
    assert_eq!(balance(&["unfreeze", &first.to_string()])?, policy(false, &[]));
    assert_eq!(balance(&["show"])?, policy(false, &[]));
    let begun = Instant::now();
    while begun.elapsed() < SEVERAL_LOOKS {
        ensure!(have(&cluster, &[(first, 0), (second, 4)])?, "moved: {}", cluster.json(&["nodes"])?);
        std::thread::sleep(PAUSE);
    }
    assert_eq!(balance(&["resume"])?, policy(true, &[]));
    settled(&cluster, &[(first, 2), (second, 2)])?;

    let refused = run(["balance", "freeze", "77", "--etcd", &cluster.etcd.endpoint()])?;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("no node 77"), "{said}");
    let table = String::from_utf8(printed(["balance", "show", "--etcd", &cluster.etcd.endpoint()])?)?;
    assert!(table.contains("rebalance") && table.contains("on"), "{table}");
    Ok(())
}
