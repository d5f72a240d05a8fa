//! Taking a segment from its writer: fence, find the end, copy what is missing, close.
//!
//! The end is found from what the replicas hold once they refuse the writer. Sort the counts they answered, ascending;
//! the end is the one at index `replicas - ack`, and at least `replicas - ack + 1` must have answered.
//! - Nothing acked is cut off: an acked entry is missing on at most `replicas - ack` replicas, so the counts at that index
//!   and after it include it.
//! - A replica that was reached and holds nothing counts as 0: it is one of those that miss the entry. One that was not
//!   reached does not count, and so does one that lost its disk, which does not answer: to take either for 0 would cut
//!   off what it may have acked.
//!
//! More than what was acked may be kept, never less. Before the segment is closed, `ack` replicas hold all of it, so that
//! the one replica that had its last entry may die; and they are told its end, under the epoch of the one who found it.
//! Whoever fences later meets that end on one of those who answer, and takes the one of the latest epoch for his own, so
//! that a segment that was recovered once has the same end for ever, even if a replica that was out of reach brings
//! back more.
//!
//! A segment that every replica must ack can lose one for good, and then there is nobody to copy to. What is left has every
//! acked entry, whichever it is, so it is enough to close with; see [`Recovery::end_without`].

use crate::ids::{Epoch, ReplicaSet};

/// What a replica answered to a fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Held {
    /// Every entry below is durable there.
    pub durable: u64,
    /// Every entry below was acked, as far as the replica was told.
    pub committed: u64,
    pub end: Option<Told>,
}

/// An end that a replica was told, and by whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Told {
    pub epoch: Epoch,
    pub end: u64,
}

/// Entries that a replica lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    pub replica: usize,
    pub from: u64,
    pub end: u64,
}

/// Why the end cannot be known yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Undecided {
    #[error("{answered} of {replicas} replicas answered, {needed} are needed")]
    TooFew { answered: usize, needed: usize, replicas: usize },
    /// Replicas answered that lack what they had once: only the others can have it.
    #[error("{acked} entries were acked and those who answered hold {held}: a replica lost data, another must answer")]
    Lost { acked: u64, held: u64 },
}

/// The protocol of one taker, in progress. Replicas are numbered as in their set.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Recovery {
    ack: usize,
    epoch: Epoch,
    replicas: Vec<Option<Held>>,
    end: Option<u64>,
}

impl Recovery {
    /// Takes a segment under `epoch`, which must be this taker's alone. `decided` is what an earlier attempt under the
    /// same epoch came to: one taker never says two ends.
    #[must_use]
    pub fn new(set: &ReplicaSet, epoch: Epoch, decided: Option<u64>) -> Self {
        Self { ack: set.ack(), epoch, replicas: vec![None; set.stores().len()], end: decided }
    }

    /// Whether enough replicas answered to find the end. More make it no more right, but closer to what was acked.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.answers().count() >= self.needed()
    }

    /// A replica refuses the writer from now on, durably, and answered what it holds.
    pub fn on_fenced(&mut self, replica: usize, held: Held) {
        if let Some(replica) = self.replicas.get_mut(replica) {
            *replica = Some(held);
        }
    }

    /// How many entries the segment holds, from the answers so far; the same from then on.
    ///
    /// # Errors
    /// Other replicas must answer first.
    pub fn decide(&mut self) -> Result<u64, Undecided> {
        let mut counts: Vec<u64> = self.answers().map(|held| held.durable).collect();
        counts.sort_unstable();
        let undecided =
            Undecided::TooFew { answered: counts.len(), needed: self.needed(), replicas: self.replicas.len() };
        let found = *counts.get(self.replicas.len() - self.ack).ok_or(undecided)?;
        let acked = self.answers().map(|held| held.committed).max().unwrap_or_default();
        let end = self.end.or_else(|| self.told()).unwrap_or_else(|| found.max(acked));
        // Who was told an end had it copied to `ack` replicas first, so one of those who answered has it all.
        let held = counts.last().copied().unwrap_or_default();
        if held < end {
            return Err(Undecided::Lost { acked: end, held });
        }
        self.end = Some(end);
        Ok(end)
    }

    /// What those who answered lack of the segment, those first that lack least: the sources of the others' copies.
    #[must_use]
    pub fn missing(&self) -> Vec<Missing> {
        let Some(end) = self.end else { return Vec::new() };
        let answers = self.replicas.iter().enumerate().filter_map(|(replica, held)| Some((replica, (*held)?)));
        let mut missing: Vec<Missing> = answers
            .filter(|(_, held)| held.durable < end)
            .map(|(replica, held)| Missing { replica, from: held.durable, end })
            .collect();
        missing.sort_by_key(|missing| std::cmp::Reverse(missing.from));
        missing
    }

    /// The replicas that have the entry.
    pub fn holders(&self, entry: u64) -> impl Iterator<Item = usize> + '_ {
        let holds = move |held: &Option<Held>| held.is_some_and(|held| held.durable > entry);
        self.replicas.iter().enumerate().filter(move |(_, held)| holds(held)).map(|(replica, _)| replica)
    }

    /// A replica has every entry below `durable` now.
    pub fn on_copied(&mut self, replica: usize, durable: u64) {
        if let Some(Some(held)) = self.replicas.get_mut(replica) {
            held.durable = held.durable.max(durable);
        }
    }

    /// The replicas to be told the end, and the end; `None` while fewer than `ack` hold all of the segment.
    #[must_use]
    pub fn closing(&self) -> Option<(Vec<usize>, u64)> {
        let end = self.end?;
        let whole = |held: &Option<Held>| held.is_some_and(|held| held.durable >= end);
        let replicas: Vec<usize> =
            self.replicas.iter().enumerate().filter(|(_, held)| whole(held)).map(|(replica, _)| replica).collect();
        (replicas.len() >= self.ack).then_some((replicas, end))
    }

    /// How many entries the segment holds, if it may be closed without those replicas that are `gone`: each of them must
    /// ack, so all who are left have every acked entry, and nobody else has one that they lack. They are not told the
    /// end, which counts only once the log's record has it: should the log change its owner before, the next one may
    /// come to another end, and nobody has seen the first.
    #[must_use]
    pub fn end_without(&self, gone: impl Fn(usize) -> bool) -> Option<u64> {
        let end = self.end.filter(|_| self.ack == self.replicas.len())?;
        let settled = |(replica, held): (usize, &Option<Held>)| match held {
            Some(held) => held.durable >= end,
            None => gone(replica),
        };
        let alone = self.replicas.contains(&None);
        (alone && self.replicas.iter().enumerate().all(settled)).then_some(end)
    }

    /// A replica answered which end it keeps.
    pub fn on_closed(&mut self, replica: usize, told: Told) {
        if let Some(Some(held)) = self.replicas.get_mut(replica) {
            held.end = Some(told);
        }
    }

    /// How many entries the segment holds for ever: `ack` replicas keep the same end, from the same taker.
    #[must_use]
    pub fn closed(&self) -> Option<u64> {
        let keep = |told: &Told| self.answers().filter(|held| held.end.as_ref() == Some(told)).count();
        self.answers().filter_map(|held| held.end).find(|told| keep(told) >= self.ack).map(|told| told.end)
    }

    /// The epoch under which this taker fences, copies and closes.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn needed(&self) -> usize {
        self.replicas.len() - self.ack + 1
    }

    fn answers(&self) -> impl Iterator<Item = &Held> {
        self.replicas.iter().flatten()
    }

    /// The end of the latest taker before.
    fn told(&self) -> Option<u64> {
        self.answers().filter_map(|held| held.end).max().map(|told| told.end)
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod recording;
#[cfg(test)]
mod tests;
