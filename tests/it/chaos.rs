//! Several things at once go wrong with a cluster on log stores: what was acknowledged is there, in order, and it goes on.

use std::time::{Duration, Instant};

use anyhow::Context;

use crate::{
    load::{CHANNEL, Load, check_pauses},
    machine::Machine,
    proxy::{Proxy, Weather},
    quorum::{eventually, pause, segments, start, verify},
};

#[tokio::test(flavor = "multi_thread")]
async fn stores_that_restart_one_after_the_other_stop_no_append() -> anyhow::Result<()> {
    let (mut cluster, client) = start(1, &[]).await?;
    let (machine, load) = (Machine::watch(cluster.directory.path())?, Load::start(&client));
    pause(1).await;
    for number in 0..cluster.stores.len() {
        let before = segments(&cluster)?.len();
        cluster.stores[number].kill()?;
        eventually("the log goes on without it", || Ok(segments(&cluster)?.len() > before)).await?;
        let without = segments(&cluster)?.len();
        cluster.stores[number].restart()?;
        eventually("and with it again", || Ok(segments(&cluster)?.len() > without)).await?;
    }
    let acked = load.finish().await?;
    check_pauses(&acked, Duration::from_secs(2), machine.slowest());
    verify(&cluster, &client, &acked).await?;
    client.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_wakes_up_after_all_stores_restarted_has_lost_its_logs() -> anyhow::Result<()> {
    let (mut cluster, client) = start(2, &[]).await?;
    let load = Load::start(&client);
    pause(2).await;
    let owner = cluster.owner_of(CHANNEL)?;
    let stopped = cluster.nodes[owner].address("node").to_owned();
    cluster.nodes[owner].signal("STOP")?;
    eventually("another node has it", || {
        Ok(client.describe(CHANNEL).is_some_and(|channel| channel.owner.address != stopped))
    })
    .await?;
    pause(1).await;
    for store in &mut cluster.stores {
        store.kill()?;
    }
    for store in &mut cluster.stores {
        store.restart()?;
    }
    // What it still has on its way reaches stores whose processes never heard of the fence.
    cluster.nodes[owner].signal("CONT")?;
    pause(5).await;
    let acked = load.finish().await?;
    let last = acked.last().context("nothing was acknowledged")?;
    assert!(last.at.elapsed() < Duration::from_secs(3), "the log did not go on");
    verify(&cluster, &client, &acked).await?;
    client.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_dies_while_the_metadata_store_is_away_costs_a_pause_and_no_entry() -> anyhow::Result<()> {
    let (mut cluster, client) = start(1, &["common.session.ttl=10s"]).await?;
    let load = Load::start(&client);
    pause(2).await;
    cluster.etcd.stop();
    pause(1).await;
    cluster.stores[0].kill()?;
    pause(3).await;
    let back = Instant::now();
    cluster.etcd.cont();
    pause(4).await;
    let acked = load.finish().await?;
    let first = acked.iter().find(|acked| acked.at > back).context("the log did not go on")?;
    println!("went on {:?} after the metadata store was back", first.at - back);
    verify(&cluster, &client, &acked).await?;
    client.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_behind_a_cut_network_that_stays_registered_is_left_alone() -> anyhow::Result<()> {
    let (mut cluster, client) = start(1, &[]).await?;
    let store = &mut cluster.stores[0];
    let proxy = Proxy::to(store.role.address("logstore").to_owned()).await?;
    store.kill()?;
    store.restart_behind(&proxy.address)?;
    // The next owner finds three stores, the one behind the proxy among them.
    pause(4).await;
    cluster.nodes.remove(0).kill()?;
    cluster.start_node()?;
    let node = cluster.nodes[0].address("node").to_owned();
    eventually("the next node has the log", || {
        Ok(client.describe(CHANNEL).is_some_and(|channel| channel.owner.address == node))
    })
    .await?;
    let (machine, load) = (Machine::watch(cluster.directory.path())?, Load::start(&client));
    pause(3).await;
    let before = segments(&cluster)?.len();
    proxy.set(Weather::Cut);
    let cut = Instant::now();
    pause(12).await;
    let (during, cut) = (segments(&cluster)?.len() - before, cut.elapsed());
    proxy.set(Weather::Clear);
    let acked = load.finish().await?;
    println!("{during} segments more in {cut:?}");
    assert!((1..=2 + machine.rolls()).contains(&during), "{during} segments more: it rolls again and again");
    check_pauses(&acked, cut / 4, machine.slowest());
    verify(&cluster, &client, &acked).await?;
    client.close().await;
    Ok(())
}
