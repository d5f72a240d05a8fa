//! Taking a segment over, and reading it, when replicas hold different things.

use woodpecker_core::quorum::recovery::Told;

use super::{fake::Held, *};

/// Three stores, of which each holds so many entries of segment 1 from an owner that is gone.
async fn tails(tails: [u64; 3]) -> (World, Placement) {
    let world = World::new(3).await;
    for (id, tail) in (1..).zip(tails) {
        let held = Held { entries: (0..tail).map(entry).collect(), owner: 1, ..Held::default() };
        world.store(StoreId(id)).lock().insert(key(1), held);
    }
    (world, Placement::Replicas(ReplicaSet::new((1..=3).map(StoreId).collect(), 2).unwrap()))
}

fn silence(world: &World, id: u128, silent: bool) {
    world.store(StoreId(id)).fault(|faults| faults.silent = silent);
}

fn holds(world: &World, entries: usize) -> usize {
    (1..=3).filter(|id| world.store(StoreId(*id)).held(key(1)).entries.len() >= entries).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tail_that_one_replica_holds_is_copied_before_the_segment_is_closed() {
    let (world, placement) = tails([4, 6, 6]).await;
    silence(&world, 3, true);
    let (backend, _tasks) = world.backend(|_| ());
    assert_eq!(fence(&backend, &placement, 2).await.unwrap(), 6);
    assert_eq!(world.store(StoreId(1)).held(key(1)).entries, (0..6).map(entry).collect::<Vec<_>>());
    // Its first holder dies: nothing is lost.
    silence(&world, 2, true);
    read_all(&backend, key(1), &placement, 6).await;
    // And the segment can be taken again.
    silence(&world, 3, false);
    assert_eq!(fence(&backend, &placement, 3).await.unwrap(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_away_brings_nothing_back() {
    let (world, placement) = tails([6, 4, 7]).await;
    silence(&world, 3, true);
    let (backend, _tasks) = world.backend(|_| ());
    assert_eq!(fence(&backend, &placement, 2).await.unwrap(), 6);
    for away in [1, 2] {
        silence(&world, 3, false);
        silence(&world, away, true);
        let (other, _tasks) = world.backend(|_| ());
        assert_eq!(fence(&other, &placement, 2 + u64::try_from(away).unwrap()).await.unwrap(), 6);
        silence(&world, away, false);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_attempt_after_another_of_one_taker_says_the_same() {
    let (world, placement) = tails([4, 6, 9]).await;
    silence(&world, 3, true);
    let (backend, _tasks) = world.backend(|settings| settings.request_timeout = Duration::from_millis(300));
    // The one that lacks entries cannot be given them: the end is known, and cannot be made last.
    let full = super::super::refusal::Refusal::new(streaming_proto::logstore::Code::DiskFull, "no space");
    world.store(StoreId(1)).fault(|faults| faults.refuse = Some(full));
    assert!(fence(&backend, &placement, 2).await.unwrap_err().is_retryable());
    silence(&world, 1, true);
    silence(&world, 3, false);
    assert_eq!(fence(&backend, &placement, 2).await.unwrap(), 6, "the first attempt had come to 6");
    let told = world.store(StoreId(3)).held(key(1)).end.map(|(epoch, end)| Told { epoch: Epoch(epoch), end });
    assert_eq!(told, Some(Told { epoch: Epoch(2), end: 6 }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_lost_its_disk_does_not_count_as_empty() {
    let (world, placement) = tails([4, 6, 6]).await;
    world.store(StoreId(2)).lose_disk();
    silence(&world, 3, true);
    let (backend, _tasks) = world.backend(|_| ());
    let refused = fence(&backend, &placement, 2).await.unwrap_err();
    assert!(refused.is_retryable() && refused.to_string().contains("1 of 3 replicas answered"), "{refused}");
    silence(&world, 3, false);
    assert_eq!(fence(&backend, &placement, 2).await.unwrap(), 6);
    assert_eq!(holds(&world, 6), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_stores_that_both_acked_one_can_be_lost_for_good() {
    let world = World::new(3).await;
    for id in 1..=2 {
        let held = Held { entries: (0..6).map(entry).collect(), owner: 1, ..Held::default() };
        world.store(StoreId(id)).lock().insert(key(1), held);
    }
    let placement = Placement::Replicas(ReplicaSet::new(vec![StoreId(1), StoreId(2)], 2).unwrap());
    silence(&world, 2, true);
    let (backend, _tasks) = world.backend(|settings| settings.request_timeout = Duration::from_millis(300));
    let refused = fence(&backend, &placement, 2).await.unwrap_err();
    assert!(refused.is_retryable(), "its lease lives, it may come back: {refused}");
    world.metadata.commit(Txn::new().delete(store_record::key(PREFIX, StoreId(2)))).await.unwrap();
    let taken = async {
        loop {
            // Until the watch has told.
            if let Ok(end) = fence(&backend, &placement, 2).await {
                return end;
            }
        }
    };
    assert_eq!(Clock::system().timeout(LIMIT, taken).await.unwrap(), 6);
    read_all(&backend, key(1), &placement, 6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_that_nobody_acked_does_not_wedge_the_log() {
    let (world, placement) = tails([1, 0, 0]).await;
    let (backend, _tasks) = world.backend(|_| ());
    assert_eq!(fence(&backend, &placement, 2).await.unwrap(), 0);
    read_all(&backend, key(1), &placement, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_writer_is_never_acked_by_the_replica_that_missed_the_fence() {
    let world = World::new(3).await;
    let (old, _tasks) = world.backend(|settings| settings.silence = Duration::from_secs(30));
    let opened = Open::create(&old, 1).await;
    opened.fill(0, 4).await;
    let missed = world.replica(&opened.placement(), 2);
    missed.wait("the last entry", || missed.held(key(1)).entries.len() == 4).await;
    missed.fault(|faults| faults.silent = true);
    let (new, _tasks) = world.backend(|_| ());
    assert_eq!(fence(&new, &opened.placement(), 2).await.unwrap(), 4);
    missed.fault(|faults| faults.silent = false);
    // Its writer goes on until it meets the fence.
    while opened.writer.append(vec![entry(4)]).is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(matches!(opened.owner.wait_ended().await, crate::backend::SegmentEnd::Fenced));
    assert_eq!(opened.owner.acked_now(), 4);
    assert_eq!(fence(&new, &opened.placement(), 3).await.unwrap(), 4);
    read_all(&new, key(1), &opened.placement(), 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_goes_on_with_another_replica() {
    let (world, placement) = tails([20, 20, 12]).await;
    let (backend, _tasks) = world.backend(|_| ());
    read_all(&backend, key(1), &placement, 20).await;
    for id in 1..=2 {
        silence(&world, id, true);
        read_all(&backend, key(1), &placement, 20).await;
        silence(&world, id, false);
        world.store(StoreId(id)).fault(|faults| faults.corrupt = true);
        read_all(&backend, key(1), &placement, 20).await;
        world.store(StoreId(id)).fault(|faults| faults.corrupt = false);
        world.store(StoreId(id)).fault(|faults| faults.broken += 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_replica_can_give_is_an_error_and_not_an_endless_wait() {
    let (world, placement) = tails([5, 5, 5]).await;
    let (backend, _tasks) = world.backend(|_| ());
    let reader = backend.open(key(1), &placement, Some(6)).await.unwrap();
    let missing = reader.read(5, 100).await.unwrap_err();
    assert!(missing.is_retryable(), "a replica that comes back may have it: {missing}");
    for id in 1..=3 {
        world.store(StoreId(id)).fault(|faults| faults.corrupt = true);
    }
    assert!(matches!(reader.read(0, 100).await, Err(StoreError::Corrupt { .. })));
    for id in 1..=3 {
        world.store(StoreId(id)).fault(|faults| faults.corrupt = false);
    }
    // One that answers and does not have it is no hope either, once nothing is appended any more.
    let shorter = world.store(StoreId(2));
    shorter.lock().get_mut(&key(1)).unwrap().entries.truncate(3);
    for id in [1, 3] {
        world.store(StoreId(id)).fault(|faults| faults.corrupt = true);
    }
    assert!(matches!(reader.read(4, 100).await, Err(StoreError::Corrupt { .. })));
    silence(&world, 2, true);
    let error = reader.read(4, 100).await.unwrap_err();
    assert!(error.is_retryable(), "the one that is silent may have it: {error}");
    silence(&world, 2, false);
    for id in [1, 3] {
        world.store(StoreId(id)).fault(|faults| faults.corrupt = false);
    }
    backend.delete(key(1), &placement).await.unwrap();
    assert!(matches!(fence(&backend, &placement, 2).await, Err(StoreError::NotFound { .. })), "a deletion goes on");
    assert!(matches!(reader.read(0, 100).await, Err(StoreError::NotFound { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_moves_to_another_replica_when_its_own_breaks() {
    let world = World::new(3).await;
    let (writing, _tasks) = world.backend(|settings| settings.silence = Duration::from_secs(30));
    let (reading, _tasks) = world.backend(|settings| settings.keepalive = Duration::from_millis(200));
    let opened = Open::create(&writing, 1).await;
    let reader = reading.open(opened.key, &opened.placement(), None).await.unwrap();
    let follow = async |from: u64, to: u64| {
        let mut next = from;
        while next < to {
            Clock::system().timeout(LIMIT, reader.readable(next)).await.unwrap();
            for bytes in reader.read(next, 1 << 20).await.unwrap() {
                assert_eq!(bytes, entry(next));
                next += 1;
            }
        }
    };
    opened.fill(0, 5).await;
    follow(0, 5).await;
    // Whichever of them pushes: the next entries come from another.
    for (replica, next) in [(0, 5), (1, 8)] {
        world.replica(&opened.placement(), replica).fault(|faults| faults.mute = true);
        let push = async {
            opened.fill(next, next + 3).await;
        };
        futures::future::join(push, follow(next, next + 3)).await;
        world.replica(&opened.placement(), replica).fault(|faults| faults.mute = false);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taker_that_was_overtaken_learns_it_at_once() {
    let world = World::new(3).await;
    let (backend, _tasks) = world.backend(|_| ());
    let opened = Open::create(&backend, 1).await;
    opened.fill(0, 3).await;
    assert_eq!(fence(&backend, &opened.placement(), 3).await.unwrap(), 3);
    let began = Clock::system().now();
    let error = fence(&backend, &opened.placement(), 2).await.unwrap_err();
    assert!(matches!(error, StoreError::Fenced { .. }), "{error}");
    // Half of the time in which it would try again.
    assert!(began.elapsed() < Duration::from_secs(4), "after {:?}", began.elapsed());
}
