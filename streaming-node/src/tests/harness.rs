//! A node with its peers, and stubs that send exactly what a test says.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use streaming_proto::{
    common,
    messages::{self, InsertMessageHeader},
    streaming::{
        ConsumeRequest, ConsumeResponse, CreateVChannelConsumerRequest, ProduceMessageRequest,
        ProduceMessageResponseResult, ProduceRequest, ProduceResponse, StreamingError as WireError,
        StreamingNodeManagerAssignRequest, StreamingNodeManagerCollectStatusRequest, StreamingNodeManagerRemoveRequest,
        StreamingNodeWalMetrics, consume_request, consume_response, produce_message_response, produce_request,
        produce_response, streaming_node_handler_service_client::StreamingNodeHandlerServiceClient,
        streaming_node_manager_service_client::StreamingNodeManagerServiceClient,
    },
};
use streaming_types::{
    DeliverFilter, DeliverPolicy, ImmutableMessage, MessageBuilder, MessageId, MessageType, PChannel, StreamingCode,
    StreamingError, TimeTick,
    metadata::{set_create_consumer, set_create_producer, set_destination},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming, transport::Channel};
use woodpecker_base::{
    clock::Clock,
    health::HealthReporter,
    metadata::{MemoryStore, MetadataStore},
    net::Listener,
    random::Random,
    tasks::Tasks,
};
use woodpecker_store::{
    backend::Backend,
    memory::{MemoryBackend, MemoryMedium},
};

use super::hanging::{Hanging, Writing};
use crate::{
    AckError, BroadcastAcks, IdError, IdSource, Memory, Node, Parts, Settings, TimestampError, TimestampSource, Usage,
    tenure::Tenure,
    wal::{allowance::Allowance, buffer::NodeBudget, open::Opener},
};

pub const PCHANNEL: &str = "by-dev-rootcoord-dml_0";
pub const VCHANNEL: &str = "by-dev-rootcoord-dml_0_1v0";

/// A root coordinator that a test can silence.
#[derive(Debug)]
pub struct Timestamps {
    last: AtomicU64,
    /// How far its clock is from ours, in milliseconds.
    offset: AtomicI64,
    answers: watch::Sender<bool>,
    clock: Clock,
}

impl Timestamps {
    fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self { last: AtomicU64::new(0), offset: AtomicI64::new(0), answers: watch::Sender::new(true), clock })
    }

    /// As if another one led, whose clock is elsewhere.
    pub fn jump(&self, by_ms: i64) {
        self.offset.fetch_add(by_ms, Ordering::SeqCst);
        self.last.store(0, Ordering::SeqCst);
    }

    pub fn answer(&self, answers: bool) {
        self.answers.send_replace(answers);
    }
}

#[async_trait]
impl TimestampSource for Timestamps {
    async fn allocate(&self, count: u32) -> Result<Range<u64>, TimestampError> {
        let _ = self.answers.subscribe().wait_for(|answers| *answers).await;
        let wall_ms = self.clock.wall_ms().saturating_add_signed(self.offset.load(Ordering::SeqCst));
        let now = TimeTick::new(wall_ms, 0).0;
        let mut first = 0;
        let _ = self.last.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |last| {
            first = now.max(last + 1);
            Some(first + u64::from(count) - 1)
        });
        Ok(first..first + u64::from(count))
    }
}

/// Ids from 1000 on.
#[derive(Debug, Default)]
pub struct Ids(AtomicI64);

#[async_trait]
impl IdSource for Ids {
    async fn allocate_ids(&self, count: u32) -> Result<Range<i64>, IdError> {
        let first = 1000 + self.0.fetch_add(count.into(), Ordering::SeqCst);
        Ok(first..first + i64::from(count))
    }
}

/// A broadcaster that a test can silence.
#[derive(Debug)]
pub struct Acks {
    pub asked: Mutex<Vec<MessageId>>,
    pub acked: Mutex<Vec<MessageId>>,
    pub answers: watch::Sender<bool>,
}

#[async_trait]
impl BroadcastAcks for Acks {
    async fn ack(&self, message: ImmutableMessage) -> Result<(), AckError> {
        self.asked.lock().unwrap().push(message.id);
        let _ = self.answers.subscribe().wait_for(|answers| *answers).await;
        self.acked.lock().unwrap().push(message.id);
        Ok(())
    }
}

/// What outlives a node.
pub struct World {
    pub clock: Clock,
    pub metadata: MemoryStore,
    pub medium: MemoryMedium,
    pub timestamps: Arc<Timestamps>,
    pub ids: Arc<Ids>,
    pub acks: Arc<Acks>,
    /// Whether storage answers nobody.
    pub hung: watch::Sender<bool>,
    /// Whether what it holds cannot be read.
    pub unreadable: watch::Sender<bool>,
    pub writing: watch::Sender<Writing>,
    /// Whether nodes are set to let consumers stand still.
    pub paused: watch::Sender<bool>,
    /// Memory in use, in percent.
    pub memory_percent: Arc<AtomicU64>,
}

impl World {
    pub fn new() -> Self {
        let clock = Clock::system();
        Self {
            metadata: MemoryStore::new(clock.clone()),
            medium: MemoryMedium::new(),
            timestamps: Timestamps::new(clock.clone()),
            ids: Arc::default(),
            hung: watch::Sender::new(false),
            unreadable: watch::Sender::new(false),
            writing: watch::Sender::new(Writing::Works),
            paused: watch::Sender::new(false),
            memory_percent: Arc::new(AtomicU64::new(10)),
            acks: Arc::new(Acks {
                asked: Mutex::default(),
                acked: Mutex::default(),
                answers: watch::Sender::new(true),
            }),
            clock,
        }
    }

    fn memory(&self) -> Memory {
        let percent = Arc::clone(&self.memory_percent);
        Memory::from_fn(move || Some(Usage { used: percent.load(Ordering::SeqCst) << 20, total: 100 << 20 }))
    }

    /// A client of the logs, as another process would have one.
    pub fn logs(&self, tasks: &Tasks) -> woodpecker::Client {
        let inner: Arc<dyn Backend> = Arc::new(MemoryBackend::new(self.medium.clone(), tasks));
        let backend: Arc<dyn Backend> = Arc::new(Hanging {
            inner,
            hung: self.hung.subscribe(),
            unreadable: self.unreadable.subscribe(),
            writing: self.writing.subscribe(),
        });
        let settings = woodpecker::Settings {
            metadata_prefix: "woodpecker".to_owned(),
            backend: backend.name().to_owned(),
            segment_bytes: 1 << 20,
            segment_age: Duration::from_secs(600),
            in_flight_bytes: 16 << 20,
            read_ahead_bytes: woodpecker::Settings::READ_AHEAD_BYTES,
        };
        let backends = BTreeMap::from([(backend.name().to_owned(), backend)]);
        let metadata: Arc<dyn MetadataStore> = Arc::new(self.metadata.clone());
        woodpecker::Client::new(settings, metadata, backends, self.clock.clone(), Random::seeded(3), tasks.clone())
    }

    /// What opens WALs as a process whose storage dies with `storage`, and whose tasks are `tasks`.
    pub fn opener(&self, settings: Settings, storage: &Tasks, tasks: &Tasks) -> Opener {
        Opener {
            buffers: Arc::new(NodeBudget::new(settings.node_buffer_bytes)),
            allowance: Allowance::new(settings.node_held_bytes),
            flow: watch::channel(settings.flow.clone()).1,
            settings: Arc::new(settings),
            metadata: Arc::new(self.metadata.clone()),
            logs: self.logs(storage),
            timestamps: Arc::clone(&self.timestamps) as Arc<dyn TimestampSource>,
            ids: Arc::clone(&self.ids) as Arc<dyn IdSource>,
            acks: Arc::clone(&self.acks) as Arc<dyn BroadcastAcks>,
            memory: self.memory(),
            growth: Arc::default(),
            tenure: Tenure::new(self.clock.clone()),
            paused: watch::Sender::new(false),
            clock: self.clock.clone(),
            random: Random::seeded(5),
            tasks: tasks.clone(),
        }
    }

    pub async fn node(&self, server_id: i64) -> TestNode {
        self.node_with(server_id, Settings::default()).await
    }

    pub async fn node_with(&self, server_id: i64, settings: Settings) -> TestNode {
        let tasks = Tasks::new();
        let logs = self.logs(&tasks);
        let metadata: Arc<dyn MetadataStore> = Arc::new(self.metadata.clone());
        let parts = Parts {
            metadata,
            logs: logs.clone(),
            timestamps: Arc::clone(&self.timestamps) as Arc<dyn TimestampSource>,
            ids: Arc::clone(&self.ids) as Arc<dyn IdSource>,
            acks: Arc::clone(&self.acks) as Arc<dyn BroadcastAcks>,
            memory: self.memory(),
            clock: self.clock.clone(),
            random: Random::seeded(5),
            health: HealthReporter::default(),
            flow: watch::channel(settings.flow.clone()).1,
            paused: self.paused.subscribe(),
        };
        let node = Arc::new(Node::start(settings, parts).await.unwrap());
        let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let address = listener.address().to_owned();
        let server = crate::server().add_routes(node.routes()).serve_with_incoming(listener);
        tasks.spawn_until_stopped(async { server.await.unwrap() });
        assert_eq!(node.server_id(), server_id, "ids are given in order");
        node.register(&address).await.unwrap();
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        TestNode { node, server_id, channel, logs, tasks, clock: self.clock.clone() }
    }

    /// A node that serves [`PCHANNEL`] at term 1.
    pub async fn serving(&self) -> TestNode {
        let node = self.node(1).await;
        node.assign(&rw(1)).await.unwrap();
        node
    }
}

/// What `look` finds, which it does within ten seconds.
pub async fn eventually<T>(world: &World, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..500 {
        if let Some(found) = look().await {
            return found;
        }
        world.clock.sleep(Duration::from_millis(20)).await;
    }
    panic!("{what} did not happen");
}

pub fn rw(term: i64) -> PChannel {
    PChannel::read_write(PCHANNEL, term).unwrap()
}

pub fn ro(term: i64) -> PChannel {
    PChannel::read_only(PCHANNEL, term).unwrap()
}

/// A node and a connection to it.
pub struct TestNode {
    pub node: Arc<Node>,
    pub server_id: i64,
    pub channel: Channel,
    pub logs: woodpecker::Client,
    tasks: Tasks,
    clock: Clock,
}

impl Drop for TestNode {
    /// As a crash: nothing is closed.
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

impl TestNode {
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        set_destination(request.metadata_mut(), "by-dev", Some(self.server_id));
        request.set_timeout(Duration::from_secs(20));
        request
    }

    pub fn manager(&self) -> StreamingNodeManagerServiceClient<Channel> {
        StreamingNodeManagerServiceClient::new(self.channel.clone())
    }

    pub fn handler(&self) -> StreamingNodeHandlerServiceClient<Channel> {
        StreamingNodeHandlerServiceClient::new(self.channel.clone()).max_decoding_message_size(256 << 20)
    }

    pub async fn assign(&self, pchannel: &PChannel) -> Result<(), StreamingError> {
        let request = StreamingNodeManagerAssignRequest { pchannel: Some(pchannel.to_proto()) };
        self.manager().assign(self.request(request)).await.map(drop).map_err(|status| error(&status))
    }

    pub async fn remove(&self, pchannel: &PChannel) -> Result<(), StreamingError> {
        let request = StreamingNodeManagerRemoveRequest { pchannel: Some(pchannel.to_proto()) };
        self.manager().remove(self.request(request)).await.map(drop).map_err(|status| error(&status))
    }

    pub async fn status(&self) -> Vec<StreamingNodeWalMetrics> {
        self.try_status().await.unwrap()
    }

    pub async fn try_status(&self) -> Result<Vec<StreamingNodeWalMetrics>, StreamingError> {
        let request = self.request(StreamingNodeManagerCollectStatusRequest {});
        let status = self.manager().collect_status(request).await.map_err(|status| error(&status))?;
        Ok(status.into_inner().metrics.unwrap().wals)
    }

    pub async fn produce(&self, pchannel: &PChannel) -> Result<Produce, Status> {
        let (requests, sent) = mpsc::channel(1024);
        let mut request = Request::new(ReceiverStream::new(sent));
        set_destination(request.metadata_mut(), "by-dev", Some(self.server_id));
        set_create_producer(request.metadata_mut(), pchannel);
        let responses = self.handler().produce(request).await?.into_inner();
        Ok(Produce { requests: Some(requests), responses, next_id: 1, clock: self.clock.clone() })
    }

    /// A producer that has read its create.
    pub async fn producer(&self, pchannel: &PChannel) -> Produce {
        let mut produce = self.produce(pchannel).await.unwrap();
        assert!(matches!(produce.next().await, Some(Ok(produce_response::Response::Create(_)))));
        produce
    }

    pub async fn consume(&self, pchannel: &PChannel) -> Result<Consume, Status> {
        let (requests, sent) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(sent));
        set_destination(request.metadata_mut(), "by-dev", Some(self.server_id));
        set_create_consumer(request.metadata_mut(), pchannel);
        let responses = self.handler().consume(request).await?.into_inner();
        Ok(Consume { requests: Some(requests), responses, clock: self.clock.clone() })
    }

    /// A consumer that has read both of its creates.
    pub async fn consumer(&self, pchannel: &PChannel, policy: DeliverPolicy, filters: &[DeliverFilter]) -> Consume {
        let mut consume = self.consume(pchannel).await.unwrap();
        consume.ask("", policy, filters).await;
        consume
    }
}

/// The streaming error in a status, which has to be shaped as the protocol says.
pub fn error(status: &Status) -> StreamingError {
    assert_eq!(status.message(), "", "{status:?}");
    assert_ne!(status.code(), tonic::Code::Unavailable, "channels retry it by themselves");
    StreamingError::check_status(status).unwrap_err()
}

pub fn code(status: &Status) -> StreamingCode {
    error(status).code()
}

/// The code of an answer that is an error.
pub fn code_of(result: Result<ProduceMessageResponseResult, WireError>) -> Option<StreamingCode> {
    result.err().map(|error| error.code())
}

pub fn insert(vchannel: &str, payload: &str) -> messages::Message {
    let header = InsertMessageHeader { collection_id: 1, ..InsertMessageHeader::default() };
    let message = MessageBuilder::new(&header).vchannel(vchannel).payload(payload.to_owned());
    message.property("user", payload).build().unwrap().into()
}

/// The requests and responses of a Produce stream.
pub struct Produce {
    requests: Option<mpsc::Sender<ProduceRequest>>,
    responses: Streaming<ProduceResponse>,
    next_id: i64,
    clock: Clock,
}

impl Produce {
    pub async fn send(&mut self, message: messages::Message) -> i64 {
        let request_id = self.next_id;
        self.next_id += 1;
        let request = ProduceMessageRequest { request_id, message: Some(message) };
        self.send_raw(Some(produce_request::Request::Produce(request))).await;
        request_id
    }

    pub async fn send_raw(&self, request: Option<produce_request::Request>) {
        let _ = self.requests.as_ref().unwrap().send(ProduceRequest { request }).await;
    }

    pub fn half_close(&mut self) {
        self.requests = None;
    }

    pub async fn next(&mut self) -> Option<Result<produce_response::Response, Status>> {
        let next = self.clock.timeout(Duration::from_secs(10), self.responses.message()).await;
        let next = next.expect("a response within ten seconds").transpose()?;
        Some(next.map(|response| response.response.expect("every response says something")))
    }

    /// The next answer to a request; neither result nor error would make clients panic.
    pub async fn answer(&mut self) -> (i64, Result<ProduceMessageResponseResult, WireError>) {
        let Some(Ok(produce_response::Response::Produce(answer))) = self.next().await else { panic!("no answer") };
        let result = match answer.response.expect("a result or an error") {
            produce_message_response::Response::Result(result) => Ok(result),
            produce_message_response::Response::Error(error) => Err(error),
        };
        (answer.request_id, result)
    }

    pub async fn append(&mut self, message: messages::Message) -> Result<ProduceMessageResponseResult, WireError> {
        let request_id = self.send(message).await;
        let (answered, result) = self.answer().await;
        assert_eq!(answered, request_id);
        result
    }
}

/// The requests and responses of a Consume stream.
pub struct Consume {
    requests: Option<mpsc::Sender<ConsumeRequest>>,
    responses: Streaming<ConsumeResponse>,
    clock: Clock,
}

impl Consume {
    pub async fn send_raw(&self, request: Option<consume_request::Request>) {
        let _ = self.requests.as_ref().unwrap().send(ConsumeRequest { request }).await;
    }

    /// As [`Consume::ask`], without filters; a brave consumer is not paused.
    pub async fn ask_with(&mut self, vchannel: &str, policy: DeliverPolicy, brave: bool) {
        assert!(matches!(self.next().await, Some(Ok(consume_response::Response::Create(_)))));
        let request = CreateVChannelConsumerRequest {
            vchannel: vchannel.to_owned(),
            deliver_policy: Some(policy.to_proto()),
            ignore_pause_consumption: brave,
            ..CreateVChannelConsumerRequest::default()
        };
        self.send_raw(Some(consume_request::Request::CreateVchannelConsumer(request))).await;
        assert!(matches!(self.next().await, Some(Ok(consume_response::Response::CreateVchannel(_)))));
    }

    pub async fn create(&self, vchannel: &str, policy: DeliverPolicy, filters: &[DeliverFilter]) {
        let request = CreateVChannelConsumerRequest {
            vchannel: vchannel.to_owned(),
            deliver_policy: Some(policy.to_proto()),
            deliver_filters: filters.iter().map(DeliverFilter::to_proto).collect(),
            ..CreateVChannelConsumerRequest::default()
        };
        self.send_raw(Some(consume_request::Request::CreateVchannelConsumer(request))).await;
    }

    pub async fn ask(&mut self, vchannel: &str, policy: DeliverPolicy, filters: &[DeliverFilter]) {
        assert!(matches!(self.next().await, Some(Ok(consume_response::Response::Create(_)))));
        self.create(vchannel, policy, filters).await;
        assert!(matches!(self.next().await, Some(Ok(consume_response::Response::CreateVchannel(_)))));
    }

    pub fn half_close(&mut self) {
        self.requests = None;
    }

    pub async fn next(&mut self) -> Option<Result<consume_response::Response, Status>> {
        let next = self.clock.timeout(Duration::from_secs(10), self.responses.message()).await;
        let next = next.expect("a response within ten seconds").transpose()?;
        Some(next.map(|response| response.response.expect("every response says something")))
    }

    /// The next message or tick; each carries what clients resume from.
    pub async fn any(&mut self) -> ImmutableMessage {
        let Some(Ok(consume_response::Response::Consume(consumed))) = self.next().await else { panic!("no message") };
        assert_eq!(consumed.consumer_id, 1);
        let message: common::ImmutableMessage = consumed.message.unwrap();
        let message = ImmutableMessage::try_from(message).unwrap();
        message.time_tick().unwrap();
        message.last_confirmed().unwrap();
        message
    }

    /// The next message that is no tick.
    pub async fn message(&mut self) -> ImmutableMessage {
        loop {
            let message = self.any().await;
            if message.properties.message_type().unwrap() != MessageType::TimeTick {
                return message;
            }
        }
    }

    pub async fn payloads(&mut self, count: usize) -> Vec<String> {
        let mut payloads = Vec::with_capacity(count);
        for _ in 0..count {
            payloads.push(text(&self.message().await));
        }
        payloads
    }
}

pub fn text(message: &ImmutableMessage) -> String {
    String::from_utf8(message.payload.to_vec()).unwrap()
}

pub fn id(result: &ProduceMessageResponseResult) -> MessageId {
    MessageId::from_proto(result.id.as_ref()).unwrap()
}
