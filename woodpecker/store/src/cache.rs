//! What was read lately, kept for the next reader; bounded in bytes.

use std::hash::Hash;

use quick_cache::{DefaultHashBuilder, Options, OptionsBuilder, Weighter, sync};
pub use sync::{Cache, DefaultLifecycle};

/// A cache is split into parts that are locked, and bounded, each by itself. No item is kept that is larger than half a
/// part: the largest are entries of 64 MiB, but blocks and groups of a few MiB are what counts.
const PART_BYTES: u64 = 32 << 20;

/// A cache of so many bytes. Half of it keeps what was used again, and half what came last: logs are read forward, by
/// many at about the same place.
///
/// `item` is the size of a usual item, in bytes.
pub fn cache<K, V, W>(bytes: u64, item: u64, weighter: W) -> Cache<K, V, W>
where
    K: Eq + Hash,
    V: Clone,
    W: Weighter<K, V> + Clone,
{
    Cache::with_options(options(bytes, item), weighter, DefaultHashBuilder::default(), DefaultLifecycle::default())
}

#[expect(clippy::expect_used, reason = "it fails only when a size is left out, and all are given")]
fn options(bytes: u64, item: u64) -> Options {
    let count = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX).max(1);
    OptionsBuilder::new()
        .weight_capacity(bytes)
        .estimated_items_capacity(count(bytes / item.max(1)))
        .shards(count(bytes / PART_BYTES).min(64))
        .hot_allocation(0.5)
        .build()
        .expect("every size is given")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct AMib;

    impl Weighter<u64, ()> for AMib {
        fn weight(&self, _: &u64, (): &()) -> u64 {
            1 << 20
        }
    }

    #[test]
    fn what_came_last_stays_for_a_while_after_the_cache_was_filled() {
        for bytes in [8 << 20, 256 << 20] {
            let cache = cache(bytes, 1 << 20, AMib);
            for key in 0..1_000 {
                cache.insert(key, ());
                assert!(key == 0 || cache.get(&(key - 1)).is_some(), "{} is gone after {key} of {bytes}", key - 1);
            }
            assert!(cache.weight() <= bytes && cache.weight() > bytes / 2);
        }
    }
}
