//! Whether what this node was given can be someone else's by now.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use woodpecker_base::{clock::Clock, session::Session};

/// What the session says of everything that the node owns. Clones are one.
///
/// What goes to a log is guarded by the log's fence, and needs none of this. What is told without the log does.
#[derive(Debug, Clone)]
pub struct Tenure {
    /// `None` as long as the node does not ask for a session: then nobody takes anything from it because of one.
    session: Arc<Mutex<Option<Weak<Session>>>>,
    clock: Clock,
}

impl Tenure {
    pub fn new(clock: Clock) -> Self {
        Self { session: Arc::default(), clock }
    }

    /// From now on it is sure as long as this session is, which may not be there yet.
    pub fn rest_on(&self, session: Weak<Session>) {
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
    }

    /// Whether, on our own clock, nobody else can have been given what is ours. Holds for the moment of the call only.
    pub fn is_sure(&self) -> bool {
        match &*self.session.lock().unwrap_or_else(PoisonError::into_inner) {
            None => true,
            Some(session) => session.upgrade().is_some_and(|session| self.clock.now() < session.valid_until()),
        }
    }
}
