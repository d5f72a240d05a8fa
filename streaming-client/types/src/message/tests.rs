use proptest::prelude::*;
use prost::Message as _;
use streaming_proto::messages::{CipherHeader, DeleteMessageHeader};

use super::*;
use crate::TxnContext;

fn delete() -> Message {
    MessageBuilder::new(&DeleteMessageHeader { collection_id: 1, rows: 2 })
        .vchannel("p_1v0")
        .payload("12345")
        .build()
        .unwrap()
}

#[test]
fn size_is_that_of_payload_keys_and_values() {
    let message = delete();
    // 5, "_h" "CAEQAg==", "_t" "3", "_v" "1", "_vc" "p_1v0"
    assert_eq!(message.size(), 5 + (2 + 8) + (2 + 1) + (2 + 1) + (3 + 5));
    assert_eq!(message.clone().into_immutable(MessageId::new(1, 1)).size(), message.size());
}

#[test]
fn plain_size_of_a_ciphertext_counts() {
    let mut message = delete();
    let plain = message.size();
    message.properties.set_cipher(&CipherHeader { payload_bytes: 1000, ..CipherHeader::default() });
    let cipher = "_ch".len() + message.properties.get("_ch").unwrap().len();
    assert_eq!(message.size(), plain - 5 + 1000 + cipher);
    // A negative size is no size.
    message.properties.set_cipher(&CipherHeader { payload_bytes: -1, ..CipherHeader::default() });
    assert_eq!(message.size(), 5 + message.properties.size());
}

#[test]
fn header_of_another_type_is_refused() {
    let error = delete().header::<messages::InsertMessageHeader>().unwrap_err();
    assert_eq!((error.key, error.fault), ("_t", PropertyFault::OtherHeader));
}

#[test]
fn message_in_a_log_has_a_tick_and_a_last_confirmed_id() {
    let mut message = delete().into_immutable(MessageId::new(3, 18));
    assert_eq!(message.time_tick().unwrap_err().fault, PropertyFault::Missing);
    assert_eq!(message.last_confirmed().unwrap_err().fault, PropertyFault::Missing);
    message.properties.set_time_tick(TimeTick(5));
    message.properties.set_last_confirmed_is_self();
    assert_eq!(message.time_tick(), Ok(TimeTick(5)));
    assert_eq!(message.last_confirmed(), Ok(MessageId::new(3, 18)));
}

#[test]
fn message_without_a_readable_id_is_refused() {
    let proto = common::ImmutableMessage::from(delete().into_immutable(MessageId::new(3, 18)));
    let without = common::ImmutableMessage { id: None, ..proto.clone() };
    assert_eq!(ImmutableMessage::try_from(without), Err(MessageIdError::Missing));
    let other = common::ImmutableMessage { id: Some(common::MessageId::default()), ..proto };
    assert_eq!(ImmutableMessage::try_from(other), Err(MessageIdError::UnknownWal(0)));
}

proptest! {
    #[test]
    fn messages_read_back(
        payload: Vec<u8>,
        properties: std::collections::HashMap<String, String>,
        segment in 0..=i64::MAX,
        entry in 0..=i64::MAX,
    ) {
        let message = Message { payload: payload.into(), properties: properties.into_iter().collect() };
        let bytes = messages::Message::from(message.clone()).encode_to_vec();
        prop_assert_eq!(&Message::from(messages::Message::decode(bytes.as_slice()).unwrap()), &message);

        let message = message.into_immutable(MessageId::new(segment, entry));
        let bytes = common::ImmutableMessage::from(message.clone()).encode_to_vec();
        let proto = common::ImmutableMessage::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(ImmutableMessage::try_from(proto), Ok(message));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
        if let Ok(proto) = messages::Message::decode(bytes.as_slice()) {
            let message = Message::from(proto);
            let _ = (message.size(), check_produced(&message, "p", usize::MAX));
        }
        if let Ok(proto) = common::ImmutableMessage::decode(bytes.as_slice())
            && let Ok(message) = ImmutableMessage::try_from(proto)
        {
            let _ = (message.size(), message.time_tick(), message.last_confirmed());
        }
        for kind in MessageType::ALL {
            let _ = header_decodes(*kind, &bytes);
        }
    }

    #[test]
    fn built_messages_are_accepted(
        payload in proptest::collection::vec(any::<u8>(), 1..50),
        keys in proptest::collection::btree_map("[a-z]{1,5}", ".{0,5}", 0..4),
        barrier: u64,
        txn in proptest::option::of((any::<i64>(), any::<i64>())),
    ) {
        let mut builder = MessageBuilder::new(&DeleteMessageHeader { collection_id: 1, rows: 2 })
            .vchannel("p_1v0")
            .payload(payload)
            .barrier(TimeTick(barrier));
        for (key, value) in &keys {
            builder = builder.property(key, value);
        }
        let txn = txn.map(|(id, keepalive)| TxnContext::new(id, keepalive));
        if let Some(txn) = txn {
            builder = builder.txn(txn);
        }
        let message = builder.build().unwrap();
        let produced = check_produced(&message, "p", usize::MAX).unwrap();
        prop_assert_eq!(produced.message_type, MessageType::Delete);
        prop_assert_eq!((produced.barrier, produced.txn), (Some(TimeTick(barrier)), txn));
        let user: Vec<_> = message.properties.user().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        prop_assert_eq!(user, keys.into_iter().collect::<Vec<_>>());
    }
}
