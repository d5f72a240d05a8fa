//! Networks that lose most of what is sent, or deliver it half a minute late, between the engine and what it writes to: nothing
//! that was acknowledged is lost, no append fails for good, and it goes on when the network is well again.

use std::time::{Duration, Instant};

use anyhow::Context;
use streaming_client::Client;

use crate::{
    cluster::{Backend, Cluster},
    load::{CHANNEL, Load, longest_pause},
    proxy::{Proxy, Weather},
    quorum::{eventually, verify},
};

/// What the network does, and for how long.
const STORMS: [(Weather, Duration); 2] = [
    (Weather::Lossy(0.6), Duration::from_secs(8)),
    (Weather::Slow(Duration::from_secs(20), Duration::from_secs(14)), Duration::from_secs(10)),
];
/// How long after a storm appends are acknowledged again, at most.
const RECOVERS: Duration = Duration::from_secs(10);

/// A node that was started anew has the log.
async fn moved(cluster: &Cluster, client: &Client) -> anyhow::Result<()> {
    let node = cluster.nodes[0].address("node").to_owned();
    eventually("the next node has the log", || {
        Ok(client.describe(CHANNEL).is_some_and(|channel| channel.owner.address == node))
    })
    .await
}

async fn weather(cluster: &Cluster, client: &Client, ways: &[Proxy]) -> anyhow::Result<()> {
    let load = Load::start(client);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut ends = Vec::new();
    for (weather, lasts) in STORMS {
        let began = Instant::now();
        ways.iter().for_each(|way| way.set(weather));
        tokio::time::sleep(lasts).await;
        ways.iter().for_each(|way| way.set(Weather::Clear));
        ends.push((weather, began, Instant::now()));
        tokio::time::sleep(RECOVERS).await;
    }
    // An append that fails for good is an error here.
    let acked = load.finish().await?;
    for (weather, began, ended) in ends {
        let first = acked.iter().find(|acked| acked.sent > ended).context("the log did not go on")?;
        let during = acked.iter().filter(|acked| (began..ended).contains(&acked.at)).count();
        println!("{weather:?}: {during} acked meanwhile, went on {:?} after it", first.at - ended);
        assert!(first.at - ended < RECOVERS, "went on {:?} after {weather:?}", first.at - ended);
    }
    assert!(longest_pause(&acked) > Duration::from_secs(1), "the network was never bad");
    verify(cluster, client, &acked).await
}

#[tokio::test(flavor = "multi_thread")]
async fn object_storage_behind_a_bad_network_costs_time_and_no_entry() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Backend::Object, 1).await?;
    let client = cluster.client().await?;
    let proxy = Proxy::to(cluster.objects_address()?).await?;
    cluster.objects_behind(&proxy.address);
    cluster.nodes.remove(0).kill()?;
    cluster.start_node()?;
    moved(&cluster, &client).await?;
    weather(&cluster, &client, &[proxy]).await?;
    client.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn log_stores_behind_a_bad_network_cost_time_and_no_entry() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Backend::Quorum, 1).await?;
    let client = cluster.client().await?;
    let mut ways = Vec::new();
    for store in &mut cluster.stores {
        let proxy = Proxy::to(store.role.address("logstore").to_owned()).await?;
        store.kill()?;
        store.restart_behind(&proxy.address)?;
        ways.push(proxy);
    }
    cluster.nodes.remove(0).kill()?;
    cluster.start_node()?;
    moved(&cluster, &client).await?;
    weather(&cluster, &client, &ways).await?;
    client.close().await;
    Ok(())
}
