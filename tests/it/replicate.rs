//! Two clusters of real processes, one following the other: killed in the middle, changing roles, left alone.

use std::time::Duration;

use anyhow::{Context, ensure};
use streaming_proto::common::{CrossClusterTopology, ReplicateConfiguration};

use crate::{admin::get, cluster::Backend, process::Role};

mod comparison;
mod site;

use comparison::{Load, check, message, read};
use site::{LIMIT, Site, connect, follow, promote, set, start};

async fn follower_has_the_same_whoever_is_killed(backends: [Backend; 2]) -> anyhow::Result<()> {
    let (directory, mut west, mut east) = start(backends, false).await?;
    follow(&west, &east, directory.path()).await?;
    let loads = [Load::start(&west, 0, "a"), Load::start(&west, 1, "b")];
    // What is there before anybody ships it.
    tokio::time::sleep(Duration::from_millis(300)).await;
    west.start_replicator(&east)?;
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        west.replicators.pop().context("started")?.kill()?;
        west.start_replicator(&east)?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        east.restart()?;
    }
    for (index, load) in loads.into_iter().enumerate() {
        let acked = load.finish().await?;
        ensure!(acked.len() > 20, "only {} messages", acked.len());
        check(&west, &east, index, &acked, "the end").await?;
    }
    let shown = east.topology(&["show"], None)?;
    ensure!(shown.contains("secondary of west-rootcoord-dml_0 in west"), "{shown}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_ships_from_a_cluster_of_another_name_is_not_ready_and_says_why() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let west = Site::start("west", directory.path(), Backend::Local, None).await?;
    let wrong = set(&[
        "msgChannel.chanNamePrefix.cluster=east".to_owned(),
        format!("replicate.source={}", west.port.address()),
    ]);
    let shipping = Role::start("replicate", directory.path(), &wrong)?;
    let deadline = std::time::Instant::now() + LIMIT;
    loop {
        let (status, said) = get(&shipping, "/readyz", "")?;
        ensure!(status == 503, "ready: {said}");
        if said.contains("the source is not found yet") && said.contains("expected cluster west") {
            break;
        }
        ensure!(std::time::Instant::now() < deadline, "{said}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(shipping.log().contains("the source is not found yet"), "{}", shipping.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn follower_has_the_same_whoever_is_killed_on_local_disks() -> anyhow::Result<()> {
    follower_has_the_same_whoever_is_killed([Backend::Local, Backend::Local]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn follower_on_log_stores_has_the_same_as_a_source_on_object_storage_whoever_is_killed() -> anyhow::Result<()> {
    follower_has_the_same_whoever_is_killed([Backend::Object, Backend::Quorum]).await
}

/// There and back, so each of the two is source and follower.
async fn roles_change_without_loss(backends: [Backend; 2], secured: bool) -> anyhow::Result<()> {
    let (directory, mut west, mut east) = start(backends, secured).await?;
    follow(&west, &east, directory.path()).await?;
    west.start_replicator(&east)?;
    east.start_replicator(&west)?;
    let mut acked = [Vec::new(), Vec::new()];
    for (label, there) in [("first", true), ("second", false), ("third", true)] {
        let (source, target) = if there { (&west, &east) } else { (&east, &west) };
        let loads = [Load::start(source, 0, label), Load::start(source, 1, label)];
        tokio::time::sleep(Duration::from_millis(700)).await;
        // Everybody writes on while the roles change.
        follow(target, source, directory.path()).await?;
        for (index, load) in loads.into_iter().enumerate() {
            let more = load.ended().await?;
            ensure!(!more.is_empty(), "nothing was written");
            acked[index].extend(more);
        }
    }
    for (index, acked) in acked.iter().enumerate() {
        check(&east, &west, index, acked, "the end").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_change_there_and_back_without_loss_between_clusters_that_trust_different_authorities()
-> anyhow::Result<()> {
    roles_change_without_loss([Backend::Local, Backend::Local], true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_change_there_and_back_without_loss_between_log_stores_and_object_storage() -> anyhow::Result<()> {
    roles_change_without_loss([Backend::Quorum, Backend::Object], false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_ships_shows_the_token_of_the_topology_where_he_has_none_of_his_own() -> anyhow::Result<()> {
    let (directory, mut west, east) = start([Backend::Local, Backend::Local], true).await?;
    let theirs = east.secrets.as_ref().context("a secured cluster")?;
    let token = std::fs::read_to_string(theirs.path("write"))?;
    let edge = CrossClusterTopology { source_cluster_id: west.name.into(), target_cluster_id: east.name.into() };
    let wanted = ReplicateConfiguration {
        clusters: vec![west.in_topology(""), east.in_topology(&token)],
        cross_cluster_topology: vec![edge],
    };
    for site in [&west, &east] {
        let admin = connect(site.name, &site.port, site.secrets.as_ref(), "admin").await?;
        admin.update_replicate_configuration(wanted.clone(), LIMIT).await?;
    }
    west.start_replicator_with(&east, None)?;
    let load = Load::start(&west, 0, "shipped");
    tokio::time::sleep(Duration::from_millis(300)).await;
    // What is shown can be applied, and takes no token away, which a file does not have.
    let file = directory.path().join("shown.yaml");
    std::fs::write(&file, west.topology(&["show"], None)?)?;
    west.topology(&["apply"], Some(&file))?;
    let admin = connect(west.name, &west.port, west.secrets.as_ref(), "admin").await?;
    let now = admin.replicate_configuration();
    ensure!(now.as_deref() == Some(&wanted), "{now:?}");
    let acked = load.finish().await?;
    check(&west, &east, 0, &acked, "the end").await
}

/// Milliseconds by which the follower of the first channel is behind, as the process that ships to it says, once it knows
/// whom it ships to.
fn lag(site: &Site) -> anyhow::Result<Option<u64>> {
    let shipping = site.replicators.last().context("somebody ships")?;
    let (_, shown) = get(shipping, "/metrics", "")?;
    let first = |line: &&str| line.starts_with("milvus_cdc_replicate_lag{") && line.contains("dml_0\"");
    let value = shown.lines().find(first).and_then(|line| line.rsplit(' ').next());
    Ok(value.map(str::parse).transpose()?)
}

async fn until_lag(site: &Site, is: impl Fn(u64) -> bool) -> anyhow::Result<()> {
    let mut seen = None;
    for _ in 0..300 {
        seen = lag(site)?;
        if seen.is_some_and(&is) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("it is {seen:?} ms")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_is_down_is_seen_to_be_behind_by_whoever_ships_since_then_too() -> anyhow::Result<()> {
    let (directory, mut west, mut east) = start([Backend::Local, Backend::Local], false).await?;
    follow(&west, &east, directory.path()).await?;
    west.start_replicator(&east)?;
    let load = Load::start(&west, 0, "shipped");
    tokio::time::sleep(Duration::from_secs(1)).await;
    until_lag(&west, |lag| lag < 2_000).await?;
    east.process.kill()?;
    until_lag(&west, |lag| lag > 4_000).await?;
    west.replicators.pop().context("started")?.kill()?;
    west.start_replicator(&east)?;
    until_lag(&west, |lag| lag > 2_000).await?;
    east.restart()?;
    until_lag(&west, |lag| lag < 2_000).await?;
    check(&west, &east, 0, &load.finish().await?, "the end").await
}

/// Whoever is to ship may hear of it from the target before its own cluster does, which has followed this target before.
#[tokio::test(flavor = "multi_thread")]
async fn follower_that_follows_again_gets_nothing_twice_while_its_source_does_not_know_of_it() -> anyhow::Result<()> {
    let (directory, mut west, mut east) = start([Backend::Local, Backend::Local], false).await?;
    follow(&west, &east, directory.path()).await?;
    west.start_replicator(&east)?;
    east.start_replicator(&west)?;
    follow(&east, &west, directory.path()).await?;
    let load = Load::start(&east, 0, "first");
    tokio::time::sleep(Duration::from_millis(300)).await;
    follow(&west, &east, directory.path()).await?;
    let mut acked = load.ended().await?;
    west.replicators[0].signal("STOP")?;
    west.topology(&["apply"], Some(&directory.path().join("from-east.yaml")))?;
    // Time to ship what must not be shipped.
    tokio::time::sleep(Duration::from_secs(2)).await;
    west.replicators[0].signal("CONT")?;
    follow(&east, &west, directory.path()).await?;
    let load = Load::start(&east, 0, "second");
    tokio::time::sleep(Duration::from_millis(300)).await;
    acked.extend(load.finish().await?);
    check(&east, &west, 0, &acked, "the end").await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_that_ship_at_once_double_nothing() -> anyhow::Result<()> {
    let (directory, mut west, mut east) = start([Backend::Local, Backend::Local], false).await?;
    follow(&west, &east, directory.path()).await?;
    west.start_replicator(&east)?;
    west.start_replicator(&east)?;
    let loads = [Load::start(&west, 0, "a"), Load::start(&west, 1, "b")];
    tokio::time::sleep(Duration::from_secs(1)).await;
    // One of them sleeps, falls behind, and wakes up; then the follower is killed under both.
    west.replicators[0].signal("STOP")?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    west.replicators[0].signal("CONT")?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    east.restart()?;
    for (index, load) in loads.into_iter().enumerate() {
        let acked = load.finish().await?;
        ensure!(acked.len() > 20, "only {} messages", acked.len());
        check(&west, &east, index, &acked, "the end").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn follower_is_promoted_when_its_source_is_lost_and_has_a_whole_beginning_of_it() -> anyhow::Result<()> {
    let (directory, mut west, east) = start([Backend::Local, Backend::Local], false).await?;
    follow(&west, &east, directory.path()).await?;
    west.start_replicator(&east)?;
    let channel = west.channel(0);
    let producer = west.client.producer(&channel);
    let mut shipped = 0;
    for n in 0..200 {
        producer.append(message(&channel, n.to_string())?).await?.await?;
        shipped = n;
    }
    // Much of it has arrived by now, and maybe not all.
    read(&east, 0, "100").await?;
    west.process.kill()?;
    promote(&east, directory.path())?;
    let channel = east.channel(0);
    east.client.producer(&channel).append(message(&channel, "own")?).await?.await?;
    let found = read(&east, 0, "own").await?;
    let (own, before) = found.split_last().context("something")?;
    ensure!(own[0].1 == b"own" && before.len() > 100 && before.len() <= shipped + 1, "{} messages", found.len());
    for (n, one) in before.iter().enumerate() {
        ensure!(one[0].1 == n.to_string().as_bytes(), "{:?} at {n}", one[0].1);
    }
    let shown = east.topology(&["show"], None)?;
    ensure!(shown.contains("# east-rootcoord-dml_0: primary"), "{shown}");
    Ok(())
}

/// Its source lives, knows nothing of the promotion, and does not hold any more what made it follow.
#[tokio::test(flavor = "multi_thread")]
async fn follower_that_was_promoted_and_taken_back_gets_all_that_its_source_wrote_meanwhile() -> anyhow::Result<()> {
    let (directory, mut west, east) = start([Backend::Local, Backend::Local], false).await?;
    follow(&west, &east, directory.path()).await?;
    west.start_replicator(&east)?;
    let channel = west.channel(0);
    let producer = west.client.producer(&channel);
    let mut acked = Vec::new();
    for n in 0..40 {
        let text = format!("shipped {n}");
        acked.push((producer.append(message(&channel, text.clone())?).await?.await?.id, text));
    }
    read(&east, 0, &acked[39].1).await?;
    west.replicators.pop().context("started")?.kill()?;
    west.truncate(0, acked[20].0)?;
    for n in 0..20 {
        let text = format!("meanwhile {n}");
        acked.push((producer.append(message(&channel, text.clone())?).await?.await?.id, text));
    }
    promote(&east, directory.path())?;
    follow(&west, &east, directory.path()).await?;
    west.start_replicator(&east)?;
    let found = read(&east, 0, &acked[59].1).await?;
    let texts: Vec<_> = found.iter().map(|messages| String::from_utf8_lossy(&messages[0].1).into_owned()).collect();
    let expected: Vec<_> = acked.into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts, expected);
    Ok(())
}
