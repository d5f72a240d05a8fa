//! What grows on a node, over all its WALs: when it is too much, the largest segments are sealed until it is not.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use woodpecker_base::clock::Instant;

use super::{layer::Shards, segment::Policy};

/// Bytes of a segment, its id and where it grows.
type Growing = (u64, i64, Shards);

/// See the module.
#[derive(Debug, Default)]
pub struct Growth {
    wals: Mutex<Vec<Shards>>,
    /// When someone last did something for the whole node.
    done: Mutex<Done>,
}

#[derive(Debug, Default)]
struct Done {
    looked: Option<Instant>,
    relieved: Option<Instant>,
}

impl Growth {
    /// Adds a WAL; it counts until nobody else holds its table.
    pub fn add(&self, shards: Shards) {
        let mut wals = self.wals.lock().unwrap_or_else(PoisonError::into_inner);
        wals.retain(Shards::is_used);
        wals.push(shards);
    }

    /// Whether the caller is the one of all WALs that looks at the node now: nobody has for `pause`.
    pub fn looks(&self, now: Instant, pause: Duration) -> bool {
        is_turn(&mut self.done().looked, now, pause)
    }

    /// Whether the caller may seal for the node's memory: nobody has for `pause`.
    pub fn relieves(&self, now: Instant, pause: Duration) -> bool {
        is_turn(&mut self.done().relieved, now, pause)
    }

    fn done(&self) -> MutexGuard<'_, Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that grow.
    pub fn bytes(&self) -> u64 {
        self.growing().iter().map(|(bytes, ..)| bytes).sum()
    }

    /// Seals the largest segments until at most `low` bytes grow.
    pub fn seal_down_to(&self, low: u64, policy: Policy) {
        seal_largest(self.growing(), low, policy);
    }

    fn growing(&self) -> Vec<Growing> {
        let wals = self.wals.lock().unwrap_or_else(PoisonError::into_inner);
        // A clone of ours would count as a use.
        let used: Vec<_> = wals.iter().filter(|shards| shards.is_used()).cloned().collect();
        drop(wals);
        let of = |shards: Shards| {
            let growing: Vec<_> = shards.lock().growing().collect();
            growing.into_iter().map(move |(id, bytes)| (bytes, id, shards.clone()))
        };
        used.into_iter().flat_map(of).collect()
    }
}

fn is_turn(last: &mut Option<Instant>, now: Instant, pause: Duration) -> bool {
    let is_turn = last.is_none_or(|last| now.duration_since(last) >= pause);
    if is_turn {
        *last = Some(now);
    }
    is_turn
}

/// Any WAL's sealer may look after the node: what another one has sealed by now counts as if we had, or both would seal too much.
fn seal_largest(mut growing: Vec<Growing>, low: u64, policy: Policy) {
    growing.sort_unstable_by_key(|(bytes, id, _)| (std::cmp::Reverse(*bytes), *id));
    let mut left: u64 = growing.iter().map(|(bytes, ..)| bytes).sum();
    for (bytes, id, shards) in growing {
        if left <= low {
            return;
        }
        shards.lock().seal(id, policy);
        left -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use streaming_proto::messages::CreateSegmentMessageHeader;
    use woodpecker_base::clock::Clock;

    use super::{
        super::{segment::Segment, table::Table},
        *,
    };

    /// A WAL on which segments with these ids and bytes grow.
    fn wal(segments: &[(i64, u64)]) -> Shards {
        let (mut table, now) = (Table::default(), Clock::system().now());
        table.create("p_1v0", 1, [10]);
        for &(segment_id, bytes) in segments {
            let header = CreateSegmentMessageHeader { segment_id, ..Default::default() };
            let mut segment = Segment::created(&header, now);
            segment.add(bytes, 1, now);
            table.grow("p_1v0", segment);
        }
        Shards::new(table)
    }

    #[tokio::test]
    async fn segments_of_a_closed_wal_do_not_count() {
        let growth = Growth::default();
        let (open, closed) = (wal(&[(1, 5)]), wal(&[(2, 70)]));
        growth.add(open.clone());
        growth.add(closed.clone());
        assert_eq!(growth.bytes(), 75);
        drop(closed);
        assert_eq!(growth.bytes(), 5);
        drop(open);
        assert_eq!(growth.bytes(), 0);
    }

    #[tokio::test]
    async fn one_of_all_sealers_looks_at_the_node_and_one_relieves_it() {
        let (growth, now) = (Growth::default(), Clock::system().now());
        let (second, long) = (Duration::from_secs(1), Duration::from_secs(30));
        let counts = |at: Instant| {
            let looked = (0..1000).filter(|_| growth.looks(at, second)).count();
            (looked, (0..1000).filter(|_| growth.relieves(at, long)).count())
        };
        assert_eq!(counts(now), (1, 1));
        assert_eq!(counts(now + second / 2), (0, 0));
        assert_eq!(counts(now + second), (1, 0));
        assert_eq!(counts(now + long), (1, 1));
    }

    #[tokio::test]
    async fn sealers_that_find_too_much_at_once_seal_the_same() {
        let growth = Growth::default();
        let shards = wal(&[(1, 30), (2, 20), (3, 40), (4, 10)]);
        growth.add(shards.clone());
        let listed = [growth.growing(), growth.growing()];
        for growing in listed {
            seal_largest(growing, 50, Policy::Growth);
        }
        let left: Vec<_> = shards.lock().growing().collect();
        assert_eq!(left, [(2, 20), (4, 10)]);
        growth.seal_down_to(10, Policy::Growth);
        assert_eq!(growth.bytes(), 10);
    }
}
