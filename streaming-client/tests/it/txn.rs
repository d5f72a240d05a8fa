//! Transactions, and the keys by which a node knows an append that is sent again.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use streaming_client::{AppendError, Transaction, TxnError};
use streaming_types::{Message, MessageType, StreamingCode, StreamingError};

use crate::fake::{CHANNEL, Cluster, OnProduce, VCHANNEL, eventually, message, soon, text};

fn kinds(cluster: &Cluster) -> Vec<MessageType> {
    cluster.wal.typed().into_iter().map(|(kind, _)| kind).collect()
}

fn kind(message: &Message) -> MessageType {
    message.properties.message_type().unwrap()
}

fn expired() -> OnProduce {
    OnProduce::Error(StreamingError::transaction_expired("too late"))
}

async fn begin(cluster: &Cluster) -> Transaction {
    soon(cluster.client().producer(CHANNEL).begin(VCHANNEL, None)).await.unwrap()
}

#[tokio::test]
async fn transaction_is_begin_bodies_and_commit_with_one_context() {
    let cluster = Cluster::start().await;
    let producer = cluster.client().producer(CHANNEL);
    let keepalive = Duration::from_millis(1500);
    let mut txn = soon(producer.begin(VCHANNEL, Some(keepalive))).await.unwrap();
    assert_eq!(txn.context().keepalive(), Some(keepalive));
    let context = txn.context();
    for number in 0..20 {
        soon(txn.append(message(text(number)))).await.unwrap();
    }
    let committed = soon(txn.commit()).await.unwrap();
    assert_eq!((committed.id.entry, committed.txn), (21, Some(context)));
    let log = cluster.wal.typed();
    assert!(log.iter().all(|(_, message)| message.properties.txn() == Ok(Some(context))));
    let bodies: Vec<_> = log[1..21].iter().map(|(_, message)| message.payload.to_vec()).collect();
    assert_eq!(bodies, (0..20).map(|number| text(number).into_bytes()).collect::<Vec<_>>());
    assert_eq!((log[0].0, log[21].0), (MessageType::BeginTxn, MessageType::CommitTxn));
}

#[tokio::test]
async fn given_up_or_dropped_transaction_is_rolled_back() {
    let cluster = Cluster::start().await;
    let mut txn = begin(&cluster).await;
    soon(txn.append(message("body"))).await.unwrap();
    soon(txn.rollback()).await.unwrap();
    assert_eq!(kinds(&cluster), [MessageType::BeginTxn, MessageType::Insert, MessageType::RollbackTxn]);
    let mut txn = begin(&cluster).await;
    soon(txn.append(message("body"))).await.unwrap();
    drop(txn);
    eventually("the drop rolls back", || cluster.wal.len() == 6).await;
    assert_eq!(kinds(&cluster)[5], MessageType::RollbackTxn);

    cluster.node.on_produce(|message| match kind(message) {
        MessageType::RollbackTxn => expired(),
        _ => OnProduce::Append,
    });
    soon(begin(&cluster).await.rollback()).await.expect("one that has ended is as good as rolled back");
}

#[tokio::test]
async fn transaction_whose_begin_was_given_up_is_rolled_back() {
    let cluster = Cluster::start().await;
    let mut breaks = 1;
    cluster.node.on_produce(move |message| match kind(message) {
        MessageType::BeginTxn if std::mem::take(&mut breaks) > 0 => OnProduce::Break,
        _ => OnProduce::Append,
    });
    let client = cluster.client_with(|settings| settings.timeouts.backoff_min = Duration::from_millis(300));
    let producer = client.producer(CHANNEL);
    tokio::select! {
        begun = producer.begin(VCHANNEL, Some(Duration::from_secs(3600))) => panic!("{begun:?}"),
        () = eventually("on its way", || cluster.node.seen(|seen| seen.requests.len()) == 1) => {}
    }
    eventually("rolled back", || kinds(&cluster) == [MessageType::BeginTxn, MessageType::RollbackTxn]).await;
}

#[tokio::test]
async fn transaction_whose_end_was_given_up_before_there_was_room_for_it_is_rolled_back() {
    for commits in [true, false] {
        let cluster = Cluster::start().await;
        let broken = Arc::new(AtomicBool::new(true));
        let breaks = broken.clone();
        cluster.node.on_produce(move |message| match message.payload == text(1) && breaks.load(Ordering::Relaxed) {
            true => OnProduce::Break,
            false => OnProduce::Append,
        });
        // There is room for one message at a time.
        let client = cluster.client_with(|settings| {
            settings.limits.max_message = 1 << 10;
            settings.limits.in_flight_bytes = 1 << 10;
        });
        let producer = client.producer(CHANNEL);
        let txn = soon(producer.begin(VCHANNEL, Some(Duration::from_secs(3600)))).await.unwrap();
        let mut first = message(text(1));
        first.properties.set("fills", "x".repeat(900));
        let first = soon(producer.append(first)).await.unwrap();
        let end = async { if commits { txn.commit().await.map(drop) } else { txn.rollback().await } };
        tokio::select! {
            biased;
            ended = end => panic!("{ended:?}"),
            () = eventually("it holds the room", || cluster.node.seen(|seen| seen.requests.len()) >= 2) => {}
        }
        broken.store(false, Ordering::Relaxed);
        soon(first).await.unwrap();
        let expected = [MessageType::BeginTxn, MessageType::Insert, MessageType::RollbackTxn];
        eventually("it is rolled back", || kinds(&cluster) == expected).await;
    }
}

#[test]
fn producers_are_made_and_transactions_dropped_outside_of_the_runtime_too() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (cluster, client) = runtime.block_on(async {
        let cluster = Cluster::start().await;
        let client = cluster.client();
        (cluster, client)
    });
    let producer = client.producer(CHANNEL);
    drop(runtime.block_on(soon(producer.begin(VCHANNEL, None))).unwrap());
    runtime.block_on(eventually("it is rolled back", || kinds(&cluster).contains(&MessageType::RollbackTxn)));
}

#[tokio::test]
async fn transaction_that_lost_a_body_is_not_committed() {
    let cluster = Cluster::start().await;
    cluster.node.on_produce(|message| if message.payload == text(1) { expired() } else { OnProduce::Append });
    let mut txn = begin(&cluster).await;
    for number in 0..3 {
        let _ = soon(txn.append(message(text(number)))).await;
    }
    let error = soon(txn.commit()).await.unwrap_err();
    assert!(matches!(&error, TxnError::Expired(cause) if cause.code() == StreamingCode::TransactionExpired), "{error}");
    assert_eq!((error.code(), error.is_retryable(), error.has_side_effects()), ("TXN_EXPIRED", true, false));
    eventually("it is rolled back", || kinds(&cluster).contains(&MessageType::RollbackTxn)).await;
    assert!(!kinds(&cluster).contains(&MessageType::CommitTxn));
}

#[tokio::test]
async fn messages_that_do_not_belong_are_refused_before_anything_is_sent() {
    let cluster = Cluster::start().await;
    let producer = cluster.client().producer(CHANNEL);
    let error = producer.begin(VCHANNEL, Some(Duration::from_micros(999))).await.unwrap_err();
    assert_eq!(error.code(), "TXN_INVALID_KEEPALIVE");
    assert_eq!(cluster.wal.len(), 0);
    let mut txn = begin(&cluster).await;
    let mut elsewhere = message("elsewhere");
    elsewhere.properties.set_vchannel("by-dev-rootcoord-dml_0_2v0");
    let mut import = message("import");
    import.properties.set_type(MessageType::Import);
    for message in [elsewhere, import] {
        let error = txn.append(message).await.unwrap_err();
        assert_eq!((error.code(), error.is_retryable()), ("TXN_INVALID_BODY", false));
    }
    soon(txn.commit()).await.expect("nothing of it was sent");
    assert_eq!(cluster.wal.len(), 2);
}

#[tokio::test]
async fn messages_together_are_run_again_when_their_transaction_expires() {
    let cluster = Cluster::start().await;
    let mut expires = 2;
    cluster.node.on_produce(move |message| {
        let fails = kind(message) == MessageType::CommitTxn && expires > 0;
        expires -= i32::from(fails);
        if fails { expired() } else { OnProduce::Append }
    });
    let producer = cluster.client().producer(CHANNEL);
    let messages = (0..2).map(|number| message(text(number))).collect();
    soon(producer.append_together(VCHANNEL, messages)).await.unwrap();
    let begun = kinds(&cluster).iter().filter(|kind| **kind == MessageType::BeginTxn).count();
    assert_eq!((begun, kinds(&cluster).last()), (3, Some(&MessageType::CommitTxn)));
}

#[tokio::test]
async fn lost_answer_of_a_commit_repeats_it_under_its_key() {
    let cluster = Cluster::start().await;
    let mut breaks = 1;
    cluster.node.on_produce(move |message| {
        let lost = kind(message) == MessageType::CommitTxn && std::mem::take(&mut breaks) > 0;
        if lost { OnProduce::AppendAndBreak } else { OnProduce::Append }
    });
    soon(begin(&cluster).await.commit()).await.unwrap();
    let commits: Vec<_> = cluster.wal.typed().into_iter().filter(|(kind, _)| *kind == MessageType::CommitTxn).collect();
    let keys: BTreeSet<_> = commits.iter().map(|(_, commit)| commit.properties.idempotency_key().unwrap()).collect();
    assert_eq!((commits.len(), keys.len()), (2, 1), "this node does not look at keys");
}

#[tokio::test]
async fn every_append_has_a_key_of_its_own_and_keeps_it_when_it_is_sent_again() {
    let cluster = Cluster::start().await;
    let mut breaks = 1;
    cluster.node.on_produce(move |message| match message.payload == text(5) && std::mem::take(&mut breaks) > 0 {
        true => OnProduce::AppendAndBreak,
        false => OnProduce::Append,
    });
    let producer = cluster.client().producer(CHANNEL);
    for number in 0..10 {
        soon(soon(producer.append(message(text(number)))).await.unwrap()).await.unwrap();
    }
    let log = cluster.wal.typed();
    let keyed = log.iter().map(|(_, message)| (message.properties.idempotency_key().unwrap(), &message.payload));
    let copies: BTreeSet<_> = keyed.collect();
    let keys: BTreeSet<_> = copies.iter().map(|(key, _)| key).collect();
    assert_eq!((log.len(), copies.len(), keys.len()), (11, 10, 10));
}

#[tokio::test]
async fn users_choose_their_own_keys_or_none() {
    let cluster = Cluster::start().await;
    let producer = cluster.client_with(|settings| settings.idempotent = false).producer(CHANNEL);
    let mut mine = message("mine");
    mine.properties.set_idempotency_key("my key");
    for message in [message("none"), mine] {
        soon(soon(producer.append(message)).await.unwrap()).await.unwrap();
    }
    let mut mine = message("mine");
    mine.properties.set_idempotency_key("my key");
    soon(soon(cluster.client().producer(CHANNEL).append(mine)).await.unwrap()).await.unwrap();
    let log = cluster.wal.typed();
    let keys: Vec<_> = log.iter().map(|(_, message)| message.properties.idempotency_key()).collect();
    assert_eq!(keys, [None, Some("my key"), Some("my key")]);
}

#[tokio::test]
async fn failures_of_a_transaction_say_what_may_have_happened() {
    let closed = TxnError::Append(AppendError::Closed { sent: true });
    assert!(closed.has_side_effects() && !closed.is_retryable());
    assert_eq!(closed.code(), "APPEND_CLOSED");
}
