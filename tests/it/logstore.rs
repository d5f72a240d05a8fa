//! The log store in a process of its own: killed at any moment, it holds what it confirmed and keeps its fences.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use streaming_proto::logstore::{
    AppendRequest, Code, FenceRequest, ReadRequest, ReleaseRequest, Replica, StatusRequest, append_response::Outcome,
    log_store_client::LogStoreClient,
};
use tempfile::TempDir;
use test_peers::{Etcd, Port};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::{
    admin::{ask_at, get},
    load::LIMIT,
    process::{Role, run},
    quorum::eventually,
};

struct Store {
    etcd: Etcd,
    directory: TempDir,
    role: Role,
    id: String,
    client: LogStoreClient<Channel>,
}

fn arguments(etcd: &Etcd, directory: &TempDir, port: &str) -> Vec<String> {
    let settings = [
        "metastore.type=etcd".to_owned(),
        format!("etcd.endpoints=[\"{}\"]", etcd.endpoint()),
        format!("woodpecker.storage.rootPath={}", directory.path().join("data").display()),
        format!("woodpecker.logstore.port={port}"),
        // The machine that runs the tests may be almost full.
        "woodpecker.logstore.disk.softUsed=1.0".to_owned(),
        "woodpecker.logstore.disk.hardUsed=1.0".to_owned(),
    ];
    settings.into_iter().flat_map(|setting| ["--set".to_owned(), setting]).collect()
}

async fn connect(role: &Role) -> anyhow::Result<LogStoreClient<Channel>> {
    let client = LogStoreClient::connect(format!("http://{}", role.address("logstore"))).await?;
    Ok(client.max_decoding_message_size(64 << 20))
}

impl Store {
    async fn start() -> anyhow::Result<Self> {
        let (etcd, directory) = (Etcd::start().await, tempfile::tempdir()?);
        let role = Role::start("logstore", directory.path(), &arguments(&etcd, &directory, "0"))?;
        let mut client = connect(&role).await?;
        let id = client.status(StatusRequest {}).await?.into_inner().store;
        Ok(Self { etcd, directory, role, id, client })
    }

    /// Starts it again on the same address.
    async fn restart(&mut self) -> anyhow::Result<()> {
        let port = self.role.address("logstore").rsplit(':').next().unwrap_or_default().to_owned();
        let arguments = arguments(&self.etcd, &self.directory, &port);
        self.role = Role::start("logstore", self.directory.path(), &arguments)?;
        self.client = connect(&self.role).await?;
        let status = self.client.status(StatusRequest {}).await?.into_inner();
        assert_eq!(status.store, self.id, "another identity");
        Ok(())
    }

    fn replica(&self, log: u64, segment: u64) -> Replica {
        Replica { store: self.id.clone(), namespace: "it".into(), log, segment }
    }

    async fn fence(&self, replica: &Replica, epoch: u64) -> anyhow::Result<u64> {
        let request = FenceRequest { replica: Some(replica.clone()), epoch, end: None };
        Ok(self.client.clone().fence(request).await?.into_inner().durable)
    }

    async fn check(&self, replica: &Replica, end: u64, request: ReadRequest) -> anyhow::Result<()> {
        let mut answers = self.client.clone().read(request).await?.into_inner();
        let mut next = 0;
        while next < end {
            let answer = answers.message().await?.unwrap_or_default();
            assert!(!answer.entries.is_empty(), "{replica:?} ends at {next} of {end}");
            for bytes in answer.entries {
                assert_eq!(bytes, entry(replica, next), "entry {next} of {replica:?}");
                next += 1;
            }
        }
        Ok(())
    }

    async fn check_all(&self, replica: &Replica, end: u64) -> anyhow::Result<()> {
        let request = ReadRequest { replica: Some(replica.clone()), end, ..ReadRequest::default() };
        self.check(replica, end, request).await
    }
}

/// What entry `number` of a replica holds: recognisable, of varying length.
fn entry(replica: &Replica, number: u64) -> Bytes {
    let length = usize::try_from((number * 131 + replica.log * 17) % 3_000).unwrap_or_default();
    let mut bytes = format!("{}/{}#{number};", replica.log, replica.segment).repeat(300).into_bytes();
    bytes.truncate(length);
    bytes.into()
}

fn frame(replica: &Replica, epoch: u64, from: u64, to: u64) -> AppendRequest {
    let entries = (from..to).map(|number| entry(replica, number)).collect();
    AppendRequest { replica: Some(replica.clone()), epoch, first: from, entries, committed: 0 }
}

/// Appends to every replica without end; returns how far each was confirmed when the store died.
async fn write_until_dead(
    mut client: LogStoreClient<Channel>,
    replicas: Vec<Replica>,
    epoch: u64,
) -> anyhow::Result<BTreeMap<u64, u64>> {
    let (frames, sent) = mpsc::channel(8);
    let mut answers = client.append(ReceiverStream::new(sent)).await?.into_inner();
    let sending = async move {
        for first in (0..).step_by(3) {
            for replica in &replicas {
                if frames.send(frame(replica, epoch, first, first + 3)).await.is_err() {
                    return;
                }
            }
        }
    };
    let hearing = async {
        let mut confirmed = BTreeMap::new();
        while let Ok(Some(answer)) = answers.message().await {
            match (answer.replica, answer.outcome) {
                (Some(replica), Some(Outcome::Durable(next))) => {
                    let before = confirmed.insert(replica.log, next);
                    assert!(before <= Some(next), "confirmations went back");
                }
                other => anyhow::bail!("{other:?}"),
            }
        }
        Ok(confirmed)
    };
    let ((), confirmed) = tokio::join!(sending, hearing);
    confirmed
}

async fn append_all(client: &LogStoreClient<Channel>, frame: AppendRequest) -> anyhow::Result<Option<Outcome>> {
    let requests = tokio_stream::iter([frame]);
    let mut answers = client.clone().append(requests).await?.into_inner();
    let mut last = None;
    while let Some(answer) = answers.message().await? {
        last = answer.outcome;
    }
    Ok(last)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_store_confirmed_is_there_and_its_fences_hold() -> anyhow::Result<()> {
    let mut store = Store::start().await?;
    let mut random = fastrand::Rng::with_seed(11);
    let mut kept: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    for round in 1..=8 {
        let replicas: Vec<_> = (1..=5).map(|log| store.replica(log, round)).collect();
        let epoch = 2 * round;
        let writing = tokio::spawn(write_until_dead(store.client.clone(), replicas.clone(), epoch));
        tokio::time::sleep(Duration::from_millis(random.u64(1..300))).await;
        store.role.kill()?;
        let confirmed = writing.await??;
        store.restart().await?;

        for replica in &replicas {
            let tail = store.fence(replica, epoch + 1).await?;
            let confirmed = confirmed.get(&replica.log).copied().unwrap_or(0);
            assert!(tail >= confirmed, "{replica:?}: {confirmed} confirmed, {tail} held");
            store.check_all(replica, tail).await?;
            kept.insert((replica.log, round), tail);
        }
        // The stale writer is refused; recovery goes on where the replica ends.
        let stale = append_all(&store.client, frame(&replicas[0], epoch, 0, 1)).await?;
        assert!(matches!(stale, Some(Outcome::Refused(_))), "{stale:?}");
        let tail = kept[&(1, round)];
        let repaired = append_all(&store.client, frame(&replicas[0], epoch + 1, tail, tail + 2)).await?;
        assert_eq!(repaired, Some(Outcome::Durable(tail + 2)));
        kept.insert((1, round), tail + 2);
        store.client.release(ReleaseRequest { replica: Some(replicas[4].clone()) }).await?;
        kept.remove(&(5, round));
    }
    assert!(kept.values().sum::<u64>() > 100, "hardly anything was written: {kept:?}");
    for ((log, segment), end) in kept {
        store.check_all(&store.replica(log, segment), end).await?;
    }
    store.role.signal("TERM")?;
    assert!(store.role.wait(Duration::from_secs(30))?.success(), "{}", store.role.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tail_of_an_idle_log_is_readable_after_a_kill() -> anyhow::Result<()> {
    let mut store = Store::start().await?;
    let replica = store.replica(1, 1);
    let outcome = append_all(&store.client, frame(&replica, 1, 0, 50)).await?;
    assert_eq!(outcome, Some(Outcome::Durable(50)));
    append_all(&store.client, AppendRequest { committed: 50, ..frame(&replica, 1, 0, 0) }).await?;
    // Quiet for long enough that what is acked was written down.
    tokio::time::sleep(Duration::from_secs(3)).await;
    store.role.kill()?;
    store.restart().await?;
    let follow = ReadRequest { replica: Some(replica.clone()), follow: true, ..ReadRequest::default() };
    tokio::time::timeout(Duration::from_secs(10), store.check(&replica, 50, follow)).await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_starts_without_the_metadata_store_serves_and_registers_later() -> anyhow::Result<()> {
    let mut store = Store::start().await?;
    let replica = store.replica(1, 1);
    append_all(&store.client, frame(&replica, 1, 0, 5)).await?;
    store.etcd.kill();
    store.role.kill()?;
    let address = store.role.address("logstore").to_owned();
    let admin = Port::hold()?;
    let mut again = arguments(&store.etcd, &store.directory, address.rsplit(':').next().unwrap_or_default());
    // It outlives the time that other roles wait for the metadata store.
    for setting in [format!("admin.port={}", admin.number()), "common.startTimeout=1ms".to_owned()] {
        again.extend(["--set".to_owned(), setting]);
    }
    let directory = store.directory.path().to_owned();
    let starting = tokio::task::spawn_blocking(move || Role::start("logstore", &directory, &again));
    let readiness = || ask_at(&admin.address().to_string(), "GET", "/readyz", "");
    eventually("it says what it waits for", || {
        anyhow::ensure!(!starting.is_finished(), "it ended");
        Ok(readiness().is_ok_and(|(status, body)| status == 503 && body.contains("not registered")))
    })
    .await?;
    store.client = LogStoreClient::connect(format!("http://{address}")).await?;
    assert_eq!(store.fence(&replica, 2).await?, 5);
    store.check_all(&replica, 5).await?;
    assert_eq!(append_all(&store.client, frame(&replica, 2, 5, 7)).await?, Some(Outcome::Durable(7)));
    store.etcd.restart().await;
    store.role = starting.await??;
    assert_eq!(readiness()?.0, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_stopped_for_a_while_goes_on() -> anyhow::Result<()> {
    let store = Store::start().await?;
    let replica = store.replica(1, 1);
    append_all(&store.client, frame(&replica, 1, 0, 5)).await?;
    store.role.signal("STOP")?;
    let appending = append_all(&store.client, frame(&replica, 1, 5, 9));
    tokio::pin!(appending);
    let early = tokio::time::timeout(Duration::from_secs(2), &mut appending).await;
    assert!(early.is_err(), "a stopped process answered");
    store.role.signal("CONT")?;
    let start = Instant::now();
    assert_eq!(appending.await?, Some(Outcome::Durable(9)));
    assert!(start.elapsed() < Duration::from_secs(10));
    Ok(())
}

/// Kibibytes of memory, and clock ticks (10 ms) of processor time, of a process so far.
fn cost(role: &Role) -> anyhow::Result<(u64, u64)> {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", role.id()))?;
    let pages: u64 = statm.split_whitespace().nth(1).unwrap_or_default().parse()?;
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", role.id()))?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok((pages * 4, ticks))
}

/// Waits until a process has done next to nothing for two seconds.
async fn until_quiet(role: &Role) -> anyhow::Result<()> {
    let (begun, (_, mut before)) = (Instant::now(), cost(role)?);
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (_, now) = cost(role)?;
        if now - before <= 2 {
            return Ok(());
        }
        anyhow::ensure!(begun.elapsed() < LIMIT, "it is never quiet");
        before = now;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_idle_logs_and_a_thousand_followers_cost_little() -> anyhow::Result<()> {
    const LOGS: u64 = 10_000;
    let mut store = Store::start().await?;
    append_all(&store.client, frame(&store.replica(LOGS + 1, 1), 1, 0, 1)).await?;
    let (before, _) = cost(&store.role)?;
    let (frames, sent) = mpsc::channel(64);
    let mut answers = store.client.append(ReceiverStream::new(sent)).await?.into_inner();
    let replicas: Vec<_> = (1..=LOGS).map(|log| store.replica(log, 1)).collect();
    let sending = async {
        for replica in &replicas {
            let _ = frames.send(AppendRequest { committed: 1, ..frame(replica, 1, 0, 1) }).await;
        }
    };
    let hearing = async {
        for _ in 0..LOGS {
            let answer = answers.message().await.ok().flatten().and_then(|answer| answer.outcome);
            assert!(matches!(answer, Some(Outcome::Durable(1))), "{answer:?}");
        }
    };
    tokio::join!(sending, hearing);
    // Written down once, when they have been quiet for a second.
    until_quiet(&store.role).await?;
    let (after, _) = cost(&store.role)?;
    let each = after.saturating_sub(before) as f64 / LOGS as f64;
    let mut followers = Vec::new();
    for replica in replicas.into_iter().take(1_000) {
        let follow = ReadRequest { replica: Some(replica), from: 1, follow: true, ..ReadRequest::default() };
        followers.push(store.client.read(follow).await?.into_inner());
    }
    let lines = |role: &Role| role.log().lines().count();
    let (said, (_, busy)) = (lines(&store.role), cost(&store.role)?);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (_, idle) = cost(&store.role)?;
    assert_eq!(lines(&store.role), said, "{}", store.role.log());
    println!("{each:.1} KiB for each log, {} ms of processor time in 5 s of idleness", (idle - busy) * 10);
    // With its entry, which stays in memory for tail readers.
    assert!(each <= 12.0, "{each} KiB for each idle log");
    assert!(idle - busy <= 5, "{} ms of 5 s", (idle - busy) * 10);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_whose_disk_failed_is_not_ready_and_says_why_and_fences_go_on() -> anyhow::Result<()> {
    let store = Store::start().await?;
    let ready = || get(&store.role, "/readyz", "");
    assert_eq!(ready()?.0, 200);
    assert!(get(&store.role, "/metrics", "")?.1.contains("woodpecker_logstore_has_zone 0"));
    // No volume can be made any more.
    let volumes = store.directory.path().join("data/logstore/volumes");
    std::fs::remove_dir(&volumes)?;
    std::fs::write(&volumes, "")?;
    let replica = store.replica(1, 1);
    let outcome = append_all(&store.client, frame(&replica, 1, 0, 3)).await?;
    assert!(matches!(&outcome, Some(Outcome::Refused(refusal)) if refusal.code() == Code::Failed), "{outcome:?}");
    eventually("it is not ready", || Ok(ready()?.0 == 503)).await?;
    let (_, said) = ready()?;
    assert!(said.contains("logstore: Healthy") && said.contains("no append is taken: cannot make"), "{said}");
    assert_eq!(get(&store.role, "/healthz", "")?.0, 200);
    assert_eq!(store.fence(&replica, 2).await?, 0);
    Ok(())
}

#[test]
fn an_address_that_nobody_can_dial_stops_the_start() -> anyhow::Result<()> {
    let output = run(["logstore", "--set", "metastore.type=etcd", "--set", "woodpecker.logstore.ip=0.0.0.0"])?;
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("woodpecker.logstore.advertise"), "{error}");
    Ok(())
}
