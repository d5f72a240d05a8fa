//! Two processes that believe they own a log, lost answers, and whoever else is in the way.

use object_store::{ObjectStoreExt, path::Path};
use test_peers::s3::Conditional;

use super::*;
use crate::{
    backend::volume_of,
    format::{BatchId, Kind, encode_batch},
};

fn object(placement: &Placement, seq: u64) -> Path {
    Path::from(format!("volumes/{placement}/{seq:020}"))
}

#[tokio::test]
async fn of_two_owners_the_older_one_fails_as_fenced() {
    let shared = Shared::s3(|_| ()).await.with(|settings| settings.request_timeout = Duration::from_millis(300));
    let (old, _tasks) = shared.backend();
    let (new, _tasks) = shared.backend();
    let log = Log::create(&old, 1).await;
    log.write("before").await;

    // The old owner's append is under way while the new one takes over.
    shared.peer().faults().next(Op::Put, 1, Fault::Hang);
    log.append("under way");
    while shared.peer().counts().puts < 2 {
        Clock::system().sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(new.fence(log.key, log.placement(), Epoch(2)).await.unwrap(), 1);

    let end = log.owner.wait_ended().await;
    assert!(matches!(end, SegmentEnd::Fenced), "{end:?}");
    assert_eq!(log.owner.acked_now(), 1);
    assert!(matches!(log.writer.append(vec!["late".into()]), Err(StoreError::Ended)));
    for backend in [&old, &new] {
        assert_eq!(read_from(&log.reader(backend, None).await, 0, 100).await, ["before"]);
    }
}

#[tokio::test]
async fn a_lost_answer_is_recognised_as_ones_own_write() {
    let shared = Shared::s3(|_| ()).await;
    let (backend, _tasks) = shared.backend();
    let log = Log::create(&backend, 1).await;
    for (number, fault) in [Fault::LoseAnswer, Fault::Misreport(500), Fault::Misreport(503)].into_iter().enumerate() {
        shared.peer().faults().next(Op::Put, 1, fault);
        log.write(format!("entry {number}")).await;
    }
    let (other, _tasks) = shared.backend();
    let all = read_from(&log.reader(&other, None).await, 0, 1000).await;
    assert_eq!(all, ["entry 0", "entry 1", "entry 2"]);
}

#[tokio::test]
async fn a_conflict_without_an_object_is_tried_again() {
    let shared = Shared::s3(|_| ()).await;
    let (backend, _tasks) = shared.backend();
    let log = Log::create(&backend, 1).await;
    shared.peer().faults().next(Op::Put, 2, Fault::Refuse(409));
    log.write("x").await;
}

#[tokio::test]
async fn anothers_object_in_the_way_stops_the_volume() {
    let shared = Shared::memory();
    let (backend, _tasks) = shared.backend();
    let log = Log::create(&backend, 1).await;
    log.write("mine").await;
    let volume = volume_of(log.placement()).unwrap().0;
    let mut bytes = Vec::new();
    let id = BatchId { kind: Kind::Data, volume, seq: 1, writer: 1, attempt: 2 };
    encode_batch(&mut bytes, id, &[], &[]).unwrap();
    for foreign in [bytes, b"not even a batch".to_vec()] {
        let log = Log::create(&backend, 2).await;
        let seq = if volume_of(log.placement()).unwrap().0 == volume { 1 } else { 0 };
        shared.store.put(&object(log.placement(), seq), foreign.into()).await.unwrap();
        log.append("mine too");
        let end = log.owner.wait_ended().await;
        let SegmentEnd::Failed(StoreError::Failed(why)) = end else { panic!("{end:?}") };
        assert!(why.contains("another process") || why.contains("place is taken"), "{why}");
        assert_eq!(log.owner.acked_now(), 0);
    }
    assert!(matches!(log.owner.wait_ended().await, SegmentEnd::Failed(_)));
    assert_eq!(read_from(&log.reader(&backend, Some(1)).await, 0, 100).await, ["mine"]);
}

#[tokio::test]
async fn a_store_that_is_gone_too_long_fails_the_volume_and_the_next_one_works() {
    let shared = Shared::s3(|_| ()).await.with(|settings| settings.put_deadline = Duration::from_millis(500));
    let (backend, _tasks) = shared.backend();
    let log = Log::create(&backend, 1).await;
    log.write("acked").await;
    shared.peer().faults().chance(Op::Put, 1.0, Fault::Refuse(503));
    log.append("lost");
    let end = log.owner.wait_ended().await;
    assert!(matches!(end, SegmentEnd::Failed(_)), "{end:?}");
    assert_eq!(log.owner.acked_now(), 1);
    shared.peer().faults().clear();

    let next = Log::create(&backend, 2).await;
    assert_ne!(volume_of(next.placement()).unwrap().0, volume_of(log.placement()).unwrap().0);
    next.write("works").await;
    // The failed volume's segment is closed like any other, by this process too.
    let tail = backend.fence(log.key, log.placement(), Epoch(2)).await.unwrap();
    assert_eq!(tail, 1);
    assert_eq!(read_from(&log.reader(&backend, Some(tail)).await, 0, 100).await, ["acked"]);
}

#[tokio::test]
async fn a_store_that_stops_deciding_conditional_puts_fails_the_volume() {
    let shared = Shared::s3(|s3| s3.faults().conditional(Conditional::Refused)).await;
    let shared = shared.with(|settings| settings.put_deadline = Duration::from_secs(1));
    let (backend, _tasks) = shared.backend();
    let log = Log::create(&backend, 1).await;
    log.append("x");
    let end = log.owner.wait_ended().await;
    assert!(matches!(end, SegmentEnd::Failed(_)), "{end:?}");
}

#[tokio::test]
async fn displaced_segments_hold_what_was_acked_and_new_ones_go_elsewhere() {
    let shared = Shared::memory();
    let (old, _tasks) = shared.backend();
    let (new, _tasks) = shared.backend();
    let (taken, other) = (Log::create(&old, 1).await, Log::create(&old, 2).await);
    taken.write("1").await;
    other.write("2").await;
    assert_eq!(new.fence(taken.key, taken.placement(), Epoch(2)).await.unwrap(), 1);
    other.append("never seen");
    let (first, second) = (taken.owner.wait_ended().await, other.owner.wait_ended().await);
    assert!(matches!(first, SegmentEnd::Fenced) && matches!(second, SegmentEnd::Displaced), "{first:?} {second:?}");
    assert_eq!(old.fence(other.key, other.placement(), Epoch(1)).await.unwrap(), 1);

    let again = Log::create(&old, 3).await;
    assert_ne!(volume_of(again.placement()).unwrap().0, volume_of(other.placement()).unwrap().0);
    again.write("goes on").await;
}

#[tokio::test]
async fn a_volume_that_was_ended_is_forgotten_with_its_writers_though_others_delete_what_it_holds() {
    let shared = Shared::memory();
    let ((old, _tasks), (new, _others)) = (shared.backend(), shared.backend());
    let (taken, other) = (Log::create(&old, 1).await, Log::create(&old, 2).await);
    taken.write("1").await;
    other.write("2").await;
    assert_eq!(new.fence(taken.key, taken.placement(), Epoch(2)).await.unwrap(), 1);
    other.append("never seen");
    other.owner.wait_ended().await;
    old.own(volume_of(other.placement()).unwrap().0).unwrap().close().await;
    for log in [&taken, &other] {
        new.delete(log.key, log.placement()).await.unwrap();
    }
    drop((taken, other));
    Log::create(&old, 3).await.write("3").await;
    assert_eq!(old.state().own.len(), 1);
}

#[tokio::test]
async fn a_process_takes_its_own_segment_over_without_disturbing_the_others() {
    let shared = Shared::memory();
    let (backend, _tasks) = shared.backend();
    let (mine, other) = (Log::create(&backend, 1).await, Log::create(&backend, 2).await);
    for _ in 0..5 {
        mine.append("x");
        other.append("y");
    }
    let tail = backend.fence(mine.key, mine.placement(), Epoch(2)).await.unwrap();
    assert!(matches!(mine.owner.wait_ended().await, SegmentEnd::Fenced));
    assert!(mine.owner.acked_now() <= tail && tail <= 5, "{tail}");
    assert_eq!(backend.fence(mine.key, mine.placement(), Epoch(3)).await.unwrap(), tail);
    other.write("still here").await;
    let (stranger, _tasks) = shared.backend();
    assert_eq!(stranger.fence(mine.key, mine.placement(), Epoch(4)).await.unwrap(), tail);
}

#[tokio::test]
async fn a_segment_placed_ahead_of_what_is_stored_is_fenced_at_zero() {
    let shared = Shared::s3(|_| ()).await;
    let (old, _tasks) = shared.backend();
    let (new, _tasks) = shared.backend();
    let first = Log::create(&old, 1).await;
    shared.peer().faults().delay(Op::Put, Duration::from_millis(200));
    first.append("under way");
    while shared.peer().counts().puts == 0 {
        tokio::task::yield_now().await;
    }
    let ahead = Log::create(&old, 2).await;
    assert_eq!(volume_of(ahead.placement()).unwrap().1, 1);
    assert_eq!(new.fence(ahead.key, ahead.placement(), Epoch(2)).await.unwrap(), 0);
    first.owner.wait_acked(1).await;
    ahead.append("too late");
    assert!(matches!(ahead.owner.wait_ended().await, SegmentEnd::Fenced));
    assert!(matches!(first.owner.wait_ended().await, SegmentEnd::Displaced));
    assert_eq!(new.fence(first.key, first.placement(), Epoch(2)).await.unwrap(), 1);
}
