//! Where channels should be: spread over the nodes by count, with as few moves as possible. A pure function.

use std::collections::{BTreeMap, BTreeSet};

/// What the policy knows of one channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChannelView {
    pub(crate) name: String,
    /// The node that has the channel, or that it is on its way to; `None` if it needs one now.
    pub(crate) owner: Option<i64>,
    /// Whether it may be moved for the sake of balance alone.
    pub(crate) movable: bool,
    /// The node of the last failed attempt, taken again only if there is no other.
    pub(crate) avoid: Option<i64>,
}

/// A channel and the node it should go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) channel: String,
    pub(crate) node: i64,
}

/// What the policy knows of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeView {
    /// Channels may stay on it.
    pub(crate) retains: bool,
    /// It may be given channels.
    pub(crate) receives: bool,
    /// It belongs to the primary resource group, or there is none.
    pub(crate) primary: bool,
}

/// Nodes that channels may be on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Eligible {
    /// Those that keep what they have.
    pub(crate) homes: BTreeSet<i64>,
    /// Those of them that may be given more.
    pub(crate) targets: BTreeSet<i64>,
}

/// Channels belong on nodes of the primary group as soon as one of them can take some. Until then they stay where they
/// are; those without a node wait if `strict`, and go to any node if not.
pub(crate) fn eligible(nodes: &BTreeMap<i64, NodeView>, strict: bool) -> Eligible {
    let present = nodes.values().any(|node| node.primary && node.receives);
    let ids = |fits: &dyn Fn(&NodeView) -> bool| -> BTreeSet<i64> {
        nodes.iter().filter(|(_, node)| fits(node)).map(|(id, _)| *id).collect()
    };
    Eligible {
        homes: ids(&|node| node.retains && (node.primary || !present)),
        targets: ids(&|node| node.receives && (node.primary || !(present || strict))),
    }
}

/// Gives every channel without an owner a node, fewest channels first, and, if `rebalance`, moves movable channels
/// from the fullest to the emptiest node until no two differ by more than one. Only `targets` receive anything.
pub(crate) fn plan(channels: &[ChannelView], targets: &BTreeSet<i64>, rebalance: bool) -> Vec<Placement> {
    let mut layout = Layout::new(channels, targets);
    let mut placements = Vec::new();
    for channel in channels.iter().filter(|channel| channel.owner.is_none()) {
        if let Some(node) = layout.emptiest(channel.avoid) {
            layout.add(node, 1);
            placements.push(Placement { channel: channel.name.clone(), node });
        }
    }
    if rebalance {
        placements.extend(layout.even_out(channels));
    }
    placements
}

/// How many channels each target has.
struct Layout {
    counts: BTreeMap<i64, usize>,
}

impl Layout {
    fn new(channels: &[ChannelView], targets: &BTreeSet<i64>) -> Self {
        let mut layout = Self { counts: targets.iter().map(|node| (*node, 0)).collect() };
        for owner in channels.iter().filter_map(|channel| channel.owner) {
            layout.add(owner, 1);
        }
        layout
    }

    fn add(&mut self, node: i64, channels: usize) {
        if let Some(count) = self.counts.get_mut(&node) {
            *count += channels;
        }
    }

    /// The target with the fewest channels, the smallest id among equals.
    fn emptiest(&self, avoid: Option<i64>) -> Option<i64> {
        let fewest = |avoid: Option<i64>| {
            self.counts.iter().filter(|(node, _)| Some(**node) != avoid).min_by_key(|(_, count)| **count)
        };
        fewest(avoid).or_else(|| fewest(None)).map(|(node, _)| *node)
    }

    fn even_out(&mut self, channels: &[ChannelView]) -> Vec<Placement> {
        let mut movable: BTreeMap<i64, Vec<&str>> = BTreeMap::new();
        for channel in channels.iter().rev().filter(|channel| channel.movable) {
            if let Some(owner) = channel.owner {
                movable.entry(owner).or_default().push(&channel.name);
            }
        }
        let mut placements = Vec::new();
        while let Some(to) = self.emptiest(None) {
            let room = self.counts.get(&to).copied().unwrap_or_default();
            let fullest = self
                .counts
                .iter()
                .filter(|(node, count)| **count > room + 1 && movable.get(*node).is_some_and(|names| !names.is_empty()))
                .max_by_key(|(node, count)| (**count, std::cmp::Reverse(**node)))
                .map(|(node, _)| *node);
            let Some(from) = fullest else { break };
            let Some(name) = movable.get_mut(&from).and_then(Vec::pop) else { break };
            if let Some(count) = self.counts.get_mut(&from) {
                *count -= 1;
            }
            self.add(to, 1);
            placements.push(Placement { channel: name.to_owned(), node: to });
        }
        placements
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn channel(index: usize, owner: Option<i64>, movable: bool) -> ChannelView {
        ChannelView { name: format!("c{index:03}"), owner, movable, avoid: None }
    }

    fn spread(channels: &[ChannelView], targets: &BTreeSet<i64>, placements: &[Placement]) -> BTreeMap<i64, usize> {
        let moved: BTreeMap<&str, i64> = placements.iter().map(|p| (p.channel.as_str(), p.node)).collect();
        let mut counts: BTreeMap<i64, usize> = targets.iter().map(|node| (*node, 0)).collect();
        for channel in channels {
            if let Some(node) = moved.get(channel.name.as_str()).copied().or(channel.owner) {
                *counts.entry(node).or_default() += 1;
            }
        }
        counts
    }

    #[test]
    fn fresh_channels_spread_evenly() {
        let channels: Vec<_> = (0..16).map(|i| channel(i, None, false)).collect();
        let targets = BTreeSet::from([1, 2, 3]);
        let placements = plan(&channels, &targets, false);
        let counts = spread(&channels, &targets, &placements);
        assert_eq!(counts.values().copied().collect::<Vec<_>>(), [6, 5, 5]);
    }

    #[test]
    fn without_nodes_nothing_is_placed() {
        assert_eq!(plan(&[channel(0, None, false)], &BTreeSet::new(), true), []);
    }

    #[test]
    fn a_new_node_gets_only_what_evens_out() {
        let channels: Vec<_> = (0..16).map(|i| channel(i, Some(1 + (i as i64 % 2)), true)).collect();
        let targets = BTreeSet::from([1, 2, 3]);
        let placements = plan(&channels, &targets, true);
        assert_eq!(placements.len(), 5);
        assert!(placements.iter().all(|placement| placement.node == 3));
    }

    #[test]
    fn nothing_moves_when_rebalancing_is_off() {
        let channels: Vec<_> = (0..16).map(|i| channel(i, Some(1), true)).collect();
        assert_eq!(plan(&channels, &BTreeSet::from([1, 2]), false), []);
    }

    #[test]
    fn a_channel_that_may_not_move_stays() {
        let mut channels: Vec<_> = (0..4).map(|i| channel(i, Some(1), false)).collect();
        channels[2].movable = true;
        let placements = plan(&channels, &BTreeSet::from([1, 2]), true);
        assert_eq!(placements, [Placement { channel: "c002".into(), node: 2 }]);
    }

    #[test]
    fn the_node_of_the_last_failure_is_the_last_choice() {
        let mut failed = channel(0, None, false);
        failed.avoid = Some(1);
        let placed = |targets| plan(std::slice::from_ref(&failed), &targets, true)[0].node;
        assert_eq!(placed(BTreeSet::from([1, 2])), 2);
        assert_eq!(placed(BTreeSet::from([1])), 1);
    }

    #[test]
    fn channels_leave_for_the_primary_group_once_it_can_take_them() {
        let node = |primary, receives| NodeView { retains: true, receives, primary };
        let both = |strict, primary_receives| {
            let nodes = BTreeMap::from([(1, node(false, true)), (2, node(true, primary_receives))]);
            let Eligible { homes, targets } = eligible(&nodes, strict);
            (homes.into_iter().collect::<Vec<_>>(), targets.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(both(false, true), (vec![2], vec![2]));
        assert_eq!(both(true, true), (vec![2], vec![2]));
        // A node of the group that does not answer keeps what it has, and drives nobody out of theirs.
        assert_eq!(both(false, false), (vec![1, 2], vec![1]));
        assert_eq!(both(true, false), (vec![1, 2], vec![]));
        // Without a primary group all nodes are alike.
        let nodes = BTreeMap::from([(1, node(true, true)), (2, node(true, false))]);
        let all = Eligible { homes: BTreeSet::from([1, 2]), targets: BTreeSet::from([1]) };
        assert_eq!((eligible(&nodes, false), eligible(&nodes, true)), (all.clone(), all));
    }

    proptest! {
        #[test]
        fn all_are_placed_evenly_with_minimal_moves(
            owners in proptest::collection::vec(proptest::option::of(0i64..6), 0..60),
            targets in proptest::collection::btree_set(0i64..6, 1..6),
        ) {
            // An owner that is no target counts as lost, which is how the balancer calls the policy.
            let channels: Vec<_> = owners
                .iter()
                .enumerate()
                .map(|(i, owner)| channel(i, owner.filter(|owner| targets.contains(owner)), true))
                .collect();
            let placements = plan(&channels, &targets, true);
            let counts = spread(&channels, &targets, &placements);
            prop_assert_eq!(counts.values().sum::<usize>(), channels.len());
            let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
            prop_assert!(most - least <= 1, "{counts:?}");

            // Settled: planning again changes nothing.
            let moved: BTreeMap<&str, i64> = placements.iter().map(|p| (p.channel.as_str(), p.node)).collect();
            let settled: Vec<_> = channels
                .iter()
                .map(|c| ChannelView { owner: moved.get(c.name.as_str()).copied().or(c.owner), ..c.clone() })
                .collect();
            prop_assert_eq!(plan(&settled, &targets, true), []);

            // Owned channels move only out of nodes that hold more than their share.
            let share = channels.len() / targets.len();
            let before = spread(&channels, &targets, &[]);
            let moves = placements
                .iter()
                .filter(|p| channels.iter().any(|c| c.name == p.channel && c.owner.is_some()))
                .count();
            let surplus: usize = before.values().map(|count| count.saturating_sub(share)).sum();
            prop_assert!(moves <= surplus);
        }
    }
}
