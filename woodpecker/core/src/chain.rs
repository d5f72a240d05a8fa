//! How a log's chain of segments changes: pure functions from the record as read to the compare-and-swap to make.

use crate::{
    ids::{EntryId, Epoch},
    record::{ClosedSegment, LogRecord, OpenSegment},
};

/// What one transaction writes, if the log's record is still the one the change was planned on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Change {
    pub log: LogRecord,
    pub closed: Vec<ClosedSegment>,
}

/// Where a segment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct End {
    pub segment: u64,
    pub entries: u64,
    pub bytes: Option<u64>,
}

/// What an owner wants of its chain: these segments closed there, and this one open. Planning the same step again,
/// after a conflict or an unknown outcome, never does it twice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Step {
    pub epoch: Epoch,
    pub close: Vec<End>,
    pub open: Option<OpenSegment>,
    /// Wall time in milliseconds, kept in what is closed.
    pub at_ms: u64,
}

/// What a [`Step`] comes to on a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Make this change, if the record is still the one that was planned on.
    Commit(Change),
    /// The record shows that it happened.
    Done,
    /// A later owner has the log; nothing may be changed any more.
    Preempted,
}

impl LogRecord {
    /// The change that makes its author the next owner, by wall time in milliseconds. The epoch it leads to belongs to that one
    /// commit alone: also where the record was brought back from a backup, so that nothing which was opened since counts as
    /// the new owner's.
    #[must_use]
    pub fn raise(&self, at_ms: u64) -> Change {
        let mut log = self.clone();
        log.epoch = Epoch(self.epoch.0.saturating_add(1).max(at_ms));
        Change { log, closed: Vec::new() }
    }

    /// Plans a step. Only the epoch decides about ownership: that the record changed, by truncation say, means nothing.
    #[must_use]
    pub fn plan(&self, step: &Step) -> Plan {
        if self.epoch != step.epoch {
            return Plan::Preempted;
        }
        let mut log = self.clone();
        let mut closed = Vec::new();
        log.open.retain(|open| match step.close.iter().find(|end| end.segment == open.segment) {
            Some(end) => {
                closed.push(ClosedSegment {
                    opened: open.clone(),
                    entries: end.entries,
                    bytes: end.bytes,
                    closed_ms: step.at_ms,
                    sealed: None,
                });
                false
            }
            None => true,
        });
        if let Some(open) = step.open.as_ref().filter(|open| open.segment > log.last) {
            log.last = open.segment;
            log.open.push(open.clone());
        }
        if log == *self { Plan::Done } else { Plan::Commit(Change { log, closed }) }
    }

    /// The number of the segment to open next.
    #[must_use]
    pub fn next_segment(&self) -> u64 {
        self.last.saturating_add(1)
    }

    /// The number of the first segment that may still grow: the first open one, or the one to come.
    #[must_use]
    pub fn growing_from(&self) -> u64 {
        self.open.first().map_or_else(|| self.next_segment(), |open| open.segment)
    }

    /// The change that truncates up to and including `up_to`, or `None` if that is truncated already.
    #[must_use]
    pub fn truncate(&self, up_to: EntryId) -> Option<Change> {
        if self.is_truncated(up_to) {
            return None;
        }
        let mut log = self.clone();
        log.truncated = Some(up_to);
        Some(Change { log, closed: Vec::new() })
    }

    /// Whether the entry lies at or below the truncation point.
    #[must_use]
    pub fn is_truncated(&self, entry: EntryId) -> bool {
        self.truncated.is_some_and(|truncated| entry <= truncated)
    }

    /// The smallest id that an entry that was not truncated can have.
    #[must_use]
    pub fn earliest(&self) -> EntryId {
        self.truncated.map_or(EntryId { segment: 1, entry: 0 }, EntryId::successor)
    }
}

impl EntryId {
    /// The smallest id after this one.
    #[must_use]
    pub fn successor(self) -> Self {
        match self.entry.checked_add(1) {
            Some(entry) => Self { segment: self.segment, entry },
            None => Self { segment: self.segment.saturating_add(1), entry: 0 },
        }
    }
}

impl ClosedSegment {
    /// Whether every entry of it, now and ever, is truncated. Open segments have no such question: they are never deleted.
    #[must_use]
    pub fn is_below(&self, truncated: EntryId) -> bool {
        self.segment() < truncated.segment
            || (self.segment() == truncated.segment && self.entries <= truncated.entry.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{LogId, Placement, VolumeId};

    fn open(segment: u64) -> OpenSegment {
        let placement = Placement::Volume { volume: VolumeId(1), from_batch: 0 };
        OpenSegment { segment, backend: "memory".into(), placement, created_ms: 1 }
    }

    fn step(epoch: u64, close: &[(u64, u64)], next: Option<u64>) -> Step {
        let close = close.iter().map(|&(segment, entries)| End { segment, entries, bytes: None }).collect();
        Step { epoch: Epoch(epoch), close, open: next.map(open), at_ms: 2 }
    }

    fn commit(log: &mut LogRecord, step: &Step) -> Vec<ClosedSegment> {
        let Plan::Commit(change) = log.plan(step) else { panic!("{:?}", log.plan(step)) };
        *log = change.log;
        change.closed
    }

    #[test]
    fn a_step_is_done_once_however_often_it_is_planned() {
        let mut log = LogRecord::new(LogId(1), "a").raise(0).log;
        assert_eq!(log.epoch, Epoch(1));
        let first = step(1, &[], Some(1));
        assert!(commit(&mut log, &first).is_empty());
        assert_eq!(log.plan(&first), Plan::Done);
        let roll = step(1, &[(1, 5)], Some(2));
        let closed = commit(&mut log, &roll);
        assert_eq!(closed.iter().map(|c| (c.segment(), c.entries)).collect::<Vec<_>>(), [(1, 5)]);
        assert_eq!(log.plan(&roll), Plan::Done);
        assert_eq!(log.plan(&first), Plan::Done);
        assert_eq!((log.last, log.open.len()), (2, 1));
    }

    #[test]
    fn an_epoch_that_is_raised_again_from_an_older_record_is_another_one() {
        let backup = LogRecord::new(LogId(1), "a").raise(1_000).log;
        let (before, after) = (backup.raise(2_000).log.epoch, backup.raise(3_000).log.epoch);
        assert!(backup.epoch < before && before < after);
        assert_eq!(backup.raise(0).log.epoch, Epoch(1_001), "whatever the clock says, it is raised");
    }

    #[test]
    fn truncation_takes_nothing_from_an_owner_and_a_later_epoch_takes_all() {
        let mut log = LogRecord::new(LogId(1), "a").raise(0).log;
        commit(&mut log, &step(1, &[], Some(1)));
        log = log.truncate(EntryId { segment: 1, entry: 3 }).unwrap().log;
        assert!(matches!(log.plan(&step(1, &[(1, 9)], Some(2))), Plan::Commit(_)));
        log = log.raise(0).log;
        assert_eq!(log.plan(&step(1, &[(1, 9)], Some(2))), Plan::Preempted);
    }

    #[test]
    fn truncation_only_goes_forward() {
        let log = LogRecord::new(LogId(1), "a").truncate(EntryId { segment: 2, entry: 3 }).unwrap().log;
        assert_eq!(log.truncate(EntryId { segment: 2, entry: 3 }), None);
        assert_eq!(log.truncate(EntryId { segment: 1, entry: 9 }), None);
        assert_eq!(log.earliest(), EntryId { segment: 2, entry: 4 });
        assert!(log.truncate(EntryId { segment: 2, entry: 4 }).is_some());
    }

    #[test]
    fn a_segment_is_below_only_with_its_last_entry() {
        let closed = |segment, entries| ClosedSegment {
            opened: open(segment),
            entries,
            bytes: None,
            closed_ms: 3,
            sealed: None,
        };
        let at = EntryId { segment: 5, entry: 2 };
        assert!(closed(4, 100).is_below(at));
        assert!(closed(5, 3).is_below(at) && closed(5, 0).is_below(at));
        assert!(!closed(5, 4).is_below(at) && !closed(6, 0).is_below(at));
    }
}
