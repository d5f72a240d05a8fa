//! The end of a log that its next owner reads for idempotency keys: so many bytes, whoever else is done with them. Pure.

use std::collections::VecDeque;

use woodpecker::EntryId;

/// Places that are kept in mind: the span is longer than asked for by at most one part in so many.
const PLACES: u64 = 64;

/// See the module.
#[derive(Debug)]
pub struct KeySpan {
    length: u64,
    /// Messages of the span, oldest first, and how many bytes were before each.
    places: VecDeque<(EntryId, u64)>,
    bytes: u64,
}

impl KeySpan {
    /// A span of so many bytes, of a log of which nothing was read yet.
    pub fn new(length: u64) -> Self {
        Self { length, places: VecDeque::new(), bytes: 0 }
    }

    /// Takes the next message of the log.
    pub fn add(&mut self, id: EntryId, bytes: usize) {
        let step = (self.length / PLACES).max(1);
        if self.places.back().is_none_or(|(_, before)| self.bytes - before >= step) {
            self.places.push_back((id, self.bytes));
        }
        self.bytes += bytes as u64;
        while self.places.get(1).is_some_and(|(_, before)| self.bytes - before >= self.length) {
            self.places.pop_front();
        }
    }

    /// The first message of the span; `None` as long as there is no message.
    pub fn start(&self) -> Option<EntryId> {
        self.places.front().map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn span_is_as_long_as_asked_for_and_little_longer(
            length in 1..10_000_u64,
            sizes in proptest::collection::vec(0..300_usize, 1..500),
        ) {
            let mut span = KeySpan::new(length);
            prop_assert_eq!(span.start(), None);
            for (entry, size) in (0_u64..).zip(&sizes) {
                span.add(EntryId { segment: 1, entry }, *size);
            }
            let start = usize::try_from(span.start().unwrap().entry).unwrap();
            let held: usize = sizes[start..].iter().sum();
            prop_assert!(start == 0 || held as u64 >= length, "{held} of {length}");
            prop_assert!(held as u64 <= length + length / PLACES + 301, "{held} of {length}");
            prop_assert!(span.places.len() as u64 <= 2 * PLACES + 2, "{}", span.places.len());
        }
    }
}
