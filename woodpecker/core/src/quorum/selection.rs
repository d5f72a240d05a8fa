//! Which log stores a new segment goes to.

use std::{cmp::Reverse, collections::BTreeMap};

use crate::{
    ids::ReplicaSet,
    quorum::store_record::{StoreRecord, StoreState},
};

/// What a segment's replicas should look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectionPolicy {
    /// How many replicas: 3 or 5. A majority of them acks.
    pub replicas: usize,
    pub strategy: Strategy,
    pub affinity: Affinity,
}

/// How replicas are spread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Strategy {
    /// Each place is free.
    Spread { zone: Spread, resource_group: Spread, region: Spread },
    /// One selector for each replica.
    Custom(Vec<Selector>),
}

/// What is asked of one kind of place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// Nothing.
    Any,
    /// All replicas in one.
    One,
    /// Over as many as there are. At best none has an ack quorum, so that the loss of one loses nothing.
    Many,
}

/// What happens when the strategy cannot be followed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Affinity {
    /// What comes closest is taken; fewer replicas too, but never fewer than ack.
    #[default]
    Soft,
    /// Nothing is taken.
    Hard,
}

/// Stores for one replica. Patterns match a whole name; `*` stands for any characters, the empty pattern for any name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    pub region: String,
    pub zone: String,
    pub resource_group: String,
}

/// Too few stores, or none that the strategy allows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} log stores are wanted and {usable} take new segments{}", if *.hard { ", or the placement strategy allows none of them" } else { "" })]
pub struct Unplaceable {
    pub wanted: usize,
    pub usable: usize,
    pub hard: bool,
}

impl SelectionPolicy {
    /// How many replicas make an entry durable.
    #[must_use]
    pub fn ack(&self) -> usize {
        self.replicas / 2 + 1
    }

    /// Chooses stores, by chance and the less loaded rather than the loaded. `draw(n)` is a number below `n`, each as
    /// likely as the others.
    ///
    /// # Errors
    /// Fewer stores than must ack take new segments, or the affinity is hard and the strategy cannot be followed.
    pub fn select<'a>(
        &self,
        stores: impl IntoIterator<Item = &'a StoreRecord>,
        draw: &mut dyn FnMut(u64) -> u64,
    ) -> Result<ReplicaSet, Unplaceable> {
        let stores: Vec<&StoreRecord> = stores.into_iter().collect();
        let in_state = |states: &[StoreState]| -> Vec<&StoreRecord> {
            stores.iter().copied().filter(|store| states.contains(&store.state)).collect()
        };
        // Those that ask their writers to slow down only when the others are too few.
        let mut usable = in_state(&[StoreState::Active]);
        if usable.len() < self.replicas {
            usable = in_state(&[StoreState::Active, StoreState::Slowed]);
        }
        let unplaceable =
            Unplaceable { wanted: self.replicas, usable: usable.len(), hard: self.affinity == Affinity::Hard };
        let shuffled = shuffle(usable, draw);
        let chosen = match &self.strategy {
            Strategy::Spread { zone, resource_group, region } => {
                self.spread(&shuffled, [(*region, Kind::Region), (*zone, Kind::Zone), (*resource_group, Kind::Group)])
            }
            Strategy::Custom(selectors) => self.custom(&shuffled, selectors),
        };
        let enough = if self.affinity == Affinity::Hard { self.replicas } else { self.ack() };
        chosen
            .filter(|chosen| chosen.len() >= enough)
            .and_then(|chosen| ReplicaSet::new(chosen.iter().map(|store| store.id).collect(), self.ack()).ok())
            .ok_or(unplaceable)
    }

    fn spread<'a>(&self, stores: &[&'a StoreRecord], rules: [(Spread, Kind); 3]) -> Option<Vec<&'a StoreRecord>> {
        let one: Vec<Kind> = rules.iter().filter(|(spread, _)| *spread == Spread::One).map(|(_, kind)| *kind).collect();
        let many: Vec<Kind> =
            rules.iter().filter(|(spread, _)| *spread == Spread::Many).map(|(_, kind)| *kind).collect();
        let mut groups: BTreeMap<Vec<&str>, Vec<&'a StoreRecord>> = BTreeMap::new();
        for store in stores {
            groups.entry(one.iter().map(|kind| kind.of(store)).collect()).or_default().push(store);
        }
        // A group with enough stores, the one that has the least loaded of all by chance; else the largest.
        let first = |group: &[&StoreRecord]| stores.iter().position(|store| group.iter().any(|own| own.id == store.id));
        let best = groups.values().min_by_key(|group| (Reverse(group.len().min(self.replicas)), first(group)))?;
        let mut chosen = self.take_spread(best, &many);
        match self.affinity {
            Affinity::Hard => {
                let fewer = |kind: &Kind| count(&chosen, *kind).into_values().all(|count| count < self.ack());
                (chosen.len() == self.replicas && many.iter().all(fewer)).then_some(chosen)
            }
            Affinity::Soft => {
                let others = stores.iter().copied().filter(|store| chosen.iter().all(|own| own.id != store.id));
                let room = self.replicas - chosen.len();
                let more: Vec<&StoreRecord> = others.take(room).collect();
                chosen.extend(more);
                Some(chosen)
            }
        }
    }

    /// One after the other, each from the places that have the fewest so far.
    fn take_spread<'a>(&self, stores: &[&'a StoreRecord], kinds: &[Kind]) -> Vec<&'a StoreRecord> {
        let mut left = stores.to_vec();
        let mut chosen: Vec<&StoreRecord> = Vec::new();
        while chosen.len() < self.replicas {
            let crowd = |store: &StoreRecord| -> Vec<usize> {
                let same = |kind: &Kind| chosen.iter().filter(|own| kind.of(own) == kind.of(store)).count();
                kinds.iter().map(same).collect()
            };
            let Some(next) = (0..left.len()).min_by_key(|at| left.get(*at).map(|store| crowd(store))) else { break };
            chosen.push(left.remove(next));
        }
        chosen
    }

    fn custom<'a>(&self, stores: &[&'a StoreRecord], selectors: &[Selector]) -> Option<Vec<&'a StoreRecord>> {
        let any = Selector::default();
        let selectors: Vec<&Selector> =
            (0..self.replicas).map(|replica| selectors.get(replica).unwrap_or(&any)).collect();
        // By store: the replica that it is for.
        let mut taken: Vec<Option<usize>> = vec![None; stores.len()];
        for replica in 0..selectors.len() {
            assign(replica, &selectors, stores, &mut taken, &mut vec![false; stores.len()]);
        }
        let assigned = taken.iter().flatten().count();
        if self.affinity == Affinity::Hard && assigned < self.replicas {
            return None;
        }
        let mut order: Vec<usize> = (0..stores.len()).collect();
        order.sort_by_key(|at| taken.get(*at).copied().flatten().unwrap_or(usize::MAX));
        Some(order.iter().take(self.replicas).filter_map(|at| stores.get(*at).copied()).collect())
    }
}

/// Finds a store for a replica, moving other replicas to other stores if it must: a maximum matching.
fn assign(
    replica: usize,
    selectors: &[&Selector],
    stores: &[&StoreRecord],
    taken: &mut Vec<Option<usize>>,
    seen: &mut Vec<bool>,
) -> bool {
    let Some(selector) = selectors.get(replica) else { return false };
    for (at, store) in stores.iter().enumerate() {
        if !selector.matches(store) || seen.get(at).copied().unwrap_or(true) {
            continue;
        }
        if let Some(seen) = seen.get_mut(at) {
            *seen = true;
        }
        let free = match taken.get(at).copied().flatten() {
            Some(other) => assign(other, selectors, stores, taken, seen),
            None => true,
        };
        if free {
            if let Some(taken) = taken.get_mut(at) {
                *taken = Some(replica);
            }
            return true;
        }
    }
    false
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Region,
    Zone,
    Group,
}

impl Kind {
    fn of(self, store: &StoreRecord) -> &str {
        match self {
            Self::Region => &store.region,
            Self::Zone => &store.zone,
            Self::Group => &store.resource_group,
        }
    }
}

fn count<'a>(stores: &[&'a StoreRecord], kind: Kind) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    for store in stores {
        *counts.entry(kind.of(store)).or_default() += 1;
    }
    counts
}

/// In random order, those with less load sooner: each place is drawn by weight from those that are left.
fn shuffle<'a>(mut stores: Vec<&'a StoreRecord>, draw: &mut dyn FnMut(u64) -> u64) -> Vec<&'a StoreRecord> {
    let weight = |store: &StoreRecord| u64::from(1000_u32.saturating_sub(store.load).max(10));
    let mut order = Vec::with_capacity(stores.len());
    while !stores.is_empty() {
        let total = stores.iter().map(|store| weight(store)).sum();
        let mut drawn = draw(total);
        let found = stores.iter().position(|store| {
            let weight = weight(store);
            let found = drawn < weight;
            drawn = drawn.saturating_sub(weight);
            found
        });
        order.push(stores.swap_remove(found.unwrap_or_default()));
    }
    order
}

impl Selector {
    fn matches(&self, store: &StoreRecord) -> bool {
        let places =
            [(&self.region, &store.region), (&self.zone, &store.zone), (&self.resource_group, &store.resource_group)];
        places.iter().all(|(pattern, name)| pattern.is_empty() || matches(pattern, name))
    }
}

/// Whether the whole name matches the pattern.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == name };
    let Some(rest) = name.strip_prefix(before) else { return false };
    let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    ends.into_iter().any(|at| rest.get(at..).is_some_and(|tail| matches(after, tail)))
}

#[cfg(test)]
mod tests;
