//! How a message is made.

use bytes::Bytes;
use streaming_proto::{
    common::{MsgBase, MsgType},
    messages::{BroadcastHeader, ResourceKey, TimeTickMessageHeader},
    msg::TimeTickMsg,
};

use crate::{
    Message, MessageType, Properties, TimeTick, TxnContext,
    message::Header,
    properties::{is_reserved, key},
    short,
};

/// Makes a message of the type that its header says.
#[derive(Clone, Debug)]
#[must_use]
pub struct MessageBuilder {
    message: Message,
    kind: MessageType,
    reserved: Option<String>,
}

/// Why a message was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    #[error("property {0} is reserved")]
    ReservedProperty(String),
    #[error("a message of type {0} needs a vchannel or a broadcast")]
    NoVChannel(MessageType),
    #[error("a message has either a vchannel or a broadcast")]
    VChannelAndBroadcast,
    #[error("a broadcast needs vchannels, none of them empty")]
    BadBroadcast,
    #[error("a message of type {0} belongs to a transaction")]
    NoTxn(MessageType),
    #[error("a message of type {0} is no part of a transaction")]
    NotInTxn(MessageType),
}

impl MessageBuilder {
    pub fn new<H: Header>(header: &H) -> Self {
        let mut properties = Properties::default();
        properties.set_type(H::TYPE);
        properties.set_header_bytes(&short::encode(header));
        Self { message: Message { payload: Bytes::new(), properties }, kind: H::TYPE, reserved: None }
    }

    /// The payload as it is.
    pub fn payload(mut self, payload: impl Into<Bytes>) -> Self {
        self.message.payload = payload.into();
        self
    }

    /// The payload as a proto message: of package `msg` for types of version 1, of package `messages` for others.
    pub fn body(self, body: &impl prost::Message) -> Self {
        self.payload(body.encode_to_vec())
    }

    /// Where the message goes.
    pub fn vchannel(mut self, vchannel: impl AsRef<str>) -> Self {
        self.message.properties.set_vchannel(vchannel);
        self
    }

    /// The message goes to many vchannels, each once, under the given resource keys. The coordinator gives the id.
    pub fn broadcast<V: Into<String>>(
        mut self,
        vchannels: impl IntoIterator<Item = V>,
        resource_keys: Vec<ResourceKey>,
    ) -> Self {
        let mut names: Vec<String> = Vec::new();
        for vchannel in vchannels {
            let vchannel = vchannel.into();
            if !names.contains(&vchannel) {
                names.push(vchannel);
            }
        }
        let header = BroadcastHeader { vchannels: names, resource_keys, ..BroadcastHeader::default() };
        self.message.properties.set_broadcast(&header);
        self
    }

    /// The message gets a time tick greater than this one.
    pub fn barrier(mut self, barrier: TimeTick) -> Self {
        self.message.properties.set_barrier(barrier);
        self
    }

    /// The message belongs to this transaction, as the answer to its begin said.
    pub fn txn(mut self, txn: TxnContext) -> Self {
        self.message.properties.set_txn(txn);
        self
    }

    /// Of messages of one vchannel with the same key only the first is appended; the others get its result. Up to 256
    /// bytes.
    pub fn idempotency_key(mut self, key: impl AsRef<str>) -> Self {
        self.message.properties.set_idempotency_key(key);
        self
    }

    /// A property of the user's own. Keys with a leading underscore are reserved.
    pub fn property(mut self, key: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        if is_reserved(key.as_ref()) {
            self.reserved.get_or_insert_with(|| key.as_ref().to_owned());
        } else {
            self.message.properties.set(key, value);
        }
        self
    }

    pub fn build(self) -> Result<Message, BuildError> {
        if let Some(key) = self.reserved {
            return Err(BuildError::ReservedProperty(key));
        }
        let properties = &self.message.properties;
        let addressed = properties.vchannel().is_some();
        match properties.broadcast() {
            Ok(None) if !addressed => return Err(BuildError::NoVChannel(self.kind)),
            Ok(Some(_)) if addressed => return Err(BuildError::VChannelAndBroadcast),
            Ok(Some(header)) if header.vchannels.is_empty() || header.vchannels.iter().any(String::is_empty) => {
                return Err(BuildError::BadBroadcast);
            }
            _ => {}
        }
        let in_txn = properties.contains(key::TXN);
        match self.kind {
            MessageType::CommitTxn | MessageType::RollbackTxn if !in_txn => Err(BuildError::NoTxn(self.kind)),
            MessageType::CommitTxn | MessageType::RollbackTxn => Ok(self.message),
            kind if in_txn && !kind.is_txn_body() => Err(BuildError::NotInTxn(kind)),
            _ => Ok(self.message),
        }
    }
}

/// The message by which the node `source` says that everything up to `time_tick` stands in the log before it. It has no
/// vchannel; its last confirmed id is still to be set.
#[must_use]
pub fn time_tick_message(time_tick: TimeTick, source: i64) -> Message {
    let base =
        MsgBase { msg_type: MsgType::TimeTick.into(), timestamp: time_tick.0, source_id: source, ..MsgBase::default() };
    let mut message = MessageBuilder::new(&TimeTickMessageHeader {}).body(&TimeTickMsg { base: Some(base) }).message;
    message.properties.set_time_tick(time_tick);
    message
}

#[cfg(test)]
mod tests;
