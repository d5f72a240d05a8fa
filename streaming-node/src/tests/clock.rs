//! A cluster whose clock jumps.

use std::time::Duration;

use streaming_proto::streaming::StreamingCode;
use streaming_types::{DeliverPolicy, TxnContext};

use super::{
    harness::{Produce, VCHANNEL, World, code_of, insert, rw},
    parts::{begin, commit, delete},
};

const HOUR_MS: i64 = 3600 * 1000;

async fn begun(produce: &mut Produce, keepalive_ms: i64) -> TxnContext {
    let result = produce.append(begin(VCHANNEL, keepalive_ms).into()).await.unwrap();
    TxnContext::from(&result.txn_context.unwrap())
}

#[tokio::test]
async fn ticks_rise_and_nothing_is_lost_when_the_clock_jumps_forward_and_backward() {
    let world = World::new();
    let node = world.serving().await;
    let mut tail = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    let mut produce = node.producer(&rw(1)).await;
    let (mut ticks, mut sent) = (Vec::new(), Vec::new());
    for jump in [0, HOUR_MS, -3 * HOUR_MS, HOUR_MS] {
        world.timestamps.jump(jump);
        for n in 0..20 {
            let text = format!("{jump} {n}");
            ticks.push(produce.append(insert(VCHANNEL, &text)).await.unwrap().timetick);
            sent.push(text);
            // Longer than a batch of timestamps is used.
            world.clock.sleep(Duration::from_millis(10)).await;
        }
    }
    assert!(ticks[39] >> 18 >= (ticks[0] >> 18) + HOUR_MS.unsigned_abs(), "the jump forward was met");
    assert_eq!(tail.payloads(80).await, sent);
    let (first, second) = (tail.any().await.time_tick().unwrap(), tail.any().await.time_tick().unwrap());
    assert!(first.0 > ticks[79] && second > first, "heartbeats go on");

    node.remove(&rw(1)).await.unwrap();
    world.timestamps.jump(-HOUR_MS);
    node.assign(&rw(2)).await.unwrap();
    ticks.push(node.producer(&rw(2)).await.append(insert(VCHANNEL, "next owner")).await.unwrap().timetick);
    sent.push("next owner".to_owned());
    assert!(ticks.is_sorted_by(|a, b| a < b), "{ticks:?}");
    assert_eq!(node.consumer(&rw(2), DeliverPolicy::All, &[]).await.payloads(81).await, sent);
}

#[tokio::test]
async fn transactions_live_by_the_clock_of_the_cluster_wherever_it_jumps() {
    let world = World::new();
    let node = world.serving().await;
    let mut produce = node.producer(&rw(1)).await;
    let (short, long) = (begun(&mut produce, 10_000).await, begun(&mut produce, 2 * HOUR_MS).await);
    produce.append(delete(VCHANNEL, "body", Some(long)).into()).await.unwrap();
    world.timestamps.jump(HOUR_MS);
    while produce.append(insert(VCHANNEL, "between")).await.unwrap().timetick >> 18 < world.clock.wall_ms() + 60_000 {}
    world.timestamps.jump(-HOUR_MS);
    let expired = produce.append(commit(VCHANNEL, short).into()).await;
    assert_eq!(code_of(expired), Some(StreamingCode::TransactionExpired));
    produce.append(commit(VCHANNEL, long).into()).await.unwrap();
    let mut consume = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    while consume.payloads(1).await != ["body"] {}
}
