//! What readers keep, and let go.

use streaming_proto::messages::AlterReplicateConfigMessageHeader;
use streaming_types::{
    DeliverPolicy, Message, MessageBuilder, MessageType, TimeTick, TxnContext, channel::control_channel,
};
use woodpecker_base::tasks::Tasks;

use super::{
    harness::{PCHANNEL, VCHANNEL, World, insert, rw},
    parts::{begin, commit, delete},
};
use crate::wal::{chunk::split, record};

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
