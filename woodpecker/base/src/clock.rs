//! Time. Protocol crates take it from here only, so that tests and the simulation own it.

use std::{
    fmt,
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub use tokio::time::{Instant, error::Elapsed};

/// Wall-clock time and timers. Timers follow tokio's clock (which tests pause and the simulation drives); the wall
/// clock is a function given at construction.
#[derive(Clone)]
pub struct Clock {
    wall: Arc<dyn Fn() -> Duration + Send + Sync>,
}

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub fn system() -> Self {
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's wall clock")]
        Self::from_fn(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    /// A clock whose wall time (since the Unix epoch) is what `wall` says.
    pub fn from_fn(wall: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self { wall: Arc::new(wall) }
    }

    /// Wall time since the Unix epoch. It may jump; never use it to measure a duration.
    #[must_use]
    pub fn wall(&self) -> Duration {
        (self.wall)()
    }

    /// Wall time in whole milliseconds since the Unix epoch.
    #[must_use]
    pub fn wall_ms(&self) -> u64 {
        u64::try_from(self.wall().as_millis()).unwrap_or(u64::MAX)
    }

    /// Monotonic time.
    #[must_use]
    pub fn now(&self) -> Instant {
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
        Instant::now()
    }

    /// Waits.
    pub async fn sleep(&self, duration: Duration) {
        #[expect(clippy::disallowed_methods, reason = "the one place that starts a timer")]
        tokio::time::sleep(duration).await;
    }

    /// Waits until `deadline`.
    pub async fn sleep_until(&self, deadline: Instant) {
        #[expect(clippy::disallowed_methods, reason = "the one place that starts a timer")]
        tokio::time::sleep_until(deadline).await;
    }

    /// The future's output, or an error if it takes longer than `limit`.
    ///
    /// # Errors
    /// [`Elapsed`] when the limit passed first; the future is dropped.
    pub async fn timeout<F: Future>(&self, limit: Duration, future: F) -> Result<F::Output, Elapsed> {
        #[expect(clippy::disallowed_methods, reason = "the one place that starts a timer")]
        tokio::time::timeout(limit, future).await
    }

    /// A ticker whose first tick is one `period` from now; a tick that was missed is skipped, not made up for.
    #[must_use]
    pub fn ticker(&self, period: Duration) -> tokio::time::Interval {
        #[expect(clippy::disallowed_methods, reason = "the one place that starts a timer")]
        let mut ticker = tokio::time::interval_at(self.now() + period, period);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticker
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").field("wall", &self.wall()).finish()
    }
}
