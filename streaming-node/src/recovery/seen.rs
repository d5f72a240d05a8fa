//! A message as recovery looks at it: borrowed, so that replaying a log allocates nothing per message.

use prost::encoding::decode_varint;
use streaming_proto::messages::AlterReplicateConfigMessageHeader;
use streaming_types::{
    MessageId, MessageType, Properties, TimeTick, TxnContext,
    channel::is_control_channel,
    message::Header,
    properties::{PropertyError, PropertyFault, key},
};
use woodpecker::EntryId;

use crate::{
    replication::{Fact, Replication},
    wal::{BadRecord, Stored},
};

/// See the module. Texts that are absent are empty.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    pub id: EntryId,
    pub tick: u64,
    pub kind: MessageType,
    pub payload: &'a [u8],
    /// Of the whole message, about.
    pub bytes: usize,
    texts: Texts<'a>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Texts<'a> {
    kind: &'a str,
    tick: &'a str,
    vchannel: &'a str,
    header: &'a str,
    broadcast: bool,
    last_confirmed: Option<&'a str>,
    replicate: Option<&'a str>,
    txn: Option<&'a str>,
    key: Option<&'a str>,
}

impl<'a> Texts<'a> {
    fn note(&mut self, name: &[u8], value: &'a str) {
        match std::str::from_utf8(name) {
            Ok(key::TYPE) => self.kind = value,
            Ok(key::TIME_TICK) => self.tick = value,
            Ok(key::VCHANNEL) => self.vchannel = value,
            Ok(key::HEADER) => self.header = value,
            Ok(key::BROADCAST) => self.broadcast = true,
            Ok(key::LAST_CONFIRMED) => self.last_confirmed = Some(value),
            Ok(key::REPLICATE) => self.replicate = Some(value),
            Ok(key::TXN) => self.txn = Some(value),
            Ok(key::IDEMPOTENCY) => self.key = Some(value),
            _ => {}
        }
    }
}

impl<'a> Seen<'a> {
    /// Reads an entry of the log.
    ///
    /// # Errors
    /// It is no message.
    pub fn read(id: EntryId, record: &'a [u8]) -> Result<Self, BadRecord> {
        let not = || BadRecord::NotAMessage(id);
        let (mut texts, mut payload) = (Texts::default(), &record[..0]);
        let mut rest = record;
        while !rest.is_empty() {
            let (tag, field) = length_delimited(&mut rest).ok_or_else(not)?;
            match tag {
                PAYLOAD => payload = field,
                PROPERTIES => {
                    let (mut name, mut value): (&[u8], &[u8]) = (&[], &[]);
                    let mut entry = field;
                    while !entry.is_empty() {
                        match length_delimited(&mut entry).ok_or_else(not)? {
                            (MAP_KEY, text) => name = text,
                            (MAP_VALUE, text) => value = text,
                            _ => {}
                        }
                    }
                    texts.note(name, std::str::from_utf8(value).map_err(|_| not())?);
                }
                _ => {}
            }
        }
        let bad = |error| BadRecord::Property { id, error };
        let kind = texts.kind.parse().ok().and_then(MessageType::from_number);
        let kind = kind.ok_or_else(|| bad(error(key::TYPE, PropertyFault::UnknownType)))?;
        let tick =
            TimeTick::from_base36(texts.tick).ok_or_else(|| bad(error(key::TIME_TICK, PropertyFault::NotBase36)))?;
        Ok(Self { id, tick: tick.into(), kind, payload, bytes: record.len(), texts })
    }

    /// A message that is in memory already.
    pub fn of(stored: &'a Stored) -> Self {
        let mut texts = Texts::default();
        for (name, value) in stored.message.properties.iter() {
            texts.note(name.as_bytes(), value);
        }
        let Stored { id, tick, kind, bytes, .. } = *stored;
        Self { id, tick, kind, payload: &stored.message.payload, bytes, texts }
    }

    /// The vchannel, unless the message concerns the whole WAL.
    pub fn vchannel(&self) -> Option<&'a str> {
        Some(self.texts.vchannel).filter(|name| !name.is_empty())
    }

    /// Whether it is on the control channel, where messages tell of no collection that lives here.
    pub fn is_control(&self) -> bool {
        is_control_channel(self.texts.vchannel)
    }

    /// Whether it is a copy of a broadcast.
    pub fn is_broadcast(&self) -> bool {
        self.texts.broadcast
    }

    /// Whether it came from another cluster.
    pub fn is_replicated(&self) -> bool {
        self.texts.replicate.is_some()
    }

    /// Whether it is a part of a transaction.
    pub fn is_of_txn(&self) -> bool {
        self.texts.txn.is_some()
    }

    /// The transaction it is a part of; `None` also if that cannot be read.
    pub fn txn(&self) -> Option<TxnContext> {
        let mut properties = Properties::default();
        properties.set(key::TXN, self.texts.txn?);
        properties.txn().ok().flatten()
    }

    /// The idempotency key that counts here. What another cluster wrote was appended once there.
    pub fn key(&self) -> Option<&'a str> {
        self.texts.key.filter(|_| self.texts.replicate.is_none())
    }

    /// From where on one must read to meet it and everything after it.
    pub fn last_confirmed(&self) -> EntryId {
        let id = self.texts.last_confirmed.and_then(|text| MessageId::decode(text).ok());
        let id = id.map(MessageId::to_u64).map(|(segment, entry)| EntryId { segment, entry });
        // Nothing is confirmed by what comes after it.
        id.map_or(self.id, |id| id.min(self.id))
    }

    /// Tells `replication` of the message, if it has to do with it. `known` is as there.
    pub fn apply_to(&self, replication: &mut Replication, known: bool) {
        if self.texts.replicate.is_none() && self.kind != MessageType::AlterReplicateConfig {
            return;
        }
        let mut properties = Properties::default();
        for (key, text) in [(key::REPLICATE, self.texts.replicate), (key::TXN, self.texts.txn)] {
            if let Some(text) = text {
                properties.set(key, text);
            }
        }
        let header = properties.replicate().ok().flatten();
        let txn_id = properties.txn().ok().flatten().map(|txn| txn.txn_id);
        let config = self.header().and_then(|header: AlterReplicateConfigMessageHeader| header.replicate_configuration);
        // It was judged when it was appended.
        let fact = Fact { kind: self.kind, header: header.as_ref(), txn_id, config, by_force: false };
        replication.apply(&fact, known);
    }

    /// The header; `None` if it is another's or cannot be read.
    pub fn header<H: Header>(&self) -> Option<H> {
        if self.kind != H::TYPE {
            return None;
        }
        let mut properties = Properties::default();
        properties.set(key::HEADER, self.texts.header);
        H::decode(&*properties.header_bytes().ok()?).ok()
    }
}

// Field numbers of common.ImmutableMessage and of a map's entries.
const PAYLOAD: u32 = 2;
const PROPERTIES: u32 = 3;
const MAP_KEY: u32 = 1;
const MAP_VALUE: u32 = 2;

fn error(key: &'static str, fault: PropertyFault) -> PropertyError {
    PropertyError { key, fault }
}

/// The next field, which must be a length-delimited one: records hold no others.
fn length_delimited<'a>(rest: &mut &'a [u8]) -> Option<(u32, &'a [u8])> {
    let tag = varint(rest)?;
    let length = usize::try_from(varint(rest)?).ok()?;
    if tag & 7 != 2 || length > rest.len() {
        return None;
    }
    let (field, after) = rest.split_at(length);
    *rest = after;
    Some((u32::try_from(tag >> 3).ok()?, field))
}

/// Almost all tags and lengths of a record are one byte.
#[inline]
fn varint(rest: &mut &[u8]) -> Option<u64> {
    match rest {
        [byte, after @ ..] if *byte < 0x80 => {
            *rest = after;
            Some(u64::from(*byte))
        }
        _ => decode_varint(rest).ok(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use streaming_proto::messages::{BroadcastHeader, CreatePartitionMessageHeader};
    use streaming_types::MessageBuilder;

    use super::*;
    use crate::wal::record;

    const AT: EntryId = EntryId { segment: 3, entry: 9 };

    #[test]
    fn entry_and_memory_look_the_same() {
        let header = CreatePartitionMessageHeader { collection_id: 7, partition_id: 8 };
        let mut message = MessageBuilder::new(&header).vchannel("p_7v0").payload("payload").build().unwrap();
        message.properties.set_time_tick(TimeTick(77));
        message.properties.set_broadcast(&BroadcastHeader::default());
        message.properties.set_last_confirmed(MessageId::new(2, 4));
        message.properties.set_txn(TxnContext::new(9, 1000));
        message.properties.set_idempotency_key("key");
        let record = record::encode(&mut message, 4);
        let stored = record::decode_message(AT, record.clone()).unwrap();
        for seen in [Seen::read(AT, &record).unwrap(), Seen::of(&stored)] {
            assert_eq!((seen.id, seen.tick, seen.kind), (AT, 77, MessageType::CreatePartition));
            assert_eq!(seen.payload, &b"payload"[..]);
            assert_eq!((seen.vchannel(), seen.is_broadcast()), (Some("p_7v0"), true));
            assert_eq!(seen.last_confirmed(), EntryId { segment: 2, entry: 4 });
            assert_eq!((seen.txn(), seen.key()), (Some(TxnContext::new(9, 1000)), Some("key")));
            assert_eq!(seen.header::<CreatePartitionMessageHeader>(), Some(header));
        }
    }

    #[test]
    fn tick_confirms_itself() {
        let mut tick = record::tick(5, None, 1);
        let record = record::encode(&mut tick, 1);
        let seen = Seen::read(AT, &record).unwrap();
        assert_eq!((seen.last_confirmed(), seen.vchannel()), (AT, None));
        assert!(!seen.is_of_txn() && seen.key().is_none());
    }

    proptest! {
        #[test]
        fn any_entry_is_read_or_refused_as_the_full_decoder_does(bytes: Vec<u8>) {
            let full = record::decode_message(AT, Bytes::copy_from_slice(&bytes));
            let seen = Seen::read(AT, &bytes).map(|seen| (seen.tick, seen.kind));
            if let Ok(full) = full {
                prop_assert_eq!(seen, Ok((full.tick, full.kind)));
            }
        }
    }
}
