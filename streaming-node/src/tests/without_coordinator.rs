//! Appends while nobody gives out timestamps.

use std::time::Duration;

use streaming_types::{DeliverFilter, DeliverPolicy, TimeTick};

use super::harness::{VCHANNEL, World, insert, rw, text};

#[tokio::test]
async fn appends_go_on_and_the_next_owner_begins_above_them() {
    let world = World::new();
    let node = world.serving().await;
    let mut produce = node.producer(&rw(1)).await;
    let mut consume = node.consumer(&rw(1), DeliverPolicy::Latest, &[]).await;
    world.timestamps.answer(false);
    let began = world.clock.now();
    let mut last = 0;
    let mut sent = 0;
    while world.clock.now() - began < Duration::from_secs(2) {
        for _ in 0..100 {
            produce.send(insert(VCHANNEL, &sent.to_string())).await;
            sent += 1;
        }
        for _ in 0..100 {
            let result = produce.answer().await.1.unwrap();
            assert!(result.timetick > last);
            last = result.timetick;
        }
        world.clock.sleep(Duration::from_millis(20)).await;
    }
    let expected: Vec<_> = (0..sent).map(|n| n.to_string()).collect();
    assert_eq!(consume.payloads(sent).await, expected);
    let ahead = TimeTick(last).physical_ms().saturating_sub(world.clock.wall_ms());
    assert!(ahead < 50, "ticks do not run ahead of time: {ahead} ms");

    world.timestamps.answer(true);
    let next = world.node(2).await;
    next.assign(&rw(2)).await.unwrap();
    let result = next.producer(&rw(2)).await.append(insert(VCHANNEL, "next term")).await.unwrap();
    assert!(result.timetick > last);
}

#[tokio::test]
async fn the_next_owner_begins_above_what_readers_were_told_though_the_next_coordinator_s_clock_is_behind() {
    let world = World::new();
    let node = world.serving().await;
    let mut consume = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    let first = consume.any().await.time_tick().unwrap();
    world.timestamps.answer(false);
    let mut told = consume.any().await;
    while told.time_tick().unwrap().physical_ms() < first.physical_ms() + 4000 {
        told = consume.any().await;
    }
    // It gives nothing out again, but time has gone further here.
    world.timestamps.jump(-3000);
    world.timestamps.answer(true);
    node.remove(&rw(1)).await.unwrap();
    node.assign(&rw(2)).await.unwrap();
    node.producer(&rw(2)).await.append(insert(VCHANNEL, "next term")).await.unwrap();
    let filter = DeliverFilter::TimeTickGreaterThan(told.time_tick().unwrap());
    let policy = DeliverPolicy::StartFrom(told.last_confirmed().unwrap());
    let mut resumed = node.consumer(&rw(2), policy, &[filter]).await;
    let next = world.clock.timeout(Duration::from_secs(10), resumed.message()).await;
    assert_eq!(text(&next.expect("what was acked")), "next term");
}
