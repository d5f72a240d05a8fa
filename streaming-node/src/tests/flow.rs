//! Writers that are slowed down: told so, held back, and only those that bring data.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, StreamExt, stream};

use streaming_proto::{
    messages::CreatePartitionMessageHeader,
    streaming::{
        ProduceMessageRequest, ProduceRateLimitResponse, ProduceRequest, WalRateLimitState, produce_message_response,
        produce_request::Request, produce_response::Response,
    },
};
use streaming_types::{DeliverPolicy, MessageBuilder, TxnContext};

use super::{
    harness::{Produce, VCHANNEL, World, eventually, id, insert, rw},
    parts::{begin, commit, delete},
    recovery::{forget, report_at},
};
use crate::{Flow, Recovery, Settings};

/// A WAL that lets 64 KiB go at once, and then 1 KiB a second when the node's memory runs out.
fn tight() -> Settings {
    let mut flow = Flow { burst: 64 << 10, trickle: 1 << 10, ..Flow::default() };
    flow.memory.adaptive.slowdown.hwm = 2 << 10;
    flow.memory.adaptive.slowdown.lwm = 1 << 10;
    flow.memory.adaptive.recovery.normal_delay = Duration::ZERO;
    flow.memory.adaptive.recovery.lwm = flow.memory.adaptive.recovery.hwm;
    Settings { flow, ..Settings::default() }
}

async fn told(produce: &mut Produce) -> (WalRateLimitState, i64) {
    match produce.next().await {
        Some(Ok(Response::RateLimit(ProduceRateLimitResponse { state, rate }))) => {
            (WalRateLimitState::try_from(state).unwrap(), rate)
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn producers_are_told_held_back_and_let_go() {
    let world = World::new();
    let node = world.node_with(1, tight()).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    produce.append(insert(VCHANNEL, "before")).await.unwrap();
    world.memory_percent.store(92, Ordering::SeqCst);
    assert_eq!(told(&mut produce).await, (WalRateLimitState::Slowdown, 2 << 10));

    let mut late = node.producer(&rw(1)).await;
    assert_eq!(told(&mut late).await.0, WalRateLimitState::Slowdown, "who comes later is told as well");

    let filler = "x".repeat(40 << 10);
    let first = produce.send(insert(VCHANNEL, &filler)).await;
    assert_eq!(produce.answer().await.0, first, "the burst");
    let held = [produce.send(insert(VCHANNEL, &filler)).await, produce.send(insert(VCHANNEL, "behind it")).await];
    let create = CreatePartitionMessageHeader { collection_id: 1, partition_id: 1 };
    let create = MessageBuilder::new(&create).vchannel(VCHANNEL).payload("x").build().unwrap();
    let passing = produce.send(create.into()).await;
    assert_eq!(produce.answer().await.0, passing, "what brings no data does not wait");

    world.memory_percent.store(99, Ordering::SeqCst);
    assert_eq!(told(&mut produce).await, (WalRateLimitState::Reject, 0));
    world.memory_percent.store(10, Ordering::SeqCst);
    assert_eq!(told(&mut produce).await.0, WalRateLimitState::Slowdown);
    let mut left = vec![held[0], held[1]];
    let mut normal = false;
    while !left.is_empty() || !normal {
        match produce.next().await {
            Some(Ok(Response::Produce(answer))) => left.retain(|id| *id != answer.request_id),
            Some(Ok(Response::RateLimit(limit))) => normal = limit.state == i32::from(WalRateLimitState::Normal),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn commit_waits_for_the_messages_of_its_transaction_that_are_held_back() {
    let world = World::new();
    let node = world.node_with(1, tight()).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    let mut other = node.producer(&rw(1)).await;
    let begun = produce.append(begin(VCHANNEL, 600_000).into()).await.unwrap();
    let txn = TxnContext::from(&begun.txn_context.unwrap());
    world.memory_percent.store(92, Ordering::SeqCst);
    told(&mut produce).await;
    told(&mut other).await;
    let filler = "x".repeat(60 << 10);
    other.append(insert(VCHANNEL, &filler)).await.unwrap();
    let sent = [
        produce.send(delete(VCHANNEL, &filler, Some(txn)).into()).await,
        produce.send(delete(VCHANNEL, "held back", Some(txn)).into()).await,
        produce.send(commit(VCHANNEL, txn).into()).await,
    ];
    world.clock.sleep(Duration::from_millis(300)).await;
    world.memory_percent.store(10, Ordering::SeqCst);
    let mut answered = Vec::new();
    while answered.len() < sent.len() {
        match produce.next().await {
            Some(Ok(Response::Produce(answer))) => {
                let result = answer.response.clone().unwrap();
                assert!(matches!(result, produce_message_response::Response::Result(_)), "{result:?}");
                answered.push(answer.request_id);
            }
            Some(Ok(Response::RateLimit(_))) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(answered, sent);
}

#[tokio::test]
async fn consumer_that_stays_behind_slows_writers_until_it_is_forgotten_and_an_idle_one_slows_nobody() {
    let world = World::new();
    let mut flow = Flow::default();
    (flow.lag.eases, flow.lag.high) = (1000, 2000);
    flow.lag.adaptive.slowdown.startup_delay = Duration::ZERO;
    flow.lag.adaptive.recovery.normal_delay = Duration::ZERO;
    flow.lag.adaptive.recovery.lwm = flow.lag.adaptive.recovery.hwm;
    let recovery = Recovery { persist_interval: Duration::from_millis(20), ..Recovery::default() };
    let node = world.node_with(1, Settings { flow, recovery, ..Settings::default() }).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    let sent = produce.append(insert(VCHANNEL, "all there is")).await.unwrap();
    report_at(&node, VCHANNEL, id(&sent), sent.timetick).await.unwrap();
    let idle = world.clock.timeout(Duration::from_secs(5), produce.next()).await;
    assert!(idle.is_err(), "who has met everything is not behind: {idle:?}");

    produce.append(insert(VCHANNEL, "five seconds later")).await.unwrap();
    assert_eq!(told(&mut produce).await.0, WalRateLimitState::Slowdown);
    forget(&node, VCHANNEL).await.unwrap();
    loop {
        if told(&mut produce).await.0 == WalRateLimitState::Normal {
            break;
        }
    }
}

#[tokio::test]
async fn client_that_hangs_up_while_it_is_held_back_is_still_answered() {
    let world = World::new();
    let node = world.node_with(1, tight()).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    world.memory_percent.store(92, Ordering::SeqCst);
    told(&mut produce).await;
    let filler = "x".repeat(60 << 10);
    produce.append(insert(VCHANNEL, &filler)).await.unwrap();
    let held = produce.send(insert(VCHANNEL, &filler)).await;
    produce.half_close();
    world.clock.sleep(Duration::from_millis(100)).await;
    world.memory_percent.store(10, Ordering::SeqCst);
    loop {
        match produce.next().await {
            Some(Ok(Response::Produce(answer))) => {
                assert_eq!(answer.request_id, held);
                assert!(matches!(produce.next().await, Some(Ok(Response::Close(_) | Response::RateLimit(_)))));
                return;
            }
            Some(Ok(Response::RateLimit(_))) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn client_that_sends_on_whatever_the_limit_fills_no_memory() {
    let world = World::new();
    let node = world.node_with(1, tight()).await;
    node.assign(&rw(1)).await.unwrap();
    let mut other = node.producer(&rw(1)).await;
    world.memory_percent.store(92, Ordering::SeqCst);
    told(&mut other).await;

    let taken = Arc::new(AtomicI64::new(0));
    let (count, filler) = (Arc::clone(&taken), "x".repeat(64 << 10));
    let requests = stream::repeat_with(move || {
        let request_id = count.fetch_add(1, Ordering::SeqCst);
        let message = Some(insert(VCHANNEL, &filler));
        Ok(ProduceRequest { request: Some(Request::Produce(ProduceMessageRequest { request_id, message })) })
    });
    let mut responses = node.node.local().produce(&rw(1), requests.boxed()).unwrap();
    while !matches!(responses.next().await.unwrap().unwrap().response, Some(Response::Produce(_))) {}
    assert!(responses.next().now_or_never().is_none(), "the burst is used up");
    let taken = taken.load(Ordering::SeqCst);
    assert!((8..12).contains(&taken), "{taken} messages of 128 KiB");
}

#[tokio::test]
async fn paused_consumers_stand_still_and_go_on_where_they_were() {
    let world = World::new();
    let node = world.serving().await;
    let mut produce = node.producer(&rw(1)).await;
    produce.append(insert(VCHANNEL, "before")).await.unwrap();
    let mut consume = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    assert_eq!(consume.payloads(1).await, ["before"]);
    node.node.pause_scanners(true);
    // What was on its way comes.
    world.clock.sleep(Duration::from_millis(500)).await;
    produce.append(insert(VCHANNEL, "in the pause")).await.unwrap();
    let waits = async {
        loop {
            let message = consume.any().await;
            assert!(message.properties.vchannel().is_none(), "a message came in the pause");
        }
    };
    assert!(world.clock.timeout(Duration::from_millis(600), waits).await.is_err());
    node.node.pause_scanners(false);
    assert_eq!(consume.payloads(1).await, ["in the pause"]);

    node.node.pause_scanners(true);
    let mut brave = node.consume(&rw(1)).await.unwrap();
    brave.ask_with("", DeliverPolicy::All, true).await;
    assert_eq!(brave.payloads(2).await, ["before", "in the pause"]);
}

#[tokio::test]
async fn node_starts_with_the_pause_that_is_set_and_follows_its_changes() {
    let world = World::new();
    world.paused.send_replace(true);
    let node = world.serving().await;
    node.producer(&rw(1)).await.append(insert(VCHANNEL, "kept back")).await.unwrap();
    let mut consume = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    assert!(world.clock.timeout(Duration::from_millis(600), consume.any()).await.is_err(), "nothing comes");
    world.paused.send_replace(false);
    assert_eq!(consume.payloads(1).await, ["kept back"]);
    node.node.pause_scanners(true);
    world.paused.send_replace(true);
    world.paused.send_replace(false);
    let goes_on = async || (!node.node.scanners_are_paused()).then_some(());
    eventually(&world, "the end of the pause", goes_on).await;
}
