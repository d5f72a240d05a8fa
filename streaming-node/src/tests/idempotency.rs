//! Appends that are sent again, and messages that fill more than one entry.

use std::time::Duration;

use streaming_types::{DeliverPolicy, MessageId, StreamingCode, TxnContext};

use super::{
    harness::{PCHANNEL, Produce, VCHANNEL, World, eventually, id, insert, rw, text},
    parts::{begin, commit, delete, keyed, rollback},
    recovery::{report, until_saved},
};
use crate::{Recovery, Settings};

const OTHER: &str = "by-dev-rootcoord-dml_0_2v0";

#[tokio::test]
async fn repeat_gets_the_result_of_the_first_and_is_not_stored() {
    let node = World::new().serving().await;
    let mut produce = node.producer(&rw(1)).await;
    let message = || keyed(insert(VCHANNEL, "once").into(), "key").into();
    for _ in 0..3 {
        produce.send(message()).await;
    }
    let first = produce.answer().await.1.unwrap();
    for _ in 0..2 {
        assert_eq!(produce.answer().await.1.unwrap(), first, "also while the first is on its way");
    }
    assert_eq!(produce.append(message()).await.unwrap(), first);
    let elsewhere = produce.append(keyed(insert(OTHER, "elsewhere").into(), "key").into()).await.unwrap();
    assert!(id(&elsewhere) > id(&first), "a key counts on its vchannel");
    let mut consume = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    assert_eq!(consume.payloads(2).await, ["once", "elsewhere"]);
}

#[tokio::test]
async fn refused_message_leaves_its_key_free() {
    let node = World::new().serving().await;
    let mut produce = node.producer(&rw(1)).await;
    let lost = delete(VCHANNEL, "body of nothing", Some(TxnContext::new(7, 1000)));
    let error = produce.append(keyed(lost, "key").into()).await.unwrap_err();
    assert_eq!(error.code(), StreamingCode::TransactionExpired);
    produce.append(keyed(insert(VCHANNEL, "x").into(), "key").into()).await.unwrap();
}

#[tokio::test]
async fn next_owner_knows_the_keys_and_the_results() {
    let world = World::new();
    let node = world.serving().await;
    let mut produce = node.producer(&rw(1)).await;
    let message = |n: u32| keyed(insert(VCHANNEL, &n.to_string()).into(), format!("key {n}")).into();
    let mut results = Vec::new();
    for n in 0..500 {
        produce.send(message(n)).await;
    }
    for _ in 0..500 {
        results.push(produce.answer().await.1.unwrap());
    }
    drop(node);
    let node = world.node(2).await;
    node.assign(&rw(2)).await.unwrap();
    let mut produce = node.producer(&rw(2)).await;
    for (n, result) in (0..).zip(&results) {
        assert_eq!(produce.append(message(n)).await.as_ref(), Ok(result));
    }
    produce.append(message(500)).await.unwrap();
    let mut consume = node.consumer(&rw(2), DeliverPolicy::All, &[]).await;
    let expected: Vec<_> = (0..=500).map(|n| n.to_string()).collect();
    assert_eq!(consume.payloads(501).await, expected);
}

#[tokio::test]
async fn truncation_leaves_the_newest_keys_to_the_next_owner() {
    let world = World::new();
    let persist_interval = Duration::from_millis(20);
    let recovery = Recovery { persist_interval, window_bytes: 2 << 20, ..Recovery::default() };
    let settings = || Settings { recovery: recovery.clone(), ..Settings::default() };
    let node = world.node_with(1, settings()).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    let filler = "x".repeat(200_000);
    let message = |n: u32| keyed(insert(VCHANNEL, &format!("{n} {filler}")).into(), format!("key {n}")).into();
    let mut results = Vec::new();
    for n in 0..30 {
        results.push(produce.append(message(n)).await.unwrap());
    }
    // Nobody else needs any of it.
    until_saved(&world, results[29].timetick).await;
    report(&node, PCHANNEL, id(&results[29])).await.unwrap();
    produce.append(insert(VCHANNEL, "more")).await.unwrap();
    let log = node.logs.open_log(PCHANNEL).await.unwrap();
    let truncated = async || log.describe().await.unwrap().truncated;
    let truncated = eventually(&world, "truncation", truncated).await;
    assert!(truncated.segment >= id(&results[0]).to_u64().0, "{truncated}");
    drop(node);

    let node = world.node_with(2, settings()).await;
    node.assign(&rw(2)).await.unwrap();
    let mut produce = node.producer(&rw(2)).await;
    // Each is twice as large as the filler, which it carries as a property too.
    for n in 25..30 {
        assert_eq!(produce.append(message(n)).await.as_ref(), Ok(&results[n as usize]), "message {n}");
    }
    let anew = produce.append(message(0)).await.unwrap();
    assert!(anew != results[0], "what is older than the span is forgotten with its log");
}

#[tokio::test]
async fn key_of_a_body_counts_in_its_transaction_only() {
    let world = World::new();
    let node = world.serving().await;
    let mut produce = node.producer(&rw(1)).await;
    let body = |txn, text: &str| keyed(delete(VCHANNEL, text, Some(txn)), "body").into();
    let opened = async |produce: &mut Produce, ms| {
        let begun = produce.append(begin(VCHANNEL, ms).into()).await.unwrap();
        TxnContext::from(&begun.txn_context.unwrap())
    };
    let lost = opened(&mut produce, 60_000).await;
    produce.append(body(lost, "lost")).await.unwrap();
    produce.append(rollback(VCHANNEL, lost).into()).await.unwrap();

    let txn = opened(&mut produce, 60_000).await;
    let first = produce.append(body(txn, "kept")).await.unwrap();
    assert_eq!(produce.append(body(txn, "kept")).await.unwrap(), first, "a repeat in its transaction");
    produce.append(keyed(insert(VCHANNEL, "by itself").into(), "body").into()).await.unwrap();
    drop(node);

    let node = world.node(2).await;
    node.assign(&rw(2)).await.unwrap();
    let mut produce = node.producer(&rw(2)).await;
    assert_eq!(produce.append(body(txn, "kept")).await.unwrap(), first, "also at the next owner");
    let other = opened(&mut produce, 60_000).await;
    produce.append(body(other, "kept as well")).await.unwrap();
    produce.append(commit(VCHANNEL, txn).into()).await.unwrap();
    produce.append(commit(VCHANNEL, other).into()).await.unwrap();
    let mut consume = node.consumer(&rw(2), DeliverPolicy::All, &[]).await;
    let mut seen = consume.payloads(7).await;
    seen.retain(|payload| !payload.is_empty());
    assert_eq!(seen, ["by itself", "kept", "kept as well"]);
}

#[tokio::test]
async fn transaction_that_is_run_again_after_its_commit_was_lost_is_committed_once() {
    let node = World::new().serving().await;
    let mut produce = node.producer(&rw(1)).await;
    let mut run = async || {
        let began = produce.append(begin(VCHANNEL, 0).into()).await.unwrap();
        let txn = TxnContext::from(&began.txn_context.unwrap());
        produce.append(delete(VCHANNEL, "body", Some(txn)).into()).await.unwrap();
        (txn, produce.append(keyed(commit(VCHANNEL, txn), "key").into()).await.unwrap())
    };
    let (first, committed) = run().await;
    let (second, again) = run().await;
    assert!(first != second && again == committed, "the result of the first commit");
    let error = produce.append(commit(VCHANNEL, second).into()).await.unwrap_err();
    assert_eq!(error.code(), StreamingCode::InvalidTransactionState, "{}", error.cause);
    assert!(error.cause.ends_with("current TxnRollbacked"), "{}", error.cause);
    produce.append(insert(VCHANNEL, "end")).await.unwrap();
    let mut consume = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    assert_eq!(consume.payloads(4).await, ["", "body", "", "end"]);
}

#[tokio::test]
async fn message_of_many_entries_is_one_message_for_everybody() {
    let world = World::new();
    let settings = Settings { entry_bytes: 4096, ..Settings::default() };
    let node = world.node_with(1, settings).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    let large = |n: usize| format!("{n} {}", "x".repeat(n * 1500));
    let mut tail = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    let mut results = Vec::new();
    for n in 0..20 {
        produce.send(insert(VCHANNEL, &large(n))).await;
    }
    for _ in 0..20 {
        results.push(produce.answer().await.1.unwrap());
    }
    let expected: Vec<_> = (0..20).map(large).collect();
    let mut behind = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    assert!(tail.payloads(20).await == expected && behind.payloads(20).await == expected);
    for from in [3, 19] {
        let at = id(&results[from]);
        let mut consume = node.consumer(&rw(1), DeliverPolicy::StartFrom(at), &[]).await;
        let message = consume.message().await;
        assert!(message.id == at && text(&message) == expected[from] && message.last_confirmed() == Ok(at));
        if from < 19 {
            let mut consume = node.consumer(&rw(1), DeliverPolicy::StartAfter(at), &[]).await;
            assert!(text(&consume.message().await) == expected[from + 1]);
        }
    }
    let entries = MessageId::from_proto(results[19].id.as_ref()).unwrap().entry;
    assert!(entries > 60, "they fill {entries} entries");
    drop(node);
    let node = world.node(2).await;
    node.assign(&rw(2)).await.unwrap();
    let mut behind = node.consumer(&rw(2), DeliverPolicy::All, &[]).await;
    assert!(behind.payloads(20).await == expected, "whatever the entries of this owner are");
}

#[tokio::test]
async fn largest_message_passes_and_a_larger_one_is_refused_without_stalling_anyone() {
    let world = World::new();
    let settings = Settings { entry_bytes: 1 << 20, max_message_bytes: 40 << 20, ..Settings::default() };
    let settings = Settings { producer_in_flight_bytes: 64 << 20, ..settings };
    let node = world.node_with(1, settings).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    let of = |bytes: usize| delete(VCHANNEL, &"x".repeat(bytes), None).into();
    // More than any backend takes at once, and than the log has room for.
    let largest = produce.send(of((40 << 20) - 1000)).await;
    let small = produce.send(of(10)).await;
    assert_eq!(produce.answer().await.0, largest);
    let (answered, result) = produce.answer().await;
    assert_eq!(answered, small);
    result.unwrap();
    let error = produce.append(of(41 << 20)).await.unwrap_err();
    assert_eq!(error.code(), StreamingCode::Unrecoverable);
    assert!(error.cause.contains("larger than 41943040"), "{}", error.cause);
    let mut consume = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    assert!(consume.message().await.payload.len() > 39 << 20);
    assert_eq!(consume.message().await.payload.len(), 10);
}
