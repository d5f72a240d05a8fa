//! Messages before and after they have their place in a log.

mod broadcast;
mod builder;
mod header;
mod kind;
mod validate;

use bytes::Bytes;
use streaming_proto::{common, messages};

pub use self::{
    broadcast::{NotABroadcast, split_broadcast},
    builder::{BuildError, MessageBuilder, time_tick_message},
    header::{Header, header_decodes},
    kind::{MessageType, Version},
    validate::{InvalidMessage, Produced, check_produced},
};
use crate::{
    MessageId, Properties, TimeTick,
    message_id::MessageIdError,
    properties::{PropertyError, PropertyFault, key},
};

/// A message that has no id yet: what a producer sends, and what a node completes before it appends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Never changes, whoever handles the message.
    pub payload: Bytes,
    pub properties: Properties,
}

/// A message that stands in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImmutableMessage {
    pub id: MessageId,
    pub payload: Bytes,
    pub properties: Properties,
}

impl Message {
    /// Size for buffers and metrics; see [`estimate_size`].
    #[must_use]
    pub fn size(&self) -> usize {
        estimate_size(&self.payload, &self.properties)
    }

    /// The header, if this is a message of type `H::TYPE`.
    pub fn header<H: Header>(&self) -> Result<H, PropertyError> {
        header::decode(&self.properties)
    }

    /// Changes the header. Fields of the header itself that are newer than we are stay, in front of the others; those of
    /// messages inside it do not.
    pub fn rewrite_header<H: Header>(&mut self, change: impl FnOnce(&mut H)) -> Result<(), PropertyError> {
        header::rewrite(&mut self.properties, change)
    }

    /// The message as it stands at `id`.
    #[must_use]
    pub fn into_immutable(self, id: MessageId) -> ImmutableMessage {
        ImmutableMessage { id, payload: self.payload, properties: self.properties }
    }
}

impl ImmutableMessage {
    /// Size for buffers and metrics; see [`estimate_size`].
    #[must_use]
    pub fn size(&self) -> usize {
        estimate_size(&self.payload, &self.properties)
    }

    /// The header, if this is a message of type `H::TYPE`.
    pub fn header<H: Header>(&self) -> Result<H, PropertyError> {
        header::decode(&self.properties)
    }

    /// The time tick, which a message in a log always has.
    pub fn time_tick(&self) -> Result<TimeTick, PropertyError> {
        self.properties.time_tick()?.ok_or_else(|| PropertyFault::Missing.of(key::TIME_TICK))
    }

    /// The last confirmed id, which a message in a log always has.
    pub fn last_confirmed(&self) -> Result<MessageId, PropertyError> {
        self.properties.last_confirmed(self.id)?.ok_or_else(|| PropertyFault::Missing.of(key::LAST_CONFIRMED))
    }
}

/// Bytes of payload, keys and values. For a ciphertext the size of the plain payload counts.
#[must_use]
pub fn estimate_size(payload: &[u8], properties: &Properties) -> usize {
    let plain = match properties.cipher() {
        Ok(Some(cipher)) => usize::try_from(cipher.payload_bytes).ok(),
        _ => None,
    };
    plain.unwrap_or(payload.len()).saturating_add(properties.size())
}

impl From<messages::Message> for Message {
    fn from(proto: messages::Message) -> Self {
        Self { payload: proto.payload, properties: proto.properties.into() }
    }
}

impl From<Message> for messages::Message {
    fn from(message: Message) -> Self {
        Self { payload: message.payload, properties: message.properties.into_proto() }
    }
}

impl TryFrom<common::ImmutableMessage> for ImmutableMessage {
    type Error = MessageIdError;

    fn try_from(proto: common::ImmutableMessage) -> Result<Self, MessageIdError> {
        let id = MessageId::from_proto(proto.id.as_ref())?;
        Ok(Self { id, payload: proto.payload, properties: proto.properties.into() })
    }
}

impl From<ImmutableMessage> for common::ImmutableMessage {
    fn from(message: ImmutableMessage) -> Self {
        Self {
            id: Some(message.id.to_proto()),
            payload: message.payload,
            properties: message.properties.into_proto(),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests;
