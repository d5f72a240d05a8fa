//! Many writers and readers on several pchannels over several terms: plain messages, transactions of every fate, repeats,
//! messages that need a vchannel for themselves, messages in pieces. Owners crash, or are fenced, with appends in flight,
//! which their writers send again. The write-ahead buffer is so small that readers keep moving between it and the log, and
//! transactions find so little room that readers read many of them again.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::{join, join_all};
use streaming_types::{
    DeliverFilter, DeliverPolicy, Message, MessageId, MessageType, PChannel, StreamingCode, StreamingError, TimeTick,
    TxnContext, message::check_produced,
};
use tokio::sync::{mpsc, watch};
use woodpecker_base::tasks::Tasks;

use super::{
    harness::World,
    parts::{begin, commit, delete, exclusive, keyed, rollback},
};
use crate::{
    Settings,
    wal::{
        Stored, Wal,
        group::{Append, Placed, Reply, samples::asked},
        scanner::ScanOptions,
    },
};

const PCHANNELS: usize = 3;
const TERMS: usize = 3;
/// Appends of one pchannel at one term.
const WRITES: usize = 10_000;
const WRITERS: usize = 48;

fn settings() -> Settings {
    Settings {
        buffer_bytes: 10 << 10,
        buffer_age: Duration::from_millis(500),
        heartbeat: Duration::from_millis(50),
        entry_bytes: 2 << 10,
        // So little that readers often find no room for a transaction.
        node_held_bytes: 2 << 10,
        ..Settings::default()
    }
}

/// What a reader sees at once, by the tick it stands at.
type Seen = BTreeMap<u64, Vec<String>>;

struct Channel {
    world: World,
    name: String,
    /// The WAL that is served, by the newest owner.
    wal: watch::Sender<Option<Arc<Wal>>>,
    writes: AtomicUsize,
    committed: Mutex<Seen>,
    /// The last tick that readers wait for.
    end: watch::Sender<Option<u64>>,
}

impl Channel {
    fn new(index: usize) -> Self {
        Self {
            world: World::new(),
            name: format!("by-dev-rootcoord-dml_{index}"),
            wal: watch::Sender::new(None),
            writes: AtomicUsize::new(0),
            committed: Mutex::default(),
            end: watch::Sender::new(None),
        }
    }

    /// Opens the WAL as a process whose storage dies with `storage`.
    async fn open(&self, term: i64, read_only: bool, storage: &Tasks, tasks: &Tasks) -> Arc<Wal> {
        let opener = self.world.opener(settings(), storage, tasks);
        let channel =
            if read_only { PChannel::read_only(&self.name, term) } else { PChannel::read_write(&self.name, term) };
        Arc::new(opener.open(&channel.unwrap(), term).await.unwrap())
    }

    /// Serves every term for its share of writes; ends each one with appends in flight.
    async fn own(&self) {
        let mut before: Option<(Tasks, Tasks)> = None;
        for term in 1..=TERMS {
            if let Some((storage, _)) = before.as_ref().filter(|_| term % 2 == 0) {
                // A crash; the other owners are fenced.
                storage.stop();
            }
            let (storage, tasks) = (Tasks::new(), Tasks::new());
            let wal = self.open(i64::try_from(term).unwrap(), false, &storage, &tasks).await;
            self.wal.send_replace(Some(wal));
            before = Some((storage, tasks));
            while self.writes.load(Ordering::Relaxed) < term * WRITES {
                self.world.clock.sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// The served WAL, other than one that has ended.
    async fn serving(&self, ended: Option<&Arc<Wal>>) -> Arc<Wal> {
        let mut wals = self.wal.subscribe();
        let other =
            |wal: &Option<Arc<Wal>>| wal.as_ref().is_some_and(|wal| ended.is_none_or(|ended| !Arc::ptr_eq(ended, wal)));
        wals.wait_for(other).await.unwrap().clone().unwrap()
    }

    /// Appends at whoever serves the WAL, until there is an outcome.
    async fn append(&self, message: Message) -> Result<Placed, StreamingError> {
        let produced = check_produced(&message, &self.name, usize::MAX).unwrap();
        let mut ended = None;
        loop {
            let wal = self.serving(ended.as_ref()).await;
            let appends = wal.appends().unwrap();
            let charge = appends.clone().charge(message.size()).await.unwrap();
            let (sender, mut answers) = mpsc::channel(1);
            let reply = Reply::new(self.name.as_str().into(), asked(1, message.size()), sender);
            appends.submit(Append::new(message.clone(), &produced, charge, reply));
            match answers.recv().await.unwrap().result {
                Err(error) if error.is_fenced() => ended = Some(wal),
                result => {
                    self.writes.fetch_add(1, Ordering::Relaxed);
                    if let Ok(placed) = result
                        && placed.txn.is_none()
                        && let Some(point) = wal.read_point(message.properties.vchannel().unwrap())
                    {
                        assert!(point >= placed.tick, "a read at the read point misses what was acked");
                    }
                    return result;
                }
            }
        }
    }

    fn committed(&self, tick: u64, labels: Vec<String>) {
        assert!(self.committed.lock().unwrap().insert(tick, labels).is_none(), "tick {tick} twice");
    }

    async fn plain(&self, label: String, message: Message) {
        let placed = self.append(message).await.unwrap();
        self.committed(placed.tick, vec![label]);
    }

    /// A transaction, in which every step may find that it has expired or was ended by an exclusive message.
    async fn txn(&self, name: &str, vchannel: &str, bodies: usize, fate: Fate) -> Result<(), StreamingError> {
        let keepalive = if fate == Fate::Abandon { 40 } else { 0 };
        let begun = self.append(keyed(begin(vchannel, keepalive), format!("{name}/begin"))).await?;
        let txn: TxnContext = begun.txn.unwrap();
        let mut labels = Vec::new();
        for body in 0..bodies {
            let label = format!("{name}/{body}");
            self.append(keyed(delete(vchannel, &label, Some(txn)), label.clone())).await?;
            labels.push(label);
        }
        match fate {
            Fate::Commit => {
                let placed = self.append(keyed(commit(vchannel, txn), format!("{name}/commit"))).await?;
                self.committed(placed.tick, labels);
            }
            Fate::RollBack => {
                self.append(rollback(vchannel, txn)).await?;
            }
            Fate::Abandon => {}
        }
        Ok(())
    }

    async fn write(&self, writer: usize) {
        let mut rng = fastrand::Rng::with_seed(u64::try_from(writer).unwrap());
        let mut n = 0;
        while self.writes.load(Ordering::Relaxed) < TERMS * WRITES {
            n += 1;
            let name = format!("{writer}/{n}");
            let vchannel = format!("{}_{}v0", self.name, rng.u32(0..3));
            let plain = || keyed(delete(&vchannel, &name, None), name.clone());
            let fate = match rng.u32(0..1000) {
                0..700 => {
                    self.plain(name.clone(), plain()).await;
                    continue;
                }
                700..730 => {
                    let (first, second) = join(self.append(plain()), self.append(plain())).await;
                    assert_eq!(first, second, "one message, one result");
                    self.committed(first.unwrap().tick, vec![name.clone()]);
                    continue;
                }
                730..735 => {
                    let scope = if rng.bool() { &vchannel } else { &self.name };
                    self.plain(name.clone(), keyed(exclusive(scope, &name), name.clone())).await;
                    continue;
                }
                735..745 => {
                    let label = format!("{name} {}", "x".repeat(rng.usize(2 << 10..9 << 10)));
                    self.plain(label.clone(), keyed(delete(&vchannel, &label, None), name.clone())).await;
                    continue;
                }
                745..940 => Fate::Commit,
                940..980 => Fate::RollBack,
                _ => Fate::Abandon,
            };
            if let Err(error) = self.txn(&name, &vchannel, rng.usize(0..5), fate).await {
                assert_eq!(error.code(), StreamingCode::TransactionExpired, "{error}");
            }
        }
    }

    /// Follows the WAL to its end, from owner to owner, and resumes by what it has seen last.
    async fn read(&self, seed: u64) -> Read {
        let mut read = Read::default();
        let mut ended = None;
        loop {
            let wal = self.serving(ended.as_ref()).await;
            match self.read_on(&wal, &mut read, seed).await {
                true => return read,
                false => ended = Some(wal),
            }
        }
    }

    /// Whether the end was reached, and not that of the WAL.
    async fn read_on(&self, wal: &Wal, read: &mut Read, seed: u64) -> bool {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut scanner = wal.scanner(read.options());
        read.open = None;
        loop {
            let Ok(messages) = scanner.next().await else { return false };
            for message in messages {
                read.take(&message);
                if read.last_unit().is_some_and(|last| *self.end.borrow() == Some(last)) {
                    return true;
                }
            }
            if rng.u32(..100) == 0 {
                self.world.clock.sleep(Duration::from_millis(rng.u64(5..60))).await;
            }
        }
    }

    /// Read points of a vchannel never fall.
    async fn watch_read_points(&self) {
        let vchannel = format!("{}_0v0", self.name);
        let mut last = 0;
        while self.end.borrow().is_none() {
            let point = self.serving(None).await.read_point(&vchannel).unwrap_or(last);
            assert!(point >= last, "{point} after {last}");
            last = point;
            self.world.clock.sleep(Duration::from_millis(3)).await;
        }
    }

    async fn run(&self) {
        let writes = async {
            join_all((0..WRITERS).map(|writer| self.write(writer))).await;
            let placed = self.append(delete(&self.name, "the end", None)).await.unwrap();
            self.committed(placed.tick, vec!["the end".to_owned()]);
            self.end.send_replace(Some(placed.tick));
        };
        let read_only = async {
            let wal = self.open(1, true, &Tasks::new(), &Tasks::new()).await;
            let mut read = Read::default();
            assert!(self.read_on(&wal, &mut read, 3).await);
            read
        };
        let (_, (), (), first, second, third) =
            futures::join!(self.own(), writes, self.watch_read_points(), self.read(1), self.read(2), read_only);
        let committed = self.committed.lock().unwrap().clone();
        for read in [&first, &second, &third] {
            let differs = committed.iter().zip(&read.units).find(|(a, b)| a.0 != &b.tick || a.1 != &b.labels);
            assert!(differs.is_none(), "{}: {differs:?}", self.name);
            assert_eq!(committed.len(), read.units.len(), "{}", self.name);
        }
        let txns = committed.values().filter(|labels| labels.len() != 1).count();
        assert!(txns > TERMS * WRITES / 50, "only {txns} transactions were committed");
        self.resume(&first.units).await;
    }

    async fn resume(&self, units: &[Unit]) {
        let wal = self.serving(None).await;
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..5 {
            let from = rng.usize(..units.len());
            let mut read = Read { from: Some((units[from].confirmed, units[from].tick - 1)), ..Read::default() };
            assert!(self.read_on(&wal, &mut read, 9).await);
            assert!(read.units == units[from..], "{}: resuming from message {from}", self.name);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Commit,
    RollBack,
    Abandon,
}

/// A message, or a whole transaction.
#[derive(Debug, PartialEq)]
struct Unit {
    tick: u64,
    confirmed: MessageId,
    labels: Vec<String>,
}

/// What a reader has seen.
#[derive(Default)]
struct Read {
    units: Vec<Unit>,
    open: Option<(i64, Vec<String>)>,
    /// Of the last unit or tick: where to go on, and what was seen.
    from: Option<(MessageId, u64)>,
}

impl Read {
    fn options(&self) -> ScanOptions {
        let (policy, filters) = match self.from {
            None => (DeliverPolicy::All, Vec::new()),
            Some((confirmed, tick)) => {
                (DeliverPolicy::StartFrom(confirmed), vec![DeliverFilter::TimeTickGreaterThan(TimeTick(tick))])
            }
        };
        ScanOptions { vchannel: String::new(), policy, filters, ignores_pause: false }
    }

    fn last_unit(&self) -> Option<u64> {
        self.units.last().map(|unit| unit.tick)
    }

    fn take(&mut self, stored: &Stored) {
        let message = &stored.message;
        let txn = message.properties.txn().unwrap().map(|txn| txn.txn_id);
        let label = || String::from_utf8_lossy(&message.payload).into_owned();
        let labels = match (stored.kind, txn, self.open.take()) {
            (MessageType::BeginTxn, Some(id), None) => {
                self.open = Some((id, Vec::new()));
                return;
            }
            (MessageType::CommitTxn, Some(id), Some((open, labels))) if id == open => labels,
            (MessageType::Delete, Some(id), Some((open, mut labels))) if id == open => {
                labels.push(label());
                self.open = Some((open, labels));
                return;
            }
            (kind, None, None) if kind != MessageType::BeginTxn && kind != MessageType::CommitTxn => vec![label()],
            (kind, id, open) => panic!("{kind} of {id:?} amid {open:?}"),
        };
        let (tick, confirmed) = (message.time_tick().unwrap().0, message.last_confirmed().unwrap());
        assert!(self.from.is_none_or(|(_, last)| tick > last), "ticks rise strictly: {tick} after {:?}", self.from);
        self.from = Some((confirmed, tick));
        if stored.kind != MessageType::TimeTick {
            self.units.push(Unit { tick, confirmed, labels });
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_reader_sees_exactly_what_was_committed_in_tick_order() {
    join_all((0..PCHANNELS).map(async |index| Box::pin(Channel::new(index).run()).await)).await;
}
