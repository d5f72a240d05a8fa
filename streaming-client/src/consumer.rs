//! Reading a channel.

use std::{fmt, pin::Pin, sync::Arc};

use futures::{FutureExt, future::BoxFuture};
use streaming_types::{
    DeliverFilter, DeliverPolicy, ImmutableMessage, MessageId, StreamingError, TimeTick, channel, properties::key,
};
use tokio_util::sync::WaitForCancellationFutureOwned;
use woodpecker_base::{backoff::Backoff, clock::Instant, trace};

use crate::{client::Session, error::ConsumeError, metrics::ConsumeMetrics};

mod assembly;
mod position;
mod stream;

use assembly::{Assembly, Fault};
use position::Position;
use stream::{ConsumeStream, Failed, Retry};

/// What to read, and from where.
#[derive(Debug, Clone)]
pub struct ConsumeOptions {
    /// A physical channel, to read all its vchannels, or one vchannel.
    pub channel: String,
    pub policy: DeliverPolicy,
    /// All must hold. A time filter holds for a transaction when it holds for its commit.
    pub filters: Vec<DeliverFilter>,
    /// Whether `next` also returns time ticks. They come about every 200 ms and say how far the channel is read.
    pub time_ticks: bool,
}

impl ConsumeOptions {
    /// Everything in `channel` from `policy` on, without time ticks.
    #[must_use]
    pub fn new(channel: impl Into<String>, policy: DeliverPolicy) -> Self {
        Self { channel: channel.into(), policy, filters: Vec::new(), time_ticks: false }
    }
}

/// What a consumer gets. Time ticks only grow from one delivery to the next.
#[derive(Debug, Clone, PartialEq)]
pub enum Delivery {
    Message(ImmutableMessage),
    /// A committed transaction, as one.
    Txn(Txn),
    /// Everything up to this tick has been delivered.
    TimeTick {
        time_tick: TimeTick,
        last_confirmed: MessageId,
    },
}

/// A committed transaction. Its place is that of its commit, whose time tick its bodies carry too.
#[derive(Debug, Clone, PartialEq)]
pub struct Txn {
    pub begin: ImmutableMessage,
    pub bodies: Vec<ImmutableMessage>,
    pub commit: ImmutableMessage,
}

/// Reads one channel in time-tick order. It has no task and no buffer of its own: what is not asked for stays with the
/// node, held back by HTTP/2 flow control (1 MiB for each consumer).
///
/// After any break it opens a new stream, at the channel's owner of then, from the last confirmed id of what it delivered
/// last, for larger time ticks: nothing is lost and nothing delivered twice. With [`DeliverPolicy::Latest`] that holds from
/// the first message or time tick on; a break before starts at the then latest message. Messages of version 0 share time
/// ticks: after a break those of the last tick may come again.
pub struct Consumer {
    reading: Reading,
    /// Resolves when the client is closed. Kept, for it is waited for with every delivery.
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
}

struct Reading {
    session: Arc<Session>,
    pchannel: String,
    time_ticks: bool,
    position: Position,
    assembly: Assembly,
    state: State,
    backoff: Backoff,
    trouble: Option<Trouble>,
    metrics: ConsumeMetrics,
}

/// There is no working stream.
#[derive(Debug)]
struct Trouble {
    since: Instant,
    cause: Option<String>,
}

enum State {
    Idle(Option<Retry>),
    /// Kept here and not in the future that `next` returns, so that a caller who drops that loses no progress.
    Opening(BoxFuture<'static, Result<ConsumeStream, Failed>>),
    Open(Box<ConsumeStream>),
}

impl Consumer {
    pub(crate) fn new(session: Arc<Session>, options: ConsumeOptions) -> Result<Self, ConsumeError> {
        let pchannel = channel::to_physical(&options.channel).to_owned();
        if pchannel.is_empty() {
            return Err(ConsumeError::InvalidRequest("no channel is named".to_owned()));
        }
        let vchannel = if channel::is_physical(&options.channel) { String::new() } else { options.channel };
        let core = &session.core;
        let closed = Box::pin(core.tasks.token().clone().cancelled_owned());
        let reading = Reading {
            time_ticks: options.time_ticks,
            position: Position::new(vchannel, options.policy, options.filters),
            assembly: Assembly::new(core.settings.limits.max_txn),
            state: State::Idle(None),
            backoff: core.backoff(),
            trouble: None,
            metrics: ConsumeMetrics::new(&pchannel),
            pchannel,
            session,
        };
        Ok(Self { reading, closed })
    }

    /// The physical channel that is read.
    #[must_use]
    pub fn channel(&self) -> &str {
        &self.reading.pchannel
    }

    /// The largest time tick seen: everything wanted up to it was delivered. `None` before the first.
    #[must_use]
    pub fn progress(&self) -> Option<TimeTick> {
        self.reading.position.time_tick()
    }

    /// The next delivery. Waits as long as there is none. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`ConsumeError::Stalled`] when there was no working stream for [`Timeouts::stall`](crate::Timeouts::stall): call
    /// again to go on. The others are final.
    pub async fn next(&mut self) -> Result<Delivery, ConsumeError> {
        tokio::select! {
            biased;
            () = &mut self.closed => Err(ConsumeError::Closed),
            delivery = self.reading.advance() => delivery,
        }
    }

    /// Ends the stream by the protocol's handshake. Says whether the node took part in time.
    pub async fn close(self) -> bool {
        match self.reading.state {
            State::Open(stream) => stream.close(&self.reading.session.core).await,
            State::Idle(_) | State::Opening(_) => true,
        }
    }
}

impl Reading {
    async fn advance(&mut self) -> Result<Delivery, ConsumeError> {
        loop {
            match &mut self.state {
                State::Idle(retry) => {
                    let retry = retry.take();
                    let core = self.session.core.clone();
                    let opening = stream::open(core, self.pchannel.clone(), self.position.request(), retry);
                    self.state = State::Opening(opening.boxed());
                }
                State::Opening(_) => self.opened().await?,
                State::Open(stream) => match stream.receive(&self.session.core).await {
                    Ok(message) => {
                        if let Some(delivery) = self.accept(message)? {
                            return Ok(delivery);
                        }
                    }
                    Err(error) => {
                        let term = stream.term();
                        self.broken(Failed { term, error })?;
                    }
                },
            }
        }
    }

    async fn opened(&mut self) -> Result<(), ConsumeError> {
        let State::Opening(opening) = &mut self.state else { return Ok(()) };
        let core = &self.session.core;
        let now = core.clock.now();
        let trouble = self.trouble.get_or_insert(Trouble { since: now, cause: None });
        let left = core.settings.timeouts.stall.saturating_sub(now - trouble.since);
        match core.clock.timeout(left, opening).await {
            Ok(Ok(stream)) => self.state = State::Open(Box::new(stream)),
            Ok(Err(failed)) => self.broken(failed)?,
            Err(_) => {
                let after = core.clock.now() - trouble.since;
                let cause = trouble.cause.take().unwrap_or_else(|| core.why_unassigned(&self.pchannel));
                self.trouble = None;
                return Err(ConsumeError::Stalled { after, cause });
            }
        }
        Ok(())
    }

    /// Takes one message off the wire. `None` when it is not (yet) something to deliver.
    fn accept(&mut self, message: ImmutableMessage) -> Result<Option<Delivery>, ConsumeError> {
        if let Some(place) = message.properties.get(key::TRACE_PARENT) {
            let size = message.size();
            let span =
                tracing::trace_span!(target: trace::TARGET, parent: None, "consume", channel = self.pchannel, size);
            trace::continue_from(&span, place);
        }
        let whole = match self.assembly.accept(message) {
            Ok(Some(whole)) => whole,
            Ok(None) => return Ok(None),
            Err(Fault::TooLarge(limit)) => {
                self.state = State::Idle(None);
                self.assembly.reset();
                return Err(ConsumeError::TxnTooLarge { limit });
            }
            Err(Fault::Malformed(cause)) => {
                let term = if let State::Open(stream) = &self.state { stream.term() } else { 0 };
                self.broken(Failed { term, error: StreamingError::unknown(cause) })?;
                return Ok(None);
            }
        };
        if self.position.is_repeat(&whole) {
            return Ok(None);
        }
        self.position.advance(&whole);
        self.trouble = None;
        self.backoff.reset();
        self.metrics.delivered(whole.size);
        let wanted = self.time_ticks || !matches!(whole.delivery, Delivery::TimeTick { .. });
        Ok(wanted.then_some(whole.delivery))
    }

    /// The stream is of no more use: the next one continues at the position of now.
    fn broken(&mut self, failed: Failed) -> Result<(), ConsumeError> {
        let Failed { term, error } = failed;
        let pause = self.backoff.delay();
        tracing::info!(channel = self.pchannel, %error, ?pause, "consume stream down");
        self.assembly.reset();
        self.state = State::Idle(Some(Retry { term, pause }));
        // IGNORED_OPERATION says that another process answered at the owner's address: a new assignment is on its way.
        if !error.is_retryable() && !error.is_ignored() {
            return Err(ConsumeError::Refused(error));
        }
        let since = self.session.core.clock.now();
        self.trouble.get_or_insert(Trouble { since, cause: None }).cause = Some(error.to_string());
        Ok(())
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("channel", &self.reading.pchannel)
            .field("position", &self.reading.position)
            .finish_non_exhaustive()
    }
}
