//! The time ticks of one WAL: strictly increasing, from batches of the coordinator's timestamps.
//!
//! A batch is used up before the next one is needed, because the next one is fetched ahead. When the coordinator does not
//! answer, the WAL goes on by itself from its newest batch, at the pace of the monotonic clock: appends do not depend on
//! the coordinator being there (docs/decisions/0003-ticks-without-coordinator.md).

use std::{
    ops::Range,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use woodpecker_base::{
    backoff::Backoff,
    clock::{Clock, Instant},
    random::Random,
};

use crate::timestamps::{TimestampError, TimestampSource};

/// Timestamps asked for at a time, unless they are used up faster than they expire. As many as several groups may need: with
/// fewer than two in hand, more are asked for.
const BATCH: u32 = 4096;
const LARGEST_BATCH: u32 = 1 << 16;
/// A batch older than this is too far behind the cluster's time to close a group on an idle WAL.
const EXPIRY: Duration = Duration::from_millis(50);
/// How long appends wait for a coordinator that used to answer.
const PATIENCE: Duration = Duration::from_millis(100);
/// Deadline of a call to a coordinator that nobody waits for.
const DEADLINE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

const LOGICAL_BITS: u32 = 18;

/// Allocates ticks; used by one task.
pub struct Ticks {
    source: Arc<dyn TimestampSource>,
    clock: Clock,
    backoff: Backoff,
    /// The last tick given out; every later one is greater.
    last: u64,
    /// What is left of the newest batch.
    batch: Range<u64>,
    /// First timestamp of the newest batch and when it came: where the WAL goes on from when it is alone.
    anchor: (u64, Instant),
    refill: Option<BoxFuture<'static, Result<Range<u64>, TimestampError>>>,
    batch_size: u32,
    /// Whether the last call brought nothing.
    alone: bool,
}

impl Ticks {
    /// An allocator whose ticks are greater than `floor` and than every timestamp given out before this call. Waits
    /// until the coordinator answers, however long that takes.
    pub async fn above(floor: u64, source: Arc<dyn TimestampSource>, clock: Clock, random: &Random) -> Self {
        let anchor = (floor, clock.now());
        let mut ticks = Self {
            source,
            backoff: Backoff::new(clock.clone(), random, PATIENCE, LONGEST_PAUSE),
            clock,
            last: floor,
            batch: 0..0,
            anchor,
            refill: None,
            batch_size: BATCH,
            alone: false,
        };
        loop {
            ticks.start_refill();
            let Some(refill) = ticks.refill.take() else { continue };
            let answer = refill.await;
            let answered = answer.is_ok();
            ticks.refilled(answer);
            if answered {
                return ticks;
            }
        }
    }

    /// The next tick. Call it as often as [`Ticks::poll_ready`] was asked for.
    pub fn take(&mut self) -> u64 {
        self.last = self.batch.next().unwrap_or_else(|| self.time().max(self.last + 1));
        self.last
    }

    /// The next tick, greater than `floor`, which the caller knows to be past.
    pub fn take_above(&mut self, floor: u64) -> u64 {
        if floor > self.last {
            self.last = floor;
            self.batch.start = self.batch.start.max(floor + 1);
        }
        self.take()
    }

    /// Ready when `need` ticks can be taken.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>, need: u64) -> Poll<()> {
        self.poll_refill(cx);
        if self.left() < 2 * need || self.is_expired() {
            self.start_refill();
            self.poll_refill(cx);
        }
        if self.left() >= need || self.alone { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Ready when the next tick will be close to the cluster's time.
    pub fn poll_fresh(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_refill(cx);
        if self.left() == 0 || self.is_expired() {
            self.start_refill();
            self.poll_refill(cx);
        }
        let fresh = self.left() > 0 && !self.is_expired();
        if fresh || self.alone { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Whether a tick above `barrier` can be taken without running ahead of the cluster's time.
    pub fn is_past(&self, barrier: u64, need: u64) -> bool {
        let end = if self.alone { self.time() } else { self.batch.end.saturating_sub(need) };
        barrier < end.max(self.last)
    }

    /// Whether ticks are our own. The coordinator that comes next may not be as far: its clock may be behind.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// The last tick that was given out.
    pub fn last(&self) -> u64 {
        self.last
    }

    fn left(&self) -> u64 {
        self.batch.end.saturating_sub(self.batch.start)
    }

    fn is_expired(&self) -> bool {
        self.clock.now().duration_since(self.anchor.1) > EXPIRY
    }

    /// Where the cluster's time is by now, as far as this node can tell without the coordinator. It trails the
    /// coordinator's time, because the batch was given out before it came.
    pub fn time(&self) -> u64 {
        let passed = self.clock.now().duration_since(self.anchor.1).as_millis();
        let physical = (self.anchor.0 >> LOGICAL_BITS).saturating_add(u64::try_from(passed).unwrap_or(u64::MAX));
        physical.checked_mul(1 << LOGICAL_BITS).unwrap_or(u64::MAX >> 1)
    }

    fn start_refill(&mut self) {
        if self.refill.is_some() {
            return;
        }
        let used_up = self.last > self.anchor.0 && !self.is_expired();
        self.batch_size = if used_up { (self.batch_size * 2).min(LARGEST_BATCH) } else { BATCH };
        let (source, clock, count) = (Arc::clone(&self.source), self.clock.clone(), self.batch_size);
        let (pause, limit) = if self.alone { (self.backoff.delay(), DEADLINE) } else { (Duration::ZERO, PATIENCE) };
        self.refill = Some(Box::pin(async move {
            if !pause.is_zero() {
                clock.sleep(pause).await;
            }
            match clock.timeout(limit, source.allocate(count)).await {
                Ok(result) => result,
                Err(_) => Err(TimestampError(format!("no answer within {limit:?}"))),
            }
        }));
    }

    fn poll_refill(&mut self, cx: &mut Context<'_>) {
        if let Some(Poll::Ready(result)) = self.refill.as_mut().map(|refill| refill.poll_unpin(cx)) {
            self.refill = None;
            self.refilled(result);
        }
    }

    fn refilled(&mut self, result: Result<Range<u64>, TimestampError>) {
        match result {
            // Timestamps at or below the last tick come from a coordinator whose clock is behind the log; until it has
            // caught up the WAL goes on alone.
            Ok(batch) if batch.end > self.last + 1 => {
                self.anchor = (batch.start, self.clock.now());
                self.batch = batch.start.max(self.last + 1)..batch.end;
                self.alone = false;
                self.backoff.reset();
            }
            Ok(batch) => {
                tracing::warn!(last = self.last, allocated = batch.end, "timestamps are behind the log");
                self.go_alone();
            }
            Err(error) => {
                if !self.alone {
                    tracing::warn!(%error, "ticks go on without the coordinator");
                }
                self.go_alone();
            }
        }
    }

    /// A batch that is left over would fall behind the ticks that follow.
    fn go_alone(&mut self) {
        self.batch = 0..0;
        self.alone = true;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        sync::{
            Mutex,
            atomic::{AtomicBool, AtomicU64, Ordering},
        },
    };

    use async_trait::async_trait;

    use super::{super::time_tick::TICKS_PER_GROUP, *};

    /// A coordinator whose clock the test moves.
    #[derive(Debug, Default)]
    struct Source {
        next: AtomicU64,
        silent: AtomicBool,
        asked: Mutex<Vec<u32>>,
    }

    #[async_trait]
    impl TimestampSource for Source {
        async fn allocate(&self, count: u32) -> Result<Range<u64>, TimestampError> {
            if self.silent.load(Ordering::Relaxed) {
                return std::future::pending().await;
            }
            self.asked.lock().unwrap().push(count);
            let first = self.next.fetch_add(u64::from(count), Ordering::Relaxed);
            Ok(first..first + u64::from(count))
        }
    }

    const SECOND: u64 = 1000 << LOGICAL_BITS;

    async fn above(floor: u64, source: &Arc<Source>) -> Ticks {
        let source = Arc::clone(source) as Arc<dyn TimestampSource>;
        Ticks::above(floor, source, Clock::system(), &Random::seeded(1)).await
    }

    fn source(next: u64) -> Arc<Source> {
        Arc::new(Source { next: AtomicU64::new(next), ..Source::default() })
    }

    async fn ready(ticks: &mut Ticks, need: u64) {
        poll_fn(|cx| ticks.poll_ready(cx, need)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn ticks_come_from_batches_and_rise_over_their_ends() {
        let source = source(5 * SECOND);
        let mut ticks = above(0, &source).await;
        let mut last = 0;
        for _ in 0..20 {
            ready(&mut ticks, 257).await;
            for _ in 0..257 {
                let tick = ticks.take();
                assert!(tick > last && tick < source.next.load(Ordering::Relaxed), "only what the coordinator gave");
                last = tick;
            }
        }
        let asked = source.asked.lock().unwrap();
        assert!(asked.len() < 10 && asked.is_sorted(), "batches grow with use: {asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn small_groups_share_a_batch() {
        let source = source(5 * SECOND);
        let mut ticks = above(0, &source).await;
        for _ in 0..100 {
            ready(&mut ticks, TICKS_PER_GROUP).await;
            ticks.take();
            ticks.take();
        }
        assert_eq!(source.asked.lock().unwrap().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn ticks_of_a_new_term_are_above_the_log_even_if_the_coordinator_is_behind() {
        let mut ticks = above(9 * SECOND, &source(5 * SECOND)).await;
        ready(&mut ticks, 257).await;
        assert!(ticks.take() > 9 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_answer_ticks_go_on_at_the_pace_of_time() {
        let source = source(5 * SECOND);
        let clock = Clock::system();
        let mut ticks = above(0, &source).await;
        source.silent.store(true, Ordering::Relaxed);
        let began = clock.now();
        for _ in 0..8 {
            ready(&mut ticks, 257).await;
            for _ in 0..257 {
                ticks.take();
            }
        }
        assert!(clock.now() - began < Duration::from_millis(500), "appends wait once, and shortly");

        clock.sleep(Duration::from_secs(60)).await;
        poll_fn(|cx| ticks.poll_fresh(cx)).await;
        let alone = ticks.take();
        assert!((64 * SECOND..67 * SECOND).contains(&alone), "{}", alone / SECOND);

        // The coordinator is back, with a clock that is behind what was given out alone.
        source.silent.store(false, Ordering::Relaxed);
        for _ in 0..40 {
            clock.sleep(Duration::from_millis(200)).await;
            poll_fn(|cx| ticks.poll_fresh(cx)).await;
        }
        assert!(ticks.take() > alone);
        source.next.store(200 * SECOND, Ordering::Relaxed);
        for _ in 0..40 {
            clock.sleep(Duration::from_millis(200)).await;
            poll_fn(|cx| ticks.poll_fresh(cx)).await;
        }
        assert!(ticks.take() >= 200 * SECOND, "its timestamps are used again once they are ahead");
    }

    #[tokio::test(start_paused = true)]
    async fn barrier_is_past_only_within_what_the_coordinator_gave() {
        let mut ticks = above(0, &source(5 * SECOND)).await;
        assert!(ticks.is_past(5 * SECOND, 257));
        assert!(!ticks.is_past(5 * SECOND + u64::from(BATCH) - 100, 257), "too near to the end of the batch");
        assert!(!ticks.is_past(6 * SECOND, 257));
        assert!(!ticks.is_past(u64::MAX, 257));
        let barrier = 5 * SECOND + 300;
        assert_eq!(ticks.take_above(barrier), barrier + 1);
        assert_eq!(ticks.take(), barrier + 2);
    }
}
