//! Fences at every moment of a batch's life, forced.

use std::sync::{Arc, Mutex};

use woodpecker_core::ids::Epoch;

use super::{FaultyDisk, One, ROOT, backend, entry, faulty::Hook, key, read_all, small};
use crate::{
    backend::{Backend, Placement, SegmentEnd, volume_of},
    cache::cache,
    disk::{
        file::VolumeDir,
        volume::{Volume, Weighter},
    },
};

/// A taker of another process, as a hook: fences segment 1 and keeps the tail it got.
fn taker(disk: &FaultyDisk, placement: &Placement) -> (Hook, Arc<Mutex<Option<u64>>>) {
    let got = Arc::new(Mutex::new(None));
    let (disk, placement, keep) = (disk.process(), placement.clone(), got.clone());
    let hook = move || {
        let (id, from_batch) = volume_of(&placement).unwrap();
        let path = std::path::Path::new(ROOT).join("volumes").join(id.to_string());
        let dir = VolumeDir { id, path, disk: Arc::new(disk) };
        let volume = Volume::found(dir, Arc::new(cache(1 << 20, 64 << 10, Weighter)));
        let tail = volume.fence(key(1), from_batch, Epoch(2), 7).unwrap();
        *keep.lock().unwrap() = Some(tail);
    };
    (Box::new(hook), got)
}

/// The batch is `3..6`; the fence comes before or after its sync. Afterwards everyone agrees.
async fn fence_at(before: bool) -> u64 {
    let one = One::new(small()).await;
    one.append(0..3).await;
    let (hook, got) = taker(&one.disk, &one.placement());
    if before {
        one.disk.faults().before_sync = Some((2, hook));
    } else {
        one.disk.faults().after_sync = Some((2, hook));
    }
    one.writer.append((3..6).map(|number| entry(key(1), number)).collect()).unwrap();
    assert!(matches!(one.owner.wait_ended().await, SegmentEnd::Fenced));
    let tail = got.lock().unwrap().expect("the fence came");
    assert_eq!(one.owner.acked_now(), 3, "acked after a fence");
    // What was written before the fence counts, acked or not, also after the machine stopped: the taker synced it.
    one.disk.crash();
    let next = backend(ROOT, small(), Arc::new(one.disk.process())).await;
    assert_eq!(next.fence(key(1), &one.placement(), Epoch(3)).await.unwrap(), tail);
    assert_eq!(read_all(&next, key(1), &one.placement(), Some(tail)).await.unwrap(), tail);
    tail
}

#[tokio::test]
async fn a_fence_between_write_and_sync_counts_the_batch_and_stops_the_ack() {
    assert_eq!(fence_at(true).await, 6);
}

#[tokio::test]
async fn a_fence_between_sync_and_ack_counts_the_batch_and_stops_the_ack() {
    assert_eq!(fence_at(false).await, 6);
}

#[tokio::test]
async fn what_is_written_after_a_fence_is_beyond_the_tail_for_ever() {
    let one = One::new(small()).await;
    let (other, other_owner) = one.create(2).await;
    one.append(0..3).await;
    taker(&one.disk, &one.placement()).0();
    one.writer.append(vec![entry(key(1), 3)]).unwrap();
    assert!(matches!(one.owner.wait_ended().await, SegmentEnd::Fenced));
    // The volume goes on for the others.
    other.append(vec![entry(key(2), 0)]).unwrap();
    other_owner.wait_acked(1).await;
    let next = backend(ROOT, small(), Arc::new(one.disk.process())).await;
    for backend in [&next, &one.backend] {
        assert_eq!(backend.fence(key(1), &one.placement(), Epoch(9)).await.unwrap(), 3);
    }
    assert_eq!(read_all(&next, key(1), &one.placement(), None).await.unwrap(), 3);
    assert_eq!(next.fence(key(2), other.placement(), Epoch(9)).await.unwrap(), 1);
}

#[tokio::test]
async fn a_taker_that_died_between_its_marks_is_finished_by_the_next() {
    let one = One::new(small()).await;
    one.append(0..3).await;
    let reading = backend(ROOT, small(), Arc::new(one.disk.process())).await;
    let reader = reading.open(key(1), &one.placement(), None).await.unwrap();
    assert_eq!(reader.tail().await.unwrap(), 3);
    let mark = crate::disk::marks::Mark::Fence { key: key(1), epoch: Epoch(2), taker: 7 };
    let mut marks = one.disk.bytes("marks");
    marks.extend_from_slice(&mark.to_bytes());
    one.disk.set_bytes("marks", marks);
    one.writer.append(vec![entry(key(1), 3)]).unwrap();
    assert!(matches!(one.owner.wait_ended().await, SegmentEnd::Fenced));
    // Until a tail is recorded nobody knows what of the last batch will count.
    assert_eq!(reader.tail().await.unwrap(), 3);
    assert_eq!(reading.fence(key(1), &one.placement(), Epoch(3)).await.unwrap(), 4);
    assert_eq!(reader.tail().await.unwrap(), 4);
    assert_eq!(read_all(&reading, key(1), &one.placement(), None).await.unwrap(), 4);
}
