//! How far those are who read a WAL, for whoever asks for the slowest.

use std::sync::{
    Arc, Mutex, PoisonError, Weak,
    atomic::{AtomicU64, Ordering},
};

use streaming_types::TimeTick;

/// See the module.
#[derive(Debug, Default)]
pub struct Readers(Mutex<Vec<Weak<AtomicU64>>>);

/// Where one reader is. Dropped with it.
#[derive(Debug)]
pub struct Place(Arc<AtomicU64>);

impl Readers {
    /// One more reader, that is nowhere yet.
    pub fn join(&self) -> Place {
        let tick = Arc::new(AtomicU64::new(0));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&tick));
        Place(tick)
    }

    /// How far the slowest is of those that were given something.
    pub fn slowest(&self) -> Option<TimeTick> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|place| place.strong_count() > 0);
        let ticks = places.iter().filter_map(Weak::upgrade).map(|tick| tick.load(Ordering::Relaxed));
        ticks.filter(|tick| *tick > 0).min().map(TimeTick)
    }
}

impl Place {
    /// The reader was given everything up to a tick.
    pub fn reached(&self, tick: u64) {
        self.0.store(tick, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_counts_of_those_that_are_there() {
        let readers = Readers::default();
        let (slow, fast, new) = (readers.join(), readers.join(), readers.join());
        assert_eq!(readers.slowest(), None, "nobody was given anything");
        slow.reached(10);
        fast.reached(20);
        assert_eq!(readers.slowest(), Some(TimeTick(10)));
        drop(slow);
        assert_eq!(readers.slowest(), Some(TimeTick(20)));
        drop((fast, new));
        assert_eq!(readers.slowest(), None);
    }
}
