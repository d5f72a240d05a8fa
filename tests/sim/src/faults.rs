//! What goes wrong in a run: drawn from the seed before it begins, so that it does not depend on what happens.

use std::time::Duration;

use turmoil::Sim;

use crate::{
    cluster::{CLIENT, COORD, Machines, NODES},
    trace::Trace,
};

/// The latest moment, after the first acknowledgement, at which something begins to go wrong.
const LATEST: Duration = Duration::from_secs(10);
/// Some of what goes wrong is shorter than a lease, some is longer.
const LONGEST: Duration = Duration::from_secs(7);

/// A host that something happens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// The node that serves the channel at that moment, as far as the client knows.
    Owner,
    /// The other node.
    Other,
    Coord,
    Client,
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The host dies, with what it did not sync; later it starts again.
    Crash(Target),
    /// Everything between the two hosts is lost.
    Partition(Target, Target),
    /// Everything between the two hosts is late.
    Hold(Target, Target),
    /// The host does not reach the metadata store.
    MetadataCut(Target),
}

impl Fault {
    fn draw(random: &mut fastrand::Rng) -> Self {
        let node = *random.choice(&[Target::Owner, Target::Owner, Target::Other]).unwrap_or(&Target::Owner);
        let peer = if random.bool() { Target::Client } else { Target::Coord };
        match random.u8(0..7) {
            0 | 1 => Self::Crash(node),
            2 => Self::Crash(Target::Coord),
            3 => Self::Partition(peer, node),
            4 => Self::Hold(peer, node),
            5 => Self::MetadataCut(node),
            _ => Self::MetadataCut(Target::Coord),
        }
    }
}

/// What was done to which hosts, to be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    Crashed(&'static str),
    Partitioned(&'static str, &'static str),
    Held(&'static str, &'static str),
    CutOff(&'static str),
}

/// What will go wrong, and what is wrong now.
#[derive(Debug)]
pub struct Faults {
    /// When, for how long, and what; the next one last.
    planned: Vec<(Duration, Duration, Fault)>,
    active: Vec<(Duration, Harm)>,
    random: fastrand::Rng,
    trace: Trace,
    /// Crashes so far.
    pub crashes: u32,
    /// Partitions so far.
    pub partitions: u32,
}

impl Faults {
    /// A crash of the owner, a partition of the owner from the client or the coordinator, and up to three more faults.
    #[must_use]
    pub fn draw(seed: u64, trace: &Trace) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let peer = if random.bool() { Target::Client } else { Target::Coord };
        let mut faults = vec![Fault::Crash(Target::Owner), Fault::Partition(peer, Target::Owner)];
        for _ in 0..random.usize(0..=3) {
            faults.push(Fault::draw(&mut random));
        }
        let mut time = |limit: Duration| limit.mul_f64(random.f64());
        let mut planned: Vec<_> = faults.into_iter().map(|fault| (time(LATEST), time(LONGEST), fault)).collect();
        planned.sort_by_key(|(at, ..)| std::cmp::Reverse(*at));
        Self { planned, active: Vec::new(), random, trace: trace.clone(), crashes: 0, partitions: 0 }
    }

    /// Whether all has gone wrong that will, and is well again.
    #[must_use]
    pub fn are_over(&self) -> bool {
        self.planned.is_empty() && self.active.is_empty()
    }

    /// Does, and undoes, what is due `since` the first acknowledgement, and starts again what ended by itself.
    pub fn advance(&mut self, sim: &mut Sim<'_>, machines: &Machines, since: Option<Duration>, owner: &str) {
        if let Some(since) = since {
            while let Some((at, length, fault)) = self.planned.pop_if(|(at, ..)| *at <= since) {
                self.harm(sim, machines, fault, owner, at + length);
            }
            let (over, active): (Vec<_>, Vec<_>) = self.active.iter().copied().partition(|(until, _)| *until <= since);
            self.active = active;
            for (_, harm) in over {
                self.heal(sim, machines, harm);
            }
        }
        for (name, machine) in machines {
            if !sim.is_host_running(*name) && !self.active.iter().any(|(_, harm)| *harm == Harm::Crashed(name)) {
                self.trace.note(sim.elapsed(), format_args!("restart {name}"));
                machine.disk.crash(&mut self.random);
                sim.bounce(*name);
            }
        }
    }

    fn harm(&mut self, sim: &mut Sim<'_>, machines: &Machines, fault: Fault, owner: &str, until: Duration) {
        let owner = usize::from(owner.starts_with(NODES[1]));
        let host = |target| match target {
            Target::Owner => NODES[owner],
            Target::Other => NODES[1 - owner],
            Target::Coord => COORD,
            Target::Client => CLIENT,
        };
        let harm = match fault {
            Fault::Crash(target) => Harm::Crashed(host(target)),
            Fault::Partition(one, two) => Harm::Partitioned(host(one), host(two)),
            Fault::Hold(one, two) => Harm::Held(host(one), host(two)),
            Fault::MetadataCut(target) => Harm::CutOff(host(target)),
        };
        if let Some((active, _)) = self.active.iter_mut().find(|(_, active)| *active == harm) {
            *active = until.max(*active);
            return;
        }
        self.trace.note(sim.elapsed(), format_args!("{harm:?} until {until:?}"));
        self.active.push((until, harm));
        match harm {
            Harm::Crashed(host) => {
                self.crashes += 1;
                // First the disk, so that nothing is written by what runs when tasks are dropped.
                if let Some(machine) = machines.get(host) {
                    machine.disk.crash(&mut self.random);
                }
                sim.crash(host);
            }
            Harm::Partitioned(one, two) => {
                self.partitions += 1;
                sim.partition(one, two);
            }
            Harm::Held(one, two) => sim.hold(one, two),
            Harm::CutOff(host) => reach(machines, host, false),
        }
    }

    fn heal(&self, sim: &mut Sim<'_>, machines: &Machines, harm: Harm) {
        self.trace.note(sim.elapsed(), format_args!("healed {harm:?}"));
        match harm {
            Harm::Crashed(host) => sim.bounce(host),
            Harm::Partitioned(one, two) => sim.repair(one, two),
            Harm::Held(one, two) => sim.release(one, two),
            Harm::CutOff(host) => reach(machines, host, true),
        }
    }
}

fn reach(machines: &Machines, host: &str, reachable: bool) {
    if let Some(machine) = machines.get(host) {
        machine.metadata.set_reachable(reachable);
    }
}
