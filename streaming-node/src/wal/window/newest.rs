//! The newest keys of a log that is replayed. Most keys of a long log are pushed out again by later ones, so they are kept
//! in order only, and what is left at the end becomes the windows. Pure.

use std::collections::{BTreeMap, VecDeque};

use streaming_proto::messages::ManualFlushMessageHeader;
use streaming_types::MessageType;

use super::{Done, Keys, MAX_VCHANNELS, Windows, known::Entry, share};
use crate::{
    recovery::seen::Seen,
    wal::{group::Placed, record::message_id},
};

/// See the module.
#[derive(Debug)]
pub struct NewestKeys {
    keys: Keys,
    by_vchannel: BTreeMap<Box<str>, Newest>,
    /// Bytes of one vchannel at most.
    limit: usize,
}

/// Those of one vchannel, oldest first.
#[derive(Debug, Default)]
struct Newest {
    order: VecDeque<Entry>,
    bytes: usize,
}

impl NewestKeys {
    /// Keeps up to `limit` bytes of a vchannel.
    pub fn new(limit: usize, seed: u128) -> Self {
        Self { keys: Keys::seeded(seed), by_vchannel: BTreeMap::new(), limit }
    }

    /// Takes the next message of the log.
    pub fn observe(&mut self, seen: &Seen<'_>) {
        let Some(key) = seen.key() else { return };
        let (Some(id), Some(last_confirmed)) = (message_id(seen.id), message_id(seen.last_confirmed())) else { return };
        let txn = seen.txn();
        let placed = Placed { id, tick: seen.tick, last_confirmed, txn };
        let key = self.keys.key(key, seen.kind, txn.map(|txn| txn.txn_id));
        let flushed = (seen.kind == MessageType::ManualFlush)
            .then(|| seen.header().map(|header: ManualFlushMessageHeader| header.segment_ids).unwrap_or_default());
        self.push(seen.vchannel().unwrap_or_default(), Entry::new(key, Done { placed, flushed }));
    }

    fn push(&mut self, vchannel: &str, entry: Entry) {
        let share = share(self.limit, self.by_vchannel.len());
        match self.by_vchannel.get_mut(vchannel) {
            Some(newest) => newest.push(entry, share),
            None => {
                self.make_room();
                self.by_vchannel.entry(vchannel.into()).or_default().push(entry, share);
            }
        }
    }

    /// One more vchannel makes the shares of the others smaller.
    fn make_room(&mut self) {
        if self.by_vchannel.len() >= MAX_VCHANNELS {
            let oldest = self.by_vchannel.iter().min_by_key(|(_, newest)| newest.tick());
            let oldest = oldest.map(|(vchannel, _)| vchannel.clone());
            oldest.and_then(|vchannel| self.by_vchannel.remove(&vchannel));
        }
        let share = share(self.limit, self.by_vchannel.len());
        self.by_vchannel.values_mut().for_each(|newest| newest.evict(share));
    }

    /// All that is left, as appends look it up.
    pub fn into_windows(self) -> Windows {
        let mut windows = Windows::with(self.keys, self.limit);
        for (vchannel, newest) in self.by_vchannel {
            for entry in newest.order {
                windows.done(&vchannel, entry.key(), entry.done());
            }
        }
        windows
    }
}

impl Newest {
    fn tick(&self) -> u64 {
        self.order.back().map_or(0, Entry::tick)
    }

    fn push(&mut self, entry: Entry, limit: usize) {
        self.bytes += entry.cost();
        self.order.push_back(entry);
        self.evict(limit);
    }

    fn evict(&mut self, limit: usize) {
        while self.bytes > limit
            && let Some(entry) = self.order.pop_front()
        {
            self.bytes -= entry.cost();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use streaming_types::MessageId;

    use super::*;
    use crate::wal::window::{Claim, ENTRY_COST, Key, TOTAL};

    fn key(text: &str) -> Key {
        Keys::seeded(1).key(text, MessageType::Insert, None)
    }

    fn placed(tick: u64) -> Done {
        let id = MessageId::new(1, tick.cast_signed());
        Done { placed: Placed { id, tick, last_confirmed: id, txn: None }, flushed: None }
    }

    proptest! {
        #[test]
        fn windows_are_as_if_each_key_had_been_looked_up(
            keys in proptest::collection::vec((0..4_u8, 0..60_u16), 1..300),
            limit in 0..4_000_usize,
        ) {
            let (mut newest, mut windows) = (NewestKeys::new(limit, 1), Windows::new(limit, 1));
            let mut known = BTreeSet::new();
            // Keys that come again are told from new ones before they get into the log.
            let fresh = keys.iter().filter(|pair| known.insert(**pair));
            for (tick, (vchannel, key)) in (1_u64..).zip(fresh) {
                let (vchannel, key) = (vchannel.to_string(), key.to_string());
                newest.push(&vchannel, Entry::new(self::key(&key), placed(tick)));
                windows.done(&vchannel, self::key(&key), placed(tick));
            }
            let mut built = newest.into_windows();
            let asked: BTreeSet<_> = keys.into_iter().collect();
            for (vchannel, key) in asked {
                let (vchannel, key) = (vchannel.to_string(), key.to_string());
                let known = windows.claim(&vchannel, self::key(&key), None);
                prop_assert_eq!(built.claim(&vchannel, self::key(&key), None), known);
            }
        }
    }

    #[test]
    fn a_key_that_stands_in_the_log_twice_has_its_first_place() {
        let mut newest = NewestKeys::new(1 << 20, 1);
        newest.push("v", Entry::new(key("key"), placed(1)));
        newest.push("v", Entry::new(key("key"), placed(2)));
        assert_eq!(newest.into_windows().claim("v", key("key"), None), Claim::Done(placed(1)));
    }

    #[test]
    fn vchannels_share_what_is_kept() {
        let mut newest = NewestKeys::new(100 * ENTRY_COST, 1);
        for vchannel in 0..5000 {
            for n in 0..3 {
                newest.push(&vchannel.to_string(), Entry::new(key(&n.to_string()), placed(vchannel * 10 + n)));
            }
        }
        let total: usize = newest.by_vchannel.values().map(|newest| newest.bytes).sum();
        let most = TOTAL * 100 * ENTRY_COST;
        assert!(newest.by_vchannel.len() <= MAX_VCHANNELS && total <= most, "{total} of {most}");
    }
}
