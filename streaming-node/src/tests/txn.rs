//! Transactions, as clients run them and consumers get them.

use std::time::Duration;

use streaming_proto::streaming::{ProduceMessageResponseResult, StreamingCode, StreamingError as WireError};
use streaming_types::{
    DeliverFilter, DeliverPolicy, ImmutableMessage, Message, MessageId, MessageType, TimeTick, TxnContext,
};

use super::{
    harness::{Consume, Produce, VCHANNEL, World, id, insert, rw, text},
    parts::{begin, commit, delete, exclusive, rollback},
};
use crate::Settings;

const OTHER: &str = "by-dev-rootcoord-dml_0_2v0";

async fn append(produce: &mut Produce, message: Message) -> ProduceMessageResponseResult {
    produce.append(message.into()).await.unwrap()
}

async fn refused(produce: &mut Produce, message: Message) -> WireError {
    produce.append(message.into()).await.unwrap_err()
}

async fn begun(produce: &mut Produce, keepalive_ms: i64) -> TxnContext {
    let result = append(produce, begin(VCHANNEL, keepalive_ms)).await;
    TxnContext::from(&result.txn_context.expect("clients panic without it"))
}

fn kind(message: &ImmutableMessage) -> MessageType {
    message.properties.message_type().unwrap()
}

/// The next whole transaction: begin, bodies and commit in a row, ticks between them too.
async fn whole(consume: &mut Consume) -> Vec<ImmutableMessage> {
    let mut parts = vec![consume.message().await];
    assert_eq!(kind(&parts[0]), MessageType::BeginTxn);
    while kind(&parts[parts.len() - 1]) != MessageType::CommitTxn {
        parts.push(consume.any().await);
    }
    parts
}

fn confirmed(result: &ProduceMessageResponseResult) -> MessageId {
    MessageId::from_proto(result.last_confirmed_id.as_ref()).unwrap()
}

#[tokio::test]
async fn committed_transaction_is_delivered_in_a_row_at_the_place_of_its_commit() {
    let node = World::new().serving().await;
    let mut produce = node.producer(&rw(1)).await;
    let tail = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    let began = append(&mut produce, begin(VCHANNEL, 0)).await;
    let txn = TxnContext::from(began.txn_context.as_ref().unwrap());
    assert_eq!(txn.keepalive_ms, 10_000, "the default");
    let mut bodies = Vec::new();
    for n in 0..3 {
        let body = append(&mut produce, delete(VCHANNEL, &n.to_string(), Some(txn))).await;
        assert_eq!(body.txn_context, began.txn_context);
        bodies.push(id(&body));
        assert!(produce.append(insert(VCHANNEL, "between")).await.unwrap().txn_context.is_none());
    }
    let committed = append(&mut produce, commit(VCHANNEL, txn)).await;
    assert!(confirmed(&committed) <= id(&began), "who starts there meets all of it");

    let behind = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    for mut consume in [behind, tail] {
        assert_eq!(consume.payloads(3).await, ["between"; 3]);
        let parts = whole(&mut consume).await;
        assert_eq!(parts.len(), 5);
        let ids: Vec<_> = parts[1..4].iter().map(|part| part.id).collect();
        assert_eq!(ids, bodies);
        assert_eq!(parts[0].time_tick(), Ok(TimeTick(began.timetick)), "the begin keeps its own");
        for part in &parts[1..] {
            assert_eq!(part.time_tick(), Ok(TimeTick(committed.timetick)));
            assert_eq!(part.last_confirmed(), Ok(confirmed(&committed)));
            assert_eq!(part.properties.txn(), Ok(Some(txn)));
        }
    }
}

#[tokio::test]
async fn rolled_back_and_expired_transactions_are_never_delivered() {
    let world = World::new();
    let node = world.serving().await;
    let mut produce = node.producer(&rw(1)).await;
    let mut tail = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    let given_up = begun(&mut produce, 0).await;
    append(&mut produce, delete(VCHANNEL, "given up", Some(given_up))).await;
    append(&mut produce, rollback(VCHANNEL, given_up)).await;
    let expired = begun(&mut produce, 60_000).await;
    let body = append(&mut produce, delete(VCHANNEL, "expired", Some(expired))).await;
    world.timestamps.jump(61_000);
    let end = TimeTick(body.timetick).saturating_add_ms(60_000);
    while tail.any().await.time_tick().unwrap() < end {}
    for message in [delete(VCHANNEL, "late", Some(expired)), commit(VCHANNEL, expired)] {
        assert_eq!(refused(&mut produce, message).await.code(), StreamingCode::TransactionExpired);
    }
    let after = produce.append(insert(VCHANNEL, "after")).await.unwrap();
    assert_eq!(confirmed(&after), id(&after), "nothing is open any more");
    let mut behind = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    assert_eq!((tail.payloads(1).await, behind.payloads(1).await), (vec!["after".into()], vec!["after".into()]));
}

#[tokio::test]
async fn transaction_that_ended_takes_nothing_more() {
    let node = World::new().serving().await;
    let mut produce = node.producer(&rw(1)).await;
    let txn = begun(&mut produce, 0).await;
    append(&mut produce, commit(VCHANNEL, txn)).await;
    let again = [commit(VCHANNEL, txn), rollback(VCHANNEL, txn), delete(VCHANNEL, "x", Some(txn))];
    for message in again {
        let error = refused(&mut produce, message).await;
        assert_eq!(error.code(), StreamingCode::InvalidTransactionState, "{}", error.cause);
    }
    let txn = begun(&mut produce, 0).await;
    let error = refused(&mut produce, delete(OTHER, "x", Some(txn))).await;
    assert_eq!(error.code(), StreamingCode::Unrecoverable, "a transaction has one vchannel");
    append(&mut produce, commit(VCHANNEL, txn)).await;
}

#[tokio::test]
async fn commit_waits_for_a_body_that_waits_for_its_barrier() {
    let world = World::new();
    let node = world.serving().await;
    let mut produce = node.producer(&rw(1)).await;
    let txn = begun(&mut produce, 0).await;
    let mut body = delete(VCHANNEL, "later", Some(txn));
    body.properties.set_barrier(TimeTick::new(world.clock.wall_ms() + 400, 0));
    let body = produce.send(body.into()).await;
    let commit = produce.send(commit(VCHANNEL, txn).into()).await;
    let (first, second) = (produce.answer().await, produce.answer().await);
    assert_eq!((first.0, second.0), (body, commit));
    assert!(first.1.unwrap().timetick < second.1.unwrap().timetick);
    let mut consume = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    assert_eq!(whole(&mut consume).await.len(), 3);
}

#[tokio::test]
async fn message_that_needs_its_vchannel_ends_the_transactions_there() {
    let node = World::new().serving().await;
    let mut produce = node.producer(&rw(1)).await;
    for (scope, ended) in [(OTHER, false), (VCHANNEL, true), ("by-dev-rootcoord-dml_0", true)] {
        let txn = begun(&mut produce, 0).await;
        append(&mut produce, delete(VCHANNEL, "body", Some(txn))).await;
        append(&mut produce, exclusive(scope, "ddl")).await;
        let commit = produce.append(commit(VCHANNEL, txn).into()).await.map_err(|error| error.code());
        assert_eq!(commit.err(), ended.then_some(StreamingCode::TransactionExpired), "{scope}");
    }
    let mut consume = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    assert_eq!(consume.payloads(1).await, ["ddl"]);
    assert_eq!(whole(&mut consume).await.len(), 3);
    assert_eq!(consume.payloads(2).await, ["ddl", "ddl"]);
}

#[tokio::test]
async fn transaction_outlives_the_owner_of_its_wal_and_so_does_the_way_back_to_its_begin() {
    let world = World::new();
    let node = world.serving().await;
    let mut produce = node.producer(&rw(1)).await;
    let began = append(&mut produce, begin(VCHANNEL, 600_000)).await;
    let txn = TxnContext::from(began.txn_context.as_ref().unwrap());
    append(&mut produce, delete(VCHANNEL, "first", Some(txn))).await;
    drop(node);
    // Two owners in a row that append nothing but the tick of their term.
    for term in 2..=3 {
        let node = world.node(term).await;
        node.assign(&rw(term)).await.unwrap();
        let mut consume = node.consumer(&rw(term), DeliverPolicy::Latest, &[]).await;
        let tick = consume.any().await;
        assert!(tick.last_confirmed().unwrap() <= id(&began), "a tick of term {term} leads back to the begin");
    }
    let node = world.node(4).await;
    node.assign(&rw(4)).await.unwrap();
    let mut latest = node.consumer(&rw(4), DeliverPolicy::Latest, &[]).await;
    let tick = latest.any().await;
    let behind = DeliverFilter::TimeTickGreaterThan(tick.time_tick().unwrap());
    let mut resumed = node.consumer(&rw(4), DeliverPolicy::StartFrom(tick.last_confirmed().unwrap()), &[behind]).await;
    let mut produce = node.producer(&rw(4)).await;
    append(&mut produce, delete(VCHANNEL, "second", Some(txn))).await;
    append(&mut produce, commit(VCHANNEL, txn)).await;
    for consume in [&mut latest, &mut resumed] {
        let parts = whole(consume).await;
        assert_eq!(parts[1..3].iter().map(text).collect::<Vec<_>>(), ["first", "second"]);
    }
    let error = refused(&mut produce, commit(VCHANNEL, txn)).await;
    assert_eq!(error.code(), StreamingCode::InvalidTransactionState);

    let node = world.node(5).await;
    node.assign(&rw(5)).await.unwrap();
    let mut produce = node.producer(&rw(5)).await;
    let error = refused(&mut produce, commit(VCHANNEL, txn)).await;
    assert_eq!(error.code(), StreamingCode::InvalidTransactionState, "the next owner knows that it was committed");
}

#[tokio::test]
async fn type_filter_keeps_the_frame_of_a_transaction() {
    let node = World::new().serving().await;
    let mut produce = node.producer(&rw(1)).await;
    let txn = begun(&mut produce, 0).await;
    append(&mut produce, delete(VCHANNEL, "dropped", Some(txn))).await;
    append(&mut produce, commit(VCHANNEL, txn)).await;
    let inserts = DeliverFilter::message_types([MessageType::Insert]);
    let mut consume = node.consumer(&rw(1), DeliverPolicy::All, &[inserts]).await;
    assert_eq!(whole(&mut consume).await.len(), 2);
}

#[tokio::test]
async fn consumer_of_another_vchannel_sees_nothing_of_a_transaction() {
    let node = World::new().serving().await;
    let mut produce = node.producer(&rw(1)).await;
    let txn = begun(&mut produce, 0).await;
    append(&mut produce, delete(VCHANNEL, "body", Some(txn))).await;
    append(&mut produce, commit(VCHANNEL, txn)).await;
    produce.append(insert(OTHER, "mine")).await.unwrap();
    let mut consume = node.consume(&rw(1)).await.unwrap();
    consume.ask(OTHER, DeliverPolicy::All, &[]).await;
    assert_eq!(consume.payloads(1).await, ["mine"]);
}

#[tokio::test]
async fn transaction_that_asks_for_no_keepalive_gets_the_one_that_is_set() {
    let settings = Settings { txn_keepalive: Duration::from_millis(1234), ..Settings::default() };
    let world = World::new();
    let node = world.node_with(1, settings).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    assert_eq!(begun(&mut produce, 0).await.keepalive_ms, 1234);
    assert_eq!(begun(&mut produce, 77).await.keepalive_ms, 77);
}
