//! Ids for new segments, fetched ahead so that an insert does not wait for one.

use std::{
    ops::Range,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use woodpecker_base::clock::Clock;

use crate::ids::{IdError, IdSource};

const BATCH: u32 = 64;
/// Fewer than this, and more are asked for.
const LOW: i64 = 16;
/// How long inserts that need a segment wait for a coordinator that does not answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// See the module.
pub struct IdPool {
    source: Arc<dyn IdSource>,
    clock: Clock,
    ids: Range<i64>,
    refill: Option<BoxFuture<'static, Result<Range<i64>, IdError>>>,
}

impl IdPool {
    pub fn new(source: Arc<dyn IdSource>, clock: Clock) -> Self {
        Self { source, clock, ids: 0..0, refill: None }
    }

    /// Ready when there is an id, or when there is none to be had for now.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let left = self.ids.end - self.ids.start;
        if left < LOW && self.refill.is_none() {
            let (source, clock) = (Arc::clone(&self.source), self.clock.clone());
            let refill = async move {
                let answer = clock.timeout(PATIENCE, source.allocate_ids(BATCH)).await;
                answer.unwrap_or_else(|_| Err(IdError(format!("no answer within {PATIENCE:?}"))))
            };
            self.refill = Some(refill.boxed());
        }
        match self.refill.as_mut().map(|refill| refill.poll_unpin(cx)) {
            Some(Poll::Pending) if left == 0 => return Poll::Pending,
            Some(Poll::Pending) | None => {}
            Some(Poll::Ready(answer)) => {
                self.refill = None;
                match answer {
                    // What is left of the older batch is lost, which costs nothing.
                    Ok(more) => self.ids = more,
                    Err(error) => tracing::warn!(%error, "segments cannot be created"),
                }
            }
        }
        Poll::Ready(())
    }

    pub fn take(&mut self) -> Option<i64> {
        self.ids.next()
    }
}
