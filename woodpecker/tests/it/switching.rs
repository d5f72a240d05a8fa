//! A log that changes its medium while it is written and read.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use woodpecker::{Position, Settings};
use woodpecker_base::{clock::Clock, disk::RealDisk, random::Random, tasks::Tasks};
use woodpecker_store::{
    backend::Backend,
    disk::{LocalBackend, LocalSettings},
    memory::{MemoryBackend, MemoryMedium},
};

use crate::world::{World, append, append_all, read, read_all, soon};

#[tokio::test]
async fn a_log_moves_between_media_online_and_readers_walk_across() {
    let world = World::object().await;
    let directory = tempfile::tempdir().unwrap();
    let medium = MemoryMedium::new();
    let mut processes = Vec::new();
    for _ in 0..2 {
        let tasks = Tasks::new();
        let (disk, clock, random) = (Arc::new(RealDisk), Clock::system(), Random::system());
        let local = LocalBackend::open(directory.path(), LocalSettings::default(), disk, clock, random).await.unwrap();
        let local: Arc<dyn Backend> = Arc::new(local);
        let memory: Arc<dyn Backend> = Arc::new(MemoryBackend::new(medium.clone(), &tasks));
        let all = [world.backend(&tasks).await, local, memory];
        let backends: BTreeMap<_, _> = all.into_iter().map(|backend| (backend.name().to_owned(), backend)).collect();
        let settings = Settings {
            metadata_prefix: "test/woodpecker".to_owned(),
            backend: "local".to_owned(),
            segment_bytes: 300,
            segment_age: Duration::from_secs(3600),
            in_flight_bytes: 1 << 20,
            read_ahead_bytes: Settings::READ_AHEAD_BYTES,
        };
        let metadata = world.metadata.connect();
        processes.push(world.process_of(settings, Arc::new(metadata.clone()), metadata, backends, tasks));
    }
    let (log, elsewhere) = (processes[0].log("log").await, processes[1].log("log").await);
    let writer = log.open_writer().await.unwrap();
    let mut readers = [log.reader(Position::Earliest), elsewhere.reader(Position::Earliest)];
    let mut written = append_all(&writer, "local", 50).await;
    for backend in ["object", "memory", "local"] {
        elsewhere.alter(|settings| settings.backend = Some(backend.to_owned())).await.unwrap();
        // A roll that began before may still open one more segment where the log was.
        let moved = async {
            while log.describe().await.unwrap().segments.last().unwrap().backend != backend {
                written.extend(append_all(&writer, backend, 30).await);
            }
        };
        soon("move", moved).await;
        written.extend(append_all(&writer, backend, 60).await);
    }
    for reader in &mut readers {
        assert_eq!(read(reader, written.len()).await, written);
    }
    // A medium that a process does not have keeps nobody from writing.
    elsewhere.alter(|settings| settings.backend = Some("quorum".to_owned())).await.unwrap();
    written.extend(append_all(&writer, "on", 60).await);
    soon("close", writer.close()).await.unwrap();
    assert_eq!(read_all(&elsewhere).await, written);
    let done = processes[1].maintain().await;
    let segments = log.describe().await.unwrap().segments;
    let media: BTreeSet<_> = segments.iter().map(|segment| segment.backend.as_str()).collect();
    assert_eq!(media, BTreeSet::from(["local", "memory", "object"]));
    assert!(done.failed == 0 && segments.iter().all(|segment| segment.freed), "every medium is sealed: {segments:?}");
    assert_eq!(read_all(&log).await, written);
}

#[tokio::test]
async fn a_log_that_nobody_writes_moves_too_with_entries_or_without_and_once() {
    let world = World::memory().await;
    let directory = tempfile::tempdir().unwrap();
    let tasks = Tasks::new();
    let (disk, clock, random) = (Arc::new(RealDisk), Clock::system(), Random::system());
    let local = LocalBackend::open(directory.path(), LocalSettings::default(), disk, clock.clone(), random).await;
    let all: [Arc<dyn Backend>; 2] = [world.backend(&tasks).await, Arc::new(local.unwrap())];
    let backends: BTreeMap<_, _> = all.into_iter().map(|backend| (backend.name().to_owned(), backend)).collect();
    let settings = Settings {
        metadata_prefix: "test/woodpecker".to_owned(),
        backend: "memory".to_owned(),
        segment_bytes: 1 << 20,
        // Looked at every second, and never old enough.
        segment_age: Duration::from_secs(10),
        in_flight_bytes: 1 << 20,
        read_ahead_bytes: Settings::READ_AHEAD_BYTES,
    };
    let metadata = world.metadata.connect();
    let process = world.process_of(settings, Arc::new(metadata.clone()), metadata, backends, tasks);
    let elsewhere = world.process().await;
    let (log, altered) = (process.log("log").await, elsewhere.log("log").await);
    let writer = log.open_writer().await.unwrap();
    let mut written = Vec::new();
    for (backend, segment) in [("local", 2), ("memory", 3)] {
        altered.alter(|settings| settings.backend = Some(backend.to_owned())).await.unwrap();
        let moved = async {
            while altered.describe().await.unwrap().segments.last().unwrap().backend != backend {
                clock.sleep(Duration::from_millis(10)).await;
            }
        };
        soon("move", moved).await;
        let entry = append(&writer, backend).await;
        assert_eq!(entry.segment, segment);
        written.push((entry, backend.to_owned()));
    }
    // A medium that the process does not have, and a few looks at the log.
    altered.alter(|settings| settings.backend = Some("quorum".to_owned())).await.unwrap();
    clock.sleep(Duration::from_millis(2_500)).await;
    assert_eq!(append(&writer, "on").await.segment, 3);
    assert_eq!(read_all(&log).await[..2], written);
}
