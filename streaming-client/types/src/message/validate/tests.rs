use streaming_proto::{
    messages::{
        BeginTxnMessageHeader, CommitTxnMessageHeader, DropCollectionMessageHeader, InsertMessageHeader,
        ManualFlushMessageHeader,
    },
    streaming::StreamingCode,
};

use super::*;
use crate::{DEFAULT_MAX_MESSAGE_BYTES, MessageBuilder, message::Header, time_tick::TimeTick};

const PCHANNEL: &str = "by-dev-rootcoord-dml_0";
const VCHANNEL: &str = "by-dev-rootcoord-dml_0_1v0";

fn of<H: Header>(header: &H) -> Message {
    MessageBuilder::new(header).vchannel(VCHANNEL).payload("x").build().unwrap()
}

fn insert() -> Message {
    of(&InsertMessageHeader { collection_id: 1, ..InsertMessageHeader::default() })
}

fn check(message: &Message) -> Result<Produced, InvalidMessage> {
    check_produced(message, PCHANNEL, DEFAULT_MAX_MESSAGE_BYTES)
}

/// What an insert is refused with once a property has this value.
fn refused_with(key: &str, value: &str) -> InvalidMessage {
    let mut message = insert();
    message.properties.set(key, value);
    check(&message).unwrap_err()
}

fn refused_without(key: &str) -> InvalidMessage {
    let mut message = insert();
    message.properties.remove(key).unwrap();
    check(&message).unwrap_err()
}

fn property(key: &'static str, fault: PropertyFault) -> InvalidMessage {
    InvalidMessage::Property(fault.of(key))
}

#[test]
fn what_was_read_is_handed_on() {
    let mut message = insert();
    message.properties.set_barrier(TimeTick(7));
    message.properties.set_txn(TxnContext::new(1001, 10_000));
    message.properties.set_broadcast(&BroadcastHeader { broadcast_id: 5, ..BroadcastHeader::default() });
    message.properties.set_replicate(&ReplicateHeader { time_tick: 3, ..ReplicateHeader::default() });
    let produced = check(&message).unwrap();
    assert_eq!(produced.message_type, MessageType::Insert);
    assert_eq!(produced.barrier, Some(TimeTick(7)));
    assert_eq!(produced.txn, Some(TxnContext::new(1001, 10_000)));
    assert_eq!(produced.broadcast.map(|header| header.broadcast_id), Some(5));
    assert_eq!(produced.replicate.map(|header| header.time_tick), Some(3));
}

#[test]
fn a_message_has_not_any_number_of_properties() {
    let mut message = insert();
    for number in message.properties.count()..1024 {
        message.properties.set(number.to_string(), "");
    }
    check(&message).unwrap();
    message.properties.set("more", "");
    assert_eq!(check(&message), Err(InvalidMessage::TooManyProperties { count: 1025 }));
}

#[test]
fn missing_properties_are_named() {
    assert_eq!(refused_without("_t"), property("_t", PropertyFault::Missing));
    assert_eq!(refused_without("_v"), property("_v", PropertyFault::Missing));
    assert_eq!(refused_without("_h"), property("_h", PropertyFault::Missing));
    assert_eq!(refused_without("_vc"), property("_vc", PropertyFault::Missing));
    assert_eq!(refused_with("_vc", ""), property("_vc", PropertyFault::Missing));
    assert_eq!(refused_with("_v", ""), property("_v", PropertyFault::Missing));
}

#[test]
fn ill_formed_properties_are_named() {
    for (key, value, fault) in [
        ("_t", "two", PropertyFault::NotDecimal),
        ("_v", "one", PropertyFault::NotDecimal),
        ("_v", "3", PropertyFault::UnknownVersion),
        ("_h", "?", PropertyFault::NotBase64),
        ("_h", "CA==", PropertyFault::NotDecodable),
        ("_bh", "CAUS", PropertyFault::NotDecodable),
        ("_bh", "?", PropertyFault::NotBase64),
        ("_btt", "+1", PropertyFault::NotBase36),
        ("_tx", "?", PropertyFault::NotBase64),
        ("_tx", "CA==", PropertyFault::NotDecodable),
        ("_ch", "CA==", PropertyFault::NotDecodable),
        ("_rh", "CA==", PropertyFault::NotDecodable),
    ] {
        let PropertyError { key: named, fault: got } = match refused_with(key, value) {
            InvalidMessage::Property(error) => error,
            other => panic!("{key}={value}: {other}"),
        };
        assert_eq!((named, got), (key, fault));
    }
}

#[test]
fn unknown_types_are_unsupported() {
    for number in ["0", "-1", "37", "999"] {
        let error = refused_with("_t", number);
        assert_eq!(error, InvalidMessage::UnsupportedType(number.to_owned()));
        assert!(error.to_string().contains("unsupported message type"));
    }
}

#[test]
fn version_must_be_that_of_the_type() {
    assert_eq!(
        refused_with("_v", "2"),
        InvalidMessage::OtherVersion { message_type: MessageType::Insert, got: Version::V2 }
    );
}

#[test]
fn what_only_nodes_write_is_refused() {
    for key in ["_wt", "_tt", "_lc", "_lcs", "_np"] {
        assert_eq!(refused_with(key, ""), InvalidMessage::SetByClient(key));
    }
    for kind in MessageType::ALL.iter().filter(|kind| kind.is_self_controlled()) {
        let mut message = insert();
        message.properties.set_type(*kind);
        message.properties.set_header_bytes(&[]);
        assert_eq!(check(&message), Err(InvalidMessage::SelfControlled(*kind)));
        // Only the replication layer knows what to answer to another cluster.
        message.properties.set_replicate(&ReplicateHeader::default());
        assert!(check(&message).is_ok(), "{kind}");
    }
}

#[test]
fn every_other_type_is_accepted() {
    for kind in MessageType::ALL.iter().filter(|kind| !kind.is_self_controlled() && !kind.is_in_memory_only()) {
        let mut message = insert();
        message.properties.set_type(*kind);
        message.properties.set_header_bytes(&[]);
        if matches!(kind, MessageType::CommitTxn | MessageType::RollbackTxn) {
            message.properties.set_txn(TxnContext::new(1, 1));
        }
        assert_eq!(check(&message).map(|produced| produced.message_type), Ok(*kind));
    }
}

#[test]
fn broadcast_must_be_split_before() {
    let mut message = insert();
    message.properties.remove("_vc");
    message.properties.set_broadcast(&BroadcastHeader::default());
    assert_eq!(check(&message), Err(InvalidMessage::BroadcastWithoutVChannel));
}

#[test]
fn vchannel_must_be_on_the_pchannel() {
    for vchannel in
        ["by-dev-rootcoord-dml_1_1v0", "other", "by-dev-rootcoord-dml_0_1", "by-dev-rootcoord-dml_0_1v0_1v0"]
    {
        let error = InvalidMessage::OtherPChannel { vchannel: vchannel.to_owned(), pchannel: PCHANNEL.to_owned() };
        assert_eq!(refused_with("_vc", vchannel), error);
    }
    for vchannel in [PCHANNEL, VCHANNEL, "by-dev-rootcoord-dml_0_vcchan"] {
        let mut message = insert();
        message.properties.set_vchannel(vchannel);
        assert!(check(&message).is_ok(), "{vchannel}");
    }
}

#[test]
fn transactions_have_begin_bodies_and_end() {
    let txn = TxnContext::new(1001, 10_000);
    let mut drop_collection = of(&DropCollectionMessageHeader::default());
    drop_collection.properties.set_txn(txn);
    assert_eq!(check(&drop_collection), Err(InvalidMessage::NotInTxn(MessageType::DropCollection)));

    let mut begin = of(&BeginTxnMessageHeader::default());
    begin.properties.set_txn(txn);
    assert_eq!(check(&begin), Err(InvalidMessage::NotInTxn(MessageType::BeginTxn)));
    begin.properties.set_replicate(&ReplicateHeader::default());
    assert!(check(&begin).is_ok());

    let mut commit = MessageBuilder::new(&CommitTxnMessageHeader {}).vchannel(VCHANNEL).txn(txn).build().unwrap();
    assert!(check(&commit).is_ok());
    commit.properties.remove("_tx");
    assert_eq!(check(&commit), Err(InvalidMessage::WithoutTxn(MessageType::CommitTxn)));
}

#[test]
fn only_types_whose_body_may_be_empty_have_an_empty_payload() {
    let mut message = insert();
    message.payload = bytes::Bytes::new();
    assert_eq!(check(&message), Err(InvalidMessage::EmptyPayload(MessageType::Insert)));
    let mut flush = of(&ManualFlushMessageHeader::default());
    flush.payload = bytes::Bytes::new();
    assert!(check(&flush).is_ok());
}

#[test]
fn limit_counts_payload_and_properties_and_no_claim_of_a_cipher_header() {
    let mut message = insert();
    let size = message.size();
    assert!(check_produced(&message, PCHANNEL, size).is_ok());
    assert_eq!(check_produced(&message, PCHANNEL, size - 1), Err(InvalidMessage::TooLarge { size, limit: size - 1 }));

    message.properties.set_cipher(&streaming_proto::messages::CipherHeader::default());
    let size = message.payload.len() + message.properties.size();
    assert_eq!(check_produced(&message, PCHANNEL, size - 1), Err(InvalidMessage::TooLarge { size, limit: size - 1 }));
}

#[test]
fn reserved_properties_of_later_releases_and_those_of_users_pass() {
    let mut message = insert();
    for key in ["_pcl", "_ur", "_tc", "_puc", "_ik", "user", ""] {
        message.properties.set(key, "?");
    }
    assert!(check(&message).is_ok());
}

#[test]
fn a_refused_message_is_unrecoverable_and_says_why() {
    let error = refused_with("_wt", "1");
    assert!(!error.is_retryable() && !error.has_side_effects());
    let streaming = StreamingError::from(error.clone());
    assert_eq!((streaming.code(), error.code()), (StreamingCode::Unrecoverable, StreamingCode::Unrecoverable));
    assert_eq!(streaming.cause(), "property _wt is set by the node that appends, not by a client");
}

#[test]
fn idempotency_key_has_a_length() {
    for (length, fits) in [(0, false), (1, true), (256, true), (257, false)] {
        let mut message = insert();
        message.properties.set_idempotency_key("k".repeat(length));
        let expected = if fits { None } else { Some(InvalidMessage::BadIdempotencyKey(length)) };
        assert_eq!(check(&message).err(), expected);
    }
}

#[test]
fn pieces_of_messages_do_not_come_from_clients() {
    for key in [key::CHUNK_INDEX, key::CHUNK_TOTAL] {
        assert_eq!(refused_with(key, "0"), InvalidMessage::SetByClient(key));
    }
}
