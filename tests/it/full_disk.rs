//! File systems that are really full: what was acknowledged stays, it is said why nothing more is taken, and everything goes
//! on when there is room.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context;
use serde_json::Value;
use streaming_client::{Client, Discovery, Edges, Settings};
use woodpecker_base::{clock::Clock, net::tcp_connector, random::Random};

use crate::{
    admin::{counted, get},
    cluster::{Backend, Cluster},
    load::{Acked, CHANNEL, LIMIT, Load, check, read_until},
    mounts::{SmallDisk, has_own_mounts},
    process::{Role, printed, run},
    quorum::{eventually, pause, verify},
};

/// As the kernel says it.
const NO_SPACE: &str = "No space left on device";
/// What a volume ends with (`STORE_FAILED` in docs/operate/errors.md).
const FAILED: &str = "volume stopped after a failed write";
/// Until there is room appends wait; how long after that they are acknowledged again, at most.
const GOES_ON: Duration = Duration::from_secs(40);
/// Long enough for the stores to run into the end of the disk before they look how full it is.
const LOOKS: &str = "woodpecker.logstore.disk.interval=20s";

fn client_of(role: &Role) -> anyhow::Result<Client> {
    let settings = Settings::new(Discovery::Address(role.address("coordinator").to_owned()));
    let edges = Edges { connector: tcp_connector(), clock: Clock::system(), random: Random::system() };
    Ok(Client::connect(settings, edges)?)
}

/// Why the channel is not served, to who probes, who describes it, and who counts.
async fn operators_see(role: &Role) -> anyhow::Result<()> {
    let says =
        |text: &str| ["failed attempts since 20", "WAL_DISK_FULL", NO_SPACE].iter().all(|part| text.contains(part));
    eventually("it says which channel is not served, since when and why", || {
        let (_, missing) = get(role, "/readyz", "")?;
        Ok(missing.lines().any(|line| line.contains(CHANNEL) && line.contains("make room") && says(line)))
    })
    .await?;
    let described = run(["describe", "--json", "--coordinator", role.address("coordinator"), CHANNEL])?;
    let channel: Value = serde_json::from_slice(&described.stdout)?;
    assert!(!described.status.success() && channel["trouble"].as_str().is_some_and(says), "{channel}");
    let failures = format!("milvus_wal_failure_total{{channel_name=\"{CHANNEL}\",code=\"WAL_DISK_FULL\"}}");
    assert!(counted(&get(role, "/metrics", "")?.1, &failures) > 0);
    Ok(())
}

/// Makes room, and returns what was acknowledged until the log goes on. Between `full` and now nothing was, and no data file
/// was removed of those there were.
async fn go_on(disk: &SmallDisk, load: Load, full: Instant, files: &[PathBuf]) -> anyhow::Result<Vec<Acked>> {
    let now = disk.data_files()?;
    assert!(files.iter().all(|file| now.contains(file)), "{files:?} became {now:?}");
    let room = Instant::now();
    disk.make_room()?;
    tokio::time::sleep(GOES_ON).await;
    let acked = load.finish().await?;
    assert!(!acked.iter().any(|acked| (full..room).contains(&acked.at)), "entries without room were acknowledged");
    let first = acked.iter().find(|acked| acked.at > room).context("the log did not go on")?;
    println!("went on {:?} after there was room", first.at - room);
    assert!(first.at - room < GOES_ON, "went on only {:?} after there was room", first.at - room);
    Ok(acked)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_on_a_full_disk_says_so_keeps_what_it_acked_and_goes_on_when_there_is_room() -> anyhow::Result<()> {
    if !has_own_mounts(
        "full_disk::a_process_on_a_full_disk_says_so_keeps_what_it_acked_and_goes_on_when_there_is_room",
    )? {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("data");
    let disk = SmallDisk::mount(data.clone(), 512 << 20)?;
    let settings = ["--data".to_owned(), data.display().to_string()];
    let mut role = Role::start("standalone", directory.path(), &settings)?;
    let client = client_of(&role)?;
    client.wait_channel(CHANNEL, LIMIT).await?;
    let load = Load::start(&client);
    pause(2).await;
    disk.fill()?;
    let files = disk.data_files()?;
    eventually("its volume ends for want of room", || {
        Ok(role.log().lines().any(|line| line.contains(FAILED) && line.contains(NO_SPACE)))
    })
    .await?;
    let full = Instant::now() + Duration::from_secs(1);
    eventually("it is not ready, and alerts", || {
        let failures = counted(&get(&role, "/metrics", "")?.1, "woodpecker_volume_failures_total");
        Ok(failures > 0 && get(&role, "/readyz", "")?.0 == 503)
    })
    .await?;
    operators_see(&role).await?;
    let acked = go_on(&disk, load, full, &files).await?;
    let last = acked.last().context("nothing was acknowledged")?.id;
    check(&read_until(&client, last).await?, &acked);
    client.close().await;

    // It dies on a full disk, where all of it can be read; it starts there, and serves when there is room.
    disk.fill()?;
    role.kill()?;
    let verb = ["log", "--data", &settings[1], "verify", CHANNEL, "--json"];
    let verified: Value = serde_json::from_slice(&printed(verb)?)?;
    assert!(verified["problems"] == 0 && verified["entries"].as_u64() >= Some(acked.len() as u64), "{verified}");
    let path = directory.path().to_owned();
    let starting = tokio::task::spawn_blocking(move || Role::start("standalone", &path, &settings));
    pause(5).await;
    assert!(!starting.is_finished(), "it was ready without room for anything");
    disk.make_room()?;
    let role = starting.await??;
    let client = client_of(&role)?;
    client.wait_channel(CHANNEL, LIMIT).await?;
    check(&read_until(&client, last).await?, &acked);
    client.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn log_stores_on_a_full_disk_say_so_keep_what_they_acked_and_go_on_when_there_is_room() -> anyhow::Result<()> {
    if !has_own_mounts("full_disk::log_stores_on_a_full_disk_say_so_keep_what_they_acked_and_go_on_when_there_is_room")?
    {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    // All three are on one disk: nobody is left to take anything.
    let disk = SmallDisk::mount(directory.path().join("stores"), 1 << 30)?;
    let mut cluster = Cluster::start_in(directory, Backend::Quorum, 1, "3s", &[]).await?;
    let client = cluster.client().await?;
    client.wait_channel(CHANNEL, LIMIT).await?;
    let load = Load::start(&client);
    for store in &mut cluster.stores {
        store.kill()?;
        store.restart_with(&[LOOKS.to_owned()])?;
    }
    pause(3).await;
    disk.fill()?;
    let files = disk.data_files()?;
    // The log stands when two of three take nothing; the third may have had room left for what came before.
    eventually("log stores are not ready, and say why", || {
        let answers = cluster.stores.iter().map(|store| get(&store.role, "/readyz", ""));
        let answers = answers.collect::<anyhow::Result<Vec<_>>>()?;
        Ok(answers.iter().filter(|(status, said)| *status == 503 && said.contains(NO_SPACE)).count() >= 2)
    })
    .await?;
    let full = Instant::now() + Duration::from_secs(1);
    pause(5).await;
    let refused = |code: &str| {
        let series = format!("woodpecker_logstore_refused_total{{code=\"{code}\"}}");
        let counts = cluster.stores.iter().map(|store| Ok(counted(&get(&store.role, "/metrics", "")?.1, &series)));
        counts.sum::<anyhow::Result<u64>>()
    };
    assert!(refused("LOGSTORE_FAILED")? > 0, "nothing was refused with its code");
    // What was acknowledged is read meanwhile.
    cluster.verify(CHANNEL)?;
    let acked = go_on(&disk, load, full, &files).await?;
    verify(&cluster, &client, &acked).await?;
    for store in &cluster.stores {
        eventually("the store is ready again", || Ok(get(&store.role, "/readyz", "")?.0 == 200)).await?;
    }
    client.close().await;
    drop(disk);
    Ok(())
}
