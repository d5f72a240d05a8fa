//! How a call that may succeed later is made again: exponential backoff with jitter, and an end.

use std::{future::Future, sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use woodpecker_base::{
    clock::{Clock, Instant},
    metadata::MetadataError,
    random::Random,
};
use woodpecker_store::backend::StoreError;

use crate::LogError;

/// One attempt of one remote call takes at most this long.
const ATTEMPT: Duration = Duration::from_secs(10);
const FIRST_DELAY: Duration = Duration::from_millis(10);
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// Whether the same call may succeed later, and what a call that did not answer in time counts as.
pub(crate) trait Attempted {
    fn is_retryable(&self) -> bool;
    fn timed_out() -> Self;
}

const TIMED_OUT: &str = "no answer in time";

impl Attempted for MetadataError {
    fn is_retryable(&self) -> bool {
        self.is_retryable()
    }

    fn timed_out() -> Self {
        Self::Unavailable(TIMED_OUT.to_owned())
    }
}

impl Attempted for StoreError {
    fn is_retryable(&self) -> bool {
        self.is_retryable()
    }

    fn timed_out() -> Self {
        Self::Unavailable(Arc::from(TIMED_OUT))
    }
}

impl Attempted for LogError {
    fn is_retryable(&self) -> bool {
        self.is_retryable()
    }

    fn timed_out() -> Self {
        Self::Metadata(MetadataError::timed_out())
    }
}

/// Makes attempts. Given at construction to all that calls out.
#[derive(Debug, Clone)]
pub(crate) struct Retrying {
    clock: Clock,
    random: Random,
}

/// The attempts at one thing.
pub(crate) struct Attempts {
    clock: Clock,
    delays: ExponentialBackoff,
    deadline: Option<Instant>,
}

impl Retrying {
    pub fn new(clock: Clock, random: Random) -> Self {
        Self { clock, random }
    }

    /// Attempts until `patience` is over, or for ever.
    pub fn attempts(&self, patience: Option<Duration>) -> Attempts {
        let delays = ExponentialBuilder::default()
            .with_min_delay(FIRST_DELAY)
            .with_max_delay(LONGEST_DELAY)
            .without_max_times()
            .with_jitter()
            .with_jitter_seed(self.random.u64())
            .build();
        Attempts { clock: self.clock.clone(), delays, deadline: patience.map(|patience| self.clock.now() + patience) }
    }

    /// One attempt, with a deadline.
    pub async fn once<T, E: Attempted>(&self, call: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        self.clock.timeout(ATTEMPT, call).await.unwrap_or_else(|_| Err(E::timed_out()))
    }

    /// The first answer that is no retryable error, or the last error when `patience` is over.
    pub async fn run<T, E, F>(&self, patience: Option<Duration>, mut call: impl FnMut() -> F) -> Result<T, E>
    where
        E: Attempted,
        F: Future<Output = Result<T, E>>,
    {
        let mut attempts = self.attempts(patience);
        loop {
            match self.once(call()).await {
                Err(error) if error.is_retryable() => {
                    if !attempts.wait().await {
                        return Err(error);
                    }
                }
                answer => return answer,
            }
        }
    }
}

impl Attempts {
    /// Waits before the next attempt; false when there is to be none.
    pub async fn wait(&mut self) -> bool {
        let delay = self.delays.next().unwrap_or(LONGEST_DELAY);
        if self.deadline.is_some_and(|deadline| self.clock.now() + delay > deadline) {
            return false;
        }
        self.clock.sleep(delay).await;
        true
    }
}
