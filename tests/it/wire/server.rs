//! The processes that are spoken to, and what one says to them.

use std::path::Path;

use base64::{Engine, engine::general_purpose::STANDARD};
use prost::Message;
use streaming_proto::{
    messages,
    streaming::{
        AssignmentDiscoverResponse, ConsumeResponse, CreateProducerRequest, PChannelInfo, ProduceMessageRequest,
        ProduceMessageResponse, ProduceMessageResponseResult, ProduceRequest, ProduceResponse, StreamingError,
        StreamingNodeManagerAssignRequest, StreamingNodeManagerRemoveRequest, assignment_discover_response,
        consume_response, produce_message_response, produce_request, produce_response,
        streaming_node_manager_service_client::StreamingNodeManagerServiceClient,
    },
};
use tempfile::TempDir;
use tonic::{Request, transport::Channel};

use super::raw::{Call, LIMIT, Refusal, add_headers};
use crate::process::Role;

pub(super) const PRODUCE: &str = "/milvus.proto.streaming.StreamingNodeHandlerService/Produce";
pub(super) const CONSUME: &str = "/milvus.proto.streaming.StreamingNodeHandlerService/Consume";
pub(super) const DISCOVER: &str = "/milvus.proto.streaming.StreamingCoordAssignmentService/AssignmentDiscover";

/// The access modes of a pchannel.
pub(super) const READ_WRITE: i32 = 0;
pub(super) const READ_ONLY: i32 = 1;

/// Channels that the coordinator assigns. What else a test opens on the node is its own: no coordinator minds it.
pub(super) const CHANNELS: usize = 2;
/// Small, so that it is cheap to exceed.
pub(super) const MAX_MESSAGE: usize = 64 << 10;

/// One process with a coordinator and a node, and a connection to each.
pub(super) struct Server {
    pub(super) role: Role,
    pub(super) coord: Channel,
    pub(super) node: Node,
    /// The coordinator's server id.
    pub(super) coord_id: i64,
    _directory: TempDir,
}

/// A node, as those see it who open channels on it and use them.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) channel: Channel,
    pub(super) id: i64,
}

/// A connection to a process; an error if it does not listen.
pub(super) async fn dial(address: &str) -> anyhow::Result<Channel> {
    Ok(Channel::from_shared(format!("http://{address}"))?.connect().await?)
}

/// Starts `streaming standalone` on data under `directory`.
pub(super) fn standalone(directory: &Path) -> anyhow::Result<Role> {
    let channels = format!("rootCoord.dmlChannelNum={CHANNELS}");
    let size = format!("streaming.maxMessageSize={MAX_MESSAGE}B");
    let data = directory.join("data").display().to_string();
    Role::start("standalone", directory, &["--data".into(), data, "--set".into(), channels, "--set".into(), size])
}

impl Server {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let role = standalone(directory.path())?;
        let coord = dial(role.address("coordinator")).await?;
        let mut discover = Call::<AssignmentDiscoverResponse>::open(&coord, DISCOVER, &[]).await.expect("a stream");
        let first = discover.next().await.expect("an assignment").expect("no end").response;
        let Some(assignment_discover_response::Response::FullAssignment(first)) = first else { panic!("{first:?}") };
        let coord_id = first.version.expect("a version").global;
        let id = first.assignments[0].node.as_ref().expect("a node").server_id;
        let node = Node { channel: dial(role.address("node")).await?, id };
        Ok(Self { role, coord, node, coord_id, _directory: directory })
    }
}

impl Node {
    /// A call that is meant for this node.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(LIMIT);
        add_headers(request.metadata_mut(), &[("cluster", "by-dev"), ("serverid", &self.id.to_string())]);
        request
    }

    pub(super) fn manager(&self) -> StreamingNodeManagerServiceClient<Channel> {
        StreamingNodeManagerServiceClient::new(self.channel.clone())
    }

    pub(super) async fn assign(&self, pchannel: Option<PChannelInfo>) -> Result<(), Refusal> {
        let request = self.request(StreamingNodeManagerAssignRequest { pchannel });
        self.manager().assign(request).await.map(drop).map_err(|status| Refusal::of(&status))
    }

    pub(super) async fn remove(&self, pchannel: Option<PChannelInfo>) -> Result<(), Refusal> {
        let request = self.request(StreamingNodeManagerRemoveRequest { pchannel });
        self.manager().remove(request).await.map(drop).map_err(|status| Refusal::of(&status))
    }

    /// Opens a channel for reading and writing, as a coordinator would.
    pub(super) async fn open(&self, name: &str, term: i64) {
        self.assign(Some(pchannel(name, term, READ_WRITE))).await.expect("assigned");
    }

    /// A Produce stream that has been created.
    pub(super) async fn producer(&self, name: &str, term: i64) -> Call<ProduceResponse> {
        let header = create_header(&pchannel(name, term, READ_WRITE));
        let headers = [("create-producer", header.as_str())];
        let mut call = Call::<ProduceResponse>::open(&self.channel, PRODUCE, &headers).await.expect("opened");
        let first = call.next().await.expect("created").expect("no end").response;
        assert!(matches!(first, Some(produce_response::Response::Create(_))), "{first:?}");
        call
    }

    /// A Consume stream whose own creation is done; nothing was asked of it yet.
    pub(super) async fn consumer(&self, name: &str, term: i64) -> Call<ConsumeResponse> {
        let header = create_header(&pchannel(name, term, READ_WRITE));
        let headers = [("create-consumer", header.as_str())];
        let mut call = Call::<ConsumeResponse>::open(&self.channel, CONSUME, &headers).await.expect("opened");
        let first = call.next().await.expect("created").expect("no end").response;
        assert!(matches!(first, Some(consume_response::Response::Create(_))), "{first:?}");
        call
    }
}

pub(super) fn pchannel(name: &str, term: i64, access_mode: i32) -> PChannelInfo {
    PChannelInfo { name: name.to_owned(), term, access_mode }
}

/// What stands in `create-producer` and `create-consumer`, whose messages are alike.
pub(super) fn create_header(pchannel: &PChannelInfo) -> String {
    STANDARD.encode(CreateProducerRequest { pchannel: Some(pchannel.clone()) }.encode_to_vec())
}

/// The least that an insert is: a version, a type, a header, a vchannel and a body.
pub(super) fn insert(pchannel: &str, payload: &str) -> messages::Message {
    let vchannel = format!("{pchannel}_1v0");
    let properties = [("_v", "1"), ("_t", "2"), ("_h", "CAESBwgCEAoYgAg="), ("_vc", &vchannel)];
    messages::Message { payload: payload.to_owned().into(), properties: properties.into_iter().collect() }
}

/// A produce request.
pub(super) fn produce(request_id: i64, message: Option<messages::Message>) -> ProduceRequest {
    let request = produce_request::Request::Produce(ProduceMessageRequest { request_id, message });
    ProduceRequest { request: Some(request) }
}

/// An answer in band: a result, or an error.
pub(super) type Answer = Result<ProduceMessageResponseResult, StreamingError>;

/// What a Produce stream said, in a form that tests can match on.
#[derive(Debug)]
pub(super) enum Said {
    Answer(i64, Answer),
    Close,
    /// The end, with OK or with an error.
    End(Result<(), Refusal>),
}

/// The next word of a Produce stream. A response that says nothing would make clients panic.
pub(super) async fn said(call: &mut Call<ProduceResponse>) -> Said {
    loop {
        let response = match call.next().await {
            Err(refusal) => return Said::End(Err(refusal)),
            Ok(None) => return Said::End(Ok(())),
            Ok(Some(response)) => response.response,
        };
        match response.expect("every response says something") {
            produce_response::Response::Create(create) => panic!("a second create: {create:?}"),
            // How fast one may be is not what these tests are about.
            produce_response::Response::RateLimit(_) => {}
            produce_response::Response::Close(_) => return Said::Close,
            produce_response::Response::Produce(ProduceMessageResponse { request_id, response }) => {
                let answer = match response.expect("a result or an error") {
                    produce_message_response::Response::Result(result) => Ok(result),
                    produce_message_response::Response::Error(error) => Err(error),
                };
                return Said::Answer(request_id, answer);
            }
        }
    }
}

/// Sends one message and takes its answer.
pub(super) async fn append(call: &mut Call<ProduceResponse>, message: messages::Message) -> Answer {
    call.send(&produce(4711, Some(message))).await;
    match said(call).await {
        Said::Answer(4711, answer) => answer,
        other => panic!("no answer: {other:?}"),
    }
}
