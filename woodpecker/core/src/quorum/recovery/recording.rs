//! From the last append to the sealed form: a segment that its writer ends, or that takers close, some of them without a
//! store that is gone, and whose end counts once the log's record has it. Checked exhaustively, for two stores that both
//! ack and for three of which two do.
//!
//! A log shrinks from three stores to two at a segment's end: the segment on three ends where it was acked, and the next
//! one is on two. Both segments are checked here, each by itself, since they share nothing but the order of their records.

use stateright::{Checker, Expectation, Model, Property};

use super::{Held, Recovery, Told};
use crate::{
    ids::{Epoch, ReplicaSet, StoreId},
    quorum::appending::Appending,
};

const ACK: usize = 2;
const OWNER: Epoch = Epoch(1);
const ACKED_IS_THERE: &str = "an acked entry is on a disk or sealed";

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Store {
    /// It holds every entry below.
    durable: u64,
    fenced: Epoch,
    end: Option<Told>,
    /// Out of reach, and its lease ran out. It may come back.
    away: bool,
    /// It was away: the writer's entries are refused.
    restarted: bool,
    /// Its disk is gone for good.
    lost: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Taker {
    recovery: Recovery,
    /// It raised the log's epoch.
    begun: bool,
    preempted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    stores: Vec<Store>,
    owner: Appending,
    takers: Vec<Taker>,
    /// The segment's end, for ever.
    record: Option<u64>,
    sealed: bool,
    crashes: u8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    /// The writer's next entry becomes durable on a store.
    Store(usize),
    /// The writer ends the segment where it is acked.
    End,
    Leave(usize),
    Return(usize),
    LoseDisk(usize),
    Begin(usize),
    Fence(usize, usize),
    Decide(usize),
    Copy(usize, usize),
    Close(usize, usize),
    /// The taker starts over; what it decided stays.
    Retry(usize),
    Record(usize),
    Seal,
}

struct Segment {
    stores: usize,
    entries: u64,
    takers: u64,
    crashes: u8,
}

impl Store {
    fn answers(&self) -> bool {
        !self.away && !self.lost
    }

    fn takes(&self, epoch: Epoch) -> bool {
        self.answers() && epoch >= self.fenced
    }
}

impl Segment {
    fn set(&self) -> ReplicaSet {
        ReplicaSet::new((0..self.stores).map(|id| StoreId(id as u128)).collect(), ACK).unwrap()
    }
}

impl World {
    /// The end that a taker may write into the log's record. The record is compared and swapped under its epoch.
    fn recordable(&self, number: usize) -> Option<u64> {
        let taker = &self.takers[number];
        let latest = !self.takers[number + 1..].iter().any(|later| later.begun);
        let gone = |store: usize| !self.stores[store].answers();
        let end = taker.recovery.closed().or_else(|| taker.recovery.end_without(gone));
        end.filter(|_| taker.begun && latest && self.record.is_none())
    }

    /// What a store says of a taker's call; false if it knows a later one.
    fn admits(&mut self, taker: usize, store: usize) -> bool {
        let admitted = self.stores[store].takes(self.takers[taker].recovery.epoch());
        self.takers[taker].preempted |= !admitted;
        admitted
    }

    fn fence(&mut self, taker: usize, store: usize) {
        if self.admits(taker, store) {
            let (acked, at) = (self.owner.acked(), &mut self.stores[store]);
            at.fenced = self.takers[taker].recovery.epoch();
            let held = Held { durable: at.durable, committed: acked.min(at.durable), end: at.end };
            self.takers[taker].recovery.on_fenced(store, held);
        }
    }

    fn copy(&mut self, taker: usize, store: usize) {
        if !self.admits(taker, store) {
            return;
        }
        let recovery = &mut self.takers[taker].recovery;
        let missing = recovery.missing().into_iter().find(|missing| missing.replica == store).unwrap();
        // Without a source it waits for one.
        if recovery.holders(missing.from).any(|source| self.stores[source].answers()) {
            let at = &mut self.stores[store];
            at.durable = at.durable.max(missing.from + 1);
            recovery.on_copied(store, missing.from + 1);
        }
    }

    fn close(&mut self, taker: usize, store: usize) {
        if self.admits(taker, store) {
            let recovery = &mut self.takers[taker].recovery;
            let (_, end) = recovery.closing().unwrap();
            let told = Told { epoch: recovery.epoch(), end };
            let at = &mut self.stores[store];
            let kept = at.end.filter(|kept| kept.epoch >= told.epoch).unwrap_or(told);
            at.end = Some(kept);
            recovery.on_closed(store, kept);
        }
    }

    /// How many disks have all of the segment.
    fn copies(&self, end: u64) -> usize {
        self.stores.iter().filter(|store| !store.lost && store.durable >= end).count()
    }
}

impl Model for Segment {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let mut owner = Appending::new(self.stores, ACK);
        owner.issue(self.entries);
        let taker = |number| {
            let recovery = Recovery::new(&self.set(), Epoch(2 + number), None);
            Taker { recovery, begun: false, preempted: false }
        };
        vec![World {
            stores: vec![Store { fenced: OWNER, ..Store::default() }; self.stores],
            owner,
            takers: (0..self.takers).map(taker).collect(),
            record: None,
            sealed: false,
            crashes: self.crashes,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for (number, store) in world.stores.iter().enumerate().filter(|(_, store)| !store.lost) {
            if store.takes(OWNER) && !store.restarted && store.durable < world.owner.issued() {
                actions.push(Action::Store(number));
            }
            if store.away {
                actions.push(Action::Return(number));
            } else if world.crashes > 0 {
                actions.push(Action::Leave(number));
            }
            // What is sealed needs no disk any more.
            if world.crashes > 0 || world.sealed {
                actions.push(Action::LoseDisk(number));
            }
        }
        if !world.owner.has_ended() && world.record.is_none() && world.takers.iter().all(|taker| !taker.begun) {
            actions.push(Action::End);
        }
        if world.record.is_some_and(|end| {
            !world.sealed && world.stores.iter().any(|store| store.answers() && store.durable >= end)
        }) {
            actions.push(Action::Seal);
        }
        // A log whose segment is closed is taken without asking the stores.
        if world.record.is_some() {
            return;
        }
        for (number, taker) in world.takers.iter().enumerate().filter(|(_, taker)| !taker.preempted) {
            if !taker.begun {
                actions.push(Action::Begin(number));
                continue;
            }
            let recovery = &taker.recovery;
            let answers = |at: &usize| world.stores[*at].answers();
            let unheard = (0..world.stores.len()).filter(|at| recovery.replicas[*at].is_none());
            actions.extend(unheard.filter(answers).map(|at| Action::Fence(number, at)));
            if recovery.is_answered() && recovery.end.is_none() {
                actions.push(Action::Decide(number));
            }
            let missing = recovery.missing().into_iter().map(|missing| missing.replica);
            actions.extend(missing.filter(answers).map(|at| Action::Copy(number, at)));
            let closing = recovery.closing().map(|(stores, _)| stores).unwrap_or_default();
            let untold = |at: &usize| {
                let told = recovery.replicas[*at].and_then(|held| held.end);
                told.is_none_or(|told| told.epoch < recovery.epoch())
            };
            actions.extend(closing.into_iter().filter(answers).filter(untold).map(|at| Action::Close(number, at)));
            if recovery.end.is_some() {
                actions.push(Action::Retry(number));
            }
            if world.recordable(number).is_some() {
                actions.push(Action::Record(number));
            }
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Store(store) => {
                let at = &mut next.stores[store];
                at.durable += 1;
                next.owner.on_durable(store, at.durable);
            }
            Action::End => {
                next.owner.end();
                next.record = Some(next.owner.acked());
            }
            Action::Leave(store) => {
                next.crashes -= 1;
                next.stores[store].away = true;
            }
            Action::Return(store) => {
                next.stores[store].away = false;
                next.stores[store].restarted = true;
            }
            Action::LoseDisk(store) => {
                next.crashes = next.crashes.saturating_sub(u8::from(!next.sealed));
                next.stores[store].lost = true;
            }
            Action::Begin(taker) => next.takers[taker].begun = true,
            Action::Fence(taker, store) => next.fence(taker, store),
            Action::Decide(taker) => {
                // A refusal to decide waits for others.
                let _ = next.takers[taker].recovery.decide();
            }
            Action::Copy(taker, store) => next.copy(taker, store),
            Action::Close(taker, store) => next.close(taker, store),
            Action::Retry(taker) => {
                let recovery = &mut next.takers[taker].recovery;
                *recovery = Recovery::new(&self.set(), recovery.epoch(), recovery.end);
            }
            Action::Record(taker) => next.record = world.recordable(taker),
            Action::Seal => next.sealed = true,
        }
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ACKED_IS_THERE, |_, world: &World| {
                world.owner.acked() == 0 || world.sealed || world.copies(world.owner.acked()) > 0
            }),
            Property::always("the record cuts nothing acked, and nothing is acked behind it", |_, world: &World| {
                world.record.is_none_or(|end| end >= world.owner.acked())
            }),
            Property::sometimes("the writer acks all", |_, world: &World| world.owner.acked() == world.owner.issued()),
            Property::sometimes("it ends with entries that nobody acked", |_, world: &World| {
                let more = |end: u64| world.stores.iter().any(|store| store.durable > end);
                world.owner.has_ended() && world.record.is_some_and(more)
            }),
            Property::sometimes(
                "a store that was away comes back with more than the record says",
                |_, world: &World| {
                    let more = |end: u64| world.stores.iter().any(|store| store.restarted && store.durable > end);
                    world.record.is_some_and(more)
                },
            ),
            Property::sometimes("it is closed without a store whose disk is gone", |_, world: &World| {
                world.record.is_some() && !world.owner.has_ended() && world.stores.iter().any(|store| store.lost)
            }),
            Property::sometimes("there is one copy until it is sealed", |_, world: &World| {
                world.record.is_some_and(|end| end > 0 && world.copies(end) == 1 && !world.sealed)
            }),
            Property::sometimes("both takers decide", |_, world: &World| {
                world.takers.iter().filter(|taker| taker.recovery.end.is_some()).count() == 2
            }),
        ]
    }
}

const SEEN: [&str; 5] = [
    "the writer acks all",
    "it ends with entries that nobody acked",
    "a store that was away comes back with more than the record says",
    "it is closed without a store whose disk is gone",
    "there is one copy until it is sealed",
];

/// Goes through all states; the properties that must always hold and do not.
fn check(segment: Segment, expected: &[&str]) -> Vec<&'static str> {
    let checker = segment.checker().threads(2).spawn_bfs().join();
    println!(
        "{} states, {} unique, depth {}",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth()
    );
    let mut broken = Vec::new();
    for property in checker.model().properties() {
        let (name, found) = (property.name, checker.discovery(property.name));
        match (property.expectation, found) {
            (Expectation::Always, Some(path)) => {
                println!("{name}: {:?}, after {:?}", path.last_state(), path.clone().into_actions());
                broken.push(name);
            }
            (Expectation::Sometimes, None) => assert!(!expected.contains(&name), "never seen: {name}"),
            _ => {}
        }
    }
    broken
}

#[test]
fn of_two_stores_that_both_ack_one_may_go_and_its_disk_with_it() {
    assert!(check(Segment { stores: 2, entries: 3, takers: 1, crashes: 1 }, &SEEN).is_empty());
}

#[test]
fn takers_of_two_stores_record_one_end_though_each_meets_another_store() {
    let seen = [&SEEN[..], &["both takers decide"]].concat();
    assert!(check(Segment { stores: 2, entries: 2, takers: 2, crashes: 1 }, &seen).is_empty());
}

#[test]
fn three_stores_of_which_one_is_away_end_where_they_acked() {
    let seen = [SEEN[0], SEEN[1], SEEN[2], SEEN[3]];
    assert!(check(Segment { stores: 3, entries: 2, takers: 1, crashes: 1 }, &seen).is_empty());
}

/// What `docs/quorum.md` says of two stores: a second disk lost before sealing takes acked entries with it.
#[test]
fn two_disks_lost_before_sealing_lose_what_two_stores_acked() {
    assert_eq!(check(Segment { stores: 2, entries: 1, takers: 1, crashes: 2 }, &[]), [ACKED_IS_THERE]);
}
