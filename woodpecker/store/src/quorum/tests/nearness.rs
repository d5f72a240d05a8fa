//! Which replica a reader asks: the nearest, and another one as well when that one takes too long.

use super::*;

const ENTRIES: u64 = 40;

/// A closed segment of which each store has every entry; store `n` stands in `zone-n`.
async fn everywhere(world: &World) -> (Placement, Vec<Arc<FakeStore>>) {
    let (backend, tasks) = world.backend(|_| ());
    let opened = Open::create(&backend, 1).await;
    opened.fill(0, ENTRIES).await;
    let stores: Vec<_> = (1..=3).map(|id| world.store(StoreId(id))).collect();
    for store in &stores {
        store.wait("every entry", || store.held(key(1)).entries.len() as u64 == ENTRIES).await;
    }
    tasks.stop();
    (opened.placement(), stores)
}

fn asked(stores: &[Arc<FakeStore>]) -> Vec<usize> {
    stores.iter().map(|store| store.reads()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_asks_the_replica_of_its_own_zone() {
    let world = World::new(3).await;
    let (placement, stores) = everywhere(&world).await;
    for near in 0..3 {
        let before = asked(&stores);
        let (backend, _tasks) = world.backend(|settings| settings.zone = format!("zone-{}", near + 1));
        let reader = backend.open(key(1), &placement, Some(ENTRIES)).await.unwrap();
        for number in 0..ENTRIES {
            assert_eq!(reader.read(number, 1).await.unwrap(), [entry(number)]);
        }
        let more: Vec<u64> = asked(&stores).iter().zip(before).map(|(now, before)| (now - before) as u64).collect();
        let far: u64 = more.iter().sum::<u64>() - more[near];
        assert_eq!(more[near], ENTRIES, "{more:?}");
        // What a slow machine may let another be asked besides.
        assert!(far < ENTRIES / 2, "{more:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_near_replica_that_takes_long_is_not_waited_for() {
    let world = World::new(3).await;
    let (placement, stores) = everywhere(&world).await;
    stores[1].fault(|faults| faults.silent = true);
    let (backend, _tasks) = world.backend(|settings| {
        settings.zone = "zone-2".into();
        settings.request_timeout = 10 * LIMIT;
    });
    let reader = backend.open(key(1), &placement, Some(ENTRIES)).await.unwrap();
    let read = Clock::system().timeout(LIMIT, reader.read(0, 1)).await.expect("another one is asked");
    assert_eq!(read.unwrap(), [entry(0)]);
    assert_eq!((stores[0].reads() + stores[2].reads(), stores[1].reads()), (1, 1), "one of the others, besides");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_a_zone_that_is_down_are_served_from_another() {
    let world = World::new(3).await;
    let (placement, stores) = everywhere(&world).await;
    let (backend, _tasks) = world.backend(|settings| settings.zone = "zone-3".into());
    let reader = backend.open(key(1), &placement, Some(ENTRIES)).await.unwrap();
    for number in 0..ENTRIES {
        if number == ENTRIES / 2 {
            stores[2].kill();
        }
        assert_eq!(reader.read(number, 1).await.unwrap(), [entry(number)]);
    }
}
