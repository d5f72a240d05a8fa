//! Follows a WAL that this node appends to, message by message in log order, without taking part in its heartbeats.

use std::sync::Arc;

use tokio::sync::watch;
use woodpecker::{Entry, EntryId, Log, Position, ReadError, Reader};

use super::seen::Seen;
use crate::wal::{
    Stored,
    buffer::{Buffer, Page},
    chunk::Joiner,
    scanner::before,
};

/// Bytes taken from the buffer at a time.
const PAGE_BYTES: usize = 4 << 20;

/// See the module.
pub struct Follower {
    log: Log,
    buffer: Arc<Buffer>,
    written: watch::Receiver<()>,
    /// The last entry met.
    cursor: EntryId,
    /// Reads what the buffer does not hold any more.
    behind: Option<Box<Reader>>,
    joiner: Joiner,
}

/// What came next.
#[derive(Debug)]
pub enum Batch {
    Memory(Vec<Arc<Stored>>),
    Log(Vec<Entry>),
}

impl Follower {
    /// Follows what comes after `cursor`.
    pub fn after(cursor: EntryId, log: Log, buffer: Arc<Buffer>) -> Self {
        let written = buffer.written();
        Self { log, buffer, written, cursor, behind: None, joiner: Joiner::default() }
    }

    /// The last entry that was given out.
    pub fn cursor(&self) -> EntryId {
        self.cursor
    }

    /// Whether nothing is left that was appended so far.
    pub fn is_at_end(&self) -> bool {
        self.cursor >= self.buffer.watermark().last
    }

    /// The next messages, at least one. Cancel-safe.
    ///
    /// # Errors
    /// The log's; the same call may go on where it was.
    pub async fn next(&mut self) -> Result<Batch, ReadError> {
        loop {
            // In memory a message in pieces has the id of its first one, which is behind us while we read the others.
            if self.buffer.covers(self.cursor) && !self.joiner.is_amid() {
                self.behind = None;
            } else {
                let reader = self.behind.get_or_insert_with(|| Box::new(self.log.reader(Position::After(self.cursor))));
                let entries = match reader.next().await {
                    // Who truncated knew that it was not needed, and what is there now may be in memory only for long.
                    Err(ReadError::PositionLost { earliest }) => {
                        tracing::warn!(log = self.log.name(), %earliest, "what was to be followed was truncated");
                        self.cursor = before(earliest).map_or(self.cursor, |truncated| truncated.max(self.cursor));
                        self.behind = None;
                        self.joiner.end();
                        continue;
                    }
                    read => read?,
                };
                self.cursor = entries.last().map_or(self.cursor, |newest| newest.id);
                let records: Vec<_> = entries.into_iter().filter_map(|entry| record(&mut self.joiner, entry)).collect();
                if !records.is_empty() {
                    return Ok(Batch::Log(records));
                }
                continue;
            }
            self.written.borrow_and_update();
            match self.buffer.read(self.cursor, PAGE_BYTES) {
                Page::Messages { messages, .. } => match messages.last() {
                    Some(newest) => {
                        self.cursor = newest.id;
                        return Ok(Batch::Memory(messages));
                    }
                    // The sender lives as long as the buffer.
                    None => drop(self.written.changed().await),
                },
                Page::Evicted => {}
            }
        }
    }
}

/// The record that an entry is, or completes.
fn record(joiner: &mut Joiner, entry: Entry) -> Option<Entry> {
    // What is no message by itself may be a piece of one.
    if Seen::read(entry.id, &entry.payload).is_ok() {
        joiner.end();
        return Some(entry);
    }
    joiner.record(entry.id, entry.payload).map(|(id, payload)| Entry { id, payload })
}
