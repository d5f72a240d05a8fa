//! The opening protocol against a model of the metadata store and of media, in every order of steps, with crashes,
//! commits whose answer is lost or that take effect late, and acks that arrive late.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{CommitOutcome, Next, Opening};
use crate::{
    chain::{Change, End, Plan, Step},
    ids::{Epoch, LogId, Placement, VolumeId},
    record::{ClosedSegment, LogRecord, OpenSegment},
};

const LOG: LogId = LogId(1);

/// A segment on a medium.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Stored {
    durable: u64,
    acked: u64,
    fenced: bool,
}

/// An owner's side after it is ready: one segment appended to, maybe one prepared, maybe one finished but not recorded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Owner {
    epoch: Epoch,
    current: OpenSegment,
    next: Option<OpenSegment>,
    retired: Option<End>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Actor {
    Opening(Opening),
    Owner(Owner),
    Dead,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct World {
    revision: i64,
    log: LogRecord,
    closed: BTreeMap<u64, ClosedSegment>,
    /// By placement: an owner-to-be has a volume of its own.
    media: BTreeMap<Placement, Stored>,
    actors: Vec<Actor>,
    /// Commits that were sent and answered by a timeout, but may still take effect.
    late: Vec<(i64, Change)>,
    /// How many commits may still go wrong; bounds the search.
    faults: u8,
    /// How many entries may still be appended; bounds the search.
    appends: u8,
    rolls: u8,
    crashes: u8,
}

/// What may happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// The actor does what its protocol says next, and hears of it.
    Go(usize),
    /// The actor commits; it takes effect, but the answer is lost.
    AnswerLost(usize),
    /// The actor commits; it times out, and may take effect later.
    Late(usize),
    TakesEffect(usize),
    Crash(usize),
    /// An entry of the owner becomes durable.
    Append(usize),
    /// The owner is told of what is durable.
    Ack(usize),
    Prepare(usize),
    /// As [`Event::Prepare`], but the commit times out, and may take effect later; the owner will try again.
    PrepareLate(usize),
    Swap(usize),
    RecordEnd(usize),
    Close(usize),
    Truncate,
}

impl World {
    fn new(openers: usize, faults: u8, appends: u8, rolls: u8, crashes: u8) -> Self {
        Self {
            revision: 1,
            log: LogRecord::new(LOG, "log"),
            closed: BTreeMap::new(),
            media: BTreeMap::new(),
            actors: (0..openers).map(|_| Actor::Opening(Opening::new(LOG))).collect(),
            late: Vec::new(),
            faults,
            appends,
            rolls,
            crashes,
        }
    }

    fn commit(&mut self, revision: i64, change: Change) -> CommitOutcome {
        if revision != self.revision {
            return CommitOutcome::Conflict;
        }
        self.revision += 1;
        self.log = change.log;
        for closed in change.closed {
            assert_eq!(self.closed.insert(closed.segment(), closed), None, "a segment is closed once");
        }
        self.check();
        CommitOutcome::Committed(self.revision)
    }

    /// The record must lead to every acked entry, and to nothing else.
    fn check(&self) {
        let mut numbers: Vec<u64> =
            self.closed.keys().copied().chain(self.log.open.iter().map(|open| open.segment)).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=self.log.last).collect::<Vec<_>>(), "numbered from 1 without a gap");
        let open = self.log.open.iter().map(|open| (&open.placement, None));
        let closed = self.closed.values().map(|closed| (&closed.opened.placement, Some(closed.entries)));
        let known: BTreeMap<_, _> = open.chain(closed).collect();
        for (placement, stored) in &self.media {
            match known.get(placement) {
                Some(Some(entries)) => {
                    assert!(stored.acked <= *entries, "an acked entry beyond the recorded end");
                    assert_eq!(stored.durable, *entries, "a closed segment grew or shrank");
                }
                Some(None) => {}
                None => assert_eq!(stored.durable, 0, "an append to a segment that no record leads to"),
            }
        }
    }

    fn events(&self) -> Vec<Event> {
        let mut events: Vec<Event> = (0..self.late.len()).map(Event::TakesEffect).collect();
        if self.log.last > 0 && self.log.truncated.is_none() {
            events.push(Event::Truncate);
        }
        for (actor, state) in self.actors.iter().enumerate() {
            match state {
                Actor::Dead => continue,
                Actor::Opening(opening) => {
                    events.push(Event::Go(actor));
                    if self.faults > 0 && matches!(opening.next(), Next::Commit { .. }) {
                        events.extend([Event::AnswerLost(actor), Event::Late(actor)]);
                    }
                }
                Actor::Owner(owner) => {
                    let stored = self.media.get(&owner.current.placement).cloned().unwrap_or_default();
                    if self.appends > 0 && !stored.fenced {
                        events.push(Event::Append(actor));
                    }
                    if stored.acked < stored.durable {
                        events.push(Event::Ack(actor));
                    } else if owner.next.is_some() && owner.retired.is_none() {
                        events.push(Event::Swap(actor));
                    }
                    if owner.next.is_none() && self.rolls > 0 {
                        events.push(Event::Prepare(actor));
                        if self.faults > 0 {
                            events.push(Event::PrepareLate(actor));
                        }
                    }
                    if owner.retired.is_some() {
                        events.push(Event::RecordEnd(actor));
                    }
                    if stored.acked == stored.durable {
                        events.push(Event::Close(actor));
                    }
                }
            }
            if self.crashes > 0 {
                events.push(Event::Crash(actor));
            }
        }
        events
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::TakesEffect(late) => {
                let (revision, change) = self.late.remove(late);
                self.commit(revision, change);
            }
            Event::Truncate => {
                if let Some(change) = self.log.truncate(crate::ids::EntryId { segment: 1, entry: 0 }) {
                    self.commit(self.revision, change);
                }
            }
            Event::Crash(actor) => {
                self.crashes -= 1;
                self.actors[actor] = Actor::Dead;
            }
            Event::Go(actor) | Event::AnswerLost(actor) | Event::Late(actor) => self.open(actor, event),
            Event::Append(actor)
            | Event::Ack(actor)
            | Event::Prepare(actor)
            | Event::PrepareLate(actor)
            | Event::Swap(actor)
            | Event::RecordEnd(actor)
            | Event::Close(actor) => {
                let Actor::Owner(owner) = std::mem::replace(&mut self.actors[actor], Actor::Dead) else { return };
                self.actors[actor] = self.own(actor, owner, event);
            }
        }
    }

    fn open(&mut self, actor: usize, event: Event) {
        let Actor::Opening(mut opening) = std::mem::replace(&mut self.actors[actor], Actor::Dead) else { return };
        match opening.next() {
            Next::Read => opening.on_read(Some((self.log.clone(), self.revision)), 0),
            Next::Commit { revision, change } => {
                let outcome = match event {
                    Event::Go(_) => self.commit(revision, change),
                    Event::AnswerLost(_) => {
                        self.faults -= 1;
                        self.commit(revision, change);
                        CommitOutcome::Unknown
                    }
                    _ => {
                        self.faults -= 1;
                        self.late.push((revision, change));
                        CommitOutcome::Unknown
                    }
                };
                opening.on_commit(outcome);
            }
            Next::Fence { segment, .. } => {
                let stored = self.media.entry(segment.placement).or_default();
                stored.fenced = true;
                opening.on_fenced(stored.durable, 0);
            }
            Next::Create { segment, .. } => opening.on_created("memory", volume(actor, segment), 0),
            Next::Ready { log, segment, .. } => {
                // Whoever is ready is the only one whose appends can still become durable.
                for other in &self.actors {
                    if let Actor::Owner(other) = other.clone()
                        && other.epoch < log.epoch
                    {
                        for open in other.next.iter().chain([&other.current]) {
                            assert!(self.media[&open.placement].fenced, "two owners can append: {other:?}");
                        }
                    }
                }
                let owner = Owner { epoch: log.epoch, current: segment, next: None, retired: None };
                self.actors[actor] = Actor::Owner(owner);
                return;
            }
            Next::Preempted => {
                assert!(self.log.epoch > Epoch(1), "preempted by nobody");
                return;
            }
            Next::Gone => panic!("the log is not deleted in this model"),
        }
        self.actors[actor] = Actor::Opening(opening);
    }

    /// An owner commits a step on the record as it is now; false if it learnt that it was overtaken.
    fn step(&mut self, step: &Step) -> bool {
        match self.log.plan(step) {
            Plan::Commit(change) => {
                self.commit(self.revision, change);
                true
            }
            Plan::Done => true,
            Plan::Preempted => false,
        }
    }

    fn own(&mut self, actor: usize, mut owner: Owner, event: Event) -> Actor {
        let mut step = Step { epoch: owner.epoch, close: Vec::new(), open: None, at_ms: 0 };
        let stored = self.media.entry(owner.current.placement.clone()).or_default();
        let end = End { segment: owner.current.segment, entries: stored.durable, bytes: None };
        match event {
            Event::Append(_) => {
                assert!(!stored.fenced);
                stored.durable += 1;
                self.appends -= 1;
                self.check();
            }
            Event::Ack(_) => {
                stored.acked = stored.durable;
                self.check();
            }
            Event::Prepare(_) | Event::PrepareLate(_) => {
                let segment = owner.current.segment + 1;
                let placement = volume(actor, segment);
                let open = OpenSegment { segment, backend: "memory".into(), placement, created_ms: 0 };
                step.open = Some(open.clone());
                if matches!(event, Event::PrepareLate(_)) {
                    self.faults -= 1;
                    if let Plan::Commit(change) = self.log.plan(&step) {
                        self.late.push((self.revision, change));
                    }
                    return Actor::Owner(owner);
                }
                self.rolls -= 1;
                if !self.step(&step) {
                    return Actor::Dead;
                }
                owner.next = Some(open);
            }
            Event::Swap(_) => {
                owner.retired = Some(end);
                if let Some(next) = owner.next.take() {
                    owner.current = next;
                }
            }
            Event::RecordEnd(_) => {
                step.close.extend(owner.retired.take());
                if !self.step(&step) {
                    return Actor::Dead;
                }
            }
            Event::Close(_) => {
                let prepared = owner.next.iter().map(|open| End { segment: open.segment, entries: 0, bytes: None });
                step.close.extend(owner.retired.into_iter().chain([end]).chain(prepared));
                self.step(&step);
                return Actor::Dead;
            }
            _ => {}
        }
        Actor::Owner(owner)
    }

    /// After all that happened, a new opener without faults gets the log, and everything acked is in it.
    fn recover(mut self) {
        self.late.clear();
        for actor in &mut self.actors {
            *actor = Actor::Dead;
        }
        self.actors.push(Actor::Opening(Opening::new(LOG)));
        let last = self.actors.len() - 1;
        for _ in 0..20 {
            if matches!(self.actors[last], Actor::Owner(_)) {
                return self.check();
            }
            self.open(last, Event::Go(last));
        }
        panic!("the log cannot be opened any more: {self:?}");
    }
}

/// Actors write volumes of their own, so that nobody's segment is mistaken for another's of the same number.
fn volume(actor: usize, segment: u64) -> Placement {
    Placement::Volume { volume: VolumeId(actor as u128), from_batch: segment }
}

/// Every order of events, each state visited once.
fn explore(start: World) -> usize {
    let mut seen = BTreeSet::new();
    let mut todo = vec![start];
    while let Some(world) = todo.pop() {
        for event in world.events() {
            let mut next = world.clone();
            next.happen(event);
            if seen.insert(next.clone()) {
                next.clone().recover();
                todo.push(next);
            }
        }
    }
    seen.len()
}

#[test]
fn two_openers_in_every_order_with_a_crash_and_a_roll() {
    let states = explore(World::new(2, 0, 2, 1, 1));
    assert!(states > 1_000, "{states}");
}

#[test]
fn two_openers_in_every_order_with_a_lost_or_late_answer() {
    let states = explore(World::new(2, 1, 1, 1, 0));
    assert!(states > 1_000, "{states}");
}

#[test]
fn a_clean_close_leaves_nothing_to_fence() {
    let mut world = World::new(1, 0, 1, 0, 0);
    while matches!(world.actors[0], Actor::Opening(_)) {
        world.happen(Event::Go(0));
    }
    for event in [Event::Append(0), Event::Ack(0), Event::Close(0)] {
        world.happen(event);
    }
    assert!(world.log.open.is_empty());
    let mut opening = Opening::new(LOG);
    opening.on_read(Some((world.log.clone(), world.revision)), 0);
    opening.on_commit(CommitOutcome::Committed(world.revision + 1));
    assert_eq!(opening.next(), Next::Create { segment: 2, epoch: Epoch(2) });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn three_openers_in_random_order(choices in prop::collection::vec(any::<prop::sample::Index>(), 1..120)) {
        let mut world = World::new(3, 4, 8, 3, 2);
        for choice in choices {
            let events = world.events();
            if events.is_empty() {
                break;
            }
            world.happen(events[choice.index(events.len())]);
        }
        world.recover();
    }
}
