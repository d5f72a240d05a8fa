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
use streaming_types::MessageType;
use tower::{Layer, Service};

use super::{
    group::{Append, Group, Placed},
    window::{Claim, Done, Key, Windows, key_of},
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
    let repeats: Vec<_> = group.appends.extract_if(.., |append| is_repeat(append, windows)).collect();
    metrics::repeats(repeats.len());
    for append in repeats {
        let key = key_of(&append.message.properties).map(str::to_owned);
        let settled = match key.filter(|_| append.outcome.is_none()) {
            Some(key) => {
                let vchannel = append.vchannel().unwrap_or_default().to_owned();
                let key = Key::new(&key, append.kind, txn_id(&append));
                windows.wait(&vchannel, key, append)
            }
            None => Some(append),
        };
        group.settled.extend(settled);
    }
}

fn is_repeat(append: &mut Append, windows: &mut Windows) -> bool {
    let Some((vchannel, key)) = scope(append) else { return false };
    match windows.claim(vchannel, key) {
        Claim::New => false,
        Claim::Pending => true,
        Claim::Done(Done { placed, .. }) if ends_another(append, &placed) => {
            roll_back(append, placed);
            false
        }
        Claim::Done(Done { placed, flushed }) => {
            append.outcome = Some(Ok(placed));
            append.flushed = flushed;
            true
        }
    }
}

/// Whether this is the commit of a transaction that was run once more, as a whole, after it had been committed.
fn ends_another(append: &Append, placed: &Placed) -> bool {
    append.kind == MessageType::CommitTxn && txn_id(append) != placed.txn.map(|txn| txn.txn_id)
}

/// Ends the second run without effect; its producer hears what became of the first.
fn roll_back(commit: &mut Append, placed: Placed) {
    commit.kind = MessageType::RollbackTxn;
    commit.repeats = Some(placed);
    commit.message.payload.clear();
    let properties = &mut commit.message.properties;
    properties.set_type(MessageType::RollbackTxn);
    properties.set_header_bytes(&[]);
    properties.remove(streaming_types::properties::key::IDEMPOTENCY);
}

/// Notes the outcome of a message; gives back its repeats with the same one.
fn conclude(append: &Append, windows: &mut Windows) -> Vec<Append> {
    let Some((vchannel, key)) = scope(append) else { return Vec::new() };
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

fn scope(append: &Append) -> Option<(&str, Key<'_>)> {
    let key = key_of(&append.message.properties)?;
    Some((append.vchannel().unwrap_or_default(), Key::new(key, append.kind, txn_id(append))))
}

fn txn_id(append: &Append) -> Option<i64> {
    append.txn.map(|txn| txn.txn_id)
}
