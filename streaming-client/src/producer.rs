//! Appending to a channel.

use std::{
    future::Future,
    io::Write as _,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use streaming_proto::streaming::ProduceMessageResponseResult;
use streaming_types::{
    Message, MessageId, TimeTick, TxnContext,
    message::{InvalidMessage, check_produced},
    properties::key,
};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tracing::Span;
use woodpecker_base::{clock::Instant, trace};

use crate::{
    client::{Core, Session},
    error::AppendError,
};

mod actor;
pub(crate) mod stream;
mod transaction;
mod window;

pub use transaction::Transaction;
use window::{Entry, Held, Scope};

/// Appends to one physical channel and its vchannels. Cheap to clone; all producers of a channel in a client share one
/// Produce stream, which finds the channel's owner and follows it to the next one by itself.
///
/// **Delivery.** An append is retried until it is acknowledged, refused, or [`Timeouts::append`](crate::Timeouts::append)
/// is over. What was acknowledged is never sent again. A message that was sent but not acknowledged when its stream broke
/// may be in the log, and is sent again. It carries an idempotency key, by which the node knows it: the log holds it once,
/// and the result is that of the first time. Only without keys ([`Settings::idempotent`](crate::Settings::idempotent)), or
/// at a node that does not know them or has forgotten the key, the log may hold it twice, with different ids and time ticks.
///
/// **Order.** With [`Order::Strict`](crate::Order::Strict), the log holds the appends of one channel in the order of the
/// `append` calls, taking the first copy of each message if there are several. The messages of a broken stream are sent
/// again as one run, oldest first, before any newer one; late copies from the broken stream can only repeat a part of that
/// run. This rests on a node that appends the requests of one stream in their order of arrival, which ours does; for another one set
/// [`Limits::in_flight_messages`](crate::Limits::in_flight_messages) to 1.
#[derive(Debug, Clone)]
pub struct Producer {
    shared: Arc<Shared>,
    /// Keeps the client's tasks running.
    _session: Arc<Session>,
}

/// What the producers of one channel share; the actor ends when the last of them is gone, and all that they appended settled.
#[derive(Debug)]
pub(crate) struct Shared {
    core: Arc<Core>,
    channel: String,
    inbox: mpsc::Sender<Box<Entry>>,
    /// Byte budget of what is not acknowledged.
    credit: Arc<Semaphore>,
    keys: Keys,
}

/// Idempotency keys: nobody else has the same.
#[derive(Debug)]
struct Keys {
    producer: u64,
    next: AtomicU64,
}

impl Keys {
    /// Hands the next one on.
    fn next<R>(&self, then: impl FnOnce(&str) -> R) -> R {
        let (mut text, next) = ([0; 32], self.next.fetch_add(1, Ordering::Relaxed));
        let mut rest = text.as_mut_slice();
        // Two numbers of 64 bits have no more digits than there is room.
        let _ = write!(rest, "{:016x}{next:012x}", self.producer);
        let length = 32 - rest.len();
        then(std::str::from_utf8(&text[..length]).unwrap_or_default())
    }
}

/// Where an appended message stands.
#[derive(Debug, Clone, PartialEq)]
pub struct AppendResult {
    pub id: MessageId,
    pub time_tick: TimeTick,
    /// Reading from here meets the message and everything with a larger time tick. Servers of before 2.6.3 do not say it.
    pub last_confirmed_id: Option<MessageId>,
    /// Only for messages of a transaction.
    pub txn: Option<TxnContext>,
    /// What some message types answer besides, such as the segments that a manual flush sealed.
    pub extra: Option<prost_types::Any>,
}

impl AppendResult {
    fn from_wire(wire: ProduceMessageResponseResult) -> Result<Self, AppendError> {
        let malformed = |error: streaming_types::message_id::MessageIdError| AppendError::Malformed(error.to_string());
        Ok(Self {
            id: MessageId::from_proto(wire.id.as_ref()).map_err(malformed)?,
            time_tick: TimeTick(wire.timetick),
            last_confirmed_id: wire
                .last_confirmed_id
                .as_ref()
                .map(MessageId::try_from)
                .transpose()
                .map_err(malformed)?,
            txn: wire.txn_context.as_ref().map(TxnContext::from),
            extra: wire.extra,
        })
    }
}

/// An accepted append: resolves when it is acknowledged or has failed for good. Dropping it does not take the append back.
#[derive(Debug)]
#[must_use = "an append that nobody waits for may fail unnoticed"]
pub struct Append {
    reply: oneshot::Receiver<Result<AppendResult, AppendError>>,
    /// Until the reply, in the trace that the message carries.
    span: Span,
}

impl Future for Append {
    type Output = Result<AppendResult, AppendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let reply = ready!(Pin::new(&mut self.reply).poll(cx));
        self.span = Span::none();
        // Nobody answers when the runtime goes down with the actor: whether it was sent is unknown.
        Poll::Ready(reply.unwrap_or(Err(AppendError::Closed { sent: true })))
    }
}

impl Producer {
    pub(crate) fn new(shared: Arc<Shared>, session: Arc<Session>) -> Self {
        Self { shared, _session: session }
    }

    /// The physical channel.
    #[must_use]
    pub fn channel(&self) -> &str {
        &self.shared.channel
    }

    /// Accepts a message for its vchannel. Waits while the channel's budget of unacknowledged bytes or messages is used up;
    /// await what it returns for the result. The order of the calls is the order of the appends.
    ///
    /// # Errors
    /// [`AppendError::TooLarge`] and [`AppendError::InvalidMessage`] before anything is encoded or sent;
    /// [`AppendError::Timeout`] when there was no room in time; [`AppendError::Closed`] when the client was closed.
    pub async fn append(&self, message: Message) -> Result<Append, AppendError> {
        self.shared.append(message).await
    }
}

impl Shared {
    /// Starts the channel's actor.
    pub(crate) fn start(core: &Arc<Core>, channel: String) -> Arc<Self> {
        let limits = &core.settings.limits;
        let (inbox, entries) = mpsc::channel(limits.in_flight_messages);
        let actor = actor::Actor::new(core.clone(), channel.clone(), entries);
        core.spawn(actor.run());
        let credit = Arc::new(Semaphore::new(limits.in_flight_bytes));
        let keys = Keys { producer: core.random.u64(), next: AtomicU64::new(0) };
        Arc::new(Self { core: core.clone(), channel, inbox, credit, keys })
    }

    async fn append(self: &Arc<Self>, mut message: Message) -> Result<Append, AppendError> {
        if self.core.settings.idempotent && message.properties.idempotency_key().is_none() {
            self.keys.next(|key| message.properties.set_idempotency_key(key));
        }
        let span = self.traced(&mut message);
        let limits = &self.core.settings.limits;
        check_produced(&message, &self.channel, limits.max_message).map_err(|invalid| match invalid {
            InvalidMessage::TooLarge { size, limit } => AppendError::TooLarge { size, limit },
            other => AppendError::InvalidMessage(other),
        })?;
        let message = Arc::new(message.into());
        // A message of the largest size has to fit with its envelope, which the budget does not count.
        let size = stream::request_len(&message).min(limits.in_flight_bytes);
        let admitted = self.core.clock.now();
        let deadline = admitted + self.core.settings.timeouts.append;

        let (reply, result) = oneshot::channel();
        let mut entry = Box::new(Entry {
            message,
            size,
            admitted,
            deadline,
            reply,
            held: None,
            sent: false,
            failures: 0,
            retry_at: admitted,
            scope: Scope::Request,
        });
        let permits = u32::try_from(size).unwrap_or(u32::MAX);
        let credit = match self.credit.clone().try_acquire_many_owned(permits) {
            Ok(credit) => credit,
            Err(_) => {
                let acquire = self.credit.clone().acquire_many_owned(permits);
                self.in_time(deadline, acquire).await?.map_err(|_| AppendError::Closed { sent: false })?
            }
        };
        entry.held = Some(Held { _credit: credit, _shared: self.clone() });
        match self.inbox.try_send(entry) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(AppendError::Closed { sent: false }),
            Err(mpsc::error::TrySendError::Full(entry)) => {
                let send = self.inbox.send(entry);
                self.in_time(deadline, send).await?.map_err(|_| AppendError::Closed { sent: false })?;
            }
        }
        Ok(Append { reply: result, span })
    }

    /// The span of an append. A message that belongs to no trace yet carries its place in this one.
    fn traced(&self, message: &mut Message) -> Span {
        let span = tracing::trace_span!(target: trace::TARGET, "produce", channel = self.channel);
        match message.properties.get(key::TRACE_PARENT) {
            Some(place) => trace::continue_from(&span, place),
            None => {
                if let Some(place) = trace::traceparent(&span) {
                    message.properties.set(key::TRACE_PARENT, place);
                }
            }
        }
        span
    }

    async fn in_time<F: Future>(&self, deadline: Instant, future: F) -> Result<F::Output, AppendError> {
        let limit = deadline.saturating_duration_since(self.core.clock.now());
        let wait = self.core.clock.timeout(limit, future);
        match self.core.tasks.token().run_until_cancelled(wait).await {
            None => Err(AppendError::Closed { sent: false }),
            Some(Ok(output)) => Ok(output),
            Some(Err(_)) => Err(AppendError::Timeout {
                after: self.core.settings.timeouts.append,
                sent: false,
                cause: "no room among the unacknowledged appends of the channel".to_owned(),
            }),
        }
    }
}
