//! One Consume stream: its opening, what comes out of it, its close.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture};
use streaming_proto::streaming::{
    CloseConsumerRequest, ConsumeRequest, ConsumeResponse, CreateVChannelConsumerRequest,
    consume_request::Request as Arm, consume_response::Response,
    create_v_channel_consumer_response::Response as Created,
    streaming_node_handler_service_client::StreamingNodeHandlerServiceClient,
};
use streaming_types::{ImmutableMessage, StreamingError, local::Stream, metadata::set_create_consumer};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use woodpecker_base::clock::Instant;

use crate::{
    alarm::Alarm,
    assignment::{Assignment, Channel},
    client::Core,
    connections::{Class, status_error},
};

/// The create and the close of a consumer are all that goes up.
const REQUESTS: usize = 2;

pub(super) struct ConsumeStream {
    channel: Channel,
    requests: mpsc::Sender<ConsumeRequest>,
    responses: Stream<ConsumeResponse>,
    /// Resolves when the channel has a new owner.
    replaced: BoxFuture<'static, ()>,
    silence: Alarm,
    /// Since when something is waited for, also by those who gave that up.
    waiting_since: Option<Instant>,
}

/// Why there is no stream, and the term it was tried at.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) term: i64,
    pub(super) error: StreamingError,
}

/// How to go on after a failure: when there is an owner of a later term, at the latest after the pause.
#[derive(Debug)]
pub(super) struct Retry {
    pub(super) term: i64,
    pub(super) pause: Duration,
}

/// Waits for the channel's owner and opens a stream there.
pub(super) async fn open(
    core: Arc<Core>,
    pchannel: String,
    create: CreateVChannelConsumerRequest,
    retry: Option<Retry>,
) -> Result<ConsumeStream, Failed> {
    if let Some(Retry { term, pause }) = retry {
        core.newer_term(&pchannel, term, pause).await;
    }
    let channel = core.wait_assigned(&pchannel, |_| true).await;
    let limit = core.settings.timeouts.open;
    let opened = match core.clock.timeout(limit, handshake(&core, &channel, create)).await {
        Ok(opened) => opened,
        Err(_) => {
            let cause = format!("{} did not open a consume stream within {limit:?}", channel.owner.address);
            Err(StreamingError::unknown(cause))
        }
    };
    opened.map_err(|error| {
        core.assignments.report(&channel.pchannel, &error);
        Failed { term: channel.pchannel.term(), error }
    })
}

async fn handshake(
    core: &Core,
    channel: &Channel,
    create: CreateVChannelConsumerRequest,
) -> Result<ConsumeStream, StreamingError> {
    let latest = core.assignments.watch();
    let (requests, outbound) = mpsc::channel(REQUESTS);
    let outbound = ReceiverStream::new(outbound);
    let mut responses = match core.local(channel) {
        Some(node) => {
            let responses = node.consume(&channel.pchannel, outbound.map(Ok).boxed());
            responses.map_err(|status| status_error(&status))?
        }
        None => remote(core, channel, outbound).await?,
    };
    match answer(&mut responses).await? {
        Some(Response::Create(_)) => {}
        other => return Err(unexpected("create", other.as_ref())),
    }
    let create = ConsumeRequest { request: Some(Arm::CreateVchannelConsumer(create)) };
    requests.send(create).await.map_err(|_| StreamingError::unknown("the stream takes no request"))?;
    match answer(&mut responses).await? {
        Some(Response::CreateVchannel(created)) => match created.response {
            Some(Created::Error(error)) => StreamingError::check(&error)?,
            Some(Created::ConsumerId(_)) | None => {}
        },
        other => return Err(unexpected("create_vchannel", other.as_ref())),
    }
    let replaced = replaced(latest, channel.clone()).boxed();
    let silence = Alarm::new(core.clock.clone());
    Ok(ConsumeStream { channel: channel.clone(), requests, responses, replaced, silence, waiting_since: None })
}

async fn remote(
    core: &Core,
    channel: &Channel,
    outbound: ReceiverStream<ConsumeRequest>,
) -> Result<Stream<ConsumeResponse>, StreamingError> {
    let server = channel.server();
    let connection = core.connections.channel(&server, Class::Read)?;
    let mut client =
        StreamingNodeHandlerServiceClient::new(connection).max_decoding_message_size(core.settings.limits.max_receive);
    let mut request = Request::new(outbound);
    core.connections.address_call(&server, request.metadata_mut());
    set_create_consumer(request.metadata_mut(), &channel.pchannel);
    let response = client.consume(request).await.map_err(|status| status_error(&status))?;
    Ok(response.into_inner().boxed())
}

async fn answer(responses: &mut Stream<ConsumeResponse>) -> Result<Option<Response>, StreamingError> {
    let response = responses.try_next().await.map_err(|status| status_error(&status))?;
    let response = response.ok_or_else(|| StreamingError::unknown("the node ended the stream before it began"))?;
    Ok(response.response)
}

fn unexpected(expected: &str, got: Option<&Response>) -> StreamingError {
    let got = match got {
        None => "nothing known",
        Some(Response::Create(_)) => "create",
        Some(Response::Consume(_)) => "consume",
        Some(Response::CreateVchannel(_)) => "create_vchannel",
        Some(Response::CreateVchannels(_)) => "create_vchannels",
        Some(Response::CloseVchannel(_)) => "close_vchannel",
        Some(Response::Close(_)) => "close",
    };
    StreamingError::unknown(format!("the node answered {got} where {expected} was due"))
}

impl ConsumeStream {
    pub(super) fn term(&self) -> i64 {
        self.channel.pchannel.term()
    }

    /// The next message. Cancel safe. Fails when the stream ends, falls silent, or its channel has a new owner.
    pub(super) async fn receive(&mut self, core: &Core) -> Result<ImmutableMessage, StreamingError> {
        let silence = core.settings.timeouts.silence;
        loop {
            let since = *self.waiting_since.get_or_insert_with(|| core.clock.now());
            self.silence.arm(since + silence);
            let response = tokio::select! {
                biased;
                response = self.responses.try_next() => response.map_err(|status| status_error(&status))?,
                () = &mut self.replaced => return Err(StreamingError::unknown("the channel has a new owner")),
                () = self.silence.fired() => {
                    if core.clock.now() >= since + silence {
                        return Err(StreamingError::unknown(format!("silent for {silence:?}")));
                    }
                    continue;
                }
            };
            self.waiting_since = None;
            match response.map(|response| response.response) {
                Some(Some(Response::Consume(consume))) => {
                    let message =
                        consume.message.ok_or_else(|| StreamingError::unknown("a delivery without a message"))?;
                    return ImmutableMessage::try_from(message)
                        .map_err(|error| StreamingError::unknown(format!("a message without a usable id: {error}")));
                }
                Some(Some(Response::Close(_))) | None => {
                    return Err(StreamingError::unknown("the node ended the stream"));
                }
                // Not for us, or of a later protocol version.
                Some(_) => {}
            }
        }
    }

    /// `close`, half-close, then the node's `close` and the end of the stream. Says whether that happened in time.
    pub(super) async fn close(self, core: &Core) -> bool {
        let Self { requests, mut responses, .. } = self;
        let close = ConsumeRequest { request: Some(Arm::Close(CloseConsumerRequest {})) };
        let handshake = async {
            requests.send(close).await.ok()?;
            drop(requests);
            loop {
                match responses.try_next().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Some(()),
                    Err(_) => return None,
                }
            }
        };
        matches!(core.clock.timeout(core.settings.timeouts.drain, handshake).await, Ok(Some(())))
    }
}

/// Resolves when the channel is assigned at a later term: its old owner may never learn that it lost it.
async fn replaced(mut latest: watch::Receiver<Arc<Assignment>>, channel: Channel) {
    let is_newer = |assignment: &Arc<Assignment>| {
        let now = assignment.channels.get(channel.pchannel.name());
        now.is_some_and(|now| now.pchannel.term() > channel.pchannel.term())
    };
    loop {
        if is_newer(&latest.borrow_and_update()) {
            return;
        }
        if latest.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
