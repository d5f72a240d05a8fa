//! What is on its way to one log store: a lane for each segment, in order, until the store has confirmed it.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use woodpecker_base::clock::Instant;
use woodpecker_core::ids::SegmentKey;

use super::segment::Segment;

/// What one append brought: never split, so that a store can keep it in one block.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub first: u64,
    pub entries: Arc<Vec<Bytes>>,
    pub bytes: usize,
}

/// What goes into one message.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub segment: Arc<Segment>,
    pub first: u64,
    pub entries: Vec<Bytes>,
    pub committed: u64,
}

/// A segment and which of its replicas the store is.
pub(super) type Held = (Arc<Segment>, usize);

#[derive(Debug, Default)]
pub(super) struct Lanes {
    by_segment: HashMap<SegmentKey, Lane>,
    /// Lanes with something to send, each once.
    ready: VecDeque<SegmentKey>,
    /// Lanes whose store may not know how much is acked, each once.
    notices: VecDeque<SegmentKey>,
    /// Of all that is not confirmed.
    bytes: usize,
    /// Grows with everything that the store answers.
    progress: u64,
    /// Which stream may take what is to be sent: one that broke may still be asked by the transport.
    stream: u64,
}

#[derive(Debug)]
struct Lane {
    segment: Arc<Segment>,
    replica: usize,
    /// Not confirmed, in order; the first `sent` of them were handed to the stream.
    frames: VecDeque<Frame>,
    sent: usize,
    /// Every entry below was told to be acked.
    told: u64,
    is_ready: bool,
    is_noticed: bool,
    paused_until: Option<Instant>,
    /// Since when a quota keeps the store from taking what comes next, and how much of the segment was acked then.
    over_quota: Option<(Instant, u64)>,
}

impl Frame {
    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }
}

impl Lane {
    fn is_idle(&self) -> bool {
        self.frames.is_empty() && !self.is_noticed
    }
}

impl Lanes {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn progress(&self) -> u64 {
        self.progress
    }

    /// Whether the store owes a confirmation, of what it did not ask to wait with.
    pub fn is_waiting(&self) -> bool {
        self.by_segment.values().any(|lane| !lane.frames.is_empty() && lane.paused_until.is_none())
    }

    /// Whether there is anything to say to the store, now or after a pause.
    pub fn has_work(&self) -> bool {
        self.bytes > 0 || !self.ready.is_empty() || !self.notices.is_empty()
    }

    pub fn has_notices(&self) -> bool {
        !self.notices.is_empty()
    }

    /// The largest frame that is the oldest of its segment: it takes time to travel.
    pub fn largest_first(&self) -> usize {
        self.by_segment
            .values()
            .filter_map(|lane| lane.frames.front())
            .map(|frame| frame.bytes)
            .max()
            .unwrap_or_default()
    }

    pub fn segment(&self, key: SegmentKey) -> Option<Arc<Segment>> {
        self.by_segment.get(&key).map(|lane| lane.segment.clone())
    }

    fn lane(&mut self, segment: &Arc<Segment>, replica: usize) -> &mut Lane {
        let lane = self.by_segment.entry(segment.key).or_insert_with(|| Lane::new(segment.clone(), replica));
        // Of two owners-to-be of a segment only one appends: what another left here is nothing.
        if !Arc::ptr_eq(&lane.segment, segment) && lane.frames.is_empty() {
            (lane.segment, lane.replica, lane.told) = (segment.clone(), replica, 0);
        }
        lane
    }

    /// Queues what follows the segment's last frame.
    pub fn push(&mut self, segment: &Arc<Segment>, replica: usize, frame: Frame) {
        self.bytes += frame.bytes;
        let lane = self.lane(segment, replica);
        lane.frames.push_back(frame);
        if lane.paused_until.is_none() && !std::mem::replace(&mut lane.is_ready, true) {
            self.ready.push_back(segment.key);
        }
    }

    /// More of the segment is acked. It is told with the next entries, or else by itself.
    pub fn notice(&mut self, segment: &Arc<Segment>, replica: usize) {
        let lane = self.lane(segment, replica);
        if !lane.is_ready && !std::mem::replace(&mut lane.is_noticed, true) {
            self.notices.push_back(segment.key);
        }
    }

    /// The next entries to send, of the segment whose turn it is: whole frames up to `limit` bytes, one at least.
    pub fn next(&mut self, limit: usize) -> Option<Outgoing> {
        while let Some(key) = self.ready.pop_front() {
            let Some(lane) = self.by_segment.get_mut(&key) else { continue };
            lane.is_ready = false;
            let Some(first) = lane.frames.get(lane.sent).map(|frame| frame.first) else { continue };
            let (mut bytes, mut entries) = (0, Vec::new());
            while let Some(frame) = lane.frames.get(lane.sent) {
                if !entries.is_empty() && bytes + frame.bytes > limit {
                    break;
                }
                bytes += frame.bytes;
                entries.extend(frame.entries.iter().cloned());
                lane.sent += 1;
            }
            if lane.sent < lane.frames.len() {
                lane.is_ready = true;
                self.ready.push_back(key);
            }
            lane.told = lane.segment.acked();
            return Some(Outgoing { segment: lane.segment.clone(), first, entries, committed: lane.told });
        }
        None
    }

    /// The next message that only tells how much is acked.
    pub fn next_notice(&mut self) -> Option<Outgoing> {
        while let Some(key) = self.notices.pop_front() {
            let Some(lane) = self.by_segment.get_mut(&key) else { continue };
            lane.is_noticed = false;
            let (segment, acked, told) = (lane.segment.clone(), lane.segment.acked(), lane.told);
            lane.told = acked;
            self.forget_idle(key);
            if acked > told {
                return Some(Outgoing { segment, first: acked, entries: Vec::new(), committed: acked });
            }
        }
        None
    }

    fn forget_idle(&mut self, key: SegmentKey) {
        if self.by_segment.get(&key).is_some_and(Lane::is_idle) {
            self.by_segment.remove(&key);
        }
    }

    /// The store has every entry below `durable`.
    pub fn confirm(&mut self, key: SegmentKey, durable: u64) -> Option<Held> {
        let lane = self.by_segment.get_mut(&key)?;
        while lane.frames.front().is_some_and(|frame| frame.end() <= durable) {
            let Some(frame) = lane.frames.pop_front() else { break };
            lane.sent = lane.sent.saturating_sub(1);
            lane.over_quota = None;
            self.bytes -= frame.bytes;
            self.progress += 1;
        }
        let held = (lane.segment.clone(), lane.replica);
        self.forget_idle(key);
        Some(held)
    }

    /// Gives up what is left of a segment.
    pub fn drop_segment(&mut self, key: SegmentKey) -> Option<Held> {
        let lane = self.by_segment.remove(&key)?;
        self.bytes -= lane.frames.iter().map(|frame| frame.bytes).sum::<usize>();
        Some((lane.segment, lane.replica))
    }

    /// The store asked to wait: everything from the first unconfirmed frame on is sent again, not before `until`.
    pub fn pause(&mut self, key: SegmentKey, until: Instant) {
        if let Some(lane) = self.by_segment.get_mut(&key) {
            (lane.sent, lane.paused_until, lane.is_ready) = (0, Some(until), false);
            self.ready.retain(|ready| *ready != key);
            // Whoever asks to wait is not silent.
            self.progress += 1;
        }
    }

    /// A quota is used up at the store; since when it has been so for this segment, of which nothing more was acked
    /// meanwhile.
    pub fn over_quota(&mut self, key: SegmentKey, acked: u64, now: Instant) -> Instant {
        let Some(lane) = self.by_segment.get_mut(&key) else { return now };
        let since = lane.over_quota.filter(|(_, before)| *before == acked).map_or(now, |(since, _)| since);
        lane.over_quota = Some((since, acked));
        since
    }

    /// Ends the pauses that are over; whether there were any.
    pub fn resume(&mut self, now: Instant) -> bool {
        let mut resumed = false;
        for (key, lane) in &mut self.by_segment {
            if lane.paused_until.is_some_and(|until| until <= now) {
                lane.paused_until = None;
                resumed = true;
                if !lane.frames.is_empty() && !std::mem::replace(&mut lane.is_ready, true) {
                    self.ready.push_back(*key);
                }
            }
        }
        resumed
    }

    /// A new stream, and its number: everything that is not confirmed is sent again.
    pub fn rewind(&mut self) -> u64 {
        self.stream += 1;
        self.ready.clear();
        for (key, lane) in &mut self.by_segment {
            (lane.sent, lane.told) = (0, 0);
            lane.is_ready = !lane.frames.is_empty() && lane.paused_until.is_none();
            if lane.is_ready {
                self.ready.push_back(*key);
            }
        }
        self.stream
    }

    /// Whether this is the latest stream.
    pub fn is_current(&self, stream: u64) -> bool {
        self.stream == stream
    }

    /// Gives up everything; the segments of which something was not confirmed.
    pub fn drain(&mut self) -> Vec<Held> {
        let lanes = std::mem::take(self);
        (self.progress, self.stream) = (lanes.progress, lanes.stream);
        let unconfirmed = lanes.by_segment.into_values().filter(|lane| !lane.frames.is_empty());
        unconfirmed.map(|lane| (lane.segment, lane.replica)).collect()
    }
}

impl Lane {
    fn new(segment: Arc<Segment>, replica: usize) -> Self {
        Self {
            segment,
            replica,
            frames: VecDeque::new(),
            sent: 0,
            told: 0,
            is_ready: false,
            is_noticed: false,
            paused_until: None,
            over_quota: None,
        }
    }
}
