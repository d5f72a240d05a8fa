//! Telling of refusals: each is counted, and logged no more often than an operator can read.

use std::{
    fmt::Display,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::clock::{Clock, Instant};

/// A peer that is refused over and over must not fill the disk with logs.
const PAUSE: Duration = Duration::from_secs(1);

/// Counts and logs what is refused at the ports of a process. Clones are one.
#[derive(Debug, Clone)]
pub struct Refusals {
    clock: Clock,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    logged: Option<Instant>,
    /// Since then.
    unlogged: u64,
}

impl Refusals {
    /// Nothing was refused yet.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        // There from the start, so that an alert on their growth sees the first refusal.
        for reason in ["no_token", "wrong_token", "role", "remote"] {
            metrics::counter!("streaming_auth_refused_total", "reason" => reason).increment(0);
        }
        for limit in ["connections", "calls"] {
            metrics::counter!("streaming_limit_refused_total", "limit" => limit).increment(0);
        }
        metrics::counter!("streaming_tls_handshakes_failed_total").increment(0);
        Self { clock, state: Arc::default() }
    }

    /// A call or page that its caller may not have; `reason` is one of a few words.
    pub fn unauthorized(&self, reason: &'static str, peer: Option<SocketAddr>, what: &str, why: impl Display) {
        metrics::counter!("streaming_auth_refused_total", "reason" => reason).increment(1);
        self.log(reason, peer, what, why);
    }

    /// A connection or call beyond a limit.
    pub fn beyond(&self, limit: &'static str, peer: Option<SocketAddr>, what: &str, why: impl Display) {
        metrics::counter!("streaming_limit_refused_total", "limit" => limit).increment(1);
        self.log(limit, peer, what, why);
    }

    /// A connection that did not become an encrypted one.
    pub fn handshake(&self, peer: Option<SocketAddr>, why: impl Display) {
        metrics::counter!("streaming_tls_handshakes_failed_total").increment(1);
        self.log("handshake", peer, "TLS", why);
    }

    fn log(&self, reason: &'static str, peer: Option<SocketAddr>, what: &str, why: impl Display) {
        let Some(unlogged) = self.due() else { return };
        let peer = peer.map_or_else(|| "unknown".to_owned(), |peer| peer.to_string());
        tracing::warn!(reason, peer, what, unlogged, "refused: {why}");
    }

    /// How many were not logged, if this one may be.
    fn due(&self) -> Option<u64> {
        let now = self.clock.now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.logged.is_some_and(|logged| now.duration_since(logged) < PAUSE) {
            state.unlogged += 1;
            return None;
        }
        state.logged = Some(now);
        Some(std::mem::take(&mut state.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn many_refusals_are_few_lines_that_say_how_many() {
        let clock = Clock::system();
        let refusals = Refusals::new(clock.clone());
        assert_eq!(refusals.due(), Some(0));
        assert_eq!((refusals.due(), refusals.due()), (None, None));
        clock.sleep(PAUSE).await;
        assert_eq!(refusals.due(), Some(2));
        clock.sleep(PAUSE).await;
        assert_eq!(refusals.due(), Some(0));
    }
}
