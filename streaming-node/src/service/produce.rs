//! A Produce stream.
//!
//! Requests go to the WAL in the order in which they come, and are answered as they complete. The stream is driven by
//! the peer that reads it: one that does not read its answers sends no more requests after a while.

use std::{pin::Pin, sync::Arc};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream, stream::BoxStream};
use streaming_proto::streaming::{
    CloseProducerResponse, CreateProducerResponse, ProduceMessageRequest, ProduceMessageResponse,
    ProduceMessageResponseResult, ProduceRequest, ProduceResponse, produce_message_response, produce_request,
    produce_response::Response,
};
use streaming_types::{
    Message, StreamingError, TxnContext,
    message::{Produced, check_produced},
};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Status, Streaming};

use super::Services;
use crate::{
    metrics,
    wal::{
        Appends, WAL_NAME, Wal,
        group::{Answer, Append, Placed, Reply},
    },
};

/// Requests of one stream that may be in flight.
const IN_FLIGHT: usize = 4096;

/// Serves one producer of a WAL.
pub fn serve(
    wal: &Wal,
    services: &Services,
    requests: Streaming<ProduceRequest>,
) -> Result<BoxStream<'static, Result<ProduceResponse, Status>>, Status> {
    let Some(appends) = wal.appends() else {
        let cause = format!("{} is open for reading only", wal.channel().name());
        return Err(StreamingError::invalid_argument(cause).into());
    };
    let (answer, answers) = mpsc::channel(IN_FLIGHT);
    metrics::producer_opened();
    let producer = Producer {
        pchannel: wal.channel().name().into(),
        node: services.identity.server_id(),
        max_message_bytes: services.settings.max_message_bytes,
        max_in_flight_bytes: services.settings.producer_in_flight_bytes,
        ended: Box::pin(wal.ended().clone().cancelled_owned()),
        appends,
        requests,
        answer,
        answers,
        in_flight: 0,
        in_flight_bytes: 0,
        waiting: None,
        stage: Stage::Opening,
    };
    Ok(stream::unfold(producer, |mut producer| async {
        let response = producer.next().await?;
        Some((response, producer))
    })
    .boxed())
}

struct Producer {
    pchannel: Arc<str>,
    node: i64,
    max_message_bytes: usize,
    max_in_flight_bytes: usize,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    appends: Appends,
    requests: Streaming<ProduceRequest>,
    answer: mpsc::Sender<Answer>,
    answers: mpsc::Receiver<Answer>,
    in_flight: usize,
    in_flight_bytes: usize,
    /// A message that waits for its share of the WAL's budget.
    waiting: Option<(Unsent, BoxFuture<'static, Option<OwnedSemaphorePermit>>)>,
    stage: Stage,
}

/// A message that passed all checks.
struct Unsent {
    request_id: i64,
    message: Message,
    produced: Produced,
    bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Opening,
    Serving,
    /// No more requests are taken; what is in flight is answered.
    Draining(End),
    /// The close was sent.
    Closed(End),
}

/// Who ended the stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Client,
    Wal,
}

impl Producer {
    async fn next(&mut self) -> Option<Result<ProduceResponse, Status>> {
        loop {
            match self.stage {
                Stage::Opening => {
                    self.stage = Stage::Serving;
                    let create =
                        CreateProducerResponse { wal_name: WAL_NAME.to_owned(), producer_server_id: self.node };
                    return respond(Response::Create(create));
                }
                Stage::Serving => {
                    if let Some(response) = self.serve().await {
                        return respond(Response::Produce(response));
                    }
                }
                Stage::Draining(end) => {
                    if let Some(response) = self.drain(end).await {
                        return respond(Response::Produce(response));
                    }
                    self.stage = Stage::Closed(end);
                    return respond(Response::Close(CloseProducerResponse {}));
                }
                Stage::Closed(End::Client) => return None,
                Stage::Closed(End::Wal) => {
                    self.stage = Stage::Closed(End::Client);
                    return Some(Err(StreamingError::unknown(format!("{} was closed", self.pchannel)).into()));
                }
            }
        }
    }

    /// One step: an answer, a request, or an end.
    async fn serve(&mut self) -> Option<ProduceMessageResponse> {
        let room = self.in_flight < IN_FLIGHT && self.in_flight_bytes < self.max_in_flight_bytes;
        let idle = self.waiting.is_none();
        tokio::select! {
            biased;
            Some(answer) = self.answers.recv() => Some(self.answered(answer)),
            () = &mut self.ended => {
                self.stage = Stage::Draining(End::Wal);
                self.refuse_waiting()
            }
            charge = charged(&mut self.waiting), if !idle => {
                if let (Some((unsent, _)), Some(charge)) = (self.waiting.take(), charge) {
                    self.submit(unsent, charge);
                }
                None
            }
            request = self.requests.next(), if idle && room => match request {
                Some(Ok(request)) => self.request(request),
                // Half-closed, or gone.
                Some(Err(_)) | None => {
                    self.stage = Stage::Draining(End::Client);
                    None
                }
            },
        }
    }

    /// What is left to answer before the close.
    async fn drain(&mut self, end: End) -> Option<ProduceMessageResponse> {
        if self.in_flight > 0 {
            let answer = self.answers.recv().await?;
            return Some(self.answered(answer));
        }
        if end == End::Client {
            return None;
        }
        // What came after the WAL had ended.
        while let Some(Some(Ok(request))) = self.requests.next().now_or_never() {
            if let Some(produce_request::Request::Produce(ProduceMessageRequest { request_id, .. })) = request.request {
                return Some(refused(request_id, &StreamingError::channel_fenced(&self.pchannel)));
            }
        }
        None
    }

    fn refuse_waiting(&mut self) -> Option<ProduceMessageResponse> {
        let (unsent, _) = self.waiting.take()?;
        Some(refused(unsent.request_id, &StreamingError::channel_fenced(&self.pchannel)))
    }

    /// Sends a message on its way, or says why not. The close alone does nothing: the half-close after it counts.
    fn request(&mut self, request: ProduceRequest) -> Option<ProduceMessageResponse> {
        let Some(produce_request::Request::Produce(request)) = request.request else { return None };
        let request_id = request.request_id;
        match self.check(request) {
            Ok(unsent) => {
                match self.appends.try_charge(unsent.bytes) {
                    Some(charge) => self.submit(unsent, charge),
                    None => {
                        let charge = self.appends.clone().charge(unsent.bytes);
                        self.waiting = Some((unsent, charge.boxed()));
                    }
                }
                None
            }
            Err(error) => {
                metrics::refused();
                Some(refused(request_id, &error))
            }
        }
    }

    fn check(&self, request: ProduceMessageRequest) -> Result<Unsent, StreamingError> {
        let message: Message =
            request.message.ok_or_else(|| StreamingError::unrecoverable("the request holds no message"))?.into();
        let produced = check_produced(&message, &self.pchannel, self.max_message_bytes)?;
        if produced.replicate.is_some() {
            let cause = format!("{} is primary, it takes no replicated messages", self.pchannel);
            return Err(StreamingError::replicate_violation(cause));
        }
        let bytes = message.payload.len() + message.properties.size();
        Ok(Unsent { request_id: request.request_id, message, produced, bytes })
    }

    fn submit(&mut self, unsent: Unsent, charge: OwnedSemaphorePermit) {
        let Unsent { request_id, message, produced, bytes } = unsent;
        self.in_flight += 1;
        self.in_flight_bytes += bytes;
        let reply = Reply::new(Arc::clone(&self.pchannel), request_id, bytes, self.answer.clone());
        self.appends.submit(Append::new(message, &produced, charge, reply));
    }

    fn answered(&mut self, answer: Answer) -> ProduceMessageResponse {
        self.in_flight -= 1;
        self.in_flight_bytes -= answer.bytes;
        match answer.result {
            Ok(placed) => appended(answer.request_id, placed),
            Err(error) => refused(answer.request_id, &error),
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        metrics::producer_closed();
    }
}

async fn charged(
    waiting: &mut Option<(Unsent, BoxFuture<'static, Option<OwnedSemaphorePermit>>)>,
) -> Option<OwnedSemaphorePermit> {
    match waiting {
        Some((_, charge)) => charge.await,
        None => None,
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the item of a stream that may end")]
fn respond(response: Response) -> Option<Result<ProduceResponse, Status>> {
    Some(Ok(ProduceResponse { response: Some(response) }))
}

fn appended(request_id: i64, placed: Placed) -> ProduceMessageResponse {
    let result = ProduceMessageResponseResult {
        id: Some(placed.id.to_proto()),
        timetick: placed.tick,
        txn_context: placed.txn.map(TxnContext::to_proto),
        extra: None,
        last_confirmed_id: Some(placed.last_confirmed.to_proto()),
    };
    ProduceMessageResponse { request_id, response: Some(produce_message_response::Response::Result(result)) }
}

fn refused(request_id: i64, error: &StreamingError) -> ProduceMessageResponse {
    let response = Some(produce_message_response::Response::Error(error.to_proto()));
    ProduceMessageResponse { request_id, response }
}
