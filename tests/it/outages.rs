//! Disks, stores, the object store and the metadata store go away under a log on log stores, one by one and together.

use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;
use test_peers::s3::{Fault, Op};
use woodpecker_base::disk::{Disk, RealDisk};

use crate::{
    admin::get,
    cluster::Cluster,
    load::{Acked, CHANNEL, Load, check_pauses, longest_pause},
    machine::Machine,
    quorum::{eventually, pause, segments, start, verify},
    stores::LogStore,
};

fn is_alive(acked: &[Acked]) -> anyhow::Result<()> {
    let last = acked.last().context("nothing was acknowledged")?;
    assert!(last.at.elapsed() < Duration::from_secs(5), "the log did not go on");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_that_falter_roll_nothing_and_two_that_are_cut_off_cost_a_pause() -> anyhow::Result<()> {
    let (cluster, client) = start(1, &[]).await?;
    let (machine, load) = (Machine::watch(cluster.directory.path())?, Load::start(&client));
    pause(1).await;
    let before = segments(&cluster)?.len();
    for _ in 0..10 {
        cluster.stores[0].role.signal("STOP")?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        cluster.stores[0].role.signal("CONT")?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let during = segments(&cluster)?.len() - before;
    // None where nobody else wants the machine.
    assert!(during <= 2 + machine.rolls(), "{during} segments more");
    for store in &cluster.stores[..2] {
        store.role.signal("STOP")?;
    }
    pause(3).await;
    let back = Instant::now();
    for store in &cluster.stores[..2] {
        store.role.signal("CONT")?;
    }
    pause(5).await;
    let acked = load.finish().await?;
    println!("{during} segments more, longest pause {:?}", longest_pause(&acked));
    assert!(longest_pause(&acked) > Duration::from_secs(2), "one store of three acked by itself");
    assert!(acked.iter().any(|acked| acked.at > back), "the log did not go on");
    is_alive(&acked)?;
    verify(&cluster, &client, &acked).await?;
    client.close().await;
    Ok(())
}

/// So that a store on a disk as full as this one is at its hard mark, and recovery has room left.
fn full(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let marks = RealDisk.space(cluster.directory.path())?.free / 2 * 3;
    Ok(["soft", "hard"].iter().map(|mark| format!("woodpecker.logstore.disk.{mark}Free={marks}B")).collect())
}

/// Whether every closed segment is in its final form.
fn sealed(cluster: &Cluster) -> anyhow::Result<bool> {
    let mut closed = segments(cluster)?;
    closed.retain(|segment| segment["entries"].is_number());
    Ok(!closed.is_empty() && closed.iter().all(|segment| segment["sealed_bytes"].is_number()))
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disks_stop_a_log_when_they_are_too_many_and_hurry_sealing_before() -> anyhow::Result<()> {
    let settings = ["sealAfter=1h", "interval=200ms", "minFree=0"].map(|set| format!("woodpecker.maintenance.{set}"));
    let (mut cluster, client) = start(1, &settings.each_ref().map(String::as_str)).await?;
    let load = Load::start(&client);
    pause(1).await;
    cluster.stores[0].kill()?;
    cluster.stores[0].restart()?;
    eventually("the log goes on in another segment", || Ok(segments(&cluster)?.len() > 1)).await?;
    assert!(!sealed(&cluster)?, "sealed before its time");
    let full = full(&cluster)?;
    cluster.stores[0].kill()?;
    cluster.stores[0].restart_with(&full)?;
    eventually("what waited is sealed", || sealed(&cluster)).await?;
    // Nobody is left to take anything.
    for store in &mut cluster.stores[1..] {
        store.kill()?;
        store.restart_with(&full)?;
    }
    pause(2).await;
    let stopped = Instant::now();
    pause(1).await;
    let back = Instant::now();
    for store in &mut cluster.stores {
        store.kill()?;
        store.restart()?;
    }
    pause(6).await;
    let acked = load.finish().await?;
    assert!(!acked.iter().any(|acked| (stopped..back).contains(&acked.at)), "full stores took entries");
    is_alive(&acked)?;
    verify(&cluster, &client, &acked).await?;
    client.close().await;
    Ok(())
}

/// Bytes of entries that a store has.
fn held(store: &LogStore) -> anyhow::Result<u64> {
    let status: Value = serde_json::from_str(&get(&store.role, "/logstore/status", "")?.1)?;
    status["bytesHeld"].as_u64().context("bytesHeld")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_amid_appends_moves_the_log_and_keeps_what_it_has() -> anyhow::Result<()> {
    let (mut cluster, client) = start(1, &[]).await?;
    cluster.stores[0].kill()?;
    cluster.stores[0].restart_limitable()?;
    let (machine, load) = (Machine::watch(cluster.directory.path())?, Load::start(&client));
    let before = held(&cluster.stores[0])?;
    eventually("the store has its part", || Ok(held(&cluster.stores[0])? > before + (32 << 10))).await?;
    let rolled = segments(&cluster)?.len();
    cluster.stores[0].role.limit_writes(16 << 10)?;
    eventually("it says that its disk failed", || Ok(get(&cluster.stores[0].role, "/readyz", "")?.0 == 503)).await?;
    eventually("the log goes on in another segment", || Ok(segments(&cluster)?.len() > rolled)).await?;
    pause(2).await;
    let acked = load.finish().await?;
    check_pauses(&acked, Duration::from_secs(2), machine.slowest());
    verify(&cluster, &client, &acked).await?;
    assert!(held(&cluster.stores[0])? > before, "what it had is gone");
    let store = &mut cluster.stores[0];
    store.kill()?;
    store.restart()?;
    assert_eq!(get(&store.role, "/readyz", "")?.0, 200);
    client.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_dies_while_object_storage_is_away_stops_nothing_and_sealing_goes_on_later() -> anyhow::Result<()>
{
    let settings = ["woodpecker.maintenance.sealAfter=0s", "woodpecker.maintenance.interval=200ms"];
    let (mut cluster, client) = start(1, &settings).await?;
    let (machine, load) = (Machine::watch(cluster.directory.path())?, Load::start(&client));
    pause(1).await;
    let faults = cluster.objects()?.clone();
    Op::ALL.iter().for_each(|op| faults.chance(*op, 1.0, Fault::Refuse(503)));
    let away = Instant::now();
    cluster.stores[0].kill()?;
    pause(2).await;
    cluster.stores[0].restart()?;
    pause(2).await;
    let back = Instant::now();
    faults.clear();
    eventually("closed segments are sealed", || sealed(&cluster)).await?;
    let acked = load.finish().await?;
    let meanwhile = acked.iter().filter(|acked| (away..back).contains(&acked.at)).count();
    println!("{meanwhile} appends without object storage");
    check_pauses(&acked, Duration::from_secs(2), machine.slowest());
    verify(&cluster, &client, &acked).await?;
    client.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metadata_store_a_store_and_the_owner_go_at_once_and_all_come_back() -> anyhow::Result<()> {
    let (mut cluster, client) = start(2, &["common.session.ttl=5s"]).await?;
    let load = Load::start(&client);
    pause(1).await;
    let owner = cluster.owner_of(CHANNEL)?;
    let dead = cluster.nodes[owner].address("node").to_owned();
    // The next owner has to be named, and to fence, while nothing answers.
    cluster.etcd.stop();
    cluster.stores[0].kill()?;
    cluster.nodes[owner].kill()?;
    pause(2).await;
    cluster.etcd.cont();
    eventually("another node has it", || {
        Ok(client.describe(CHANNEL).is_some_and(|channel| channel.owner.address != dead))
    })
    .await?;
    // And again, one after the other.
    cluster.stores[0].restart()?;
    cluster.etcd.restart().await;
    cluster.stores[1].kill()?;
    cluster.stores[1].restart()?;
    pause(5).await;
    let acked = load.finish().await?;
    println!("longest pause {:?}", longest_pause(&acked));
    is_alive(&acked)?;
    verify(&cluster, &client, &acked).await?;
    client.close().await;
    Ok(())
}
