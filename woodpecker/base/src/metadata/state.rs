//! The store as a state machine in memory, without I/O and without a clock: what the memory store is, and what the redb
//! store serves reads and watches from. A write is first evaluated to a [`Change`], which may then be made durable, and
//! applied.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
    time::Duration,
};

use super::{Compare, KeyValue, LeaseId, MetadataError, Revision, Snapshot, Txn, WatchEvent, Write};

/// Events kept for watches that start in the past or fall behind; older ones make a watch resynchronize.
const HISTORY_EVENTS: usize = 16_384;

/// Times are durations since an origin that the owner of the state chose.
#[derive(Debug)]
pub(super) struct State {
    revision: Revision,
    /// History up to and including this revision is gone.
    compacted: Revision,
    keys: BTreeMap<String, KeyValue>,
    history: VecDeque<WatchEvent>,
    history_limit: usize,
    leases: BTreeMap<LeaseId, Lease>,
    deadlines: BTreeSet<(Duration, LeaseId)>,
    last_lease: i64,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    deadline: Duration,
    keys: BTreeSet<String>,
}

/// What there is to keep of a state.
#[derive(Debug)]
pub(super) struct Content {
    pub revision: Revision,
    pub last_lease: i64,
    pub keys: Vec<KeyValue>,
    /// With their time to live.
    pub leases: Vec<(LeaseId, Duration)>,
}

/// What a write does: nothing yet, until it is applied to the very state it was evaluated on.
#[derive(Debug)]
pub(super) struct Change {
    /// The revision after the change; the same as before if nothing changes.
    pub revision: Revision,
    /// Puts and deletes, all at `revision`.
    pub events: Vec<WatchEvent>,
    /// The lease that ends with this change.
    pub ended: Option<LeaseId>,
}

impl State {
    /// An empty store. Like etcd it starts at revision 1, so that the first write is 2 and 0 means "never".
    pub fn new() -> Self {
        Self::restore(1, 0, BTreeMap::new(), &[])
    }

    /// A store with this content and no history; every lease has expired at the origin.
    pub fn restore(revision: Revision, last_lease: i64, keys: BTreeMap<String, KeyValue>, leases: &[LeaseId]) -> Self {
        let mut state = Self {
            revision,
            compacted: if revision > 1 { revision } else { 0 },
            keys,
            history: VecDeque::new(),
            history_limit: HISTORY_EVENTS,
            leases: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            last_lease,
        };
        for lease in leases {
            state.add_lease(*lease, Duration::ZERO, Duration::ZERO);
        }
        for item in state.keys.values() {
            if let Some(lease) = item.lease.and_then(|lease| state.leases.get_mut(&lease)) {
                lease.keys.insert(item.key.clone());
            }
        }
        state
    }

    /// All of it that outlives the process.
    pub fn content(&self) -> Content {
        Content {
            revision: self.revision,
            last_lease: self.last_lease,
            keys: self.keys.values().cloned().collect(),
            leases: self.leases.iter().map(|(id, lease)| (*id, lease.ttl)).collect(),
        }
    }

    pub fn get(&self, key: &str) -> Option<KeyValue> {
        self.keys.get(key).cloned()
    }

    pub fn list(&self, prefix: &str) -> Snapshot {
        let items = self.under(prefix).map(|(_, item)| item.clone()).collect();
        Snapshot { revision: self.revision, items }
    }

    fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a String, &'a KeyValue)> {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        self.keys.range::<str, _>(from).take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// What the transaction would do; `None` if a compare does not hold.
    pub fn evaluate(&self, txn: &Txn) -> Result<Option<Change>, MetadataError> {
        txn.validate()?;
        if !txn.compares.iter().all(|compare| self.holds(compare)) {
            return Ok(None);
        }
        let revision = self.revision + 1;
        let mut events = Vec::with_capacity(txn.writes.len());
        for write in &txn.writes {
            match write {
                Write::Put { key, value, lease } => {
                    if let Some(lease) = lease.filter(|lease| !self.leases.contains_key(lease)) {
                        return Err(MetadataError::LeaseGone(lease));
                    }
                    let create_revision = self.keys.get(key).map_or(revision, |old| old.create_revision);
                    let (key, value) = (key.clone(), value.clone());
                    events.push(WatchEvent::Put(KeyValue {
                        key,
                        value,
                        create_revision,
                        mod_revision: revision,
                        lease: *lease,
                    }));
                }
                Write::Delete { key } => {
                    if self.keys.contains_key(key) {
                        events.push(WatchEvent::Delete { key: key.clone(), revision });
                    }
                }
                Write::DeletePrefix { prefix } => {
                    events.extend(self.under(prefix).map(|(key, _)| WatchEvent::Delete { key: key.clone(), revision }));
                }
            }
        }
        let revision = if events.is_empty() { self.revision } else { revision };
        Ok(Some(Change { revision, events, ended: None }))
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Absent(key) => !self.keys.contains_key(key),
            Compare::Present(key) => self.keys.contains_key(key),
            Compare::ModRevision(key, revision) => {
                self.keys.get(key).is_some_and(|item| item.mod_revision == *revision)
            }
            Compare::CreateRevision(key, revision) => {
                self.keys.get(key).is_some_and(|item| item.create_revision == *revision)
            }
            Compare::Value(key, value) => self.keys.get(key).is_some_and(|item| item.value == *value),
        }
    }

    /// What ending the lease would do; `None` if there is no such lease.
    pub fn evaluate_end(&self, lease: LeaseId) -> Option<Change> {
        let held = &self.leases.get(&lease)?.keys;
        let revision = if held.is_empty() { self.revision } else { self.revision + 1 };
        let events = held.iter().map(|key| WatchEvent::Delete { key: key.clone(), revision }).collect();
        Some(Change { revision, events, ended: Some(lease) })
    }

    pub fn apply(&mut self, change: Change) -> Revision {
        for event in change.events {
            let old = match &event {
                WatchEvent::Put(item) => self.keys.insert(item.key.clone(), item.clone()),
                WatchEvent::Delete { key, .. } => self.keys.remove(key),
                WatchEvent::Resync(_) => None,
            };
            if let Some(KeyValue { key, lease: Some(lease), .. }) = old
                && let Some(lease) = self.leases.get_mut(&lease)
            {
                lease.keys.remove(&key);
            }
            if let WatchEvent::Put(KeyValue { key, lease: Some(lease), .. }) = &event
                && let Some(lease) = self.leases.get_mut(lease)
            {
                lease.keys.insert(key.clone());
            }
            self.history.push_back(event);
        }
        if let Some(ended) = change.ended
            && let Some(lease) = self.leases.remove(&ended)
        {
            self.deadlines.remove(&(lease.deadline, ended));
        }
        self.revision = change.revision;
        self.trim_history();
        change.revision
    }

    /// Drops the oldest events, whole revisions at a time: a watch sees all of a revision or is told to resynchronize.
    fn trim_history(&mut self) {
        while self.history.len() > self.history_limit {
            let Some(revision) = self.history.front().map(revision_of) else { return };
            self.compact(revision);
        }
    }

    /// Forgets history up to and including `revision`.
    pub fn compact(&mut self, revision: Revision) {
        self.compacted = self.compacted.max(revision.min(self.revision));
        while self.history.front().is_some_and(|event| revision_of(event) <= self.compacted) {
            self.history.pop_front();
        }
    }

    /// The id that the next lease will have.
    pub fn next_lease(&self) -> LeaseId {
        LeaseId(self.last_lease + 1)
    }

    /// Starts a lease.
    pub fn add_lease(&mut self, id: LeaseId, ttl: Duration, now: Duration) {
        let deadline = now + ttl;
        self.leases.insert(id, Lease { ttl, deadline, keys: BTreeSet::new() });
        self.deadlines.insert((deadline, id));
        self.last_lease = self.last_lease.max(id.0);
    }

    pub fn keep_alive(&mut self, id: LeaseId, now: Duration) -> Result<Duration, MetadataError> {
        let lease = self.leases.get_mut(&id).ok_or(MetadataError::LeaseGone(id))?;
        self.deadlines.remove(&(lease.deadline, id));
        lease.deadline = now + lease.ttl;
        self.deadlines.insert((lease.deadline, id));
        Ok(lease.ttl)
    }

    /// When the next lease expires, if it is not kept alive.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// A lease whose time is over.
    pub fn expired(&self, now: Duration) -> Option<LeaseId> {
        self.deadlines.first().filter(|(deadline, _)| *deadline <= now).map(|(_, lease)| *lease)
    }
}

/// Where a watch stands.
#[derive(Debug)]
pub(super) struct Cursor {
    prefix: String,
    next: Revision,
}

impl Cursor {
    pub fn new(prefix: &str, from: Revision) -> Self {
        Self { prefix: prefix.to_owned(), next: from.max(1) }
    }

    /// Takes the events of the next revision that concerns this watch; empty if it has seen everything.
    pub fn advance(&mut self, state: &State) -> VecDeque<WatchEvent> {
        if self.next <= state.compacted {
            self.next = state.revision + 1;
            return VecDeque::from([WatchEvent::Resync(state.list(&self.prefix))]);
        }
        let mut found = VecDeque::new();
        let start = state.history.partition_point(|event| revision_of(event) < self.next);
        for event in state.history.range(start..) {
            let revision = revision_of(event);
            if !found.is_empty() && revision != self.next - 1 {
                return found;
            }
            if key_of(event).is_some_and(|key| key.starts_with(&self.prefix)) {
                self.next = revision + 1;
                found.push_back(event.clone());
            }
        }
        // A watch ahead of the store waits for its revision; one that saw all of it need not look at it again.
        self.next = self.next.max(state.revision + 1);
        found
    }
}

fn revision_of(event: &WatchEvent) -> Revision {
    match event {
        WatchEvent::Put(item) => item.mod_revision,
        WatchEvent::Delete { revision, .. } => *revision,
        WatchEvent::Resync(snapshot) => snapshot.revision,
    }
}

fn key_of(event: &WatchEvent) -> Option<&str> {
    match event {
        WatchEvent::Put(item) => Some(&item.key),
        WatchEvent::Delete { key, .. } => Some(key),
        WatchEvent::Resync(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Put(u8, Option<u8>),
        Delete(u8),
        DeletePrefix,
        EndLease(u8),
        Compact(u8),
        /// A watcher takes this many answers.
        Look(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..6u8, proptest::option::of(0..3u8)).prop_map(|(key, lease)| Step::Put(key, lease)),
            2 => (0..6u8).prop_map(Step::Delete),
            1 => Just(Step::DeletePrefix),
            1 => (0..3u8).prop_map(Step::EndLease),
            1 => (0..8u8).prop_map(Step::Compact),
            3 => (0..4u8).prop_map(Step::Look),
        ]
    }

    fn key(number: u8) -> String {
        format!("{}/{number}", if number < 4 { "in" } else { "out" })
    }

    /// Follows the events, and checks that they only go forward.
    fn follow(replica: &mut (Revision, BTreeMap<String, KeyValue>), events: VecDeque<WatchEvent>) {
        let resync = matches!(events.front(), Some(WatchEvent::Resync(_)));
        for event in events {
            let revision = revision_of(&event);
            assert!(revision > replica.0 || resync && revision >= replica.0, "{event:?} after {}", replica.0);
            match event {
                WatchEvent::Put(item) => drop(replica.1.insert(item.key.clone(), item)),
                WatchEvent::Delete { key, .. } => assert!(replica.1.remove(&key).is_some(), "{key} was not there"),
                WatchEvent::Resync(snapshot) => {
                    replica.1 = snapshot.items.into_iter().map(|item| (item.key.clone(), item)).collect();
                }
            }
        }
    }

    fn seen(events: &VecDeque<WatchEvent>, before: Revision) -> Revision {
        events.back().map_or(before, revision_of)
    }

    fn run(state: &mut State, step: Step) {
        let change = match step {
            Step::Put(number, lease) => {
                let lease = lease.map(|lease| LeaseId(i64::from(lease) + 1));
                let write = Write::Put { key: key(number), value: "v".into(), lease };
                state.evaluate(&Txn { compares: Vec::new(), writes: vec![write] }).ok().flatten()
            }
            Step::Delete(number) => state.evaluate(&Txn::new().delete(key(number))).unwrap(),
            Step::DeletePrefix => state.evaluate(&Txn::new().delete_prefix("in/")).unwrap(),
            Step::EndLease(lease) => state.evaluate_end(LeaseId(i64::from(lease) + 1)),
            Step::Compact(back) => {
                state.compact(state.revision - i64::from(back));
                None
            }
            Step::Look(_) => None,
        };
        if let Some(change) = change {
            state.apply(change);
        }
    }

    proptest! {
        #[test]
        fn a_watcher_at_any_pace_ends_with_what_the_store_holds(steps in proptest::collection::vec(step(), 1..120)) {
            let mut state = State::new();
            state.history_limit = 10;
            for lease in 1..4 {
                state.add_lease(LeaseId(lease), Duration::from_secs(1), Duration::ZERO);
            }
            let mut cursor = Cursor::new("in/", 1);
            let mut replica = (0, BTreeMap::new());
            for step in steps {
                let looks = if let Step::Look(looks) = step { looks } else { 0 };
                run(&mut state, step);
                for _ in 0..looks {
                    let events = cursor.advance(&state);
                    let last = seen(&events, replica.0);
                    follow(&mut replica, events);
                    replica.0 = last;
                }
                prop_assert!(state.history.len() <= 10);
                for (id, lease) in &state.leases {
                    let attached = state.keys.values().filter(|item| item.lease == Some(*id)).map(|item| &item.key);
                    prop_assert!(lease.keys.iter().eq(attached));
                }
            }
            loop {
                let events = cursor.advance(&state);
                if events.is_empty() {
                    break;
                }
                let last = seen(&events, replica.0);
                follow(&mut replica, events);
                replica.0 = last;
            }
            prop_assert!(replica.1.values().eq(state.list("in/").items.iter()));
        }
    }
}
