use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering},
};

use woodpecker_base::metadata::MemoryStore;

use super::*;
use crate::catalog::tests::{catalog, reign};

const WINDOW: Duration = Duration::from_secs(3);

struct World {
    store: MemoryStore,
    wall_ms: Arc<AtomicU64>,
    clock: Clock,
}

impl World {
    fn new() -> Self {
        let wall_ms = Arc::new(AtomicU64::new(1_700_000_000_000));
        let wall = wall_ms.clone();
        let clock = Clock::from_fn(move || Duration::from_millis(wall.load(Ordering::Relaxed)));
        Self { store: MemoryStore::new(clock.clone()), wall_ms, clock }
    }

    async fn timestamps(&self, tasks: &Tasks) -> Allocator<Timestamps> {
        let catalog = catalog(&self.store, reign(&self.store).await);
        let (record, ceiling) = catalog.number("timestamp-ceiling").await.unwrap();
        Allocator::start(Timestamps::recover(ceiling, WINDOW), record, catalog, self.clock.clone(), tasks)
    }
}

#[tokio::test]
async fn concurrent_callers_never_share_a_timestamp() {
    let world = World::new();
    let tasks = Tasks::new();
    let timestamps = Arc::new(world.timestamps(&tasks).await);
    let callers: Vec<_> = (0..20)
        .map(|_| {
            let timestamps = timestamps.clone();
            let wall_ms = world.wall_ms.clone();
            tasks.spawn(async move {
                let mut mine = Vec::new();
                for _ in 0..50 {
                    wall_ms.fetch_add(7, Ordering::Relaxed);
                    mine.push(timestamps.take(3).await.unwrap());
                    tokio::task::yield_now().await;
                }
                assert!(mine.is_sorted_by(|a, b| a + 2 < *b));
                mine
            })
        })
        .collect();
    let mut all = BTreeSet::new();
    for caller in callers {
        for first in caller.await.unwrap() {
            assert!((first..first + 3).all(|timestamp| all.insert(timestamp)));
        }
    }
    assert_eq!(all.len(), 20 * 50 * 3);
}

#[tokio::test]
async fn rising_across_a_restart_with_a_clock_that_stepped_back() {
    let world = World::new();
    let mut last = 0;
    for _ in 0..5 {
        let tasks = Tasks::new();
        let timestamps = world.timestamps(&tasks).await;
        for _ in 0..10 {
            let first = timestamps.take(2).await.unwrap();
            assert!(first > last);
            last = first + 1;
        }
        tasks.stop();
        world.wall_ms.fetch_sub(60_000, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn goes_on_while_the_metadata_store_is_away() {
    let world = World::new();
    let tasks = Tasks::new();
    let timestamps = world.timestamps(&tasks).await;
    let mut last = timestamps.take(1).await.unwrap();
    world.store.set_reachable(false);
    for _ in 0..10 {
        world.wall_ms.fetch_add(6_000, Ordering::Relaxed);
        let first = timestamps.take(100).await.unwrap();
        assert!(first > last);
        last = first + 99;
    }
    world.store.set_reachable(true);
    let present = world.wall_ms.load(Ordering::Relaxed);
    let limit = world.clock.now() + Duration::from_secs(20);
    while physical_ms(timestamps.take(1).await.unwrap()) != present {
        assert!(world.clock.now() < limit, "time is never caught up with");
        world.clock.sleep(RETRY / 10).await;
    }
}

#[tokio::test]
async fn a_deposed_leader_cannot_reserve_more() {
    let world = World::new();
    let tasks = Tasks::new();
    let old = world.timestamps(&tasks).await;
    old.take(1).await.unwrap();
    let new = world.timestamps(&tasks).await;
    let first_of_new = new.take(1).await.unwrap();
    world.wall_ms.fetch_add(60_000, Ordering::Relaxed);
    while let Ok(first) = old.take(MAX_COUNT).await {
        assert!(first + u64::from(MAX_COUNT) <= first_of_new);
    }
    assert_eq!(old.take(1).await, Err(Exhausted));
}
