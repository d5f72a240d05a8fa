//! A metadata store that is away or loses answers, and a volume that is taken from under its segments.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream::FuturesOrdered};
use tokio::sync::{oneshot, watch};
use woodpecker::{AppendError, EntryId, Epoch, LogError, Position};
use woodpecker_base::{
    clock::Clock,
    metadata::{Interference, MetadataError, MetadataStore, Txn, TxnOutcome},
    tasks::Tasks,
};
use woodpecker_core::ids::{Placement, SegmentKey};
use woodpecker_store::backend::{Backend, SegmentEnd, SegmentOwner, SegmentReader, SegmentWriter, StoreError};

use crate::{
    on_every_medium,
    world::{Process, World, append, append_all, payload, read, read_all, soon},
};

on_every_medium!(
    appends_go_on_while_the_metadata_store_is_away,
    lost_answers_change_nothing,
    truncation_under_a_rolling_writer_fences_nobody,
    a_displaced_writer_moves_on_in_order,
    a_displaced_writer_that_lost_its_log_is_fenced,
    an_emptied_metadata_store_is_noticed,
    a_log_whose_end_cannot_be_found_can_be_deleted,
);

async fn appends_go_on_while_the_metadata_store_is_away(mut world: World) {
    world.segment_bytes = 500;
    let process = world.process().await;
    let log = process.log("log").await;
    let writer = log.open_writer().await.unwrap();
    let mut reader = log.reader(Position::Earliest);
    let mut written = append_all(&writer, "before", 100).await;
    assert!(written.last().unwrap().0.segment > 1, "it rolls");
    process.metadata.set_reachable(false);
    // Far more than a segment's worth, for longer than the first retries take.
    for round in 0..5 {
        written.extend(append_all(&writer, &format!("away-{round}"), 50).await);
        Clock::system().sleep(Duration::from_millis(50)).await;
    }
    // Readers in this process need the store as little, those that start now among them.
    assert_eq!(read(&mut reader, written.len()).await, written);
    assert_eq!(read(&mut log.reader(Position::Earliest), written.len()).await, written);
    let during = written.last().unwrap().0.segment;
    process.metadata.set_reachable(true);
    let rolled = async {
        while written.last().unwrap().0.segment == during {
            written.extend(append_all(&writer, "after", 1).await);
            Clock::system().sleep(Duration::from_millis(1)).await;
        }
    };
    soon("the roll", rolled).await;
    assert_eq!(read_all(&log).await, written);
    soon("close", writer.close()).await.unwrap();
}

/// On one medium: it takes as long as a close waits for the metadata store.
#[tokio::test]
async fn a_writer_that_cannot_close_cleanly_says_so() {
    let world = World::memory().await;
    let process = world.process().await;
    let log = process.log("log").await;
    let writer = log.open_writer().await.unwrap();
    let id = append(&writer, "x").await;
    process.metadata.set_reachable(false);
    let error = soon("close", writer.close()).await.unwrap_err();
    assert!(matches!(error, AppendError::Failed(StoreError::Unavailable(_))), "{error}");
    let other = world.process().await;
    let writer = other.log("log").await.open_writer().await.unwrap();
    assert_eq!(append(&writer, "y").await.segment, id.segment + 1);
}

/// Loses the answers of some commits, and others before they are done.
#[derive(Debug, Default)]
struct Lossy(AtomicU64);

#[async_trait]
impl Interference for Lossy {
    async fn commit(&self, store: &dyn MetadataStore, txn: Txn) -> Result<TxnOutcome, MetadataError> {
        let lost = || MetadataError::Unavailable("the answer was lost".to_owned());
        match self.0.fetch_add(1, Ordering::Relaxed) % 3 {
            0 => {
                store.commit(txn).await?;
                Err(lost())
            }
            1 => Err(lost()),
            _ => store.commit(txn).await,
        }
    }
}

async fn lost_answers_change_nothing(mut world: World) {
    world.segment_bytes = 400;
    let (process, _) = world.process_behind(Lossy::default()).await;
    let mut written = Vec::new();
    for life in 0..6 {
        let log = process.log("log").await;
        let writer = soon("open", log.open_writer()).await.unwrap();
        written.extend(append_all(&writer, &format!("life-{life}"), 100).await);
        if life % 2 == 0 {
            soon("close", writer.close()).await.unwrap();
        }
        assert_eq!(read_all(&log).await, written);
    }
    let log = process.log("log").await;
    let segments = log.describe().await.unwrap().segments;
    assert!(segments.iter().map(|s| s.segment).eq(1..=segments.len() as u64), "{segments:?}");
    log.truncate(written[300].0).await.unwrap();
    assert_eq!(read_all(&log).await, written[301..]);
    process.client.delete_log("log").await.unwrap();
}

/// Holds the answer of a commit back, or loses it: somebody is told that it was made, and says when to go on.
#[derive(Debug, Default)]
struct Overtaken(Mutex<Option<HeldBack>>);

#[derive(Debug)]
struct HeldBack {
    made: oneshot::Sender<()>,
    go_on: oneshot::Receiver<()>,
    answered: bool,
}

#[async_trait]
impl Interference for Overtaken {
    async fn commit(&self, store: &dyn MetadataStore, txn: Txn) -> Result<TxnOutcome, MetadataError> {
        let outcome = store.commit(txn).await;
        let armed = self.0.lock().unwrap().take();
        let Some(HeldBack { made, go_on, answered }) = armed else { return outcome };
        made.send(()).unwrap();
        go_on.await.unwrap();
        if answered {
            return outcome;
        }
        Err(MetadataError::Unavailable("the answer was lost".to_owned()))
    }
}

/// What `meanwhile` comes to, and the deletion, which is made before it and known after it.
async fn delete_and_meanwhile<T>(
    deleting: &Process,
    overtaken: &Overtaken,
    answered: bool,
    meanwhile: impl AsyncFnOnce() -> T,
) -> (Result<(), LogError>, T) {
    let (made, deleted) = oneshot::channel();
    let (told, go_on) = oneshot::channel();
    *overtaken.0.lock().unwrap() = Some(HeldBack { made, go_on, answered });
    let meanwhile = async {
        deleted.await.unwrap();
        let outcome = meanwhile().await;
        told.send(()).unwrap();
        outcome
    };
    soon("both", Box::pin(async { tokio::join!(deleting.client.delete_log("log"), meanwhile) })).await
}

#[tokio::test]
async fn a_deletion_spares_the_log_that_has_the_name_when_its_answer_comes_or_is_lost() {
    for answered in [false, true] {
        let world = World::memory().await;
        let (deleting, store) = world.process_behind(Overtaken::default()).await;
        append_all(&deleting.log("log").await.open_writer().await.unwrap(), "old", 5).await;
        // By the same process, which may take the one for the other.
        let recreating = async || {
            let log = deleting.client.create_log("log").await.unwrap();
            let writer = log.open_writer().await.unwrap();
            let written = append_all(&writer, "new", 5).await;
            (log, writer, written)
        };
        let (deletion, (log, writer, mut written)) =
            delete_and_meanwhile(&deleting, &store.by, answered, recreating).await;
        deletion.unwrap();
        written.push((append(&writer, "on").await, "on".to_owned()));
        assert_eq!(read_all(&log).await, written);
        assert_eq!(read_all(&world.process().await.log("log").await).await, written);
    }
}

#[tokio::test]
async fn a_deletion_that_maintenance_completes_before_its_answer_comes_is_one() {
    for answered in [false, true] {
        let world = World::memory().await;
        let (deleting, store) = world.process_behind(Overtaken::default()).await;
        let other = world.process().await;
        append_all(&deleting.log("log").await.open_writer().await.unwrap(), "old", 5).await;
        let (deletion, _) = delete_and_meanwhile(&deleting, &store.by, answered, async || other.maintain().await).await;
        deletion.unwrap();
        let again = deleting.client.delete_log("log").await.unwrap_err();
        assert_eq!(again.code(), "LOG_NOT_FOUND");
    }
}

async fn truncation_under_a_rolling_writer_fences_nobody(mut world: World) {
    world.segment_bytes = 100;
    let (process, other) = (world.process().await, world.process().await);
    let log = process.log("log").await;
    let truncating = other.log("log").await;
    let writer = log.open_writer().await.unwrap();
    let mut last = EntryId { segment: 1, entry: 0 };
    for round in 0..100 {
        let (up_to, name) = (last, round.to_string());
        let (written, truncated) = tokio::join!(append_all(&writer, &name, 5), truncating.truncate(up_to));
        truncated.unwrap();
        last = written.last().unwrap().0;
    }
    assert!(last.segment > 10, "it rolls: {last}");
    process.maintain().await;
    let segments = log.describe().await.unwrap().segments.len();
    assert!(segments < 6, "what was truncated is gone: {segments}");
}

/// A process's volume that can be held up and then taken away: what it was given and had not passed on is lost.
#[derive(Debug)]
struct Gate {
    inner: Arc<dyn Backend>,
    held_up: Mutex<bool>,
    segments: Mutex<Vec<Arc<Gated>>>,
    /// What a fence finds is damaged.
    damaged: AtomicBool,
    /// The next delete panics.
    panics: AtomicBool,
}

#[derive(Debug)]
struct Gated {
    owner: Arc<Acked>,
    inner: Arc<dyn SegmentWriter>,
    state: Mutex<GatedState>,
}

#[derive(Debug, Default)]
struct GatedState {
    next: u64,
    /// What the volume was given.
    passed_on: u64,
    held_up: bool,
    ended: bool,
}

/// Notes what its owner was told.
#[derive(Debug)]
struct Acked {
    owner: Arc<dyn SegmentOwner>,
    told: watch::Sender<u64>,
}

impl SegmentOwner for Acked {
    fn acked(&self, next: u64) {
        self.owner.acked(next);
        self.told.send_replace(next);
    }

    fn ended(&self, end: SegmentEnd) {
        self.owner.ended(end);
    }
}

impl SegmentWriter for Gated {
    fn placement(&self) -> &Placement {
        self.inner.placement()
    }

    fn append(&self, entries: Vec<Bytes>) -> Result<u64, StoreError> {
        let mut state = self.state.lock().unwrap();
        if state.ended {
            return Err(StoreError::Ended);
        }
        let first = state.next;
        state.next += entries.len() as u64;
        if !state.held_up {
            assert_eq!(self.inner.append(entries)?, first);
            state.passed_on = state.next;
        }
        Ok(first)
    }
}

impl Gate {
    /// From now on nothing of what is appended reaches the volume.
    fn hold_up(&self) {
        *self.held_up.lock().unwrap() = true;
        self.segments.lock().unwrap().iter().for_each(|segment| segment.state.lock().unwrap().held_up = true);
    }

    /// Waits until all that the volume was given is acked.
    async fn settle(&self) {
        let segments = self.segments.lock().unwrap().clone();
        for segment in segments {
            let passed_on = segment.state.lock().unwrap().passed_on;
            segment.owner.told.subscribe().wait_for(|told| *told >= passed_on).await.unwrap();
        }
    }

    /// The volume is fenced because of a segment of someone else; a new one takes its place. Its segments are told in
    /// no particular order.
    fn displace(&self, newest_first: bool) {
        *self.held_up.lock().unwrap() = false;
        let mut segments = std::mem::take(&mut *self.segments.lock().unwrap());
        if newest_first {
            segments.reverse();
        }
        segments.iter().for_each(|segment| segment.state.lock().unwrap().ended = true);
        segments.iter().for_each(|segment| segment.owner.ended(SegmentEnd::Displaced));
    }
}

#[async_trait]
impl Backend for Gate {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn max_append_bytes(&self) -> usize {
        self.inner.max_append_bytes()
    }

    async fn create(
        &self,
        key: SegmentKey,
        epoch: Epoch,
        owner: Arc<dyn SegmentOwner>,
    ) -> Result<Arc<dyn SegmentWriter>, StoreError> {
        let owner = Arc::new(Acked { owner, told: watch::Sender::default() });
        let inner = self.inner.create(key, epoch, owner.clone()).await?;
        let held_up = *self.held_up.lock().unwrap();
        let state = Mutex::new(GatedState { held_up, ..GatedState::default() });
        let gated = Arc::new(Gated { owner, inner, state });
        self.segments.lock().unwrap().push(gated.clone());
        Ok(gated)
    }

    async fn open(
        &self,
        key: SegmentKey,
        placement: &Placement,
        end: Option<u64>,
    ) -> Result<Arc<dyn SegmentReader>, StoreError> {
        self.inner.open(key, placement, end).await
    }

    async fn fence(&self, key: SegmentKey, placement: &Placement, epoch: Epoch) -> Result<u64, StoreError> {
        if self.damaged.load(Ordering::Relaxed) {
            let (what, detail) = (format!("segment {key}"), "a checksum does not hold".to_owned());
            return Err(StoreError::Corrupt { what, detail });
        }
        self.inner.fence(key, placement, epoch).await
    }

    async fn delete(&self, key: SegmentKey, placement: &Placement) -> Result<(), StoreError> {
        assert!(!self.panics.swap(false, Ordering::Relaxed), "as the test wants");
        self.inner.delete(key, placement).await
    }

    async fn claim(&self, instance: &str) -> Result<(), StoreError> {
        self.inner.claim(instance).await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

async fn gated(world: &World) -> (Process, Arc<Gate>) {
    let tasks = Tasks::new();
    let inner = world.backend(&tasks).await;
    let gate = Arc::new(Gate {
        inner,
        held_up: Mutex::default(),
        segments: Mutex::default(),
        damaged: AtomicBool::default(),
        panics: AtomicBool::default(),
    });
    let metadata = world.metadata.connect();
    (world.process_with(Arc::new(metadata.clone()), metadata, gate.clone(), tasks), gate)
}

async fn a_displaced_writer_moves_on_in_order(mut world: World) {
    world.segment_bytes = 150;
    let (process, gate) = gated(&world).await;
    let other = world.process().await;
    let names = ["a", "b"];
    let logs = [process.log("a").await, process.log("b").await];
    let writers = [logs[0].open_writer().await.unwrap(), logs[1].open_writer().await.unwrap()];
    let mut readers = BTreeMap::new();
    for name in names {
        readers.insert(name, other.log(name).await.reader(Position::Earliest));
    }
    let mut written: [Vec<(EntryId, String)>; 2] = Default::default();
    for round in 0..20 {
        let mut appends = [FuturesOrdered::new(), FuturesOrdered::new()];
        for number in 0..50 {
            if number == 20 {
                // Let some of them be acked, and rolls be under way.
                for _ in 0..round {
                    tokio::task::yield_now().await;
                }
                gate.hold_up();
            }
            if number > 20 && number % 7 == 0 {
                // Let a roll get ready behind what is held up, so that the rest waits for it.
                Clock::system().sleep(Duration::from_millis(1)).await;
            }
            for (writer, appends) in writers.iter().zip(&mut appends) {
                appends.push_back(writer.append(vec![payload(&format!("{round}-{number}"))]));
            }
        }
        // What the volume has is acked before it is taken away: the contract of a displacement.
        soon("acks", gate.settle()).await;
        gate.displace(round % 2 == 0);
        for (written, appends) in written.iter_mut().zip(&mut appends) {
            for number in 0..50 {
                let appended = soon("append", appends.next()).await.unwrap().unwrap();
                written.push((appended.first, format!("{round}-{number}")));
            }
        }
    }
    for ((name, log), written) in names.iter().zip(&logs).zip(&written) {
        assert_eq!(&read_all(log).await, written, "log {name}");
        assert_eq!(&read(readers.get_mut(name).unwrap(), written.len()).await, written, "log {name}");
    }
}

async fn a_displaced_writer_that_lost_its_log_is_fenced(world: World) {
    let (process, gate) = gated(&world).await;
    let log = process.log("log").await;
    let older = log.open_writer().await.unwrap();
    let mut written = append_all(&older, "older", 3).await;
    gate.hold_up();
    let doomed = older.append(vec![payload("doomed")]);
    let other = world.process().await;
    let newer = other.log("log").await.open_writer().await.unwrap();
    gate.displace(false);
    assert!(matches!(soon("fence", doomed).await, Err(AppendError::Fenced)));
    written.extend(append_all(&newer, "newer", 3).await);
    assert_eq!(read_all(&log).await, written);
}

async fn a_log_whose_end_cannot_be_found_can_be_deleted(world: World) {
    let (process, gate) = gated(&world).await;
    let (log, other) = (process.log("log").await, process.log("other").await);
    let written = append_all(&other.open_writer().await.unwrap(), "other", 3).await;
    // Its writer is gone: nobody but a fence could tell where it ends.
    append_all(&log.open_writer().await.unwrap(), "entry", 3).await;
    gate.damaged.store(true, Ordering::Relaxed);
    let error = log.open_writer().await.unwrap_err();
    assert_eq!(error.code(), "STORE_CORRUPT", "{error}");
    soon("delete", process.client.delete_log("log")).await.unwrap();
    let left = world.metadata.list("test/woodpecker/").await.unwrap().items;
    assert!(!left.iter().any(|item| item.key.contains("/deleting/")), "{left:?}");
    gate.damaged.store(false, Ordering::Relaxed);
    assert_eq!(read_all(&other).await, written);
    append(&process.log("log").await.open_writer().await.unwrap(), "anew").await;
}

#[tokio::test]
async fn a_panic_in_maintenance_is_a_failure_of_its_segment_and_of_nothing_else() {
    let mut world = World::memory().await;
    world.segment_bytes = 100;
    let (process, gate) = gated(&world).await;
    append_all(&process.log("log").await.open_writer().await.unwrap(), "entry", 50).await;
    gate.panics.store(true, Ordering::Relaxed);
    let done = process.maintain().await;
    assert!(done.failed == 1 && done.freed > 1, "{done:?}");
    let done = process.maintain().await;
    assert_eq!((done.failed, done.freed), (0, 1), "{done:?}");
}

async fn an_emptied_metadata_store_is_noticed(world: World) {
    let process = world.process().await;
    let log = process.log("log").await;
    let writer = log.open_writer().await.unwrap();
    append(&writer, "x").await;
    let instance = process.client.instance().await.unwrap();
    assert_eq!(world.process().await.client.instance().await.unwrap(), instance);
    world.metadata.commit(Txn::new().delete_prefix("test/")).await.unwrap();
    let error = process.client.create_log("log").await.unwrap_err();
    assert_eq!(error.code(), "LOG_BAD_RECORD", "{error}");
    assert_ne!(world.process().await.client.instance().await.unwrap(), instance);
    assert_eq!(soon("close", writer.close()).await.unwrap_err().code(), "LOG_FENCED");
}
