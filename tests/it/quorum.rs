//! Logs on log stores, all of them processes: stores are killed, stopped, restarted and emptied, and nothing that was
//! acknowledged is lost.

use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;
use streaming_client::Client;

use crate::{
    admin::get,
    cluster::{Backend, Cluster},
    load::{Acked, CHANNEL, LIMIT, Load, check, check_pauses, longest_pause, percentile, read_until},
    machine::Machine,
};

const SESSION_TTL: &str = "3s";
/// Within it a log goes on in another segment when a store is lost.
const ROLLED: Duration = Duration::from_secs(1);

pub(crate) async fn pause(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// Waits until it holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !holds()? {
        assert!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

pub(crate) fn segments(cluster: &Cluster) -> anyhow::Result<Vec<Value>> {
    Ok(cluster.log(&["describe", CHANNEL])?["segments"].as_array().cloned().unwrap_or_default())
}

/// What was acknowledged is read, in order, and every segment of the log is whole.
pub(crate) async fn verify(cluster: &Cluster, client: &Client, acked: &[Acked]) -> anyhow::Result<()> {
    let last = acked.last().context("nothing was acknowledged")?;
    check(&read_until(client, last.id).await?, acked);
    cluster.verify(CHANNEL)
}

pub(crate) async fn start(nodes: usize, more: &[&str]) -> anyhow::Result<(Cluster, Client)> {
    let cluster = Cluster::start_set(Backend::Quorum, nodes, SESSION_TTL, more).await?;
    let client = cluster.client().await?;
    client.wait_channel(CHANNEL, LIMIT).await?;
    Ok((cluster, client))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_store_delays_no_ack_and_ends_a_log_s_segment_once() -> anyhow::Result<()> {
    let (mut cluster, client) = start(1, &[]).await?;
    let (machine, load) = (Machine::watch(cluster.directory.path())?, Load::start(&client));
    pause(2).await;
    let before = segments(&cluster)?.len();
    cluster.stores[0].kill()?;
    eventually("the log goes on in another segment", || Ok(segments(&cluster)?.len() > before)).await?;
    pause(3).await;
    let without = segments(&cluster)?.len();
    assert!(without <= before + 1 + machine.rolls(), "rolled again and again: {before}, {without}");
    cluster.stores[0].restart()?;
    eventually("the log goes back to three stores", || Ok(segments(&cluster)?.len() > without)).await?;
    pause(3).await;
    let acked = load.finish().await?;
    let after = segments(&cluster)?.len();
    assert!(after <= without + 1 + machine.rolls(), "rolled again and again: {without}, {after}");
    check_pauses(&acked, ROLLED, machine.slowest());
    verify(&cluster, &client, &acked).await?;
    client.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_store_is_given_up_and_latencies_stay() -> anyhow::Result<()> {
    let (cluster, client) = start(1, &[]).await?;
    let (machine, load) = (Machine::watch(cluster.directory.path())?, Load::start(&client));
    pause(5).await;
    let stopped = Instant::now();
    cluster.stores[0].role.signal("STOP")?;
    pause(6).await;
    let acked = load.finish().await?;
    cluster.stores[0].role.signal("CONT")?;
    // The beginning warms up.
    let settled = acked[0].at + Duration::from_secs(1);
    let before = percentile(acked.iter().filter(|acked| acked.sent > settled && acked.at < stopped), 990);
    let after = percentile(acked.iter().filter(|acked| acked.sent > stopped + ROLLED), 990);
    println!("p99 {before:?} before, {after:?} from a second after");
    // Some room for whoever else uses the machine: with `--release`, alone, it is 0.94 to 1.01.
    let slowest = machine.slowest();
    let most = 2 * (before + slowest) + Duration::from_millis(20);
    assert!(after < most, "p99 {before:?} before, {after:?} after, where a step takes {slowest:?} at most");
    check_pauses(&acked, ROLLED, slowest);
    verify(&cluster, &client, &acked).await?;
    client.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_stores_die_at_once_and_come_back_the_log_goes_on() -> anyhow::Result<()> {
    let (mut cluster, client) = start(1, &[]).await?;
    let load = Load::start(&client);
    pause(2).await;
    for store in &mut cluster.stores {
        store.kill()?;
    }
    pause(1).await;
    for store in &mut cluster.stores {
        store.restart()?;
    }
    pause(5).await;
    let acked = load.finish().await?;
    let last = acked.last().context("nothing was acknowledged")?;
    assert!(last.at.elapsed() < Duration::from_secs(3), "the log did not go on");
    println!("longest pause {:?}", longest_pause(&acked));
    verify(&cluster, &client, &acked).await?;
    client.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_with_an_empty_disk_under_its_old_address_is_never_counted() -> anyhow::Result<()> {
    let (mut cluster, client) = start(1, &[]).await?;
    let acked = Load::run(&client, 2).await?;
    client.close().await;
    // The log's owner is dead, one of its stores as well, and another lost its disk: one whole replica is left.
    cluster.nodes.remove(0).kill()?;
    cluster.stores[0].kill()?;
    cluster.stores[0].lose_disk()?;
    cluster.stores[1].kill()?;
    cluster.stores[0].restart()?;
    cluster.start_node()?;
    let client = cluster.client().await?;
    let node = cluster.nodes[0].address("node").to_owned();
    let is_served = || client.describe(CHANNEL).is_some_and(|channel| channel.owner.address == node);
    let waiting = Instant::now();
    while waiting.elapsed() < Duration::from_secs(12) {
        assert!(!is_served(), "the log was taken over with one of its three stores");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cluster.stores[1].restart()?;
    eventually("the log is taken over", || Ok(is_served())).await?;
    let more = Load::run(&client, 1).await?;
    verify_two_runs(&cluster, &client, &acked, &more).await?;
    client.close().await;
    Ok(())
}

/// As [`verify`], of two loads one after the other.
async fn verify_two_runs(cluster: &Cluster, client: &Client, first: &[Acked], then: &[Acked]) -> anyhow::Result<()> {
    let last = then.last().context("the log did not go on")?;
    let found = read_until(client, last.id).await?;
    let boundary = then[0].id;
    let split = found.iter().position(|(id, _)| *id >= boundary).context("the second run is missing")?;
    check(&found[..split], first);
    check(&found[split..], then);
    cluster.verify(CHANNEL)
}

/// What a store holds of entries.
fn held(cluster: &Cluster) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for store in &cluster.stores {
        let status: Value = serde_json::from_str(&get(&store.role, "/logstore/status", "")?.1)?;
        bytes += status["bytesHeld"].as_u64().context("bytesHeld")?;
    }
    Ok(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_segments_are_sealed_and_read_without_any_store() -> anyhow::Result<()> {
    let settings = ["woodpecker.maintenance.sealAfter=0s", "woodpecker.maintenance.interval=200ms"];
    let (mut cluster, client) = start(2, &settings).await?;
    let acked = Load::run(&client, 3).await?;
    let before = held(&cluster)?;
    // The next owner closes the segment.
    let owner = cluster.owner_of(CHANNEL)?;
    cluster.nodes.remove(owner).kill()?;
    eventually("sealed, and freed where it was", || {
        let segments = segments(&cluster)?;
        let closed = segments.split_last().map_or(&[][..], |(_, closed)| closed);
        Ok(!closed.is_empty() && closed.iter().all(|segment| segment["freed"] == true))
    })
    .await?;
    eventually("the stores give the space back", || Ok(held(&cluster)? < before)).await?;
    verify(&cluster, &client, &acked).await?;
    for store in &mut cluster.stores {
        store.kill()?;
    }
    let verified = cluster.log_in_any_state(&["verify", CHANNEL])?;
    let segments = verified["segments"].as_array().context("no segments")?;
    let sealed: u64 = segments
        .iter()
        .filter(|segment| segment["from"] == "sealed" && segment["problem"].is_null())
        .filter_map(|segment| segment["entries"].as_u64())
        .sum();
    // Only the segment that is being written needs the stores.
    assert!(sealed >= acked.len() as u64 && verified["problems"] == 1, "{} were acknowledged: {verified}", acked.len());
    client.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_moves_between_stores_objects_and_disk_while_it_is_written() -> anyhow::Result<()> {
    let (cluster, client) = start(1, &["woodpecker.client.segmentRollingPolicy.maxInterval=1s"]).await?;
    let (machine, load) = (Machine::watch(cluster.directory.path())?, Load::start(&client));
    for backend in ["object", "local", "quorum"] {
        pause(1).await;
        cluster.log(&["alter", CHANNEL, "--backend", backend])?;
        eventually(backend, || Ok(segments(&cluster)?.last().is_some_and(|last| last["backend"] == backend))).await?;
    }
    pause(2).await;
    let acked = load.finish().await?;
    check_pauses(&acked, Duration::from_secs(2), machine.slowest());
    let used: Vec<String> =
        segments(&cluster)?.iter().filter_map(|segment| segment["backend"].as_str().map(str::to_owned)).collect();
    for backend in ["object", "local", "quorum"] {
        assert!(used.iter().any(|used| used == backend), "{used:?}");
    }
    verify(&cluster, &client, &acked).await?;
    client.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_stores_that_were_left_can_be_lost_for_good() -> anyhow::Result<()> {
    let (mut cluster, client) = start(1, &[]).await?;
    let load = Load::start(&client);
    pause(1).await;
    let before = segments(&cluster)?.len();
    cluster.stores[0].kill()?;
    eventually("the log goes on with two stores", || Ok(segments(&cluster)?.len() > before)).await?;
    pause(1).await;
    let acked = load.finish().await?;
    client.close().await;
    // Its owner dies together with one of the two, whose disk is lost; the third comes back.
    cluster.nodes.remove(0).kill()?;
    cluster.stores[1].kill()?;
    cluster.stores[1].lose_disk()?;
    cluster.stores[1].restart()?;
    cluster.stores[0].restart()?;
    cluster.start_node()?;
    let client = cluster.client().await?;
    client.wait_channel(CHANNEL, LIMIT).await?;
    let more = Load::run(&client, 1).await?;
    verify_two_runs(&cluster, &client, &acked, &more).await?;
    client.close().await;
    Ok(())
}
