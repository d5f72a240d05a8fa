//! What a node may hold of messages beside its write-ahead buffers: those in flight, and those of transactions that readers
//! put together. Each kind has a half, so neither takes the other's room.
//!
//! Nobody can be stuck. What is in flight ends whatever happens, and a little of every WAL's needs no room, so that one whose
//! log hangs holds up nobody else. A reader waits for no room at all: without it, it keeps nothing of a transaction, and
//! reads it from the log once more when it is committed.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::record::Stored;

/// Bytes that a WAL may have in flight whatever others have, or one message that is larger.
const GUARANTEED: usize = 1 << 20;

/// See the module. Clones share it.
#[derive(Debug, Clone)]
pub struct Allowance {
    in_flight: Arc<Semaphore>,
    held: Arc<Semaphore>,
}

impl Allowance {
    pub fn new(bytes: usize) -> Self {
        let half = || Arc::new(Semaphore::new((bytes / 2).min(Semaphore::MAX_PERMITS)));
        Self { in_flight: half(), held: half() }
    }

    /// A WAL's part, which is never more than `bytes`, and charges every message as one of `least` bytes at least.
    pub fn of_wal(&self, bytes: usize, least: usize) -> InFlight {
        let semaphore = |bytes| Arc::new(Semaphore::new(bytes));
        let (own, guaranteed) = (semaphore(bytes), semaphore(GUARANTEED));
        InFlight { own, guaranteed, node: Arc::clone(&self.in_flight), bytes, least }
    }

    /// Room for a reader that holds a message until its transaction is committed, if there is some. Readers of the same
    /// message share it.
    pub fn hold(&self, message: &Stored) -> Option<Room> {
        let mut held = message.hold.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(room) = held.upgrade() {
            return Some(room);
        }
        let room = Arc::new(Arc::clone(&self.held).try_acquire_many_owned(permits(message.bytes)).ok()?);
        *held = Arc::downgrade(&room);
        Some(room)
    }

    /// Bytes that may still be held.
    #[cfg(test)]
    pub fn left_to_hold(&self) -> usize {
        self.held.available_permits()
    }
}

/// The room that a message takes while readers hold it: once, however many do, for it is in memory once.
pub type Room = Arc<OwnedSemaphorePermit>;

/// What a message knows of its room: no more than that, so that the room is given back when the last reader lets go, though
/// the message may stay in the write-ahead buffer, which has room of its own.
#[derive(Debug, Default)]
pub struct Hold(Mutex<Weak<OwnedSemaphorePermit>>);

/// What a WAL may have in flight.
#[derive(Debug, Clone)]
pub struct InFlight {
    own: Arc<Semaphore>,
    guaranteed: Arc<Semaphore>,
    node: Arc<Semaphore>,
    bytes: usize,
    least: usize,
}

/// The room of a message in flight, given back when it is dropped.
#[derive(Debug)]
pub struct Charge {
    _own: OwnedSemaphorePermit,
    _room: OwnedSemaphorePermit,
}

impl InFlight {
    /// Room for a message, if there is some now.
    pub fn try_charge(&self, bytes: usize) -> Option<Charge> {
        let (share, part, size) = self.shares(bytes);
        let own = Arc::clone(&self.own).try_acquire_many_owned(share).ok()?;
        let room = Arc::clone(&self.guaranteed).try_acquire_many_owned(part);
        let room = room.or_else(|_| Arc::clone(&self.node).try_acquire_many_owned(size)).ok()?;
        Some(Charge { _own: own, _room: room })
    }

    /// Waits for room for a message.
    pub async fn charge(self, bytes: usize) -> Option<Charge> {
        let (share, part, size) = self.shares(bytes);
        let own = self.own.acquire_many_owned(share).await.ok()?;
        let room = tokio::select! {
            biased;
            room = self.guaranteed.acquire_many_owned(part) => room,
            room = self.node.acquire_many_owned(size) => room,
        };
        Some(Charge { _own: own, _room: room.ok()? })
    }

    /// Of the WAL's own, of what is guaranteed to it, of the node's.
    fn shares(&self, bytes: usize) -> (u32, u32, u32) {
        let size = bytes.clamp(1, self.bytes);
        (permits(size.max(self.least)), permits(size.min(GUARANTEED)), permits(size))
    }
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use woodpecker::EntryId;

    use super::*;
    use crate::wal::record;

    fn stored(payload: usize) -> Stored {
        let mut message = record::tick(7, None, 1);
        message.payload = vec![0; payload].into();
        Stored::new(EntryId { segment: 1, entry: 1 }, message).unwrap()
    }

    #[tokio::test]
    async fn wals_share_a_node_and_each_may_have_a_little_whatever_others_have() {
        let node = Allowance::new(16 << 20);
        let (one, two) = (node.of_wal(64 << 20, 1), node.of_wal(4 << 20, 1));
        let mut charges: Vec<_> = std::iter::from_fn(|| one.try_charge(1 << 20)).collect();
        assert_eq!(charges.len(), 9, "half of the node's, and what is guaranteed");
        let large = two.try_charge(3 << 20);
        assert!(large.is_some(), "one that is larger than what is guaranteed");
        assert!(two.try_charge(1).is_none());
        drop(large);
        let small = two.clone().charge(1 << 20).now_or_never().flatten();
        assert!(small.is_some());
        let mut waiting = Box::pin(two.charge(1 << 20));
        assert!((&mut waiting).now_or_never().is_none());
        charges.truncate(8);
        assert!(waiting.now_or_never().flatten().is_some(), "what another gave back");
    }

    #[tokio::test]
    async fn one_that_waits_for_others_goes_on_when_its_own_end() {
        let node = Allowance::new(4 << 20);
        let (hung, other) = (node.of_wal(64 << 20, 1), node.of_wal(64 << 20, 1));
        let _hung: Vec<_> = std::iter::from_fn(|| hung.try_charge(1 << 20)).collect();
        let first = other.try_charge(1 << 20);
        assert!(first.is_some());
        let mut waiting = Box::pin(other.charge(2 << 20));
        assert!((&mut waiting).now_or_never().is_none());
        drop(first);
        assert!(waiting.now_or_never().flatten().is_some());
    }

    #[test]
    fn wal_has_no_more_than_its_own() {
        let wal = Allowance::new(1 << 30).of_wal(1 << 20, 1 << 10);
        let charges: Vec<_> = std::iter::from_fn(|| wal.try_charge(1)).collect();
        assert_eq!(charges.len(), 1 << 10);
        drop(charges);
        assert!(wal.try_charge(usize::MAX).is_some(), "alone");
    }

    #[test]
    fn held_message_takes_room_once_and_as_long_as_a_reader_has_it() {
        let node = Allowance::new(4000);
        let message = stored(1000);
        let (one, two) = (node.hold(&message).unwrap(), node.hold(&message).unwrap());
        assert_eq!(node.left_to_hold(), 2000 - message.bytes);
        assert!(node.hold(&stored(1000)).is_none(), "no room");
        drop(one);
        assert!(node.hold(&stored(1000)).is_none(), "another still has it");
        drop(two);
        assert_eq!(node.left_to_hold(), 2000, "the message may live on");
        let again = node.hold(&message);
        assert_eq!(node.left_to_hold(), 2000 - message.bytes);
        drop((message, again));
        assert_eq!(node.left_to_hold(), 2000);
    }
}
