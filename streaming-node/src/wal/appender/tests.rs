//! The whole stack over a log that takes its time.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use futures::{FutureExt, future::BoxFuture};
use proptest::prelude::*;
use streaming_proto::messages::{BeginTxnMessageHeader, CommitTxnMessageHeader, DeleteMessageHeader};
use streaming_types::{Message, MessageBuilder, StreamingCode, TxnContext};
use tokio::sync::oneshot;
use woodpecker::EntryId;
use woodpecker_base::random::Random;

use super::*;
use crate::{
    TimestampError, TimestampSource,
    replication::Replication,
    wal::{
        group::{Placed, samples},
        sessions::Sessions,
        ticks::Ticks,
    },
};

#[derive(Debug, Default)]
struct Timestamps(AtomicU64);

#[async_trait]
impl TimestampSource for Timestamps {
    async fn allocate(&self, count: u32) -> Result<Range<u64>, TimestampError> {
        let first = self.0.fetch_add(u64::from(count), Ordering::Relaxed) + 1;
        Ok(first..first + u64::from(count))
    }
}

/// Takes groups, and answers the oldest when it is told to; at once what needs nothing of a log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    waiting: VecDeque<(Group, oneshot::Sender<Group>)>,
    last_tick: u64,
    entries: u64,
}

impl Log {
    fn answer(&self) {
        let mut held = self.0.lock().unwrap();
        let Some((mut group, answer)) = held.waiting.pop_front() else { return };
        for append in &mut group.appends {
            held.entries += 1;
            append.outcome = Placed::new(append, EntryId { segment: 1, entry: held.entries }).map(Ok);
        }
        group.written = (!group.appends.is_empty()).then_some(Ok(EntryId { segment: 1, entry: held.entries }));
        answer.send(group).unwrap();
    }
}

impl Held {
    /// What has to hold for every group that comes to the log.
    fn check(&mut self, group: &Group) {
        let closing = group.closing.map(|closing| closing.tick);
        for tick in group.appends.iter().map(|append| append.tick).chain(closing) {
            assert!(tick > self.last_tick, "{tick} came after {}", self.last_tick);
            self.last_tick = tick;
        }
        let in_flight = self.waiting.iter().flat_map(|(group, _)| &group.appends);
        for (earlier, append) in in_flight.flat_map(|earlier| group.appends.iter().map(move |append| (earlier, append)))
        {
            let (one, other) = (earlier.scope("p"), append.scope("p"));
            let meet = one.is_none() || other.is_none() || one == other;
            let shared = !earlier.is_exclusive() && !append.is_exclusive();
            assert!(shared || !meet, "{} and {} on {one:?} and {other:?}", earlier.kind, append.kind);
        }
        for append in &group.appends {
            assert!(append.barrier.is_none_or(|barrier| TimeTick(append.tick) > barrier));
        }
    }
}

impl Service<Group> for Log {
    type Response = Group;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Group, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, group: Group) -> Self::Future {
        let mut held = self.0.lock().unwrap();
        held.check(&group);
        if group.appends.is_empty() && group.closing.is_some_and(|closing| !closing.persisted) {
            return Box::pin(async { Ok(group) });
        }
        let (answer, answered) = oneshot::channel();
        held.waiting.push_back((group, answer));
        Box::pin(async { Ok(answered.await.unwrap()) })
    }
}

#[derive(Debug, Clone)]
struct Sent {
    vchannel: u8,
    exclusive: bool,
    key: Option<u8>,
    barrier: Option<u16>,
}

#[derive(Debug, Clone)]
enum Step {
    Send(Vec<Sent>),
    Answer,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sent = (
        0..4_u8,
        prop::bool::weighted(0.15),
        prop::option::weighted(0.3, 0..5_u8),
        prop::option::weighted(0.1, any::<u16>()),
    )
        .prop_map(|(vchannel, exclusive, key, barrier)| Sent { vchannel, exclusive, key, barrier });
    let step = prop_oneof![3 => prop::collection::vec(sent, 0..6).prop_map(Step::Send), 2 => Just(Step::Answer)];
    prop::collection::vec(step, 1..40)
}

fn append(sent: &Sent) -> Box<Append> {
    let vchannel = if sent.vchannel == 0 { "p".to_owned() } else { format!("p_{}v0", sent.vchannel) };
    let mut append = samples::append(1, &vchannel, sent.exclusive).0;
    sent.key.iter().for_each(|key| append.message.properties.set_idempotency_key(key.to_string()));
    append.barrier = sent.barrier.map(|barrier| TimeTick(barrier.into()));
    append
}

/// Groups as an appender makes them.
fn groups(sent: &[Sent]) -> Vec<Group> {
    let of = |sent: &[Sent]| Group { appends: sent.iter().map(append).collect(), ..Group::default() };
    if sent.is_empty() {
        vec![Group::default()]
    } else {
        sent.chunk_by(|a, b| !a.exclusive && !b.exclusive).map(of).collect()
    }
}

struct Run {
    stack: Stack<Log>,
    sessions: SharedSessions,
    log: Log,
    in_flight: FuturesOrdered<<Stack<Log> as Service<Group>>::Future>,
    done: Vec<Group>,
}

impl Run {
    async fn new() -> Self {
        Self::of(&Replication::new("by-dev", "p")).await
    }

    async fn of(replication: &Replication) -> Self {
        let ticks = Ticks::above(0, Arc::new(Timestamps::default()), Clock::system(), &Random::seeded(1)).await;
        let log = Log::default();
        let sessions = SharedSessions::new(Sessions::new(EntryId { segment: 1, entry: 0 }));
        let parts = StackParts {
            pchannel: "p".into(),
            ticks: SharedTicks::new(ticks),
            sessions: sessions.clone(),
            windows: Windows::new(1 << 20, 1),
            replication: SharedReplication::new(replication),
            sharding: crate::shard::samples::layer(),
            keepalive: streaming_types::txn::DEFAULT_KEEPALIVE,
        };
        let stack = stack(parts, log.clone());
        Self { stack, sessions, log, in_flight: FuturesOrdered::new(), done: Vec::new() }
    }

    /// Sends messages as one group, which the log does not answer yet.
    async fn send(&mut self, messages: impl IntoIterator<Item = Message>) {
        self.ready().await;
        let appends = messages.into_iter().map(|message| samples::of(1, message).0).collect();
        self.in_flight.push_back(self.stack.call(Group { appends, ..Group::default() }));
    }

    /// Lets the log answer everything; what became of the messages that were sent since the last time, by their payload.
    async fn finish(&mut self) -> BTreeMap<String, Result<Placed, StreamingError>> {
        while !self.in_flight.is_empty() {
            self.ready().await;
            self.log.answer();
            self.collect();
        }
        let all = self.done.drain(..).flat_map(|group| group.appends.into_iter().chain(group.settled));
        let text = |append: &Append| String::from_utf8_lossy(&append.message.payload).into_owned();
        all.map(|append| (text(&append), append.outcome.unwrap())).collect()
    }

    /// Waits until the stack takes a group; what holds it back is answered.
    async fn ready(&mut self) {
        while poll_fn(|cx| Poll::Ready(self.stack.poll_ready(cx).is_pending())).await {
            self.log.answer();
            self.collect();
            yield_now().await;
        }
    }

    fn collect(&mut self) {
        while let Some(Some(Ok(group))) = self.in_flight.next().now_or_never() {
            self.done.push(group);
        }
    }

    async fn run(mut self, steps: Vec<Step>) -> Vec<Group> {
        for step in steps {
            match step {
                Step::Send(sent) => {
                    for group in groups(&sent) {
                        self.ready().await;
                        self.in_flight.push_back(self.stack.call(group));
                    }
                }
                Step::Answer => self.log.answer(),
            }
            self.collect();
        }
        while !self.in_flight.is_empty() {
            self.ready().await;
            self.log.answer();
            self.collect();
        }
        self.done
    }
}

const V: &str = "p_1v0";

fn begin(name: &str) -> Message {
    MessageBuilder::new(&BeginTxnMessageHeader::default()).vchannel(V).payload(name.to_owned()).build().unwrap()
}

fn body(name: &str, vchannel: &str, txn: TxnContext) -> Message {
    let body = MessageBuilder::new(&DeleteMessageHeader::default()).vchannel(vchannel).payload(name.to_owned());
    body.txn(txn).build().unwrap()
}

fn commit(name: &str, txn: TxnContext) -> Message {
    let commit = MessageBuilder::new(&CommitTxnMessageHeader {}).vchannel(V).payload(name.to_owned());
    commit.txn(txn).build().unwrap()
}

#[tokio::test]
async fn commit_that_comes_again_in_another_transaction_while_the_first_is_on_its_way_ends_that_without_effect() {
    let mut run = Run::new().await;
    run.send([begin("first begin"), begin("second begin")]).await;
    let begun = run.finish().await;
    let txn = |name: &str| begun[name].clone().unwrap().txn.unwrap();
    let [first, second] = ["first begin", "second begin"].map(txn);
    let keyed = |mut message: Message| {
        message.properties.set_idempotency_key("key");
        message
    };
    run.send([body("first body", V, first), keyed(commit("first", first))]).await;
    run.send([body("second body", V, second), keyed(commit("second", second)), keyed(commit("again", second))]).await;
    let ended = run.finish().await;
    assert_eq!(ended["first"].clone().unwrap().txn, Some(first));
    assert_eq!([&ended["second"], &ended["again"]], [&ended["first"]; 2]);
    assert_eq!(run.sessions.lock().open(), 0);
    let late = run.sessions.lock().end(second.txn_id, V, End::Committed, TimeTick(u64::MAX)).unwrap_err();
    assert!(late.cause().ends_with("current TxnRollbacked"), "{late}");
}

#[tokio::test]
async fn commit_behind_a_refused_message_of_its_transaction_leaves_the_transaction_open() {
    use crate::replication::samples::{header, topology};
    let mut config = topology(&[("a", "b")]);
    config.clusters[1].pchannels = vec!["p".to_owned()];
    let mut run = Run::of(&Replication::recovered("b", "p", Some(config), None, Vec::new())).await;
    let txn = TxnContext::infinite(7);
    let from_source = |mut message: Message, entry| {
        message.properties.set_replicate(&header(entry, 100));
        message
    };
    let mut begin = begin("begin");
    begin.properties.set_txn(txn);
    run.send([from_source(begin, 1)]).await;
    run.send([from_source(body("refused", "p_2v0", txn), 2), from_source(commit("early", txn), 3)]).await;
    let ended = run.finish().await;
    let code = |name: &str| ended[name].as_ref().err().map(StreamingError::code);
    assert_eq!(code("refused"), Some(StreamingCode::Unrecoverable), "on another vchannel");
    assert_eq!(code("early"), Some(StreamingCode::Inner));
    run.send([from_source(body("body", V, txn), 2), from_source(commit("commit", txn), 3)]).await;
    for (name, result) in run.finish().await {
        assert!(result.is_ok(), "{name}: {result:?}");
    }
}

/// Groups come back in tick order, every message has an outcome, and those with one key on one vchannel have one.
fn check(groups: &[Group], sent: usize) {
    let closings = groups.iter().map(|group| group.closing.unwrap().tick);
    assert!(closings.is_sorted_by(|a, b| a < b));
    let all: Vec<_> = groups.iter().flat_map(|group| group.appends.iter().chain(&group.settled)).collect();
    assert_eq!(all.len(), sent);
    let mut by_key = BTreeMap::new();
    let mut ids = std::collections::BTreeSet::new();
    for append in all {
        let placed = append.outcome.clone().unwrap().unwrap();
        if let Some(key) = append.message.properties.idempotency_key() {
            let scope = (append.vchannel().map(str::to_owned), key.to_owned());
            if *by_key.entry(scope).or_insert(placed) == placed {
                ids.insert(placed.id);
                continue;
            }
            panic!("two outcomes for one key");
        }
        assert!(ids.insert(placed.id), "an id for two messages");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn ticks_rise_and_exclusive_messages_are_alone_whatever_the_log_does(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let count = |step: &Step| match step { Step::Send(sent) => sent.len(), Step::Answer => 0 };
        let sent = steps.iter().map(count).sum();
        let groups = runtime.block_on(async { Run::new().await.run(steps).await });
        check(&groups, sent);
    }
}
