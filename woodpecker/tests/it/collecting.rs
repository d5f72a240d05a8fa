//! What is deleted, and what never is.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{ObjectStoreExt, memory::InMemory, path::Path};
use woodpecker::{EntryId, Log, Maintenance, MaintenanceSettings, Pass, Position, ReadError};
use woodpecker_base::{
    clock::Clock,
    metadata::{Interference, MetadataError, MetadataStore, Txn, TxnOutcome, Write},
};

use crate::{
    on_every_medium,
    world::{Process, World, append, append_all, eager, read, read_all, soon},
};

on_every_medium!(
    what_is_truncated_goes_and_nothing_else,
    a_registered_reader_keeps_what_it_has_not_read,
    retention_truncates_by_bytes_and_by_time,
    retention_reaches_a_log_that_nobody_writes_and_leaves_it_alone_then,
);

async fn segments(process: &Process) -> Vec<u64> {
    let described = process.log("log").await.describe().await.unwrap();
    described.segments.iter().map(|segment| segment.segment).collect()
}

/// Whoever knew nothing of the log before finds no damage either.
async fn verify(log: &Log) {
    let report = log.verify(|_| {}).await.unwrap();
    assert!(report.iter().all(|segment| segment.problem.is_none()), "{report:?}");
}

async fn what_is_truncated_goes_and_nothing_else(mut world: World) {
    world.segment_bytes = 200;
    let process = world.process().await;
    let log = process.log("log").await;
    let writer = log.open_writer().await.unwrap();
    let written = append_all(&writer, "entry", 100).await;
    let other = world.process().await;
    for round in 0..2 {
        let up_to = written[30 * (round + 1)].0;
        log.truncate(up_to).await.unwrap();
        let kept = MaintenanceSettings { keep_truncated: Duration::from_secs(3600), ..eager() };
        assert_eq!(other.maintain_with(kept).await.collected, 0, "what is truncated is kept for a while");
        assert!(segments(&process).await.contains(&(up_to.segment - 1)));
        let done = other.maintain().await;
        assert!(done.collected > 0 && done.failed == 0, "{done:?}");
        assert_eq!(segments(&process).await.first(), Some(&up_to.segment));
        assert_eq!(read_all(&log).await, written[30 * (round + 1) + 1..]);
    }
    // All of it, with the writer at work: what may have to be fenced stays.
    let last = written.last().unwrap().0;
    log.truncate(last).await.unwrap();
    other.maintain().await;
    assert_eq!(segments(&process).await.last(), Some(&last.segment));
    drop(writer);
    let writer = other.log("log").await.open_writer().await.unwrap();
    let id = append(&writer, "on").await;
    assert_eq!(read(&mut log.reader(Position::Earliest), 1).await, [(id, "on".to_owned())]);
}

#[tokio::test]
async fn when_space_runs_out_truncated_data_goes_at_once_and_nothing_else() {
    let mut world = World::memory().await;
    world.segment_bytes = 200;
    let process = world.process().await;
    let log = process.log("log").await;
    let written = append_all(&log.open_writer().await.unwrap(), "entry", 100).await;
    log.truncate(written[90].0).await.unwrap();
    let mut held = log.registered_reader("slow", Position::At(written[60].0)).await.unwrap();
    let kept = MaintenanceSettings { keep_truncated: Duration::from_secs(3600), sealing: false, ..eager() };
    let pressed = Maintenance::new(&process.client, kept).with_pressure(|| true);
    let done = soon("pass", pressed.pass()).await.unwrap();
    assert!(done.collected > 0, "{done:?}");
    assert_eq!(segments(&process).await.first(), Some(&written[60].0.segment));
    assert_eq!(read(&mut held, 40).await, written[60..]);
}

async fn a_registered_reader_keeps_what_it_has_not_read(mut world: World) {
    world.segment_bytes = 200;
    let (process, other) = (world.process().await, world.process().await);
    let log = process.log("log").await;
    let writer = log.open_writer().await.unwrap();
    let written = append_all(&writer, "entry", 100).await;
    let mut held = other.log("log").await.registered_reader("slow", Position::At(written[20].0)).await.unwrap();
    let plain = other.log("log").await;
    log.truncate(written[80].0).await.unwrap();
    other.maintain().await;
    assert_eq!(segments(&process).await.first(), Some(&written[20].0.segment));
    let lost = plain.reader(Position::At(written[20].0)).next().await.unwrap_err();
    assert!(matches!(lost, ReadError::PositionLost { .. }), "who is not registered may not: {lost}");
    assert_eq!(read(&mut held, 80).await, written[20..]);
    // What it holds now is what it has not read.
    drop(held);
    let gone = async {
        while segments(&process).await.first() != Some(&written[80].0.segment) {
            other.maintain().await;
        }
    };
    soon("collection", Box::pin(gone)).await;
    let error = plain.registered_reader("late", Position::At(written[20].0)).await.unwrap_err();
    assert!(matches!(error, ReadError::PositionLost { .. }), "{error}");
    assert_eq!(read_all(&log).await, written[81..]);
}

/// Time is paused: minutes pass at once.
#[tokio::test(start_paused = true)]
async fn an_idle_reader_holds_for_as_long_as_its_process_lives_and_a_minute_more() {
    let mut world = World::memory().await;
    world.segment_bytes = 200;
    let (process, reading) = (world.process().await, world.process().await);
    let log = process.log("log").await;
    let written = append_all(&log.open_writer().await.unwrap(), "entry", 200).await;
    let _held = reading.log("log").await.registered_reader("idle", Position::Earliest).await.unwrap();
    log.truncate(written[199].0).await.unwrap();
    let clock = Clock::system();
    for _ in 0..10 {
        clock.sleep(Duration::from_secs(60)).await;
        assert_eq!(process.maintain().await.collected, 0);
    }
    // The metadata store is away for longer than the lease lives: what is held is registered anew.
    reading.metadata.set_reachable(false);
    clock.sleep(Duration::from_secs(90)).await;
    reading.metadata.set_reachable(true);
    clock.sleep(Duration::from_secs(60)).await;
    assert_eq!(process.maintain().await.collected, 0);
    reading.kill();
    clock.sleep(Duration::from_secs(30)).await;
    assert_eq!(process.maintain().await.collected, 0);
    clock.sleep(Duration::from_secs(60)).await;
    assert!(process.maintain().await.collected > 3);
}

/// Answers no commit that it is told to keep for itself, and makes it all the same.
#[derive(Debug, Default)]
struct Silent(AtomicBool);

#[async_trait]
impl Interference for Silent {
    async fn commit(&self, store: &dyn MetadataStore, txn: Txn) -> Result<TxnOutcome, MetadataError> {
        let outcome = store.commit(txn).await;
        if self.0.swap(false, Ordering::Relaxed) {
            pending::<()>().await;
        }
        outcome
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_reader_was_registered_for_is_collected_after_it_whatever_became_of_its_registration() {
    let mut world = World::memory().await;
    world.segment_bytes = 200;
    let process = world.process().await;
    let (reading, store) = world.process_behind(Silent::default()).await;
    let (log, elsewhere) = (process.log("log").await, reading.log("log").await);
    let writer = log.open_writer().await.unwrap();
    let clock = Clock::system();
    for never_known in [false, true] {
        let written = append_all(&writer, "entry", 200).await;
        let held = elsewhere.registered_reader("short", Position::Earliest).await.unwrap();
        log.truncate(written[199].0).await.unwrap();
        assert_eq!(process.maintain().await.collected, 0);
        if never_known {
            store.by.0.store(true, Ordering::Relaxed);
            let registering = elsewhere.registered_reader("unknown", Position::At(written[0].0));
            assert!(clock.timeout(Duration::from_secs(1), registering).await.is_err());
            drop(held);
        } else {
            // Away for longer than it is tried to end the registration, and not until the lease ends.
            reading.metadata.set_reachable(false);
            drop(held);
            clock.sleep(Duration::from_secs(40)).await;
            reading.metadata.set_reachable(true);
        }
        clock.sleep(Duration::from_secs(60)).await;
        assert!(process.maintain().await.collected > 3);
    }
}

async fn retention_truncates_by_bytes_and_by_time(mut world: World) {
    world.segment_bytes = 200;
    let process = world.process().await;
    let log = process.log("log").await;
    let writer = log.open_writer().await.unwrap();
    let written = append_all(&writer, "entry", 200).await;
    soon("close", writer.close()).await.unwrap();
    log.alter(|settings| settings.retention_bytes = Some(700)).await.unwrap();
    process.maintain().await;
    let described = log.describe().await.unwrap();
    let bytes: u64 = described.segments.iter().filter_map(|segment| segment.bytes).sum();
    assert!(bytes <= 700 && bytes > 400, "{bytes}");
    let left = read_all(&log).await;
    assert_eq!(left, written[200 - left.len()..]);
    verify(&log).await;
    log.alter(|settings| settings.retention_ms = Some(3_600_000)).await.unwrap();
    assert_eq!(process.maintain().await.collected, 0, "nothing is that old");
    log.alter(|settings| settings.retention_ms = Some(0)).await.unwrap();
    Clock::system().sleep(Duration::from_millis(5)).await;
    process.maintain().await;
    assert!(segments(&process).await.is_empty());
    verify(&log).await;
    assert_eq!(log.last_entry().await.unwrap(), None);
    let next = EntryId { segment: written[199].0.segment + 1, entry: 0 };
    assert_eq!(append(&log.open_writer().await.unwrap(), "on").await, next, "numbers never return");
}

async fn retention_reaches_a_log_that_nobody_writes_and_leaves_it_alone_then(mut world: World) {
    world.segment_age = Duration::from_millis(500);
    let process = world.process().await;
    let log = process.log("log").await;
    let writer = log.open_writer().await.unwrap();
    let written = append_all(&writer, "entry", 10).await;
    log.alter(|settings| settings.retention_ms = Some(0)).await.unwrap();
    let empty = async {
        while log.last_entry().await.unwrap().is_some() || segments(&process).await.len() > 1 {
            process.maintain().await;
        }
    };
    soon("all of it is gone", Box::pin(empty)).await;
    // What is open is empty: it gets old, and stays.
    let open = segments(&process).await;
    assert!(open[0] > written[9].0.segment);
    Clock::system().sleep(3 * world.segment_age).await;
    assert_eq!(segments(&process).await, open);
    assert_eq!(append(&writer, "on").await, EntryId { segment: open[0], entry: 0 });
}

/// Ends all sessions when a segment is about to leave its log.
#[derive(Debug)]
struct Deposing;

#[async_trait]
impl Interference for Deposing {
    async fn commit(&self, store: &dyn MetadataStore, txn: Txn) -> Result<TxnOutcome, MetadataError> {
        let discards = |write: &Write| matches!(write, Write::Put { key, .. } if key.contains("/garbage/"));
        if txn.writes.iter().any(discards) {
            let sessions = store.list("test/woodpecker/session/").await?.items;
            for lease in sessions.iter().filter_map(|session| session.lease) {
                store.revoke_lease(lease).await?;
            }
        }
        store.commit(txn).await
    }
}

#[tokio::test]
async fn a_pass_ends_when_its_process_leads_no_more() {
    let mut world = World::memory().await;
    world.segment_bytes = 200;
    let (process, _) = world.process_behind(Deposing).await;
    let log = process.log("log").await;
    let written = append_all(&log.open_writer().await.unwrap(), "entry", 100).await;
    log.truncate(written[90].0).await.unwrap();
    let error = soon("the end", Maintenance::new(&process.client, eager()).pass()).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(world.process().await.maintain().await.collected > 0);
}

async fn objects(world: &World) -> usize {
    world.objects.list(Some(&Path::from("sealed"))).try_collect::<Vec<_>>().await.unwrap().len()
}

async fn with_leftover(world: &mut World) -> Process {
    world.segment_bytes = 200;
    let process = world.process().await;
    append_all(&process.log("log").await.open_writer().await.unwrap(), "entry", 200).await;
    assert!(process.maintain().await.sealed > 2);
    let leftover = format!("sealed/1/{:020}/{:032x}/{:020}", 1, 7, 0);
    world.objects.put(&Path::from(leftover), Bytes::from_static(b"half an attempt").into()).await.unwrap();
    process
}

#[tokio::test]
async fn leftovers_are_swept_after_a_grace_and_only_leftovers() {
    let mut world = World::memory().await;
    let process = with_leftover(&mut world).await;
    let count = objects(&world).await;
    assert_eq!(process.maintain().await, Pass::default(), "somebody may be about to name it");
    let now = MaintenanceSettings { sweep_grace: Duration::ZERO, ..eager() };
    assert_eq!(process.maintain_with(now).await.swept, 1);
    assert_eq!(objects(&world).await, count - 1);
    assert_eq!(read_all(&process.log("log").await).await.len(), 200);
}

#[tokio::test]
async fn an_emptied_metadata_store_makes_nothing_a_leftover() {
    let mut world = World::memory().await;
    let process = with_leftover(&mut world).await;
    let count = objects(&world).await;
    world.metadata.commit(Txn::new().delete_prefix("test/")).await.unwrap();
    let now = MaintenanceSettings { sweep_grace: Duration::ZERO, ..eager() };
    // One that ran through it, and one that starts now.
    let _ = Maintenance::new(&process.client, now.clone()).pass().await;
    let fresh = world.process().await;
    let error = Maintenance::new(&fresh.client, now).pass().await.unwrap_err();
    assert_eq!(error.code(), "STORE_FOREIGN", "{error}");
    let error = fresh.log("log").await.open_writer().await.unwrap_err();
    assert_eq!(error.code(), "STORE_FOREIGN", "{error}");
    assert_eq!(objects(&world).await, count);
}

#[tokio::test]
async fn an_empty_bucket_in_place_of_the_one_that_was_used_is_refused() {
    let mut world = World::memory().await;
    let process = world.process().await;
    let log = process.log("log").await;
    let written = append_all(&log.open_writer().await.unwrap(), "entry", 3).await;
    let used = std::mem::replace(&mut world.objects, Arc::new(InMemory::new()));
    let fresh = world.process().await;
    let error = fresh.log("log").await.open_writer().await.unwrap_err();
    assert_eq!(error.code(), "STORE_FOREIGN", "{error}");
    let put = world.objects.list(None).try_collect::<Vec<_>>().await.unwrap();
    assert!(put.is_empty(), "{put:?}");
    world.objects = used;
    let right = world.process().await.log("log").await;
    right.open_writer().await.unwrap();
    assert_eq!(read_all(&right).await, written);
}

#[tokio::test]
async fn a_bucket_that_does_not_say_whose_it_is_is_left_alone() {
    let world = World::memory().await;
    world.objects.put(&Path::from("volumes/x/1"), Bytes::from_static(b"?").into()).await.unwrap();
    let process = world.process().await;
    let error = process.client.claim_media().await.unwrap_err();
    assert_eq!(error.code(), "STORE_FOREIGN", "{error}");
}
