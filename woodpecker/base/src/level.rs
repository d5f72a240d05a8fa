//! A number that rises, and those who wait for it.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// A number that only rises. What a watch channel is for, at a tenth of its memory, where there is one for each of many
/// thousand logs.
#[derive(Debug, Default)]
pub struct Level {
    value: AtomicU64,
    risen: Notify,
}

impl Level {
    /// It stands at `value`.
    #[must_use]
    pub fn new(value: u64) -> Self {
        Self { value: AtomicU64::new(value), risen: Notify::new() }
    }

    /// Where it stands.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.value.load(Ordering::Acquire)
    }

    /// Raises it to `value`, if it is not as high yet.
    pub fn raise(&self, value: u64) {
        if self.value.fetch_max(value, Ordering::AcqRel) < value {
            self.risen.notify_waiters();
        }
    }

    /// Raises it by one.
    pub fn step(&self) {
        self.value.fetch_add(1, Ordering::AcqRel);
        self.risen.notify_waiters();
    }

    /// Waits until it stands higher than `value`. Cancel-safe.
    pub async fn above(&self, value: u64) {
        loop {
            let mut risen = std::pin::pin!(self.risen.notified());
            risen.as_mut().enable();
            if self.get() > value {
                return;
            }
            risen.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn everyone_who_waits_is_woken_and_nobody_else() {
        let level = Level::new(5);
        level.above(4).await;
        let [mut first, mut second, mut third] = [5, 6, 7].map(|at| Box::pin(level.above(at)));
        for waiting in [&mut first, &mut second, &mut third] {
            assert!(waiting.now_or_never().is_none());
        }
        level.raise(3);
        level.step();
        level.raise(7);
        first.await;
        second.await;
        assert!((&mut third).now_or_never().is_none() && level.get() == 7);
        level.step();
        third.await;
    }
}
