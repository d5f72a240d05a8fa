//! A timer that is set often and goes off rarely.

use futures::{FutureExt, future::BoxFuture};
use woodpecker_base::clock::{Clock, Instant};

/// Fires at or before the earliest instant it was armed with since it last fired. Firing early costs the owner one look;
/// in return the timer is not set again for every append.
pub(crate) struct Alarm {
    clock: Clock,
    armed: Option<(Instant, BoxFuture<'static, ()>)>,
}

impl Alarm {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, armed: None }
    }

    pub(crate) fn arm(&mut self, at: Instant) {
        if self.armed.as_ref().is_some_and(|(armed, _)| *armed <= at) {
            return;
        }
        let clock = self.clock.clone();
        self.armed = Some((at, async move { clock.sleep_until(at).await }.boxed()));
    }

    /// Cancel safe: an alarm that was not waited for stays armed.
    pub(crate) async fn fired(&mut self) {
        match &mut self.armed {
            Some((_, timer)) => timer.await,
            None => std::future::pending().await,
        }
        self.armed = None;
    }
}
