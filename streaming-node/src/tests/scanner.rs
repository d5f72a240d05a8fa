//! What readers keep, and let go, and wait for.

use std::time::Duration;

use streaming_proto::messages::AlterReplicateConfigMessageHeader;
use streaming_types::{
    DeliverPolicy, Message, MessageBuilder, MessageId, MessageType, TimeTick, TxnContext, channel::control_channel,
};
use woodpecker_base::tasks::Tasks;

use super::{
    harness::{PCHANNEL, VCHANNEL, World, eventually, id, insert, ro, rw, text},
    parts::{begin, commit, delete},
};
use crate::{
    Settings,
    wal::{chunk::split, record, scanner::ScanOptions},
};

/// The record of a message with a tick, as an owner would write it.
fn written(mut message: Message, tick: u64) -> bytes::Bytes {
    message.properties.set_time_tick(TimeTick(tick));
    message.properties.set_last_confirmed_is_self();
    record::encode(&mut message, 1)
}

/// Leaves entries in the log, as an owner that crashed behind them.
async fn left(world: &World, entries: Vec<bytes::Bytes>) {
    let storage = Tasks::new();
    let log = world.logs(&storage).open_or_create_log(PCHANNEL).await.unwrap();
    log.open_writer().await.unwrap().append(entries).await.unwrap();
    storage.stop();
}

#[tokio::test]
async fn reader_that_met_half_a_message_of_a_crashed_owner_gets_heartbeats_all_the_same() {
    let world = World::new();
    let mut pieces = split(written(insert(VCHANNEL, &"x".repeat(100)).into(), 1), 40);
    pieces.pop();
    left(&world, pieces).await;

    let node = world.serving().await;
    let mut consume = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    let began = consume.any().await;
    assert!(!began.properties.is_not_persisted(), "the tick that began the term");
    let heartbeat = consume.any().await;
    assert_eq!(heartbeat.properties.message_type(), Ok(MessageType::TimeTick));
    assert!(heartbeat.time_tick().unwrap() > began.time_tick().unwrap());
}

#[tokio::test]
async fn reader_of_an_idle_log_of_which_nothing_is_left_gets_heartbeats_all_the_same() {
    let world = World::new();
    let node = world.node_with(1, Settings { buffer_age: Duration::ZERO, ..Settings::default() }).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    let log = node.logs.open_log(PCHANNEL).await.unwrap();
    for from_the_beginning in [true, false] {
        let gone = id(&produce.append(insert(VCHANNEL, "gone")).await.unwrap());
        let tick = eventually(&world, "the tick behind it", async || {
            log.last_entry().await.unwrap().filter(|last| record::message_id(*last) > Some(gone))
        });
        log.truncate(tick.await).await.unwrap();
        assert_eq!(log.last_entry().await.unwrap(), None);

        let policy = if from_the_beginning { DeliverPolicy::All } else { DeliverPolicy::StartFrom(gone) };
        let mut consume = node.consumer(&rw(1), policy, &[]).await;
        let (first, second) = (consume.any().await, consume.any().await);
        assert!(first.properties.is_not_persisted(), "{policy:?}: {first:?}");
        assert!(second.time_tick().unwrap() > first.time_tick().unwrap());
        produce.append(insert(VCHANNEL, "comes")).await.unwrap();
        assert_eq!(text(&consume.message().await), "comes");
    }
}

#[tokio::test]
async fn reader_of_one_vchannel_drops_the_transactions_that_a_change_of_role_ends() {
    let world = World::new();
    let txn = TxnContext { txn_id: 7, keepalive_ms: -1 };
    let mut begun = begin(VCHANNEL, 0);
    begun.properties.set_txn(txn);
    let alter = MessageBuilder::new(&AlterReplicateConfigMessageHeader::default()).vchannel(control_channel(PCHANNEL));
    let messages = [
        begun,
        delete(VCHANNEL, "body", Some(txn)),
        alter.build().unwrap(),
        commit(VCHANNEL, txn),
        delete(VCHANNEL, "end", None),
    ];
    left(&world, (1..).zip(messages).map(|(tick, message)| written(message, tick)).collect()).await;

    let node = world.serving().await;
    for vchannel in ["", VCHANNEL] {
        let mut consume = node.consume(&rw(1)).await.unwrap();
        consume.ask(vchannel, DeliverPolicy::All, &[]).await;
        let mut first = consume.message().await;
        while first.properties.message_type() == Ok(MessageType::AlterReplicateConfig) {
            first = consume.message().await;
        }
        assert_eq!(first.payload, "end", "of {vchannel:?}");
    }
}

#[tokio::test]
async fn transaction_that_found_no_room_is_read_again_at_its_place() {
    let world = World::new();
    let node = world.serving().await;
    let mut produce = node.producer(&rw(1)).await;
    let mut tail = node.consumer(&rw(1), DeliverPolicy::Latest, &[]).await;
    let begun = produce.append(begin(VCHANNEL, 60_000).into()).await.unwrap();
    let txn = TxnContext::from(&begun.txn_context.unwrap());
    let filler = "x".repeat(1000);
    let label = |n: usize| format!("{n} {filler}");
    for n in 0..20 {
        produce.append(insert(VCHANNEL, "between")).await.unwrap();
        produce.append(delete(VCHANNEL, &label(n), Some(txn)).into()).await.unwrap();
    }
    produce.append(commit(VCHANNEL, txn).into()).await.unwrap();
    produce.append(insert(VCHANNEL, "behind")).await.unwrap();
    let mut expected = vec!["between".to_owned(); 20];
    expected.push(String::new());
    expected.extend((0..20).map(label));
    expected.extend([String::new(), "behind".to_owned()]);
    assert_eq!(tail.payloads(43).await, expected, "with room");

    // A node that reads only, and has none.
    let (storage, tasks) = (Tasks::new(), Tasks::new());
    let opener = world.opener(Settings { node_held_bytes: 6000, ..Settings::default() }, &storage, &tasks);
    let wal = opener.open(&ro(1), 2).await.unwrap();
    let everything =
        ScanOptions { vchannel: String::new(), policy: DeliverPolicy::All, filters: Vec::new(), ignores_pause: false };
    let mut scanner = wal.scanner(everything);
    let mut seen = Vec::new();
    let mut ticks = Vec::new();
    while seen.len() < 43 {
        let messages = scanner.next().await.unwrap();
        for stored in messages.iter().filter(|stored| stored.kind != MessageType::TimeTick) {
            assert_eq!(stored.message.time_tick().unwrap().0, stored.tick);
            ticks.push(stored.tick);
            seen.push(text(&stored.message));
        }
    }
    assert_eq!(seen, expected);
    assert!(ticks[21..42].iter().all(|tick| *tick == ticks[41]), "bodies stand at their commit");
    assert_eq!(opener.allowance.left_to_hold(), 3000);
}

#[tokio::test]
async fn reader_who_does_not_read_keeps_no_room_of_the_node_for_a_wal_that_was_closed() {
    let (world, tasks) = (World::new(), Tasks::new());
    let opener = world.opener(Settings::default(), &tasks, &tasks);
    let wal = opener.open(&rw(1), 1).await.unwrap();
    let options =
        ScanOptions { vchannel: String::new(), policy: DeliverPolicy::All, filters: Vec::new(), ignores_pause: false };
    let scanner = wal.scanner(options);
    wal.appends().unwrap().append_own(MessageType::Delete, delete(VCHANNEL, "x", None)).await;
    eventually(&world, "a message in the buffer", async || (opener.buffers.held() > 0).then_some(())).await;
    wal.close().await;
    drop(wal);
    assert_eq!(opener.buffers.held(), 0);
    drop(scanner);
    tasks.stop();
}

#[tokio::test]
async fn reader_of_little_waits_for_nothing_amid_what_is_in_memory_for_others() {
    const OTHER: &str = "by-dev-rootcoord-dml_0_2v0";
    let (world, tasks) = (World::new(), Tasks::new());
    // Nothing is written that would wake the reader, and no heartbeat does.
    let settings = Settings { heartbeat: Duration::from_secs(3600), ..Settings::default() };
    let opener = world.opener(settings, &tasks, &tasks);
    let wal = opener.open(&rw(1), 1).await.unwrap();
    let append = async |vchannel, payload: &str| {
        wal.appends().unwrap().append_own(MessageType::Delete, delete(vchannel, payload, None)).await;
    };
    let large = "x".repeat(1 << 20);
    for _ in 0..6 {
        append(VCHANNEL, &large).await;
    }
    append(OTHER, "wanted").await;
    append(VCHANNEL, &large).await;
    let all = async || (opener.buffers.held() > 7 << 20).then_some(());
    eventually(&world, "everything in memory", all).await;

    let policy = DeliverPolicy::StartFrom(MessageId::new(1, 1));
    let mut scanner =
        wal.scanner(ScanOptions { vchannel: OTHER.to_owned(), policy, filters: Vec::new(), ignores_pause: false });
    let found = async {
        loop {
            let messages = scanner.next().await.unwrap();
            if let Some(found) = messages.iter().find(|stored| stored.kind != MessageType::TimeTick) {
                return text(&found.message);
            }
        }
    };
    let found = world.clock.timeout(Duration::from_secs(10), found).await.expect("what is there already");
    assert_eq!(found, "wanted");
    tasks.stop();
}
