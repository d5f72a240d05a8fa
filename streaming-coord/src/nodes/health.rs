//! Whether a node may keep and be given channels. One unanswered call says nothing as long as the session lives: moving
//! channels away from a node that serves them is worse than waiting.

use std::time::Duration;

use woodpecker_base::clock::Instant;

/// What a node is fit for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Has a session, and has been asked but has not answered yet.
    New,
    /// May be given channels.
    Healthy,
    /// Does not answer at the moment; keeps what it has.
    Suspect,
    /// Has not answered for so long that its channels go elsewhere.
    Lost,
    /// Said that it is going away.
    Stopping,
}

impl Condition {
    /// Whether channels may stay on the node.
    pub(crate) fn retains(self) -> bool {
        matches!(self, Self::New | Self::Healthy | Self::Suspect)
    }

    /// Whether the node does not answer, though its session lives.
    pub(crate) fn is_silent(self) -> bool {
        matches!(self, Self::Suspect | Self::Lost)
    }
}

/// When a node whose session lives counts as lost: both must be reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) failures: u32,
    pub(crate) period: Duration,
}

/// What a node answered so far.
#[derive(Debug, Default)]
pub(crate) struct Health {
    answered: bool,
    shutting_down: bool,
    failures: u32,
    failing_since: Option<Instant>,
}

impl Health {
    pub(crate) fn answered(&mut self) {
        *self = Self { answered: true, ..Self::default() };
    }

    pub(crate) fn said_it_shuts_down(&mut self) {
        self.shutting_down = true;
    }

    pub(crate) fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.failing_since.get_or_insert(now);
    }

    pub(crate) fn condition(&self, session_stopping: bool, now: Instant, limits: Limits) -> Condition {
        let failing_for = self.failing_since.map(|since| now.saturating_duration_since(since)).unwrap_or_default();
        if session_stopping || self.shutting_down {
            Condition::Stopping
        } else if self.failures >= limits.failures && failing_for >= limits.period {
            Condition::Lost
        } else if self.failures > 0 {
            Condition::Suspect
        } else if !self.answered {
            Condition::New
        } else {
            Condition::Healthy
        }
    }
}

#[cfg(test)]
mod tests {
    use woodpecker_base::clock::Clock;

    use super::*;

    const LIMITS: Limits = Limits { failures: 3, period: Duration::from_secs(10) };

    #[test]
    fn a_node_is_used_once_it_has_answered() {
        let now = Clock::system().now();
        let mut health = Health::default();
        assert_eq!(health.condition(false, now, LIMITS), Condition::New);
        health.answered();
        assert_eq!(health.condition(false, now, LIMITS), Condition::Healthy);
    }

    #[test]
    fn one_failed_probe_moves_nothing() {
        let now = Clock::system().now();
        let mut health = Health::default();
        health.answered();
        health.failed(now);
        assert!(health.condition(false, now + Duration::from_secs(60), LIMITS).retains());
        health.answered();
        assert_eq!(health.condition(false, now, LIMITS), Condition::Healthy);
    }

    #[test]
    fn lost_takes_both_failures_and_time() {
        let now = Clock::system().now();
        let mut health = Health::default();
        health.answered();
        for _ in 0..10 {
            health.failed(now);
        }
        assert_eq!(health.condition(false, now + Duration::from_secs(9), LIMITS), Condition::Suspect);
        assert_eq!(health.condition(false, now + Duration::from_secs(10), LIMITS), Condition::Lost);
    }

    #[test]
    fn stopping_is_final_while_it_is_said() {
        let now = Clock::system().now();
        let mut health = Health::default();
        health.answered();
        assert_eq!(health.condition(true, now, LIMITS), Condition::Stopping);
        health.said_it_shuts_down();
        assert_eq!(health.condition(false, now, LIMITS), Condition::Stopping);
    }
}
