//! What waits to be written to a volume.

use std::{
    collections::{BTreeMap, VecDeque},
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

/// Appends in call order for each lane, of all segments of a volume.
#[derive(Debug)]
pub(super) struct Queue {
    pending: Mutex<Pending>,
    /// Something was queued, or the queue was closed.
    work: Notify,
    limit: usize,
}

#[derive(Debug, Default)]
struct Pending {
    /// What waits, of those lanes that have something.
    lanes: BTreeMap<u32, VecDeque<Append>>,
    /// The lanes that were served lately, with the number of the take that last did.
    served: BTreeMap<u32, u64>,
    takes: u64,
    /// The lane that was served last: the one after it comes first.
    last: u32,
    bytes: usize,
    closed: bool,
}

/// A lane counts as busy for so many takes after it was served.
const BUSY_TAKES: u64 = 256;

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
        // One that is larger than the queue goes alone, or it would wait for ever.
        if pending.bytes > 0 && pending.bytes + bytes > self.limit {
            return Err(StoreError::Unavailable(format!("{} bytes wait to be written already", pending.bytes).into()));
        }
        pending.bytes += bytes;
        let append = Append { segment: segment.clone(), first, entries, bytes };
        pending.lanes.entry(segment.lane).or_default().push_back(append);
        drop(pending);
        self.work.notify_one();
        Ok(())
    }

    /// Waits for work and takes at most `cap` bytes of it, or one append. While more than one lane is busy it takes at
    /// most `shared_cap`, an equal part from each, so that none waits for a long batch of another. `None` when the queue
    /// is closed and empty.
    pub(super) async fn take(&self, cap: usize, shared_cap: usize) -> Option<Vec<Append>> {
        loop {
            {
                let mut pending = self.lock();
                if !pending.lanes.is_empty() {
                    return Some(pending.take(cap, shared_cap));
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
        let dropped = std::mem::take(&mut pending.lanes);
        drop(pending);
        drop(dropped);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }
}

impl Pending {
    fn take(&mut self, cap: usize, shared_cap: usize) -> Vec<Append> {
        let turn: Vec<u32> = match self.last.checked_add(1) {
            Some(next) => self.lanes.range(next..).chain(self.lanes.range(..next)).map(|(lane, _)| *lane).collect(),
            None => self.lanes.keys().copied().collect(),
        };
        let cap = if self.shared(&turn) { cap.min(shared_cap) } else { cap };
        let share = cap / turn.len().max(1);
        let (mut taken, mut bytes) = (Vec::new(), 0);
        for lane in &turn {
            self.last = *lane;
            // One at least, so that a large append has its turn too.
            bytes += self.take_lane(*lane, share, true, &mut taken);
            if bytes >= cap {
                break;
            }
        }
        // What some lanes left of their part goes to the others.
        for lane in &turn {
            bytes += self.take_lane(*lane, cap.saturating_sub(bytes), false, &mut taken);
        }
        self.bytes -= taken.iter().map(|append| append.bytes).sum::<usize>();
        taken
    }

    /// Moves appends of a lane that fit `room`, and says how many bytes they have.
    fn take_lane(&mut self, lane: u32, room: usize, at_least_one: bool, taken: &mut Vec<Append>) -> usize {
        let Some(queue) = self.lanes.get_mut(&lane) else { return 0 };
        let mut bytes = 0;
        let fitting = queue.iter().take_while(|append| {
            let first = bytes == 0 && at_least_one;
            bytes += append.bytes.max(1);
            first || bytes <= room
        });
        let count = fitting.count();
        let before = taken.len();
        taken.extend(queue.drain(..count));
        if queue.is_empty() {
            self.lanes.remove(&lane);
        }
        taken.iter().skip(before).map(|append| append.bytes).sum()
    }

    /// Whether more than one lane is busy; takes note of those that are now.
    fn shared(&mut self, now: &[u32]) -> bool {
        self.takes += 1;
        let takes = self.takes;
        if takes.is_multiple_of(BUSY_TAKES) {
            self.served.retain(|_, last| takes - *last < BUSY_TAKES);
        }
        self.served.extend(now.iter().map(|lane| (*lane, takes)));
        self.served.len() > 1
    }
}

#[cfg(test)]
mod tests {
    use woodpecker_core::ids::{LogId, SegmentKey, VolumeId};

    use super::*;
    use crate::{backend::Placement, conformance::Owner, disk::segment::Start};

    fn segment(lane: u32) -> Arc<Segment> {
        let key = SegmentKey { log: LogId(lane.into()), segment: 1 };
        let placement = Placement::Volume { volume: VolumeId(1), from_batch: 0 };
        let start = Start { first: 0, lane };
        Arc::new(Segment::new(key, placement, Arc::new(Owner::default()), Arc::default(), start))
    }

    /// Which lanes one take serves, with the bytes of each append.
    async fn take(queue: &Queue, cap: usize, shared_cap: usize) -> Vec<(u32, usize)> {
        let taken = queue.take(cap, shared_cap).await.unwrap();
        taken.iter().map(|append| (append.segment.lane, append.bytes)).collect()
    }

    fn push(queue: &Queue, segment: &Arc<Segment>, count: usize, bytes: usize) {
        for _ in 0..count {
            queue.push(segment, 0, vec![Bytes::new()], bytes).unwrap();
        }
    }

    #[tokio::test]
    async fn one_lane_takes_all_there_is_up_to_the_cap() {
        let queue = Queue::new(1_000);
        let only = segment(0);
        push(&queue, &only, 5, 30);
        assert_eq!(take(&queue, 100, 10).await, [(0, 30); 3]);
        assert_eq!(take(&queue, 10, 10).await, [(0, 30)], "an append larger than the cap");
        assert_eq!(take(&queue, 100, 10).await, [(0, 30)]);
    }

    #[tokio::test]
    async fn a_noisy_lane_leaves_every_other_its_part_of_each_take() {
        let queue = Queue::new(1_000_000);
        let (noisy, quiet) = (segment(1), segment(2));
        push(&queue, &noisy, 1_000, 100);
        push(&queue, &quiet, 1, 10);
        let first = take(&queue, 10_000, 1_000).await;
        assert!(first.contains(&(2, 10)), "{first:?}");
        assert_eq!(first.iter().filter(|(lane, _)| *lane == 1).count(), 9, "the rest of the room is used");
        // The quiet one has nothing to write now and may at any moment: batches stay short.
        let bytes: usize = take(&queue, 10_000, 1_000).await.iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(bytes, 1_000);
    }

    #[tokio::test]
    async fn a_lane_alone_for_long_has_the_whole_batch_again() {
        let queue = Queue::new(1_000_000);
        let (noisy, quiet) = (segment(1), segment(2));
        push(&queue, &quiet, 1, 10);
        let mut largest = 0;
        for _ in 0..2 * BUSY_TAKES {
            push(&queue, &noisy, 3, 100);
            largest = take(&queue, 10_000, 200).await.len();
        }
        assert!(largest >= 3, "only {largest} appends in a take");
    }

    #[tokio::test]
    async fn large_appends_of_many_lanes_take_turns() {
        let queue = Queue::new(1_000_000);
        let lanes: Vec<_> = (0..3).map(segment).collect();
        for lane in &lanes {
            push(&queue, lane, 2, 500);
        }
        let mut order = Vec::new();
        for _ in 0..6 {
            order.extend(take(&queue, 400, 400).await.into_iter().map(|(lane, _)| lane));
        }
        assert_eq!(order, [1, 2, 0, 1, 2, 0]);
    }
}
