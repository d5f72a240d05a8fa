//! Which idempotency keys were appended on which vchannel, and where: the newest of them, as far as they fit. Pure.
//!
//! The first message with a key is appended; a repeat waits for its outcome, or gets it. What is remembered is bounded in
//! bytes, oldest first out, and rebuilt from the end of the log when the WAL is opened. A message that was refused leaves
//! its key free.

use std::hash::Hasher as _;

use hashbrown::{HashMap, hash_map};
use siphasher::sip128::{Hasher128, SipHasher13};
use streaming_types::{MessageType, Properties, properties::key};

use self::known::{Entry, Known};
use super::group::{Append, Placed};

mod known;
pub mod newest;

/// What a key and its outcome take: an entry, its place, and room that is allocated ahead.
const ENTRY_COST: usize = 128;
/// Times the bytes of one vchannel that a WAL remembers in all.
const TOTAL: usize = 4;
/// Vchannels that are remembered.
const MAX_VCHANNELS: usize = 4096;

/// See the module.
#[derive(Debug)]
pub struct Windows {
    keys: Keys,
    by_vchannel: HashMap<Box<str>, Window>,
    /// Bytes of one vchannel at most.
    limit: usize,
}

/// What a message is known by on its vchannel: a hash of its idempotency key, long enough that no two keys have the same,
/// and seeded, so that nobody can look for two that have. So each key takes the same little room, however long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u64; 2]);

/// Makes keys; only those of one can be compared.
#[derive(Debug, Clone)]
struct Keys(SipHasher13);

impl Keys {
    fn seeded(seed: u128) -> Self {
        Self(SipHasher13::new_with_key(&seed.to_le_bytes()))
    }

    /// The key of a transaction is its commit's: one that is run again needs its other messages again, so their keys count
    /// in their transaction only.
    fn key(&self, text: &str, kind: MessageType, txn: Option<i64>) -> Key {
        let mut hasher = self.0;
        hasher.write(text.as_bytes());
        if let Some(txn) = txn.filter(|_| !matches!(kind, MessageType::BeginTxn | MessageType::CommitTxn)) {
            // No text ends so: the byte is in no UTF-8.
            hasher.write_u8(u8::MAX);
            hasher.write_i64(txn);
        }
        let hash = hasher.finish128();
        Key([hash.h1, hash.h2])
    }
}

#[derive(Debug, Default)]
struct Window {
    pending: HashMap<Key, Pending>,
    known: Known,
    /// The tick of the newest.
    newest: u64,
}

/// A message on its way to the log, maybe in a transaction, with its repeats.
#[derive(Debug)]
struct Pending {
    txn: Option<i64>,
    repeats: Vec<Box<Append>>,
}

/// What became of a message, as its repeats are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    pub placed: Placed,
    /// See [`Append::flushed`].
    pub flushed: Option<Vec<i64>>,
}

/// What is known of a key.
#[derive(Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nothing: whoever asked appends it.
    New,
    /// The first is on its way, maybe in a transaction.
    Pending(Option<i64>),
    Done(Done),
}

impl Windows {
    /// Remembers up to `limit` bytes of a vchannel.
    pub fn new(limit: usize, seed: u128) -> Self {
        Self::with(Keys::seeded(seed), limit)
    }

    fn with(keys: Keys, limit: usize) -> Self {
        Self { keys, by_vchannel: HashMap::new(), limit }
    }

    /// The key of a message, which may be one of a transaction.
    pub fn key(&self, text: &str, kind: MessageType, txn: Option<i64>) -> Key {
        self.keys.key(text, kind, txn)
    }

    /// Asks for the key of a message, maybe one of a transaction, and takes it if nobody has it.
    pub fn claim(&mut self, vchannel: &str, key: Key, txn: Option<i64>) -> Claim {
        let window = self.window(vchannel);
        match window.pending.entry(key) {
            hash_map::Entry::Occupied(pending) => Claim::Pending(pending.get().txn),
            hash_map::Entry::Vacant(free) => match window.known.get(key) {
                Some(done) => Claim::Done(done),
                None => {
                    free.insert(Pending { txn, repeats: Vec::new() });
                    Claim::New
                }
            },
        }
    }

    /// Keeps a repeat until its key has an outcome; gives it back when the key has none to come.
    pub fn wait(&mut self, vchannel: &str, key: Key, repeat: Box<Append>) -> Option<Box<Append>> {
        match self.window(vchannel).pending.get_mut(&key) {
            Some(pending) => {
                pending.repeats.push(repeat);
                None
            }
            None => Some(repeat),
        }
    }

    /// The message with a key was appended; gives back its repeats.
    pub fn done(&mut self, vchannel: &str, key: Key, done: Done) -> Vec<Box<Append>> {
        let share = self.share();
        let window = self.window(vchannel);
        let repeats = match window.pending.remove(&key) {
            Some(pending) => pending.repeats,
            // The log holds it twice; the first one counts.
            None if window.known.has(key) => return Vec::new(),
            None => Vec::new(),
        };
        window.newest = done.placed.tick;
        window.known.push(Entry::new(key, done));
        window.known.evict(share);
        repeats
    }

    /// The message with a key was not appended; gives back its repeats.
    pub fn forget(&mut self, vchannel: &str, key: Key) -> Vec<Box<Append>> {
        self.window(vchannel).pending.remove(&key).map(|pending| pending.repeats).unwrap_or_default()
    }

    fn share(&self) -> usize {
        share(self.limit, self.by_vchannel.len())
    }

    fn window(&mut self, vchannel: &str) -> &mut Window {
        if !self.by_vchannel.contains_key(vchannel) {
            self.make_room();
        }
        self.by_vchannel.entry_ref(vchannel).or_default()
    }

    /// One more vchannel makes the shares of the others smaller.
    fn make_room(&mut self) {
        if self.by_vchannel.len() >= MAX_VCHANNELS {
            let idle = self.by_vchannel.iter().filter(|(_, window)| window.pending.is_empty());
            let oldest = idle.min_by_key(|(_, window)| window.newest).map(|(vchannel, _)| vchannel.clone());
            oldest.and_then(|vchannel| self.by_vchannel.remove(&vchannel));
        }
        let share = self.share();
        self.by_vchannel.values_mut().for_each(|window| window.known.evict(share));
    }
}

/// What one of so many vchannels may take.
fn share(limit: usize, vchannels: usize) -> usize {
    (limit.saturating_mul(TOTAL) / vchannels.max(1)).min(limit)
}

/// The key that counts here. What another cluster wrote was appended once there, and is known by its place there.
pub fn key_of(properties: &Properties) -> Option<&str> {
    properties.idempotency_key().filter(|_| !properties.contains(key::REPLICATE))
}

#[cfg(test)]
mod tests {
    use streaming_types::MessageId;

    use super::*;
    use crate::wal::group::samples;

    const V: &str = "p_1v0";

    fn key(text: &str) -> Key {
        Keys::seeded(1).key(text, MessageType::Insert, None)
    }

    fn placed(tick: u64) -> Done {
        let id = MessageId::new(1, tick.cast_signed());
        Done { placed: Placed { id, tick, last_confirmed: id, txn: None }, flushed: None }
    }

    #[test]
    fn key_is_new_then_pending_then_done() {
        let mut windows = Windows::new(1 << 20, 1);
        assert_eq!(windows.claim(V, key("k"), None), Claim::New);
        assert_eq!(windows.claim(V, key("k"), None), Claim::Pending(None));
        assert!(windows.wait(V, key("k"), samples::append(1, V, false).0).is_none());
        assert_eq!(windows.done(V, key("k"), placed(7)).len(), 1, "the repeat comes back");
        assert_eq!(windows.claim(V, key("k"), None), Claim::Done(placed(7)));
        assert_eq!(windows.claim("p_2v0", key("k"), None), Claim::New, "another vchannel");
        assert!(windows.wait(V, key("k"), samples::append(1, V, false).0).is_some(), "nothing to wait for");
    }

    #[test]
    fn key_of_a_body_counts_in_its_transaction_and_that_of_a_commit_everywhere() {
        let mut windows = Windows::new(1 << 20, 1);
        let keys = Keys::seeded(1);
        let body = |txn| keys.key("k", MessageType::Insert, Some(txn));
        windows.done(V, body(1), placed(7));
        assert_eq!(windows.claim(V, body(1), None), Claim::Done(placed(7)));
        assert_eq!(windows.claim(V, body(2), None), Claim::New);
        let commit = |txn| keys.key("k", MessageType::CommitTxn, Some(txn));
        assert_eq!(windows.claim(V, commit(1), None), Claim::New);
        windows.done(V, commit(1), placed(8));
        assert_eq!(windows.claim(V, commit(2), None), Claim::Done(placed(8)));
    }

    #[test]
    fn refused_message_leaves_its_key_free_and_a_done_one_does_not() {
        let mut windows = Windows::new(1 << 20, 1);
        windows.claim(V, key("k"), None);
        windows.wait(V, key("k"), samples::append(1, V, false).0);
        assert_eq!(windows.forget(V, key("k")).len(), 1);
        assert_eq!(windows.claim(V, key("k"), None), Claim::New);
        windows.done(V, key("k"), placed(7));
        assert!(windows.forget(V, key("k")).is_empty() && windows.done(V, key("k"), placed(9)).is_empty());
        assert_eq!(windows.claim(V, key("k"), None), Claim::Done(placed(7)), "the first copy counts");
    }

    #[test]
    fn window_keeps_the_newest_within_its_bytes_and_never_lets_go_of_what_is_pending() {
        let mut windows = Windows::new(10 * ENTRY_COST, 1);
        assert_eq!(windows.claim(V, key("open"), None), Claim::New);
        for n in 0..1000 {
            windows.done(V, key(&format!("{n:04}")), placed(n));
        }
        assert_eq!(windows.claim(V, key("open"), None), Claim::Pending(None));
        assert_eq!(windows.claim(V, key("0990"), None), Claim::Done(placed(990)));
        assert_eq!(windows.claim(V, key("0989"), None), Claim::New);
        let window = &windows.by_vchannel[V];
        assert_eq!((window.known.len(), window.known.bytes()), (10, 10 * ENTRY_COST));
        windows.done(V, key("flush"), Done { flushed: Some(vec![7; 100]), ..placed(1000) });
        let window = &windows.by_vchannel[V];
        assert_eq!((window.known.len(), window.known.bytes()), (3, 3 * ENTRY_COST + 800), "segments count too");
    }

    #[test]
    fn vchannels_share_what_the_wal_may_remember() {
        let mut windows = Windows::new(100 * ENTRY_COST, 1);
        for vchannel in 0..5000 {
            for n in 0..3 {
                windows.done(&format!("p_{vchannel}v0"), key(&n.to_string()), placed(vchannel * 10 + n));
            }
        }
        let total: usize = windows.by_vchannel.values().map(|window| window.known.bytes()).sum();
        assert!(windows.by_vchannel.len() <= MAX_VCHANNELS && total <= TOTAL * 100 * ENTRY_COST, "{total}");
    }
}
