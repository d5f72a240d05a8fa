//! Stores that stop and come back.

use woodpecker_core::ids::Epoch;
use woodpecker_store::backend::{Backend, SegmentEnd};

use crate::world::{Open, World, key, read, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_restarts_goes_on_with_no_segment_it_had_before() {
    let world = World::new(3).await;
    let (backend, _tasks) = world.backend();
    let opened = Open::create(&backend, 1).await;
    opened.fill(0, 5).await;
    world.restart(0).await;
    let mut next = 5;
    // Acked by the others until the segment ends.
    while opened.writer.append(vec![crate::world::entry(next)]).is_ok() {
        next += 1;
        tokio::task::yield_now().await;
        let told = opened.owner.acked_now();
        if next > told + 64 {
            break;
        }
    }
    assert!(matches!(opened.owner.wait_ended().await, SegmentEnd::Displaced));
    let acked = opened.owner.acked_now();
    assert!(acked >= 5);
    read(&backend, &opened, Some(acked), acked).await;
    let fenced = within("fence", backend.fence(key(1), opened.placement(), Epoch(2))).await.unwrap();
    assert!(fenced >= acked, "acked {acked}, {fenced} left");
    read(&backend, &opened, Some(fenced), fenced).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tail_of_an_idle_log_is_readable_after_all_stores_restart() {
    let world = World::new(3).await;
    let (writing, tasks) = world.backend();
    let opened = Open::create(&writing, 1).await;
    opened.fill(0, 10).await;
    writing.close().await;
    tasks.stop();
    for site in 0..3 {
        world.stop(site).await;
    }
    for site in 0..3 {
        world.start(site).await;
    }
    // Nobody writes, nobody takes the log: what was acked is there.
    let (reading, _tasks) = world.backend();
    read(&reading, &opened, None, 10).await;
    let fenced = within("fence", reading.fence(key(1), opened.placement(), Epoch(2))).await.unwrap();
    assert_eq!(fenced, 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_taken_with_one_store_away_and_stays_as_it_was_taken() {
    let world = World::new(3).await;
    let (old, _tasks) = world.backend();
    let opened = Open::create(&old, 1).await;
    opened.fill(0, 20).await;
    world.stop(1).await;
    let (new, _tasks) = world.backend();
    let fenced = within("fence", new.fence(key(1), opened.placement(), Epoch(2))).await.unwrap();
    assert_eq!(fenced, 20);
    world.start(1).await;
    world.stop(2).await;
    let (later, _tasks) = world.backend();
    let again = within("fence", later.fence(key(1), opened.placement(), Epoch(3))).await.unwrap();
    assert_eq!(again, fenced);
    read(&later, &opened, Some(again), again).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_five_stores_any_two_can_be_away() {
    let world = World::new(5).await;
    let (old, _tasks) = world.backend();
    let opened = Open::create(&old, 1).await;
    opened.fill(0, 10).await;
    world.stop(0).await;
    world.stop(3).await;
    // Three are left, which is enough to ack, to fence and to close.
    let mut next = 10;
    while next < 15 && opened.writer.append(vec![crate::world::entry(next)]).is_ok() {
        next += 1;
    }
    assert!(matches!(opened.owner.wait_ended().await, SegmentEnd::Displaced));
    let acked = opened.owner.acked_now();
    assert!(acked >= 10);
    let (new, _tasks) = world.backend();
    let fenced = within("fence", new.fence(key(1), opened.placement(), Epoch(2))).await.unwrap();
    assert!(fenced >= acked, "acked {acked}, {fenced} left");
    read(&new, &opened, Some(fenced), fenced).await;
    // Others than those who closed it, and the same end.
    world.start(0).await;
    world.start(3).await;
    world.stop(1).await;
    world.stop(2).await;
    let (later, _tasks) = world.backend();
    let again = within("fence", later.fence(key(1), opened.placement(), Epoch(3))).await.unwrap();
    assert_eq!(again, fenced);
    read(&later, &opened, Some(again), again).await;
}
