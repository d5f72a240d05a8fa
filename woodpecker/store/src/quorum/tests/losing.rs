//! Stores that die or lose their disks around a segment.

use super::*;
use crate::backend::SegmentEnd;

const ENTRIES: u64 = 20;

/// A segment of which every replica has all.
async fn held_by_all(world: &World) -> Open {
    let (backend, tasks) = world.backend(|_| ());
    let opened = Open::create(&backend, 1).await;
    opened.fill(0, ENTRIES).await;
    for id in opened.replicas() {
        let store = world.store(id);
        store.wait("every entry", || store.held(opened.key).entries.len() as u64 == ENTRIES).await;
    }
    tasks.stop();
    opened
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_segment_is_read_from_the_one_store_of_three_that_has_its_disk() {
    for survivor in 0..3 {
        let world = World::new(3).await;
        let opened = held_by_all(&world).await;
        for lost in (0..3).filter(|replica| *replica != survivor) {
            world.replica(&opened.placement(), lost).lose_disk();
        }
        let (backend, _tasks) = world.backend(|_| ());
        read_all(&backend, opened.key, &opened.placement(), ENTRIES).await;
    }
}

/// No store of ours comes back so: it has another name then. A reader does not depend on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_does_not_end_where_an_emptied_replica_does() {
    for emptied in 1..=3 {
        let world = World::new(3).await;
        let opened = held_by_all(&world).await;
        world.store(StoreId(emptied)).lock().clear();
        let (backend, _tasks) = world.backend(|settings| settings.zone = format!("zone-{emptied}"));
        read_all(&backend, opened.key, &opened.placement(), ENTRIES).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_replicas_of_a_segment_dies_and_the_segment_goes_on() {
    let world = World::new(5).await;
    let (backend, _tasks) = world.backend(|_| ());
    let opened = Open::create(&backend, 1).await;
    opened.fill(0, 5).await;
    let others: Vec<_> = (1..=5).map(StoreId).filter(|id| !opened.replicas().contains(id)).collect();
    for id in others {
        world.store(id).kill();
    }
    // Longer than it takes to notice that a replica is gone. An end would fail the appends.
    for number in 5..50 {
        opened.fill(number, number + 1).await;
        Clock::system().sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_five_stores_loses_two_of_them_and_goes_on_with_five() {
    let world = World::new(7).await;
    let (backend, _tasks) = world.backend(|settings| settings.selection.replicas = 5);
    let opened = Open::create(&backend, 1).await;
    opened.fill(0, 10).await;
    let dead = opened.replicas()[1..3].to_vec();
    for id in &dead {
        world.store(*id).kill();
    }
    let mut next = 10;
    while opened.writer.append(vec![entry(next)]).is_ok() {
        next += 1;
        Clock::system().sleep(Duration::from_millis(1)).await;
    }
    assert!(matches!(opened.owner.wait_ended().await, SegmentEnd::Displaced));
    let acked = opened.owner.acked_now();
    assert!(acked >= 10, "{acked}");
    // A loss that is noticed later ends one more.
    for log in 2.. {
        assert!(log < 5, "rolled again and again");
        let another = Open::create(&backend, log).await;
        let replicas = another.replicas();
        assert_eq!(replicas.len(), 5);
        if !replicas.iter().any(|id| dead.contains(id)) {
            another.fill(0, 10).await;
            break;
        }
        let _ = another.writer.append(vec![entry(0)]);
        another.owner.wait_ended().await;
    }
    read_all(&backend, opened.key, &opened.placement(), acked).await;
}
