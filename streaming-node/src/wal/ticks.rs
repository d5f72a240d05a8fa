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
    clock::{Clock, Instant},
    random::Random,
};

use crate::backoff::backoff;
use crate::timestamps::{TimestampError, TimestampSource};

/// Timestamps asked for at a time, unless they are used up faster than they expire.
const BATCH: u32 = 1000;
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
    rng: fastrand::Rng,
    /// The last tick given out; every later one is greater.
    last: u64,
    /// What is left of the newest batch.
    batch: Range<u64>,
    /// First timestamp of the newest batch and when it came: where the WAL goes on from when it is alone.
    anchor: (u64, Instant),
    refill: Option<BoxFuture<'static, Result<Range<u64>, TimestampError>>>,
    batch_size: u32,
    /// Calls that failed since the last one that brought something.
    failures: u32,
}

impl Ticks {
    /// An allocator whose ticks are greater than `floor` and than every timestamp given out before this call. Waits
    /// until the coordinator answers, however long that takes.
    pub async fn above(floor: u64, source: Arc<dyn TimestampSource>, clock: Clock, random: &Random) -> Self {
        let anchor = (floor, clock.now());
        let mut ticks = Self {
            source,
            clock,
            rng: random.fork(),
            last: floor,
            batch: 0..0,
            anchor,
            refill: None,
            batch_size: BATCH,
            failures: 0,
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
        self.last = self.batch.next().unwrap_or_else(|| self.alone().max(self.last + 1));
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
        if self.left() >= need || self.is_alone() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Ready when the next tick will be close to the cluster's time.
    pub fn poll_fresh(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_refill(cx);
        if self.left() == 0 || self.is_expired() {
            self.start_refill();
            self.poll_refill(cx);
        }
        let fresh = self.left() > 0 && !self.is_expired();
        if fresh || self.is_alone() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Whether a tick above `barrier` can be taken without running ahead of the cluster's time.
    pub fn is_past(&self, barrier: u64, need: u64) -> bool {
        let end = if self.is_alone() { self.alone() } else { self.batch.end.saturating_sub(need) };
        barrier < end.max(self.last)
    }

    fn left(&self) -> u64 {
        self.batch.end.saturating_sub(self.batch.start)
    }

    fn is_expired(&self) -> bool {
        self.clock.now().duration_since(self.anchor.1) > EXPIRY
    }

    fn is_alone(&self) -> bool {
        self.failures > 0
    }

    /// Where the cluster's time is by now, as far as this node can tell without the coordinator. It trails the
    /// coordinator's time, because the batch was given out before it came.
    fn alone(&self) -> u64 {
        let passed = self.clock.now().duration_since(self.anchor.1).as_millis();
        let physical = (self.anchor.0 >> LOGICAL_BITS).saturating_add(u64::try_from(passed).unwrap_or(u64::MAX));
        physical.checked_mul(1 << LOGICAL_BITS).unwrap_or(u64::MAX >> 1)
    }

    fn start_refill(&mut self) {
        if self.refill.is_some() {
            return;
        }
        self.batch_size = if self.is_expired() { BATCH } else { (self.batch_size * 2).min(LARGEST_BATCH) };
        let (source, clock, count) = (Arc::clone(&self.source), self.clock.clone(), self.batch_size);
        let (pause, limit) = if self.is_alone() { (self.pause(), DEADLINE) } else { (Duration::ZERO, PATIENCE) };
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

    fn pause(&mut self) -> Duration {
        backoff(PATIENCE, LONGEST_PAUSE, self.failures, &mut self.rng)
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
                self.failures = 0;
            }
            Ok(batch) => {
                tracing::warn!(last = self.last, allocated = batch.end, "timestamps are behind the log");
                self.go_alone();
            }
            Err(error) => {
                if self.failures == 0 {
                    tracing::warn!(%error, "ticks go on without the coordinator");
                }
                self.go_alone();
            }
        }
    }

    /// A batch that is left over would fall behind the ticks that follow.
    fn go_alone(&mut self) {
        self.batch = 0..0;
        self.failures = self.failures.saturating_add(1);
    }
}
