//! A writer and two takers on three replicas, in every order of steps, with a crash: checked exhaustively.
//!
//! An ack reaches the writer at once, the worst case: one that comes later is a subset. What never happens to a message or
//! a process is the same as its loss or death, so a crash here is one of a replica: it restarts, or its disk is lost.

use stateright::{Checker, Expectation, Model, Property};

use super::{Held, Recovery, Told};
use crate::{
    ids::{Epoch, ReplicaSet, StoreId},
    quorum::appending::Appending,
};

const REPLICAS: usize = 3;
const ACK: usize = 2;
const OWNER: Epoch = Epoch(1);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Replica {
    /// What it holds, by entry.
    entries: Vec<u64>,
    fenced: Epoch,
    end: Option<Told>,
    /// It restarted: the writer's entries are refused.
    restarted: bool,
    /// Its disk is gone: it answers nobody.
    lost: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Taker {
    recovery: Recovery,
    /// A replica refused it.
    preempted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    replicas: Vec<Replica>,
    owner: Appending,
    takers: Vec<Taker>,
    crashes: u8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    /// The writer's next entry becomes durable on a replica.
    Store(usize),
    /// A taker's fence reaches a replica, and its answer the taker.
    Fence(usize, usize),
    /// As [`Action::Fence`], and the answer is lost.
    FenceUnheard(usize, usize),
    Decide(usize),
    /// One entry is copied to a replica.
    Copy(usize, usize),
    Close(usize, usize),
    Restart(usize),
    LoseDisk(usize),
}

struct Quorum {
    entries: u64,
    takers: u64,
    crashes: u8,
}

/// What the writer appended as this entry.
fn value(entry: u64) -> u64 {
    100 + entry
}

fn set() -> ReplicaSet {
    ReplicaSet::new((0..REPLICAS).map(|id| StoreId(id as u128)).collect(), ACK).unwrap()
}

impl Replica {
    fn held(&self, committed: u64) -> Held {
        // The worst case again: whoever may know what was acked does.
        Held { durable: self.durable(), committed: committed.min(self.durable()), end: self.end }
    }

    fn durable(&self) -> u64 {
        self.entries.len() as u64
    }

    fn entry(&self, entry: u64) -> Option<&u64> {
        self.entries.get(usize::try_from(entry).unwrap())
    }

    /// Whether it takes what comes under this epoch.
    fn takes(&self, epoch: Epoch) -> bool {
        !self.lost && epoch >= self.fenced
    }
}

impl World {
    fn fence(&mut self, taker: usize, replica: usize, heard: bool) {
        let acked = self.owner.acked();
        let (taker, at) = (&mut self.takers[taker], &mut self.replicas[replica]);
        if !at.takes(taker.recovery.epoch()) {
            taker.preempted = true;
            return;
        }
        at.fenced = taker.recovery.epoch();
        if heard {
            taker.recovery.on_fenced(replica, at.held(acked));
        }
    }

    fn copy(&mut self, taker: usize, replica: usize) {
        let taker = &mut self.takers[taker];
        if !self.replicas[replica].takes(taker.recovery.epoch()) {
            taker.preempted = true;
            return;
        }
        let missing = taker.recovery.missing().into_iter().find(|missing| missing.replica == replica).unwrap();
        let source = taker.recovery.holders(missing.from).find(|source| !self.replicas[*source].lost);
        // Without a source it waits for one.
        let Some(source) = source else { return };
        let entry = *self.replicas[source].entry(missing.from).unwrap();
        let at = &mut self.replicas[replica];
        // What it holds already is confirmed, not stored again.
        if at.durable() == missing.from {
            at.entries.push(entry);
        }
        taker.recovery.on_copied(replica, missing.from + 1);
    }

    fn close(&mut self, taker: usize, replica: usize) {
        let taker = &mut self.takers[taker];
        let (epoch, (_, end)) = (taker.recovery.epoch(), taker.recovery.closing().unwrap());
        let at = &mut self.replicas[replica];
        if !at.takes(epoch) {
            taker.preempted = true;
            return;
        }
        let told = Told { epoch, end };
        let kept = at.end.filter(|kept| kept.epoch >= epoch).unwrap_or(told);
        at.end = Some(kept);
        taker.recovery.on_closed(replica, kept);
    }

    fn closed(&self) -> impl Iterator<Item = u64> + '_ {
        self.takers.iter().filter_map(|taker| taker.recovery.closed())
    }

    /// The end that a later taker would come to if these replicas answer, or `None` if too few do.
    fn later(&self, answering: &[usize]) -> Option<Result<u64, super::Undecided>> {
        let mut recovery = Recovery::new(&set(), Epoch(99), None);
        for replica in answering.iter().copied().filter(|replica| !self.replicas[*replica].lost) {
            recovery.on_fenced(replica, self.replicas[replica].held(self.owner.acked()));
        }
        recovery.is_answered().then(|| recovery.decide())
    }
}

impl Model for Quorum {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let mut owner = Appending::new(REPLICAS, ACK);
        owner.issue(self.entries);
        let taker = |number| Taker { recovery: Recovery::new(&set(), Epoch(2 + number), None), preempted: false };
        vec![World {
            replicas: vec![Replica { fenced: OWNER, ..Replica::default() }; REPLICAS],
            owner,
            takers: (0..self.takers).map(taker).collect(),
            crashes: self.crashes,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for (number, replica) in world.replicas.iter().enumerate().filter(|(_, replica)| !replica.lost) {
            if replica.takes(OWNER) && !replica.restarted && replica.durable() < world.owner.issued() {
                actions.push(Action::Store(number));
            }
            if world.crashes > 0 {
                actions.push(Action::LoseDisk(number));
                if !replica.restarted {
                    actions.push(Action::Restart(number));
                }
            }
        }
        for (number, taker) in world.takers.iter().enumerate() {
            let recovery = &taker.recovery;
            if taker.preempted || recovery.closed().is_some() {
                continue;
            }
            for (at, replica) in world.replicas.iter().enumerate().filter(|(_, replica)| !replica.lost) {
                if recovery.replicas[at].is_none() {
                    actions.push(Action::Fence(number, at));
                    if replica.fenced < recovery.epoch() {
                        actions.push(Action::FenceUnheard(number, at));
                    }
                }
            }
            if recovery.is_answered() && recovery.end.is_none() {
                actions.push(Action::Decide(number));
            }
            let alive = |replica: usize| !world.replicas[replica].lost;
            let missing = recovery.missing().into_iter().map(|missing| missing.replica);
            actions.extend(missing.filter(|at| alive(*at)).map(|at| Action::Copy(number, at)));
            let closing = recovery.closing().map(|(replicas, _)| replicas).unwrap_or_default();
            let untold = closing.into_iter().filter(|at| {
                let told = recovery.replicas[*at].and_then(|held| held.end);
                alive(*at) && told.is_none_or(|told| told.epoch < recovery.epoch())
            });
            actions.extend(untold.map(|at| Action::Close(number, at)));
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Store(replica) => {
                let at = &mut next.replicas[replica];
                at.entries.push(value(at.durable()));
                next.owner.on_durable(replica, at.durable());
            }
            Action::Fence(taker, replica) => next.fence(taker, replica, true),
            Action::FenceUnheard(taker, replica) => next.fence(taker, replica, false),
            Action::Decide(taker) => {
                // Every refusal to decide is judged by the properties.
                let _ = next.takers[taker].recovery.decide();
            }
            Action::Copy(taker, replica) => next.copy(taker, replica),
            Action::Close(taker, replica) => next.close(taker, replica),
            Action::Restart(replica) => {
                next.crashes -= 1;
                next.replicas[replica].restarted = true;
            }
            Action::LoseDisk(replica) => {
                next.crashes -= 1;
                next.replicas[replica].lost = true;
            }
        }
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no acked entry is lost", |_, world: &World| {
                let acked = world.owner.acked();
                let kept = |end: u64| end >= acked;
                let decided = world.takers.iter().filter_map(|taker| taker.recovery.end);
                // On a replica that answers, however many entries a crash took.
                let found = (0..acked)
                    .all(|entry| world.replicas.iter().any(|at| !at.lost && at.entry(entry) == Some(&value(entry))));
                decided.into_iter().all(kept) && found
            }),
            Property::always("no two values at one id", |_, world: &World| {
                let right = |at: &Replica| (0..).zip(&at.entries).all(|(entry, held)| *held == value(entry));
                world.replicas.iter().all(right)
            }),
            Property::always("a fenced writer acks nothing beyond the end", |_, world: &World| {
                world.closed().all(|end| world.owner.acked() <= end)
            }),
            Property::always("a recovered segment has one end, whoever answers", |_, world: &World| {
                let ends: Vec<u64> = world.closed().collect();
                [&[0, 1][..], &[0, 2], &[1, 2], &[0, 1, 2]].iter().filter_map(|answering| world.later(answering)).all(
                    |later| match later {
                        Ok(later) => later >= world.owner.acked() && ends.iter().all(|end| *end == later),
                        Err(_) => false,
                    },
                )
            }),
            Property::always("a closed segment is on enough replicas", |_, world: &World| {
                let whole = |end: u64| world.replicas.iter().filter(|at| at.durable() >= end).count();
                world.closed().all(|end| whole(end) >= ACK)
            }),
            Property::sometimes("the writer acks all", |_, world: &World| world.owner.acked() == world.owner.issued()),
            Property::sometimes("more than was acked is kept", |_, world: &World| {
                world.closed().any(|end| end > world.owner.acked())
            }),
            Property::sometimes("less than was stored is kept", |_, world: &World| {
                world.closed().any(|end| world.replicas.iter().any(|at| at.durable() > end))
            }),
            Property::sometimes("both takers finish", |_, world: &World| world.closed().count() == 2),
            Property::sometimes("one taker preempts the other", |_, world: &World| {
                world.takers.iter().any(|taker| taker.preempted)
            }),
            Property::sometimes("a segment is recovered after a disk was lost", |_, world: &World| {
                world.replicas.iter().any(|at| at.lost) && world.closed().count() > 0
            }),
        ]
    }
}

fn check(quorum: Quorum, expected: &[&'static str]) {
    let checker = quorum.checker().threads(2).spawn_bfs().join();
    println!(
        "{} states, {} unique, depth {}",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth()
    );
    for property in checker.model().properties() {
        let (name, found) = (property.name, checker.discovery(property.name));
        match (property.expectation, found) {
            (Expectation::Always, Some(path)) => {
                panic!("{name}: {:?}, after {:?}", path.last_state(), path.clone().into_actions());
            }
            (Expectation::Sometimes, None) => assert!(!expected.contains(&name), "never seen: {name}"),
            _ => {}
        }
    }
}

const SEEN: [&str; 4] = [
    "the writer acks all",
    "more than was acked is kept",
    "less than was stored is kept",
    "a segment is recovered after a disk was lost",
];

#[test]
fn a_taker_loses_nothing_in_any_order_of_steps_and_crashes() {
    check(Quorum { entries: 3, takers: 1, crashes: 1 }, &SEEN);
}

#[test]
fn takers_that_race_come_to_one_end() {
    let seen = ["both takers finish", "one taker preempts the other", "more than was acked is kept"];
    check(Quorum { entries: 1, takers: 2, crashes: 1 }, &[&seen[..], &["the writer acks all"]].concat());
}
