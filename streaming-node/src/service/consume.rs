//! A Consume stream. It is driven by the peer that reads it: one that does not read takes nothing from the WAL.

use std::{collections::VecDeque, sync::Arc};

use futures::{StreamExt, stream};
use streaming_proto::{
    common::ImmutableMessage,
    streaming::{
        CloseConsumerResponse, ConsumeMessageReponse, ConsumeRequest, ConsumeResponse, CreateConsumerResponse,
        CreateVChannelConsumerRequest, CreateVChannelConsumerResponse, consume_request, consume_response::Response,
        create_v_channel_consumer_response,
    },
};
use streaming_types::{DeliverFilter, DeliverPolicy, StreamingError, local::Stream};
use tonic::Status;

use crate::{
    metrics,
    wal::{
        Stored, WAL_NAME, Wal,
        scanner::{ScanError, ScanOptions, Scanner},
    },
};

/// The one consumer that a stream has.
const CONSUMER_ID: i64 = 1;

/// Serves one consumer of a WAL, on server `node`.
pub fn serve(wal: Arc<Wal>, node: i64, requests: Stream<ConsumeRequest>) -> Stream<ConsumeResponse> {
    metrics::consumers(wal.channel().name()).increment(1.0);
    let consumer = Consumer { wal, node, requests, stage: Stage::Opening };
    stream::unfold(consumer, |mut consumer| async {
        let response = consumer.next().await?;
        Some((response, consumer))
    })
    .boxed()
}

struct Consumer {
    wal: Arc<Wal>,
    node: i64,
    requests: Stream<ConsumeRequest>,
    stage: Stage,
}

enum Stage {
    Opening,
    /// The client has to say what it wants.
    Asking,
    Serving {
        scanner: Box<Scanner>,
        ready: VecDeque<Arc<Stored>>,
    },
    Ended,
}

impl Consumer {
    async fn next(&mut self) -> Option<Result<ConsumeResponse, Status>> {
        match &mut self.stage {
            Stage::Opening => {
                self.stage = Stage::Asking;
                let create = CreateConsumerResponse { wal_name: WAL_NAME.to_owned(), consumer_server_id: self.node };
                respond(Response::Create(create))
            }
            Stage::Asking => match self.ask().await {
                Ok(true) => {
                    let response = create_v_channel_consumer_response::Response::ConsumerId(CONSUMER_ID);
                    respond(Response::CreateVchannel(CreateVChannelConsumerResponse { response: Some(response) }))
                }
                Ok(false) => self.close(),
                Err(error) => self.fail(error),
            },
            Stage::Serving { ready, .. } => {
                if let Some(message) = ready.pop_front() {
                    return deliver(&message);
                }
                match self.fetch().await {
                    Ok(Some(message)) => deliver(&message),
                    Ok(None) => self.close(),
                    Err(error) => self.fail(error),
                }
            }
            Stage::Ended => None,
        }
    }

    /// Waits for the request that says what to read; `false` when the client closed instead.
    async fn ask(&mut self) -> Result<bool, StreamingError> {
        let request = tokio::select! {
            biased;
            () = self.wal.ended().cancelled() => {
                return Err(failed(&ScanError::Closed));
            }
            request = self.requests.next() => request,
        };
        let request = match request {
            Some(Ok(ConsumeRequest { request: Some(consume_request::Request::CreateVchannelConsumer(request)) })) => {
                request
            }
            Some(Ok(_)) => {
                return Err(StreamingError::invalid_request_seq("the first request must create a vchannel consumer"));
            }
            Some(Err(_)) => return Err(StreamingError::unreadable_request()),
            None => return Ok(false),
        };
        let scanner = Box::new(self.wal.scanner(options(request)?));
        self.stage = Stage::Serving { scanner, ready: VecDeque::new() };
        Ok(true)
    }

    /// The next message; `None` when the client closed. Only the end of the requests counts, not what they say.
    async fn fetch(&mut self) -> Result<Option<Arc<Stored>>, StreamingError> {
        let Stage::Serving { scanner, ready } = &mut self.stage else { return Ok(None) };
        loop {
            tokio::select! {
                biased;
                request = self.requests.next() => match request {
                    Some(Ok(_)) => {}
                    Some(Err(_)) => return Err(StreamingError::unreadable_request()),
                    None => return Ok(None),
                },
                messages = scanner.next() => {
                    *ready = messages.map_err(|error| failed(&error))?;
                    if let Some(message) = ready.pop_front() {
                        return Ok(Some(message));
                    }
                }
            }
        }
    }

    fn close(&mut self) -> Option<Result<ConsumeResponse, Status>> {
        self.stage = Stage::Ended;
        respond(Response::Close(CloseConsumerResponse {}))
    }

    fn fail(&mut self, error: StreamingError) -> Option<Result<ConsumeResponse, Status>> {
        self.stage = Stage::Ended;
        Some(Err(error.into()))
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        metrics::consumers(self.wal.channel().name()).decrement(1.0);
    }
}

fn failed(error: &ScanError) -> StreamingError {
    StreamingError::inner(format!("scanner error: {error}"))
}

fn options(request: CreateVChannelConsumerRequest) -> Result<ScanOptions, StreamingError> {
    let invalid = |error: streaming_types::deliver::DeliverError| StreamingError::invalid_argument(error.to_string());
    let policy = DeliverPolicy::from_proto(request.deliver_policy.as_ref()).map_err(invalid)?;
    let filters: Result<_, _> = request.deliver_filters.iter().map(DeliverFilter::try_from).collect();
    let ignores_pause = request.ignore_pause_consumption;
    Ok(ScanOptions { vchannel: request.vchannel, policy, filters: filters.map_err(invalid)?, ignores_pause })
}

#[expect(clippy::unnecessary_wraps, reason = "the item of a stream that may end")]
fn respond(response: Response) -> Option<Result<ConsumeResponse, Status>> {
    Some(Ok(ConsumeResponse { response: Some(response) }))
}

fn deliver(stored: &Stored) -> Option<Result<ConsumeResponse, Status>> {
    let mut message: ImmutableMessage = stored.message.clone().into();
    message.encoded = stored.record.clone();
    respond(Response::Consume(ConsumeMessageReponse { consumer_id: CONSUMER_ID, message: Some(message) }))
}
