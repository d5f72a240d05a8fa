//! The writer between two events, without any I/O but handing entries to the open segment.
//!
//! Entries go to one segment at a time, and to the next only when all before are durable: an unacked entry can be lost
//! with all that came after it, never from between. What cannot be handed on yet is held, in order.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::oneshot;
use woodpecker_base::clock::{Clock, Instant};
use woodpecker_core::{chain::End, record::OpenSegment};
use woodpecker_store::backend::{SegmentEnd, SegmentWriter, StoreError};

use super::{Append, AppendState, Appended};
use crate::{AppendError, EntryId, Settings, catalog::Found};

/// What an entry costs beside its bytes, so that empty entries are bounded too.
const ENTRY_COST: usize = 64;
/// Times the in-flight limit: those who wait for it may each add one append when it is met.
const HARD_FACTOR: usize = 8;
/// Times the segment size: how far a segment may grow while the metadata store does not let it be rolled.
const STRETCH: u64 = 64;
/// Until what a full queue had no room for is handed on again: at first, and as long as it stays full.
const AGAIN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

#[derive(Debug, Clone)]
pub(super) struct Limits {
    in_flight: usize,
    append_bytes: usize,
    segment_bytes: u64,
    segment_age: Duration,
}

impl Limits {
    pub fn new(settings: &Settings, append_bytes: usize) -> Self {
        Self {
            in_flight: settings.in_flight_bytes.max(1),
            append_bytes,
            segment_bytes: settings.segment_bytes.max(1),
            segment_age: settings.segment_age,
        }
    }
}

/// What is left to do when the lock is released.
#[derive(Debug, Default)]
pub(super) struct After {
    /// Segments that are complete, with their entry counts.
    pub retired: Vec<(u64, u64)>,
    /// There is room again for those who wait.
    pub room: bool,
    pub ended: Option<AppendError>,
    /// The chain must change: run [`super::settle`].
    pub settle: bool,
    /// The medium had no room: hand on again in so long.
    pub again: Option<Duration>,
}

/// How the chain must change.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Work {
    Nothing,
    /// Record these ends and open the next segment.
    Open(Vec<End>),
    /// Record these ends.
    Close(Vec<End>),
    /// Record these ends, of all that is open, and give the log up.
    GiveUp(Vec<End>),
}

#[derive(Debug)]
enum Phase {
    Open,
    Closing,
    Ended(AppendError),
}

#[derive(Debug)]
pub(super) struct State {
    limits: Limits,
    clock: Clock,
    phase: Phase,
    close_outcome: Result<(), AppendError>,
    active: Option<Active>,
    /// The next segment, open by its record and waiting until the active one is durable.
    prepared: Option<(OpenSegment, Arc<dyn SegmentWriter>)>,
    /// Handed to the active segment and not acked.
    waiting: VecDeque<Waiting>,
    /// Not handed to any segment.
    held: VecDeque<Waiting>,
    in_flight: usize,
    /// Complete, but not recorded as closed.
    retired: Vec<End>,
    roll: bool,
    settling: bool,
    /// Handing on again is under way.
    again: bool,
    /// How long it waited last.
    pause: Duration,
    abandoned: bool,
    found: Found,
    /// The last segment that the record opened for this writer.
    newest: u64,
    /// Ends told of segments before this writer learnt that they are its own.
    early: Vec<(u64, SegmentEnd)>,
}

#[derive(Debug)]
struct Active {
    segment: u64,
    handle: Arc<dyn SegmentWriter>,
    issued: u64,
    acked: u64,
    bytes: u64,
    acked_bytes: u64,
    since: Instant,
    /// It refused an append; why is about to be told.
    refusing: bool,
}

#[derive(Debug)]
struct Waiting {
    entries: Vec<Bytes>,
    bytes: usize,
    first: u64,
    reply: oneshot::Sender<Result<Appended, AppendError>>,
}

impl Waiting {
    fn count(&self) -> u64 {
        self.entries.len() as u64
    }

    fn cost(&self) -> usize {
        self.bytes + self.entries.len() * ENTRY_COST
    }

    fn answer(self, answer: Result<Appended, AppendError>) {
        // Nobody listening is fine: dropping an append does not take it back.
        let _ = self.reply.send(answer);
    }
}

impl Active {
    fn end(&self) -> End {
        End { segment: self.segment, entries: self.acked, bytes: Some(self.acked_bytes) }
    }
}

impl State {
    pub fn new(limits: Limits, found: Found, clock: Clock) -> Self {
        Self {
            limits,
            clock,
            phase: Phase::Open,
            close_outcome: Ok(()),
            active: None,
            prepared: None,
            waiting: VecDeque::new(),
            held: VecDeque::new(),
            in_flight: 0,
            retired: Vec::new(),
            roll: false,
            settling: false,
            again: false,
            pause: Duration::ZERO,
            abandoned: false,
            found,
            newest: 0,
            early: Vec::new(),
        }
    }

    /// The log's record as this writer last committed or read it.
    pub fn found(&self) -> Found {
        self.found.clone()
    }

    pub fn has_room(&self) -> bool {
        self.in_flight < self.limits.in_flight || self.is_ended()
    }

    pub fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended(_))
    }

    pub fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing)
    }

    pub fn is_settling(&self) -> bool {
        self.settling
    }

    pub fn close_outcome(&self) -> Result<(), AppendError> {
        self.close_outcome.clone()
    }

    pub fn append(&mut self, entries: Vec<Bytes>, after: &mut After) -> Append {
        let bytes = entries.iter().map(Bytes::len).sum();
        if let Err(error) = self.admit(bytes) {
            return Append { state: AppendState::Refused(error) };
        }
        let (reply, receiver) = oneshot::channel();
        let waiting = Waiting { entries, bytes, first: 0, reply };
        self.in_flight += waiting.cost();
        self.held.push_back(waiting);
        self.hand_on(after);
        if self.is_due() {
            self.roll = true;
            self.ask_to_settle(after);
        }
        Append { state: AppendState::Queued(receiver) }
    }

    fn admit(&self, bytes: usize) -> Result<(), AppendError> {
        match &self.phase {
            Phase::Open => {}
            Phase::Closing => return Err(AppendError::Closed),
            Phase::Ended(reason) => return Err(reason.clone()),
        }
        if bytes > self.limits.append_bytes {
            return Err(AppendError::TooLarge { bytes, limit: self.limits.append_bytes });
        }
        if self.in_flight > self.limits.in_flight.saturating_mul(HARD_FACTOR) {
            return Err(AppendError::Overloaded { bytes: self.in_flight });
        }
        Ok(())
    }

    /// Whether the active segment is to be rolled, and that is not under way.
    fn is_due(&self) -> bool {
        let Some(active) = &self.active else { return self.prepared.is_none() && !self.held.is_empty() };
        self.prepared.is_none()
            && !self.roll
            && active.issued > 0
            && (active.bytes >= self.limits.segment_bytes
                || self.clock.now().duration_since(active.since) >= self.limits.segment_age)
    }

    /// Looks whether the active segment must end though nobody appends: it is old, or its successor belongs `elsewhere`.
    /// Whether that is under way now. A segment without entries is never old: a log that stays idle rolls once.
    pub fn tend(&mut self, elsewhere: bool, after: &mut After) -> bool {
        let moves = elsewhere && self.prepared.is_none() && !self.roll;
        if self.is_open() && !self.abandoned && self.active.is_some() && (moves || self.is_due()) {
            self.roll = true;
            self.ask_to_settle(after);
        }
        self.settling
    }

    /// Hands held entries to the active segment as far as that may be.
    fn hand_on(&mut self, after: &mut After) {
        let stretched = self.limits.segment_bytes.saturating_mul(STRETCH);
        while let Some(active) = &mut self.active {
            if active.refusing || self.prepared.is_some() || active.bytes >= stretched {
                return;
            }
            let Some(mut waiting) = self.held.pop_front() else { return };
            if waiting.entries.is_empty() {
                waiting.first = active.issued;
                // It waits for what is before it, like any other.
                if self.waiting.is_empty() {
                    let first = EntryId { segment: active.segment, entry: active.issued };
                    waiting.answer(Ok(Appended { first, count: 0 }));
                } else {
                    self.waiting.push_back(waiting);
                }
                continue;
            }
            match active.handle.append(waiting.entries.clone()) {
                Ok(first) => {
                    waiting.first = first;
                    active.issued = first + waiting.count();
                    active.bytes += waiting.bytes as u64;
                    self.waiting.push_back(waiting);
                    self.pause = Duration::ZERO;
                }
                Err(StoreError::Ended) => {
                    active.refusing = true;
                    self.held.push_front(waiting);
                }
                // What others have queued is in the way. To refuse this one and take a later one would leave a hole.
                Err(StoreError::Unavailable(_)) => {
                    self.held.push_front(waiting);
                    if !std::mem::replace(&mut self.again, true) {
                        self.pause = (2 * self.pause).clamp(AGAIN.0, AGAIN.1);
                        after.again = Some(self.pause);
                    }
                    return;
                }
                Err(error) => {
                    self.in_flight -= waiting.cost();
                    let error = match error {
                        StoreError::TooLarge { bytes, limit } => AppendError::TooLarge { bytes, limit },
                        error => {
                            self.end(AppendError::Failed(error.clone()), after);
                            AppendError::Failed(error)
                        }
                    };
                    waiting.answer(Err(error));
                }
            }
        }
    }

    /// Hands on what the medium had no room for.
    pub fn hand_on_again(&mut self, after: &mut After) {
        self.again = false;
        self.hand_on(after);
        if self.waiting.is_empty() {
            self.promote(after);
        }
    }

    /// Entries of the segment below `next` are durable.
    pub fn acked(&mut self, segment: u64, next: u64, after: &mut After) {
        if let Some(active) = self.active.as_mut().filter(|active| active.segment == segment) {
            active.acked = active.acked.max(next);
            self.answer_acked(after);
        }
    }

    fn answer_acked(&mut self, after: &mut After) {
        let Some(active) = &mut self.active else { return };
        let had_room = self.in_flight < self.limits.in_flight;
        while let Some(waiting) = self.waiting.pop_front_if(|first| first.first + first.count() <= active.acked) {
            self.in_flight -= waiting.cost();
            active.acked_bytes += waiting.bytes as u64;
            let first = EntryId { segment: active.segment, entry: waiting.first };
            let count = waiting.count();
            waiting.answer(Ok(Appended { first, count }));
        }
        after.room |= !had_room && self.in_flight < self.limits.in_flight;
        if self.waiting.is_empty() {
            self.promote(after);
        }
    }

    /// Everything handed on is answered: the prepared segment may follow, unless the one before it was displaced and its
    /// end is not recorded. Until then a later owner may find there what would go into the next.
    fn promote(&mut self, after: &mut After) {
        let may_follow = self.active.is_some() || self.retired.is_empty();
        if let Some((open, handle)) = self.prepared.take_if(|_| may_follow) {
            self.retire_active(true, after);
            self.active = Some(Active {
                segment: open.segment,
                handle,
                issued: 0,
                acked: 0,
                bytes: 0,
                acked_bytes: 0,
                since: self.clock.now(),
                refusing: false,
            });
            self.hand_on(after);
        }
        if self.waiting.is_empty() && self.held.is_empty() {
            match self.phase {
                Phase::Closing => self.ask_to_settle(after),
                Phase::Open if self.abandoned => self.end(AppendError::Closed, after),
                Phase::Open | Phase::Ended(_) => {}
            }
        }
    }

    /// `sure` is whether nobody can find more in the segment than was acked.
    fn retire_active(&mut self, sure: bool, after: &mut After) {
        if let Some(active) = self.active.take() {
            self.retired.push(active.end());
            if sure {
                after.retired.push((active.segment, active.acked));
            }
            self.ask_to_settle(after);
        }
    }

    /// The segment that was to come next gets nothing.
    fn retire_prepared(&mut self) {
        if let Some((open, _)) = self.prepared.take() {
            self.retired.push(End { segment: open.segment, entries: 0, bytes: Some(0) });
        }
    }

    /// The segment takes no more appends.
    pub fn segment_ended(&mut self, segment: u64, end: SegmentEnd, after: &mut After) {
        let is_active = self.active.as_ref().is_some_and(|active| active.segment == segment);
        let is_prepared = self.prepared.as_ref().is_some_and(|(open, _)| open.segment == segment);
        match end {
            _ if segment > self.newest => self.early.push((segment, end)),
            SegmentEnd::Fenced => self.end(AppendError::Fenced, after),
            SegmentEnd::Failed(error) if is_active || is_prepared => self.end(AppendError::Failed(error), after),
            SegmentEnd::Displaced if is_active => {
                // Readers learn the end when it is recorded: a later owner who comes first may find more.
                self.retire_active(self.waiting.is_empty(), after);
                // What was not acked goes first, and into no segment before the end of this one is recorded: until then a
                // later owner may find it here.
                let mut again = std::mem::take(&mut self.waiting);
                again.append(&mut self.held);
                self.held = again;
                self.retire_prepared();
                self.promote(after);
                self.ask_to_settle(after);
            }
            SegmentEnd::Displaced if is_prepared => {
                self.retire_prepared();
                self.roll = true;
                self.hand_on(after);
                self.ask_to_settle(after);
            }
            // A segment that was complete before: nothing is lost with it.
            SegmentEnd::Failed(_) | SegmentEnd::Displaced => {}
        }
    }

    /// The record says that the segment is open for this writer.
    pub fn opened(
        &mut self,
        found: Found,
        ends: &[End],
        open: OpenSegment,
        handle: Arc<dyn SegmentWriter>,
        after: &mut After,
    ) {
        self.record(found, ends);
        if self.is_ended() {
            return;
        }
        self.roll = false;
        let segment = open.segment;
        self.newest = segment;
        self.prepared = Some((open, handle));
        if let Some(at) = self.early.iter().position(|(early, _)| *early == segment) {
            let (_, end) = self.early.swap_remove(at);
            self.segment_ended(segment, end, after);
        }
        if self.waiting.is_empty() && !self.is_ended() {
            self.promote(after);
        }
    }

    /// These ends are recorded.
    pub fn recorded(&mut self, found: Found, ends: &[End], after: &mut After) {
        self.record(found, ends);
        if self.waiting.is_empty() && !self.is_ended() {
            self.promote(after);
        }
    }

    fn record(&mut self, found: Found, ends: &[End]) {
        self.found = found;
        self.retired.retain(|retired| ends.iter().all(|end| end.segment != retired.segment));
    }

    pub fn close(&mut self, after: &mut After) {
        if matches!(self.phase, Phase::Open) {
            self.phase = Phase::Closing;
            self.ask_to_settle(after);
        }
    }

    /// The owner is gone without closing: what is queued goes on, and then the segment is let go as it is.
    pub fn abandon(&mut self, after: &mut After) {
        self.abandoned = true;
        if matches!(self.phase, Phase::Open) && self.waiting.is_empty() && self.held.is_empty() {
            self.end(AppendError::Closed, after);
        }
    }

    /// The writer never acks again. Waiters hear of it only after it is so.
    pub fn end(&mut self, reason: AppendError, after: &mut After) {
        if self.is_ended() {
            return;
        }
        self.phase = Phase::Ended(reason.clone());
        self.active = None;
        self.prepared = None;
        self.in_flight = 0;
        after.room = true;
        after.ended = Some(reason.clone());
        // Entries that were queued are in the log, or not: a plain "closed" would deny it.
        let answer = match reason {
            AppendError::Closed => AppendError::Failed(StoreError::Unavailable("the writer was closed".into())),
            reason => reason,
        };
        for waiting in self.waiting.drain(..).chain(self.held.drain(..)) {
            waiting.answer(Err(answer.clone()));
        }
    }

    /// The log is given up, cleanly or not.
    pub fn gave_up(&mut self, outcome: Result<(), AppendError>, after: &mut After) {
        self.close_outcome = outcome;
        self.end(AppendError::Closed, after);
    }

    fn ask_to_settle(&mut self, after: &mut After) {
        if !self.settling && !self.is_ended() {
            self.settling = true;
            after.settle = true;
        }
    }

    /// What is to be done next; after [`Work::Nothing`] the one who asked must stop.
    pub fn work(&mut self) -> Work {
        let drained = self.waiting.is_empty() && self.held.is_empty();
        let ends = self.retired.clone();
        let work = match self.phase {
            Phase::Ended(_) => Work::Nothing,
            Phase::Closing if drained => {
                let prepared = self.prepared.iter().map(|(open, _)| open.segment);
                let prepared = prepared.map(|segment| End { segment, entries: 0, bytes: Some(0) });
                Work::GiveUp(ends.into_iter().chain(self.active.iter().map(Active::end)).chain(prepared).collect())
            }
            Phase::Open | Phase::Closing => {
                let stuck = self.active.is_none() && !self.held.is_empty();
                let roll = self.roll && self.active.is_some() && (self.is_open() || !self.held.is_empty());
                if self.prepared.is_none() && (stuck || roll) {
                    Work::Open(ends)
                } else if ends.is_empty() {
                    Work::Nothing
                } else {
                    Work::Close(ends)
                }
            }
        };
        if work == Work::Nothing {
            self.settling = false;
        }
        work
    }

    fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// The one who settles stops without having done the work; the next append that needs it asks again.
    pub fn stop_settling(&mut self, after: &mut After) {
        self.settling = false;
        self.roll = false;
        // Told to close since: that is tried in any case.
        if self.is_closing() {
            self.ask_to_settle(after);
        }
    }
}

#[cfg(test)]
mod tests;
