//! Randomness. Protocol crates take it from here only, so that one seed decides a whole simulated run.

use std::sync::{Arc, Mutex, PoisonError};

/// A shared source of random numbers, seeded once. Not for secrets.
#[derive(Debug, Clone)]
pub struct Random {
    rng: Arc<Mutex<fastrand::Rng>>,
}

impl Random {
    /// Seeded by the operating system.
    #[must_use]
    pub fn system() -> Self {
        #[expect(clippy::disallowed_methods, reason = "the one place that seeds from the operating system")]
        Self::from_rng(fastrand::Rng::new())
    }

    /// The same seed gives the same numbers.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self::from_rng(fastrand::Rng::with_seed(seed))
    }

    fn from_rng(rng: fastrand::Rng) -> Self {
        Self { rng: Arc::new(Mutex::new(rng)) }
    }

    /// A generator of its own for one user, derived from this source.
    #[must_use]
    pub fn fork(&self) -> fastrand::Rng {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).fork()
    }

    /// A random 64-bit number.
    #[must_use]
    pub fn u64(&self) -> u64 {
        self.fork().u64(..)
    }

    /// A random 128-bit number, for identities that must not repeat.
    #[must_use]
    pub fn u128(&self) -> u128 {
        self.fork().u128(..)
    }
}
