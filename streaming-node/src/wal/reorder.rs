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

    /// The messages up to `tick`, in order. A tick that falls releases nothing.
    pub fn release(&mut self, tick: u64) -> impl Iterator<Item = Arc<Stored>> + use<> {
        self.released = self.released.max(tick);
        let later = self.waiting.split_off(&tick.saturating_add(1));
        std::mem::replace(&mut self.waiting, later).into_values()
    }

    /// Everything up to here was given out.
    pub fn released(&self) -> u64 {
        self.released
    }
}
