//! Fencing, describing and releasing a replica, and how it comes back after a restart.

use std::sync::Arc;

use woodpecker_store::{backend::SegmentWriter, disk::Piece};

use super::{Replica, holding::Part};
use crate::{
    ledger::{End, Ledger, ReplicaRecord},
    metrics,
    refusal::Refusal,
};

/// What a replica can tell of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Description {
    pub durable: u64,
    pub committed: u64,
    pub fenced: u64,
    pub end: Option<End>,
}

impl Replica {
    /// What earlier runs left of it; pieces in the order of their first entries.
    pub fn restore(&self, record: ReplicaRecord, pieces: &[Piece], doubt: Option<&Arc<str>>) {
        let mut state = self.state();
        state.fenced = record.fenced;
        state.committed = record.committed;
        state.end = record.end;
        for piece in pieces {
            state.durable = state.holding.found(piece);
        }
        if let Some(doubt) = doubt {
            state.holding.lose(doubt.clone());
        }
        state.next = state.durable;
        let bytes = state.holding.bytes();
        drop(state);
        if !pieces.is_empty() {
            self.namespace.began(self.key.log);
            self.namespace.grew(bytes);
        }
    }

    /// Where a piece in the volume that is being written would begin; `None` if there is one.
    pub fn unopened(&self) -> Option<u64> {
        let state = self.state();
        state.writer.is_none().then_some(state.next)
    }

    /// Appends go to this writer from now on.
    ///
    /// # Errors
    /// Meanwhile the replica was released, or the writer ended.
    pub fn open(&self, writer: Arc<dyn SegmentWriter>) -> Result<(), Refusal> {
        let mut state = self.state();
        if state.released {
            return Err(Refusal::Released);
        }
        // Nothing is appended: a writer that ended told so to a replica that did not have it yet.
        writer.append(Vec::new())?;
        let first = state.next;
        if state.holding.parts().is_empty() {
            self.namespace.began(self.key.log);
        }
        state.holding.begin(writer.placement().clone(), first);
        state.writer = Some(writer);
        Ok(())
    }

    /// Refuses every append of an epoch below, durably, and says what is held once nothing is on its way any more. An
    /// `end` that recovery found is kept, unless one of this or a later epoch is.
    ///
    /// # Errors
    /// [`Refusal::Fenced`] to an epoch that has itself lost the segment; [`Refusal::Corrupt`] when the replica cannot say
    /// what it holds, since an answer below the truth would cost entries that were acked; the ledger's.
    pub async fn fence(&self, epoch: u64, end: Option<u64>, ledger: &Ledger) -> Result<Description, Refusal> {
        let (ticket, held) = {
            let mut state = self.state();
            if state.released {
                return Err(Refusal::Released);
            }
            state.holding.check()?;
            let above = state.fenced.max(state.owner.unwrap_or(0));
            if above > epoch {
                return Err(Refusal::Fenced { epoch, by: above });
            }
            if state.fenced < epoch {
                metrics::fenced();
            }
            state.fenced = epoch;
            if state.end.is_none_or(|known| known.epoch < epoch) {
                state.end = end.map(|entries| End { entries, epoch }).or(state.end);
                // Who says where the segment ends has brought everything before that to enough replicas.
                state.committed = state.committed.max(end.unwrap_or(0));
            }
            let (stay, gone) = std::mem::take(&mut state.streams).into_iter().partition(|(other, _)| *other >= epoch);
            state.streams = stay;
            for (other, slot) in gone {
                slot.refuse(Refusal::Fenced { epoch: other, by: epoch });
            }
            // Written again even if it was before: another fence of the same epoch may not be durable yet.
            (ledger.put_replica(self.key, state.record()), state.next)
        };
        ledger.settled(ticket).await?;
        self.changed.notify_waiters();
        self.until(|replica| {
            let state = replica.state();
            state.released || state.durable >= held.min(state.next)
        })
        .await;
        self.describe()
    }

    /// What the replica holds now.
    ///
    /// # Errors
    /// [`Refusal::Released`]; [`Refusal::Corrupt`] when it cannot say.
    pub fn describe(&self) -> Result<Description, Refusal> {
        let state = self.state();
        if state.released {
            return Err(Refusal::Released);
        }
        state.holding.check()?;
        Ok(Description { durable: state.durable, committed: state.committed, fenced: state.fenced, end: state.end })
    }

    /// How far a reader may read: up to `end` where it says so, otherwise what is known to be acked.
    ///
    /// # Errors
    /// [`Refusal::Released`].
    pub fn readable(&self, end: Option<u64>) -> Result<u64, Refusal> {
        let state = self.state();
        if state.released {
            return Err(Refusal::Released);
        }
        Ok(state.durable.min(end.unwrap_or(state.committed)))
    }

    pub fn committed(&self) -> u64 {
        self.state().committed
    }

    /// Waits until entry `from` may be read, or the replica is released.
    pub async fn until_readable(&self, from: u64, end: Option<u64>) {
        self.until(|replica| replica.readable(end).map_or(true, |limit| from < limit)).await;
    }

    async fn until(&self, holds: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if holds(self) {
                return;
            }
            changed.await;
        }
    }

    /// The part that holds an entry.
    ///
    /// # Errors
    /// [`Refusal::Corrupt`]: it should be there and is not.
    pub fn part(&self, entry: u64) -> Result<Part, Refusal> {
        let state = self.state();
        let lost = || Refusal::Corrupt(format!("entry {entry} is missing").into());
        state.holding.part(entry).cloned().ok_or_else(lost)
    }

    /// All parts, to delete them.
    pub fn parts(&self) -> Vec<Part> {
        self.state().holding.parts().to_vec()
    }

    /// Whether there is nothing that a store must remember of it.
    pub fn is_blank(&self) -> bool {
        let state = self.state();
        state.fenced == 0 && !state.released && state.committed == 0 && state.holding.parts().is_empty()
    }

    /// Whether it has entries, or may have.
    pub fn holds(&self) -> bool {
        self.state().holding.holds()
    }

    /// Durable entries and their bytes.
    pub fn held(&self) -> (u64, u64) {
        let state = self.state();
        (state.durable, state.holding.bytes())
    }

    /// The replica is needed no more: readers and streams are told so. `note` makes that durable; it is called under the
    /// lock, so that nothing else is written of the replica after it.
    pub fn release<T>(&self, note: impl FnOnce() -> T) -> T {
        let mut state = self.state();
        let noted = note();
        if !std::mem::replace(&mut state.released, true) {
            state.writer = None;
            state.on_the_way.clear();
            for (_, slot) in std::mem::take(&mut state.streams) {
                slot.refuse(Refusal::Released);
            }
            if !state.holding.parts().is_empty() {
                self.namespace.lost(self.key.log, state.holding.bytes());
            }
        }
        drop(state);
        self.changed.notify_waiters();
        noted
    }
}
