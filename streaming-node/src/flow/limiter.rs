//! Lets the writers of one WAL through as fast as the tightest limit says, and tells them what it is.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use streaming_proto::streaming::WalRateLimitState;
use streaming_types::MessageType;
use tokio::sync::watch;
use woodpecker_base::clock::{Clock, Instant};

use super::controller::Limit;

/// Longest wait between two looks at a limit that may have changed.
const LONGEST_WAIT: Duration = Duration::from_millis(200);

/// See the module. Clones share it.
#[derive(Debug, Clone)]
pub struct Limiter {
    shared: Arc<Shared>,
    clock: Clock,
}

#[derive(Debug)]
struct Shared {
    told: watch::Sender<Limit>,
    bucket: Mutex<Bucket>,
    /// Bytes that go at once after a pause.
    burst: u64,
    /// Bytes per second that go even when writers are told that nothing does: those that were not told must not hold
    /// what they sent for ever.
    trickle: u64,
}

#[derive(Debug)]
struct Bucket {
    /// Bytes that may go now; below 0 after a message that was larger than that.
    tokens: i128,
    filled: Instant,
    passed: u64,
}

impl Limiter {
    pub fn new(burst: u64, trickle: u64, clock: Clock) -> Self {
        let bucket = Bucket { tokens: i128::from(burst), filled: clock.now(), passed: 0 };
        let told = watch::Sender::new(Limit::None);
        Self { shared: Arc::new(Shared { told, bucket: Mutex::new(bucket), burst, trickle }), clock }
    }

    /// Whether messages of a kind are limited: those that bring data. What ends something or belongs to the system is not.
    pub fn concerns(kind: MessageType) -> bool {
        kind.is_txn_body() || kind == MessageType::BeginTxn
    }

    /// The limit, and every change of it.
    pub fn subscribe(&self) -> watch::Receiver<Limit> {
        self.shared.told.subscribe()
    }

    /// Sets the limit for what comes.
    pub fn set(&self, limit: Limit) {
        self.shared.told.send_if_modified(|told| {
            let changed = *told != limit;
            *told = limit;
            changed
        });
    }

    /// Takes room for so many bytes if there is some now.
    pub fn try_pass(&self, bytes: usize) -> bool {
        self.attempt(bytes).is_ok()
    }

    /// Waits for room for so many bytes, and takes it.
    pub async fn pass(&self, bytes: usize) {
        while let Err(wait) = self.attempt(bytes) {
            self.clock.sleep(wait.clamp(Duration::from_millis(1), LONGEST_WAIT)).await;
        }
    }

    /// Bytes that have passed, ever.
    pub fn passed(&self) -> u64 {
        self.bucket().passed
    }

    fn attempt(&self, bytes: usize) -> Result<(), Duration> {
        let rate = match *self.shared.told.borrow() {
            Limit::None => None,
            Limit::Rate(rate) => Some(rate.max(1)),
            Limit::Reject => Some(self.shared.trickle.max(1)),
        };
        let mut bucket = self.bucket();
        if let Some(rate) = rate {
            bucket.fill(rate, self.shared.burst, self.clock.now());
            // A message larger than the burst goes when the bucket is full, and is paid for afterwards.
            let needed = i128::try_from(bytes).unwrap_or(i128::MAX).min(i128::from(self.shared.burst));
            if bucket.tokens < needed {
                let missing = u64::try_from(needed - bucket.tokens).unwrap_or(u64::MAX);
                return Err(Duration::from_millis(missing.saturating_mul(1000) / rate));
            }
            bucket.tokens -= i128::try_from(bytes).unwrap_or(i128::MAX);
        }
        bucket.passed = bucket.passed.saturating_add(bytes as u64);
        Ok(())
    }

    fn bucket(&self) -> std::sync::MutexGuard<'_, Bucket> {
        self.shared.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    fn fill(&mut self, rate: u64, burst: u64, now: Instant) {
        let passed = now.duration_since(self.filled).as_micros();
        let more = u128::from(rate).saturating_mul(passed) / 1_000_000;
        if more > 0 {
            let more = i128::try_from(more).unwrap_or(i128::MAX);
            self.tokens = self.tokens.saturating_add(more).min(i128::from(burst));
            self.filled = now;
        }
    }
}

/// The limit as producers are told.
pub fn to_wire(limit: Limit) -> (WalRateLimitState, i64) {
    match limit {
        Limit::None => (WalRateLimitState::Normal, 0),
        Limit::Rate(rate) => (WalRateLimitState::Slowdown, i64::try_from(rate).unwrap_or(i64::MAX)),
        Limit::Reject => (WalRateLimitState::Reject, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(clock: &Clock) -> Limiter {
        Limiter::new(1000, 10, clock.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_everything_passes() {
        let clock = Clock::system();
        let limiter = limiter(&clock);
        assert!((0..100).all(|_| limiter.try_pass(1 << 20)));
        assert_eq!(limiter.passed(), 100 << 20);
    }

    #[tokio::test(start_paused = true)]
    async fn burst_goes_at_once_and_the_rest_at_the_rate() {
        let clock = Clock::system();
        let limiter = limiter(&clock);
        limiter.set(Limit::Rate(100));
        let began = clock.now();
        assert!((0..10).all(|_| limiter.try_pass(100)));
        assert!(!limiter.try_pass(100));
        for _ in 0..20 {
            limiter.pass(100).await;
        }
        let took = clock.now() - began;
        assert!((Duration::from_secs(19)..Duration::from_secs(22)).contains(&took), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn large_message_goes_and_is_paid_for_afterwards() {
        let clock = Clock::system();
        let limiter = limiter(&clock);
        limiter.set(Limit::Rate(100));
        assert!(limiter.try_pass(5000), "it goes though the burst is smaller");
        let began = clock.now();
        limiter.pass(1).await;
        assert!(clock.now() - began >= Duration::from_secs(39));
    }

    #[tokio::test(start_paused = true)]
    async fn limit_that_ends_lets_waiters_go_soon() {
        let clock = Clock::system();
        let limiter = limiter(&clock);
        limiter.set(Limit::Reject);
        assert!(limiter.try_pass(1000));
        let began = clock.now();
        let ((), ()) = futures::join!(limiter.pass(1000), async {
            clock.sleep(Duration::from_secs(1)).await;
            limiter.set(Limit::None);
        });
        assert!(clock.now() - began < Duration::from_secs(2), "at the trickle it would take a hundred");
    }

    #[test]
    fn only_data_is_limited() {
        let limited: Vec<_> = MessageType::ALL.iter().copied().filter(|kind| Limiter::concerns(*kind)).collect();
        assert_eq!(limited, [MessageType::Insert, MessageType::Delete, MessageType::BeginTxn]);
    }
}
