//! What taking over and sealing cost beside what the medium does by itself, in the same run:
//! `cargo test --release --workspace --test it figures -- --ignored --nocapture --test-threads 1`.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use test_peers::s3::Op;
use woodpecker::{Append, Maintenance, Position, Writer};
use woodpecker_base::{
    clock::Clock,
    disk::{Disk, OpenMode, RealDisk},
    random::Random,
};

use crate::world::{Process, World, eager};

const ENTRY: usize = 64 << 10;
const IN_FLIGHT: usize = 128;
const GIB: usize = 1 << 30;
const MIB: usize = 1 << 20;

/// Entries that no compression makes smaller.
async fn fill(writer: &Writer, bytes: usize) {
    let random = Random::seeded(5);
    let payload: Bytes = (0..ENTRY / 8).flat_map(|_| random.u64().to_le_bytes()).collect();
    let mut in_flight: VecDeque<Append> = VecDeque::new();
    for _ in 0..bytes / ENTRY {
        if in_flight.len() == IN_FLIGHT
            && let Some(oldest) = in_flight.pop_front()
        {
            oldest.await.unwrap();
        }
        in_flight.push_back(writer.append(vec![payload.clone()]));
    }
    for append in in_flight {
        append.await.unwrap();
    }
}

/// Reads every file of a directory once.
fn read_files(directory: &Path) -> usize {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        bytes += if path.is_dir() { read_files(&path) } else { std::fs::read(&path).unwrap().len() };
    }
    bytes
}

async fn take(process: &Process) -> (Duration, u64) {
    let clock = Clock::system();
    let log = process.log("log").await;
    let began = clock.now();
    let writer = log.open_writer().await.unwrap();
    let took = began.elapsed();
    writer.close().await.unwrap();
    let entries = log.describe().await.unwrap().segments.iter().filter_map(|segment| segment.entries).sum();
    (took, entries)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures, for a minute"]
async fn a_log_with_a_tail_of_a_gibibyte_is_reopened_at_half_the_rate_of_reading_it() {
    let mut world = World::local().await;
    (world.segment_bytes, world.in_flight_bytes) = (4 << 30, 64 << 20);
    let process = world.process().await;
    let writer = process.log("log").await.open_writer().await.unwrap();
    fill(&writer, GIB).await;
    // Its owner is as good as dead.
    let directory = world.directory().unwrap();
    let clock = Clock::system();
    let began = clock.now();
    let bytes = read_files(directory);
    let reading = began.elapsed();
    let (took, entries) = take(&world.process().await).await;
    println!(
        "read {} MiB in {reading:?}; reopened in {took:?}, {:.2} of the rate",
        bytes / MIB,
        reading.as_secs_f64() / took.as_secs_f64()
    );
    assert_eq!(entries, (GIB / ENTRY) as u64);
    assert!(took <= 2 * reading + Duration::from_millis(100), "reopened in {took:?}, read in {reading:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures, for a minute"]
async fn ten_thousand_objects_behind_fifty_milliseconds_are_taken_over_in_two_seconds() {
    const OBJECTS: u64 = 10_000;
    let (world, s3) = World::bucket().await;
    let process = world.process().await;
    let writer = process.log("log").await.open_writer().await.unwrap();
    for _ in 0..OBJECTS {
        writer.append(vec![Bytes::from_static(b"an object of its own")]).await.unwrap();
    }
    for op in Op::ALL {
        s3.faults().delay(op, Duration::from_millis(50));
    }
    let before = s3.counts();
    let (took, entries) = take(&world.process().await).await;
    println!("taken over in {took:?}; before {before:?}, after {:?}", s3.counts());
    assert_eq!(entries, OBJECTS);
    assert!(took <= Duration::from_secs(2), "taken over in {took:?}");
}

/// Writes objects of 16 MiB and reads them back, four at a time, as sealing does.
async fn copy(store: &Arc<dyn ObjectStore>, bytes: usize) -> Duration {
    let (clock, body) = (Clock::system(), Bytes::from(vec![b'x'; 16 * MIB]));
    let began = clock.now();
    stream::iter(0..bytes / body.len())
        .map(|number| {
            let body = body.clone();
            async move {
                let path = object_store::path::Path::from(format!("limit/{number}"));
                store.put(&path, PutPayload::from_bytes(body.clone())).await?;
                assert_eq!(store.get(&path).await?.bytes().await?.len(), body.len());
                Ok::<_, object_store::Error>(())
            }
        })
        .buffer_unordered(4)
        .try_for_each(|()| async { Ok(()) })
        .await
        .unwrap();
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures, for a minute"]
async fn sealing_goes_at_the_rate_of_the_medium() {
    const BYTES: usize = 256 * MIB;
    let (mut world, s3) = World::bucket().await;
    (world.segment_bytes, world.in_flight_bytes) = (64 << 20, 64 << 20);
    world.run_bytes = 16 * MIB;
    // What limits is the way to the store, as it does where the store is not a process next door.
    s3.faults().bandwidth(Some(200 << 20));
    let process = world.process().await;
    let writer = process.log("log").await.open_writer().await.unwrap();
    fill(&writer, BYTES).await;
    writer.close().await.unwrap();
    // It is read from where it was written too.
    let limit = copy(&world.objects, BYTES).await + read_back(&world.objects, BYTES).await;
    let (other, clock) = (world.process().await, Clock::system());
    let began = clock.now();
    Maintenance::new(&other.client, eager()).pass().await.unwrap();
    let took = began.elapsed();
    let segments = process.log("log").await.describe().await.unwrap().segments;
    assert!(
        segments.iter().all(|segment| segment.entries == Some(0) || segment.sealed_bytes.is_some()),
        "{segments:?}"
    );
    let share = limit.as_secs_f64() / took.as_secs_f64();
    println!("the medium {limit:?}, sealed in {took:?}: {share:.2} of its rate");
    assert!(share >= 0.7, "{share:.2} of the medium's rate");
}

async fn read_back(store: &Arc<dyn ObjectStore>, bytes: usize) -> Duration {
    let clock = Clock::system();
    let began = clock.now();
    stream::iter(0..bytes / (16 * MIB))
        .map(|number| async move { store.get(&format!("limit/{number}").into()).await?.bytes().await.map(drop) })
        .buffer_unordered(4)
        .try_for_each(|()| async { Ok(()) })
        .await
        .unwrap();
    began.elapsed()
}

/// Every file below a directory that holds batches.
fn data_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.append(&mut data_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "vol") {
            files.push(path);
        }
    }
    files
}

/// Reads files in pieces of 1 MiB, eight at once, each into memory of its own, as the engine does.
async fn read_pieces(files: &[PathBuf]) -> (Duration, usize) {
    let clock = Clock::system();
    let mut pieces = Vec::new();
    for path in files {
        let file = RealDisk.open(path, OpenMode::Read).unwrap();
        let length = usize::try_from(file.len().unwrap()).unwrap();
        pieces.extend((0..length).step_by(MIB).map(|at| (file.clone(), at, MIB.min(length - at))));
    }
    let bytes = pieces.iter().map(|(.., length)| length).sum();
    let began = clock.now();
    stream::iter(pieces)
        .map(|(file, at, length)| async move {
            let (done, read) = mpsc::channel();
            let work = move || {
                let mut buffer = vec![0; length];
                assert_eq!(file.read_at(&mut buffer, at as u64).unwrap(), length);
                done.send(buffer).unwrap();
            };
            RealDisk.run(Box::new(work)).await;
            read.recv().unwrap()
        })
        .buffered(8)
        .for_each(|_| async {})
        .await;
    (began.elapsed(), bytes)
}

/// Reads a whole log as a process that has nothing in memory.
async fn catch_up(world: &World, expected: usize) -> Duration {
    let process = world.process().await;
    let mut reader = process.log("log").await.reader(Position::Earliest);
    let clock = Clock::system();
    let (began, mut entries) = (clock.now(), 0);
    while entries < expected {
        entries += reader.next().await.unwrap().len();
    }
    began.elapsed()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn rate(bytes: usize, took: Duration) -> f64 {
    bytes as f64 / MIB as f64 / took.as_secs_f64()
}

/// Rounds of the medium and of the engine in turns; the medians, and that of the rounds' ratios, which is returned.
fn compare(what: &str, rounds: &[(f64, f64)]) -> f64 {
    let medium = median(rounds.iter().map(|(medium, _)| *medium).collect());
    let ours = median(rounds.iter().map(|(_, ours)| *ours).collect());
    let share = median(rounds.iter().map(|(medium, ours)| ours / medium).collect());
    println!("{what}: the medium {medium:.0} MiB/s, caught up at {ours:.0}: {share:.2} of its rate");
    share
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures, for a minute"]
async fn catching_up_from_the_page_cache_goes_at_the_rate_of_reading_it() {
    let mut world = World::local().await;
    (world.segment_bytes, world.in_flight_bytes) = (64 << 20, 64 << 20);
    let process = world.process().await;
    let writer = process.log("log").await.open_writer().await.unwrap();
    fill(&writer, GIB / 2).await;
    writer.close().await.unwrap();
    let files = data_files(world.directory().unwrap());
    let mut rounds = Vec::new();
    for _ in 0..7 {
        let (took, bytes) = read_pieces(&files).await;
        rounds.push((rate(bytes, took), rate(GIB / 2, catch_up(&world, GIB / 2 / ENTRY).await)));
    }
    let share = compare("page cache", &rounds);
    assert!(share >= 0.7, "{share:.2} of the medium's rate");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures, for a minute"]
async fn catching_up_from_objects_goes_at_the_rate_of_reading_them() {
    const BYTES: usize = 256 * MIB;
    let (mut world, s3) = World::bucket().await;
    (world.segment_bytes, world.in_flight_bytes) = (64 << 20, 64 << 20);
    let process = world.process().await;
    s3.faults().delay(Op::Put, Duration::from_millis(50));
    let writer = process.log("log").await.open_writer().await.unwrap();
    fill(&writer, BYTES).await;
    writer.close().await.unwrap();
    let objects: Vec<_> = world.objects.list(Some(&"volumes".into())).try_collect().await.unwrap();
    let clock = Clock::system();
    let mut rounds = Vec::new();
    for _ in 0..7 {
        let (began, bytes) = (clock.now(), objects.iter().map(|object| object.size).sum::<u64>());
        stream::iter(&objects)
            .map(|object| async { world.objects.get(&object.location).await?.bytes().await.map(drop) })
            .buffer_unordered(8)
            .try_for_each(|()| async { Ok(()) })
            .await
            .unwrap();
        let medium = rate(usize::try_from(bytes).unwrap(), began.elapsed());
        let before = s3.counts();
        rounds.push((medium, rate(BYTES, catch_up(&world, BYTES / ENTRY).await)));
        if rounds.len() == 1 {
            println!("{} objects; requests before {before:?}, after {:?}", objects.len(), s3.counts());
        }
    }
    let share = compare("objects", &rounds);
    assert!(share >= 0.7, "{share:.2} of the medium's rate");
}
