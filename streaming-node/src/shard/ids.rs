//! Ids for new segments, fetched ahead so that an insert does not wait for one.
//!
//! Only the first call that brings nothing is waited for, once the ids are used up. From then on calls run in the background,
//! and nothing that needs no new segment waits for the coordinator.

use std::{
    ops::Range,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use woodpecker_base::{backoff::Backoff, clock::Clock, random::Random};

use crate::ids::{IdError, IdSource};

const BATCH: u32 = 64;
/// Fewer than this, and more are asked for.
const LOW: i64 = 16;
/// Deadline of a call, and how long groups wait for a coordinator that used to answer.
const PATIENCE: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// See the module.
pub struct IdPool {
    source: Arc<dyn IdSource>,
    clock: Clock,
    backoff: Backoff,
    ids: Range<i64>,
    refill: Option<BoxFuture<'static, Result<Range<i64>, IdError>>>,
    /// Whether the last call brought nothing.
    alone: bool,
}

impl IdPool {
    pub fn new(source: Arc<dyn IdSource>, clock: Clock, random: &Random) -> Self {
        let backoff = Backoff::new(clock.clone(), random, FIRST_PAUSE, LONGEST_PAUSE);
        Self { source, clock, backoff, ids: 0..0, refill: None, alone: false }
    }

    /// Ready when there is an id, or when there is none to be had for now.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let left = self.ids.end - self.ids.start;
        if left < LOW && self.refill.is_none() {
            self.start_refill();
        }
        match self.refill.as_mut().map(|refill| refill.poll_unpin(cx)) {
            Some(Poll::Pending) if left == 0 && !self.alone => return Poll::Pending,
            Some(Poll::Pending) | None => {}
            Some(Poll::Ready(answer)) => {
                self.refill = None;
                self.refilled(answer);
            }
        }
        Poll::Ready(())
    }

    pub fn take(&mut self) -> Option<i64> {
        self.ids.next()
    }

    fn start_refill(&mut self) {
        let (source, clock) = (Arc::clone(&self.source), self.clock.clone());
        let pause = if self.alone { self.backoff.delay() } else { Duration::ZERO };
        let refill = async move {
            if !pause.is_zero() {
                clock.sleep(pause).await;
            }
            let answer = clock.timeout(PATIENCE, source.allocate_ids(BATCH)).await;
            answer.unwrap_or_else(|_| Err(IdError(format!("no answer within {PATIENCE:?}"))))
        };
        self.refill = Some(refill.boxed());
    }

    fn refilled(&mut self, answer: Result<Range<i64>, IdError>) {
        match answer {
            Ok(more) => {
                // What is left of the older batch is lost, which costs nothing.
                self.ids = more;
                self.alone = false;
                self.backoff.reset();
            }
            Err(error) => {
                if !self.alone {
                    tracing::warn!(%error, "segments cannot be created once the ids in hand are used up");
                }
                self.alone = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use async_trait::async_trait;
    use tokio::sync::watch;

    use super::*;

    /// Gives ids while it answers.
    #[derive(Debug)]
    struct Source(watch::Receiver<bool>);

    #[async_trait]
    impl IdSource for Source {
        async fn allocate_ids(&self, count: u32) -> Result<Range<i64>, IdError> {
            let _ = self.0.clone().wait_for(|answers| *answers).await;
            Ok(1..1 + i64::from(count))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn coordinator_that_does_not_answer_is_waited_for_once() {
        let (answers, source) = watch::channel(true);
        let clock = Clock::system();
        let mut pool = IdPool::new(Arc::new(Source(source)), clock.clone(), &Random::seeded(1));
        poll_fn(|cx| pool.poll_ready(cx)).await;
        answers.send_replace(false);
        let began = clock.now();
        let mut given = 0;
        while pool.take().is_some() {
            given += 1;
            poll_fn(|cx| pool.poll_ready(cx)).await;
        }
        assert_eq!(given, BATCH);
        let waited = clock.now() - began;
        assert!(waited >= PATIENCE && waited < PATIENCE * 2, "{waited:?}");
        for _ in 0..20 {
            let before = clock.now();
            poll_fn(|cx| pool.poll_ready(cx)).await;
            assert_eq!((pool.take(), clock.now()), (None, before), "there is none, and nobody waits for one");
            clock.sleep(Duration::from_millis(100)).await;
        }

        answers.send_replace(true);
        clock.sleep(PATIENCE + LONGEST_PAUSE).await;
        poll_fn(|cx| pool.poll_ready(cx)).await;
        assert_eq!(pool.take(), Some(1));
    }
}
