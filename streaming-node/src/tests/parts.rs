//! Messages as tests need them.

use streaming_proto::messages::{
    BeginTxnMessageHeader, CommitTxnMessageHeader, CreatePartitionMessageHeader, DeleteMessageHeader,
    RollbackTxnMessageHeader,
};
use streaming_types::{Message, MessageBuilder, TxnContext, message::Header};

fn built<H: Header>(header: &H, vchannel: &str, payload: &str, txn: Option<TxnContext>) -> Message {
    let message = MessageBuilder::new(header).vchannel(vchannel).payload(payload.to_owned());
    match txn {
        Some(txn) => message.txn(txn).build().unwrap(),
        None => message.build().unwrap(),
    }
}

pub fn begin(vchannel: &str, keepalive_milliseconds: i64) -> Message {
    built(&BeginTxnMessageHeader { keepalive_milliseconds }, vchannel, "", None)
}

pub fn delete(vchannel: &str, payload: &str, txn: Option<TxnContext>) -> Message {
    built(&DeleteMessageHeader::default(), vchannel, payload, txn)
}

pub fn commit(vchannel: &str, txn: TxnContext) -> Message {
    built(&CommitTxnMessageHeader {}, vchannel, "", Some(txn))
}

pub fn rollback(vchannel: &str, txn: TxnContext) -> Message {
    built(&RollbackTxnMessageHeader {}, vchannel, "", Some(txn))
}

/// A message that needs its vchannel for itself.
pub fn exclusive(vchannel: &str, payload: &str) -> Message {
    built(&CreatePartitionMessageHeader::default(), vchannel, payload, None)
}

pub fn keyed(mut message: Message, key: impl AsRef<str>) -> Message {
    message.properties.set_idempotency_key(key);
    message
}
