//! A node that serves one log, well or as badly as a test wants.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use futures::stream::BoxStream;
use streaming_proto::streaming::{
    CloseConsumerResponse, CloseProducerResponse, ConsumeMessageReponse, ConsumeRequest, ConsumeResponse,
    CreateConsumerResponse, CreateProducerResponse, CreateVChannelConsumerRequest, CreateVChannelConsumerResponse,
    GetReplicateCheckpointRequest, GetReplicateCheckpointResponse, ProduceMessageRequest, ProduceMessageResponse,
    ProduceMessageResponseResult, ProduceRequest, ProduceResponse, consume_request, consume_response,
    create_v_channel_consumer_response,
    produce_message_response::Response as Answer,
    produce_request, produce_response,
    streaming_node_handler_service_server::{StreamingNodeHandlerService, StreamingNodeHandlerServiceServer},
};
use streaming_types::{
    DeliverFilter, DeliverPolicy, ImmutableMessage, Message, StreamingError, TxnContext, metadata, properties::key,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};
use woodpecker_base::{net::Listener, tasks::Tasks};

use super::{Process, Wal, lock};

pub struct Node {
    pub id: i64,
    pub address: String,
    pub state: Arc<State>,
    process: Process,
}

/// What happens to a stream that is opened. The default is to serve it.
pub enum OnOpen {
    Refuse(StreamingError),
    /// Nothing is ever answered.
    Silent,
    /// The first answer is another one than `create`.
    WrongFirst,
    /// Consume: `create` is followed by something else than `create_vchannel`.
    WrongSecond,
}

/// What happens to a request.
pub enum OnProduce {
    Append,
    Error(StreamingError),
    /// Appended, but the stream breaks before the answer.
    AppendAndBreak,
    Break,
    /// Neither appended nor answered.
    Ignore,
    /// Appended and answered with this.
    Answer(Option<Answer>),
    /// Error, and the node closes the stream.
    Fence,
}

type ProduceScript = Box<dyn FnMut(&Message) -> OnProduce + Send>;
/// Called for each message before it is sent; `true` breaks the stream instead.
type ConsumeScript = Box<dyn FnMut(&ImmutableMessage) -> bool + Send>;

pub struct State {
    wal: Arc<Wal>,
    tasks: Tasks,
    pub on_open: Mutex<VecDeque<OnOpen>>,
    on_produce: Mutex<ProduceScript>,
    on_consume: Mutex<ConsumeScript>,
    pub log: Mutex<Seen>,
}

#[derive(Default)]
pub struct Seen {
    pub produce_opened: usize,
    pub consume_opened: usize,
    /// `cluster` and `serverid` of each stream.
    pub metadata: Vec<(Option<String>, Option<String>)>,
    /// Term in the create of each stream.
    pub terms: Vec<i64>,
    /// Payloads of produce requests in order of arrival, with their request ids.
    pub requests: Vec<(i64, String)>,
    pub consumers: Vec<CreateVChannelConsumerRequest>,
    /// Messages handed to HTTP/2 for consumers.
    pub delivered: usize,
    pub closed: usize,
    pub half_closed: usize,
}

impl Node {
    pub async fn start(id: i64, wal: Arc<Wal>) -> Self {
        let process = Process::start();
        let (address_out, address) = tokio::sync::oneshot::channel();
        let state = Arc::new(State {
            wal,
            tasks: Tasks::new(),
            on_open: Mutex::default(),
            on_produce: Mutex::new(Box::new(|_| OnProduce::Append)),
            on_consume: Mutex::new(Box::new(|_| false)),
            log: Mutex::default(),
        });
        let service =
            StreamingNodeHandlerServiceServer::new(Service(state.clone())).max_decoding_message_size(64 << 20);
        process.spawn(async move {
            let listener = Listener::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
            address_out.send(listener.address().to_owned()).unwrap();
            let mut server = tonic::transport::Server::builder()
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(4 << 20);
            server.add_service(service).serve_with_incoming(listener).await.unwrap();
        });
        Self { id, address: address.await.unwrap(), state, process }
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Forgets what streams to come were to meet.
    pub fn open_normally(&self) {
        lock(&self.state.on_open).clear();
    }

    pub fn on_open(&self, action: OnOpen) {
        lock(&self.state.on_open).push_back(action);
    }

    pub fn on_produce(&self, script: impl FnMut(&Message) -> OnProduce + Send + 'static) {
        *lock(&self.state.on_produce) = Box::new(script);
    }

    pub fn on_consume(&self, script: impl FnMut(&ImmutableMessage) -> bool + Send + 'static) {
        *lock(&self.state.on_consume) = Box::new(script);
    }

    pub fn seen<T>(&self, read: impl FnOnce(&Seen) -> T) -> T {
        read(&lock(&self.state.log))
    }
}

impl State {
    fn opened(&self, metadata: &MetadataMap, term: i64) -> Option<OnOpen> {
        let text = |key| metadata.get(key).map(|value| value.to_str().unwrap().to_owned());
        let mut log = lock(&self.log);
        log.metadata.push((text("cluster"), text("serverid")));
        log.terms.push(term);
        drop(log);
        lock(&self.on_open).pop_front()
    }
}

struct Service(Arc<State>);

type Out<T> = mpsc::Sender<Result<T, Status>>;

#[tonic::async_trait]
impl StreamingNodeHandlerService for Service {
    type ProduceStream = BoxStream<'static, Result<ProduceResponse, Status>>;
    type ConsumeStream = BoxStream<'static, Result<ConsumeResponse, Status>>;

    async fn produce(
        &self,
        request: Request<Streaming<ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStream>, Status> {
        lock(&self.0.log).produce_opened += 1;
        let pchannel = metadata::create_producer(request.metadata())?;
        let (responses, out) = mpsc::channel(1024);
        let create = produce_response::Response::Create(CreateProducerResponse::default());
        let close = produce_response::Response::Close(CloseProducerResponse {});
        let first = match self.0.opened(request.metadata(), pchannel.term()) {
            Some(OnOpen::Refuse(error)) => return Err(error.into()),
            Some(OnOpen::Silent) => return Ok(Response::new(Box::pin(futures::stream::pending()))),
            Some(OnOpen::WrongFirst | OnOpen::WrongSecond) => close,
            None => create,
        };
        responses.send(Ok(ProduceResponse { response: Some(first) })).await.unwrap();
        self.0.tasks.spawn(serve_produce(self.0.clone(), request.into_inner(), responses));
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }

    async fn consume(
        &self,
        request: Request<Streaming<ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        lock(&self.0.log).consume_opened += 1;
        let pchannel = metadata::create_consumer(request.metadata())?;
        // One message at a time, so that what is `delivered` has really left for the connection.
        let (responses, out) = mpsc::channel(1);
        let wrong = match self.0.opened(request.metadata(), pchannel.term()) {
            Some(OnOpen::Refuse(error)) => return Err(error.into()),
            Some(OnOpen::Silent) => return Ok(Response::new(Box::pin(futures::stream::pending()))),
            other => other,
        };
        self.0.tasks.spawn(serve_consume(self.0.clone(), request.into_inner(), responses, wrong));
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }

    async fn get_replicate_checkpoint(
        &self,
        _: Request<GetReplicateCheckpointRequest>,
    ) -> Result<Response<GetReplicateCheckpointResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }
}

async fn serve_produce(state: Arc<State>, mut requests: Streaming<ProduceRequest>, responses: Out<ProduceResponse>) {
    loop {
        match requests.message().await {
            Ok(Some(ProduceRequest { request: Some(produce_request::Request::Produce(produce)) })) => {
                if !answer(&state, produce, &responses).await {
                    let _ = responses.send(Err(Status::unknown("the stream broke"))).await;
                    return;
                }
            }
            Ok(Some(ProduceRequest { request: Some(produce_request::Request::Close(_)) })) => {
                lock(&state.log).closed += 1;
            }
            Ok(Some(_)) => {}
            Ok(None) => {
                lock(&state.log).half_closed += 1;
                send(&responses, produce_response::Response::Close(CloseProducerResponse {})).await;
                return;
            }
            Err(_) => return,
        }
    }
}

async fn send(responses: &Out<ProduceResponse>, response: produce_response::Response) -> bool {
    responses.send(Ok(ProduceResponse { response: Some(response) })).await.is_ok()
}

/// `false` breaks the stream.
async fn answer(state: &State, produce: ProduceMessageRequest, responses: &Out<ProduceResponse>) -> bool {
    let message = Message::from(produce.message.unwrap());
    let payload = String::from_utf8_lossy(&message.payload[..message.payload.len().min(64)]).into_owned();
    lock(&state.log).requests.push((produce.request_id, payload));
    let action = lock(&state.on_produce)(&message);
    let appended = |message| {
        let message = state.wal.append(message);
        Answer::Result(ProduceMessageResponseResult {
            id: Some(message.id.to_proto()),
            timetick: message.time_tick().unwrap().0,
            last_confirmed_id: Some(message.last_confirmed().unwrap().to_proto()),
            txn_context: message.properties.txn().unwrap().map(TxnContext::to_proto),
            ..Default::default()
        })
    };
    let (response, then_close) = match action {
        OnProduce::Append => (Some(appended(message)), false),
        OnProduce::Error(error) => (Some(Answer::Error(error.to_proto())), false),
        OnProduce::Fence => (Some(Answer::Error(StreamingError::channel_fenced("c").to_proto())), true),
        OnProduce::AppendAndBreak => {
            appended(message);
            return false;
        }
        OnProduce::Break => return false,
        OnProduce::Ignore => return true,
        OnProduce::Answer(response) => {
            appended(message);
            (response, false)
        }
    };
    let response = ProduceMessageResponse { request_id: produce.request_id, response };
    let sent = send(responses, produce_response::Response::Produce(response)).await;
    if then_close {
        send(responses, produce_response::Response::Close(CloseProducerResponse {})).await;
    }
    sent && !then_close
}

async fn serve_consume(
    state: Arc<State>,
    mut requests: Streaming<ConsumeRequest>,
    responses: Out<ConsumeResponse>,
    wrong: Option<OnOpen>,
) {
    use consume_response::Response as Arm;
    let send = async |response| responses.send(Ok(ConsumeResponse { response: Some(response) })).await.is_ok();
    let create = || Arm::Create(CreateConsumerResponse::default());
    let close = || Arm::Close(CloseConsumerResponse {});
    send(if matches!(wrong, Some(OnOpen::WrongFirst)) { close() } else { create() }).await;
    let Ok(Some(ConsumeRequest { request: Some(consume_request::Request::CreateVchannelConsumer(wanted)) })) =
        requests.message().await
    else {
        return;
    };
    lock(&state.log).consumers.push(wanted.clone());
    let id = create_v_channel_consumer_response::Response::ConsumerId(1);
    let created = Arm::CreateVchannel(CreateVChannelConsumerResponse { response: Some(id) });
    send(if matches!(wrong, Some(OnOpen::WrongSecond)) { create() } else { created }).await;

    let mut next = match DeliverPolicy::from_proto(wanted.deliver_policy.as_ref()).unwrap() {
        DeliverPolicy::All => 0,
        DeliverPolicy::Latest => state.wal.len(),
        DeliverPolicy::StartFrom(id) => usize::try_from(id.entry).unwrap(),
        DeliverPolicy::StartAfter(id) => usize::try_from(id.entry).unwrap() + 1,
    };
    let first = next;
    let filters: Vec<_> =
        wanted.deliver_filters.iter().map(|filter| DeliverFilter::try_from(filter).unwrap()).collect();
    let mut length = state.wal.watch();
    loop {
        while let Some(message) = state.wal.get(next) {
            next += 1;
            // A transaction is delivered as a whole or not at all: its commit decides, and so does a start behind its begin.
            let decides = if message.properties.contains(key::TXN) {
                state.wal.commit_of(next - 1, first)
            } else {
                Some(message.clone())
            };
            if !decides.is_some_and(|decides| passes(&wanted.vchannel, &filters, &decides)) {
                continue;
            }
            if lock(&state.on_consume)(&message) {
                let _ = responses.send(Err(Status::unknown("the stream broke"))).await;
                return;
            }
            if !send(Arm::Consume(ConsumeMessageReponse { consumer_id: 1, message: Some(message.into()) })).await {
                return;
            }
            lock(&state.log).delivered += 1;
        }
        tokio::select! {
            _ = length.changed() => {}
            request = requests.message() => match request {
                Ok(Some(_)) => lock(&state.log).closed += 1,
                Ok(None) => {
                    lock(&state.log).half_closed += 1;
                    send(close()).await;
                    return;
                }
                Err(_) => return,
            },
        }
    }
}

fn passes(vchannel: &str, filters: &[DeliverFilter], message: &ImmutableMessage) -> bool {
    let other = message.properties.vchannel().is_some_and(|own| !vchannel.is_empty() && own != vchannel);
    // What a test made unreadable is sent as it is.
    let (Ok(message_type), Ok(time_tick)) = (message.properties.message_type(), message.time_tick()) else {
        return true;
    };
    !other && filters.iter().all(|filter| filter.passes(message_type, false, time_tick))
}
