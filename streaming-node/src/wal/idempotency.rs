//! Appends a message with an idempotency key once. A repeat gets the result of the first one, also when that was appended
//! under another owner of the WAL.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use futures::FutureExt;
use streaming_proto::messages::RollbackTxnMessageHeader;
use streaming_types::{MessageBuilder, MessageType};
use tower::{Layer, Service};

use super::{
    group::{Append, Group},
    window::{Claim, Done, Windows, key_of},
};
use crate::metrics;

#[derive(Debug, Clone)]
struct Shared(Arc<Mutex<Windows>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Windows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wraps a service of groups in [`Idempotency`].
#[derive(Debug, Clone)]
pub struct IdempotencyLayer {
    windows: Shared,
}

impl IdempotencyLayer {
    pub fn new(windows: Windows) -> Self {
        Self { windows: Shared(Arc::new(Mutex::new(windows))) }
    }
}

impl<S> Layer<S> for IdempotencyLayer {
    type Service = Idempotency<S>;

    fn layer(&self, inner: S) -> Idempotency<S> {
        Idempotency { inner, windows: self.windows.clone() }
    }
}

/// See the module.
pub struct Idempotency<S> {
    inner: S,
    windows: Shared,
}

impl<S> Service<Group> for Idempotency<S>
where
    S: Service<Group, Response = Group, Error = Infallible>,
    S::Future: Unpin,
{
    type Response = Group;
    type Error = Infallible;
    type Future = Idempotent<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut group: Group) -> Self::Future {
        take_repeats(&mut group, &mut self.windows.lock());
        Idempotent { inner: self.inner.call(group), windows: self.windows.clone() }
    }
}

/// A group on its way through [`Idempotency`].
pub struct Idempotent<F> {
    inner: F,
    windows: Shared,
}

impl<F> Future for Idempotent<F>
where
    F: Future<Output = Result<Group, Infallible>> + Unpin,
{
    type Output = Result<Group, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Ok(mut group) = ready!(self.inner.poll_unpin(cx));
        let mut repeats = Vec::new();
        let mut windows = self.windows.lock();
        for append in group.appends.iter().chain(&group.settled) {
            repeats.extend(conclude(append, &mut windows));
        }
        drop(windows);
        group.settled.extend(repeats);
        Poll::Ready(Ok(group))
    }
}

/// Takes out of a group what was appended before, or is on its way.
fn take_repeats(group: &mut Group, windows: &mut Windows) {
    let mut undone = Vec::new();
    let repeats: Vec<_> = group.appends.extract_if(.., |append| is_repeat(append, windows, &mut undone)).collect();
    metrics::repeats(repeats.len());
    group.appends.extend(undone);
    for mut append in repeats {
        // Its outcome is that of the first, so it is not noted.
        let settled = match append.key.take().filter(|_| append.outcome.is_none()) {
            Some(key) => {
                let vchannel = append.vchannel().unwrap_or_default().to_owned();
                windows.wait(&vchannel, key, append)
            }
            None => Some(append),
        };
        group.settled.extend(settled);
    }
}

/// A transaction that is run once more, as a whole, after its commit or while that is on its way, is `undone`: it ends
/// without effect, and its producer hears what became of the first.
fn is_repeat(append: &mut Append, windows: &mut Windows, undone: &mut Vec<Box<Append>>) -> bool {
    let Some(text) = key_of(&append.message.properties) else { return false };
    let key = windows.key(text, append.kind, txn_id(append));
    let claim = windows.claim(append.vchannel().unwrap_or_default(), key, txn_id(append));
    append.key = Some(key);
    let first = match claim {
        Claim::New => return false,
        Claim::Pending(first) => first,
        Claim::Done(Done { placed, flushed }) => {
            append.outcome = Some(Ok(placed));
            append.flushed = flushed;
            placed.txn.map(|txn| txn.txn_id)
        }
    };
    if append.kind == MessageType::CommitTxn && first != txn_id(append) {
        undone.extend(rollback(append));
    }
    true
}

/// What rolls the transaction of a commit back.
fn rollback(commit: &Append) -> Option<Box<Append>> {
    let (txn, vchannel) = (commit.txn?, commit.vchannel()?);
    let message = MessageBuilder::new(&RollbackTxnMessageHeader {}).vchannel(vchannel).txn(txn).build().ok()?;
    let mut rollback = Append::own(MessageType::RollbackTxn, message, None);
    rollback.txn = Some(txn);
    Some(rollback)
}

/// Notes the outcome of a message; gives back its repeats with the same one.
fn conclude(append: &Append, windows: &mut Windows) -> Vec<Box<Append>> {
    let Some(key) = append.key else { return Vec::new() };
    let vchannel = append.vchannel().unwrap_or_default();
    let mut repeats = match &append.outcome {
        Some(Ok(placed)) => windows.done(vchannel, key, Done { placed: *placed, flushed: append.flushed.clone() }),
        Some(Err(_)) | None => windows.forget(vchannel, key),
    };
    for repeat in &mut repeats {
        repeat.outcome.clone_from(&append.outcome);
        repeat.flushed.clone_from(&append.flushed);
    }
    repeats
}

fn txn_id(append: &Append) -> Option<i64> {
    append.txn.map(|txn| txn.txn_id)
}
