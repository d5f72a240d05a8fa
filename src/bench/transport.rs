//! gRPC by itself: the requests and answers of the stream service between a client and a server that do nothing with them.
//! What goes through it cannot be faster.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use bytes::Bytes;
use futures::{StreamExt, future::try_join_all, stream::BoxStream};
use streaming_proto::streaming::{
    ConsumeRequest, ConsumeResponse, GetReplicateCheckpointRequest, GetReplicateCheckpointResponse,
    ProduceMessageRequest, ProduceMessageResponse, ProduceMessageResponseResult, ProduceRequest, ProduceResponse,
    produce_message_response, produce_request, produce_response,
    streaming_node_handler_service_client::StreamingNodeHandlerServiceClient,
    streaming_node_handler_service_server::{StreamingNodeHandlerService, StreamingNodeHandlerServiceServer},
};
use streaming_types::MessageId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::Endpoint};
use woodpecker_base::{
    clock::Clock,
    net::{Dialed, Listener, tcp_connector},
    tasks::Tasks,
};

use super::{
    Plan, SMALL,
    latency::Rates,
    stream::{PRODUCERS, SMALL_FACTOR, SMALL_IN_FLIGHT},
};
use crate::verbs::line_message;

/// A server and a client of it, over loopback.
pub(super) struct Transport {
    plan: Plan,
    clock: Clock,
    client: StreamingNodeHandlerServiceClient<Dialed>,
    tasks: Tasks,
}

impl Transport {
    pub(super) async fn start(clock: &Clock, plan: Plan) -> anyhow::Result<Self> {
        let listener = Listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
        let endpoint = Endpoint::from_shared(format!("http://{}", listener.address()))?;
        let tasks = Tasks::new();
        let stop = tasks.token().clone().cancelled_owned();
        let service = StreamingNodeHandlerServiceServer::new(Answering);
        tasks.spawn(streaming_node::server().add_service(service).serve_with_incoming_shutdown(listener, stop));
        let client = StreamingNodeHandlerServiceClient::new(tcp_connector().dial(endpoint));
        Ok(Self { plan, clock: clock.clone(), client, tasks })
    }

    /// One round of small messages, as many and from as many sides as the stream service has. In messages per second.
    pub(super) async fn exchange_small(&self, rates: &mut Rates) -> anyhow::Result<()> {
        let each = self.plan.operations * SMALL_FACTOR;
        let started = self.clock.now();
        try_join_all((0..PRODUCERS).map(|_| exchange(self.client.clone(), each))).await?;
        rates.record((each * PRODUCERS) as u64, started.elapsed());
        Ok(())
    }

    pub(super) fn end(self) {
        self.tasks.stop();
    }
}

/// One stream: so many requests, of which at most as many are unanswered as a producer has on its way.
async fn exchange(mut client: StreamingNodeHandlerServiceClient<Dialed>, count: usize) -> anyhow::Result<()> {
    let (requests, outbound) = mpsc::channel(SMALL_IN_FLIGHT);
    let mut answers = client.produce(ReceiverStream::new(outbound)).await?.into_inner();
    let payload = Bytes::from(vec![b'x'; SMALL]);
    let mut sent = 0;
    for answered in 0..count {
        while sent < count && sent - answered < SMALL_IN_FLIGHT {
            let message = Some(line_message("transport_1v0", payload.clone())?.into());
            let request = ProduceMessageRequest { request_id: i64::try_from(sent)?, message };
            requests.send(ProduceRequest { request: Some(produce_request::Request::Produce(request)) }).await?;
            sent += 1;
        }
        answers.message().await?.context("a request without an answer")?;
    }
    Ok(())
}

/// Answers as a node does, at once.
struct Answering;

#[tonic::async_trait]
impl StreamingNodeHandlerService for Answering {
    type ProduceStream = BoxStream<'static, Result<ProduceResponse, Status>>;
    type ConsumeStream = BoxStream<'static, Result<ConsumeResponse, Status>>;

    async fn produce(
        &self,
        requests: Request<Streaming<ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStream>, Status> {
        Ok(Response::new(requests.into_inner().map(|request| request.map(answer)).boxed()))
    }

    async fn consume(&self, _: Request<Streaming<ConsumeRequest>>) -> Result<Response<Self::ConsumeStream>, Status> {
        Err(Status::unimplemented("nothing is kept here"))
    }

    async fn get_replicate_checkpoint(
        &self,
        _: Request<GetReplicateCheckpointRequest>,
    ) -> Result<Response<GetReplicateCheckpointResponse>, Status> {
        Err(Status::unimplemented("nothing is kept here"))
    }
}

fn answer(request: ProduceRequest) -> ProduceResponse {
    let request_id = match request.request {
        Some(produce_request::Request::Produce(request)) => request.request_id,
        _ => 0,
    };
    let id = MessageId::new(1, request_id);
    let result = ProduceMessageResponseResult {
        id: Some(id.to_proto()),
        timetick: request_id.unsigned_abs(),
        txn_context: None,
        extra: None,
        last_confirmed_id: Some(id.to_proto()),
    };
    let response = Some(produce_message_response::Response::Result(result));
    let answer = ProduceMessageResponse { request_id, response };
    ProduceResponse { response: Some(produce_response::Response::Produce(answer)) }
}
