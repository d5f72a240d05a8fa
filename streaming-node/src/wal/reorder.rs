//! Puts what a reader meets into tick order, each message once.

use std::{collections::BTreeMap, sync::Arc};

use super::record::Stored;

/// Holds messages back until a tick says that nothing before them is missing.
#[derive(Debug, Default)]
pub struct Reorder {
    waiting: BTreeMap<u64, Arc<Stored>>,
    released: u64,
}

impl Reorder {
    /// A buffer that takes everything up to `released` as given out already.
    pub fn after(released: u64) -> Self {
        Self { waiting: BTreeMap::new(), released }
    }

    /// Takes a message; says whether it was kept. A tick at or below one already released breaks the promise that the
    /// tick made, and a tick that waits already is the same record written twice: both are dropped.
    #[must_use]
    pub fn push(&mut self, message: Arc<Stored>) -> bool {
        if message.tick <= self.released || self.waiting.contains_key(&message.tick) {
            return false;
        }
        self.waiting.insert(message.tick, message);
        true
    }

    /// Whether a message may go at once, since all before it is there; it counts as released then.
    #[must_use]
    pub fn passes(&mut self, tick: u64) -> bool {
        let passes = self.waiting.is_empty() && tick > self.released;
        if passes {
            self.released = tick;
        }
        passes
    }

    /// The messages up to `tick`, in order. A tick that falls releases nothing.
    pub fn release(&mut self, tick: u64) -> impl Iterator<Item = Arc<Stored>> + use<> {
        self.released = self.released.max(tick);
        let later = self.waiting.split_off(&tick.saturating_add(1));
        std::mem::replace(&mut self.waiting, later).into_values()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use woodpecker::EntryId;

    use super::*;
    use crate::wal::record;

    fn at(tick: u64) -> Arc<Stored> {
        Arc::new(Stored::new(EntryId { segment: 1, entry: tick }, record::tick(tick, None, 1)).unwrap())
    }

    #[test]
    fn messages_wait_for_a_tick_and_come_in_order() {
        let mut reorder = Reorder::default();
        assert!(reorder.push(at(5)) && reorder.push(at(3)) && reorder.push(at(9)));
        assert!(!reorder.push(at(5)), "the same record again");
        let ticks = |reorder: &mut Reorder, to| reorder.release(to).map(|m| m.tick).collect::<Vec<_>>();
        assert_eq!(ticks(&mut reorder, 5), [3, 5]);
        assert!(!reorder.push(at(4)), "a tick at 5 said that nothing is missing before it");
        assert_eq!(ticks(&mut reorder, 2), [] as [u64; 0]);
        assert_eq!(ticks(&mut reorder, 9), [9]);
    }

    proptest! {
        #[test]
        fn what_comes_out_rises_and_is_what_was_kept(steps in proptest::collection::vec((0..3, 1..50u64), 0..80)) {
            let (mut reorder, mut kept, mut out) = (Reorder::default(), Vec::new(), Vec::new());
            for (step, tick) in steps {
                if step == 0 {
                    out.extend(reorder.release(tick).map(|message| message.tick));
                } else if step == 1 && reorder.passes(tick) {
                    out.push(tick);
                    kept.push(tick);
                } else if reorder.push(at(tick)) {
                    kept.push(tick);
                }
            }
            out.extend(reorder.release(u64::MAX).map(|message| message.tick));
            prop_assert!(out.is_sorted_by(|a, b| a < b));
            kept.sort_unstable();
            prop_assert_eq!(out, kept);
        }
    }
}
