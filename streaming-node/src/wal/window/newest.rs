//! The newest keys of a log that is replayed. Most keys of a long log are pushed out again by later ones, so they are kept
//! in order only, and what is left at the end becomes the windows. Pure.

use std::collections::{BTreeMap, VecDeque};

use streaming_proto::messages::ManualFlushMessageHeader;
use streaming_types::MessageType;

use super::{Done, Key, MAX_VCHANNELS, Windows, share};
use crate::{
    recovery::seen::Seen,
    wal::{group::Placed, record::message_id},
};

/// See the module.
#[derive(Debug)]
pub struct NewestKeys {
    by_vchannel: BTreeMap<Box<str>, Keys>,
    /// Bytes of one vchannel at most.
    limit: usize,
}

/// Those of one vchannel, oldest first.
#[derive(Debug, Default)]
struct Keys {
    order: VecDeque<(Box<str>, Option<i64>, Done)>,
    bytes: usize,
}

impl NewestKeys {
    /// Keeps up to `limit` bytes of a vchannel.
    pub fn new(limit: usize) -> Self {
        Self { by_vchannel: BTreeMap::new(), limit }
    }

    /// Takes the next message of the log.
    pub fn observe(&mut self, seen: &Seen<'_>) {
        let Some(key) = seen.key() else { return };
        let (Some(id), Some(last_confirmed)) = (message_id(seen.id), message_id(seen.last_confirmed())) else { return };
        let txn = seen.txn();
        let placed = Placed { id, tick: seen.tick, last_confirmed, txn };
        let key = Key::new(key, seen.kind, txn.map(|txn| txn.txn_id));
        let flushed = (seen.kind == MessageType::ManualFlush)
            .then(|| seen.header().map(|header: ManualFlushMessageHeader| header.segment_ids).unwrap_or_default());
        self.push(seen.vchannel().unwrap_or_default(), key, Done { placed, flushed });
    }

    fn push(&mut self, vchannel: &str, key: Key<'_>, done: Done) {
        let share = share(self.limit, self.by_vchannel.len());
        match self.by_vchannel.get_mut(vchannel) {
            Some(keys) => keys.push(key, done, share),
            None => {
                self.make_room();
                self.by_vchannel.entry(vchannel.into()).or_default().push(key, done, share);
            }
        }
    }

    /// One more vchannel makes the shares of the others smaller.
    fn make_room(&mut self) {
        if self.by_vchannel.len() >= MAX_VCHANNELS {
            let oldest = self.by_vchannel.iter().min_by_key(|(_, keys)| keys.newest());
            let oldest = oldest.map(|(vchannel, _)| vchannel.clone());
            oldest.and_then(|vchannel| self.by_vchannel.remove(&vchannel));
        }
        let share = share(self.limit, self.by_vchannel.len());
        self.by_vchannel.values_mut().for_each(|keys| keys.evict(share));
    }

    /// All that is left, as appends look it up.
    pub fn into_windows(self) -> Windows {
        let mut windows = Windows::new(self.limit);
        for (vchannel, keys) in self.by_vchannel {
            for (text, txn, done) in keys.order {
                windows.done(&vchannel, Key { text: &text, txn }, done);
            }
        }
        windows
    }
}

impl Keys {
    fn newest(&self) -> u64 {
        self.order.back().map_or(0, |(.., done)| done.placed.tick)
    }

    fn push(&mut self, Key { text, txn }: Key<'_>, done: Done, limit: usize) {
        self.bytes += done.cost(text);
        self.order.push_back((text.into(), txn, done));
        self.evict(limit);
    }

    fn evict(&mut self, limit: usize) {
        while self.bytes > limit
            && let Some((text, _, done)) = self.order.pop_front()
        {
            self.bytes -= done.cost(&text);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use streaming_types::MessageId;

    use super::*;
    use crate::wal::window::{Claim, ENTRY_COST, TOTAL};

    fn key(text: &str) -> Key<'_> {
        Key { text, txn: None }
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
            let (mut newest, mut windows) = (NewestKeys::new(limit), Windows::new(limit));
            let mut known = BTreeSet::new();
            // Keys that come again are told from new ones before they get into the log.
            let fresh = keys.iter().filter(|pair| known.insert(**pair));
            for (tick, (vchannel, key)) in (1_u64..).zip(fresh) {
                let (vchannel, key) = (vchannel.to_string(), key.to_string());
                newest.push(&vchannel, self::key(&key), placed(tick));
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
        let mut newest = NewestKeys::new(1 << 20);
        newest.push("v", key("key"), placed(1));
        newest.push("v", key("key"), placed(2));
        assert_eq!(newest.into_windows().claim("v", key("key"), None), Claim::Done(placed(1)));
    }

    #[test]
    fn vchannels_share_what_is_kept() {
        let mut newest = NewestKeys::new(100 * ENTRY_COST);
        for vchannel in 0..5000 {
            for n in 0..3 {
                newest.push(&vchannel.to_string(), key(&n.to_string()), placed(vchannel * 10 + n));
            }
        }
        let total: usize = newest.by_vchannel.values().map(|keys| keys.bytes).sum();
        let most = TOTAL * 100 * ENTRY_COST;
        assert!(newest.by_vchannel.len() <= MAX_VCHANNELS && total <= most, "{total} of {most}");
    }
}
