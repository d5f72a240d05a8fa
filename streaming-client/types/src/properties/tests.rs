use base64::{Engine, engine::general_purpose::STANDARD};
use proptest::prelude::*;
use streaming_proto::messages::{
    BeginTxnMessageHeader, InsertMessageHeader, PartitionSegmentAssignment, SegmentAssignment,
};

use super::*;
use crate::Message;

fn with(key: &str, value: &str) -> Properties {
    [(key, value)].into_iter().collect()
}

fn fault<T: std::fmt::Debug>(result: Result<T, PropertyError>) -> (&'static str, PropertyFault) {
    let error = result.unwrap_err();
    (error.key, error.fault)
}

#[test]
fn known_time_tick_and_transactions_have_their_known_texts() {
    let mut properties = Properties::default();
    properties.set_time_tick(TimeTick(458_000_000_000_000_000));
    properties.set_txn(TxnContext::new(1001, 10_000));
    assert_eq!(properties, [("_tt", "3h9ng7d2ff28"), ("_tx", "COkHEJBO")].into_iter().collect());
    assert_eq!(properties.time_tick(), Ok(Some(TimeTick(458_000_000_000_000_000))));
    assert_eq!(properties.txn(), Ok(Some(TxnContext::new(1001, 10_000))));

    properties.set_txn(TxnContext::infinite(1001));
    assert_eq!(properties.get("_tx"), Some("COkHEJj4/////////wE="));
    assert_eq!(properties.txn(), Ok(Some(TxnContext::infinite(1001))));
}

#[test]
fn known_broadcast_header_has_its_known_text() {
    let header = BroadcastHeader {
        broadcast_id: 5,
        vchannels: vec!["by-dev-rootcoord-dml_0_1v0".to_owned(), "by-dev-rootcoord-dml_1_1v1".to_owned()],
        ..BroadcastHeader::default()
    };
    let mut properties = Properties::default();
    properties.set_broadcast(&header);
    assert_eq!(
        properties.get("_bh"),
        Some("CAUSGmJ5LWRldi1yb290Y29vcmQtZG1sXzBfMXYwEhpieS1kZXYtcm9vdGNvb3JkLWRtbF8xXzF2MQ==")
    );
    assert_eq!(properties.broadcast(), Ok(Some(header)));
}

#[test]
fn known_headers_have_their_known_texts() {
    fn check<H: crate::message::Header + std::fmt::Debug>(header: H, text: &str) {
        let mut message = Message::default();
        message.properties.set_type(H::TYPE);
        message.properties.set_header_bytes(&header.encode_to_vec());
        assert_eq!(message.properties.get("_h"), Some(text));
        assert_eq!(message.header::<H>(), Ok(header));
    }
    let insert = |segment_assignment| InsertMessageHeader {
        collection_id: 1,
        partitions: vec![PartitionSegmentAssignment {
            partition_id: 2,
            rows: 10,
            binary_size: 1024,
            segment_assignment,
        }],
    };
    check(insert(None), "CAESBwgCEAoYgAg=");
    check(insert(Some(SegmentAssignment { segment_id: 777 })), "CAESDAgCEAoYgAgiAwiJBg==");
    check(BeginTxnMessageHeader { keepalive_milliseconds: 10_000 }, "CJBO");
}

#[test]
fn type_and_version_are_decimal_numbers() {
    let mut properties = Properties::default();
    properties.set_type(MessageType::CommitTxn);
    assert_eq!(properties, [("_t", "901"), ("_v", "2")].into_iter().collect());
    assert_eq!(properties.message_type(), Ok(MessageType::CommitTxn));
    assert_eq!(properties.version(), Ok(Version::V2));
    for absent in [Properties::default(), with("_v", "")] {
        assert_eq!(absent.version(), Ok(Version::V0));
    }
}

#[test]
fn last_confirmed_id_is_either_an_id_or_the_own_one() {
    let own = MessageId::new(3, 18);
    let mut properties = Properties::default();
    assert_eq!(properties.last_confirmed(own), Ok(None));
    properties.set_last_confirmed(MessageId::new(3, 17));
    assert_eq!(properties, with("_lc", "CAMQEQ=="));
    assert_eq!(properties.last_confirmed(own), Ok(Some(MessageId::new(3, 17))));
    properties.set_last_confirmed_is_self();
    assert_eq!(properties, with("_lcs", ""));
    assert_eq!(properties.last_confirmed(own), Ok(Some(own)));
    properties.set_last_confirmed(MessageId::new(3, 17));
    assert_eq!(properties, with("_lc", "CAMQEQ=="));
}

#[test]
fn an_empty_header_is_there_and_a_missing_one_is_not() {
    assert_eq!(with("_h", "").header_bytes(), Ok(SmallVec::new()));
    assert_eq!(fault(Properties::default().header_bytes()), ("_h", PropertyFault::Missing));
}

#[test]
fn what_cannot_be_read_says_which_property_and_why() {
    let own = MessageId::new(1, 1);
    assert_eq!(fault(with("_v", "x").version()), ("_v", PropertyFault::NotDecimal));
    assert_eq!(fault(with("_v", "3").version()), ("_v", PropertyFault::UnknownVersion));
    assert_eq!(fault(Properties::default().message_type()), ("_t", PropertyFault::Missing));
    assert_eq!(fault(with("_t", "").message_type()), ("_t", PropertyFault::NotDecimal));
    assert_eq!(fault(with("_t", "37").message_type()), ("_t", PropertyFault::UnknownType));
    assert_eq!(fault(with("_tt", "-1").time_tick()), ("_tt", PropertyFault::NotBase36));
    assert_eq!(fault(with("_btt", "").barrier()), ("_btt", PropertyFault::NotBase36));
    assert_eq!(fault(with("_wt", "1y2p0ij32e8e8").wal_term()), ("_wt", PropertyFault::NotBase36));
    assert_eq!(fault(with("_tx", "?").txn()), ("_tx", PropertyFault::NotBase64));
    assert_eq!(fault(with("_tx", "CA==").txn()), ("_tx", PropertyFault::NotDecodable));
    assert_eq!(fault(with("_lc", "?").last_confirmed(own)), ("_lc", PropertyFault::NotMessageId));
    assert_eq!(with("_t", "37").message_type().unwrap_err().to_string(), "property _t: unknown message type");
}

#[test]
fn only_keys_without_a_leading_underscore_are_the_users() {
    let properties: Properties = [("_t", "2"), ("_later", "x"), ("who", "me"), ("", "empty")].into_iter().collect();
    assert_eq!(properties.user().collect::<Vec<_>>(), [("", "empty"), ("who", "me")]);
    assert_eq!(properties.size(), 2 + 1 + 6 + 1 + 3 + 2 + 5);
}

fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[0-9a-z]{0,14}",
        "-?[0-9]{0,12}",
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| STANDARD.encode(bytes)),
    ]
}

fn any_properties() -> impl Strategy<Value = Properties> {
    let keys = proptest::sample::select(vec![
        "_v", "_t", "_h", "_vc", "_bh", "_btt", "_tx", "_tt", "_lc", "_lcs", "_wt", "_ch", "_np", "_rh", "_x", "user",
    ]);
    proptest::collection::btree_map(keys.prop_map(str::to_owned), texts(), 0..16).prop_map(Properties::from_iter)
}

proptest! {
    #[test]
    fn any_properties_are_read_or_refused(properties in any_properties(), payload: Vec<u8>, limit in 0usize..100) {
        let message = Message { payload: payload.into(), properties };
        let read = &message.properties;
        let _ = (read.version(), read.message_type(), read.header_bytes(), read.broadcast(), read.barrier(), read.txn());
        let _ = (read.time_tick(), read.last_confirmed(MessageId::new(1, 1)), read.wal_term(), read.cipher());
        let _ = (read.replicate(), message.size(), message.header::<InsertMessageHeader>());
        let _ = crate::message::split_broadcast(&message);
        for limit in [limit, usize::MAX] {
            let _ = crate::message::check_produced(&message, "p", limit);
        }
    }

    #[test]
    fn what_is_set_reads_back(tick: u64, term in 0..=i64::MAX, txn_id: i64, keepalive_ms: i64, vchannel in ".{1,20}") {
        let mut properties = Properties::default();
        properties.set_time_tick(TimeTick(tick));
        properties.set_barrier(TimeTick(tick));
        properties.set_wal_term(term);
        properties.set_txn(TxnContext::new(txn_id, keepalive_ms));
        properties.set_vchannel(vchannel.clone());
        prop_assert_eq!(properties.time_tick(), Ok(Some(TimeTick(tick))));
        prop_assert_eq!(properties.barrier(), Ok(Some(TimeTick(tick))));
        prop_assert_eq!(properties.wal_term(), Ok(Some(term)));
        prop_assert_eq!(properties.txn(), Ok(Some(TxnContext::new(txn_id, keepalive_ms))));
        prop_assert_eq!(properties.vchannel(), Some(vchannel.as_str()));
    }
}

#[test]
fn nested_headers_read_back() {
    let id = MessageId::new(3, 17).to_proto();
    let replicate = ReplicateHeader {
        cluster_id: "a".to_owned(),
        message_id: Some(id.clone()),
        last_confirmed_message_id: Some(id),
        time_tick: 9,
        vchannel: "a_1v0".to_owned(),
    };
    let cipher = CipherHeader { ez_id: 1, collection_id: 2, safe_key: "key".into(), payload_bytes: 3 };
    let mut properties = Properties::default();
    properties.set_replicate(&replicate);
    properties.set_cipher(&cipher);
    properties.set_not_persisted();
    assert_eq!(properties.replicate(), Ok(Some(replicate)));
    assert_eq!(properties.cipher(), Ok(Some(cipher)));
    assert!(properties.is_not_persisted());
    assert_eq!(properties.get("_np"), Some(""));
}
