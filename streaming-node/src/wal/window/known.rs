//! The keys that have an outcome, oldest first, and a way to find one.
//!
//! Of the others nothing is looked at but a hash: there are hundreds of thousands, and the oldest is in no cache any more
//! when it goes.

use std::{collections::VecDeque, hash::BuildHasher};

use hashbrown::{DefaultHashBuilder, Equivalent, HashTable};

use super::{Done, Kept, Key};

#[derive(Debug, Default)]
pub(super) struct Known {
    hasher: DefaultHashBuilder,
    order: VecDeque<Entry>,
    /// The number of the oldest; each one after it has the next.
    oldest: u64,
    places: HashTable<Place>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    key: Kept,
    hash: u64,
    done: Done,
}

#[derive(Debug)]
struct Place {
    hash: u64,
    number: u64,
}

impl Known {
    pub(super) fn get(&self, key: Key<'_>) -> Option<&Done> {
        let hash = self.hasher.hash_one(key);
        let is_its =
            |place: &Place| place.hash == hash && self.at(place.number).is_some_and(|entry| key.equivalent(&entry.key));
        let place = self.places.find(hash, is_its)?;
        self.at(place.number).map(|entry| &entry.done)
    }

    /// Adds a key that is not there.
    pub(super) fn push(&mut self, key: Kept, done: Done) {
        let hash = self.hasher.hash_one(&key);
        let number = self.oldest + self.order.len() as u64;
        self.bytes += done.cost(&key.text);
        self.order.push_back(Entry { key, hash, done });
        self.places.insert_unique(hash, Place { hash, number }, |place| place.hash);
    }

    /// Lets the oldest go until the rest takes no more than `limit` bytes.
    pub(super) fn evict(&mut self, limit: usize) {
        while self.bytes > limit
            && let Some(Entry { key, hash, done }) = self.order.pop_front()
        {
            self.bytes -= done.cost(&key.text);
            if let Ok(place) = self.places.find_entry(hash, |place| place.number == self.oldest) {
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

    fn at(&self, number: u64) -> Option<&Entry> {
        self.order.get(usize::try_from(number.checked_sub(self.oldest)?).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use streaming_types::MessageId;

    use super::*;
    use crate::wal::group::Placed;

    fn done(tick: u64) -> Done {
        let id = MessageId::new(1, tick.cast_signed());
        Done { placed: Placed { id, tick, last_confirmed: id, txn: None }, flushed: None }
    }

    proptest! {
        #[test]
        fn keys_are_found_as_long_as_they_fit(
            keys in prop::collection::vec((0..40_u64, prop::option::of(0..2_i64)), 1..200),
            fit in 1..30_usize,
        ) {
            let (mut known, mut model) = (Known::default(), VecDeque::<(String, Option<i64>, u64)>::new());
            let limit = fit * done(0).cost("00");
            for (tick, (number, txn)) in (0_u64..).zip(keys) {
                let text = format!("{number:02}");
                let key = Key { text: &text, txn };
                let expected = model.iter().find(|(kept, of, _)| *kept == text && *of == txn);
                prop_assert_eq!(known.get(key).map(|done| done.placed.tick), expected.map(|(_, _, tick)| *tick));
                if expected.is_none() {
                    known.push(Kept::from(&key), done(tick));
                    known.evict(limit);
                    model.push_back((text, txn, tick));
                    if model.len() > fit {
                        model.pop_front();
                    }
                }
                prop_assert_eq!(known.len(), model.len());
            }
        }
    }
}
