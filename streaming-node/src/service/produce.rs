//! A Produce stream.
//!
//! Requests go to the WAL in the order in which they come, and are answered as they complete. The stream is driven by
//! the peer that reads it: one that does not read its answers sends no more requests after a while.

use std::{collections::VecDeque, pin::Pin, sync::Arc};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use prost::Message as _;
use streaming_proto::{
    messages::ManualFlushExtraResponse,
    streaming::{
        CloseProducerResponse, CreateProducerResponse, ProduceMessageRequest, ProduceMessageResponse,
        ProduceMessageResponseResult, ProduceRateLimitResponse, ProduceRequest, ProduceResponse,
        produce_message_response, produce_request, produce_response::Response,
    },
};
use streaming_types::{
    Message, StreamingCode, StreamingError, TxnContext,
    local::Stream,
    message::{Produced, check_produced},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::Status;

use super::{Services, on_the_way::OnTheWay};
use crate::{
    flow::{Limit, Limiter, to_wire},
    metrics,
    replication::Gap,
    wal::{
        Appends, WAL_NAME, Wal,
        allowance::Charge,
        group::{Answer, Append, Asked, Placed, Reply},
        sessions,
    },
};

/// What kind of extra result says which segments a flush has ended.
const MANUAL_FLUSH_EXTRA: &str = "type.googleapis.com/milvus.proto.messages.ManualFlushExtraResponse";

/// Requests of one stream that may be in flight.
const IN_FLIGHT: usize = 4096;
/// Bytes that wait for the rate behind which a stream looks for what does not: what waits has no room in flight, and a node
/// that is short of memory may have many streams.
const LOOK_AHEAD: usize = 1 << 20;

/// Serves one producer of a WAL.
pub fn serve(
    wal: &Wal,
    services: &Services,
    requests: Stream<ProduceRequest>,
) -> Result<Stream<ProduceResponse>, Status> {
    let Some(appends) = wal.appends() else {
        let cause = format!("{} is open for reading only", wal.channel().name());
        return Err(StreamingError::invalid_argument(cause).into());
    };
    let (answer, answers) = mpsc::channel(IN_FLIGHT);
    let mut limits = appends.limits();
    if *limits.borrow() != Limit::None {
        limits.mark_changed();
    }
    metrics::producers(wal.channel().name()).increment(1.0);
    // In a box, because it moves for every answer.
    let producer = Box::new(Producer {
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
        on_the_way: OnTheWay::new(
            services.clock.clone(),
            wal.channel().name().into(),
            services.settings.append_slow_threshold,
        ),
        waiting: VecDeque::new(),
        waiting_bytes: 0,
        admission: None,
        gap: Gap::default(),
        ending: None,
        limits,
        stage: Stage::Opening,
    });
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
    requests: Stream<ProduceRequest>,
    answer: mpsc::Sender<Answer>,
    answers: mpsc::Receiver<Answer>,
    in_flight: usize,
    in_flight_bytes: usize,
    on_the_way: OnTheWay,
    /// Messages that wait for room, the first of them for its admission.
    waiting: VecDeque<Unsent>,
    waiting_bytes: usize,
    admission: Option<BoxFuture<'static, Option<Charge>>>,
    /// The message of another cluster without which none behind it may go.
    gap: Gap,
    /// Why nothing more comes.
    ending: Option<End>,
    /// How fast the client may be, as far as it was told.
    limits: watch::Receiver<Limit>,
    stage: Stage,
}

/// A message that passed all checks.
struct Unsent {
    asked: Asked,
    message: Message,
    produced: Produced,
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

/// What ended the stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Client,
    /// A request was no message, or the connection broke.
    Unreadable,
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
                        return respond(response);
                    }
                }
                Stage::Draining(end) => {
                    if let Some(response) = self.drain(end).await {
                        return respond(Response::Produce(response));
                    }
                    self.stage = Stage::Closed(end);
                    if end != End::Unreadable {
                        return respond(Response::Close(CloseProducerResponse {}));
                    }
                }
                Stage::Closed(End::Client) => return None,
                Stage::Closed(End::Unreadable) => return self.fail(StreamingError::unreadable_request()),
                Stage::Closed(End::Wal) => {
                    return self.fail(StreamingError::unknown(format!("{} was closed", self.pchannel)));
                }
            }
        }
    }

    /// One step: an answer, a request, a new limit, or an end.
    async fn serve(&mut self) -> Option<Response> {
        if let Some(end) = self.ending.filter(|_| self.waiting.is_empty()) {
            self.stage = Stage::Draining(end);
            return None;
        }
        if let Ok(answer) = self.answers.try_recv() {
            return Some(Response::Produce(self.answered(answer)));
        }
        let reads = self.reads();
        tokio::select! {
            biased;
            Some(answer) = self.answers.recv() => Some(Response::Produce(self.answered(answer))),
            () = &mut self.ended => {
                self.stage = Stage::Draining(End::Wal);
                None
            }
            Ok(()) = self.limits.changed() => {
                let (state, rate) = to_wire(*self.limits.borrow_and_update());
                Some(Response::RateLimit(ProduceRateLimitResponse { state: state.into(), rate }))
            }
            charge = admitted(&mut self.admission) => {
                self.admission = None;
                if let (Some(unsent), Some(charge)) = (self.waits_no_more(), charge) {
                    self.submit(unsent, charge);
                }
                self.admit_first();
                None
            }
            request = self.requests.next(), if reads => {
                let mut refused = self.requested(request);
                // Those that are here already, as long as none needs an answer now.
                while refused.is_none()
                    && self.reads()
                    && let Some(request) = self.requests.next().now_or_never()
                {
                    refused = self.requested(request);
                }
                refused.map(Response::Produce)
            }
        }
    }

    /// Whether there is room for a request.
    fn reads(&self) -> bool {
        let room = self.in_flight < IN_FLIGHT && self.in_flight_bytes < self.max_in_flight_bytes;
        // While messages that bring data wait for the rate, others are looked for behind the first of them.
        let is_limited = *self.limits.borrow() != Limit::None;
        let passes = self.waiting.is_empty() || (is_limited && self.waiting_bytes < LOOK_AHEAD);
        room && passes && self.ending.is_none()
    }

    fn requested(&mut self, request: Option<Result<ProduceRequest, Status>>) -> Option<ProduceMessageResponse> {
        match request {
            Some(Ok(request)) => return self.request(request),
            Some(Err(_)) => self.ending = Some(End::Unreadable),
            // Half-closed.
            None => self.ending = Some(End::Client),
        }
        None
    }

    /// Keeps a message until there is room for it. It counts as in flight meanwhile.
    fn wait(&mut self, unsent: Unsent) {
        self.in_flight += 1;
        self.in_flight_bytes += unsent.asked.bytes;
        self.waiting_bytes += unsent.asked.bytes;
        self.waiting.push_back(unsent);
        self.admit_first();
    }

    /// The first of those that wait, which does so no more.
    fn waits_no_more(&mut self) -> Option<Unsent> {
        let unsent = self.waiting.pop_front()?;
        self.in_flight -= 1;
        self.in_flight_bytes -= unsent.asked.bytes;
        self.waiting_bytes -= unsent.asked.bytes;
        Some(unsent)
    }

    fn admit_first(&mut self) {
        if self.admission.is_none()
            && let Some(first) = self.waiting.front()
        {
            let admission = self.appends.clone().admit(first.produced.message_type, first.asked.bytes);
            self.admission = Some(admission.boxed());
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "the item of a stream that may end")]
    fn fail(&mut self, error: StreamingError) -> Option<Result<ProduceResponse, Status>> {
        self.stage = Stage::Closed(End::Client);
        Some(Err(error.into()))
    }

    /// What is left to answer before the close.
    async fn drain(&mut self, end: End) -> Option<ProduceMessageResponse> {
        if let Some(refused) = self.refuse_waiting() {
            return Some(refused);
        }
        if self.in_flight > 0 {
            let answer = self.answers.recv().await?;
            return Some(self.answered(answer));
        }
        if end != End::Wal {
            return None;
        }
        // What came after the WAL had ended.
        while let Some(Some(Ok(request))) = self.requests.next().now_or_never() {
            if let Some(produce_request::Request::Produce(ProduceMessageRequest { request_id, .. })) = request.request {
                return Some(self.refused(request_id, &StreamingError::channel_fenced(&self.pchannel)));
            }
        }
        None
    }

    fn refuse_waiting(&mut self) -> Option<ProduceMessageResponse> {
        let unsent = self.waits_no_more()?;
        Some(self.refused(unsent.asked.request_id, &StreamingError::channel_fenced(&self.pchannel)))
    }

    /// Sends a message on its way, or says why not. The close alone does nothing: the half-close after it counts.
    fn request(&mut self, request: ProduceRequest) -> Option<ProduceMessageResponse> {
        let Some(produce_request::Request::Produce(request)) = request.request else { return None };
        let request_id = request.request_id;
        match self.check(request) {
            Ok(unsent) => {
                let kind = unsent.produced.message_type;
                let charge = if self.may_pass(&unsent.produced) {
                    self.appends.try_admit(kind, unsent.asked.bytes)
                } else {
                    None
                };
                match charge {
                    Some(charge) => self.submit(unsent, charge),
                    None => self.wait(unsent),
                }
                None
            }
            Err(error) => Some(self.refused(request_id, &error)),
        }
    }

    /// Whether a message may go before those that wait. What is limited keeps its order, and so do what comes from another
    /// cluster and the end of a transaction.
    fn may_pass(&self, Produced { message_type, txn, replicate, .. }: &Produced) -> bool {
        let of_same = |unsent: &Unsent| unsent.produced.txn.map(|txn| txn.txn_id) == txn.map(|txn| txn.txn_id);
        let ordered = Limiter::concerns(*message_type) || replicate.is_some();
        let ends = sessions::End::of(*message_type).is_some() && self.waiting.iter().any(of_same);
        self.waiting.is_empty() || !(ordered || ends)
    }

    fn check(&mut self, request: ProduceMessageRequest) -> Result<Unsent, StreamingError> {
        let message: Message =
            request.message.ok_or_else(|| StreamingError::unrecoverable("the request holds no message"))?.into();
        let checked = check_produced(&message, &self.pchannel, self.max_message_bytes);
        let produced = checked.inspect_err(|_| {
            if let Ok(Some(header)) = message.properties.replicate() {
                self.gap.refused(&header);
            }
        })?;
        if let Some(header) = &produced.replicate {
            self.gap.pass(header)?;
        }
        let bytes = message.payload.len() + message.properties.size();
        let asked = self.on_the_way.begins(request.request_id, &message.properties, bytes);
        Ok(Unsent { asked, message, produced })
    }

    fn submit(&mut self, unsent: Unsent, charge: Charge) {
        let Unsent { asked, message, produced } = unsent;
        self.in_flight += 1;
        self.in_flight_bytes += asked.bytes;
        let reply = Reply::new(Arc::clone(&self.pchannel), asked, self.answer.clone());
        self.appends.submit(Append::new(message, &produced, charge, reply));
    }

    fn answered(&mut self, Answer { asked, result, flushed }: Answer) -> ProduceMessageResponse {
        self.in_flight -= 1;
        self.in_flight_bytes -= asked.bytes;
        let request_id = asked.request_id;
        self.on_the_way.ends(asked, result.is_ok());
        match result {
            Ok(placed) => appended(request_id, placed, flushed),
            Err(error) => self.refused(request_id, &error),
        }
    }

    /// What the next owner is to take, or somebody took before, is answered with an error too, and counts as none.
    fn refused(&self, request_id: i64, error: &StreamingError) -> ProduceMessageResponse {
        if !matches!(error.code(), StreamingCode::ChannelFenced | StreamingCode::IgnoredOperation) {
            metrics::refused(&self.pchannel);
        }
        let response = Some(produce_message_response::Response::Error(error.to_proto()));
        ProduceMessageResponse { request_id, response }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        metrics::producers(&self.pchannel).decrement(1.0);
    }
}

async fn admitted(admission: &mut Option<BoxFuture<'static, Option<Charge>>>) -> Option<Charge> {
    match admission {
        Some(admission) => admission.await,
        None => std::future::pending().await,
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the item of a stream that may end")]
fn respond(response: Response) -> Option<Result<ProduceResponse, Status>> {
    Some(Ok(ProduceResponse { response: Some(response) }))
}

fn appended(request_id: i64, placed: Placed, flushed: Option<Vec<i64>>) -> ProduceMessageResponse {
    let mut result = ProduceMessageResponseResult {
        id: Some(placed.id.to_proto()),
        timetick: placed.tick,
        txn_context: placed.txn.map(TxnContext::to_proto),
        extra: None,
        last_confirmed_id: Some(placed.last_confirmed.to_proto()),
    };
    if let Some(segment_ids) = flushed {
        let extra = result.extra.get_or_insert_default();
        MANUAL_FLUSH_EXTRA.clone_into(&mut extra.type_url);
        extra.value = ManualFlushExtraResponse { segment_ids }.encode_to_vec();
    }
    ProduceMessageResponse { request_id, response: Some(produce_message_response::Response::Result(result)) }
}
