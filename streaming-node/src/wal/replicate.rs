//! Lets through what a WAL of its role may take: clients' messages on a primary, on a secondary those of its source, each
//! once and in the source's order.
//!
//! [`Replicate`] judges, above whatever else may refuse a message. The last layer that may, the one of transactions, asks
//! again ([`SharedReplication::pass`]): where one replicated message was refused on the way, those after it are stopped
//! until that one comes again; what is after a gap would make the gap look like a repeat.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use futures::FutureExt;
use streaming_proto::{
    common::{MessageId, ReplicateCheckpoint},
    messages::AlterReplicateConfigMessageHeader,
};
use streaming_types::{MessageType, StreamingError, TxnContext};
use tower::{Layer, Service};

use super::group::{Append, Group};
use crate::replication::{Fact, Replication, behind_a_gap};

/// The state, shared between the layers and whoever asks how far it is.
#[derive(Debug, Clone)]
pub struct SharedReplication(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// With what was let through by [`Replicate`], by all layers, and what is durable.
    admitted: Replication,
    passed: Replication,
    durable: Replication,
    /// Messages that were let through by each.
    count: u64,
    passed_count: u64,
    /// The source's ids of the messages that were admitted in the present call.
    batch: Vec<Option<MessageId>>,
    /// The message that was refused on the way: nothing is taken before it comes again.
    awaited: Option<MessageId>,
}

impl SharedReplication {
    pub fn new(recovered: &Replication) -> Self {
        Self(Arc::new(Mutex::new(State {
            admitted: recovered.clone(),
            passed: recovered.clone(),
            durable: recovered.clone(),
            count: 0,
            passed_count: 0,
            batch: Vec::new(),
            awaited: None,
        })))
    }

    /// How far a secondary is at its source, as far as that is durable; `None` on a primary.
    pub fn checkpoint(&self) -> Option<ReplicateCheckpoint> {
        self.lock().durable.checkpoint()
    }

    /// Lets a message through to the log, if all before it were, and `admit` does.
    pub fn pass(
        &self,
        append: &mut Append,
        admit: impl FnOnce(&mut Append) -> Result<(), StreamingError>,
    ) -> Result<(), StreamingError> {
        let Some(number) = append.replica else { return admit(append) };
        let mut state = self.lock();
        if number != state.passed_count {
            return Err(behind_a_gap());
        }
        admit(append)?;
        state.passed.apply(&fact(append)?, false);
        state.passed_count += 1;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What of a message matters here; `None` if it has nothing to do with replication.
fn fact(append: &Append) -> Result<Fact<'_>, StreamingError> {
    let mut fact = Fact {
        kind: append.kind,
        header: append.replicate.as_deref(),
        txn_id: append.txn.map(|txn| txn.txn_id),
        config: None,
        by_force: false,
    };
    if append.kind == MessageType::AlterReplicateConfig {
        let header: AlterReplicateConfigMessageHeader =
            append.message.header().map_err(|error| StreamingError::unrecoverable(error.to_string()))?;
        fact.by_force = header.force_promote;
        fact.config = header.replicate_configuration;
    }
    Ok(fact)
}

impl State {
    fn admit(&mut self, append: &mut Append) -> Result<(), StreamingError> {
        let concerns = append.replicate.is_some() || append.kind == MessageType::AlterReplicateConfig;
        if !concerns && self.admitted.is_primary() {
            return Ok(());
        }
        let fact = fact(append)?;
        self.admitted.judge(&fact)?;
        if !concerns {
            return Ok(());
        }
        let id = fact.header.and_then(|header| header.message_id.clone());
        if self.awaited.is_some() {
            // Who is promoted waits for its source no more.
            let promotes = id.is_none() && fact.by_force;
            if self.awaited != id && !promotes {
                return Err(behind_a_gap());
            }
            self.awaited = None;
        }
        self.admitted.apply(&fact, false);
        self.batch.push(id);
        append.replica = Some(self.count);
        self.count += 1;
        if append.replicate.is_some() {
            // It ends when its source says so, however long that takes.
            append.txn = append.txn.map(|txn| TxnContext::infinite(txn.txn_id));
        }
        Ok(())
    }

    /// Takes back what was admitted and did not get through.
    fn settle(&mut self) {
        if self.count != self.passed_count {
            let through =
                self.batch.len() - usize::try_from(self.count - self.passed_count).unwrap_or(self.batch.len());
            self.awaited = self.batch.get(through).cloned().flatten();
            tracing::warn!(awaited = ?self.awaited, "a replicated message was refused, none is taken before it comes again");
            self.admitted = self.passed.clone();
            self.count = self.passed_count;
        }
        self.batch.clear();
    }
}

/// Wraps a service of groups in [`Replicate`].
#[derive(Debug, Clone)]
pub struct ReplicateLayer {
    pub shared: SharedReplication,
}

impl<S> Layer<S> for ReplicateLayer {
    type Service = Replicate<S>;

    fn layer(&self, inner: S) -> Replicate<S> {
        Replicate { inner, shared: self.shared.clone() }
    }
}

/// See the module.
pub struct Replicate<S> {
    inner: S,
    shared: SharedReplication,
}

impl<S> Service<Group> for Replicate<S>
where
    S: Service<Group, Response = Group, Error = Infallible>,
    S::Future: Unpin,
{
    type Response = Group;
    type Error = Infallible;
    type Future = Replicating<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut group: Group) -> Self::Future {
        let mut state = self.shared.lock();
        group.settle(|append| state.admit(append).err().map(Err));
        drop(state);
        let inner = self.inner.call(group);
        self.shared.lock().settle();
        Replicating { inner, shared: self.shared.clone() }
    }
}

/// A group on its way through [`Replicate`].
pub struct Replicating<F> {
    inner: F,
    shared: SharedReplication,
}

impl<F> Future for Replicating<F>
where
    F: Future<Output = Result<Group, Infallible>> + Unpin,
{
    type Output = Result<Group, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Ok(group) = ready!(self.inner.poll_unpin(cx));
        if let Some(Ok(_)) = group.written
            && group.appends.iter().any(|append| append.replica.is_some())
        {
            let mut state = self.shared.lock();
            for append in group.appends.iter().filter(|append| append.replica.is_some()) {
                if let Ok(fact) = fact(append) {
                    state.durable.apply(&fact, false);
                }
            }
        }
        Poll::Ready(Ok(group))
    }
}
