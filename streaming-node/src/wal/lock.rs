//! Keeps a message that needs its vchannel for itself apart from all others.
//!
//! While such a message is between its tick and its outcome, no other message of its vchannel is; one without a vchannel,
//! or with the pchannel's name in its place, needs the whole WAL. Arrival order holds: who comes after a message that
//! waits, waits behind it.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures::{FutureExt, task::AtomicWaker};
use tokio::sync::oneshot;
use tower::{Layer, Service};

use super::group::Group;

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

/// Groups are numbered as they come, and what waits for one waits for all before it, so one number tells what is in flight.
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
    /// Groups behind one that has none yet: one that needs nothing of the log is done at once.
    early: Mutex<BTreeSet<u64>>,
    moved: AtomicWaker,
}

impl Progress {
    fn finish(&self, group: u64) {
        let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        early.insert(group);
        let mut done = self.done.load(Ordering::Acquire);
        while early.remove(&(done + 1)) {
            done += 1;
        }
        self.done.store(done, Ordering::Release);
        self.moved.wake();
    }
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
    /// The last group that has to have its outcome before this one may go.
    fn waits_for(&self, group: &Group) -> u64 {
        let done = self.progress.done.load(Ordering::Acquire);
        let mut last = 0;
        for append in &group.appends {
            let scope = append.scope(&self.pchannel);
            if append.is_exclusive() {
                last = last.max(self.shared.last(scope)).max(self.exclusive.last(scope));
            } else if self.exclusive.any > done {
                last = last.max(self.exclusive.last(scope));
            }
        }
        last
    }

    fn pass(&mut self, group: Group) -> S::Future {
        let done = self.progress.done.load(Ordering::Acquire);
        for append in &group.appends {
            let scope = append.scope(&self.pchannel);
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
        self.progress.finish(self.number);
        Poll::Ready(group)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, sync::Mutex};

    use futures::task::noop_waker;

    use super::*;
    use crate::wal::group::samples;

    /// Takes groups and answers the oldest when told to.
    #[derive(Clone, Default)]
    struct Inner(Arc<Mutex<VecDeque<Called>>>);

    type Called = (Vec<String>, Group, oneshot::Sender<Group>);

    impl Inner {
        fn seen(&self) -> Vec<Vec<String>> {
            self.0.lock().unwrap().iter().map(|(names, ..)| names.clone()).collect()
        }

        fn answer(&self, index: usize) {
            let (_, group, answer) = self.0.lock().unwrap().remove(index).unwrap();
            let _ = answer.send(group);
        }
    }

    impl Service<Group> for Inner {
        type Response = Group;
        type Error = Infallible;
        type Future = futures::future::BoxFuture<'static, Result<Group, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, group: Group) -> Self::Future {
            let names = group.appends.iter().map(|append| append.vchannel().unwrap_or_default().to_owned()).collect();
            let (answer, answered) = oneshot::channel();
            self.0.lock().unwrap().push_back((names, group, answer));
            Box::pin(async { Ok(answered.await.unwrap_or_default()) })
        }
    }

    struct Fixture {
        inner: Inner,
        lock: Lock<Inner>,
        flying: VecDeque<Locked<<Inner as Service<Group>>::Future>>,
    }

    impl Fixture {
        fn new() -> Self {
            let inner = Inner::default();
            let lock = LockLayer { pchannel: "p".into() }.layer(inner.clone());
            Self { inner, lock, flying: VecDeque::new() }
        }

        fn ready(&mut self) -> bool {
            self.lock.poll_ready(&mut Context::from_waker(&noop_waker())).is_ready()
        }

        fn send(&mut self, exclusive: bool, vchannels: &[&str]) {
            assert!(self.ready());
            let appends = vchannels.iter().map(|vchannel| samples::append(1, vchannel, exclusive).0).collect();
            let group = Group { appends, ..Group::default() };
            self.flying.push_back(self.lock.call(group));
        }

        fn answer(&mut self) {
            self.answer_at(0);
        }

        fn answer_at(&mut self, index: usize) {
            self.inner.answer(index);
            let mut answered = self.flying.remove(index).unwrap();
            assert!(answered.poll_unpin(&mut Context::from_waker(&noop_waker())).is_ready());
        }
    }

    #[test]
    fn shared_messages_pass_together() {
        let mut fixture = Fixture::new();
        fixture.send(false, &["p_1v0", "p_2v0"]);
        fixture.send(false, &["p_1v0"]);
        assert_eq!(fixture.inner.seen().len(), 2);
    }

    #[test]
    fn exclusive_message_waits_for_its_vchannel_and_holds_it() {
        let mut fixture = Fixture::new();
        fixture.send(false, &["p_1v0"]);
        fixture.send(true, &["p_1v0"]);
        assert_eq!(fixture.inner.seen().len(), 1, "the earlier message has no outcome");
        assert!(!fixture.ready(), "nobody passes a message that waits");
        fixture.answer();
        fixture.send(false, &["p_1v0"]);
        assert_eq!(fixture.inner.seen().len(), 1, "only the exclusive one");
        assert!(!fixture.ready());
        fixture.answer();
        assert!(fixture.ready());
        assert_eq!(fixture.inner.seen(), vec![vec!["p_1v0"]]);
    }

    #[test]
    fn group_that_is_done_early_says_nothing_of_those_before_it() {
        let mut fixture = Fixture::new();
        fixture.send(false, &["p_1v0"]);
        fixture.send(false, &["p_2v0"]);
        fixture.send(false, &["p_3v0"]);
        fixture.answer_at(1);
        fixture.send(true, &["p_1v0"]);
        assert_eq!(fixture.inner.seen(), vec![vec!["p_1v0"], vec!["p_3v0"]], "the first one has no outcome");
        fixture.answer();
        assert!(fixture.ready());
        assert_eq!(fixture.inner.seen(), vec![vec!["p_3v0"], vec!["p_1v0"]]);
    }

    #[test]
    fn other_vchannels_are_not_held() {
        let mut fixture = Fixture::new();
        fixture.send(false, &["p_1v0"]);
        fixture.send(true, &["p_2v0"]);
        fixture.send(false, &["p_1v0", "p_3v0"]);
        fixture.send(true, &["p_4v0"]);
        assert_eq!(fixture.inner.seen().len(), 4);
    }

    #[test]
    fn exclusive_message_on_the_pchannel_needs_the_whole_wal() {
        let mut fixture = Fixture::new();
        fixture.send(false, &["p_1v0"]);
        fixture.send(true, &["p"]);
        assert_eq!(fixture.inner.seen().len(), 1);
        fixture.answer();
        fixture.send(false, &["p_9v0"]);
        assert_eq!(fixture.inner.seen(), vec![vec!["p"]]);
        fixture.answer();
        assert!(fixture.ready());
        assert_eq!(fixture.inner.seen(), vec![vec!["p_9v0"]]);
    }

    #[test]
    fn message_for_the_whole_wal_waits_for_an_exclusive_one_on_any_vchannel() {
        let mut fixture = Fixture::new();
        fixture.send(true, &["p_1v0"]);
        fixture.send(false, &["p"]);
        assert_eq!(fixture.inner.seen(), vec![vec!["p_1v0"]]);
        fixture.answer();
        assert!(fixture.ready());
        assert_eq!(fixture.inner.seen(), vec![vec!["p"]]);
    }

    #[test]
    fn vchannels_without_anything_in_flight_are_forgotten() {
        let mut uses = Uses::default();
        for group in 0..5000_u64 {
            uses.note(Some(&format!("p_{group}v0")), group + 1, group);
        }
        assert!(uses.by_vchannel.len() <= REMEMBERED);
    }
}
