//! Reading a log in order, from sealed past to the moving tail.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use tokio::select;
use woodpecker_core::{ids::SegmentKey, record::OpenSegment};
use woodpecker_store::backend::{SegmentReader, StoreError};

use self::ahead::{Ahead, CHUNK_BYTES};
use crate::{
    EntryId, LogError, ReadError,
    catalog::{ONCE, PATIENCE},
    client::Inner,
    holds::Hold,
    view::{Form, Place, View},
};

mod ahead;

/// Where a reader starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// The first entry that was not truncated.
    Earliest,
    /// After the last entry that is durable when the reader first reads.
    Latest,
    /// This entry, or the first one after it if it does not exist.
    At(EntryId),
    /// The first entry after this one.
    After(EntryId),
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub id: EntryId,
    pub payload: Bytes,
}

/// A cursor over a log; costs nothing while it waits.
pub struct Reader {
    client: Arc<Inner>,
    view: Arc<View>,
    /// The changes of the view that are taken into account.
    seen: u64,
    start: Position,
    /// The smallest id that the next entry can have; `None` until the first read.
    next: Option<EntryId>,
    ahead: Ahead,
    tail: Option<Tail>,
    /// Keeps what was not read from being collected.
    hold: Option<Hold>,
}

/// The open segment that is being followed.
struct Tail {
    segment: u64,
    reader: Arc<dyn SegmentReader>,
    /// The last read was so full that there is probably more than a reader at the tail meets.
    behind: bool,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("log", &self.view.name)
            .field("start", &self.start)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Reader {
    pub(crate) fn new(client: Arc<Inner>, view: Arc<View>, start: Position) -> Self {
        Self { client, view, seen: 0, start, next: None, ahead: Ahead::default(), tail: None, hold: None }
    }

    /// Registers the reader under a name: from its position on, nothing is collected as long as this process lives and
    /// the reader is not dropped, even if it is truncated meanwhile. Says where it starts.
    pub(crate) async fn register(&mut self, name: &str) -> Result<EntryId, ReadError> {
        let start = self.find_start().await?;
        let hold = self.client.holds.add(&self.view, name, start).await?;
        self.hold = Some(hold);
        // The registration comes first: what is still there now will stay.
        let exists = start.segment >= self.view.log().0.growing_from()
            || self.client.catalog.segment(self.view.id, start.segment, Some(PATIENCE)).await?.is_some();
        match self.view.truncated() {
            Some(truncated) if !exists && start <= truncated => {
                Err(ReadError::PositionLost { earliest: truncated.successor() })
            }
            _ => Ok(start),
        }
    }

    /// The next entries, at least one; waits at the tail. Cancel-safe: an entry is either returned or still ahead.
    ///
    /// # Errors
    /// [`ReadError::PositionLost`] after truncation; checksum errors instead of wrong data; after a retryable error the
    /// same call goes on where it was.
    pub async fn next(&mut self) -> Result<Vec<Entry>, ReadError> {
        // The position moves, and entries leave the read-ahead, only where no await follows before the return.
        loop {
            self.seen = self.view.changes.get();
            let next = match self.next {
                Some(next) => next,
                None => self.find_start().await?,
            };
            self.check_truncated(next)?;
            self.ahead.plan(&self.client, &self.view, next);
            if let Some(read) = self.ahead.next().await {
                match read {
                    Ok((first, entries)) => return Ok(self.deliver(first, entries)),
                    Err((segment, form, error)) => self.recover(segment, form, error).await?,
                }
                continue;
            }
            match self.view.place(next.segment) {
                Place::Ended(segment) if next.entry < segment.entries => {}
                Place::Ended(_) => self.advance(next.segment),
                Place::Open(open) => match self.read_tail(&open, next).await {
                    Ok(Some(entries)) => return Ok(self.deliver(next, entries)),
                    Ok(None) => {}
                    Err(error) => self.recover(next.segment, Form::Open, error).await?,
                },
                Place::Ahead => self.wait().await,
                Place::Unknown => self.find_segment(next).await?,
                Place::Deleted => return Err(ReadError::Deleted),
            }
        }
    }

    fn deliver(&mut self, first: EntryId, payloads: Vec<Bytes>) -> Vec<Entry> {
        let count = payloads.len() as u64;
        self.next = Some(EntryId { segment: first.segment, entry: first.entry + count });
        let id = |entry| EntryId { segment: first.segment, entry };
        (first.entry..).zip(payloads).map(|(entry, payload)| Entry { id: id(entry), payload }).collect()
    }

    fn advance(&mut self, segment: u64) {
        let next = EntryId { segment: segment + 1, entry: 0 };
        self.next = Some(next);
        if let Some(hold) = &self.hold {
            hold.advance(next);
        }
    }

    fn check_truncated(&mut self, next: EntryId) -> Result<(), ReadError> {
        match self.view.truncated() {
            Some(truncated) if next <= truncated && self.hold.is_none() => {
                self.ahead.clear();
                Err(ReadError::PositionLost { earliest: truncated.successor() })
            }
            _ => Ok(()),
        }
    }

    async fn find_start(&mut self) -> Result<EntryId, ReadError> {
        let (log, _) = self.client.current(&self.view).await?;
        if !self.view.is_listed() {
            self.view.learn_all_closed(self.client.catalog.segments(self.view.id).await?);
        }
        let next = match self.start {
            Position::Earliest => log.earliest(),
            Position::At(id) => id,
            Position::After(id) => id.successor(),
            Position::Latest => {
                let nothing_yet = EntryId { segment: log.growing_from(), entry: 0 };
                let newest = self.client.open_tail(&log).await?;
                newest.map_or(nothing_yet, EntryId::successor).max(log.earliest())
            }
        };
        // Segments are numbered from 1.
        let next = next.max(EntryId { segment: 1, entry: 0 });
        self.next = Some(next);
        Ok(next)
    }

    /// Entries of the open segment, or `None` after waiting for a change.
    async fn read_tail(&mut self, open: &OpenSegment, next: EntryId) -> Result<Option<Vec<Bytes>>, StoreError> {
        let tail = match &mut self.tail {
            Some(tail) if tail.segment == open.segment => tail,
            _ => {
                let reader = self.client.open_segment(self.view.id, open, None).await?;
                self.tail.insert(Tail { segment: open.segment, reader, behind: true })
            }
        };
        if tail.behind {
            let durable = self.client.retrying.once(tail.reader.tail()).await?;
            tail.behind = false;
            if durable > next.entry {
                let reader = tail.reader.clone();
                self.ahead.plan_open(&self.client, self.view.id, reader, open, next.entry, durable);
                return Ok(None);
            }
        }
        let reader = tail.reader.clone();
        let entries = self.client.retrying.once(reader.read(next.entry, CHUNK_BYTES)).await?;
        if entries.is_empty() {
            self.client.views.follow(&self.view);
            select! {
                biased;
                () = reader.readable(next.entry) => {}
                () = self.view.changes.above(self.seen) => {}
            }
            return Ok(None);
        }
        if let Some(tail) = &mut self.tail {
            tail.behind = entries.iter().map(Bytes::len).sum::<usize>() >= CHUNK_BYTES / 2;
        }
        Ok(Some(entries))
    }

    async fn wait(&mut self) {
        self.client.views.follow(&self.view);
        self.view.changes.above(self.seen).await;
    }

    /// The record moved on and the segment's own record was not met yet, or it is gone.
    async fn find_segment(&mut self, next: EntryId) -> Result<(), ReadError> {
        if let Some(closed) = self.client.catalog.segment(self.view.id, next.segment, Some(PATIENCE)).await? {
            let found = self.view.log();
            self.view.learn(found, [closed]);
            if !matches!(self.view.place(next.segment), Place::Unknown) {
                return Ok(());
            }
        }
        let (log, _) = self.client.read(&self.view).await?;
        match log.truncated {
            // What is left to read of this segment was nothing, and the rest of it was truncated.
            Some(truncated) if next > truncated && next.segment == truncated.segment => {
                self.advance(next.segment);
                Ok(())
            }
            Some(truncated) if next <= truncated => Err(ReadError::PositionLost { earliest: truncated.successor() }),
            _ if matches!(self.view.place(next.segment), Place::Unknown) => {
                let what = format!("the record of segment {}", SegmentKey { log: log.id, segment: next.segment });
                Err(StoreError::NotFound { what }.into())
            }
            _ => Ok(()),
        }
    }

    /// After an error: reading goes on if the segment is somewhere else by now, sealed say, and its old place was freed.
    /// Otherwise it was truncated or deleted, most likely, and that is the better answer.
    async fn recover(&mut self, segment: u64, form: Form, error: StoreError) -> Result<(), ReadError> {
        self.ahead.clear();
        self.tail = None;
        let place = match self.client.find(&self.view, segment, ONCE).await {
            Ok(place) => place,
            Err(LogError::Metadata(_)) if error.is_retryable() => return Err(error.into()),
            // What is not known now may be that all is well.
            Err(asked) => return Err(asked.into()),
        };
        self.check_truncated(self.next.unwrap_or(EntryId { segment, entry: 0 }))?;
        if place.form() == form { Err(error.into()) } else { Ok(()) }
    }
}
