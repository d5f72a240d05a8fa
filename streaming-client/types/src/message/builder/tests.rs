use prost::Message as _;
use streaming_proto::messages::{
    BeginTxnMessageHeader, CommitTxnMessageHeader, CreateCollectionMessageHeader, DeleteMessageHeader,
    InsertMessageHeader, ResourceDomain, RollbackTxnMessageHeader,
};

use super::*;
use crate::MessageId;

const TXN: TxnContext = TxnContext { txn_id: 1001, keepalive_ms: 10_000 };

fn insert() -> MessageBuilder {
    MessageBuilder::new(&InsertMessageHeader::default()).payload("x")
}

fn properties(message: &Message) -> Vec<(&str, &str)> {
    message.properties.iter().collect()
}

#[test]
fn insert_has_type_version_header_and_vchannel() {
    let message = insert().vchannel("p_1v0").property("who", "me").barrier(TimeTick(36)).txn(TXN).build().unwrap();
    assert_eq!(message.payload, "x");
    assert_eq!(
        properties(&message),
        [("_btt", "10"), ("_h", ""), ("_t", "2"), ("_tx", "COkHEJBO"), ("_v", "1"), ("_vc", "p_1v0"), ("who", "me")]
    );
}

#[test]
fn markers_of_a_transaction_have_their_types() {
    let begin = MessageBuilder::new(&BeginTxnMessageHeader { keepalive_milliseconds: 10_000 }).vchannel("p_1v0");
    let begin = begin.build().unwrap();
    assert_eq!(properties(&begin), [("_h", "CJBO"), ("_t", "900"), ("_v", "2"), ("_vc", "p_1v0")]);
    let commit = MessageBuilder::new(&CommitTxnMessageHeader {}).vchannel("p_1v0");
    assert_eq!(commit.clone().build(), Err(BuildError::NoTxn(MessageType::CommitTxn)));
    let commit = commit.txn(TXN).build().unwrap();
    assert_eq!(properties(&commit)[1..4], [("_t", "901"), ("_tx", "COkHEJBO"), ("_v", "2")]);
    let rollback = MessageBuilder::new(&RollbackTxnMessageHeader {}).vchannel("p_1v0");
    assert_eq!(rollback.build(), Err(BuildError::NoTxn(MessageType::RollbackTxn)));
}

#[test]
fn only_inserts_and_deletes_are_bodies_of_a_transaction() {
    let delete = MessageBuilder::new(&DeleteMessageHeader::default()).vchannel("p_1v0").txn(TXN);
    assert!(delete.build().is_ok());
    let create = MessageBuilder::new(&CreateCollectionMessageHeader::default()).vchannel("p_1v0").txn(TXN);
    assert_eq!(create.build(), Err(BuildError::NotInTxn(MessageType::CreateCollection)));
    let begin = MessageBuilder::new(&BeginTxnMessageHeader::default()).vchannel("p_1v0").txn(TXN);
    assert_eq!(begin.build(), Err(BuildError::NotInTxn(MessageType::BeginTxn)));
}

#[test]
fn broadcast_names_each_vchannel_once_and_has_no_id_yet() {
    let key = ResourceKey { domain: ResourceDomain::DbName.into(), key: "db".to_owned(), shared: true };
    let message = insert().broadcast(["a_1v0", "b_1v1", "a_1v0"], vec![key.clone()]).build().unwrap();
    let header = message.properties.broadcast().unwrap().unwrap();
    assert_eq!((header.broadcast_id, header.vchannels), (0, vec!["a_1v0".to_owned(), "b_1v1".to_owned()]));
    assert_eq!(header.resource_keys, [key]);
}

#[test]
fn what_would_be_refused_is_not_built() {
    let none: [&str; 0] = [];
    for (builder, error) in [
        (insert(), BuildError::NoVChannel(MessageType::Insert)),
        (insert().vchannel(""), BuildError::NoVChannel(MessageType::Insert)),
        (insert().vchannel("a").broadcast(["a"], vec![]), BuildError::VChannelAndBroadcast),
        (insert().broadcast(none, vec![]), BuildError::BadBroadcast),
        (insert().broadcast([""], vec![]), BuildError::BadBroadcast),
        (insert().vchannel("a").property("_wt", "1"), BuildError::ReservedProperty("_wt".to_owned())),
    ] {
        assert_eq!(builder.build(), Err(error));
    }
}

#[test]
fn known_time_tick_message_has_its_known_bytes() {
    let mut message = time_tick_message(TimeTick(458_000_000_000_000_000), 9);
    let hex: String = message.payload.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "0a0f08b00918808084d9ac92c9ad062009");
    assert_eq!(properties(&message), [("_h", ""), ("_t", "1"), ("_tt", "3h9ng7d2ff28"), ("_v", "1")]);

    let base = TimeTickMsg::decode(message.payload.clone()).unwrap().base.unwrap();
    assert_eq!((base.msg_type, base.msg_id), (1200, 0));
    assert_eq!((base.timestamp, base.source_id), (458_000_000_000_000_000, 9));

    message.properties.set_last_confirmed(MessageId::new(3, 17));
    let message = message.into_immutable(MessageId::new(3, 18));
    assert_eq!(message.time_tick(), Ok(TimeTick(458_000_000_000_000_000)));
    assert_eq!(message.last_confirmed(), Ok(MessageId::new(3, 17)));
}
