//! What replication asks of a cluster: the topology, how far a secondary is, and a way to send it what its source holds.

use std::{fmt, sync::Arc, time::Duration};

use futures::TryStreamExt;
use streaming_proto::{
    common::{ReplicateCheckpoint, ReplicateConfiguration},
    data::{UpdateChannelCheckpointRequest, data_coord_client::DataCoordClient},
    msg::MsgPosition,
    streaming::{
        GetReplicateCheckpointRequest, ProduceMessageResponse, ProduceResponse, UpdateReplicateConfigurationRequest,
        produce_message_response::Response as Answer, produce_response::Response,
        streaming_coord_assignment_service_client::StreamingCoordAssignmentServiceClient,
        streaming_node_handler_service_client::StreamingNodeHandlerServiceClient,
    },
};
use streaming_types::{
    Message, MessageId, StreamingCode, StreamingError, TimeTick, channel::to_physical, local::Stream,
};
use tokio::sync::mpsc;
use tonic::Request;

use crate::{
    assignment::Channel,
    client::{Client, Core},
    connections::{Class, Server, status_error},
    producer::stream::{self, Outbound},
};

/// Why a call of replication failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplicateError {
    /// The server refused it for good.
    #[error("refused by the server: {0}")]
    Refused(StreamingError),
    /// Nobody did it, or it is not known whether somebody did.
    #[error(transparent)]
    Failed(StreamingError),
}

impl From<StreamingError> for ReplicateError {
    fn from(error: StreamingError) -> Self {
        if error.is_retryable() { Self::Failed(error) } else { Self::Refused(error) }
    }
}

impl ReplicateError {
    /// A stable code for documentation and programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(_) => "REPLICATE_REFUSED",
            Self::Failed(_) => "REPLICATE_FAILED",
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Failed(_))
    }

    /// Whether the failed call may have taken effect.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        matches!(self, Self::Failed(error) if error.has_side_effects())
    }
}

/// The sending half of a stream of replicated messages to the owner of a pchannel at this moment. What goes wrong ends the
/// stream: nothing is sent twice, and nothing goes to another owner. Go on with a new stream from the checkpoint.
#[derive(Debug)]
pub struct ReplicateSender {
    requests: mpsc::Sender<Outbound>,
    next_id: i64,
}

impl ReplicateSender {
    /// Waits until the connection takes a message. Cancel-safe.
    ///
    /// # Errors
    /// [`ReplicateError::Failed`] when the stream has ended; [`ReplicateAnswers::next`] says why.
    pub async fn ready(&self) -> Result<(), ReplicateError> {
        self.requests.reserve().await.map(drop).map_err(|_| ended())
    }

    /// Sends a message, for which there must be room. Messages are numbered from 1 on, and appended in this order.
    ///
    /// # Errors
    /// [`ReplicateError::Failed`] when there is no room, or the stream has ended.
    pub fn send(&mut self, message: Message) -> Result<i64, ReplicateError> {
        let id = self.next_id;
        let produce = Outbound::Produce { id, message: Arc::new(message.into()) };
        self.requests.try_send(produce).map_err(|_| ended())?;
        self.next_id += 1;
        Ok(id)
    }
}

fn ended() -> ReplicateError {
    ReplicateError::Failed(StreamingError::unknown("the stream takes no more requests"))
}

/// The answering half of a stream of replicated messages.
pub struct ReplicateAnswers {
    responses: Stream<ProduceResponse>,
}

impl fmt::Debug for ReplicateAnswers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplicateAnswers").finish_non_exhaustive()
    }
}

impl ReplicateAnswers {
    /// Waits for the next answer: the number of a message that the target has for good by now, whether it took it from this
    /// stream or had it before. Cancel-safe.
    ///
    /// # Errors
    /// The target's refusal of a message, or the end of the stream.
    pub async fn next(&mut self) -> Result<i64, ReplicateError> {
        loop {
            let response = self.responses.try_next().await.map_err(|status| status_error(&status))?;
            let ended = || StreamingError::unknown("the node ended the stream");
            match response.ok_or_else(ended)?.response {
                Some(Response::Produce(answer)) => return answered(answer),
                Some(Response::Close(_)) => return Err(StreamingError::unknown("the node closes the stream").into()),
                Some(Response::RateLimit(_) | Response::Create(_)) | None => {}
            }
        }
    }
}

fn answered(answer: ProduceMessageResponse) -> Result<i64, ReplicateError> {
    let error = match answer.response {
        Some(Answer::Result(_)) => return Ok(answer.request_id),
        Some(Answer::Error(error)) => StreamingError::check(&error).err(),
        None => None,
    };
    match error.unwrap_or_else(|| StreamingError::unknown("neither result nor error")) {
        had if had.is_ignored() => Ok(answer.request_id),
        error => Err(error.into()),
    }
}

impl Client {
    /// The replication topology of the cluster, if there is one that it belongs to.
    #[must_use]
    pub fn replicate_configuration(&self) -> Option<Arc<ReplicateConfiguration>> {
        self.core().assignments.latest().topology.clone()
    }

    /// Waits until the coordinator says another topology than `known`.
    pub async fn other_replicate_configuration(
        &self,
        known: Option<&ReplicateConfiguration>,
    ) -> Option<Arc<ReplicateConfiguration>> {
        let mut latest = self.core().assignments.watch();
        loop {
            let topology = latest.borrow_and_update().topology.clone();
            if topology.as_deref() != known {
                return topology;
            }
            if latest.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Changes the replication topology, and waits until it is in force in this cluster: on a secondary, until its source
    /// has sent it. Saying the same again changes nothing.
    ///
    /// # Errors
    /// [`ReplicateError::Refused`] with the rule that it breaks; [`ReplicateError::Failed`] when it is not in force after
    /// `limit`, though it may be later.
    pub async fn update_replicate_configuration(
        &self,
        configuration: ReplicateConfiguration,
        limit: Duration,
    ) -> Result<(), ReplicateError> {
        self.alter_topology(configuration, false, limit).await
    }

    /// Makes a cluster that follows another one follow nobody, as `configuration` says, without its source, which is lost.
    /// What the source has and this cluster does not is lost with it.
    ///
    /// # Errors
    /// As [`Client::update_replicate_configuration`]'s; a cluster that follows nobody is not promoted.
    pub async fn force_promote(
        &self,
        configuration: ReplicateConfiguration,
        limit: Duration,
    ) -> Result<(), ReplicateError> {
        self.alter_topology(configuration, true, limit).await
    }

    async fn alter_topology(
        &self,
        configuration: ReplicateConfiguration,
        force_promote: bool,
        limit: Duration,
    ) -> Result<(), ReplicateError> {
        let core = self.core();
        let unknown = || StreamingError::unknown("no coordinator is known");
        let coordinator = core.assignments.link().server.ok_or_else(unknown)?;
        let connection = core.connections.channel(&coordinator, Class::Control)?;
        let request = UpdateReplicateConfigurationRequest { configuration: Some(configuration), force_promote };
        let request = addressed(core, &coordinator, request, limit);
        let mut client = StreamingCoordAssignmentServiceClient::new(connection);
        within(core, limit, client.update_replicate_configuration(request)).await.map(drop)
    }

    /// How far a pchannel of a secondary is at its source; `None` on a primary. Without a message id, nothing has come yet.
    ///
    /// # Errors
    /// [`ReplicateError::Failed`] when the pchannel is not served, or its owner does not answer.
    pub async fn replicate_checkpoint(&self, pchannel: &str) -> Result<Option<ReplicateCheckpoint>, ReplicateError> {
        let (core, owner) = (self.core(), self.owner(pchannel)?);
        let connection = core.connections.channel(&owner.server(), Class::Control)?;
        let request = GetReplicateCheckpointRequest { pchannel: Some(owner.pchannel.to_proto()) };
        let limit = core.settings.timeouts.open;
        let request = addressed(core, &owner.server(), request, limit);
        let mut client = StreamingNodeHandlerServiceClient::new(connection);
        match within(core, limit, client.get_replicate_checkpoint(request)).await {
            Ok(response) => Ok(response.into_inner().checkpoint),
            Err(ReplicateError::Refused(error)) if error.code() == StreamingCode::ReplicateViolation => Ok(None),
            Err(error) => {
                self.complain(&owner, &error);
                Err(error)
            }
        }
    }

    /// Opens a stream to the owner of a pchannel.
    ///
    /// # Errors
    /// [`ReplicateError::Failed`] when the pchannel is not served, or its owner does not answer.
    pub async fn replicate_stream(
        &self,
        pchannel: &str,
    ) -> Result<(ReplicateSender, ReplicateAnswers), ReplicateError> {
        let owner = self.owner(pchannel)?;
        match stream::open(self.core().clone(), owner.clone()).await {
            Ok(stream) => {
                let sender = ReplicateSender { requests: stream.requests, next_id: 1 };
                Ok((sender, ReplicateAnswers { responses: stream.responses }))
            }
            Err(error) => {
                let error = error.into();
                self.complain(&owner, &error);
                Err(error)
            }
        }
    }

    /// Says that `consumer`, the name of a vchannel or one that looks like it, needs the log from `position` on; what is
    /// before may go. The first call registers it.
    ///
    /// # Errors
    /// [`ReplicateError::Failed`] when the pchannel is not served, or its owner does not answer.
    pub async fn report_position(
        &self,
        consumer: &str,
        position: MessageId,
        time_tick: TimeTick,
    ) -> Result<(), ReplicateError> {
        let (core, owner) = (self.core(), self.owner(to_physical(consumer))?);
        let connection = core.connections.channel(&owner.server(), Class::Control)?;
        let position = MsgPosition {
            channel_name: consumer.to_owned(),
            msg_id: position.to_bytes().into(),
            timestamp: time_tick.into(),
            ..MsgPosition::default()
        };
        let request = UpdateChannelCheckpointRequest { channel_checkpoints: vec![position], ..Default::default() };
        let limit = core.settings.timeouts.open;
        let request = addressed(core, &owner.server(), request, limit);
        within(core, limit, DataCoordClient::new(connection).update_channel_checkpoint(request)).await.map(drop)
    }

    fn owner(&self, pchannel: &str) -> Result<Channel, ReplicateError> {
        let core = self.core();
        let missing = || ReplicateError::Failed(StreamingError::unknown(core.why_unassigned(pchannel)));
        core.assigned(pchannel).ok_or_else(missing)
    }

    /// The coordinator may not know that the owner it named serves the channel no more.
    fn complain(&self, owner: &Channel, error: &ReplicateError) {
        let (ReplicateError::Failed(error) | ReplicateError::Refused(error)) = error;
        self.core().assignments.report(&owner.pchannel, error);
    }
}

fn addressed<T>(core: &Core, server: &Server, message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    core.connections.address_call(server, request.metadata_mut());
    request
}

async fn within<T>(
    core: &Core,
    limit: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<tonic::Response<T>, ReplicateError> {
    match core.clock.timeout(limit, call).await {
        Ok(outcome) => outcome.map_err(|status| status_error(&status).into()),
        Err(_) => Err(StreamingError::unknown(format!("no answer within {limit:?}")).into()),
    }
}
