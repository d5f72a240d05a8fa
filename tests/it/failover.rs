//! What holds when processes die and stores go away.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use streaming_client::{Client, ConsumeOptions, Delivery};
use streaming_proto::messages::{InsertMessageHeader, PartitionSegmentAssignment};
use streaming_types::{DeliverPolicy, Message, MessageBuilder, MessageId, channel::vchannel_name};
use tokio::task::JoinHandle;

use crate::{
    cluster::{Backend, Cluster},
    process::sha256,
};

const CHANNEL: &str = "by-dev-rootcoord-dml_0";
const OUTAGE: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_secs(120);

/// Appends numbered messages, one after another, until told to stop. What it returns was acknowledged, in order.
struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<anyhow::Result<Vec<Acked>>>,
}

struct Acked {
    number: u64,
    id: MessageId,
    at: Instant,
}

fn message(number: u64) -> anyhow::Result<Message> {
    let partition = PartitionSegmentAssignment { partition_id: 1, rows: 1, ..PartitionSegmentAssignment::default() };
    let header = InsertMessageHeader { collection_id: 1, partitions: vec![partition] };
    Ok(MessageBuilder::new(&header).vchannel(vchannel_name(CHANNEL, 1, 0)).payload(number.to_string()).build()?)
}

impl Load {
    fn start(client: &Client) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, client) = (stop.clone(), client.clone());
        let task = tokio::spawn(async move {
            let producer = client.producer(CHANNEL);
            let (mut acked, mut pending) = (Vec::new(), std::collections::VecDeque::new());
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) || !pending.is_empty() {
                if pending.len() < 16 && !stopped.load(Ordering::Relaxed) {
                    pending.push_back((number, producer.append(message(number)?).await?));
                    number += 1;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                } else if let Some((number, append)) = pending.pop_front() {
                    let id = append.await?.id;
                    acked.push(Acked { number, id, at: Instant::now() });
                }
            }
            Ok(acked)
        });
        Self { stop, task }
    }

    async fn finish(self) -> anyhow::Result<Vec<Acked>> {
        self.stop.store(true, Ordering::Relaxed);
        tokio::time::timeout(LIMIT, self.task).await??
    }
}

/// Reads the channel from the beginning until `last` was seen.
async fn read_until(client: &Client, last: MessageId) -> anyhow::Result<Vec<(MessageId, u64)>> {
    let mut consumer = client.consume(ConsumeOptions::new(CHANNEL, DeliverPolicy::All))?;
    let mut found = Vec::new();
    let reading = async {
        loop {
            if let Delivery::Message(message) = consumer.next().await? {
                found.push((message.id, std::str::from_utf8(&message.payload)?.parse()?));
                if message.id == last {
                    return anyhow::Ok(());
                }
            }
        }
    };
    tokio::time::timeout(LIMIT, reading).await??;
    Ok(found)
}

/// Nothing that was acknowledged is missing or doubled, and first copies are in order.
fn check(found: &[(MessageId, u64)], acked: &[Acked]) {
    assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0), "ids are not increasing");
    let mut next = 0;
    for (id, number) in found {
        assert!(*number <= next, "{number} at {id} came before {next}");
        next = next.max(number + 1);
    }
    let by_id: BTreeMap<_, _> = found.iter().copied().collect();
    for Acked { number, id, .. } in acked {
        assert_eq!(by_id.get(id), Some(number), "{number} was acknowledged at {id}");
    }
    assert!(next >= acked.len() as u64);
}

fn longest_pause(acked: &[Acked]) -> Duration {
    acked.windows(2).map(|pair| pair[1].at - pair[0].at).max().unwrap_or_default()
}

async fn killing_the_owner_loses_nothing(backend: Backend) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(backend, 2).await?;
    let client = cluster.client().await?;
    client.wait_channel(CHANNEL, LIMIT).await?;
    let load = Load::start(&client);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let owner = cluster.owner_of(CHANNEL)?;
    cluster.nodes[owner].kill()?;
    let dead = cluster.nodes[owner].address("node").to_owned();
    let deadline = Instant::now() + LIMIT;
    while client.describe(CHANNEL).is_none_or(|channel| channel.owner.address == dead) {
        assert!(Instant::now() < deadline, "not taken over");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let acked = load.finish().await?;
    let last = acked.last().context("nothing was acknowledged")?;
    assert!(last.at.elapsed() < Duration::from_secs(5), "appends went on at the other node");
    check(&read_until(&client, last.id).await?, &acked);
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
    assert!(longest_pause(&acked) < Duration::from_secs(2), "paused for {:?}", longest_pause(&acked));

    cluster.restart_coord()?;
    let owner = cluster.owner_of(CHANNEL)?;
    cluster.nodes[owner].kill()?;
    let load = Load::start(&client);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let again = load.finish().await?;
    let last = again.last().context("the other node did not take over")?.id;
    let found = read_until(&client, last).await?;
    let first_run = found.len() - found.iter().rev().take_while(|(id, _)| *id > acked[acked.len() - 1].id).count();
    check(&found[..first_run], &acked);
    check(&found[first_run..], &again);
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
    assert!(longest_pause(&acked) < Duration::from_secs(2), "paused for {:?}", longest_pause(&acked));

    // The leases may have run out: whoever lost one registers anew, then everything is served again.
    let load = Load::start(&client);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let again = load.finish().await?;
    let served = cluster.json(&["channels"])?;
    assert_eq!(served.as_array().map(Vec::len), Some(16));
    let owner = cluster.owner_of(CHANNEL)?;
    cluster.nodes[owner].kill()?;
    let load = Load::start(&client);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let last = load.finish().await?;
    let found = read_until(&client, last[last.len() - 1].id).await?;
    for run in [acked, again, last] {
        let (from, to) = (run[0].id, run[run.len() - 1].id);
        let of_run: Vec<_> = found.iter().filter(|(id, _)| (from..=to).contains(id)).copied().collect();
        check(&of_run, &run);
    }
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
    crate::process::printed([
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
async fn a_file_goes_through_a_cluster_on_a_local_disk() -> anyhow::Result<()> {
    a_file_goes_through_a_cluster_of_processes(Backend::Local).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_goes_through_a_cluster_on_object_storage() -> anyhow::Result<()> {
    a_file_goes_through_a_cluster_of_processes(Backend::Object).await
}
