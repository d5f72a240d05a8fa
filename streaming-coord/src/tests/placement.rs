use std::{collections::BTreeMap, time::Duration};

use woodpecker_base::tasks::Tasks;

use super::cluster::{Cluster, TestNode, Told, eventually, layout, settings};
use crate::{ChannelState, Coordinator};

const CHANNEL: &str = "by-dev-rootcoord-dml_0";

#[tokio::test]
async fn channels_spread_evenly_over_three_nodes() {
    let cluster = Cluster::new();
    let nodes = [cluster.node().await, cluster.node().await, cluster.node().await];
    let (coordinator, tasks) = cluster.bare(settings(16));
    eventually("all assigned", || layout(&coordinator.channels()).values().sum::<usize>() == 16).await;
    assert_eq!(layout(&coordinator.channels()).values().copied().collect::<Vec<_>>(), [6, 5, 5]);
    assert!(coordinator.channels().iter().all(|channel| channel.term == 2));
    assert_eq!(nodes.iter().map(|node| node.open().len()).sum::<usize>(), 16);
    assert!(nodes.iter().flat_map(|node| node.open().into_values()).all(|term| term == 2));
    tasks.stop();
}

#[tokio::test]
async fn a_new_cluster_waits_for_its_nodes() {
    let cluster = Cluster::new();
    let mut settings = settings(4);
    settings.balance.initial_nodes = 2;
    let (coordinator, tasks) = cluster.bare(settings);
    let _first = cluster.node().await;
    assert!(coordinator.until_active().await);
    cluster.clock.sleep(Duration::from_millis(200)).await;
    assert_eq!(layout(&coordinator.channels()), BTreeMap::new());
    let _second = cluster.node().await;
    eventually("two each", || layout(&coordinator.channels()).values().eq([&2, &2])).await;
    tasks.stop();
}

#[tokio::test]
async fn a_stopping_node_is_emptied_in_order() {
    let cluster = Cluster::new();
    let mut leaving = cluster.node().await;
    let (coordinator, tasks) = cluster.bare(settings(4));
    eventually("all on one", || layout(&coordinator.channels()).get(&leaving.id) == Some(&4)).await;
    let staying = cluster.node().await;
    leaving.announce_stopping().await;
    eventually("all moved", || layout(&coordinator.channels()).get(&staying.id) == Some(&4)).await;
    assert_eq!(leaving.told(CHANNEL), [Told::Assign(2), Told::Remove(2)]);
    assert_eq!(staying.told(CHANNEL), [Told::Assign(3)]);
    assert_eq!(leaving.open(), BTreeMap::new());
    tasks.stop();
}

#[tokio::test]
async fn a_dead_nodes_channels_move_without_a_remove() {
    let cluster = Cluster::new();
    let mut dying = cluster.node().await;
    let (coordinator, tasks) = cluster.bare(settings(4));
    eventually("all on one", || layout(&coordinator.channels()).get(&dying.id) == Some(&4)).await;
    let heir = cluster.node().await;
    dying.kill();
    eventually("all moved", || layout(&coordinator.channels()).get(&heir.id) == Some(&4)).await;
    assert_eq!(dying.told(CHANNEL), [Told::Assign(2)]);
    assert_eq!(heir.told(CHANNEL), [Told::Assign(3)]);
    tasks.stop();
}

#[tokio::test]
async fn failed_status_calls_move_nothing_while_the_session_lives() {
    let cluster = Cluster::new();
    let node = cluster.node().await;
    let (coordinator, tasks) = cluster.bare(settings(2));
    eventually("assigned", || layout(&coordinator.channels()).get(&node.id) == Some(&2)).await;
    let _other = cluster.node().await;
    node.script(|script| script.fail_status = true);
    cluster.clock.sleep(Duration::from_millis(600)).await;
    assert_eq!(layout(&coordinator.channels()), BTreeMap::from([(node.id, 2)]));
    assert_eq!(node.told(CHANNEL), [Told::Assign(2)]);
    tasks.stop();
}

/// Nodes are taken for lost after so long.
async fn two_channels_of_one_node(lost_after: Duration) -> (Cluster, TestNode, Coordinator, Tasks) {
    let cluster = Cluster::new();
    let node = cluster.node().await;
    let mut settings = settings(2);
    settings.nodes.lost_after = lost_after;
    let (coordinator, tasks) = cluster.bare(settings);
    eventually("assigned", || layout(&coordinator.channels()).get(&node.id) == Some(&2)).await;
    (cluster, node, coordinator, tasks)
}

#[tokio::test]
async fn a_node_that_fails_for_long_is_emptied() {
    let (cluster, node, coordinator, tasks) = two_channels_of_one_node(Duration::from_millis(100)).await;
    let other = cluster.node().await;
    node.script(|script| script.fail_status = true);
    eventually("moved", || layout(&coordinator.channels()).get(&other.id) == Some(&2)).await;
    // Its session lives, so it is asked to close first.
    assert_eq!(node.told(CHANNEL), [Told::Assign(2), Told::Remove(2)]);
    tasks.stop();
}

#[tokio::test]
async fn a_node_that_only_the_coordinator_cannot_reach_serves_until_its_channels_can_be_ended() {
    let (cluster, node, coordinator, tasks) = two_channels_of_one_node(Duration::from_millis(100)).await;
    let other = cluster.node().await;
    node.script(|script| (script.fail_status, script.fail_remove) = (true, true));
    eventually("asked more than once", || node.told(CHANNEL).len() > 3).await;
    assert_eq!(layout(&coordinator.channels()), BTreeMap::from([(node.id, 2)]));
    assert_eq!(other.told(CHANNEL), []);
    node.script(|script| script.fail_remove = false);
    eventually("moved", || layout(&coordinator.channels()).get(&other.id) == Some(&2)).await;
    assert_eq!(other.told(CHANNEL), [Told::Assign(3)]);
    tasks.stop();
}

#[tokio::test]
async fn every_try_takes_a_new_term() {
    let cluster = Cluster::new();
    let node = cluster.node().await;
    node.script(|script| {
        script.refuse.insert(CHANNEL.into(), 3);
    });
    let (coordinator, tasks) = cluster.bare(settings(1));
    eventually("assigned", || layout(&coordinator.channels()).len() == 1).await;
    let told = node.told(CHANNEL);
    let assigns: Vec<_> = told.iter().filter(|told| matches!(told, Told::Assign(_))).collect();
    assert_eq!(assigns, [&Told::Assign(2), &Told::Assign(3), &Told::Assign(4), &Told::Assign(5)]);
    // Each failed try is ended on its node before the next.
    assert_eq!(told.iter().filter(|told| matches!(told, Told::Remove(_))).count(), 3);
    tasks.stop();
}

#[tokio::test]
async fn a_node_that_cannot_open_a_channel_is_not_insisted_on() {
    let cluster = Cluster::new();
    let bad = cluster.node().await;
    let good = cluster.node().await;
    bad.script(|script| {
        script.refuse.insert(CHANNEL.into(), usize::MAX);
    });
    let (coordinator, tasks) = cluster.bare(settings(1));
    eventually("assigned", || layout(&coordinator.channels()).get(&good.id) == Some(&1)).await;
    eventually("proven", || coordinator.channels()[0].failures == 0).await;
    tasks.stop();
}

#[tokio::test]
async fn a_long_recovery_holds_up_nobody_and_is_waited_for() {
    let cluster = Cluster::new();
    let mut node = cluster.node().await;
    node.script(|script| {
        script.slow.insert(CHANNEL.into(), Duration::from_secs(2));
    });
    let (coordinator, tasks) = cluster.bare(settings(4));
    eventually("the others", || layout(&coordinator.channels()).get(&node.id) == Some(&3)).await;
    let slow = coordinator.channels()[0].clone();
    assert_eq!((slow.name.as_str(), slow.state, slow.busy), (CHANNEL, ChannelState::Assigning, true));
    // The others are moved in the meantime.
    let other = cluster.node().await;
    eventually("all", || layout(&coordinator.channels()).get(&node.id) == Some(&4)).await;
    assert_eq!(node.told(CHANNEL), [Told::Assign(2)]);
    node.announce_stopping().await;
    eventually("moved", || layout(&coordinator.channels()).get(&other.id) == Some(&4)).await;
    tasks.stop();
}

#[tokio::test]
async fn an_open_in_progress_ends_with_its_node() {
    let cluster = Cluster::new();
    let mut node = cluster.node().await;
    node.script(|script| {
        script.slow.insert(CHANNEL.into(), Duration::from_secs(60));
    });
    let (coordinator, tasks) = cluster.bare(settings(1));
    eventually("on its way", || node.told(CHANNEL) == [Told::Assign(2)]).await;
    let heir = cluster.node().await;
    node.kill();
    eventually("moved", || layout(&coordinator.channels()).get(&heir.id) == Some(&1)).await;
    assert_eq!(heir.told(CHANNEL), [Told::Assign(3)]);
    tasks.stop();
}

#[tokio::test]
async fn rebalancing_waits_for_rest_and_recovery() {
    let cluster = Cluster::new();
    let first = cluster.node().await;
    first.script(|script| script.lag_ms = 10_000);
    let mut settings = settings(4);
    settings.balance.min_rebalance_interval = Duration::ZERO;
    let (coordinator, tasks) = cluster.bare(settings);
    eventually("assigned", || layout(&coordinator.channels()).get(&first.id) == Some(&4)).await;
    let second = cluster.node().await;
    cluster.clock.sleep(Duration::from_millis(400)).await;
    assert_eq!(layout(&coordinator.channels()), BTreeMap::from([(first.id, 4)]));
    first.script(|script| script.lag_ms = 0);
    eventually("evened out", || layout(&coordinator.channels()) == BTreeMap::from([(first.id, 2), (second.id, 2)]))
        .await;
    tasks.stop();
}

#[tokio::test]
async fn channels_live_in_the_primary_group_and_elsewhere_only_while_it_is_empty() {
    let cluster = Cluster::new();
    let other = cluster.node_in(None).await;
    let mut settings = settings(4);
    settings.balance.primary_group = "blue".into();
    let (coordinator, tasks) = cluster.bare(settings);
    eventually("taken in meanwhile", || layout(&coordinator.channels()) == BTreeMap::from([(other.id, 4)])).await;
    let mut blue = cluster.node_in(Some("blue")).await;
    let _green = cluster.node_in(Some("green")).await;
    eventually("home", || layout(&coordinator.channels()) == BTreeMap::from([(blue.id, 4)])).await;
    assert_eq!(other.told(CHANNEL), [Told::Assign(2), Told::Remove(2)]);
    blue.kill();
    eventually("taken in again", || {
        let layout = layout(&coordinator.channels());
        !layout.contains_key(&blue.id) && layout.values().sum::<usize>() == 4
    })
    .await;
    tasks.stop();
}

#[tokio::test]
async fn with_strict_groups_channels_wait_for_their_group() {
    let cluster = Cluster::new();
    let _other = cluster.node().await;
    let mut settings = settings(2);
    settings.balance.primary_group = "blue".into();
    settings.balance.strict_groups = true;
    let (coordinator, tasks) = cluster.bare(settings);
    assert!(coordinator.until_active().await);
    cluster.clock.sleep(Duration::from_millis(300)).await;
    assert_eq!(layout(&coordinator.channels()), BTreeMap::new());
    let blue = cluster.node_in(Some("blue")).await;
    eventually("assigned", || layout(&coordinator.channels()) == BTreeMap::from([(blue.id, 2)])).await;
    tasks.stop();
}

#[tokio::test]
async fn the_primary_group_changes_while_the_coordinator_runs() {
    let cluster = Cluster::new();
    let (blue, green) = (cluster.node_in(Some("blue")).await, cluster.node_in(Some("green")).await);
    let mut settings = settings(4);
    settings.balance.primary_group = "blue".into();
    // Nothing but the change makes it look again.
    settings.balance.interval = Duration::from_secs(3600);
    let (coordinator, tasks, balance) = cluster.adjustable(settings);
    eventually("all on blue", || layout(&coordinator.channels()) == BTreeMap::from([(blue.id, 4)])).await;
    balance.send_modify(|balance| balance.primary_group = "green".into());
    eventually("all on green", || layout(&coordinator.channels()) == BTreeMap::from([(green.id, 4)])).await;
    tasks.stop();
}
