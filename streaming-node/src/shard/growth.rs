//! What grows on a node, over all its WALs: when it is too much, the largest segments are sealed until it is not.

use std::sync::{Mutex, PoisonError};

use super::{layer::Shards, segment::Policy};

/// See the module.
#[derive(Debug, Default)]
pub struct Growth {
    wals: Mutex<Vec<Shards>>,
}

impl Growth {
    /// Adds a WAL; it counts until nobody else holds its table.
    pub fn add(&self, shards: Shards) {
        let mut wals = self.wals.lock().unwrap_or_else(PoisonError::into_inner);
        wals.retain(Shards::is_used);
        wals.push(shards);
    }

    /// Bytes that grow.
    pub fn bytes(&self) -> u64 {
        self.growing().iter().map(|(bytes, ..)| bytes).sum()
    }

    /// Seals the largest segments until at most `low` bytes grow.
    pub fn seal_down_to(&self, low: u64, policy: Policy) {
        let mut growing = self.growing();
        growing.sort_unstable_by_key(|(bytes, id, _)| (std::cmp::Reverse(*bytes), *id));
        let mut left: u64 = growing.iter().map(|(bytes, ..)| bytes).sum();
        for (_, id, shards) in growing {
            if left <= low {
                return;
            }
            left = left.saturating_sub(shards.lock().seal(id, policy).unwrap_or(0));
        }
    }

    fn growing(&self) -> Vec<(u64, i64, Shards)> {
        let wals = self.wals.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let of = |shards: Shards| {
            let growing: Vec<_> = shards.lock().growing().collect();
            growing.into_iter().map(move |(id, bytes)| (bytes, id, shards.clone()))
        };
        wals.into_iter().filter(Shards::is_used).flat_map(of).collect()
    }
}
