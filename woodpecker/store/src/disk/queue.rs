//! What waits to be written to a volume.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::backend::StoreError;

use super::segment::Segment;

/// Entries of one append, with their first number.
#[derive(Debug)]
pub(super) struct Append {
    pub segment: Arc<Segment>,
    pub first: u64,
    pub entries: Vec<Bytes>,
    pub bytes: usize,
}

/// Appends in call order, of all segments of a volume.
#[derive(Debug)]
pub(super) struct Queue {
    pending: Mutex<Pending>,
    /// Something was queued, or the queue was closed.
    work: Notify,
    limit: usize,
}

#[derive(Debug, Default)]
struct Pending {
    appends: VecDeque<Append>,
    bytes: usize,
    closed: bool,
}

impl Queue {
    /// A queue that takes no more than `limit` bytes: callers bound what they have in flight, this is for those that
    /// fail to.
    pub(super) fn new(limit: usize) -> Self {
        Self { pending: Mutex::default(), work: Notify::new(), limit }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(
        &self,
        segment: &Arc<Segment>,
        first: u64,
        entries: Vec<Bytes>,
        bytes: usize,
    ) -> Result<(), StoreError> {
        let mut pending = self.lock();
        if pending.closed {
            return Err(StoreError::Ended);
        }
        if pending.bytes + bytes > self.limit {
            return Err(StoreError::Unavailable(format!("{} bytes wait to be written already", pending.bytes).into()));
        }
        pending.bytes += bytes;
        pending.appends.push_back(Append { segment: segment.clone(), first, entries, bytes });
        drop(pending);
        self.work.notify_one();
        Ok(())
    }

    /// Waits for work and takes at most `cap` bytes of it, or one append. `None` when the queue is closed and empty.
    pub(super) async fn take(&self, cap: usize) -> Option<Vec<Append>> {
        loop {
            {
                let mut pending = self.lock();
                if !pending.appends.is_empty() {
                    return Some(pending.take(cap));
                }
                if pending.closed {
                    return None;
                }
            }
            self.work.notified().await;
        }
    }

    /// Takes no more appends; what is queued stays.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.work.notify_one();
    }

    /// Takes no more appends, and drops what is queued.
    pub(super) fn abandon(&self) {
        let mut pending = self.lock();
        pending.closed = true;
        pending.bytes = 0;
        let dropped = std::mem::take(&mut pending.appends);
        drop(pending);
        drop(dropped);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }
}

impl Pending {
    fn take(&mut self, cap: usize) -> Vec<Append> {
        let mut bytes = 0;
        let fitting = self.appends.iter().take_while(|append| {
            let first = bytes == 0;
            bytes += append.bytes.max(1);
            first || bytes <= cap
        });
        let count = fitting.count();
        let taken: Vec<Append> = self.appends.drain(..count).collect();
        self.bytes -= taken.iter().map(|append| append.bytes).sum::<usize>();
        taken
    }
}
