use std::{sync::Arc, time::Duration};

use woodpecker_base::health::State;

use super::cluster::{Cluster, eventually, settings};

const CHANNEL: &str = "by-dev-rootcoord-dml_0";

#[tokio::test]
async fn a_leader_is_ready_when_every_channel_is_served_and_says_what_is_not() {
    let cluster = Cluster::new();
    let coordinator = cluster.coordinator(settings(2)).await;
    eventually("two channels wait for a node", || {
        let health = coordinator.health.now();
        health.state == State::Healthy && health.missing.len() == 2 && health.missing[0].contains(CHANNEL)
    })
    .await;
    let mut node = cluster.node().await;
    eventually("all are served", || coordinator.health.now().is_ready()).await;

    let standby = cluster.coordinator(settings(2)).await;
    eventually("a standby is ready for its part", || standby.health.now().is_ready()).await;
    assert_eq!(standby.health.now().state, State::StandBy);
    standby.stop().await.unwrap();

    let heir = cluster.node().await;
    heir.script(|script| script.refuse = [(CHANNEL.to_owned(), usize::MAX)].into());
    node.announce_stopping().await;
    eventually("the reason is given", || {
        let missing = coordinator.health.now().missing;
        missing.len() == 1 && missing[0].contains(CHANNEL) && missing[0].contains("the log cannot be opened")
    })
    .await;
    let health = coordinator.health.clone();
    coordinator.stop().await.unwrap();
    assert_eq!(health.now().state, State::Stopping);
}

/// The timer of a retry that is due, but has no node to go to, lies in the past: it must not wake the balancer again
/// and again.
#[tokio::test]
async fn a_due_retry_without_a_node_does_not_keep_the_balancer_busy() {
    let cluster = Cluster::new();
    let mut node = cluster.node().await;
    node.script(|script| script.refuse = [(CHANNEL.to_owned(), usize::MAX)].into());
    let (coordinator, tasks) = cluster.bare(settings(1));
    eventually("it fails", || coordinator.channels().first().is_some_and(|channel| channel.failures >= 2)).await;
    node.announce_stopping().await;
    // Longer than the longest pause between attempts: the last one has failed, and the next one is due.
    let (mut told, mut since) = (0, cluster.clock.now());
    while cluster.clock.now() - since < 3 * settings(1).nodes.retry_max {
        let now = node.told(CHANNEL).len();
        if now != told {
            (told, since) = (now, cluster.clock.now());
        }
        cluster.clock.sleep(Duration::from_millis(5)).await;
    }
    let (mut last, mut rounds, began) = (coordinator.channels(), 0, cluster.clock.now());
    for _ in 0..100 {
        cluster.clock.sleep(Duration::from_millis(5)).await;
        let now = coordinator.channels();
        rounds += u32::from(!Arc::ptr_eq(&last, &now));
        last = now;
    }
    // One each time the balance is looked at anyway.
    let took = cluster.clock.now() - began;
    let looks = took.as_millis() / settings(1).balance.interval.as_millis();
    assert!(u128::from(rounds) <= 2 * looks + 10, "{rounds} rounds in {took:?}");
    tasks.stop();
}
