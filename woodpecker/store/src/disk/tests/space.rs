//! What a volume costs: syncs, reads, memory and room on the disk.

use std::{
    io,
    sync::{Arc, Mutex, Weak, mpsc},
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::watch;
use woodpecker_base::{clock::Clock, disk::RealDisk};
use woodpecker_core::ids::Epoch;

use super::{One, ROOT, backend, entry, faulty::FaultyDisk, key, read_all, small};
use crate::{
    backend::{Backend, SegmentEnd, SegmentOwner, StoreError},
    conformance::Owner,
    disk::LocalSettings,
};

#[tokio::test]
async fn syncs_do_not_grow_with_the_number_of_segments() {
    let one = One::new(LocalSettings { file_bytes: 16 << 20, ..small() }).await;
    one.append(0..1).await;
    let before = one.disk.faults().syncs;
    let mut segments = Vec::new();
    for log in 100..1_100 {
        segments.push(one.create(log).await);
    }
    for (log, (writer, _)) in (100..).zip(&segments) {
        writer.append(vec![entry(key(log), 0)]).unwrap();
    }
    for (_, owner) in &segments {
        owner.wait_acked(1).await;
    }
    assert_eq!(one.disk.faults().syncs - before, 1, "one batch for all");
}

#[tokio::test]
async fn tail_readers_of_the_process_read_no_file() {
    let one = One::new(small()).await;
    let reader = one.backend.open(key(1), &one.placement(), None).await.unwrap();
    let before = one.disk.faults().reads;
    for number in 0..100 {
        let wait = reader.readable(number);
        tokio::join!(one.append(number..number + 1), wait);
        assert_eq!(reader.read(number, 1_000).await.unwrap(), [entry(key(1), number)]);
    }
    assert_eq!(one.disk.faults().reads, before);
}

#[tokio::test]
async fn a_reader_follows_across_files_and_out_of_memory() {
    let one = One::new(LocalSettings { file_bytes: 16 << 10, tail_bytes: 100, ..small() }).await;
    for number in 0..40 {
        one.append(number..number + 1).await;
    }
    assert!(one.disk.names().contains(&"00000010.vol".to_owned()), "{:?}", one.disk.names());
    assert_eq!(read_all(&one.backend, key(1), &one.placement(), None).await.unwrap(), 40);
    let reader = one.backend.open(key(1), &one.placement(), None).await.unwrap();
    for from in [39, 0, 20, 19, 3] {
        assert_eq!(reader.read(from, 0).await.unwrap(), [entry(key(1), from)]);
    }
    let other = backend(ROOT, small(), Arc::new(one.disk.process())).await;
    assert_eq!(read_all(&other, key(1), &one.placement(), None).await.unwrap(), 40);
}

#[tokio::test]
async fn a_batch_larger_than_a_file_gets_one_of_its_own() {
    let one = One::new(LocalSettings { file_bytes: 16 << 10, tail_bytes: 0, ..small() }).await;
    one.append(0..1).await;
    let large = Bytes::from(vec![7; 100 << 10]);
    one.writer.append(vec![large.clone()]).unwrap();
    one.owner.wait_acked(2).await;
    one.append(2..3).await;
    let other = backend(ROOT, small(), Arc::new(one.disk.process())).await;
    for backend in [&one.backend, &other] {
        let reader = backend.open(key(1), &one.placement(), Some(3)).await.unwrap();
        assert_eq!(reader.read(1, 0).await.unwrap(), std::slice::from_ref(&large));
        assert_eq!(reader.read(2, 0).await.unwrap(), [entry(key(1), 2)]);
    }
}

#[tokio::test]
async fn files_go_when_no_segment_needs_them() {
    let one = One::new(LocalSettings { file_bytes: 12 << 10, ..small() }).await;
    let (other, other_owner) = one.create(2).await;
    // One entry at a time, so that each is a batch of its own, and two fill a file.
    one.append(0..1).await;
    other.append(vec![entry(key(2), 0)]).unwrap();
    other_owner.wait_acked(1).await;
    for number in 1..4 {
        one.append(number..number + 1).await;
    }
    other.append(vec![entry(key(2), 1)]).unwrap();
    other_owner.wait_acked(2).await;
    one.append(4..5).await;
    // File 0 is shared, 1 is of segment 1 alone, 2 is shared again, 3 is being written.
    let reading = backend(ROOT, small(), Arc::new(one.disk.process())).await;
    let reader = reading.open(key(2), other.placement(), None).await.unwrap();
    assert_eq!(reader.tail().await.unwrap(), 2);
    one.backend.delete(key(1), &one.placement()).await.unwrap();
    let names = one.disk.names();
    assert!(names.contains(&"00000000.vol".to_owned()) && !names.contains(&"00000001.vol".to_owned()), "{names:?}");
    assert!(!names.contains(&"00000001.idx".to_owned()), "{names:?}");
    for backend in [&one.backend, &reading] {
        assert_eq!(read_all(backend, key(2), other.placement(), None).await.unwrap(), 2);
    }
    // A reader that knew the removed file walks over the gap.
    assert_eq!(reader.read(1, 1_000).await.unwrap(), [entry(key(2), 1)]);

    // Another process finds the same account, and that the writer lives.
    let process = backend(ROOT, small(), Arc::new(one.disk.process())).await;
    process.delete(key(1), &one.placement()).await.unwrap();
    assert_eq!(process.fence(key(2), other.placement(), Epoch(2)).await.unwrap(), 2);
    process.delete(key(2), other.placement()).await.unwrap();
    let names = one.disk.names();
    assert!(!names.contains(&"00000000.vol".to_owned()), "{names:?}");
    assert!(names.iter().any(|name| name.ends_with(".vol")), "removed the file that is being written: {names:?}");

    // Once the writer is gone, so is the rest, except the marks.
    one.disk.crash();
    process.delete(key(2), other.placement()).await.unwrap();
    let names = one.disk.names();
    assert!(!names.iter().any(|name| name.ends_with(".vol") || name.ends_with(".idx")), "{names:?}");
    assert_eq!(process.fence(key(9), other.placement(), Epoch(2)).await.unwrap(), 0, "never had an entry");
}

/// Each deletion asks for every file of the volume, of which there may be tens of thousands.
#[tokio::test]
async fn a_deletion_reads_no_file_that_another_segment_is_known_to_need() {
    let one = One::new(LocalSettings { file_bytes: 12 << 10, index_bytes: 0, ..small() }).await;
    for number in 0..20 {
        one.append(number..number + 1).await;
    }
    let (other, owner) = one.create(2).await;
    other.append(vec![entry(key(2), 0)]).unwrap();
    owner.wait_acked(1).await;
    let files = |names: Vec<String>| names.iter().filter(|name| name.ends_with(".vol")).count();
    let before = files(one.disk.names());
    assert!(before > 8, "{before}");
    one.backend.delete(key(100), &one.placement()).await.unwrap();
    let reads = one.disk.faults().reads;
    for log in 101..110 {
        one.backend.delete(key(log), &one.placement()).await.unwrap();
    }
    assert_eq!(one.disk.faults().reads, reads);
    // They go all the same.
    one.backend.delete(key(1), &one.placement()).await.unwrap();
    assert!(files(one.disk.names()) <= 3, "{:?}", one.disk.names());
    assert_eq!(read_all(&one.backend, key(2), other.placement(), None).await.unwrap(), 1);
}

#[tokio::test]
async fn deletions_from_the_volume_of_an_earlier_process_look_at_its_files_once() {
    let one = One::new(LocalSettings { file_bytes: 12 << 10, ..small() }).await;
    for number in 0..40 {
        one.append(number..number + 1).await;
    }
    one.disk.crash();
    let disk = one.disk.process();
    let next = backend(ROOT, small(), Arc::new(disk.clone())).await;
    next.delete(key(100), &one.placement()).await.unwrap();
    let before = disk.faults().reads;
    assert!(before > 40, "{before}");
    for log in 101..110 {
        next.delete(key(log), &one.placement()).await.unwrap();
    }
    let reads = disk.faults().reads - before;
    assert!(reads <= 9 * 4, "{reads}");
    assert_eq!(read_all(&next, key(1), &one.placement(), Some(40)).await.unwrap(), 40);
    next.delete(key(1), &one.placement()).await.unwrap();
    assert!(!disk.names().iter().any(|name| name.ends_with(".vol")), "{:?}", disk.names());
}

#[tokio::test]
async fn deleted_segments_of_which_no_file_holds_anything_are_forgotten() {
    let one = One::new(LocalSettings { file_bytes: 12 << 10, ..small() }).await;
    // Shares a file with the one that stays.
    let (shared, owner) = one.create(2).await;
    one.append(0..1).await;
    shared.append(vec![entry(key(2), 0)]).unwrap();
    owner.wait_acked(1).await;
    for number in 1..6 {
        one.append(number..number + 1).await;
    }
    one.backend.delete(key(2), shared.placement()).await.unwrap();
    for log in 1_000..6_000 {
        one.backend.delete(key(log), &one.placement()).await.unwrap();
    }
    let volumes: Vec<_> = one.backend.volumes().values().filter_map(Weak::upgrade).collect();
    let known: usize = volumes.iter().map(|volume| volume.deletions()).sum();
    assert!(known < 3_000, "{known} deletions are remembered");
    one.backend.delete(key(1), &one.placement()).await.unwrap();
    assert!(!one.disk.names().contains(&"00000000.vol".to_owned()), "what was forgotten keeps a file");
}

#[tokio::test]
async fn closing_gives_back_what_was_allocated_ahead() {
    let dir = tempfile::tempdir().unwrap();
    let backend = backend(dir.path(), LocalSettings::default(), Arc::new(RealDisk)).await;
    let owner = Owner::default();
    let writer = backend.create(key(1), Epoch(1), Arc::new(owner.clone())).await.unwrap();
    writer.append(vec![entry(key(1), 0)]).unwrap();
    owner.wait_acked(1).await;
    backend.close().await;
    let volume = dir.path().join("volumes").join(writer.placement().to_string());
    let mut sizes: Vec<_> = std::fs::read_dir(volume)
        .unwrap()
        .map(|file| file.map(|file| (file.file_name().into_string().unwrap(), file.metadata().unwrap().len())).unwrap())
        .collect();
    sizes.sort();
    let names: Vec<_> = sizes.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["00000000.idx", "00000000.vol", "marks"]);
    assert_eq!(sizes[1].1, 8_192);
    assert!(matches!(
        backend.create(key(2), Epoch(1), Arc::new(Owner::default())).await,
        Err(StoreError::Unavailable(_))
    ));
}

#[tokio::test]
async fn more_than_the_hard_bound_in_flight_is_refused_and_takes_no_number() {
    let one = One::new(LocalSettings { queue_bytes: 1_000, ..small() }).await;
    // On one thread the writer runs only when the test waits.
    assert_eq!(one.writer.append(vec![entry(key(1), 0), Bytes::from(vec![0; 900])]).unwrap(), 0);
    let refused = one.writer.append(vec![Bytes::from(vec![0; 900])]);
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    one.owner.wait_acked(2).await;
    assert_eq!(one.writer.append(vec![entry(key(1), 2)]).unwrap(), 2);
    one.owner.wait_acked(3).await;
    assert_eq!(one.writer.append(vec![Bytes::from(vec![0; 2_000])]).unwrap(), 3, "alone it may be larger");
    one.owner.wait_acked(4).await;
}

/// Room comes back only when nobody has the file open any more.
#[tokio::test]
async fn files_that_went_are_open_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let settings = LocalSettings { file_bytes: 16 << 10, tail_bytes: 100, ..small() };
    let backend = backend(dir.path(), settings, Arc::new(RealDisk)).await;
    let (owner, other) = (Owner::default(), Owner::default());
    let writer = backend.create(key(1), Epoch(1), Arc::new(owner.clone())).await.unwrap();
    for number in 0..40 {
        writer.append(vec![entry(key(1), number)]).unwrap();
        owner.wait_acked(number + 1).await;
    }
    let reader = backend.open(key(1), writer.placement(), Some(40)).await.unwrap();
    for from in 0..40 {
        assert_eq!(reader.read(from, 0).await.unwrap(), [entry(key(1), from)]);
    }
    let files = |ending: &str| {
        let open = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| entry.ok()?.path().read_link().ok());
        let open = open.map(|path| path.to_string_lossy().into_owned());
        open.filter(|path| path.starts_with(&*dir.path().to_string_lossy()) && path.ends_with(ending)).count()
    };
    assert!(files(".vol") > 0);
    backend.delete(key(1), writer.placement()).await.unwrap();
    // What follows is in the file that was being written.
    let next = backend.create(key(2), Epoch(1), Arc::new(other.clone())).await.unwrap();
    next.append(vec![entry(key(2), 0)]).unwrap();
    other.wait_acked(1).await;
    assert_eq!(files("(deleted)"), 0);
    drop(reader);
}

/// Tells what it is told, and holds the volume's writer up at the end until it is let go.
#[derive(Debug)]
struct Slow {
    told: Owner,
    held: watch::Sender<bool>,
    go_on: Mutex<mpsc::Receiver<()>>,
}

impl SegmentOwner for Slow {
    fn acked(&self, next: u64) {
        self.told.acked(next);
    }

    fn ended(&self, end: SegmentEnd) {
        self.held.send_replace(true);
        self.go_on.lock().unwrap().recv().unwrap();
        self.told.ended(end);
    }
}

/// An end that is told after it would be taken for that of a segment in the next volume.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_begins_anew_when_every_owner_knows_that_the_volume_failed() {
    let disk = FaultyDisk::default();
    let backend = backend(ROOT, small(), Arc::new(disk.clone())).await;
    let (go_on, waits) = mpsc::channel();
    let owner = Slow { told: Owner::default(), held: watch::Sender::new(false), go_on: Mutex::new(waits) };
    let (told, mut held) = (owner.told.clone(), owner.held.subscribe());
    let writer = backend.create(key(1), Epoch(1), Arc::new(owner)).await.unwrap();
    disk.faults().fail_write = Some((1, 0, Some(io::ErrorKind::StorageFull)));
    writer.append(vec![entry(key(1), 0)]).unwrap();
    held.wait_for(|held| *held).await.unwrap();
    assert!(backend.ran_full());
    let mut beginning = Box::pin(backend.begin_anew());
    let early = Clock::system().timeout(Duration::from_millis(100), &mut beginning).await;
    assert!(early.is_err(), "before its owner knew");
    go_on.send(()).unwrap();
    beginning.await;
    assert!(matches!(told.wait_ended().now_or_never(), Some(SegmentEnd::Failed(_))));
    let next = Owner::default();
    let writer = backend.create(key(2), Epoch(1), Arc::new(next.clone())).await.unwrap();
    writer.append(vec![entry(key(2), 0)]).unwrap();
    next.wait_acked(1).await;
}

#[tokio::test]
async fn a_volume_that_could_not_be_made_for_want_of_room_is_forgotten_when_there_is_some() {
    let disk = FaultyDisk::default();
    let backend = backend(ROOT, small(), Arc::new(disk.clone())).await;
    disk.faults().no_dirs = true;
    let create = || backend.create(key(1), Epoch(1), Arc::new(Owner::default()));
    assert!(matches!(create().await, Err(StoreError::Failed(_))));
    assert!(backend.ran_full());
    disk.faults().no_dirs = false;
    backend.begin_anew().await;
    assert!(!backend.ran_full());
    create().await.unwrap();
}
