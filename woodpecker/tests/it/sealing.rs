//! Closed segments on their way to their final form, and readers that meet them on the way.

use std::{collections::BTreeMap, future::pending, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::TryStreamExt;
use metrics::{Counter, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use tokio::{runtime::Handle, sync::watch};
use woodpecker::{EntryId, Log, Maintenance, MaintenanceSettings, Pass, Position, SegmentDescription};
use woodpecker_base::{
    clock::Clock,
    metadata::{Call, Interfered, Interference, MetadataError, MetadataStore, Txn, TxnOutcome, Write},
    tasks::Tasks,
};
use woodpecker_core::ids::{Epoch, Placement, SegmentKey};
use woodpecker_store::backend::{Backend, SegmentOwner, SegmentReader, SegmentWriter, StoreError, Surveyed};

use crate::{
    on_every_medium,
    stepping::{SteppingBackend, SteppingObjects, Steps},
    world::{Process, World, append, append_all, eager, payload, read, read_all, soon},
};

on_every_medium!(
    sealed_segments_read_like_any_others_and_need_no_writer,
    a_reader_inside_a_source_that_is_freed_goes_on_without_a_gap,
    a_segment_without_entries_is_sealed_and_freed_too,
    a_deleted_log_leaves_no_objects,
);

async fn closed(log: &Log) -> Vec<SegmentDescription> {
    let all = log.describe().await.unwrap().segments;
    all.into_iter().filter(|segment| segment.entries.is_some()).collect()
}

async fn sealed_objects(objects: &Arc<dyn ObjectStore>) -> Vec<String> {
    let found: Vec<_> = objects.list(Some(&Path::from("sealed"))).try_collect().await.unwrap();
    found.into_iter().map(|meta| meta.location.to_string()).collect()
}

/// A log of several segments whose writer is gone, some closed cleanly and one left open.
async fn written(world: &mut World) -> (Process, Vec<(EntryId, String)>) {
    world.segment_bytes = 400;
    let process = world.process().await;
    let log = process.log("log").await;
    let mut all = Vec::new();
    for owner in 0..3 {
        let writer = log.open_writer().await.unwrap();
        all.extend(append_all(&writer, &format!("owner-{owner}"), 60).await);
        // Each writer fills one segment, which closes in the background; a writer that is closed before leaves only that one.
        let rolled = async {
            while closed(&log).await.len() < 2 * owner + 1 {
                tokio::task::yield_now().await;
            }
        };
        soon("rolls", rolled).await;
        if owner < 2 {
            soon("close", writer.close()).await.unwrap();
        }
    }
    (process, all)
}

async fn sealed_segments_read_like_any_others_and_need_no_writer(mut world: World) {
    let (process, mut all) = written(&mut world).await;
    let other = world.process().await;
    let done = other.maintain().await;
    let log = other.log("log").await;
    let segments = closed(&log).await;
    assert!(segments.len() > 4, "{}", segments.len());
    assert_eq!((done.sealed, done.freed, done.failed), (segments.len() as u64, segments.len() as u64, 0));
    assert!(segments.iter().all(|segment| segment.freed && segment.sealed_bytes.is_some()), "{segments:?}");
    assert_eq!(other.maintain().await, Pass::default(), "there is nothing left to do");
    for process in [&process, &other, &world.process().await] {
        assert_eq!(read_all(&process.log("log").await).await, all);
    }
    // From the middle, and on into what is written next.
    let mut reader = log.reader(Position::At(all[77].0));
    let writer = log.open_writer().await.unwrap();
    all.extend(append_all(&writer, "next", 60).await);
    assert_eq!(read(&mut reader, all.len() - 77).await, all[77..]);
    let report = log.verify(|_| {}).await.unwrap();
    assert!(report.iter().all(|segment| segment.problem.is_none()), "{report:?}");
    assert_eq!(report.iter().map(|segment| segment.entries).sum::<u64>(), all.len() as u64);
    assert!(report.iter().any(|segment| segment.from == "sealed"));
}

async fn a_reader_inside_a_source_that_is_freed_goes_on_without_a_gap(mut world: World) {
    // Far more than what is read ahead, in entries that are read one by one.
    world.segment_bytes = 3 << 20;
    let process = world.process().await;
    let log = process.log("log").await;
    let writer = log.open_writer().await.unwrap();
    let mut appends = Vec::new();
    for number in 0..400_u32 {
        writer.reserve().await;
        let mut body = vec![0; 50_000];
        body[..4].copy_from_slice(&number.to_le_bytes());
        appends.push(writer.append(vec![body.into()]));
    }
    for append in appends {
        soon("append", append).await.unwrap();
    }
    soon("close", writer.close()).await.unwrap();
    let other = world.process().await;
    let elsewhere = other.log("log").await;
    // Two of a process know the same of the log: what the one learns must not keep the other from going on.
    let mut readers = [&log, &elsewhere, &log, &elsewhere].map(|log| log.reader(Position::Earliest));
    let mut seen = Vec::new();
    for reader in &mut readers {
        let first = soon("first", reader.next()).await.unwrap();
        seen.push(first.iter().map(|entry| entry.payload.slice(..4)).collect::<Vec<_>>());
    }
    let done = other.maintain().await;
    assert!(done.freed > 1 && done.failed == 0, "{done:?}");
    for (at, (reader, mut seen)) in readers.into_iter().zip(seen).enumerate() {
        let mut reader = reader;
        if at == 0 {
            // Where the segment is now cannot be asked for: that is no end.
            process.metadata.set_reachable(false);
            while seen.len() < 300 {
                match soon("next", reader.next()).await {
                    Ok(entries) => seen.extend(entries.iter().map(|entry| entry.payload.slice(..4))),
                    Err(error) => {
                        assert!(error.is_retryable(), "{error}");
                        break;
                    }
                }
            }
            process.metadata.set_reachable(true);
        }
        while seen.len() < 400 {
            seen.extend(soon("next", reader.next()).await.unwrap().iter().map(|entry| entry.payload.slice(..4)));
        }
        assert!(seen.iter().enumerate().all(|(at, body)| body[..] == u32::try_from(at).unwrap().to_le_bytes()));
    }
}

async fn a_segment_without_entries_is_sealed_and_freed_too(world: World) {
    let process = world.process().await;
    let log = process.log("log").await;
    for _ in 0..2 {
        soon("close", log.open_writer().await.unwrap().close()).await.unwrap();
    }
    let id = append(&log.open_writer().await.unwrap(), "after").await;
    let done = process.maintain().await;
    assert_eq!((done.sealed, done.freed), (2, 2));
    assert!(sealed_objects(&world.objects).await.is_empty());
    assert!(closed(&log).await.iter().all(|segment| segment.freed && segment.sealed_bytes == Some(0)));
    assert_eq!(read(&mut log.reader(Position::Earliest), 1).await, [(id, "after".to_owned())]);
}

async fn a_deleted_log_leaves_no_objects(mut world: World) {
    let (process, _) = written(&mut world).await;
    let keeper = process.log("log-2").await;
    soon("append", keeper.open_writer().await.unwrap().append(vec![payload("kept")])).await.unwrap();
    drop(keeper.open_writer().await.unwrap());
    process.maintain().await;
    assert!(sealed_objects(&world.objects).await.len() > 4);
    process.client.delete_log("log").await.unwrap();
    let left = sealed_objects(&world.objects).await;
    assert!(!left.is_empty() && left.iter().all(|name| name.starts_with("sealed/2/")), "{left:?}");
    assert_eq!(read_all(&keeper).await.len(), 1);
}

/// A process whose steps are counted.
async fn stepping(world: &World, steps: &Steps, lagging: BTreeMap<u64, u64>) -> Process {
    let tasks = Tasks::new();
    let inner = world.backend(&tasks).await;
    let backend = Arc::new(SteppingBackend { inner, steps: steps.clone(), lagging });
    let metadata = world.metadata.connect();
    let store: Arc<dyn MetadataStore> = Arc::new(Interfered::new(Arc::new(metadata.clone()), steps.clone()));
    world.process_with(store, metadata, backend, tasks)
}

/// Time is paused: leases run out at once.
#[tokio::test(start_paused = true)]
async fn a_crash_at_any_step_loses_nothing_and_leaves_nothing_behind() {
    let mut crashes = 0;
    for stop_at in 0.. {
        let mut world = World::memory().await;
        let (process, all) = written(&mut world).await;
        let log = process.log("log").await;
        log.truncate(all[50].0).await.unwrap();
        let objects = world.objects.clone();
        let steps = Steps::new(stop_at);
        world.objects = Arc::new(SteppingObjects(objects.clone(), steps.clone()));
        let crashing = stepping(&world, &steps, BTreeMap::new()).await;
        let maintenance = Maintenance::new(&crashing.client, eager());
        let ended = tokio::select! {
            biased;
            () = steps.stopped() => false,
            pass = maintenance.pass() => { pass.unwrap(); true }
        };
        crashing.kill();
        world.objects = objects;
        let next = world.process().await;
        next.maintain_with(MaintenanceSettings { sweep_grace: Duration::ZERO, ..eager() }).await;
        assert_eq!(read_all(&next.log("log").await).await, all[51..], "after {stop_at} steps");
        let segments = closed(&log).await;
        assert!(segments.iter().all(|segment| segment.freed), "after {stop_at} steps: {segments:?}");
        let objects = sealed_objects(&world.objects).await;
        assert_eq!(objects.len(), segments.len(), "after {stop_at} steps: {objects:?}");
        crashes += 1;
        if ended {
            break;
        }
    }
    assert!(crashes > 40, "{crashes} steps were tried");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_holds_less_than_was_recorded_is_not_sealed_short_and_stops_nobody() {
    let mut world = World::memory().await;
    let (process, all) = written(&mut world).await;
    let lagging = stepping(&world, &Steps::new(i64::MAX), BTreeMap::from([(1, 3), (2, 0)])).await;
    let done = lagging.maintain().await;
    assert_eq!(done.failed, 2);
    let segments = closed(&lagging.log("log").await).await;
    let unsealed: Vec<_> = segments.iter().filter(|s| s.sealed_bytes.is_none()).map(|s| s.segment).collect();
    assert_eq!(unsealed, [1, 2], "the others do not wait for it");
    assert_eq!(done.sealed, segments.len() as u64 - 2);
    assert_eq!(read_all(&process.log("log").await).await, all);
    // When the source is whole again, so is what is sealed.
    assert_eq!(process.maintain().await.sealed, 2);
    assert_eq!(read_all(&process.log("log").await).await, all);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_was_deposed_without_noticing_changes_nothing() {
    let mut world = World::memory().await;
    let (process, all) = written(&mut world).await;
    // It is held up before it names what it sealed, its lease runs out, and another one leads, who seals nothing.
    let held = Held(watch::Sender::new(Hold::Not));
    let (old, _) = world.process_behind(held.clone()).await;
    let maintenance = Maintenance::new(&old.client, eager());
    let pass = old.tasks.spawn(async move { maintenance.pass().await });
    soon("work", held.until(Hold::Up)).await;
    let idle = MaintenanceSettings { sealing: false, ..eager() };
    assert_eq!(process.maintain_with(idle).await, Pass::default());
    held.0.send_replace(Hold::Released);
    let done = soon("the old leader's end", pass).await.unwrap();
    assert!(done.is_err() || done.is_ok_and(|done| done.sealed == 0 && done.failed > 0));
    let log = process.log("log").await;
    assert!(closed(&log).await.iter().all(|segment| segment.sealed_bytes.is_none()));
    // What it left behind disturbs nobody.
    let swept = process.maintain_with(MaintenanceSettings { sweep_grace: Duration::ZERO, ..eager() }).await;
    assert!(swept.sealed > 2 && swept.swept > 0 && swept.failed == 0, "{swept:?}");
    assert_eq!(read_all(&log).await, all);
}

/// Notes what a gauge shows.
#[derive(Debug)]
struct Shown(watch::Sender<f64>);

impl GaugeFn for Shown {
    fn increment(&self, _: f64) {}

    fn decrement(&self, _: f64) {}

    fn set(&self, value: f64) {
        self.0.send_replace(value);
    }
}

#[derive(Debug)]
struct Unsealed(Arc<Shown>);

impl Recorder for Unsealed {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        if key.name() == "woodpecker_unsealed_segments" { Gauge::from_arc(self.0.clone()) } else { Gauge::noop() }
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[tokio::test(start_paused = true)]
async fn who_was_deposed_shows_no_segments_that_wait_any_more() {
    let shown = Unsealed(Arc::new(Shown(watch::Sender::new(0.0))));
    let _here = metrics::set_default_local_recorder(&shown);
    let mut world = World::memory().await;
    written(&mut world).await;
    // One of them can never be sealed.
    let lagging = stepping(&world, &Steps::new(i64::MAX), BTreeMap::from([(1, 3)])).await;
    let (maintenance, stop) = (Maintenance::new(&lagging.client, eager()), lagging.tasks.child());
    lagging.tasks.spawn(async move { maintenance.serve(&stop).await });
    let mut seen = shown.0.0.subscribe();
    soon("segments that wait", seen.wait_for(|count| *count > 0.0)).await.unwrap();
    let sessions = world.metadata.list("test/woodpecker/session/").await.unwrap();
    for lease in sessions.items.iter().filter_map(|session| session.lease) {
        world.metadata.revoke_lease(lease).await.unwrap();
    }
    soon("the end of its lead", seen.wait_for(|count| *count == 0.0)).await.unwrap();
    lagging.tasks.stop();
}

/// A medium that nobody writes to, and that never says what it holds.
#[derive(Debug)]
struct Silent(watch::Sender<bool>);

#[async_trait]
impl Backend for Silent {
    fn name(&self) -> &'static str {
        "silent"
    }

    fn max_append_bytes(&self) -> usize {
        usize::MAX
    }

    async fn create(
        &self,
        _key: SegmentKey,
        _epoch: Epoch,
        _owner: Arc<dyn SegmentOwner>,
    ) -> Result<Arc<dyn SegmentWriter>, StoreError> {
        pending().await
    }

    async fn open(
        &self,
        _key: SegmentKey,
        _placement: &Placement,
        _end: Option<u64>,
    ) -> Result<Arc<dyn SegmentReader>, StoreError> {
        pending().await
    }

    async fn fence(&self, _key: SegmentKey, _placement: &Placement, _epoch: Epoch) -> Result<u64, StoreError> {
        pending().await
    }

    async fn delete(&self, _key: SegmentKey, _placement: &Placement) -> Result<(), StoreError> {
        pending().await
    }

    async fn survey(&self) -> Result<Vec<Surveyed>, StoreError> {
        self.0.send_replace(true);
        pending().await
    }

    async fn close(&self) {}
}

#[tokio::test]
async fn sealing_goes_on_while_a_medium_is_swept() {
    let mut world = World::memory().await;
    world.segment_bytes = 400;
    let (metadata, tasks) = (world.metadata.connect(), Tasks::new());
    let (memory, sweeping) = (world.backend(&tasks).await, watch::Sender::new(false));
    let silent: Arc<dyn Backend> = Arc::new(Silent(sweeping.clone()));
    let settings = world.settings(&*memory);
    let backends = BTreeMap::from([memory, silent].map(|backend| (backend.name().to_owned(), backend)));
    let process = world.process_of(settings, Arc::new(metadata.clone()), metadata, backends, tasks);
    let often = MaintenanceSettings { interval: Duration::from_millis(5), sweep_interval: Duration::ZERO, ..eager() };
    let (maintenance, stop) = (Maintenance::new(&process.client, often), process.tasks.child());
    process.tasks.spawn(async move { maintenance.serve(&stop).await });
    let mut swept = sweeping.subscribe();
    soon("a sweep", swept.wait_for(|swept| *swept)).await.unwrap();
    let log = process.log("log").await;
    append_all(&log.open_writer().await.unwrap(), "entry", 60).await;
    let sealed = async {
        while !closed(&log).await.first().is_some_and(|segment| segment.freed) {
            Clock::system().sleep(Duration::from_millis(2)).await;
        }
    };
    soon("sealing", sealed).await;
    process.tasks.stop();
}

/// Whether changes of segments get through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    Not,
    /// One waits, and leases are not kept alive.
    Up,
    Released,
}

/// Lets changes of segments through late.
#[derive(Debug, Clone)]
struct Held(watch::Sender<Hold>);

impl Held {
    async fn until(&self, state: Hold) {
        let _ = self.0.subscribe().wait_for(|now| *now == state).await;
    }
}

#[async_trait]
impl Interference for Held {
    async fn before(&self, call: Call) -> Result<(), MetadataError> {
        if call == Call::KeepAlive && *self.0.borrow() == Hold::Up {
            return Err(MetadataError::Unavailable("held up".to_owned()));
        }
        Ok(())
    }

    async fn commit(&self, store: &dyn MetadataStore, txn: Txn) -> Result<TxnOutcome, MetadataError> {
        let of_segment = |write: &Write| matches!(write, Write::Put { key, .. } if key.contains("/segments/"));
        if txn.writes.iter().any(of_segment) {
            self.0.send_if_modified(|state| {
                *state == Hold::Not && {
                    *state = Hold::Up;
                    true
                }
            });
            self.until(Hold::Released).await;
        }
        store.commit(txn).await
    }
}

#[tokio::test]
async fn what_is_sealed_is_found_damaged_when_it_is() {
    let mut world = World::memory().await;
    let (process, _) = written(&mut world).await;
    process.maintain().await;
    let name = Path::from(sealed_objects(&world.objects).await.swap_remove(1));
    let bytes = world.objects.get(&name).await.unwrap().bytes().await.unwrap();
    let mut damaged = bytes.to_vec();
    damaged[60] ^= 4;
    world.objects.put(&name, damaged.into()).await.unwrap();
    let fresh = world.process().await;
    let log = fresh.log("log").await;
    let report = log.verify(|_| {}).await.unwrap();
    let problems: Vec<_> = report.iter().filter(|segment| segment.problem.is_some()).collect();
    assert_eq!(problems.len(), 1, "{report:?}");
    assert!(problems[0].problem.as_ref().unwrap().contains(name.as_ref()), "{problems:?}");
    let mut reader = log.reader(Position::Earliest);
    let error = loop {
        if let Err(error) = soon("damage", reader.next()).await {
            break error;
        }
    };
    assert_eq!(error.code(), "STORE_CORRUPT");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sealed_or_truncated_while_a_log_is_verified_is_no_damage() {
    let inside = |all: &[(EntryId, String)]| all[all.len() - 20].0;
    let at_the_end = |all: &[(EntryId, String)]| {
        let last = all.last().unwrap().0.segment;
        all.iter().rfind(|(id, _)| id.segment < last).unwrap().0
    };
    for up_to in [None, Some(&inside as &dyn Fn(&[(EntryId, String)]) -> EntryId), Some(&at_the_end)] {
        let mut world = World::memory().await;
        let (process, all) = written(&mut world).await;
        let log = process.log("log").await;
        let up_to = up_to.map(|up_to| up_to(&all));
        let meanwhile = async {
            if let Some(up_to) = up_to {
                log.truncate(up_to).await.unwrap();
            }
            let done = process.maintain().await;
            assert_eq!((done.failed, done.collected > 0), (0, up_to.is_some()), "{done:?}");
            assert!(done.freed > 0 || up_to.is_some(), "{done:?}");
        };
        let mut meanwhile = Some(meanwhile);
        let verifying = log.verify(|_| {
            if let Some(meanwhile) = meanwhile.take() {
                tokio::task::block_in_place(|| Handle::current().block_on(meanwhile));
            }
        });
        let report = soon("verification", Box::pin(verifying)).await.unwrap();
        assert!(report.iter().all(|segment| segment.problem.is_none()), "{report:?}");
        let read: Vec<_> = report.iter().map(|segment| segment.segment).collect();
        let last = all.last().unwrap().0.segment;
        if let Some(up_to) = up_to {
            // The one that was read before, and what is left.
            assert!(read[1] >= up_to.segment && read.last() == Some(&last), "{report:?}");
        } else {
            assert_eq!(report.iter().map(|segment| segment.entries).sum::<u64>(), all.len() as u64);
            assert!(report.iter().any(|segment| segment.from == "sealed"), "{report:?}");
        }
    }
}
