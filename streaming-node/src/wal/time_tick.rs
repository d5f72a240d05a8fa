//! Gives every message its time tick. The only place that does.
//!
//! Groups go to the log in the order in which they get their ticks, so log order is tick order.
//!
//! Every group is closed by a tick. It is written to the log when the ones before it are too long ago, for readers that
//! have nothing but the log; otherwise it is told to readers in memory only, as soon as the group is durable.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use streaming_types::TimeTick;
use tower::{Layer, Service};

use super::{
    group::{Closing, Group},
    ticks::Ticks,
};

/// Most messages a group holds.
pub const MAX_GROUP: usize = 256;
/// Ticks that a group needs at most: one a message, one for a segment that the message needs, and one to close it.
pub const TICKS_PER_GROUP: u64 = 2 * MAX_GROUP as u64 + 1;
/// A group is closed by a persisted tick when the last one is longer ago than this, in milliseconds …
const PERSIST_MS: u64 = 200;
/// … or when more bytes than this came after it: a reader of the log holds back as much.
const PERSIST_BYTES: usize = 1 << 20;

/// The allocator, shared between the layer and the task that owns the stack.
#[derive(Clone)]
pub struct SharedTicks(Arc<Mutex<Ticks>>);

impl SharedTicks {
    pub fn new(ticks: Ticks) -> Self {
        Self(Arc::new(Mutex::new(ticks)))
    }

    pub fn lock(&self) -> MutexGuard<'_, Ticks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wraps a service of groups in [`TimeTicks`].
#[derive(Clone)]
pub struct TimeTickLayer {
    pub ticks: SharedTicks,
}

impl<S> Layer<S> for TimeTickLayer {
    type Service = TimeTicks<S>;

    fn layer(&self, inner: S) -> TimeTicks<S> {
        TimeTicks { inner, ticks: self.ticks.clone(), persisted: TimeTick::ZERO, unpersisted_bytes: 0 }
    }
}

/// See the module.
pub struct TimeTicks<S> {
    inner: S,
    ticks: SharedTicks,
    /// The last tick that was sent to the log, and what was sent after it.
    persisted: TimeTick,
    unpersisted_bytes: usize,
}

impl<S> Service<Group> for TimeTicks<S>
where
    S: Service<Group, Response = Group, Error = Infallible>,
{
    type Response = Group;
    type Error = Infallible;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if self.ticks.lock().poll_ready(cx, TICKS_PER_GROUP).is_pending() {
            return Poll::Pending;
        }
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut group: Group) -> S::Future {
        let mut ticks = self.ticks.lock();
        for append in &mut group.appends {
            append.tick = ticks.take_above(append.barrier.map_or(0, u64::from));
            append.message.properties.set_time_tick(TimeTick(append.tick));
            self.unpersisted_bytes += append.bytes;
        }
        let tick = TimeTick(ticks.take());
        drop(ticks);
        // Messages that were all settled without the log need no tick in it either.
        let asked = group.appends.is_empty() && group.settled.is_empty();
        let persisted = asked
            || self.unpersisted_bytes >= PERSIST_BYTES
            || tick.physical_ms().saturating_sub(self.persisted.physical_ms()) >= PERSIST_MS;
        if persisted {
            self.persisted = tick;
            self.unpersisted_bytes = 0;
        }
        group.closing = Some(Closing { tick: tick.into(), persisted, confirmed: None });
        self.inner.call(group)
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::Ready, ops::Range, time::Duration};

    use async_trait::async_trait;
    use tower::service_fn;
    use woodpecker_base::{clock::Clock, random::Random};

    use super::*;
    use crate::{
        timestamps::{TimestampError, TimestampSource},
        wal::group::samples,
    };

    /// The wall clock as a coordinator; groups are far apart, so no two calls meet in a millisecond.
    #[derive(Debug)]
    struct Source(Clock);

    #[async_trait]
    impl TimestampSource for Source {
        async fn allocate(&self, count: u32) -> Result<Range<u64>, TimestampError> {
            let first = TimeTick::new(self.0.wall_ms(), 0).0;
            Ok(first..first + u64::from(count))
        }
    }

    async fn call<S>(layer: &mut TimeTicks<S>, appends: usize, bytes: usize) -> Group
    where
        S: Service<Group, Response = Group, Error = Infallible, Future = Ready<Result<Group, Infallible>>>,
    {
        std::future::poll_fn(|cx| layer.poll_ready(cx)).await.unwrap();
        let mut group = Group::default();
        for request_id in 0..appends {
            let (mut append, _) = samples::append(i64::try_from(request_id).unwrap(), "p_1v0", false);
            append.bytes = bytes;
            group.appends.push(append);
        }
        layer.call(group).await.unwrap()
    }

    #[tokio::test]
    async fn groups_get_rising_ticks_and_are_closed_by_one_that_is_persisted_when_due() {
        let clock = Clock::system();
        let ticks = Ticks::above(0, Arc::new(Source(clock.clone())), clock.clone(), &Random::seeded(1)).await;
        let layer = TimeTickLayer { ticks: SharedTicks::new(ticks) };
        let mut layer = layer.layer(service_fn(|group: Group| std::future::ready(Ok::<_, Infallible>(group))));

        let first = call(&mut layer, 0, 0).await;
        let closing = |group: &Group| group.closing.unwrap();
        assert!(closing(&first).persisted, "an empty group is a tick");
        let mut last = closing(&first).tick;
        let mut rises = |group: &Group| {
            for append in &group.appends {
                assert!(append.tick > last);
                assert_eq!(append.message.properties.time_tick(), Ok(Some(TimeTick(append.tick))));
                last = append.tick;
            }
            assert!(closing(group).tick > last);
            last = closing(group).tick;
        };
        let group = call(&mut layer, 3, 100).await;
        rises(&group);
        assert!(!closing(&group).persisted, "the last one is not long ago");
        let group = call(&mut layer, 2, PERSIST_BYTES / 2).await;
        rises(&group);
        assert!(closing(&group).persisted, "much came after the last one");
        let group = call(&mut layer, 1, 1).await;
        rises(&group);
        assert!(!closing(&group).persisted);

        clock.sleep(Duration::from_millis(PERSIST_MS + 100)).await;
        // Ticks follow time only as fast as fresh batches come.
        std::future::poll_fn(|cx| layer.ticks.lock().poll_fresh(cx)).await;
        let group = call(&mut layer, 1, 1).await;
        rises(&group);
        assert!(closing(&group).persisted, "the last one is long ago");
    }
}
