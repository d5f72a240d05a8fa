//! Produce streams: the handshake, answers, order, the ends.

use std::time::Duration;

use streaming_proto::streaming::{CloseProducerRequest, StreamingCode, produce_request, produce_response::Response};
use streaming_types::{MessageId, TimeTick};

use super::harness::{World, code, id, insert, rw};
use crate::tests::harness::VCHANNEL;

#[tokio::test]
async fn create_comes_first_and_unasked() {
    let node = World::new().serving().await;
    let mut produce = node.produce(&rw(1)).await.unwrap();
    let Some(Ok(Response::Create(create))) = produce.next().await else { panic!("no create") };
    assert_eq!((create.wal_name.as_str(), create.producer_server_id), ("woodpecker", 1));
}

#[tokio::test]
async fn results_carry_id_tick_and_last_confirmed_id() {
    let node = World::new().serving().await;
    let mut produce = node.producer(&rw(1)).await;
    let mut last = (MessageId::new(0, 0), 0);
    for payload in ["a", "b", "c"] {
        let result = produce.append(insert(VCHANNEL, payload)).await.unwrap();
        assert!(id(&result) > last.0 && result.timetick > last.1);
        last = (id(&result), result.timetick);
        let confirmed = MessageId::from_proto(result.last_confirmed_id.as_ref()).unwrap();
        assert!(confirmed <= id(&result));
        assert_eq!((result.txn_context, result.extra), (None, None));
    }
}

#[tokio::test]
async fn requests_of_a_stream_keep_their_order() {
    let node = World::new().serving().await;
    let mut produce = node.producer(&rw(1)).await;
    for n in 0..1000 {
        produce.send(insert(VCHANNEL, &n.to_string())).await;
    }
    let mut last = (0, MessageId::new(0, 0), 0);
    for _ in 0..1000 {
        let (request_id, result) = produce.answer().await;
        let result = result.unwrap();
        let now = (request_id, id(&result), result.timetick);
        assert!(now.0 == last.0 + 1 && now.1 > last.1 && now.2 > last.2, "{last:?} {now:?}");
        last = now;
    }
}

#[tokio::test]
async fn half_close_is_answered_after_what_is_in_flight() {
    let node = World::new().serving().await;
    let mut produce = node.producer(&rw(1)).await;
    produce.send_raw(Some(produce_request::Request::Close(CloseProducerRequest {}))).await;
    produce.send_raw(None).await;
    produce.append(insert(VCHANNEL, "after the close request")).await.unwrap();
    for n in 0..100 {
        produce.send(insert(VCHANNEL, &n.to_string())).await;
    }
    produce.half_close();
    for _ in 0..100 {
        produce.answer().await.1.unwrap();
    }
    assert!(matches!(produce.next().await, Some(Ok(Response::Close(_)))));
    assert!(produce.next().await.is_none(), "the stream ends without an error");
}

#[tokio::test]
async fn closed_wal_answers_everything_then_closes_and_ends_with_an_error() {
    let node = World::new().serving().await;
    let mut produce = node.producer(&rw(1)).await;
    for n in 0..200 {
        produce.send(insert(VCHANNEL, &n.to_string())).await;
    }
    produce.answer().await.1.unwrap();
    node.remove(&rw(1)).await.unwrap();
    produce.send(insert(VCHANNEL, "too late")).await;
    let mut answered = 1;
    loop {
        match produce.next().await {
            Some(Ok(Response::Produce(_))) => answered += 1,
            Some(Ok(Response::Close(_))) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(answered >= 200, "{answered}");
    let Some(Err(status)) = produce.next().await else { panic!("no error") };
    assert_eq!(code(&status), StreamingCode::Unknown);
    assert!(produce.next().await.is_none());
    let Err(status) = node.produce(&rw(1)).await else { panic!("still open") };
    assert_eq!(code(&status), StreamingCode::ChannelNotExist);
}

#[tokio::test]
async fn barrier_is_exceeded_and_delays_nobody_else() {
    let world = World::new();
    let node = world.serving().await;
    let mut produce = node.producer(&rw(1)).await;
    let barrier = TimeTick::new(world.clock.wall_ms() + 2000, 7);
    let mut message = insert(VCHANNEL, "later");
    message.properties.set("_btt", barrier.to_base36());
    let delayed = produce.send(message).await;
    let prompt = produce.send(insert(VCHANNEL, "now")).await;
    let (first, result) = produce.answer().await;
    assert_eq!(first, prompt);
    assert!(result.unwrap().timetick < barrier.0);
    let (second, result) = produce.answer().await;
    assert_eq!(second, delayed);
    assert!(result.unwrap().timetick > barrier.0);

    let mut message = insert(VCHANNEL, "past");
    message.properties.set("_btt", "1");
    produce.append(message).await.unwrap();
}

#[tokio::test]
async fn producer_that_hangs_up_leaves_the_wal_working() {
    let world = World::new();
    let node = world.serving().await;
    for _ in 0..5 {
        let mut produce = node.producer(&rw(1)).await;
        for n in 0..50 {
            produce.send(insert(VCHANNEL, &n.to_string())).await;
        }
    }
    world.clock.sleep(Duration::from_millis(50)).await;
    node.producer(&rw(1)).await.append(insert(VCHANNEL, "x")).await.unwrap();
}
