//! Two clusters of real processes, one following the other: killed in the middle, changing roles, left alone.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use streaming_client::{AppendError, Client, ConsumeOptions, Delivery, Discovery, Edges, Settings, Tls, TxnError};
use streaming_proto::{
    common::{ConnectionParam, CrossClusterTopology, MilvusCluster, ReplicateConfiguration},
    messages::{InsertMessageHeader, PartitionSegmentAssignment},
};
use streaming_types::{
    DeliverPolicy, ImmutableMessage, Message, MessageBuilder, MessageId, MessageType, StreamingCode,
    channel::vchannel_name,
};
use tempfile::TempDir;
use test_peers::{Etcd, Port};
use tokio::task::JoinHandle;
use woodpecker_base::{
    clock::Clock,
    net::{Token, tcp_connector},
    random::Random,
};

use crate::{
    admin::get,
    cluster::{Backend, Medium},
    process::{Role, printed},
    security::Secrets,
};

const CHANNELS: usize = 2;
const LIMIT: Duration = Duration::from_secs(60);
/// Larger than an entry of the log.
const LARGE: usize = 5 << 20;

/// A cluster of one process, and those that ship from it.
struct Site {
    name: &'static str,
    directory: PathBuf,
    port: Port,
    process: Role,
    replicators: Vec<Role>,
    client: Client,
    medium: Medium,
    secrets: Option<Secrets>,
    _etcd: Option<Etcd>,
}

/// Short, so that the death of a process is noticed in a test's time.
const SESSION_TTL: &str = "3s";

fn set(values: &[String]) -> Vec<String> {
    values.iter().flat_map(|value| ["--set".to_owned(), value.clone()]).collect()
}

/// A client of the cluster, which shows this one of its tokens.
async fn connect(name: &str, port: &Port, secrets: Option<&Secrets>, token: &str) -> anyhow::Result<Client> {
    let discovery = Discovery::Address(port.address().to_string());
    let mut settings = Settings { cluster: name.to_owned(), ..Settings::new(discovery) };
    if let Some(secrets) = secrets {
        let ca = std::fs::read_to_string(secrets.path("ca"))?;
        settings.tls = Some(Tls { ca, client: None, domain: None });
        settings.token = Some(Token::new(&std::fs::read_to_string(secrets.path(token))?)?);
    }
    let edges = Edges { connector: tcp_connector(), clock: Clock::system(), random: Random::system() };
    let client = Client::connect(settings, edges)?;
    client.wait_ready(LIMIT).await?;
    Ok(client)
}

impl Site {
    async fn start(
        name: &'static str,
        directory: &Path,
        backend: Backend,
        secrets: Option<Secrets>,
    ) -> anyhow::Result<Self> {
        let directory = directory.join(name);
        std::fs::create_dir(&directory)?;
        let etcd = if backend == Backend::Quorum { Some(Etcd::start().await) } else { None };
        let medium = Medium::start(backend, &directory, etcd.as_ref(), SESSION_TTL).await?;
        // The topology names it, so it stays over a restart.
        let port = Port::hold()?;
        let process = Self::process(name, &directory, &port, &medium, secrets.as_ref())?;
        let client = connect(name, &port, secrets.as_ref(), "write").await?;
        Ok(Self { name, directory, port, process, replicators: Vec::new(), client, medium, secrets, _etcd: etcd })
    }

    fn process(
        name: &str,
        directory: &Path,
        port: &Port,
        medium: &Medium,
        secrets: Option<&Secrets>,
    ) -> anyhow::Result<Role> {
        let mut arguments = set(&[
            format!("msgChannel.chanNamePrefix.cluster={name}"),
            format!("rootCoord.dmlChannelNum={CHANNELS}"),
            format!("rootCoord.port={}", port.number()),
        ]);
        arguments.extend(medium.arguments());
        arguments.extend(secrets.iter().flat_map(|secrets| secrets.settings()));
        Role::start("standalone", directory, &arguments)
    }

    fn channel(&self, index: usize) -> String {
        format!("{}-rootcoord-dml_{index}", self.name)
    }

    /// Starts one more process that ships to `target`.
    fn start_replicator(&mut self, target: &Self) -> anyhow::Result<()> {
        let theirs = target.secrets.as_ref();
        let token =
            theirs.map(|theirs| format!("replicate.targets.{}.tokenFile={}", target.name, theirs.shown("write")));
        self.start_replicator_with(target, token)
    }

    /// One that knows no more of a secured target than its authority and these settings.
    fn start_replicator_with(&mut self, target: &Self, more: Option<String>) -> anyhow::Result<()> {
        let theirs = target.secrets.as_ref();
        let ca = theirs.map(|theirs| format!("replicate.targets.{}.ca={}", target.name, theirs.shown("ca")));
        let own = [
            format!("msgChannel.chanNamePrefix.cluster={}", self.name),
            format!("replicate.source={}", self.port.address()),
        ];
        let mut arguments = set(&own.into_iter().chain(ca).chain(more).collect::<Vec<_>>());
        arguments.extend(self.secrets.iter().flat_map(Secrets::settings));
        self.replicators.push(Role::start("replicate", &self.directory, &arguments)?);
        Ok(())
    }

    /// The cluster as a topology names it, let in by this token.
    fn in_topology(&self, token: &str) -> MilvusCluster {
        let connection = ConnectionParam { uri: format!("http://{}", self.port.address()), token: token.to_owned() };
        MilvusCluster {
            cluster_id: self.name.to_owned(),
            connection_param: Some(connection),
            pchannels: (0..CHANNELS).map(|index| self.channel(index)).collect(),
        }
    }

    /// `kill -9` of the cluster, and the same one started anew.
    fn restart(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.start_again()
    }

    /// Stops the cluster as one should, gives up everything in a channel up to a message, and starts it anew.
    fn truncate(&mut self, index: usize, up_to: MessageId) -> anyhow::Result<()> {
        self.process.signal("TERM")?;
        ensure!(self.process.wait(LIMIT)?.success(), "{}", self.process.log());
        let mut arguments = vec!["log".to_owned()];
        arguments.extend(self.medium.arguments());
        let entry = format!("{}:{}", up_to.segment, up_to.entry);
        arguments.extend(["truncate".to_owned(), self.channel(index), entry]);
        printed(arguments)?;
        self.start_again()
    }

    fn start_again(&mut self) -> anyhow::Result<()> {
        let Self { name, directory, port, medium, secrets, .. } = self;
        self.process = Self::process(name, directory, port, medium, secrets.as_ref())?;
        Ok(())
    }

    fn topology(&self, verb: &[&str], file: Option<&Path>) -> anyhow::Result<String> {
        let mut arguments = vec!["topology".to_owned()];
        arguments.extend(verb.iter().map(|word| (*word).to_owned()));
        arguments.extend(file.map(|file| file.display().to_string()));
        arguments.extend(["--cluster".into(), self.name.into()]);
        arguments.extend(["--coordinator".into(), self.port.address().to_string()]);
        arguments.extend(self.secrets.iter().flat_map(|secrets| secrets.credentials("admin", "ca")));
        Ok(String::from_utf8(printed(arguments)?)?)
    }
}

/// Writes the topology in which the first site is the source of the second, and makes it that of both, in either order.
async fn follow(source: &Site, target: &Site, directory: &Path) -> anyhow::Result<()> {
    let mut sites = [source, target];
    sites.sort_by_key(|site| site.name);
    let mut text = "clusters:\n".to_owned();
    for site in sites {
        text += &format!("- id: {}\n  uri: http://{}\n  channels:\n", site.name, site.port.address());
        (0..CHANNELS).for_each(|index| text += &format!("  - {}\n", site.channel(index)));
    }
    text += &format!("edges:\n- from: {}\n  to: {}\n", source.name, target.name);
    let file = directory.join(format!("from-{}.yaml", source.name));
    std::fs::write(&file, text)?;
    std::thread::scope(|scope| {
        let applied = sites.map(|site| scope.spawn(|| site.topology(&["apply"], Some(&file))));
        for applied in applied {
            let said = applied.join().map_err(|_| anyhow::anyhow!("panicked"))??;
            ensure!(said.starts_with("in force"), "{said}");
        }
        anyhow::Ok(())
    })
}

/// Makes a follower one that follows nobody, though its source does not say so.
fn promote(site: &Site, directory: &Path) -> anyhow::Result<()> {
    let file = directory.join("alone.yaml");
    let (name, channels) = (site.name, [site.channel(0), site.channel(1)]);
    let text = format!("clusters:\n- id: {name}\n  uri: http://{}\n  channels: {channels:?}\n", site.port.address());
    std::fs::write(&file, text)?;
    let said = site.topology(&["apply", "--force-promote"], Some(&file))?;
    ensure!(said.starts_with("in force"), "{said}");
    Ok(())
}

fn message(channel: &str, payload: impl Into<bytes::Bytes>) -> anyhow::Result<Message> {
    let partition = PartitionSegmentAssignment { partition_id: 1, rows: 1, ..PartitionSegmentAssignment::default() };
    let header = InsertMessageHeader { collection_id: 1, partitions: vec![partition] };
    let message = MessageBuilder::new(&header).vchannel(vchannel_name(channel, 1, 0)).payload(payload);
    Ok(message.property("user", channel).build()?)
}

fn ends_writing(error: &AppendError) -> bool {
    matches!(error, AppendError::Refused(refusal) if refusal.code() == StreamingCode::ReplicateViolation)
}

/// Appends to one channel until it is told to stop, or the channel takes no more because its cluster follows another one.
/// Returns what was acknowledged.
struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<anyhow::Result<Vec<String>>>,
}

impl Load {
    fn start(site: &Site, index: usize, label: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, client, channel) = (stop.clone(), site.client.clone(), site.channel(index));
        let task = tokio::spawn(async move {
            let producer = client.producer(&channel);
            let mut acked = Vec::new();
            for n in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let text = format!("{label} {n}");
                let appended = match n % 10 {
                    9 => {
                        let run = async {
                            let mut txn = producer.begin(&vchannel_name(&channel, 1, 0), None).await?;
                            for part in 0..3 {
                                let body = message(&channel, format!("{text}/{part}"));
                                txn.append(body.map_err(|error| TxnError::InvalidBody(error.to_string()))?).await?;
                            }
                            txn.commit().await
                        };
                        run.await.map(drop).map_err(|error| match error {
                            TxnError::Append(error) => Some(error),
                            // The change of the role ended it.
                            _ => None,
                        })
                    }
                    5 if n % 100 == 5 => {
                        let large = format!("{text} {}", "x".repeat(LARGE));
                        producer.append(message(&channel, large)?).await?.await.map(drop).map_err(Some)
                    }
                    _ => producer.append(message(&channel, text.clone())?).await?.await.map(drop).map_err(Some),
                };
                match appended {
                    Ok(()) => acked.push(text),
                    Err(Some(error)) if ends_writing(&error) => break,
                    Err(None) => {}
                    Err(Some(error)) => return Err(error.into()),
                }
            }
            Ok(acked)
        });
        Self { stop, task }
    }

    async fn finish(self) -> anyhow::Result<Vec<String>> {
        self.stop.store(true, Ordering::Relaxed);
        self.ended().await
    }

    async fn ended(self) -> anyhow::Result<Vec<String>> {
        tokio::time::timeout(LIMIT, self.task).await.context("the load did not end")??
    }
}

/// What readers see of a message whichever cluster they read.
fn seen(message: &ImmutableMessage) -> One {
    let user = message.properties.user().map(|(key, value)| format!("{key}={value}"));
    (message.properties.message_type().ok(), message.payload.to_vec(), user.collect())
}

/// Type, payload, and the properties that the producer gave. The header names segments of its own cluster.
type One = (Option<MessageType>, Vec<u8>, Vec<String>);
type Seen = Vec<Vec<One>>;

/// Everything in a channel up to the message `last`, transactions as one.
async fn read(site: &Site, index: usize, last: &str) -> anyhow::Result<Seen> {
    let mut consumer = site.client.consume(ConsumeOptions::new(site.channel(index), DeliverPolicy::All))?;
    let mut found = Vec::new();
    let reading = async {
        loop {
            let messages = match consumer.next().await? {
                Delivery::Message(message) => vec![message],
                Delivery::Txn(txn) => std::iter::once(txn.begin).chain(txn.bodies).chain([txn.commit]).collect(),
                Delivery::TimeTick { .. } => continue,
            };
            let ends = messages.iter().any(|message| message.payload == last);
            found.push(messages.iter().map(seen).collect::<Vec<_>>());
            if ends {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(LIMIT, reading).await.with_context(|| format!("{last:?} is not in {}", site.name))??;
    // The topology came to each in its own way.
    found.retain(|messages: &Vec<One>| messages[0].0 != Some(MessageType::AlterReplicateConfig));
    Ok(found)
}

/// Appends a last message, and finds that both clusters hold the same, with all that was acknowledged in it, once.
async fn check(source: &Site, target: &Site, index: usize, acked: &[String], last: &str) -> anyhow::Result<()> {
    let channel = source.channel(index);
    source.client.producer(&channel).append(message(&channel, last.to_owned())?).await?.await?;
    let (ours, theirs) = (read(source, index, last).await?, read(target, index, last).await?);
    compare(&ours, &theirs)?;
    holds(&theirs, acked)
}

fn compare(ours: &Seen, theirs: &Seen) -> anyhow::Result<()> {
    let at = ours.iter().zip(theirs).position(|(a, b)| a != b).unwrap_or_else(|| ours.len().min(theirs.len()));
    let (one, other) = (ours.get(at), theirs.get(at));
    ensure!(
        ours == theirs,
        "{} and {} deliveries, different from {at} on: {one:?}, {other:?}",
        ours.len(),
        theirs.len()
    );
    Ok(())
}

fn holds(found: &Seen, acked: &[String]) -> anyhow::Result<()> {
    for label in acked {
        let (begins, parts) = (format!("{label} "), format!("{label}/0"));
        let is = |payload: &[u8]| {
            payload == label.as_bytes() || payload.starts_with(begins.as_bytes()) || payload == parts.as_bytes()
        };
        let count = found.iter().flatten().filter(|(_, payload, _)| is(payload)).count();
        ensure!(count == 1, "{label:?} was acknowledged and is there {count} times");
    }
    Ok(())
}

/// Where the logs of two clusters are, and whether each is secured by an authority and tokens of its own.
async fn start(backends: [Backend; 2], secured: bool) -> anyhow::Result<(TempDir, Site, Site)> {
    let directory = tempfile::tempdir()?;
    let secrets = |name| if secured { Secrets::of(name).map(Some) } else { Ok(None) };
    let west = Site::start("west", directory.path(), backends[0], secrets("west")?).await?;
    let east = Site::start("east", directory.path(), backends[1], secrets("east")?).await?;
    Ok((directory, west, east))
}

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
