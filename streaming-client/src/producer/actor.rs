//! The task of one channel: takes appends in, keeps one Produce stream to the channel's owner, sends again what broke.

use std::sync::Arc;

use futures::{FutureExt, StreamExt, TryStreamExt};
use streaming_proto::streaming::{
    ProduceMessageResponse, ProduceResponse, produce_message_response::Response as Answer, produce_response::Response,
};
use streaming_types::{StreamingError, local::Stream};
use tokio::sync::mpsc;
use tonic::Status;
use woodpecker_base::{backoff::Backoff, clock::Instant};

use super::{
    AppendResult,
    stream::{self, Outbound, ProduceStream},
    window::{Entry, Scope, Window},
};
use crate::{
    alarm::Alarm, assignment::Channel, client::Core, connections::status_error, error::AppendError,
    metrics::AppendMetrics,
};

pub(super) struct Actor {
    core: Arc<Core>,
    name: String,
    inbox: mpsc::Receiver<Box<Entry>>,
    /// No more appends will come: the client closes, or the last producer is gone and all is settled.
    inbox_done: bool,
    #[expect(clippy::vec_box, reason = "they come in boxes and go on in them")]
    batch: Vec<Box<Entry>>,
    window: Window,
    backoff: Backoff,
    alarm: Alarm,
    /// By when a closing client wants everything finished.
    quit_at: Option<Instant>,
    /// What appends that run out of time are told.
    trouble: Option<String>,
    metrics: AppendMetrics,
}

/// A stream in use, and what is known about its end.
struct Serving {
    requests: Option<mpsc::Sender<Outbound>>,
    /// Set when the stream is to be left: nothing more is sent, answers are still taken.
    leaving: Option<StreamingError>,
    /// By when the awaited answers must be there.
    drained_by: Option<Instant>,
}

impl Actor {
    pub(super) fn new(core: Arc<Core>, name: String, inbox: mpsc::Receiver<Box<Entry>>) -> Self {
        Self {
            inbox,
            inbox_done: false,
            batch: Vec::new(),
            window: Window::new(core.settings.order),
            backoff: core.backoff(),
            alarm: Alarm::new(core.clock.clone()),
            quit_at: None,
            trouble: None,
            metrics: AppendMetrics::new(&name, false),
            core,
            name,
        }
    }

    pub(super) async fn run(mut self) {
        while let Some(channel) = self.assigned().await {
            let Some(opened) = self.meanwhile(stream::open(self.core.clone(), channel.clone())).await else { break };
            let ended = match opened {
                Ok(stream) => {
                    self.trouble = None;
                    self.metrics.over(stream.is_local);
                    self.serve(stream, &channel).await
                }
                Err(failure) => {
                    self.refused(&failure);
                    Err(failure)
                }
            };
            self.window.stream_ended();
            let Err(failure) = ended else { break };
            self.core.assignments.report(&channel.pchannel, &failure);
            let pause = self.backoff.delay();
            tracing::info!(channel = %channel.pchannel, %failure, ?pause, "produce stream down");
            self.trouble = Some(failure.to_string());
            let (core, term) = (self.core.clone(), channel.pchannel.term());
            let wait = async move { core.newer_term(channel.pchannel.name(), term, pause).await };
            if self.meanwhile(wait).await.is_none() {
                break;
            }
        }
        self.inbox.close();
        // Also what is about to arrive: it would hold the inbox open for ever, for it holds a sender.
        while let Some(entry) = self.inbox.recv().await {
            self.window.push(entry);
        }
        self.window.close();
    }

    /// The channel with its owner, as soon as it has one that takes appends. `None` when there is nothing left to do.
    async fn assigned(&mut self) -> Option<Channel> {
        match self.core.assigned(&self.name) {
            None => self.trouble = Some(self.core.why_unassigned(&self.name)),
            Some(channel) if channel.pchannel.is_read_only() => {
                self.trouble = Some(format!("{} can only be read", channel.pchannel));
            }
            Some(_) => {}
        }
        let (core, name) = (self.core.clone(), self.name.clone());
        self.meanwhile(async move { core.wait_assigned(&name, |channel| !channel.pchannel.is_read_only()).await }).await
    }

    /// Between two streams: a node that will not open one for us for good, as when our token may not write, is told to those
    /// who wait. The next append asks again, for a token can be exchanged.
    fn refused(&mut self, failure: &StreamingError) {
        if failure.is_unrecoverable() {
            for _ in 0..self.window.refuse(failure) {
                self.metrics.refused();
            }
        }
    }

    /// Drives `work` while appends are taken in and run out of time. `None` when the actor is over first.
    async fn meanwhile<F: Future>(&mut self, work: F) -> Option<F::Output> {
        tokio::pin!(work);
        loop {
            if self.is_over() {
                return None;
            }
            self.arm(None);
            tokio::select! {
                biased;
                output = &mut work => return Some(output),
                () = self.housekeep() => {}
            }
        }
    }

    fn is_over(&self) -> bool {
        let finished = self.inbox_done && self.window.is_empty();
        finished || self.quit_at.is_some_and(|at| at <= self.core.clock.now())
    }

    fn arm(&mut self, also: Option<Instant>) {
        if let Some(at) = [self.window.next_deadline(), self.quit_at, also].into_iter().flatten().min() {
            self.alarm.arm(at);
        }
    }

    /// Waits for what does not come from the stream, and handles it: appends, the clock, the end of the client.
    async fn housekeep(&mut self) {
        let room = self.core.settings.limits.in_flight_messages.saturating_sub(self.window.len());
        tokio::select! {
            biased;
            () = self.core.tasks.stopped(), if self.quit_at.is_none() => {
                self.quit_at = Some(self.core.clock.now() + self.core.settings.timeouts.close);
                self.inbox.close();
            }
            received = self.inbox.recv_many(&mut self.batch, room), if room > 0 && !self.inbox_done => {
                self.inbox_done = received == 0;
                for entry in self.batch.drain(..) {
                    self.window.push(entry);
                }
            }
            () = self.alarm.fired() => {
                let now = self.core.clock.now();
                self.window.expire(now, self.trouble.as_deref());
                self.window.retry(now);
            }
        }
    }

    /// Uses a stream until it ends. `Ok` when there is nothing left to do and the stream is closed.
    async fn serve(&mut self, stream: ProduceStream, channel: &Channel) -> Result<(), StreamingError> {
        let ProduceStream { requests, mut responses, .. } = stream;
        let mut serving = Serving { requests: Some(requests), leaving: None, drained_by: None };
        let (core, term) = (self.core.clone(), channel.pchannel.term());
        let newer = core.wait_assigned(channel.pchannel.name(), |latest| latest.pchannel.term() > term);
        tokio::pin!(newer);
        loop {
            if self.is_over() {
                serving.leave(StreamingError::unknown("closed"));
                return self.close(responses).await;
            }
            if let Some(failure) = serving.leaving.take_if(|_| !self.window.has_sent()) {
                return Err(failure);
            }
            let drained_by = self.drained_by(&mut serving)?;
            self.arm(drained_by);
            let can_send = self.window.has_next();
            tokio::select! {
                biased;
                response = responses.next() => {
                    let now = self.core.clock.now();
                    self.on_response(response, &mut serving, now)?;
                    // Those that are here already.
                    while self.window.has_sent() && let Some(response) = responses.next().now_or_never() {
                        self.on_response(response, &mut serving, now)?;
                    }
                }
                // The old owner may never learn that it lost the channel.
                _ = &mut newer, if serving.leaving.is_none() => {
                    serving.leave(StreamingError::unknown("the channel has a new owner"));
                }
                open = room(serving.requests.as_ref()), if can_send => match open {
                    true => self.send(serving.requests.as_ref()),
                    false => return Err(StreamingError::unknown("the stream takes no more requests")),
                },
                () = self.housekeep() => {}
            }
        }
    }

    /// Sends as long as there is room, so that several requests share a packet.
    fn send(&mut self, requests: Option<&mpsc::Sender<Outbound>>) {
        while let Some(Ok(permit)) = requests.map(mpsc::Sender::try_reserve)
            && let Some((id, message)) = self.window.next()
        {
            permit.send(Outbound::Produce { id, message });
        }
    }

    /// By when the answers must be there that one waits for before anything else can be sent.
    fn drained_by(&self, serving: &mut Serving) -> Result<Option<Instant>, StreamingError> {
        if serving.leaving.is_none() && !self.window.is_draining() {
            serving.drained_by = None;
            return Ok(None);
        }
        let now = self.core.clock.now();
        let by = *serving.drained_by.get_or_insert(now + self.core.settings.timeouts.drain);
        if by > now {
            return Ok(Some(by));
        }
        Err(serving.leaving.take().unwrap_or_else(|| StreamingError::unknown("requests were not answered")))
    }

    /// The error is why the stream has ended.
    fn on_response(
        &mut self,
        response: Option<Result<ProduceResponse, Status>>,
        serving: &mut Serving,
        now: Instant,
    ) -> Result<(), StreamingError> {
        let end = match response {
            Some(Ok(response)) => {
                match response.response {
                    Some(Response::Produce(answer)) => self.on_answer(answer, serving, now),
                    Some(Response::Close(_)) => serving.leave(StreamingError::unknown("the node closes the stream")),
                    // The node holds back what comes too fast by itself. A second `create` says nothing, and arms of later
                    // protocol versions are not for us.
                    Some(Response::RateLimit(_) | Response::Create(_)) | None => {}
                }
                return Ok(());
            }
            Some(Err(status)) => status_error(&status),
            None => StreamingError::unknown("the node ended the stream"),
        };
        Err(serving.leaving.take().unwrap_or(end))
    }

    fn on_answer(&mut self, answer: ProduceMessageResponse, serving: &mut Serving, now: Instant) {
        let id = answer.request_id;
        let outcome = match answer.response {
            Some(Answer::Result(result)) => AppendResult::from_wire(result),
            Some(Answer::Error(error)) => match StreamingError::check(&error) {
                Err(error) => return self.on_error(id, error, serving),
                Ok(()) => Err(AppendError::Malformed("an error that says success".to_owned())),
            },
            None => Err(AppendError::Malformed("neither result nor error".to_owned())),
        };
        self.backoff.reset();
        if let Some(entry) = self.window.take(id, true) {
            self.metrics.acknowledged(entry.size, now.saturating_duration_since(entry.admitted));
            entry.finish(outcome);
        }
    }

    fn on_error(&mut self, id: i64, error: StreamingError, serving: &mut Serving) {
        if !error.is_retryable() {
            self.metrics.refused();
            if let Some(entry) = self.window.take(id, false) {
                entry.finish(Err(if error.is_ignored() {
                    AppendError::Ignored(error)
                } else {
                    AppendError::Refused(error)
                }));
            }
            return;
        }
        self.metrics.retried();
        self.trouble = Some(error.to_string());
        let scope = if error.is_fenced() || error.is_wrong_node() { Scope::Log } else { Scope::Request };
        let Self { window, backoff, core, .. } = self;
        window.fail(id, scope, core.clock.now(), |failures| backoff.delay_after(failures));
        if scope == Scope::Log {
            serving.leave(error);
        }
    }

    /// The node's `close` and the end of the stream, as long as that does not take too long.
    async fn close(&mut self, mut responses: Stream<ProduceResponse>) -> Result<(), StreamingError> {
        let end = async { while let Ok(Some(_)) = responses.try_next().await {} };
        if self.core.clock.timeout(self.core.settings.timeouts.drain, end).await.is_err() {
            tracing::debug!(channel = self.name, "the node did not answer the close of a produce stream in time");
        }
        Ok(())
    }
}

impl Serving {
    /// `close`, then half-close, which is what the server really looks at.
    fn leave(&mut self, why: StreamingError) {
        self.leaving.get_or_insert(why);
        if let Some(requests) = self.requests.take()
            && requests.try_send(Outbound::Close).is_err()
        {
            tracing::debug!("produce stream left without a close: its queue is full");
        }
    }
}

/// Waits until a request can be queued; `false` when the stream takes none any more.
async fn room(requests: Option<&mpsc::Sender<Outbound>>) -> bool {
    match requests {
        Some(requests) => requests.reserve().await.is_ok(),
        None => std::future::pending().await,
    }
}
