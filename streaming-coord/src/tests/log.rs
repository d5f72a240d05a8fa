//! The logs of a node: they take everything but what a test forbids, and tell what they took.

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::{Arc, Mutex},
};

use futures::{Stream, StreamExt};
use streaming_proto::{
    messages,
    streaming::{
        ConsumeRequest, ConsumeResponse, GetReplicateCheckpointRequest, GetReplicateCheckpointResponse,
        ProduceMessageResponse, ProduceMessageResponseResult, ProduceRequest, ProduceResponse,
        produce_message_response::Response as Answer, produce_request::Request as Asked,
        produce_response::Response as Said, streaming_node_handler_service_server::StreamingNodeHandlerService,
    },
};
use streaming_types::{Message, MessageId, StreamingError};
use tonic::{Request, Response, Status, Streaming};

/// What is in the logs, by the order of arrival.
#[derive(Debug, Default)]
pub(super) struct Logs {
    pub(super) taken: Vec<Message>,
    /// Vchannels whose messages are not taken at the moment, and for ever.
    pub(super) fails: BTreeSet<String>,
    pub(super) refuses: BTreeSet<String>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct LogService(pub(super) Arc<Mutex<Logs>>);

impl LogService {
    fn append(&self, message: messages::Message) -> Answer {
        let message = Message::from(message);
        let vchannel = message.properties.vchannel().unwrap_or_default();
        let mut logs = self.0.lock().unwrap();
        if logs.fails.contains(vchannel) {
            return Answer::Error(StreamingError::unknown("not today").to_proto());
        }
        if logs.refuses.contains(vchannel) {
            return Answer::Error(StreamingError::unrecoverable("never").to_proto());
        }
        logs.taken.push(message);
        let entry = logs.taken.len();
        let id = Some(MessageId::new(1, i64::try_from(entry).unwrap()).to_proto());
        let timetick = 100 + entry as u64;
        Answer::Result(ProduceMessageResponseResult { id, timetick, ..Default::default() })
    }
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl StreamingNodeHandlerService for LogService {
    type ProduceStream = Responses<ProduceResponse>;
    type ConsumeStream = Responses<ConsumeResponse>;

    async fn get_replicate_checkpoint(
        &self,
        _: Request<GetReplicateCheckpointRequest>,
    ) -> Result<Response<GetReplicateCheckpointResponse>, Status> {
        Err(Status::unimplemented("nobody follows"))
    }

    async fn produce(
        &self,
        request: Request<Streaming<ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStream>, Status> {
        let log = self.clone();
        let answered = request.into_inner().filter_map(move |request| {
            let answer = match request.ok().and_then(|request| request.request) {
                Some(Asked::Produce(asked)) => {
                    let response = Some(log.append(asked.message.unwrap()));
                    let answer = ProduceMessageResponse { request_id: asked.request_id, response };
                    Some(Ok(ProduceResponse { response: Some(Said::Produce(answer)) }))
                }
                _ => None,
            };
            async { answer }
        });
        Ok(Response::new(answered.boxed()))
    }

    async fn consume(&self, _: Request<Streaming<ConsumeRequest>>) -> Result<Response<Self::ConsumeStream>, Status> {
        Err(Status::unimplemented("nobody reads"))
    }
}
