//! One try at bringing a channel to a node, step by step. A try that fails or is cut short anywhere is not resumed: the
//! next one takes a new term and ends what this one may have left behind.

use super::{Node, Ownership, PChannel};

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Make this durable.
    Store(PChannel),
    /// End this ownership on its node.
    Remove(Ownership),
    /// Have the node open the channel at its present term.
    Assign(Node),
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Ask,
    Announce,
    Remove,
    Assign,
    Conclude { now_s: u64 },
    Done,
}

/// The steps of a try, in order: store the new term, end every earlier ownership, open at the new term, store the end.
///
/// From an owner that does not answer the channel is taken the other way round: the ownership ends first. It may serve clients
/// that reach it, and nobody else can have the channel before it has closed it or is dead.
#[derive(Debug)]
pub(crate) struct HandOver {
    channel: PChannel,
    target: Node,
    phase: Phase,
}

impl HandOver {
    /// A try at bringing the channel to `node`; `None` if it is there.
    pub(crate) fn begin(channel: &PChannel, node: Node) -> Option<Self> {
        Some(Self { channel: channel.assign_to(node.clone())?, target: node, phase: Phase::Announce })
    }

    /// As [`HandOver::begin`], from an owner that does not answer.
    pub(crate) fn begin_by_asking(channel: &PChannel, node: Node) -> Option<Self> {
        if channel.owner().is_none_or(|owner| *owner == node) {
            return Self::begin(channel, node);
        }
        Some(Self { channel: channel.clone(), target: node, phase: Phase::Ask })
    }

    /// The channel as this try leaves it, also if it ends here.
    pub(crate) fn channel(&self) -> &PChannel {
        &self.channel
    }

    /// What to do next; the same until its outcome is reported.
    pub(crate) fn step(&self) -> Step {
        match self.phase {
            Phase::Announce => Step::Store(self.channel.clone()),
            Phase::Conclude { now_s } => Step::Store(self.channel.assigned(now_s)),
            Phase::Ask => self.channel.ownership().map_or(Step::Done, Step::Remove),
            Phase::Remove => self.channel.histories.first().cloned().map_or(Step::Done, Step::Remove),
            Phase::Assign => Step::Assign(self.target.clone()),
            Phase::Done => Step::Done,
        }
    }

    /// What [`Step::Store`] asked for is durable.
    pub(crate) fn stored(&mut self) {
        match self.phase {
            Phase::Announce => self.after_removals(),
            Phase::Conclude { now_s } => {
                self.channel = self.channel.assigned(now_s);
                self.phase = Phase::Done;
            }
            Phase::Ask | Phase::Remove | Phase::Assign | Phase::Done => {}
        }
    }

    /// The ownership of [`Step::Remove`] has ended for good, so that no later try needs to end it again.
    pub(crate) fn removed(&mut self) {
        if self.phase == Phase::Remove && !self.channel.histories.is_empty() {
            self.channel.histories.remove(0);
            self.after_removals();
        }
        if self.phase == Phase::Ask
            && let Some(next) = self.channel.assign_to(self.target.clone())
        {
            // An assigned channel has no earlier ownerships, and its own has ended.
            self.channel = PChannel { histories: Vec::new(), ..next };
            self.phase = Phase::Announce;
        }
    }

    /// The node serves the channel.
    pub(crate) fn opened(&mut self, now_s: u64) {
        if self.phase == Phase::Assign {
            self.phase = Phase::Conclude { now_s };
        }
    }

    fn after_removals(&mut self) {
        self.phase = if self.channel.histories.is_empty() { Phase::Assign } else { Phase::Remove };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::pchannel::{State, tests::node};

    /// What a node keeps of one channel: the newest (term, available) it was told.
    #[derive(Debug, Default, Clone, Copy)]
    struct Wal {
        term: i64,
        open: bool,
    }

    /// A cluster with one channel: durable metadata, and nodes that obey the newest term only.
    #[derive(Debug)]
    struct World {
        durable: PChannel,
        nodes: BTreeMap<i64, Wal>,
        assigned_terms: Vec<i64>,
    }

    impl World {
        fn new() -> Self {
            Self {
                durable: PChannel::fresh("c"),
                nodes: (1..=3).map(|id| (id, Wal::default())).collect(),
                assigned_terms: Vec::new(),
            }
        }

        fn remove(&mut self, past: &Ownership) {
            let wal = self.nodes.get_mut(&past.node.server_id).unwrap();
            if past.term >= wal.term {
                *wal = Wal { term: past.term, open: false };
            }
        }

        fn assign(&mut self, target: &Node, term: i64) -> Result<(), TestCaseError> {
            prop_assert_eq!(self.durable.term(), term, "a term is durable before a node hears of it");
            prop_assert!(self.assigned_terms.iter().all(|old| *old < term), "no term is used twice");
            self.assigned_terms.push(term);
            for (id, wal) in &self.nodes {
                prop_assert!(!wal.open, "node {id} still has the channel open");
            }
            *self.nodes.get_mut(&target.server_id).unwrap() = Wal { term, open: true };
            Ok(())
        }

        fn store(&mut self, channel: PChannel) -> Result<(), TestCaseError> {
            prop_assert!(channel.term() >= self.durable.term(), "a term never falls");
            self.durable = channel;
            if let Some(owner) = self.durable.owner() {
                let open: Vec<_> = self.nodes.iter().filter(|(_, wal)| wal.open).map(|(id, _)| *id).collect();
                prop_assert_eq!(open, vec![owner.server_id], "whoever is said to serve is the only one that does");
            }
            Ok(())
        }
    }

    #[derive(Debug, Clone, Copy)]
    enum Fate {
        Works,
        /// The effect happened, but the coordinator does not know.
        LostReply,
        /// Nothing happened.
        Fails,
        /// The coordinator dies before the step.
        CrashBefore,
        /// The coordinator dies after the step.
        CrashAfter,
    }

    /// Runs one try; returns what the coordinator believes afterwards.
    fn attempt(
        world: &mut World,
        believed: &PChannel,
        target: i64,
        fate: impl FnMut() -> Fate,
    ) -> Result<PChannel, TestCaseError> {
        go_on(world, believed, HandOver::begin(believed, node(target)), fate)
    }

    fn go_on(
        world: &mut World,
        believed: &PChannel,
        begun: Option<HandOver>,
        mut fate: impl FnMut() -> Fate,
    ) -> Result<PChannel, TestCaseError> {
        let Some(mut hand_over) = begun else { return Ok(believed.clone()) };
        loop {
            let step = hand_over.step();
            let fate = fate();
            match (&step, fate) {
                (Step::Done, _) => return Ok(hand_over.channel().clone()),
                (_, Fate::CrashBefore) => return Ok(world.durable.clone()),
                (_, Fate::Fails) => {}
                (Step::Store(channel), _) => world.store(channel.clone())?,
                (Step::Remove(past), _) => world.remove(past),
                (Step::Assign(target), _) => world.assign(target, hand_over.channel().term())?,
            }
            match (step, fate) {
                (_, Fate::CrashAfter) => return Ok(world.durable.clone()),
                // The store is tried until it works; its repetition finds its own write and is satisfied.
                (Step::Store(channel), Fate::Fails | Fate::LostReply) => {
                    world.store(channel)?;
                    hand_over.stored();
                }
                (_, Fate::Fails | Fate::LostReply) => return Ok(hand_over.channel().clone()),
                (Step::Store(_), _) => hand_over.stored(),
                (Step::Remove(_), _) => hand_over.removed(),
                (Step::Assign(_), _) => hand_over.opened(1),
                (Step::Done, _) => {}
            }
        }
    }

    fn fates() -> impl Strategy<Value = Fate> {
        prop_oneof![
            6 => Just(Fate::Works),
            1 => Just(Fate::LostReply),
            1 => Just(Fate::Fails),
            1 => Just(Fate::CrashBefore),
            1 => Just(Fate::CrashAfter),
        ]
    }

    proptest! {
        #[test]
        fn never_two_owners_and_always_an_end(
            targets in proptest::collection::vec((1i64..=3, any::<bool>()), 1..20),
            fates in proptest::collection::vec(fates(), 0..80),
        ) {
            let mut world = World::new();
            let mut believed = world.durable.clone();
            let mut fates = fates.into_iter();
            for (target, is_silent) in targets {
                let begin = if is_silent { HandOver::begin_by_asking } else { HandOver::begin };
                let begun = begin(&believed, node(target));
                believed = go_on(&mut world, &believed, begun, || fates.next().unwrap_or(Fate::Works))?;
            }
            // Once nothing fails any more, one try is enough.
            believed = attempt(&mut world, &believed, 1, || Fate::Works)?;
            prop_assert_eq!(believed.state(), State::Assigned);
            prop_assert_eq!(believed.owner(), Some(&node(1)));
            prop_assert_eq!(&world.durable, &believed);
            prop_assert_eq!(believed.to_meta().histories.len(), 0);
        }
    }

    #[test]
    fn a_crash_between_any_two_steps_converges() {
        for crash_at in 0..10 {
            let mut world = World::new();
            let settled = attempt(&mut world, &PChannel::fresh("c"), 1, || Fate::Works).unwrap();
            let mut steps = 0..;
            let recovered = attempt(&mut world, &settled, 2, || {
                if steps.next() == Some(crash_at) { Fate::CrashAfter } else { Fate::Works }
            })
            .unwrap();
            let end = attempt(&mut world, &recovered, 3, || Fate::Works).unwrap();
            assert_eq!(end.owner(), Some(&node(3)), "crash after step {crash_at}");
            assert_eq!(world.nodes.values().filter(|wal| wal.open).count(), 1);
        }
    }

    #[test]
    fn an_owner_that_does_not_answer_keeps_the_channel_until_it_has_ended() {
        let channel = PChannel::fresh("c").assign_to(node(1)).unwrap().assigned(1);
        let mut asking = HandOver::begin_by_asking(&channel, node(2)).unwrap();
        assert!(matches!(asking.step(), Step::Remove(past) if past.term == 2 && past.node == node(1)));
        assert_eq!(asking.channel(), &channel, "as long as it fails");
        asking.removed();
        assert!(matches!(asking.step(), Step::Store(next) if next.term() == 3 && next.owner().is_none()));
        asking.stored();
        assert_eq!(asking.step(), Step::Assign(node(2)));
    }

    #[test]
    fn what_was_ended_once_is_not_ended_again() {
        let channel = PChannel::fresh("c").assign_to(node(1)).unwrap().assigned(1);
        let mut first = HandOver::begin(&channel, node(2)).unwrap();
        first.stored();
        assert!(matches!(first.step(), Step::Remove(past) if past.term == 2));
        first.removed();
        assert_eq!(first.step(), Step::Assign(node(2)));

        let mut second = HandOver::begin(first.channel(), node(3)).unwrap();
        second.stored();
        assert!(matches!(second.step(), Step::Remove(past) if past.term == 3 && past.node == node(2)));
    }
}
