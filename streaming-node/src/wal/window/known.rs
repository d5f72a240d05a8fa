//! The keys that have an outcome, oldest first, and a way to find one.
//!
//! There are hundreds of thousands, and the oldest is in no cache any more when it goes: so each is one line of it.

use std::collections::VecDeque;

use hashbrown::HashTable;
use streaming_types::{MessageId, TxnContext};

use super::{Done, ENTRY_COST, Key};
use crate::wal::group::Placed;

#[derive(Debug, Default)]
pub(super) struct Known {
    order: VecDeque<Entry>,
    /// The number of the oldest; each one after it has the next.
    oldest: u64,
    /// The numbers, found by their keys.
    places: HashTable<u64>,
    bytes: usize,
}

/// A key with its outcome.
#[derive(Debug)]
pub(super) struct Entry {
    key: Key,
    id: MessageId,
    last_confirmed: MessageId,
    tick: u64,
    /// What few have.
    more: Option<Box<More>>,
}

const _: () = assert!(size_of::<Entry>() == 64);

#[derive(Debug)]
struct More {
    txn: Option<TxnContext>,
    flushed: Option<Vec<i64>>,
}

impl Key {
    /// Half of a hash is one too.
    fn hash(self) -> u64 {
        let Self([hash, _]) = self;
        hash
    }
}

impl Entry {
    pub(super) fn new(key: Key, Done { placed, flushed }: Done) -> Self {
        let Placed { id, tick, last_confirmed, txn } = placed;
        let more = (txn.is_some() || flushed.is_some()).then(|| Box::new(More { txn, flushed }));
        Self { key, id, last_confirmed, tick, more }
    }

    pub(super) fn done(&self) -> Done {
        let Self { id, last_confirmed, tick, .. } = *self;
        let (txn, flushed) = self.more.as_ref().map_or((None, None), |more| (more.txn, more.flushed.clone()));
        Done { placed: Placed { id, tick, last_confirmed, txn }, flushed }
    }

    pub(super) fn key(&self) -> Key {
        self.key
    }

    pub(super) fn tick(&self) -> u64 {
        self.tick
    }

    /// Bytes that count.
    pub(super) fn cost(&self) -> usize {
        let flushed = self.more.as_ref().and_then(|more| more.flushed.as_ref());
        ENTRY_COST + flushed.map_or(0, |segments| size_of::<i64>() * segments.len())
    }
}

impl Known {
    pub(super) fn get(&self, key: Key) -> Option<Done> {
        self.find(key).map(Entry::done)
    }

    pub(super) fn has(&self, key: Key) -> bool {
        self.find(key).is_some()
    }

    fn find(&self, key: Key) -> Option<&Entry> {
        let is_its = |number: &u64| at(&self.order, self.oldest, *number).is_some_and(|entry| entry.key == key);
        at(&self.order, self.oldest, *self.places.find(key.hash(), is_its)?)
    }

    /// Adds a key that is not there.
    pub(super) fn push(&mut self, entry: Entry) {
        let Self { order, oldest, places, bytes } = self;
        let (hash, number) = (entry.key.hash(), *oldest + order.len() as u64);
        *bytes += entry.cost();
        order.push_back(entry);
        places.insert_unique(hash, number, |number| at(order, *oldest, *number).map_or(0, |entry| entry.key.hash()));
    }

    /// Lets the oldest go until the rest takes no more than `limit` bytes.
    pub(super) fn evict(&mut self, limit: usize) {
        while self.bytes > limit
            && let Some(entry) = self.order.pop_front()
        {
            self.bytes -= entry.cost();
            if let Ok(place) = self.places.find_entry(entry.key.hash(), |number| *number == self.oldest) {
                place.remove();
            }
            self.oldest += 1;
        }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.order.len(), self.places.len(), "each has its place");
        self.order.len()
    }
}

/// The entry of a number.
fn at(order: &VecDeque<Entry>, oldest: u64, number: u64) -> Option<&Entry> {
    order.get(usize::try_from(number.checked_sub(oldest)?).ok()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn done(tick: u64, txn: Option<i64>) -> Done {
        let (id, txn) =
            (MessageId::new(1, tick.cast_signed()), txn.map(|txn_id| TxnContext { txn_id, keepalive_ms: 1 }));
        Done { placed: Placed { id, tick, last_confirmed: id, txn }, flushed: None }
    }

    proptest! {
        #[test]
        fn keys_are_found_as_long_as_they_fit(
            keys in prop::collection::vec(((0..20_u64, 0..2_u64), prop::option::of(0..2_i64)), 1..200),
            fit in 1..30_usize,
        ) {
            let (mut known, mut model) = (Known::default(), VecDeque::<(Key, Done)>::new());
            for (tick, ((half, other), txn)) in (0_u64..).zip(keys) {
                // Many have the half that they are found by in common.
                let key = Key([half, other]);
                let expected = model.iter().find(|(kept, _)| *kept == key).map(|(_, done)| done.clone());
                prop_assert_eq!(known.has(key), expected.is_some());
                prop_assert_eq!(known.get(key), expected.clone());
                if expected.is_none() {
                    known.push(Entry::new(key, done(tick, txn)));
                    known.evict(fit * ENTRY_COST);
                    model.push_back((key, done(tick, txn)));
                    if model.len() > fit {
                        model.pop_front();
                    }
                }
                prop_assert_eq!(known.len(), model.len());
            }
        }
    }
}
