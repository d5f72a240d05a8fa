//! What happened in a run, and when: the way to find out what went wrong.

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// The events of one run, in order. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    lines: Arc<Mutex<Vec<String>>>,
}

impl Trace {
    /// Notes what happened at `at`, in simulated time since the run began.
    pub fn note(&self, at: Duration, event: impl fmt::Display) {
        let line = format!("{:>10.3} {event}", at.as_secs_f64());
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// Notes what happened on the host that calls this.
    pub fn here(&self, event: impl fmt::Display) {
        self.note(turmoil::sim_elapsed().unwrap_or_default(), event);
    }

    /// Every line so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A fingerprint of every line so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.lines().hash(&mut hasher);
        hasher.finish()
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines().iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}
