//! Runs transactions: begins and ends them, refuses messages of those that are not open, and says of every message where a
//! reader has to start that wants everything from it on.
//!
//! A message is its own last-confirmed id, because log order is tick order, unless a transaction is open: then it is an
//! entry before the begin of the oldest one. A commit finds all messages of its transaction before it, since they passed
//! here before; what the log does not take ends the WAL for all of them.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::FutureExt;
use streaming_proto::messages::BeginTxnMessageHeader;
use streaming_types::{MessageType, StreamingError, TimeTick, TxnContext};
use tower::{Layer, Service};

use super::{
    group::{Append, Group},
    record,
    replicate::SharedReplication,
    sessions::{End, Sessions, SharedSessions},
};

/// Longest keepalive that a client may ask for: as long as a transaction is open, nothing behind its begin can go.
pub const LONGEST_KEEPALIVE_MS: i64 = 24 * 3600 * 1000;

/// Wraps a service of groups in [`Txns`].
#[derive(Debug, Clone)]
pub struct TxnLayer {
    pub pchannel: Arc<str>,
    pub sessions: SharedSessions,
    pub replication: SharedReplication,
    /// Of a transaction whose begin asks for none.
    pub keepalive: Duration,
}

impl<S> Layer<S> for TxnLayer {
    type Service = Txns<S>;

    fn layer(&self, inner: S) -> Txns<S> {
        let Self { pchannel, sessions, replication, keepalive } = self.clone();
        Txns { inner, pchannel, sessions, replication, keepalive }
    }
}

/// See the module.
pub struct Txns<S> {
    inner: S,
    pchannel: Arc<str>,
    sessions: SharedSessions,
    replication: SharedReplication,
    keepalive: Duration,
}

impl<S> Service<Group> for Txns<S>
where
    S: Service<Group, Response = Group, Error = Infallible>,
    S::Future: Unpin,
{
    type Response = Group;
    type Error = Infallible;
    type Future = InTxns<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut group: Group) -> Self::Future {
        let mut sessions = self.sessions.lock();
        let (pchannel, keepalive) = (&self.pchannel, self.keepalive);
        let mut pass = |append: &mut Append| {
            self.replication.pass(append, |append| admit(append, &mut sessions, pchannel, keepalive))
        };
        group.settle(|append| pass(append).err().map(Err));
        if let Some(closing) = &mut group.closing {
            sessions.expire(TimeTick(closing.tick));
            closing.confirmed = sessions.confirmed();
        }
        drop(sessions);
        InTxns { inner: self.inner.call(group), sessions: self.sessions.clone() }
    }
}

/// A group on its way through [`Txns`].
pub struct InTxns<F> {
    inner: F,
    sessions: SharedSessions,
}

impl<F> Future for InTxns<F>
where
    F: Future<Output = Result<Group, Infallible>> + Unpin,
{
    type Output = Result<Group, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Ok(group) = ready!(self.inner.poll_unpin(cx));
        if let Some(Ok(last)) = &group.written {
            self.sessions.lock().reached(*last);
        }
        Poll::Ready(Ok(group))
    }
}

fn admit(
    append: &mut Append,
    sessions: &mut Sessions,
    pchannel: &str,
    default: Duration,
) -> Result<(), StreamingError> {
    let tick = TimeTick(append.tick);
    if append.is_exclusive() {
        sessions.fail(append.scope(pchannel));
    }
    // A begin does not have to be read again for itself; a commit is still open when it says where to start.
    append.confirmed = sessions.confirmed();
    let vchannel = append.message.properties.vchannel().unwrap_or_default();
    match (append.kind, append.txn) {
        (MessageType::BeginTxn, replicated) => {
            // What another cluster began keeps its id, and ends only with it.
            let context = match replicated {
                Some(context) => context,
                None => TxnContext::new(append.tick.cast_signed(), keepalive(append, default)?),
            };
            sessions.begin(context, vchannel, tick)?;
            append.message.properties.set_txn(context);
            append.txn = Some(context);
        }
        (kind, Some(context)) => match End::of(kind) {
            Some(end) => sessions.end(context.txn_id, vchannel, end, tick)?,
            None => sessions.body(context.txn_id, vchannel, append.bytes, tick)?,
        },
        (_, None) => {}
    }
    record::set_confirmed(&mut append.message.properties, append.confirmed);
    Ok(())
}

/// The keepalive that a begin asks for, in milliseconds.
fn keepalive(begin: &Append, default: Duration) -> Result<i64, StreamingError> {
    let header: BeginTxnMessageHeader =
        begin.message.header().map_err(|error| StreamingError::unrecoverable(error.to_string()))?;
    match header.keepalive_milliseconds {
        0 => Ok(i64::try_from(default.as_millis()).unwrap_or(LONGEST_KEEPALIVE_MS)),
        ms if (1..=LONGEST_KEEPALIVE_MS).contains(&ms) => Ok(ms),
        // Clients would repeat for ever what is answered with INVAILD_ARGUMENT.
        ms => Err(StreamingError::unrecoverable(format!(
            "keepalive of {ms} ms is not between 1 ms and {LONGEST_KEEPALIVE_MS} ms"
        ))),
    }
}
