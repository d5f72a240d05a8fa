//! Consume streams: the handshake, where they start, what they let through, the tail, the ends.

use std::time::Duration;

use streaming_proto::{
    common,
    messages::DeleteMessageHeader,
    streaming::{
        CloseConsumerRequest, CreateVChannelConsumerRequest, DeliverFilter as WireFilter, DeliverPolicy as WirePolicy,
        StreamingCode, consume_request::Request, consume_response::Response, deliver_policy::Policy,
    },
};
use streaming_types::{DeliverFilter, DeliverPolicy, MessageBuilder, MessageType, TimeTick};

use super::harness::{PCHANNEL, TestNode, VCHANNEL, World, code, error, eventually, id, insert, ro, rw, text};
use crate::Settings;

const OTHER: &str = "by-dev-rootcoord-dml_0_2v0";

#[tokio::test]
async fn both_creates_come_before_messages_which_come_as_they_were_sent() {
    let node = World::new().serving().await;
    let sent = node.producer(&rw(1)).await.append(insert(VCHANNEL, "payload")).await.unwrap();
    let mut consume = node.consume(&rw(1)).await.unwrap();
    let Some(Ok(Response::Create(create))) = consume.next().await else { panic!("no create") };
    assert_eq!((create.wal_name.as_str(), create.consumer_server_id), ("woodpecker", 1));
    consume.create("", DeliverPolicy::All, &[]).await;
    let Some(Ok(Response::CreateVchannel(created))) = consume.next().await else { panic!("no vchannel") };
    assert_eq!(
        created.response.map(|r| matches!(
            r,
            streaming_proto::streaming::create_v_channel_consumer_response::Response::ConsumerId(1)
        )),
        Some(true)
    );

    let first = consume.any().await;
    assert_eq!(first.properties.message_type(), Ok(MessageType::TimeTick), "the tick that began the term");
    assert!(first.properties.contains("_lcs") && !first.properties.is_not_persisted());
    let message = consume.message().await;
    assert_eq!((message.id, message.time_tick().unwrap().0), (id(&sent), sent.timetick));
    let mut expected: streaming_types::Message = insert(VCHANNEL, "payload").into();
    expected.properties.set_time_tick(TimeTick(sent.timetick));
    expected.properties.set_last_confirmed_is_self();
    expected.properties.set_wal_term(1);
    assert_eq!((message.payload, message.properties), (expected.payload, expected.properties));
}

#[tokio::test]
async fn first_request_must_say_what_to_read() {
    let node = World::new().serving().await;
    let consume = async |request: Option<Request>| {
        let mut consume = node.consume(&rw(1)).await.unwrap();
        consume.next().await.unwrap().unwrap();
        consume.send_raw(request).await;
        code(&consume.next().await.unwrap().unwrap_err())
    };
    assert_eq!(consume(Some(Request::Close(CloseConsumerRequest {}))).await, StreamingCode::InvalidRequestSeq);
    assert_eq!(consume(None).await, StreamingCode::InvalidRequestSeq);
    let ask = |deliver_policy, deliver_filters| {
        Some(Request::CreateVchannelConsumer(CreateVChannelConsumerRequest {
            deliver_policy,
            deliver_filters,
            ..CreateVChannelConsumerRequest::default()
        }))
    };
    let invalid = StreamingCode::InvaildArgument;
    assert_eq!(consume(ask(None, vec![])).await, invalid);
    assert_eq!(consume(ask(Some(WirePolicy::default()), vec![])).await, invalid);
    for (id, wal_name) in [("?", 4), ("CAMQEQ==", 1), ("CAMQEQ==", 0)] {
        let policy = Policy::StartFrom(common::MessageId { id: id.to_owned(), wal_name });
        assert_eq!(consume(ask(Some(WirePolicy { policy: Some(policy) }), vec![])).await, invalid, "{id}");
    }
    let all = Some(DeliverPolicy::All.to_proto());
    assert_eq!(consume(ask(all, vec![WireFilter::default()])).await, invalid);
}

#[tokio::test]
async fn half_close_is_answered_before_and_after_asking() {
    let node = World::new().serving().await;
    let mut consume = node.consume(&rw(1)).await.unwrap();
    consume.next().await.unwrap().unwrap();
    consume.half_close();
    assert!(matches!(consume.next().await, Some(Ok(Response::Close(_)))));
    assert!(consume.next().await.is_none());

    let mut consume = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    consume.send_raw(Some(Request::Close(CloseConsumerRequest {}))).await;
    node.producer(&rw(1)).await.append(insert(VCHANNEL, "after the close request")).await.unwrap();
    assert_eq!(consume.payloads(1).await, ["after the close request"]);
    consume.half_close();
    loop {
        match consume.next().await {
            Some(Ok(Response::Consume(_))) => {}
            Some(Ok(Response::Close(_))) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(consume.next().await.is_none());
}

#[tokio::test]
async fn closed_wal_fails_its_consumers() {
    let node = World::new().serving().await;
    let mut serving = node.consumer(&rw(1), DeliverPolicy::Latest, &[]).await;
    let mut asking = node.consume(&rw(1)).await.unwrap();
    asking.next().await.unwrap().unwrap();
    node.remove(&rw(1)).await.unwrap();
    for consume in [&mut serving, &mut asking] {
        let status = loop {
            match consume.next().await.unwrap() {
                Ok(_) => {}
                Err(status) => break status,
            }
        };
        assert_eq!(code(&status), StreamingCode::Inner);
        assert!(error(&status).cause().starts_with("scanner error: "));
    }
}

async fn five(node: &TestNode) -> Vec<streaming_proto::streaming::ProduceMessageResponseResult> {
    let mut produce = node.producer(&rw(1)).await;
    let mut sent = Vec::new();
    for payload in ["0", "1", "2", "3", "4"] {
        sent.push(produce.append(insert(VCHANNEL, payload)).await.unwrap());
    }
    sent
}

#[tokio::test]
async fn policies_say_where_to_start() {
    let node = World::new().serving().await;
    let mut latest = node.consumer(&rw(1), DeliverPolicy::Latest, &[]).await;
    let sent = five(&node).await;
    assert_eq!(latest.payloads(5).await, ["0", "1", "2", "3", "4"]);
    let mut late = node.consumer(&rw(1), DeliverPolicy::Latest, &[]).await;
    for (policy, expected) in [
        (DeliverPolicy::All, &["0", "1", "2", "3", "4"][..]),
        (DeliverPolicy::StartFrom(id(&sent[2])), &["2", "3", "4"]),
        (DeliverPolicy::StartAfter(id(&sent[2])), &["3", "4"]),
        (DeliverPolicy::StartAfter(id(&sent[4])), &[]),
    ] {
        let mut consume = node.consumer(&rw(1), policy, &[]).await;
        assert_eq!(consume.payloads(expected.len()).await, expected, "{policy:?}");
        node.producer(&rw(1)).await.append(insert(OTHER, "end")).await.unwrap();
        let mut ends = consume.payloads(1).await;
        while ends.last().is_some_and(|last| last != "end") {
            ends = consume.payloads(1).await;
        }
    }
    assert_eq!(late.payloads(1).await, ["end"]);
}

#[tokio::test]
async fn filters_and_vchannel_select() {
    let node = World::new().serving().await;
    let sent = five(&node).await;
    let delete = MessageBuilder::new(&DeleteMessageHeader::default()).vchannel(OTHER).payload("delete");
    let mut produce = node.producer(&rw(1)).await;
    produce.append(delete.build().unwrap().into()).await.unwrap();
    produce.append(insert(VCHANNEL, "end")).await.unwrap();
    let tick = TimeTick(sent[2].timetick);
    for (filters, expected) in [
        (vec![DeliverFilter::TimeTickGreaterThan(tick)], &["3", "4", "delete", "end"][..]),
        (vec![DeliverFilter::TimeTickAtLeast(tick)], &["2", "3", "4", "delete", "end"]),
        (vec![DeliverFilter::message_types([MessageType::Delete])], &["delete"]),
        (
            vec![DeliverFilter::TimeTickGreaterThan(tick), DeliverFilter::message_types([MessageType::Insert])],
            &["3", "4", "end"],
        ),
    ] {
        let mut consume = node.consumer(&rw(1), DeliverPolicy::All, &filters).await;
        assert_eq!(consume.payloads(expected.len()).await, expected, "{filters:?}");
        let tick = consume.any().await;
        assert_eq!(tick.properties.message_type(), Ok(MessageType::TimeTick), "ticks pass type filters");
    }
    let mut consume = node.consume(&rw(1)).await.unwrap();
    consume.ask(OTHER, DeliverPolicy::All, &[]).await;
    assert_eq!(consume.payloads(1).await, ["delete"]);
}

#[tokio::test]
async fn idle_wal_gives_heartbeats_and_writes_nothing() {
    let world = World::new();
    let node = world.serving().await;
    let mut consume = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    let sent = five(&node).await;
    consume.payloads(5).await;
    let log = node.logs.open_log(PCHANNEL).await.unwrap();
    let newest = id(&sent[4]).to_u64();
    let end = eventually(&world, "the tick behind what was written", async || {
        log.last_entry().await.unwrap().filter(|end| (end.segment, end.entry) > newest)
    });
    let end = end.await;
    let mut last = 0;
    let began = world.clock.now();
    while world.clock.now() - began < Duration::from_millis(1500) {
        let tick = consume.any().await;
        assert_eq!(tick.properties.message_type(), Ok(MessageType::TimeTick));
        assert!(tick.time_tick().unwrap().0 > last);
        last = tick.time_tick().unwrap().0;
    }
    assert!(world.clock.wall_ms() - TimeTick(last).physical_ms() < 1000, "ticks follow time");
    assert_eq!(log.last_entry().await.unwrap(), Some(end), "nothing was written");

    // The log itself ends with a tick, for who has nothing but the log.
    let mut reader = log.reader(woodpecker::Position::At(end));
    let entry = reader.next().await.unwrap().pop().unwrap();
    let message = <common::ImmutableMessage as prost::Message>::decode(entry.payload).unwrap();
    assert_eq!(message.properties.get("_t"), Some("1"));
}

#[tokio::test]
async fn consumer_gets_a_message_when_its_producer_gets_the_ack() {
    let world = World::new();
    let settings = Settings { heartbeat: Duration::from_secs(10), ..Settings::default() };
    let node = world.node_with(1, settings).await;
    node.assign(&rw(1)).await.unwrap();
    let mut consume = node.consumer(&rw(1), DeliverPolicy::Latest, &[]).await;
    let mut produce = node.producer(&rw(1)).await;
    let began = world.clock.now();
    for n in 0..20 {
        produce.append(insert(VCHANNEL, &n.to_string())).await.unwrap();
        assert_eq!(consume.payloads(1).await, [n.to_string()]);
    }
    assert!(world.clock.now() - began < Duration::from_secs(8), "no message waited for a heartbeat");
}

#[tokio::test]
async fn slow_consumer_slows_nobody_and_misses_nothing() {
    let world = World::new();
    let settings = Settings { buffer_bytes: 64 << 10, ..Settings::default() };
    let node = world.node_with(1, settings).await;
    node.assign(&rw(1)).await.unwrap();
    let mut slow = node.consumer(&rw(1), DeliverPolicy::Latest, &[]).await;
    let mut fast = node.consumer(&rw(1), DeliverPolicy::Latest, &[]).await;
    let mut produce = node.producer(&rw(1)).await;
    let filler = "x".repeat(4096);
    let expected: Vec<_> = (0..1000).map(|n| format!("{n} {filler}")).collect();
    for chunk in expected.chunks(100) {
        for payload in chunk {
            produce.send(insert(VCHANNEL, payload)).await;
        }
        for _ in chunk {
            produce.answer().await.1.unwrap();
        }
        assert!(fast.payloads(100).await == chunk);
    }
    assert!(slow.payloads(1000).await == expected);
}

#[tokio::test]
async fn node_that_only_reads_follows_the_one_that_writes() {
    let world = World::new();
    let (writer, reader) = (world.serving().await, world.node(2).await);
    five(&writer).await;
    reader.assign(&ro(1)).await.unwrap();
    let mut consume = reader.consumer(&ro(1), DeliverPolicy::All, &[]).await;
    assert_eq!(consume.payloads(5).await, ["0", "1", "2", "3", "4"]);
    five(&writer).await;
    assert_eq!(consume.payloads(5).await, ["0", "1", "2", "3", "4"]);
    let status = reader.status().await;
    assert!(matches!(status[0].metrics, Some(streaming_proto::streaming::streaming_node_wal_metrics::Metrics::Ro(_))));
}

#[tokio::test]
async fn truncated_position_means_the_earliest_there_is() {
    let world = World::new();
    let node = world.serving().await;
    let sent = five(&node).await;
    node.remove(&rw(1)).await.unwrap();
    let log = node.logs.open_log(PCHANNEL).await.unwrap();
    let (segment, entry) = id(&sent[2]).to_u64();
    log.truncate(woodpecker::EntryId { segment, entry }).await.unwrap();
    node.assign(&rw(2)).await.unwrap();
    let mut consume = node.consumer(&rw(2), DeliverPolicy::StartFrom(id(&sent[0])), &[]).await;
    assert_eq!(text(&consume.message().await), "3");
}

#[tokio::test]
async fn reader_of_a_log_that_cannot_be_read_waits_and_misses_nothing() {
    let world = World::new();
    let settings = Settings { buffer_bytes: 4 << 10, ..Settings::default() };
    let node = world.node_with(1, settings).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    let sent: Vec<String> = (0..50).map(|n| format!("{n} {}", "x".repeat(1 << 10))).collect();
    for text in &sent {
        produce.append(insert(VCHANNEL, text)).await.unwrap();
    }
    world.unreadable.send_replace(true);
    let mut consume = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    let early = world.clock.timeout(Duration::from_millis(300), consume.any()).await;
    assert!(early.is_err(), "nothing is told of what cannot be read, and nobody is told that it is over");
    produce.append(insert(VCHANNEL, "meanwhile")).await.unwrap();
    world.unreadable.send_replace(false);
    assert_eq!(consume.payloads(51).await, [sent.as_slice(), &["meanwhile".to_owned()]].concat());
}
