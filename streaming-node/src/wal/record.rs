//! A message as the log holds it: an encoded `common.ImmutableMessage` without its id, which is the entry's.

use bytes::Bytes;
use prost::{Message as _, encoding::encoded_len_varint};
use streaming_proto::common;
use streaming_types::{
    ImmutableMessage, Message, MessageId, MessageType, Properties, TimeTick, message::time_tick_message,
    properties::PropertyError,
};
use woodpecker::EntryId;

use super::{
    allowance::{Hold, Room},
    buffer::Watermark,
    chunk::Piece,
};

/// A message in the log, with what every reader needs to know of it.
#[derive(Debug)]
pub struct Stored {
    pub id: EntryId,
    pub tick: u64,
    pub kind: MessageType,
    /// Memory it holds, about.
    pub bytes: usize,
    pub message: ImmutableMessage,
    /// The message as [`encode`] wrote it, if it did. For readers, who get the same.
    pub record: Bytes,
    /// The room it takes while readers hold it.
    pub hold: Hold,
    /// The room of the message whose payload it shares, if it is a copy of one that took some.
    _room: Option<Room>,
}

/// An entry that is no message. The log's checksums held, so something else than this service wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    #[error("entry {0} is no message")]
    NotAMessage(EntryId),
    #[error("entry {id}: {error}")]
    Property { id: EntryId, error: PropertyError },
    #[error("entry {0} has an id that does not fit the wire")]
    BadId(EntryId),
}

impl Stored {
    /// A message that got its place.
    pub fn new(id: EntryId, message: Message) -> Result<Self, BadRecord> {
        let place = message_id(id).ok_or(BadRecord::BadId(id))?;
        let message = message.into_immutable(place);
        let bad = |error| BadRecord::Property { id, error };
        let tick = message.time_tick().map_err(bad)?.into();
        let kind = message.properties.message_type().map_err(bad)?;
        Ok(Self::of(id, tick, kind, message, Bytes::new()))
    }

    /// A message of a known tick and type that was just written, as `record`.
    pub fn written(place: MessageId, tick: u64, kind: MessageType, message: Message, record: Bytes) -> Self {
        let (segment, entry) = place.to_u64();
        Self::of(EntryId { segment, entry }, tick, kind, message.into_immutable(place), record)
    }

    fn of(id: EntryId, tick: u64, kind: MessageType, message: ImmutableMessage, record: Bytes) -> Self {
        let bytes = message.payload.len() + message.properties.size();
        Self { id, tick, kind, bytes, message, record, hold: Hold::default(), _room: None }
    }

    /// A copy at the place of another, with the room that this one takes.
    pub fn moved(&self, tick: u64, message: ImmutableMessage, room: Option<Room>) -> Self {
        let Self { id, kind, bytes, .. } = *self;
        Self { id, tick, kind, bytes, message, record: Bytes::new(), hold: Hold::default(), _room: room }
    }

    /// A tick that is told in memory only, for a reader that has met everything up to the watermark.
    pub fn memory_tick(watermark: Watermark, node: i64) -> Result<Self, BadRecord> {
        let Watermark { tick, last, confirmed } = watermark;
        let mut message = time_tick_message(TimeTick(tick), node);
        message.properties.set_not_persisted();
        let confirmed = confirmed.unwrap_or(last);
        message.properties.set_last_confirmed(message_id(confirmed).ok_or(BadRecord::BadId(confirmed))?);
        Self::new(last, message)
    }
}

/// The id on the wire of what stands at an entry.
pub fn message_id(entry: EntryId) -> Option<MessageId> {
    MessageId::from_u64(entry.segment, entry.entry)
}

/// Writes where a reader has to start that wants everything from this message on; `None` is the message itself.
pub fn set_confirmed(properties: &mut Properties, confirmed: Option<EntryId>) {
    match confirmed.and_then(message_id) {
        Some(id) => properties.set_last_confirmed(id),
        None => properties.set_last_confirmed_is_self(),
    }
}

/// Encodes a message under a term. Its payload becomes a part of the record, so that the buffer it came in can go.
pub fn encode(message: &mut Message, term: i64) -> Bytes {
    message.properties.set_wal_term(term);
    let record = common::ImmutableMessage {
        payload: std::mem::take(&mut message.payload),
        properties: std::mem::take(&mut message.properties).into_proto(),
        ..common::ImmutableMessage::default()
    };
    let encoded = Bytes::from(record.encode_to_vec());
    let length = record.payload.len();
    // The payload is the first field; its key is one byte.
    let start = 1 + encoded_len_varint(length as u64);
    message.payload = if length == 0 { Bytes::new() } else { encoded.slice(start..start + length) };
    message.properties = record.properties.into();
    encoded
}

/// The tick that closes a group.
pub fn tick(tick: u64, confirmed: Option<EntryId>, node: i64) -> Message {
    let mut message = time_tick_message(TimeTick(tick), node);
    set_confirmed(&mut message.properties, confirmed);
    message
}

/// What an entry holds.
#[derive(Debug)]
pub enum Record {
    Message(Stored),
    Piece(Piece, Bytes),
}

/// Reads an entry.
pub fn decode(id: EntryId, record: Bytes) -> Result<Record, BadRecord> {
    let record = common::ImmutableMessage::decode(record).map_err(|_| BadRecord::NotAMessage(id))?;
    let properties = Properties::from(record.properties);
    match Piece::of(&properties) {
        Some(piece) => Ok(Record::Piece(piece, record.payload)),
        None => Ok(Record::Message(Stored::new(id, Message { payload: record.payload, properties })?)),
    }
}

/// Reads a record that is a whole message.
pub fn decode_message(id: EntryId, record: Bytes) -> Result<Stored, BadRecord> {
    match decode(id, record)? {
        Record::Message(stored) => Ok(stored),
        Record::Piece(..) => Err(BadRecord::NotAMessage(id)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(payload: &[u8]) -> Message {
        let mut message = tick(7 << 18, None, 1);
        message.payload = Bytes::copy_from_slice(payload);
        message.properties.set("user", "value");
        message
    }

    #[test]
    fn records_read_back_and_share_their_payload() {
        for length in [0, 1, 127, 128, 20_000] {
            let payload = vec![7; length];
            let mut sent = message(&payload);
            let record = encode(&mut sent, 36);
            assert_eq!(&sent.payload[..], &payload[..]);
            let id = EntryId { segment: 1, entry: 4 };
            let stored = decode_message(id, record).unwrap();
            assert_eq!((stored.tick, stored.kind), (7 << 18, MessageType::TimeTick));
            assert_eq!(stored.message, sent.into_immutable(MessageId::new(1, 4)));
            assert_eq!(stored.message.properties.get("_wt"), Some("10"));
        }
    }

    #[test]
    fn readers_are_written_the_record_itself() {
        for length in [0, 1, 20_000] {
            let mut sent = message(&vec![7; length]);
            let record = encode(&mut sent, 36);
            let plain = common::ImmutableMessage::from(sent.into_immutable(MessageId::new(1, 4)));
            let with = common::ImmutableMessage { encoded: record, ..plain.clone() };
            assert_eq!(with.encoded_len(), plain.encoded_len());
            assert_eq!(with.encode_to_vec(), plain.encode_to_vec());
        }
    }

    #[test]
    fn memory_ticks_carry_the_last_id_as_theirs_and_where_to_resume() {
        let last = EntryId { segment: 2, entry: 3 };
        let stored = Stored::memory_tick(Watermark { tick: 9, last, confirmed: None }, 1).unwrap();
        assert_eq!(stored.message.id, MessageId::new(2, 3));
        assert_eq!(stored.message.last_confirmed(), Ok(MessageId::new(2, 3)));
        assert!(stored.message.properties.is_not_persisted());
        let confirmed = Some(EntryId { segment: 1, entry: 7 });
        let stored = Stored::memory_tick(Watermark { tick: 9, last, confirmed }, 1).unwrap();
        assert_eq!(stored.message.last_confirmed(), Ok(MessageId::new(1, 7)));
    }

    proptest! {
        #[test]
        fn any_entry_is_read_or_refused(bytes: Vec<u8>) {
            let _ = decode(EntryId { segment: 1, entry: 0 }, Bytes::from(bytes));
        }
    }
}
