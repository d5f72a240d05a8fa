//! What this process knows of a log's chain. Shared by the log's writer, which tells it first, by its readers, which
//! wait on it, and fed by one watch for all logs, which tells what other processes do.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use woodpecker_base::{level::Level, metadata::Revision};
use woodpecker_core::{
    ids::{EntryId, LogId, SealId},
    record::{ClosedSegment, LogRecord, OpenSegment, Sealed},
};

use crate::catalog::Found;

#[derive(Debug)]
pub(crate) struct View {
    pub name: String,
    pub id: LogId,
    known: Mutex<Known>,
    /// Rises with every change of what is known.
    pub changes: Level,
    /// Whether the watch of this process was told to keep it up to date.
    pub followed: AtomicBool,
}

#[derive(Debug)]
struct Known {
    log: LogRecord,
    revision: Revision,
    deleted: bool,
    closed: BTreeMap<u64, ClosedSegment>,
    /// Whether `closed` was read once; later closings are added one by one.
    listed: bool,
    /// Where segments end that a writer in this process is through with, before the metadata store knows.
    ended: BTreeMap<u64, u64>,
    /// Writers in this process: while there is one, what is known here is as new as can be.
    writers: usize,
    /// Readers in this process that hold what they have not read, truncated or not.
    holders: usize,
}

/// The entries of a segment that gets no more.
#[derive(Debug, Clone)]
pub(crate) struct Extent {
    pub opened: OpenSegment,
    /// How many there are, for ever.
    pub entries: u64,
    pub sealed: Option<Sealed>,
}

impl From<&ClosedSegment> for Extent {
    fn from(closed: &ClosedSegment) -> Self {
        Self { opened: closed.opened.clone(), entries: closed.entries, sealed: closed.sealed.clone() }
    }
}

/// Where a segment's entries are.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Ended(Extent),
    Open(OpenSegment),
    /// It does not exist yet.
    Ahead,
    /// Neither open nor among the closed ones known here.
    Unknown,
    Deleted,
}

/// In which form a segment is known. Whoever fails to read one form may find another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Open,
    Closed,
    Sealed(SealId),
    /// It is not there.
    None,
}

impl Extent {
    pub fn form(&self) -> Form {
        self.sealed.as_ref().map_or(Form::Closed, |sealed| Form::Sealed(sealed.id))
    }
}

impl Place {
    pub fn form(&self) -> Form {
        match self {
            Self::Ended(extent) => extent.form(),
            Self::Open(_) => Form::Open,
            Self::Ahead | Self::Unknown | Self::Deleted => Form::None,
        }
    }
}

impl View {
    pub fn new((log, revision): Found) -> Self {
        Self {
            name: log.name.clone(),
            id: log.id,
            known: Mutex::new(Known {
                log,
                revision,
                deleted: false,
                closed: BTreeMap::new(),
                listed: false,
                ended: BTreeMap::new(),
                writers: 0,
                holders: 0,
            }),
            changes: Level::default(),
            followed: AtomicBool::new(false),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Known) -> T) -> T {
        let answer = change(&mut self.known());
        self.changes.step();
        answer
    }

    /// The record as known here.
    pub fn log(&self) -> Found {
        let known = self.known();
        (known.log.clone(), known.revision)
    }

    /// What the record says of something.
    pub fn ask<T>(&self, what: impl FnOnce(&LogRecord) -> T) -> T {
        what(&self.known().log)
    }

    pub fn truncated(&self) -> Option<EntryId> {
        self.known().log.truncated
    }

    pub fn has_writer(&self) -> bool {
        self.known().writers > 0
    }

    pub fn is_deleted(&self) -> bool {
        self.known().deleted
    }

    pub fn is_listed(&self) -> bool {
        self.known().listed
    }

    pub fn place(&self, segment: u64) -> Place {
        let known = self.known();
        if known.deleted {
            return Place::Deleted;
        }
        if let Some(closed) = known.closed.get(&segment) {
            return Place::Ended(closed.into());
        }
        match known.log.open.iter().find(|open| open.segment == segment) {
            Some(open) => match known.ended.get(&segment) {
                Some(entries) => Place::Ended(Extent { opened: open.clone(), entries: *entries, sealed: None }),
                None => Place::Open(open.clone()),
            },
            None if segment > known.log.last => Place::Ahead,
            None => Place::Unknown,
        }
    }

    /// Bytes per entry of a closed segment, if both are known.
    pub fn entry_bytes(&self, segment: u64) -> Option<u64> {
        let known = self.known();
        let closed = known.closed.get(&segment)?;
        closed.bytes?.checked_div(closed.entries)
    }

    /// Takes a record that was read, written or watched; an older one than known changes nothing.
    pub fn learn(&self, (log, revision): Found, closed: impl IntoIterator<Item = ClosedSegment>) {
        self.change(|known| {
            known.closed.extend(closed.into_iter().map(|closed| (closed.segment(), closed)));
            if log.id != self.id {
                // An older one is of the log that had the name before.
                known.deleted |= revision > known.revision;
            } else if revision > known.revision {
                known.log = log;
                known.revision = revision;
            }
            if let Some(truncated) = known.log.truncated
                && known.holders == 0
            {
                known.closed.retain(|_, closed| !closed.is_below(truncated));
            }
            let Known { log, ended, closed, .. } = known;
            // Where an ended segment ends must stay known until its record is.
            ended.retain(|segment, _| !closed.contains_key(segment) && log.open.iter().any(|o| o.segment == *segment));
        });
    }

    /// Takes the list of closed segments as read.
    pub fn learn_all_closed(&self, closed: Vec<ClosedSegment>) {
        self.change(|known| {
            known.closed.extend(closed.into_iter().map(|closed| (closed.segment(), closed)));
            known.listed = true;
        });
    }

    /// The log was gone at that revision.
    pub fn learn_deleted(&self, at: Option<Revision>) {
        if at.is_none_or(|at| at >= self.known().revision) {
            self.change(|known| known.deleted = true);
        }
    }

    /// A writer in this process appends no more to the segment, and all it appended is durable.
    pub fn end(&self, segment: u64, entries: u64) {
        self.change(|known| known.ended.insert(segment, entries));
    }

    /// The segment's record is gone, and with it the data.
    pub fn forget(&self, segment: u64) {
        self.change(|known| known.closed.remove(&segment));
    }

    pub fn attach_holder(&self) {
        self.change(|known| known.holders += 1);
    }

    pub fn detach_holder(&self) {
        self.change(|known| known.holders = known.holders.saturating_sub(1));
    }

    pub fn attach_writer(&self) {
        self.change(|known| known.writers += 1);
    }

    pub fn detach_writer(&self) {
        self.change(|known| known.writers = known.writers.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_late_of_the_log_that_had_the_name_before_deletes_nothing() {
        let of = |id| LogRecord::new(LogId(id), "log");
        let view = View::new((of(2), 10));
        view.learn((of(1), 5), []);
        view.learn_deleted(Some(6));
        assert!(!view.is_deleted());
        view.learn((of(3), 20), []);
        assert!(view.is_deleted());
    }
}
