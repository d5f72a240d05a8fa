//! Taking a log for writing, as a state machine: it says what to do next and is told what came of it.
//!
//! First raise the epoch, then fence what is open and learn where it ends, record the ends and close it, open the next
//! segment. Whoever raises the epoch later wins; whoever is overtaken stops at its next compare-and-swap, and has at
//! most fenced and closed what the winner would have. A log that was given up cleanly has nothing open: no fence.

use crate::{
    chain::{Change, End, Plan, Step},
    ids::{Epoch, LogId, Placement},
    record::{LogRecord, OpenSegment},
};

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Read the log's record; answer with [`Opening::on_read`].
    Read,
    /// Commit the change if the record is still at `revision`; answer with [`Opening::on_commit`].
    Commit { revision: i64, change: Change },
    /// Fence the segment durably, and find how many entries it holds; answer with [`Opening::on_fenced`].
    Fence { segment: OpenSegment, epoch: Epoch },
    /// Create the segment on a medium; answer with [`Opening::on_created`].
    Create { segment: u64, epoch: Epoch },
    /// The log is ours, and empty `segment` is open for appends.
    Ready { log: LogRecord, revision: i64, segment: OpenSegment },
    /// A later owner came in between.
    Preempted,
    /// The log was deleted.
    Gone,
}

/// What came of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitOutcome {
    Committed(i64),
    Conflict,
    /// It may have taken effect, or may still.
    Unknown,
}

/// The protocol, in progress.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Opening {
    id: LogId,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum State {
    Reading,
    Raising(Seen, Change),
    /// The epoch is ours. This open segment is to be fenced; the ends of those before it are known.
    Fencing(Seen, OpenSegment, Vec<End>),
    Creating(Seen),
    /// Bringing the record to where the step wants it: the ends recorded, or the next segment opened.
    Committing(Step, i64, Change),
    Rereading(Step),
    Ready(Seen, OpenSegment),
    Preempted,
    Gone,
}

/// The record as read or written, with its revision.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Seen {
    log: LogRecord,
    revision: i64,
}

impl Opening {
    /// Starts to open the log.
    #[must_use]
    pub fn new(id: LogId) -> Self {
        Self { id, state: State::Reading }
    }

    /// What to do next. Until it is answered, the same is said again.
    #[must_use]
    pub fn next(&self) -> Next {
        match &self.state {
            State::Reading | State::Rereading(_) => Next::Read,
            State::Raising(seen, change) => Next::Commit { revision: seen.revision, change: change.clone() },
            State::Committing(_, revision, change) => Next::Commit { revision: *revision, change: change.clone() },
            State::Fencing(seen, segment, _) => Next::Fence { segment: segment.clone(), epoch: seen.log.epoch },
            State::Creating(seen) => Next::Create { segment: seen.log.next_segment(), epoch: seen.log.epoch },
            State::Ready(seen, segment) => {
                Next::Ready { log: seen.log.clone(), revision: seen.revision, segment: segment.clone() }
            }
            State::Preempted => Next::Preempted,
            State::Gone => Next::Gone,
        }
    }

    /// The answer to [`Next::Read`]: the record under the log's name, with its revision. `at_ms` is the wall time.
    pub fn on_read(&mut self, found: Option<(LogRecord, i64)>, at_ms: u64) {
        let seen = found.filter(|(log, _)| log.id == self.id).map(|(log, revision)| Seen { log, revision });
        self.step(|state| match (state, seen) {
            (State::Reading | State::Rereading(_), None) => State::Gone,
            (State::Reading, Some(seen)) => {
                let change = seen.log.raise(at_ms);
                State::Raising(seen, change)
            }
            (State::Rereading(step), Some(seen)) => toward(step, seen),
            (state, _) => state,
        });
    }

    /// The answer to [`Next::Commit`].
    pub fn on_commit(&mut self, outcome: CommitOutcome) {
        self.step(|state| match (state, outcome) {
            (State::Raising(_, change), CommitOutcome::Committed(revision)) => {
                fencing(Seen { log: change.log, revision }, Vec::new(), 0)
            }
            // After an unknown outcome the record may show our epoch, or another opener's that happens to be the same
            // number: only an epoch whose commit was confirmed is ours, so a new one is raised.
            (State::Raising(..), CommitOutcome::Conflict | CommitOutcome::Unknown) => State::Reading,
            (State::Committing(step, _, change), CommitOutcome::Committed(revision)) => {
                done(step, Seen { log: change.log, revision })
            }
            (State::Committing(step, ..), CommitOutcome::Conflict | CommitOutcome::Unknown) => State::Rereading(step),
            (state, _) => state,
        });
    }

    /// The answer to [`Next::Fence`]: how many entries the segment holds. `at_ms` is the wall time.
    pub fn on_fenced(&mut self, entries: u64, at_ms: u64) {
        self.step(|state| match state {
            State::Fencing(seen, fenced, mut ends) => {
                ends.push(End { segment: fenced.segment, entries, bytes: None });
                fencing(seen, ends, at_ms)
            }
            state => state,
        });
    }

    /// The answer to [`Next::Create`]. `at_ms` is the wall time.
    pub fn on_created(&mut self, backend: &str, placement: Placement, at_ms: u64) {
        self.step(|state| match state {
            State::Creating(seen) => {
                let segment = seen.log.next_segment();
                let open = OpenSegment { segment, backend: backend.to_owned(), placement, created_ms: at_ms };
                toward(Step { epoch: seen.log.epoch, close: Vec::new(), open: Some(open), at_ms }, seen)
            }
            state => state,
        });
    }

    fn step(&mut self, next: impl FnOnce(State) -> State) {
        self.state = next(std::mem::replace(&mut self.state, State::Reading));
    }
}

/// What comes once the ends of the first open segments are known.
fn fencing(seen: Seen, ends: Vec<End>, at_ms: u64) -> State {
    match seen.log.open.get(ends.len()).cloned() {
        Some(segment) => State::Fencing(seen, segment, ends),
        None => toward(Step { epoch: seen.log.epoch, close: ends, open: None, at_ms }, seen),
    }
}

fn toward(step: Step, seen: Seen) -> State {
    match seen.log.plan(&step) {
        Plan::Commit(change) => State::Committing(step, seen.revision, change),
        Plan::Done => done(step, seen),
        Plan::Preempted => State::Preempted,
    }
}

fn done(step: Step, seen: Seen) -> State {
    match step.open {
        None => State::Creating(seen),
        Some(segment) => State::Ready(seen, segment),
    }
}

#[cfg(test)]
mod model;
