//! Reads a WAL for one consumer, in tick order, from any position to the tail and on.
//!
//! The past comes from the log, the tail from the write-ahead buffer. Both stand in log order, so moving from one to the
//! other at an entry loses and repeats nothing: to the buffer once it holds everything after the last entry met, to the
//! log once it does not any more. A scanner works only while it is asked, so a slow consumer costs the WAL nothing.
//!
//! A transaction for whose messages there was no room is read from the log once more at its commit; what follows it waits.

use std::{collections::VecDeque, pin::Pin, sync::Arc, time::Duration};

use streaming_types::{DeliverFilter, DeliverPolicy, MessageType, TimeTick, properties::key};
use tokio::{sync::watch, task::yield_now};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use woodpecker::{Entry, EntryId, Log, Position, ReadError, Reader};
use woodpecker_base::{backoff::Backoff, clock::Clock, random::Random};

use super::{
    allowance::Allowance,
    buffer::{Buffer, Page, Watermark},
    chunk::Joiner,
    delivery::{Delivery, Scattered, Visible},
    gather::Gather,
    readers::Place,
    record::Stored,
    reorder::Reorder,
};
use crate::metrics;

/// Bytes taken from the buffer at a time.
const PAGE_BYTES: usize = 1 << 20;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a consumer asked for.
#[derive(Debug, Clone)]
pub struct ScanOptions {
    /// Messages of other vchannels are dropped; empty is the whole pchannel.
    pub vchannel: String,
    pub policy: DeliverPolicy,
    /// A message has to pass all of them.
    pub filters: Vec<DeliverFilter>,
    /// Reads on while the node's scanners are paused.
    pub ignores_pause: bool,
}

/// Why a scanner ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ScanError {
    #[error("the write-ahead log was closed")]
    Closed,
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// The edges a scanner works with.
#[derive(Debug, Clone)]
pub struct ScanEdges {
    pub log: Log,
    /// The newest messages, if this node appends to the WAL.
    pub buffer: Option<Arc<Buffer>>,
    pub ended: CancellationToken,
    pub allowance: Allowance,
    /// Whether scanners stand still, for an operator in need.
    pub paused: watch::Receiver<bool>,
    pub node: i64,
    pub clock: Clock,
    pub random: Random,
}

/// See the module.
pub struct Scanner {
    edges: ScanEdges,
    options: ScanOptions,
    source: Source,
    joiner: Joiner,
    reorder: Reorder,
    delivery: Delivery,
    /// What passed and is not taken yet.
    ready: VecDeque<Arc<Stored>>,
    /// A transaction whose bodies are being read once more, and what passed behind it.
    gather: Option<Box<Gather>>,
    rest: VecDeque<Part>,
    /// The tick of the last message or tick that was released.
    told: u64,
    /// Heartbeats of the buffer that were answered with a tick.
    heartbeats: Option<u64>,
    /// Where others see how far it is.
    place: Option<Place>,
    backoff: Backoff,
    /// Resolves when the WAL has ended. Kept, for it is waited for with every message.
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// What comes behind messages that are ready.
enum Part {
    Message(Arc<Stored>),
    Scattered(Scattered),
}

enum Source {
    /// Entries of the log. `last` is the last one met.
    Log { reader: Box<Reader>, last: Option<EntryId> },
    /// Entries of the buffer after `cursor`.
    Buffer { buffer: Arc<Buffer>, changed: watch::Receiver<()>, cursor: EntryId },
}

impl Scanner {
    /// A scanner at the position that `options` name. A position that was truncated away means the earliest one there is.
    pub fn new(edges: ScanEdges, mut options: ScanOptions) -> Self {
        let (source, released) = start(&edges, &mut options);
        metrics::scanner_opened(edges.log.name(), source.model());
        let place = edges.buffer.as_ref().map(|buffer| buffer.readers.join());
        let backoff = Backoff::new(edges.clock.clone(), &edges.random, FIRST_PAUSE, LONGEST_PAUSE);
        let ended = Box::pin(edges.ended.clone().cancelled_owned());
        let delivery = Delivery::new(edges.allowance.clone());
        Self {
            edges,
            options,
            source,
            joiner: Joiner::default(),
            reorder: Reorder::after(released),
            delivery,
            ready: VecDeque::new(),
            gather: None,
            rest: VecDeque::new(),
            told: released,
            heartbeats: None,
            place,
            backoff,
            ended,
        }
    }

    /// The next messages and ticks, at least one. Cancel-safe.
    ///
    /// # Errors
    /// [`ScanError`]; the scanner is of no more use.
    pub async fn next(&mut self) -> Result<VecDeque<Arc<Stored>>, ScanError> {
        loop {
            if !self.ready.is_empty() {
                if let Some(place) = &self.place {
                    place.reached(self.told);
                }
                return Ok(std::mem::take(&mut self.ready));
            }
            if !self.options.ignores_pause && *self.edges.paused.borrow() {
                tokio::select! {
                    biased;
                    () = &mut self.ended => return Err(ScanError::Closed),
                    // Whoever could end the pause is gone with the node.
                    _ = self.edges.paused.wait_for(|paused| !paused) => {}
                }
            }
            if let Some(gather) = &mut self.gather {
                let read = tokio::select! {
                    biased;
                    () = &mut self.ended => return Err(ScanError::Closed),
                    read = gather.next() => read,
                };
                self.gathered(read).await?;
                continue;
            }
            if let Some(part) = self.rest.pop_front() {
                self.go_on(part);
                continue;
            }
            match &mut self.source {
                Source::Log { reader, .. } => {
                    let read = tokio::select! {
                        biased;
                        () = &mut self.ended => return Err(ScanError::Closed),
                        read = reader.next() => read,
                    };
                    self.met_entries(read).await?;
                }
                Source::Buffer { .. } => {
                    let is_at_end = self.read_buffer();
                    let Source::Buffer { changed, .. } = &mut self.source else { continue };
                    if !self.ready.is_empty() || !self.rest.is_empty() {
                        continue;
                    }
                    if !is_at_end {
                        // Nobody wakes a reader for what is there already.
                        yield_now().await;
                        continue;
                    }
                    tokio::select! {
                        biased;
                        () = &mut self.ended => return Err(ScanError::Closed),
                        _ = changed.changed() => {}
                    }
                }
            }
        }
    }

    async fn met_entries(&mut self, read: Result<Vec<Entry>, ReadError>) -> Result<(), ScanError> {
        let entries = match read {
            Ok(entries) => entries,
            Err(error) => return self.failed(error).await,
        };
        self.backoff.reset();
        for Entry { id, payload } in entries {
            if let Source::Log { last, .. } = &mut self.source {
                *last = Some(id);
            }
            match self.joiner.accept(id, payload) {
                Ok(Some(stored)) => self.meet(Arc::new(stored)),
                Ok(None) => {}
                // Waiting for it to become readable would stop every consumer for ever.
                Err(error) => {
                    metrics::bad_record(self.edges.log.name());
                    tracing::error!(log = self.edges.log.name(), %error, "skipped an entry that is no message");
                }
            }
        }
        if let (Source::Log { last: Some(last), .. }, Some(buffer)) = (&self.source, &self.edges.buffer)
            && !self.joiner.is_amid()
            && buffer.covers(*last)
        {
            self.source = follow(buffer, *last);
            metrics::scanner_moved(self.edges.log.name(), "catchup", "tailing");
        }
        Ok(())
    }

    /// A read that may succeed later is tried again where it was.
    async fn failed(&mut self, error: ReadError) -> Result<(), ScanError> {
        let Source::Log { reader, last } = &mut self.source else { return Ok(()) };
        match error {
            ReadError::PositionLost { earliest } if last.is_none() => {
                if self.options.policy != DeliverPolicy::All {
                    tracing::warn!(log = self.edges.log.name(), %earliest, "position was truncated, reading from the earliest");
                }
                let left = before(earliest).zip(self.edges.buffer.as_ref());
                match left.filter(|(truncated, buffer)| buffer.covers(*truncated)) {
                    // The log may hold nothing more for long, and ticks are told here.
                    Some((truncated, buffer)) => {
                        self.source = follow(buffer, truncated);
                        metrics::scanner_moved(self.edges.log.name(), "catchup", "tailing");
                    }
                    None => **reader = self.edges.log.reader(Position::At(earliest)),
                }
            }
            error => return self.pause_after(error).await,
        }
        Ok(())
    }

    /// Waits a little, if another attempt may help.
    async fn pause_after(&mut self, error: ReadError) -> Result<(), ScanError> {
        if !error.is_retryable() {
            return Err(error.into());
        }
        tracing::warn!(log = self.edges.log.name(), %error, "reading the log failed, trying again");
        tokio::select! {
            biased;
            () = &mut self.ended => Err(ScanError::Closed),
            () = self.backoff.wait() => Ok(()),
        }
    }

    async fn gathered(&mut self, read: Result<Vec<Arc<Stored>>, ReadError>) -> Result<(), ScanError> {
        let found = match read {
            Ok(found) => found,
            Err(error) => return self.pause_after(error).await,
        };
        self.backoff.reset();
        if found.last().is_some_and(|last| last.kind == MessageType::CommitTxn) {
            self.gather = None;
        }
        self.ready.extend(found.into_iter().filter(|message| passes(&self.options.filters, message)));
        Ok(())
    }

    /// Comes to what waited behind a transaction.
    fn go_on(&mut self, part: Part) {
        match part {
            Part::Message(message) => self.ready.push_back(message),
            Part::Scattered(txn) => {
                self.ready.extend(Some(Arc::clone(&txn.begin)).filter(|begin| passes(&self.options.filters, begin)));
                self.gather = Some(Box::new(Gather::new(&self.edges.log, txn)));
            }
        }
    }

    /// Takes what comes next of the buffer; says whether that was all there is.
    fn read_buffer(&mut self) -> bool {
        let Source::Buffer { buffer, changed, cursor } = &mut self.source else { return false };
        changed.borrow_and_update();
        let (messages, watermark, heartbeats) = match buffer.read(*cursor, PAGE_BYTES) {
            Page::Messages { messages, watermark, heartbeats } => (messages, watermark, heartbeats),
            Page::Evicted => {
                let reader = Box::new(self.edges.log.reader(Position::After(*cursor)));
                self.source = Source::Log { reader, last: Some(*cursor) };
                metrics::scanner_moved(self.edges.log.name(), "tailing", "catchup");
                return false;
            }
        };
        if let Some(newest) = messages.last() {
            *cursor = newest.id;
        }
        for message in messages {
            // Nothing stands between two messages of the buffer, so each may go as soon as it is met.
            let tick = message.tick;
            if self.reorder.passes(tick) {
                self.told = tick;
                self.give(message);
            } else {
                self.meet(message);
                self.release(tick);
            }
        }
        if let Some(watermark) = watermark {
            self.release(watermark.tick);
            self.beat(watermark, heartbeats);
        }
        watermark.is_some()
    }

    /// Gives the consumer a tick if one is due and nothing else says how far the WAL has got.
    fn beat(&mut self, watermark: Watermark, heartbeats: u64) {
        if self.heartbeats == Some(heartbeats) || !self.ready.is_empty() || !self.rest.is_empty() {
            return;
        }
        self.heartbeats = Some(heartbeats);
        if watermark.tick > self.told
            && let Ok(tick) = Stored::memory_tick(watermark, self.edges.node)
        {
            self.told = watermark.tick;
            self.give(Arc::new(tick));
        }
    }

    fn meet(&mut self, message: Arc<Stored>) {
        let (tick, kind) = (message.tick, message.kind);
        if kind == MessageType::TimeTick {
            // A tick that was released already says nothing new.
            if tick > self.told {
                self.release(tick);
                self.told = tick;
                self.give(message);
            }
        } else if !self.reorder.push(message) {
            metrics::time_tick_violation(self.edges.log.name());
            tracing::warn!(log = self.edges.log.name(), tick, "dropped a message at or before a released tick");
        }
    }

    fn release(&mut self, tick: u64) {
        for message in self.reorder.release(tick) {
            self.told = message.tick;
            self.give(message);
        }
    }

    fn give(&mut self, message: Arc<Stored>) {
        let wanted = &self.options.vchannel;
        let vchannel = message.message.properties.vchannel();
        if !wanted.is_empty() && vchannel.is_some_and(|vchannel| vchannel != wanted) {
            // It may end transactions of the one that is wanted, as a change of the WAL's role does.
            self.delivery.end(&message, self.edges.log.name());
            return;
        }
        match self.delivery.accept(message, self.edges.log.name()) {
            Visible::Nothing => {}
            Visible::Message(message) => self.put(message),
            // The commit decides for all.
            Visible::Txn(whole) => {
                if whole.last().is_some_and(|commit| passes(&self.options.filters, commit)) {
                    whole.into_iter().for_each(|message| self.put(message));
                }
            }
            Visible::Scattered(txn) => {
                if passes(&self.options.filters, &txn.commit) {
                    self.rest.push_back(Part::Scattered(txn));
                }
            }
        }
    }

    fn put(&mut self, message: Arc<Stored>) {
        if !passes(&self.options.filters, &message) {
            return;
        }
        if self.rest.is_empty() {
            self.ready.push_back(message);
        } else {
            self.rest.push_back(Part::Message(message));
        }
    }
}

fn passes(filters: &[DeliverFilter], message: &Stored) -> bool {
    let in_txn = message.message.properties.contains(key::TXN);
    filters.iter().all(|filter| filter.passes(message.kind, in_txn, TimeTick(message.tick)))
}

impl Drop for Scanner {
    fn drop(&mut self) {
        metrics::scanner_closed(self.edges.log.name(), self.source.model());
    }
}

impl Source {
    fn model(&self) -> &'static str {
        match self {
            Self::Log { .. } => "catchup",
            Self::Buffer { .. } => "tailing",
        }
    }
}

fn follow(buffer: &Arc<Buffer>, cursor: EntryId) -> Source {
    Source::Buffer { buffer: Arc::clone(buffer), changed: buffer.subscribe(), cursor }
}

/// Where to begin, and the tick up to which nothing is wanted.
fn start(edges: &ScanEdges, options: &mut ScanOptions) -> (Source, u64) {
    let entry = |id: streaming_types::MessageId| {
        let (segment, entry) = id.to_u64();
        EntryId { segment, entry }
    };
    let (position, after) = match options.policy {
        // By a place, so that it is told where the log begins if that is elsewhere.
        DeliverPolicy::All => (Position::At(EntryId { segment: 0, entry: 0 }), None),
        DeliverPolicy::Latest => match edges.buffer.as_ref().map(|buffer| (buffer, buffer.watermark())) {
            Some((buffer, Watermark { tick, last, confirmed: None })) => return (follow(buffer, last), tick),
            // What is open began before, and may be committed after.
            Some((_, Watermark { tick, confirmed: Some(confirmed), .. })) => {
                options.filters.push(DeliverFilter::TimeTickGreaterThan(TimeTick(tick)));
                (Position::At(confirmed), before(confirmed))
            }
            None => (Position::Latest, None),
        },
        DeliverPolicy::StartFrom(id) => (Position::At(entry(id)), before(entry(id))),
        DeliverPolicy::StartAfter(id) => (Position::After(entry(id)), Some(entry(id))),
    };
    match (&edges.buffer, after) {
        (Some(buffer), Some(after)) if buffer.covers(after) => (follow(buffer, after), 0),
        _ => (Source::Log { reader: Box::new(edges.log.reader(position)), last: None }, 0),
    }
}

/// The largest id below `id`, whether or not there is such an entry.
pub fn before(id: EntryId) -> Option<EntryId> {
    match id {
        EntryId { segment: 0, entry: 0 } => None,
        EntryId { segment, entry: 0 } => Some(EntryId { segment: segment - 1, entry: u64::MAX }),
        EntryId { segment, entry } => Some(EntryId { segment, entry: entry - 1 }),
    }
}
