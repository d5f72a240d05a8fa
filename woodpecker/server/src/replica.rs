//! One replica of one segment: what it holds, who may append to it, who waits for it.
//!
//! All rules of the store's side of the quorum protocol are here, under one lock: an epoch appends to a replica that it
//! began in this run of the store, or that it fenced; entries follow one another; what is held is confirmed and not stored
//! again; once a fence is up, no append of an epoch below is told anything any more.

mod fence;
mod holding;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, Weak},
};

use ::metrics::Histogram;
use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use woodpecker_base::clock::{Clock, Instant};
use woodpecker_core::ids::{LogId, SegmentKey};
use woodpecker_store::backend::{SegmentEnd, SegmentOwner, SegmentWriter};

use self::holding::Holding;
pub use self::{fence::Description, holding::Part};
use crate::{
    failure::{self, Failure},
    ledger::{End, ReplicaRecord},
    lock, metrics,
    namespace::Namespace,
    outbox::Slot,
    refusal::Refusal,
};

/// Log numbers that fit beside the namespace's in the volume's 64 bits.
const LOG_BITS: u32 = 40;

/// A replica's name in this store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaKey {
    pub namespace: u32,
    pub log: u64,
    pub segment: u64,
}

impl ReplicaKey {
    /// What stands for the replica on the disk: volumes know logs by one number, so the namespace's is put above the
    /// log's. `None` for a log that has no such number.
    pub fn on_disk(self) -> Option<SegmentKey> {
        let log = (self.log < 1 << LOG_BITS).then_some(u64::from(self.namespace) << LOG_BITS | self.log)?;
        Some(SegmentKey { log: LogId(log), segment: self.segment })
    }

    /// The replica that a segment on the disk is.
    pub fn from_disk(key: SegmentKey) -> Option<Self> {
        let namespace = u32::try_from(key.log.0 >> LOG_BITS).ok()?;
        Some(Self { namespace, log: key.log.0 & ((1 << LOG_BITS) - 1), segment: key.segment })
    }
}

/// Entries from a stream.
#[derive(Debug)]
pub struct Append {
    pub epoch: u64,
    pub first: u64,
    pub entries: Vec<Bytes>,
}

impl Append {
    pub fn end(&self) -> u64 {
        self.first.saturating_add(self.entries.len() as u64)
    }

    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.len() as u64).sum()
    }
}

/// The room that an append takes until it is durable; dropped, it is free again.
#[derive(Debug)]
pub struct Room {
    #[expect(dead_code, reason = "held for what its end frees")]
    pub permits: [OwnedSemaphorePermit; 3],
    pub since: Instant,
}

/// What an append still needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing: all of it is held or on its way.
    Nothing,
    /// So many of its entries are new; `begins` when they are the replica's first.
    Store { skip: usize, begins: bool, recovery: bool },
}

/// What replicas have in common.
#[derive(Debug, Clone)]
pub struct Common {
    pub failure: Arc<Failure>,
    pub clock: Clock,
    pub latency: Latency,
}

#[derive(Clone)]
pub struct Latency(pub Histogram);

impl std::fmt::Debug for Latency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Latency")
    }
}

#[derive(Debug)]
pub struct Replica {
    pub key: ReplicaKey,
    pub namespace: Arc<Namespace>,
    common: Common,
    state: Mutex<State>,
    /// Something that a reader or a fence waits for has changed.
    changed: Notify,
    /// Held while a piece is begun.
    pub opening: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// The epoch that appended first in this run.
    owner: Option<u64>,
    fenced: u64,
    committed: u64,
    /// What recovery found.
    end: Option<End>,
    /// The next number that is not held and not on its way.
    next: u64,
    durable: u64,
    holding: Holding,
    writer: Option<Arc<dyn SegmentWriter>>,
    /// Appends on their way, in order.
    on_the_way: VecDeque<OnTheWay>,
    streams: Vec<(u64, Arc<Slot>)>,
    released: bool,
    /// `committed` is newer than what is written down, since then.
    unwritten: Option<Instant>,
}

/// An append on its way to the disk.
#[derive(Debug)]
struct OnTheWay {
    /// The number after its last entry.
    end: u64,
    bytes: u64,
    room: Room,
}

impl Replica {
    /// A replica of which nothing is held yet, as far as is known.
    pub fn new(key: ReplicaKey, namespace: Arc<Namespace>, common: Common) -> Self {
        Self {
            key,
            namespace,
            common,
            state: Mutex::default(),
            changed: Notify::new(),
            opening: tokio::sync::Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// What of an append is to be stored.
    ///
    /// # Errors
    /// Why nothing is.
    pub fn need(&self, append: &Append) -> Result<Need, Refusal> {
        self.state().need(append, &self.common.failure)
    }

    /// Queues what is not held yet, and lets the stream know when all of it is durable. With nothing to store, `room`
    /// is not needed.
    ///
    /// # Errors
    /// As [`Replica::need`], since things may have changed; [`Refusal::Unavailable`] without a writer.
    pub fn append(&self, mut append: Append, room: Option<Room>, slot: &Arc<Slot>) -> Result<(), Refusal> {
        let mut state = self.state();
        let need = state.need(&append, &self.common.failure)?;
        let end = append.end();
        if let Need::Store { skip, recovery, .. } = need {
            let unopened = || Refusal::Unavailable("the replica is not open for appends".into());
            let (writer, room) = state.writer.clone().zip(room).ok_or_else(unopened)?;
            append.entries.drain(..skip.min(append.entries.len()));
            let (entries, bytes) = (append.entries.len(), append.bytes());
            let first = writer.append(append.entries)?;
            debug_assert_eq!(first, state.next, "the volume numbers otherwise");
            state.owner.get_or_insert(append.epoch);
            state.next = end;
            if !recovery {
                self.namespace.spend(bytes, self.common.clock.now());
            }
            state.on_the_way.push_back(OnTheWay { end, bytes, room });
            state.holding.grew(bytes);
            self.namespace.grew(bytes);
            self.namespace.metrics.appended(entries, bytes);
        }
        slot.sends(end);
        state.subscribe(append.epoch, slot);
        if state.durable >= end {
            slot.durable(state.durable);
        }
        Ok(())
    }

    /// Takes note of what a writer says is acked. Says whether that is the first news since it was written down.
    pub fn heard(&self, epoch: u64, committed: u64) -> bool {
        let mut state = self.state();
        if committed <= state.committed || epoch < state.fenced || state.released {
            return false;
        }
        state.committed = committed;
        let first = state.unwritten.replace(self.common.clock.now()).is_none();
        drop(state);
        self.changed.notify_waiters();
        first
    }

    /// Has `write` write down what is known to be acked, if that was heard before then; says whether it was not. A replica
    /// that has become quiet keeps no room for appends on their way.
    pub fn write_committed(&self, before: Instant, write: impl FnOnce(ReplicaRecord)) -> bool {
        let mut state = self.state();
        let busy = state.unwritten.is_some_and(|at| at > before);
        if !busy {
            state.on_the_way.shrink_to_fit();
        }
        // Under the lock, so that nothing is written of a replica after its release.
        if !busy && state.unwritten.take().is_some() && !state.released {
            write(state.record());
        }
        busy
    }

    /// A stream is gone.
    pub fn unsubscribe(&self, slot: &Arc<Slot>) {
        self.state().streams.retain(|(_, other)| !Arc::ptr_eq(other, slot));
    }

    /// The store's disk failed: what is on its way is lost.
    fn fail(&self, reason: &Arc<str>) {
        let mut state = self.state();
        state.writer = None;
        state.next = state.durable;
        let durable = state.durable;
        state.holding.stopped(durable);
        let lost: u64 = state.on_the_way.drain(..).map(|append| append.bytes).sum();
        state.holding.shrank(lost);
        self.namespace.shrank(lost);
        for (_, slot) in std::mem::take(&mut state.streams) {
            slot.refuse(Refusal::Failed(reason.clone()));
        }
        drop(state);
        self.changed.notify_waiters();
    }
}

impl State {
    fn need(&self, append: &Append, failure: &Failure) -> Result<Need, Refusal> {
        self.admits(append.epoch)?;
        if append.end() <= self.next {
            return Ok(Need::Nothing);
        }
        if let Some(reason) = failure.reason() {
            return Err(Refusal::Failed(reason));
        }
        let Some(skip) = self.next.checked_sub(append.first) else {
            return Err(Refusal::Gap { first: append.first, next: self.next });
        };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let recovery = self.fenced == append.epoch;
        Ok(Need::Store { skip, begins: self.next == 0, recovery })
    }

    /// Whether this epoch may append at all.
    fn admits(&self, epoch: u64) -> Result<(), Refusal> {
        if self.released {
            return Err(Refusal::Released);
        }
        if epoch < self.fenced {
            return Err(Refusal::Fenced { epoch, by: self.fenced });
        }
        self.holding.check()?;
        let begun = self.owner.is_some() || self.fenced > 0 || self.next > 0;
        if self.owner == Some(epoch) || self.fenced == epoch || !begun {
            return Ok(());
        }
        match self.owner {
            Some(by) if by > epoch => Err(Refusal::Fenced { epoch, by }),
            _ => Err(Refusal::NotContinued { epoch }),
        }
    }

    fn subscribe(&mut self, epoch: u64, slot: &Arc<Slot>) {
        if !self.streams.iter().any(|(_, known)| Arc::ptr_eq(known, slot)) {
            self.streams.reserve_exact(1);
            self.streams.push((epoch, slot.clone()));
        }
    }

    fn record(&self) -> ReplicaRecord {
        ReplicaRecord { fenced: self.fenced, committed: self.committed, end: self.end }
    }
}

/// The replica as the owner of its segment in the volume. Weak: the replica owns the segment's writer.
#[derive(Debug)]
pub struct Owner(pub Weak<Replica>);

impl SegmentOwner for Owner {
    fn acked(&self, next: u64) {
        let Some(replica) = self.0.upgrade() else { return };
        let now = replica.common.clock.now();
        let mut state = replica.state();
        state.durable = state.durable.max(next);
        while let Some(append) = state.on_the_way.pop_front_if(|append| append.end <= next) {
            metrics::appended(&replica.common.latency.0, now.duration_since(append.room.since));
        }
        for (_, slot) in &state.streams {
            slot.durable(next);
        }
        drop(state);
        replica.changed.notify_waiters();
    }

    fn ended(&self, end: SegmentEnd) {
        let Some(replica) = self.0.upgrade() else { return };
        let reason: Arc<str> = match end {
            SegmentEnd::Failed(error) => error.to_string().into(),
            // Nobody but this process has the directory, and it fences nothing there.
            SegmentEnd::Fenced | SegmentEnd::Displaced => "another process fenced the store's volume".into(),
        };
        replica.common.failure.set(failure::Part::Volume, &reason);
        replica.fail(&reason);
    }
}
