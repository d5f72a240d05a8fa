//! What holds when processes die and stores go away.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::Context;
use test_peers::s3::Op;

use crate::{
    cluster::{Backend, Cluster},
    load::{CHANNEL, LIMIT, Load, check, longest_pause, read_until},
    process::{printed, sha256, streaming},
    quorum::verify,
};

const OUTAGE: Duration = Duration::from_secs(60);

async fn killing_the_owner_loses_nothing(backend: Backend) -> anyhow::Result<()> {
    killing_the_owner_of(Cluster::start(backend, 2).await?).await
}

async fn killing_the_owner_of(mut cluster: Cluster) -> anyhow::Result<()> {
    let client = cluster.client().await?;
    client.wait_channel(CHANNEL, LIMIT).await?;
    let load = Load::start(&client);
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.kill_owner(&client, CHANNEL).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let acked = load.finish().await?;
    let last = acked.last().context("nothing was acknowledged")?;
    assert!(last.at.elapsed() < Duration::from_secs(5), "appends went on at the other node");
    verify(&cluster, &client, &acked).await?;
    client.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_owner_loses_nothing_on_a_local_disk() -> anyhow::Result<()> {
    killing_the_owner_loses_nothing(Backend::Local).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_owner_loses_nothing_on_object_storage() -> anyhow::Result<()> {
    killing_the_owner_loses_nothing(Backend::Object).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_owner_loses_nothing_on_slow_object_storage() -> anyhow::Result<()> {
    let cluster = Cluster::start(Backend::Object, 2).await?;
    let faults = cluster.objects()?;
    Op::ALL.iter().for_each(|op| faults.delay(*op, Duration::from_millis(100)));
    killing_the_owner_of(cluster).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_owner_loses_nothing_on_log_stores() -> anyhow::Result<()> {
    killing_the_owner_loses_nothing(Backend::Quorum).await
}

/// The two outages run side by side: a minute of waiting is enough.
#[tokio::test(flavor = "multi_thread")]
async fn a_minute_without_coordinator_or_etcd_stops_no_append_and_assignment_resumes_after() -> anyhow::Result<()> {
    let outages = (tokio::spawn(a_minute_without_a_coordinator()), tokio::spawn(a_minute_without_etcd()));
    let (coordinator, etcd) = tokio::try_join!(outages.0, outages.1)?;
    coordinator.and(etcd)
}

async fn a_minute_without_a_coordinator() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Backend::Local, 2).await?;
    let client = cluster.client().await?;
    client.wait_channel(CHANNEL, LIMIT).await?;
    let load = Load::start(&client);
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.coord.kill()?;
    tokio::time::sleep(OUTAGE).await;
    let acked = load.finish().await?;
    assert!(longest_pause(&acked) < OUTAGE / 4, "paused for {:?}", longest_pause(&acked));

    cluster.restart_coord()?;
    let owner = cluster.owner_of(CHANNEL)?;
    cluster.nodes[owner].kill()?;
    let again = Load::run(&client, 1).await?;
    let last = again.last().context("the other node did not take over")?.id;
    let found = read_until(&client, last).await?;
    let first_run = found.len() - found.iter().rev().take_while(|(id, _)| *id > acked[acked.len() - 1].id).count();
    check(&found[..first_run], &acked);
    check(&found[first_run..], &again);
    cluster.verify(CHANNEL)?;
    client.close().await;
    Ok(())
}

async fn a_minute_without_etcd() -> anyhow::Result<()> {
    let mut cluster = Cluster::start_with(Backend::Local, 2, "10s").await?;
    let client = cluster.client().await?;
    client.wait_channel(CHANNEL, LIMIT).await?;
    let load = Load::start(&client);
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.etcd.stop();
    tokio::time::sleep(OUTAGE).await;
    let acked = load.finish().await?;
    cluster.etcd.cont();
    assert!(longest_pause(&acked) < OUTAGE / 4, "paused for {:?}", longest_pause(&acked));

    // The leases may have run out: whoever lost one registers anew, then everything is served again.
    let again = Load::run(&client, 1).await?;
    let served = cluster.json(&["channels"])?;
    assert_eq!(served.as_array().map(Vec::len), Some(16));
    let owner = cluster.owner_of(CHANNEL)?;
    cluster.nodes[owner].kill()?;
    let last = Load::run(&client, 1).await?;
    let found = read_until(&client, last[last.len() - 1].id).await?;
    for run in [acked, again, last] {
        let (from, to) = (run[0].id, run[run.len() - 1].id);
        let of_run: Vec<_> = found.iter().filter(|(id, _)| (from..=to).contains(id)).copied().collect();
        check(&of_run, &run);
    }
    cluster.verify(CHANNEL)?;
    client.close().await;
    Ok(())
}

async fn a_file_goes_through_a_cluster_of_processes(backend: Backend) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(backend, 2).await?;
    let input = cluster.directory.path().join("input");
    let mut random = fastrand::Rng::with_seed(3);
    let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(5 << 20).collect();
    std::fs::write(&input, bytes)?;
    let report = cluster.json(&["produce", "--file", &input.display().to_string(), CHANNEL])?;
    let output = cluster.directory.path().join("output");
    let endpoint = cluster.etcd.endpoint();
    printed([
        "consume",
        "--etcd",
        &endpoint,
        "--count",
        &report["messages"].to_string(),
        "--output",
        &output.display().to_string(),
        CHANNEL,
    ])?;
    assert_eq!(sha256(&input)?, sha256(&output)?);

    let nodes = cluster.json(&["nodes"])?;
    let spread: Vec<u64> =
        nodes.as_array().into_iter().flatten().filter_map(|node| node["channels"].as_u64()).collect();
    assert_eq!(spread, [8, 8], "{nodes}");
    // A graceful stop hands everything over and ends well.
    let mut leaving = cluster.nodes.remove(0);
    leaving.signal("TERM")?;
    assert!(leaving.wait(Duration::from_secs(30))?.success(), "{}", leaving.log());
    let deadline = Instant::now() + LIMIT;
    while cluster.json(&["channels"])?.as_array().map(Vec::len) != Some(16) {
        assert!(Instant::now() < deadline, "not all channels are served again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cluster.start_node()?;
    cluster.coord.signal("TERM")?;
    assert!(cluster.coord.wait(Duration::from_secs(30))?.success(), "{}", cluster.coord.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_until_nothing_comes_waits_for_a_channel_that_nobody_serves_and_says_so() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Backend::Local, 1).await?;
    let (lines, etcd) = (cluster.directory.path().join("lines"), cluster.etcd.endpoint());
    std::fs::write(&lines, "one\ntwo\n")?;
    printed(["produce", "--file", &lines.display().to_string(), "--etcd", &etcd, CHANNEL])?;
    cluster.nodes[0].kill()?;
    let mut reader = streaming();
    reader.args(["consume", "--until-idle", "200ms", "--timeout", "120s", "--etcd", &etcd, CHANNEL]);
    let mut reader = reader.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (mut stderr, mut said) = (BufReader::new(reader.stderr.take().context("stderr")?), String::new());
    stderr.read_line(&mut said)?;
    assert!(said.starts_with("waiting for"), "{said}");
    cluster.start_node()?;
    let read = reader.wait_with_output()?;
    assert!(read.status.success(), "{read:?}");
    assert_eq!(String::from_utf8(read.stdout)?, "one\ntwo\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_goes_through_a_cluster_on_a_local_disk() -> anyhow::Result<()> {
    a_file_goes_through_a_cluster_of_processes(Backend::Local).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_goes_through_a_cluster_on_object_storage() -> anyhow::Result<()> {
    a_file_goes_through_a_cluster_of_processes(Backend::Object).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_goes_through_a_cluster_on_log_stores() -> anyhow::Result<()> {
    a_file_goes_through_a_cluster_of_processes(Backend::Quorum).await
}
