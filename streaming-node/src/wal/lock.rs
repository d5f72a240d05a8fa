//! Keeps a message that needs its vchannel for itself apart from all others.
//!
//! While such a message is between its tick and its outcome, no other message of its vchannel is; one without a vchannel,
//! or with the pchannel's name in its place, needs the whole WAL. Arrival order holds: who comes after a message that
//! waits, waits behind it.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures::{FutureExt, task::AtomicWaker};
use tokio::sync::oneshot;
use tower::{Layer, Service};

use super::group::{Append, Group};

/// Vchannels remembered before the ones with nothing in flight are forgotten.
const REMEMBERED: usize = 1024;

/// Wraps a service of groups in [`Lock`].
#[derive(Debug, Clone)]
pub struct LockLayer {
    pub pchannel: Arc<str>,
}

impl<S: Service<Group>> Layer<S> for LockLayer {
    type Service = Lock<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Lock {
            inner,
            pchannel: Arc::clone(&self.pchannel),
            called: 0,
            progress: Arc::default(),
            shared: Uses::default(),
            exclusive: Uses::default(),
            waiting: None,
        }
    }
}

/// Groups are numbered as they come, and answered in that order, so one number tells what is in flight.
pub struct Lock<S: Service<Group>> {
    inner: S,
    pchannel: Arc<str>,
    called: u64,
    progress: Arc<Progress>,
    shared: Uses,
    exclusive: Uses,
    /// A group that must wait for others, and where its future is awaited.
    waiting: Option<(Group, oneshot::Sender<S::Future>)>,
}

#[derive(Debug, Default)]
struct Progress {
    /// Every group up to this one has its outcome.
    done: AtomicU64,
    moved: AtomicWaker,
}

/// The last group that used each vchannel.
#[derive(Debug, Default)]
struct Uses {
    by_vchannel: BTreeMap<String, u64>,
    whole_wal: u64,
    any: u64,
}

impl Uses {
    fn note(&mut self, vchannel: Option<&str>, group: u64, done: u64) {
        self.any = group;
        match vchannel {
            None => self.whole_wal = group,
            Some(name) => match self.by_vchannel.get_mut(name) {
                Some(last) => *last = group,
                None => {
                    if self.by_vchannel.len() >= REMEMBERED {
                        self.by_vchannel.retain(|_, last| *last > done);
                    }
                    self.by_vchannel.insert(name.to_owned(), group);
                }
            },
        }
    }

    /// The last group that conflicts with a use of `vchannel`.
    fn last(&self, vchannel: Option<&str>) -> u64 {
        vchannel.map_or(self.any, |name| self.by_vchannel.get(name).copied().unwrap_or(0).max(self.whole_wal))
    }
}

impl<S: Service<Group>> Lock<S> {
    /// The vchannel that a message holds; `None` is the whole WAL.
    fn scope<'a>(&self, append: &'a Append) -> Option<&'a str> {
        append.vchannel().filter(|vchannel| !vchannel.is_empty() && *vchannel != &*self.pchannel)
    }

    /// The last group that has to have its outcome before this one may go.
    fn waits_for(&self, group: &Group) -> u64 {
        let done = self.progress.done.load(Ordering::Acquire);
        let mut last = 0;
        for append in &group.appends {
            let scope = self.scope(append);
            if append.is_exclusive() {
                last = last.max(self.shared.last(scope)).max(self.exclusive.last(scope));
            } else if self.exclusive.any > done {
                last = last.max(self.exclusive.last(scope.or(Some(""))));
            }
        }
        last
    }

    fn pass(&mut self, group: Group) -> S::Future {
        let done = self.progress.done.load(Ordering::Acquire);
        for append in &group.appends {
            let scope = append.vchannel().filter(|vchannel| !vchannel.is_empty() && **vchannel != *self.pchannel);
            let uses = if append.is_exclusive() { &mut self.exclusive } else { &mut self.shared };
            uses.note(scope, self.called, done);
        }
        self.inner.call(group)
    }
}

impl<S> Service<Group> for Lock<S>
where
    S: Service<Group, Response = Group, Error = Infallible>,
    S::Future: Unpin,
{
    type Response = Group;
    type Error = Infallible;
    type Future = Locked<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if let Some((group, _)) = &self.waiting {
            self.progress.moved.register(cx.waker());
            if self.waits_for(group) > self.progress.done.load(Ordering::Acquire) {
                return Poll::Pending;
            }
            let Ok(()) = ready!(self.inner.poll_ready(cx));
            if let Some((group, passed)) = self.waiting.take() {
                // Nobody listens when the WAL has ended; the group's answers say so.
                let _ = passed.send(self.pass(group));
            }
        }
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, group: Group) -> Self::Future {
        self.called += 1;
        let waits = self.waits_for(&group) > self.progress.done.load(Ordering::Acquire);
        let stage = if waits {
            let (passed, future) = oneshot::channel();
            self.waiting = Some((group, passed));
            Stage::Waiting(future)
        } else {
            Stage::Passed(self.pass(group))
        };
        Locked { stage, number: self.called, progress: Arc::clone(&self.progress) }
    }
}

/// A group on its way through [`Lock`].
pub struct Locked<F> {
    stage: Stage<F>,
    number: u64,
    progress: Arc<Progress>,
}

enum Stage<F> {
    Waiting(oneshot::Receiver<F>),
    Passed(F),
}

impl<F> Future for Locked<F>
where
    F: Future<Output = Result<Group, Infallible>> + Unpin,
{
    type Output = Result<Group, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Stage::Waiting(future) = &mut self.stage {
            match ready!(future.poll_unpin(cx)) {
                Ok(future) => self.stage = Stage::Passed(future),
                // The stack is gone and the group with it.
                Err(_) => return Poll::Ready(Ok(Group::default())),
            }
        }
        let Stage::Passed(future) = &mut self.stage else { return Poll::Pending };
        let group = ready!(future.poll_unpin(cx));
        self.progress.done.fetch_max(self.number, Ordering::AcqRel);
        self.progress.moved.wake();
        Poll::Ready(group)
    }
}
