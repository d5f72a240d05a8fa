//! WALs that end by themselves at their nodes, and how the coordinator learns of it.

use super::{
    cluster::{Cluster, Told, eventually, layout, settings},
    discovery::Raw,
};

const CHANNEL: &str = "by-dev-rootcoord-dml_0";
const OTHER: &str = "by-dev-rootcoord-dml_1";

#[tokio::test]
async fn a_wal_that_nobody_uses_is_assigned_again_when_it_has_ended_whoever_leads_then() {
    let cluster = Cluster::new();
    let node = cluster.node().await;
    let (first, first_tasks) = cluster.bare(settings(2));
    eventually("assigned", || layout(&first.channels()).get(&node.id) == Some(&2)).await;
    node.end(CHANNEL);
    let again = [Told::Assign(2), Told::Remove(2), Told::Assign(3)];
    eventually("assigned again", || node.told(CHANNEL) == again && layout(&first.channels()).len() == 1).await;

    let (second, tasks) = cluster.bare(settings(2));
    first_tasks.stop();
    node.end(CHANNEL);
    eventually("assigned again", || node.open().get(CHANNEL) == Some(&4)).await;
    eventually("taken over", || layout(&second.channels()).get(&node.id) == Some(&2)).await;
    assert_eq!(node.told(OTHER), [Told::Assign(2)]);
    tasks.stop();
}

#[tokio::test]
async fn a_node_that_says_nothing_of_its_wals_keeps_them_until_a_client_sees_one_fail() {
    let cluster = Cluster::new();
    let node = cluster.node().await;
    node.script(|script| script.untold = true);
    let coordinator = cluster.coordinator(settings(1)).await;
    let mut client = Raw::open(&coordinator.address).await;
    client.until(|layout| layout.get(&node.id).is_some_and(|channels| channels[..] == [(CHANNEL.into(), 2)])).await;
    let before = node.asked();
    eventually("asked a few times", || node.asked() > before + 3).await;
    assert_eq!(node.told(CHANNEL), [Told::Assign(2)]);
    client.report(2).await;
    client.until(|layout| layout.get(&node.id).is_some_and(|channels| channels[..] == [(CHANNEL.into(), 3)])).await;
    coordinator.stop().await.unwrap();
}
