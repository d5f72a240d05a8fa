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

/// Bytes are promised to what waits, so that what comes later leaves them to it, however small it is. A promise needs nobody
/// to look after it: a writer who stands still costs others no more than its message.
#[derive(Debug)]
struct Bucket {
    /// Bytes that there was room for so far …
    earned: i128,
    /// … and those that went or are promised, which may be more.
    spent: i128,
    filled: Instant,
    passed: u64,
}

/// A message that waits for the room that was promised to it, and gives back what it did not use.
struct Waiting<'a> {
    limiter: &'a Limiter,
    bytes: usize,
    /// It goes when so much was earned.
    due: i128,
    used: bool,
}

impl Limiter {
    pub fn new(burst: u64, trickle: u64, clock: Clock) -> Self {
        let bucket = Bucket { earned: i128::from(burst), spent: 0, filled: clock.now(), passed: 0 };
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

    /// Takes room for so many bytes if there is some now that was not promised to others.
    pub fn try_pass(&self, bytes: usize) -> bool {
        let (mut bucket, burst) = (self.bucket(), self.shared.burst);
        if let Some(rate) = self.rate() {
            bucket.fill(rate, burst, self.clock.now());
            if bucket.due(bytes, burst) > bucket.earned {
                return false;
            }
            bucket.spent += length(bytes);
        }
        bucket.passed = bucket.passed.saturating_add(bytes as u64);
        true
    }

    /// Waits for room for so many bytes, and takes it.
    pub async fn pass(&self, bytes: usize) {
        if self.try_pass(bytes) {
            return;
        }
        let mut waiting = self.promise(bytes);
        while let Err(wait) = waiting.go() {
            self.clock.sleep(wait.clamp(Duration::from_millis(1), LONGEST_WAIT)).await;
        }
    }

    /// Bytes that have passed, ever.
    pub fn passed(&self) -> u64 {
        self.bucket().passed
    }

    fn promise(&self, bytes: usize) -> Waiting<'_> {
        let mut bucket = self.bucket();
        let due = bucket.due(bytes, self.shared.burst);
        bucket.spent += length(bytes);
        Waiting { limiter: self, bytes, due, used: false }
    }

    /// Bytes a second, if they are limited.
    fn rate(&self) -> Option<u64> {
        match *self.shared.told.borrow() {
            Limit::None => None,
            Limit::Rate(rate) => Some(rate.max(1)),
            Limit::Reject => Some(self.shared.trickle.max(1)),
        }
    }

    fn bucket(&self) -> std::sync::MutexGuard<'_, Bucket> {
        self.shared.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting<'_> {
    /// Goes, or says how long that takes at least.
    fn go(&mut self) -> Result<(), Duration> {
        let mut bucket = self.limiter.bucket();
        if let Some(rate) = self.limiter.rate() {
            bucket.fill(rate, self.limiter.shared.burst, self.limiter.clock.now());
            if bucket.earned < self.due {
                let missing = u64::try_from(self.due - bucket.earned).unwrap_or(u64::MAX);
                return Err(Duration::from_millis(missing.saturating_mul(1000) / rate));
            }
            self.used = true;
        }
        bucket.passed = bucket.passed.saturating_add(self.bytes as u64);
        Ok(())
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.used {
            // As if earned: those behind it come sooner by as much.
            self.limiter.bucket().earn(length(self.bytes), self.limiter.shared.burst);
        }
    }
}

impl Bucket {
    /// How much has to be earned for a message that comes now. One larger than the burst goes when all of that is there, and
    /// is paid for afterwards.
    fn due(&self, bytes: usize, burst: u64) -> i128 {
        self.spent + length(bytes).min(i128::from(burst))
    }

    fn fill(&mut self, rate: u64, burst: u64, now: Instant) {
        let passed = now.duration_since(self.filled).as_micros();
        let more = u128::from(rate).saturating_mul(passed) / 1_000_000;
        if more > 0 {
            self.earn(i128::try_from(more).unwrap_or(i128::MAX), burst);
            self.filled = now;
        }
    }

    fn earn(&mut self, more: i128, burst: u64) {
        self.earned = self.earned.saturating_add(more).min(self.spent.saturating_add(burst.into()));
    }
}

fn length(bytes: usize) -> i128 {
    i128::try_from(bytes).unwrap_or(i128::MAX >> 1)
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
    use futures::FutureExt;

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
    async fn large_message_has_its_turn_however_many_small_ones_come_and_who_stands_still_holds_up_nobody() {
        let clock = Clock::system();
        let limiter = limiter(&clock);
        limiter.set(Limit::Rate(100));
        assert!(limiter.try_pass(1000));
        let began = clock.now();
        let small = async {
            loop {
                limiter.pass(10).await;
            }
        };
        // Begins to wait, and is not looked at any more.
        let mut still = Box::pin(limiter.pass(300));
        assert!((&mut still).now_or_never().is_none());
        tokio::select! {
            biased;
            () = small => {}
            () = limiter.pass(500) => {}
            () = clock.sleep(Duration::from_secs(60)) => panic!("the small ones took it all"),
        }
        let took = clock.now() - began;
        assert!((Duration::from_secs(8)..Duration::from_secs(10)).contains(&took), "{took:?}");
        assert_eq!(limiter.passed(), 1000 + 500 + 10, "one small one came before it");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_no_more_gives_back_what_was_promised() {
        let clock = Clock::system();
        let limiter = limiter(&clock);
        limiter.set(Limit::Rate(100));
        assert!(limiter.try_pass(1000));
        let began = clock.now();
        for _ in 0..100 {
            assert!(limiter.pass(1_000_000).now_or_never().is_none());
        }
        limiter.pass(100).await;
        assert_eq!(clock.now() - began, Duration::from_secs(1));
        limiter.set(Limit::None);
        limiter.pass(5000).await;
        limiter.set(Limit::Rate(100));
        limiter.pass(100).await;
        assert_eq!(clock.now() - began, Duration::from_secs(2), "what was not limited is not paid for");
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
