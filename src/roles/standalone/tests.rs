//! What a client promises, over gRPC and beside the node in one process: the same tests for both.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use streaming_client::{
    AppendError, Client, ConsumeOptions, Consumer, Delivery, Discovery, Edges, Limits, Settings as ClientSettings,
};
use streaming_proto::{
    messages::{DeleteMessageHeader, InsertMessageHeader},
    streaming::{
        ConsumeRequest, ConsumeResponse, ProduceRequest, ProduceResponse, StreamingNodeManagerRemoveRequest,
        streaming_node_manager_service_client::StreamingNodeManagerServiceClient,
    },
};
use streaming_types::{
    DeliverFilter, DeliverPolicy, LocalNode, Message, MessageBuilder, PChannel, StreamingCode, StreamingError,
    TimeTick, TxnContext, local::Stream, metadata::set_destination,
};
use tonic::{Request, Status};
use woodpecker_base::{
    clock::Clock,
    metadata::{MemoryStore, MetadataStore, Txn},
    net::tcp_connector,
    random::Random,
};

use super::{Live, Machine, NodeCell, Reporters, Standalone};
use crate::config::{Config, Sources, load};

const PCHANNEL: &str = "by-dev-rootcoord-dml_0";
const VCHANNEL: &str = "by-dev-rootcoord-dml_0_1v0";
const OTHER: &str = "by-dev-rootcoord-dml_0_2v0";
const SOON: Duration = Duration::from_secs(20);

/// How a client reaches the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Grpc,
    Local,
}

/// The node, and how often it was used without gRPC.
#[derive(Debug)]
struct Counted {
    node: Arc<dyn LocalNode>,
    streams: AtomicUsize,
}

impl LocalNode for Counted {
    fn is(&self, cluster: &str, server_id: i64) -> bool {
        self.node.is(cluster, server_id)
    }

    fn produce(&self, channel: &PChannel, requests: Stream<ProduceRequest>) -> Result<Stream<ProduceResponse>, Status> {
        self.streams.fetch_add(1, Ordering::SeqCst);
        self.node.produce(channel, requests)
    }

    fn consume(&self, channel: &PChannel, requests: Stream<ConsumeRequest>) -> Result<Stream<ConsumeResponse>, Status> {
        self.streams.fetch_add(1, Ordering::SeqCst);
        self.node.consume(channel, requests)
    }

    fn latest_time_tick(&self, channel: &PChannel, vchannel: &str) -> Result<TimeTick, StreamingError> {
        self.node.latest_time_tick(channel, vchannel)
    }
}

fn config(directory: &Path) -> Config {
    let data = format!("woodpecker.storage.rootPath={}", directory.display());
    let small = "streaming.walWriteAheadBuffer.capacity=64KiB";
    let settings = [data.as_str(), small, "rootCoord.port=0", "streamingNode.port=0", "rootCoord.dmlChannelNum=1"];
    load(&Sources { assignments: settings.map(str::to_owned).to_vec(), ..Sources::default() }).unwrap()
}

/// Coordinator, node and log in this process, with one channel.
struct World {
    cluster: Standalone,
    way: Way,
    node: Arc<Counted>,
    clock: Clock,
    _directory: tempfile::TempDir,
}

impl World {
    async fn start(way: Way) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let (machine, cell) = (Machine::real(&config).unwrap(), NodeCell::default());
        let mut cluster =
            Standalone::start(&config, &machine, &Reporters::default(), &cell, &Live::new(&config)).await.unwrap();
        cluster.until_served().await.unwrap();
        let node = Arc::new(Counted { node: cell.get().unwrap().local(), streams: AtomicUsize::new(0) });
        Self { cluster, way, node, clock: machine.clock, _directory: directory }
    }

    async fn client(&self) -> Client {
        self.client_with(|_| {}).await
    }

    async fn client_with(&self, change: impl FnOnce(&mut ClientSettings)) -> Client {
        let mut settings = ClientSettings::new(Discovery::Address(self.cluster.address().to_owned()));
        if self.way == Way::Local {
            settings.local = Some(Arc::<Counted>::clone(&self.node));
        }
        settings.timeouts.backoff_min = Duration::from_millis(10);
        change(&mut settings);
        let edges = Edges { connector: tcp_connector(), clock: self.clock.clone(), random: Random::system() };
        let client = Client::connect(settings, edges).unwrap();
        client.wait_ready(SOON).await.unwrap();
        client
    }

    async fn soon<F: Future>(&self, future: F) -> F::Output {
        self.clock.timeout(SOON, future).await.expect("in time")
    }

    async fn next(&self, consumer: &mut Consumer) -> Delivery {
        self.soon(consumer.next()).await.expect("a delivery")
    }

    async fn texts(&self, consumer: &mut Consumer, count: usize) -> Vec<String> {
        let mut texts = Vec::with_capacity(count);
        while texts.len() < count {
            match self.next(consumer).await {
                Delivery::Message(message) => texts.push(String::from_utf8(message.payload.to_vec()).unwrap()),
                Delivery::TimeTick { .. } => {}
                other @ Delivery::Txn(_) => panic!("{other:?}"),
            }
        }
        texts
    }

    /// Nobody uses it any more.
    async fn end(self, client: Client) {
        assert!(self.soon(client.close()).await, "in time");
        let streams = self.node.streams.load(Ordering::SeqCst);
        assert_eq!(streams > 0, self.way == Way::Local, "{streams} streams without gRPC");
        self.cluster.stop().await.unwrap();
    }
}

fn insert(vchannel: &str, payload: &str) -> Message {
    let message = MessageBuilder::new(&InsertMessageHeader { collection_id: 1, ..InsertMessageHeader::default() });
    message.vchannel(vchannel).payload(payload.to_owned()).property("user", payload).build().unwrap()
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

fn everything(channel: &str) -> ConsumeOptions {
    ConsumeOptions::new(channel, DeliverPolicy::All)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_ends_during_the_start_says_why_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    let (machine, cell) = (Machine::real(&config).unwrap(), NodeCell::default());
    let metadata = MemoryStore::new(machine.clock.clone());
    let damaged = Txn::new().put("by-dev/meta/streamingcoord-meta/cchannel", "\u{ff}\u{ff}");
    metadata.commit(damaged).await.unwrap();
    let (health, live) = (Reporters::default(), Live::new(&config));
    let starting = Standalone::start_on(Arc::new(metadata), &config, &machine, &health, &cell, &live);
    let mut cluster = starting.await.unwrap();
    let ended = machine.clock.timeout(SOON, cluster.until_served()).await.expect("at once").unwrap_err();
    let text = format!("{ended:#}");
    assert!(text.starts_with("the coordinator ended") && text.contains("cchannel"), "{text}");
}

/// Each behaviour over both ways.
macro_rules! both_ways {
    ($($behaviour:ident),* $(,)?) => {
        mod over_grpc {
            use super::{Way, World};
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                super::$behaviour(World::start(Way::Grpc).await).await;
            })*
        }
        mod in_one_process {
            use super::{Way, World};
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                super::$behaviour(World::start(Way::Local).await).await;
            })*
        }
    };
}

both_ways!(
    appends_are_acked_and_read_in_order_with_all_that_was_said,
    a_slow_consumer_misses_nothing,
    positions_filters_and_vchannels_select,
    transactions_are_seen_as_one_or_not_at_all,
    a_repeated_key_gets_the_first_result,
    what_the_node_refuses_the_caller_hears,
    closing_finishes_what_was_accepted,
    the_client_goes_on_at_the_next_term,
    a_reader_at_the_read_point_has_seen_what_was_acked,
);

async fn appends_are_acked_and_read_in_order_with_all_that_was_said(world: World) {
    let client = world.client().await;
    let producer = client.producer(VCHANNEL);
    let mut appends = Vec::new();
    for n in 0..1000 {
        appends.push(world.soon(producer.append(insert(VCHANNEL, &n.to_string()))).await.unwrap());
    }
    let mut acked = Vec::new();
    for append in appends {
        acked.push(world.soon(append).await.unwrap());
    }
    assert!(acked.is_sorted_by(|a, b| a.id < b.id && a.time_tick < b.time_tick));
    let mut consumer = client.consume(everything(PCHANNEL)).unwrap();
    for (n, acked) in acked.iter().enumerate() {
        let Delivery::Message(message) = world.next(&mut consumer).await else { panic!("no message") };
        assert_eq!((message.id, message.time_tick().unwrap()), (acked.id, acked.time_tick));
        assert_eq!(Some(message.last_confirmed().unwrap()), acked.last_confirmed_id);
        assert_eq!((message.payload, message.properties.get("user")), (n.to_string().into(), Some(&*n.to_string())));
    }
    world.end(client).await;
}

async fn a_slow_consumer_misses_nothing(world: World) {
    let client = world.client().await;
    let producer = client.producer(VCHANNEL);
    let mut consumer = client.consume(everything(PCHANNEL)).unwrap();
    let filler = "x".repeat(4096);
    let expected: Vec<_> = (0..500).map(|n| format!("{n} {filler}")).collect();
    // More than the node keeps in memory, and the consumer asks for a part of it now and then.
    for (round, chunk) in expected.chunks(100).enumerate() {
        let mut appends = Vec::new();
        for payload in chunk {
            appends.push(world.soon(producer.append(insert(VCHANNEL, payload))).await.unwrap());
        }
        for append in appends {
            world.soon(append).await.unwrap();
        }
        let from = round * 10;
        assert!(world.texts(&mut consumer, 10).await == expected[from..from + 10]);
    }
    assert!(world.texts(&mut consumer, 450).await == expected[50..]);
    assert!(world.soon(consumer.close()).await, "the node takes part in the close");
    world.end(client).await;
}

async fn positions_filters_and_vchannels_select(world: World) {
    let client = world.client().await;
    let producer = client.producer(PCHANNEL);
    let ticks = || ConsumeOptions { time_ticks: true, ..ConsumeOptions::new(VCHANNEL, DeliverPolicy::Latest) };
    let mut latest = client.consume(ticks()).unwrap();
    // It is at the tail when it is told how far that is.
    assert!(matches!(world.next(&mut latest).await, Delivery::TimeTick { .. }));
    let mut acked = Vec::new();
    for n in 0..10 {
        let vchannel = if n % 2 == 0 { VCHANNEL } else { OTHER };
        acked.push(world.soon(producer.append(insert(vchannel, &n.to_string())).await.unwrap()).await.unwrap());
    }
    assert_eq!(world.texts(&mut latest, 5).await, ["0", "2", "4", "6", "8"]);
    for (channel, policy, filters, expected) in [
        (VCHANNEL, DeliverPolicy::StartFrom(acked[4].id), vec![], &["4", "6", "8"][..]),
        (OTHER, DeliverPolicy::StartAfter(acked[5].id), vec![], &["7", "9"]),
        (PCHANNEL, DeliverPolicy::All, vec![DeliverFilter::TimeTickGreaterThan(acked[7].time_tick)], &["8", "9"]),
    ] {
        let options = ConsumeOptions { filters, ..ConsumeOptions::new(channel, policy) };
        let mut consumer = client.consume(options).unwrap();
        assert_eq!(world.texts(&mut consumer, expected.len()).await, expected, "{channel}");
    }
    let mut consumer = client.consume(ticks()).unwrap();
    let Delivery::TimeTick { time_tick, .. } = world.next(&mut consumer).await else { panic!("no tick") };
    assert!(time_tick > acked[9].time_tick);
    world.end(client).await;
}

async fn transactions_are_seen_as_one_or_not_at_all(world: World) {
    let client = world.client().await;
    let producer = client.producer(PCHANNEL);
    let mut consumer = client.consume(everything(PCHANNEL)).unwrap();
    let mut kept = world.soon(producer.begin(VCHANNEL, None)).await.unwrap();
    let mut dropped = world.soon(producer.begin(OTHER, None)).await.unwrap();
    for n in 0..5 {
        world.soon(kept.append(insert(VCHANNEL, &n.to_string()))).await.unwrap();
        world.soon(dropped.append(insert(OTHER, "never"))).await.unwrap();
    }
    world.soon(dropped.rollback()).await.unwrap();
    world.soon(producer.append(insert(VCHANNEL, "plain")).await.unwrap()).await.unwrap();
    let committed = world.soon(kept.commit()).await.unwrap();
    assert_eq!(world.texts(&mut consumer, 1).await, ["plain"]);
    let Delivery::Txn(txn) = world.next(&mut consumer).await else { panic!("no transaction") };
    assert_eq!(txn.commit.id, committed.id);
    let bodies: Vec<_> = txn.bodies.iter().map(|body| String::from_utf8(body.payload.to_vec()).unwrap()).collect();
    assert_eq!(bodies, numbers(0..5));
    assert!(txn.bodies.iter().all(|body| body.time_tick() == Ok(committed.time_tick)));
    world.end(client).await;
}

async fn a_repeated_key_gets_the_first_result(world: World) {
    let client = world.client().await;
    let producer = client.producer(PCHANNEL);
    let keyed = |payload: &str| {
        let mut message = insert(VCHANNEL, payload);
        message.properties.set_idempotency_key("key");
        message
    };
    let first = world.soon(producer.append(keyed("once")).await.unwrap()).await.unwrap();
    let again = world.soon(producer.append(keyed("twice")).await.unwrap()).await.unwrap();
    assert_eq!(first, again);
    world.soon(producer.append(insert(VCHANNEL, "end")).await.unwrap()).await.unwrap();
    let mut consumer = client.consume(everything(PCHANNEL)).unwrap();
    assert_eq!(world.texts(&mut consumer, 2).await, ["once", "end"]);
    world.end(client).await;
}

async fn what_the_node_refuses_the_caller_hears(world: World) {
    let limits = Limits { max_message: 20 << 20, ..Limits::default() };
    let client = world.client_with(|settings| settings.limits = limits).await;
    let producer = client.producer(PCHANNEL);
    let body = MessageBuilder::new(&DeleteMessageHeader::default()).vchannel(VCHANNEL).payload("x");
    let body = body.txn(TxnContext::new(7, 1000)).build().unwrap();
    let orphan = world.soon(producer.append(body).await.unwrap()).await;
    let Err(AppendError::Refused(error)) = orphan else { panic!("{orphan:?}") };
    assert_eq!(error.code(), StreamingCode::TransactionExpired);
    let large = MessageBuilder::new(&DeleteMessageHeader::default()).vchannel(VCHANNEL);
    let large = large.payload("x".repeat(17 << 20)).build().unwrap();
    let large = world.soon(producer.append(large).await.unwrap()).await;
    let Err(AppendError::Refused(error)) = large else { panic!("{large:?}") };
    assert_eq!(error.code(), StreamingCode::Unrecoverable);
    world.soon(producer.append(insert(VCHANNEL, "fine")).await.unwrap()).await.expect("the stream lives on");
    world.end(client).await;
}

async fn closing_finishes_what_was_accepted(world: World) {
    let client = world.client().await;
    let producer = client.producer(VCHANNEL);
    let mut appends = Vec::new();
    for n in 0..200 {
        appends.push(world.soon(producer.append(insert(VCHANNEL, &n.to_string()))).await.unwrap());
    }
    assert!(world.soon(client.close()).await, "in time");
    for append in appends {
        world.soon(append).await.expect("accepted before the close");
    }
    let late = world.soon(producer.append(insert(VCHANNEL, "late"))).await;
    assert_eq!(late.unwrap_err(), AppendError::Closed { sent: false });
    let reader = world.client().await;
    let mut consumer = reader.consume(everything(VCHANNEL)).unwrap();
    assert_eq!(world.texts(&mut consumer, 200).await, numbers(0..200));
    world.end(reader).await;
}

async fn the_client_goes_on_at_the_next_term(world: World) {
    let client = world.client().await;
    let producer = client.producer(VCHANNEL);
    let mut consumer = client.consume(everything(PCHANNEL)).unwrap();
    let mut terms = Vec::new();
    for round in 0..3 {
        let mut appends = Vec::new();
        for n in 0..100 {
            let number = round * 100 + n;
            appends.push(world.soon(producer.append(insert(VCHANNEL, &number.to_string()))).await.unwrap());
            if n == 50 {
                terms.push(take_away(&world, &client).await);
            }
        }
        for append in appends {
            world.soon(append).await.expect("appended at one term or the next");
        }
        assert_eq!(world.texts(&mut consumer, 100).await, numbers(round * 100..round * 100 + 100));
    }
    assert!(terms.is_sorted_by(|a, b| a < b), "{terms:?}");
    world.end(client).await;
}

/// Closes the channel behind everybody's back; returns the term that is over.
async fn take_away(world: &World, client: &Client) -> i64 {
    let assigned = world.soon(client.wait_channel(PCHANNEL, SOON)).await.unwrap();
    let node = tonic::transport::Channel::from_shared(format!("http://{}", assigned.owner.address)).unwrap();
    let mut manager = StreamingNodeManagerServiceClient::new(node.connect().await.unwrap());
    let pchannel = Some(assigned.pchannel.to_proto());
    let mut request = Request::new(StreamingNodeManagerRemoveRequest { pchannel });
    set_destination(request.metadata_mut(), "by-dev", Some(assigned.owner.server_id));
    // One that is gone already was taken away before, and is on its way back.
    let _ = world.soon(manager.remove(request)).await;
    assigned.pchannel.term()
}

async fn a_reader_at_the_read_point_has_seen_what_was_acked(world: World) {
    let client = world.client().await;
    let producer = client.producer(VCHANNEL);
    let ticks = ConsumeOptions { time_ticks: true, ..everything(VCHANNEL) };
    let mut consumer = client.consume(ticks).unwrap();
    let mut last = TimeTick(0);
    for n in 0..20 {
        let acked = world.soon(producer.append(insert(VCHANNEL, &n.to_string())).await.unwrap()).await.unwrap();
        let point = world.soon(client.latest_time_tick(VCHANNEL)).await.unwrap();
        assert!(point >= acked.time_tick && point >= last, "{point:?} {acked:?} {last:?}");
        let of_all =
            world.soon(client.latest_time_tick(streaming_types::channel::to_physical(VCHANNEL))).await.unwrap();
        assert!(of_all >= acked.time_tick, "{of_all:?} {acked:?}");
        last = point;
        let mut seen = false;
        while consumer.progress().is_none_or(|progress| progress < point) {
            let delivery = world.next(&mut consumer).await;
            seen |= matches!(delivery, Delivery::Message(message) if message.id == acked.id);
        }
        assert!(seen, "message {n}");
    }
    world.soon(client.latest_time_tick("by-dev-rootcoord-dml_0_9v9")).await.expect("a vchannel where nothing happened");
    let nowhere = client.latest_time_tick("").await.unwrap_err();
    assert_eq!(nowhere.code(), "READ_POINT_INVALID_REQUEST");
    world.end(client).await;
}
