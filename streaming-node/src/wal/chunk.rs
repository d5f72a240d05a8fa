//! Messages too large for one log entry: split into pieces below everything that knows messages, and joined again before
//! anyone sees them.
//!
//! The pieces of a message follow each other in the log without a gap, and the message has the id of the first: who starts
//! there meets all of them, and who starts behind it skips the rest. A term that ends in the middle of a message leaves
//! pieces without an end, which every reader drops at the next whole message, the tick that begins the next term at the
//! latest; that message was never acked.

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use streaming_proto::common;
use streaming_types::{Properties, properties::key};
use woodpecker::EntryId;

use super::record::{BadRecord, Record, Stored, decode, decode_message};

/// The place of an entry among the pieces of its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub index: u32,
    pub total: u32,
}

impl Piece {
    /// Reads the mark of a piece; `None` for an entry that is a whole message.
    pub fn of(properties: &Properties) -> Option<Self> {
        let number = |key| properties.get(key).map(str::parse);
        number(key::CHUNK_INDEX).map(|index| match (index, number(key::CHUNK_TOTAL)) {
            (Ok(index), Some(Ok(total))) if index < total => Self { index, total },
            // It fits nowhere.
            _ => Self { index: u32::MAX, total: 0 },
        })
    }
}

/// The entries that a record is written as: itself, unless it is too large.
pub fn split(record: Bytes, entry_bytes: usize) -> Vec<Bytes> {
    if record.len() <= entry_bytes {
        return vec![record];
    }
    let total = record.len().div_ceil(entry_bytes);
    let piece = |index: usize| {
        let (start, end) = (index * entry_bytes, ((index + 1) * entry_bytes).min(record.len()));
        let marks = [(key::CHUNK_INDEX, index.to_string()), (key::CHUNK_TOTAL, total.to_string())];
        let properties = Properties::from_iter(marks).into_proto();
        let entry = common::ImmutableMessage { payload: record.slice(start..end), properties, ..Default::default() };
        Bytes::from(entry.encode_to_vec())
    };
    (0..total).map(piece).collect()
}

/// Turns entries into messages.
#[derive(Debug, Default)]
pub struct Joiner {
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    first: EntryId,
    next: Piece,
    record: BytesMut,
}

impl Joiner {
    /// Takes the next entry of the log; `None` for a piece that is not the last one of its message.
    pub fn accept(&mut self, id: EntryId, entry: Bytes) -> Result<Option<Stored>, BadRecord> {
        match decode(id, entry)? {
            Record::Message(stored) => {
                self.end();
                Ok(Some(stored))
            }
            Record::Piece(piece, payload) => match self.add(id, piece, &payload) {
                Some((first, record)) => decode_message(first, record).map(Some),
                None => Ok(None),
            },
        }
    }

    /// The record that an entry completes, and the id of its message. What is no piece is taken for a record.
    pub fn record(&mut self, id: EntryId, entry: Bytes) -> Option<(EntryId, Bytes)> {
        match decode(id, entry.clone()) {
            Ok(Record::Piece(piece, payload)) => self.add(id, piece, &payload),
            _ => {
                self.end();
                Some((id, entry))
            }
        }
    }

    /// A whole message is there. It stands between no two pieces, so what is held is never completed.
    pub fn end(&mut self) {
        self.open = None;
    }

    fn add(&mut self, id: EntryId, piece: Piece, payload: &[u8]) -> Option<(EntryId, Bytes)> {
        if piece.index == 0 {
            // What is left of another one was never completed.
            self.open = Some(Open { first: id, next: piece, record: BytesMut::new() });
        }
        let Some(mut open) = self.open.take().filter(|open| open.next == piece) else {
            tracing::debug!(%id, ?piece, "skipped a piece whose beginning is not there");
            return None;
        };
        open.record.extend_from_slice(payload);
        open.next.index += 1;
        if open.next.index == piece.total {
            return Some((open.first, open.record.freeze()));
        }
        self.open = Some(open);
        None
    }

    /// Whether pieces are held whose message may still be completed.
    pub fn is_amid(&self) -> bool {
        self.open.is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wal::record;

    fn id(entry: u64) -> EntryId {
        EntryId { segment: 1, entry }
    }

    fn message(tick: u64, length: usize) -> Bytes {
        let mut message = record::tick(tick, None, 1);
        message.payload = (0..length).map(|n| u8::try_from(n % 251).unwrap()).collect::<Vec<_>>().into();
        record::encode(&mut message, 1)
    }

    /// Ticks and first ids of the messages that come out.
    fn join(entries: impl IntoIterator<Item = (u64, Bytes)>) -> Vec<(u64, u64)> {
        let mut joiner = Joiner::default();
        let out = entries.into_iter().filter_map(|(at, entry)| joiner.accept(id(at), entry).unwrap());
        out.map(|stored| (stored.tick, stored.id.entry)).collect()
    }

    type Take = fn(&mut Joiner, EntryId, Bytes);

    #[test]
    fn pieces_of_a_term_that_ended_are_dropped() {
        let torn = split(message(7, 100), 30);
        let entries = torn[..torn.len() - 1].iter().cloned().chain([message(8, 3)]).chain(split(message(9, 90), 30));
        let from_second = (0..).zip(entries.clone()).skip(1);
        assert_eq!(join((0..).zip(entries)), [(8, 5), (9, 6)]);
        assert_eq!(join(from_second), [(8, 5), (9, 6)], "a reader that starts amid the pieces");
        let accept: Take = |joiner, id, entry| drop(joiner.accept(id, entry));
        let record: Take = |joiner, id, entry| drop(joiner.record(id, entry));
        for take in [accept, record] {
            let mut joiner = Joiner::default();
            take(&mut joiner, id(0), torn[0].clone());
            assert!(joiner.is_amid());
            take(&mut joiner, id(1), message(8, 3));
            assert!(!joiner.is_amid(), "nothing is held of what cannot be completed");
        }
    }

    #[test]
    fn marks_that_make_no_sense_are_no_message() {
        let mark = |index: &str, total: &str| {
            let marks = [(key::CHUNK_INDEX, index), (key::CHUNK_TOTAL, total)];
            let properties = Properties::from_iter(marks).into_proto();
            Bytes::from(common::ImmutableMessage { properties, ..Default::default() }.encode_to_vec())
        };
        for (index, total) in [("x", "2"), ("1", "2"), ("5", "2"), ("0", "0"), ("0", "x"), ("0", "")] {
            let mut joiner = Joiner::default();
            assert!(joiner.accept(id(0), mark(index, total)).unwrap().is_none() && !joiner.is_amid());
        }
        assert!(Joiner::default().accept(id(0), mark("0", "1")).is_err(), "an empty record");
    }

    proptest! {
        #[test]
        fn messages_come_back_whatever_their_size(sizes in prop::collection::vec(0..500_usize, 1..12), chunk in 20..200_usize) {
            let mut at = 0;
            let (mut entries, mut expected) = (Vec::new(), Vec::new());
            for (tick, size) in (1..).zip(sizes) {
                let record = message(tick, size);
                expected.push((tick, at));
                for piece in split(record, chunk) {
                    entries.push((at, piece));
                    at += 1;
                }
            }
            prop_assert_eq!(join(entries), expected);
        }
    }
}
