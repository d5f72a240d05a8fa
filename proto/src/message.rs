//! The two messages that are read and written for every append, by hand: what prost would generate keeps properties in a
//! map of strings, at two allocations each.

use prost::{
    DecodeError,
    bytes::{Buf, BufMut, Bytes},
    encoding::{DecodeContext, WireType, bytes, message, skip_field},
};

use crate::{Properties, common::MessageId};

/// A message before it has an id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    pub payload: Bytes,
    pub properties: Properties,
}

/// A message that stands in a log.
#[derive(Clone, Debug, Default)]
pub struct ImmutableMessage {
    pub id: Option<MessageId>,
    pub payload: Bytes,
    pub properties: Properties,
    /// Payload and properties as they are encoded, for a message that is written many times. Empty where nobody has them at
    /// hand.
    pub encoded: Bytes,
}

impl PartialEq for ImmutableMessage {
    fn eq(&self, other: &Self) -> bool {
        (&self.id, &self.payload, &self.properties) == (&other.id, &other.payload, &other.properties)
    }
}

/// `bytes payload = 1; map<string, string> properties = 2;`
impl prost::Message for Message {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        encode_payload(1, &self.payload, buffer);
        self.properties.encode(2, buffer);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 => bytes::merge(wire_type, &mut self.payload, buffer, context),
            2 => self.properties.merge(wire_type, buffer, context),
            _ => skip_field(wire_type, tag, buffer, context),
        }
    }

    fn encoded_len(&self) -> usize {
        payload_len(1, &self.payload) + self.properties.encoded_len(2)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// `MessageID id = 1; bytes payload = 2; map<string, string> properties = 3;`
impl prost::Message for ImmutableMessage {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        if let Some(id) = &self.id {
            message::encode(1, id, buffer);
        }
        if !self.encoded.is_empty() {
            return buffer.put_slice(&self.encoded);
        }
        encode_payload(2, &self.payload, buffer);
        self.properties.encode(3, buffer);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 => message::merge(wire_type, self.id.get_or_insert_default(), buffer, context),
            2 => bytes::merge(wire_type, &mut self.payload, buffer, context),
            3 => self.properties.merge(wire_type, buffer, context),
            _ => skip_field(wire_type, tag, buffer, context),
        }
    }

    fn encoded_len(&self) -> usize {
        let id = self.id.as_ref().map_or(0, |id| message::encoded_len(1, id));
        if !self.encoded.is_empty() {
            return id + self.encoded.len();
        }
        id + payload_len(2, &self.payload) + self.properties.encoded_len(3)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

fn encode_payload(tag: u32, payload: &Bytes, buffer: &mut impl BufMut) {
    if !payload.is_empty() {
        bytes::encode(tag, payload, buffer);
    }
}

fn payload_len(tag: u32, payload: &Bytes) -> usize {
    if payload.is_empty() { 0 } else { bytes::encoded_len(tag, payload) }
}
