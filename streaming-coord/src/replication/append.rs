//! Appends one message to a WAL, as any producer does.

use std::time::Duration;

use futures::stream;
use streaming_proto::{
    messages,
    streaming::{
        AckedCheckpoint, CloseProducerRequest, FullStreamingNodeAssignmentWithVersion, ProduceMessageRequest,
        ProduceMessageResponse, ProduceRequest, StreamingNodeInfo, produce_message_response::Response as Answer,
        produce_request::Request as Asked, produce_response::Response as Said,
        streaming_node_handler_service_client::StreamingNodeHandlerServiceClient,
    },
};
use streaming_types::{
    PChannel, StreamingError,
    metadata::{set_create_producer, set_destination},
};
use tonic::{Request, Status, transport::Endpoint};
use woodpecker_base::{clock::Clock, net::Connector};

const CONNECT: Duration = Duration::from_secs(3);
/// Longer than an append takes that is not lost.
const LIMIT: Duration = Duration::from_secs(15);

/// See the module.
pub(super) struct Appending<'a> {
    pub(super) cluster: &'a str,
    pub(super) connector: &'a Connector,
    pub(super) clock: &'a Clock,
}

impl Appending<'_> {
    /// Appends at the owner that the assignment names; returns where the message stands.
    ///
    /// # Errors
    /// The node's; CHANNEL_NOT_EXIST without an owner.
    pub(super) async fn append(
        &self,
        assignment: Option<&FullStreamingNodeAssignmentWithVersion>,
        pchannel: &str,
        message: messages::Message,
    ) -> Result<AckedCheckpoint, StreamingError> {
        let owned = assignment.and_then(|assignment| owner(assignment, pchannel));
        let (node, channel) = owned.ok_or_else(|| StreamingError::channel_not_exist(pchannel))?;
        match self.clock.timeout(LIMIT, self.produce(node, &channel, message)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(StreamingError::unknown(format!("no answer from {} within {LIMIT:?}", node.address))),
        }
    }

    async fn produce(
        &self,
        node: &StreamingNodeInfo,
        channel: &PChannel,
        message: messages::Message,
    ) -> Result<AckedCheckpoint, StreamingError> {
        let endpoint = Endpoint::from_shared(format!("http://{}", node.address));
        let endpoint = endpoint.map_err(|error| StreamingError::unknown(error.to_string()))?.connect_timeout(CONNECT);
        let connection = self.connector.dial(endpoint);
        let produce = ProduceMessageRequest { request_id: 1, message: Some(message) };
        let asked = [Asked::Produce(produce), Asked::Close(CloseProducerRequest {})];
        let asked = asked.map(|request| ProduceRequest { request: Some(request) });
        let mut request = Request::new(stream::iter(asked));
        set_destination(request.metadata_mut(), self.cluster, Some(node.server_id));
        set_create_producer(request.metadata_mut(), channel);
        let mut client = StreamingNodeHandlerServiceClient::new(connection);
        let mut said = client.produce(request).await.map_err(|status| failed(&status))?.into_inner();
        while let Some(response) = said.message().await.map_err(|status| failed(&status))? {
            if let Some(Said::Produce(answer)) = response.response {
                return answered(answer);
            }
        }
        Err(StreamingError::unknown("the stream ended without an answer"))
    }
}

fn answered(answer: ProduceMessageResponse) -> Result<AckedCheckpoint, StreamingError> {
    match answer.response {
        Some(Answer::Result(result)) => Ok(AckedCheckpoint {
            last_confirmed_message_id: result.last_confirmed_id.or_else(|| result.id.clone()),
            message_id: result.id,
            time_tick: result.timetick,
        }),
        Some(Answer::Error(error)) => Err(StreamingError::check(&error).err().unwrap_or_else(unexplained)),
        None => Err(unexplained()),
    }
}

fn failed(status: &Status) -> StreamingError {
    StreamingError::check_status(status).err().unwrap_or_else(unexplained)
}

fn unexplained() -> StreamingError {
    StreamingError::unknown("the node failed without saying why")
}

fn owner<'a>(
    assignment: &'a FullStreamingNodeAssignmentWithVersion,
    pchannel: &str,
) -> Option<(&'a StreamingNodeInfo, PChannel)> {
    assignment.assignments.iter().find_map(|assigned| {
        let channel = assigned.channels.iter().find(|channel| channel.name == pchannel)?;
        Some((assigned.node.as_ref()?, PChannel::from_proto(Some(channel)).ok()?))
    })
}
