//! The write-ahead buffer: the newest durable messages of a WAL, kept in memory once for all its readers.
//!
//! The writer publishes and never waits; a reader that falls behind what is kept is told so and reads from the log
//! until it is back inside. Entries stand in log order, which is also tick order.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use streaming_types::TimeTick;
use tokio::sync::watch;
use woodpecker::EntryId;
use woodpecker_base::clock::Instant;

use super::{readers::Readers, record::Stored};
use crate::metrics::Held;

/// How far a WAL has got: everything up to this tick is in the log, the last of it at this entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermark {
    pub tick: u64,
    pub last: EntryId,
    /// Where a reader has to start that wants everything after the tick: before the oldest open transaction. `None` is
    /// behind `last`.
    pub confirmed: Option<EntryId>,
}

/// Bounds of a buffer.
#[derive(Debug, Clone)]
pub struct Capacity {
    pub bytes: usize,
    pub age: Duration,
    pub node: Arc<NodeBudget>,
}

/// What all buffers of a node hold together. A buffer that is published to gives up its own oldest while it is exceeded.
#[derive(Debug)]
pub struct NodeBudget {
    pub limit: usize,
    held: AtomicUsize,
}

impl NodeBudget {
    pub fn new(limit: usize) -> Self {
        Self { limit, held: AtomicUsize::new(0) }
    }

    /// Bytes that they hold.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    fn is_exceeded(&self) -> bool {
        self.held() > self.limit
    }
}

/// See the module.
#[derive(Debug)]
pub struct Buffer {
    state: Mutex<State>,
    /// Wakes readers; carries nothing.
    changed: watch::Sender<()>,
    /// Wakes who wants to know of messages only.
    written: watch::Sender<()>,
    capacity: Capacity,
    /// Who reads the WAL, here or in the log.
    pub readers: Readers,
}

#[derive(Debug)]
struct State {
    entries: VecDeque<(Arc<Stored>, Instant)>,
    bytes: usize,
    /// What is at or before this entry must be read from the log.
    evicted: EntryId,
    watermark: Watermark,
    /// Counts the moments at which every reader owes its client a tick.
    heartbeats: u64,
}

/// What a reader found.
#[derive(Debug)]
pub enum Page {
    /// Messages after the cursor, maybe none. `watermark` is set when they are all there are.
    Messages { messages: Vec<Arc<Stored>>, watermark: Option<Watermark>, heartbeats: u64 },
    /// Some of what follows the cursor is not kept any more.
    Evicted,
}

impl Buffer {
    /// A buffer that begins after `first`, the message that opened the term.
    pub fn new(first: &Stored, confirmed: Option<EntryId>, capacity: Capacity) -> Self {
        let watermark = Watermark { tick: first.tick, last: first.id, confirmed };
        let state = State { entries: VecDeque::new(), bytes: 0, evicted: first.id, watermark, heartbeats: 0 };
        let (changed, written) = (watch::Sender::new(()), watch::Sender::new(()));
        Self { state: Mutex::new(state), changed, written, capacity, readers: Readers::default() }
    }

    /// Adds messages that are durable, the tick that closes them and where to start for what follows. Who reads from now on
    /// finds them; who waits has to be [woken](Self::wake). Says whether there were any messages.
    pub fn publish(
        &self,
        messages: impl IntoIterator<Item = Arc<Stored>>,
        (tick, confirmed): (u64, Option<EntryId>),
        now: Instant,
    ) -> bool {
        let mut state = self.lock();
        let before = state.watermark.last;
        for message in messages {
            state.watermark.last = message.id;
            state.bytes += message.bytes;
            self.capacity.node.held.fetch_add(message.bytes, Ordering::Relaxed);
            state.entries.push_back((message, now));
        }
        state.watermark.tick = tick;
        state.watermark.confirmed = confirmed;
        state.evict(&self.capacity, now);
        state.watermark.last > before
    }

    /// Wakes readers; whether messages were `written` concerns some of them.
    pub fn wake(&self, written: bool) {
        self.changed.send_replace(());
        if written {
            self.written.send_replace(());
        }
    }

    /// Lets go of what is too old, and makes every reader give its client a tick.
    pub fn beat(&self, now: Instant) {
        {
            let mut state = self.lock();
            state.heartbeats += 1;
            state.evict(&self.capacity, now);
        }
        self.changed.send_replace(());
    }

    /// Lets go of everything: the WAL has ended, and a reader who does not read keeps the buffer.
    pub fn clear(&self) {
        let mut state = self.lock();
        self.capacity.node.held.fetch_sub(std::mem::take(&mut state.bytes), Ordering::Relaxed);
        state.entries = VecDeque::new();
        state.evicted = state.watermark.last;
    }

    /// Messages after `cursor`, about `max_bytes` of them.
    pub fn read(&self, cursor: EntryId, max_bytes: usize) -> Page {
        let state = self.lock();
        if cursor < state.evicted {
            return Page::Evicted;
        }
        let start = state.entries.partition_point(|(message, _)| message.id <= cursor);
        let mut taken = 0;
        let messages: Vec<_> = state
            .entries
            .range(start..)
            .take_while(|(message, _)| {
                let fits = taken < max_bytes;
                taken += message.bytes;
                fits
            })
            .map(|(message, _)| Arc::clone(message))
            .collect();
        let watermark = (start + messages.len() == state.entries.len()).then_some(state.watermark);
        Page::Messages { messages, watermark, heartbeats: state.heartbeats }
    }

    /// Whether everything after `cursor` is here.
    pub fn covers(&self, cursor: EntryId) -> bool {
        cursor >= self.lock().evicted
    }

    /// How far the WAL has got.
    pub fn watermark(&self) -> Watermark {
        self.lock().watermark
    }

    /// Bytes kept.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// What is kept.
    pub fn held(&self) -> Held {
        let state = self.lock();
        let (first, last) = (state.entries.front(), state.entries.back());
        let span = first.zip(last).map(|((first, _), (last, _))| (TimeTick(first.tick), TimeTick(last.tick)));
        Held { bytes: state.bytes, capacity: self.capacity.bytes, entries: state.entries.len(), span }
    }

    /// Tells of every later change.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Tells when messages were added. Who listens is no reader: nothing is done to keep it up to date.
    pub fn written(&self) -> watch::Receiver<()> {
        self.written.subscribe()
    }

    /// How many readers follow the tail now.
    pub fn followers(&self) -> usize {
        self.changed.receiver_count()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.capacity.node.held.fetch_sub(self.bytes(), Ordering::Relaxed);
    }
}

impl State {
    fn evict(&mut self, capacity: &Capacity, now: Instant) {
        while let Some((oldest, since)) = self.entries.front() {
            let full = self.bytes > capacity.bytes || capacity.node.is_exceeded();
            if !full && now.duration_since(*since) <= capacity.age {
                return;
            }
            self.bytes -= oldest.bytes;
            capacity.node.held.fetch_sub(oldest.bytes, Ordering::Relaxed);
            self.evicted = oldest.id;
            self.entries.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use woodpecker_base::clock::Clock;

    use super::*;
    use crate::wal::record;

    fn at(entry: u64) -> Arc<Stored> {
        Arc::new(Stored::new(EntryId { segment: 1, entry }, record::tick(100 + entry, None, 1)).unwrap())
    }

    fn id(entry: u64) -> EntryId {
        EntryId { segment: 1, entry }
    }

    fn buffer(bytes: usize) -> Buffer {
        buffer_of(&Arc::new(NodeBudget::new(usize::MAX)), bytes)
    }

    fn buffer_of(node: &Arc<NodeBudget>, bytes: usize) -> Buffer {
        Buffer::new(&at(0), None, Capacity { bytes, age: Duration::from_secs(30), node: Arc::clone(node) })
    }

    fn entries(page: Page) -> Option<(Vec<u64>, Option<u64>)> {
        match page {
            Page::Messages { messages, watermark, .. } => {
                Some((messages.iter().map(|m| m.id.entry).collect(), watermark.map(|w| w.tick)))
            }
            Page::Evicted => None,
        }
    }

    #[tokio::test]
    async fn reader_gets_what_follows_its_cursor_and_the_tick_at_the_end() {
        let (buffer, now) = (buffer(1 << 20), Clock::system().now());
        assert_eq!(entries(buffer.read(id(0), 1)), Some((vec![], Some(100))));
        buffer.publish([at(1), at(2), at(3)], (200, None), now);
        assert_eq!(entries(buffer.read(id(0), usize::MAX)), Some((vec![1, 2, 3], Some(200))));
        assert_eq!(entries(buffer.read(id(2), usize::MAX)), Some((vec![3], Some(200))));
        assert_eq!(entries(buffer.read(id(0), 1)), Some((vec![1], None)), "not all there is");
        assert_eq!(entries(buffer.read(id(9), usize::MAX)), Some((vec![], Some(200))), "a reader ahead of the buffer");
        buffer.publish([], (300, None), now);
        assert_eq!(buffer.watermark(), Watermark { tick: 300, last: id(3), confirmed: None });
    }

    #[tokio::test]
    async fn what_is_too_much_or_too_old_is_evicted() {
        let now = Clock::system().now();
        let two = at(1).bytes * 2;
        let buffer = buffer(two);
        buffer.publish([at(1), at(2), at(3)], (200, None), now);
        assert_eq!(entries(buffer.read(id(0), usize::MAX)), None);
        assert!(!buffer.covers(id(0)) && buffer.covers(id(1)));
        assert_eq!(entries(buffer.read(id(1), usize::MAX)), Some((vec![2, 3], Some(200))));
        assert!(buffer.bytes() <= two);

        buffer.beat(now + Duration::from_secs(31));
        assert_eq!(buffer.bytes(), 0);
        assert_eq!(entries(buffer.read(id(3), 1)), Some((vec![], Some(200))), "a reader at the end stays");
        assert_eq!(entries(buffer.read(id(2), 1)), None);
    }

    #[tokio::test]
    async fn buffers_of_a_node_share_its_budget() {
        let now = Clock::system().now();
        let node = Arc::new(NodeBudget::new(at(1).bytes * 3));
        let (one, two) = (buffer_of(&node, usize::MAX), buffer_of(&node, usize::MAX));
        one.publish([at(1), at(2)], (200, None), now);
        two.publish([at(1), at(2)], (200, None), now);
        assert_eq!((one.bytes(), two.bytes()), (at(1).bytes * 2, at(1).bytes));
        drop(one);
        two.publish([at(3), at(4)], (300, None), now);
        assert_eq!(two.bytes(), at(1).bytes * 3);
        drop(two);
        assert_eq!(node.held(), 0);
    }

    #[tokio::test]
    async fn cleared_buffer_holds_nothing_and_sends_readers_to_the_log() {
        let node = Arc::new(NodeBudget::new(usize::MAX));
        let buffer = buffer_of(&node, usize::MAX);
        buffer.publish([at(1), at(2)], (200, None), Clock::system().now());
        buffer.clear();
        assert_eq!((buffer.bytes(), node.held()), (0, 0));
        assert!(!buffer.covers(id(1)) && buffer.covers(id(2)));
        drop(buffer);
        assert_eq!(node.held(), 0);
    }

    #[tokio::test]
    async fn changes_wake_followers() {
        let (buffer, now) = (buffer(1 << 20), Clock::system().now());
        assert_eq!(buffer.followers(), 0);
        let (mut changed, written) = (buffer.subscribe(), buffer.written());
        assert_eq!(buffer.followers(), 1);
        let wrote = buffer.publish([at(1)], (200, None), now);
        assert!(wrote && !changed.has_changed().unwrap(), "answers come first");
        buffer.wake(wrote);
        assert!(changed.has_changed().unwrap() && written.has_changed().unwrap());
        changed.borrow_and_update();
        buffer.beat(now);
        assert!(changed.has_changed().unwrap());
    }
}
