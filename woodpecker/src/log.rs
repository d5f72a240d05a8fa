//! A named log: its chain of segments, its truncation point, and the way to its writer and readers.

use std::{fmt, sync::Arc};

use futures::{StreamExt, TryStreamExt, stream};
use woodpecker_base::metadata::MetadataError;
use woodpecker_core::{
    ids::{LogId, SegmentKey},
    opening::CommitOutcome,
    record::{ClosedSegment, LogRecord, OpenSegment},
};
use woodpecker_store::backend::{SegmentReader, StoreError};

use crate::{
    EntryId, Epoch, LogError, OpenWriterError, Position, Reader, Writer,
    catalog::{Found, PATIENCE},
    client::Inner,
    takeover::take_over,
    view::View,
};

/// Segments whose data is deleted at the same time.
const DELETES_AT_ONCE: usize = 8;

/// A handle on a log. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    client: Arc<Inner>,
    view: Arc<View>,
}

/// What is known of a log.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LogDescription {
    pub name: String,
    pub id: u64,
    pub epoch: Epoch,
    /// Everything up to and including this entry was truncated.
    pub truncated: Option<EntryId>,
    pub segments: Vec<SegmentDescription>,
}

/// What is known of a segment.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SegmentDescription {
    pub segment: u64,
    pub backend: String,
    /// The volume, or the log stores, that hold it.
    pub placement: String,
    /// How many entries it holds; `None` while it is open.
    pub entries: Option<u64>,
    /// Bytes of its entries; `None` while it is open, and when it was closed by fencing.
    pub bytes: Option<u64>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("name", &self.view.name).field("id", &self.view.id).finish_non_exhaustive()
    }
}

impl Log {
    pub(crate) fn new(client: Arc<Inner>, view: Arc<View>) -> Self {
        Self { client, view }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.view.name
    }

    /// Takes the log for writing: raises its epoch, fences and closes what was open, opens a new segment. The writer
    /// before it, wherever it runs, never acks again.
    ///
    /// # Errors
    /// [`OpenWriterError::Preempted`] if a later writer came in between; storage and metadata errors to try again.
    pub async fn open_writer(&self) -> Result<Writer, OpenWriterError> {
        take_over(&self.client, &self.view).await
    }

    /// A reader that starts at `position` and goes on past the tail.
    #[must_use]
    pub fn reader(&self, position: Position) -> Reader {
        Reader::new(self.client.clone(), self.view.clone(), position)
    }

    /// The last durable entry, or `None` for a log that holds none that was not truncated.
    ///
    /// # Errors
    /// Storage and metadata errors.
    pub async fn last_entry(&self) -> Result<Option<EntryId>, LogError> {
        let (log, _) = self.client.read(&self.view).await?;
        let last = self.client.last_entry(&log).await?;
        Ok(last.filter(|last| !log.is_truncated(*last)))
    }

    /// Gives up everything up to and including `up_to`, and deletes the segments that lie below it as a whole.
    /// Truncating backwards does nothing, and what does not exist yet cannot be truncated.
    ///
    /// # Errors
    /// The metadata store's, and storage errors of the deletion: the log is truncated then, and the next call deletes.
    pub async fn truncate(&self, up_to: EntryId) -> Result<(), LogError> {
        let mut attempts = self.client.retrying.attempts(Some(PATIENCE));
        let (before, truncated) = loop {
            let (log, revision) = self.client.read(&self.view).await?;
            let Some(up_to) = self.existing(&log, up_to).await? else { return Ok(()) };
            let Some(change) = log.truncate(up_to) else { break (log.truncated, log) };
            match self.client.catalog.commit(revision, &change).await? {
                CommitOutcome::Committed(revision) => {
                    self.view.learn((change.log.clone(), revision), []);
                    break (log.truncated, change.log);
                }
                CommitOutcome::Conflict | CommitOutcome::Unknown => {}
            }
            if !attempts.wait().await {
                let why = format!("the record of {:?} cannot be changed", self.view.name);
                return Err(MetadataError::Unavailable(why).into());
            }
        };
        let Some(up_to) = truncated.truncated else { return Ok(()) };
        let still_in = |at: EntryId| at.segment == up_to.segment;
        if before.is_some_and(still_in) && truncated.open.iter().any(|open| open.segment == up_to.segment) {
            return Ok(());
        }
        self.delete_below(up_to).await
    }

    /// `up_to`, or the last entry if that comes first: an entry appended later must not be born truncated.
    async fn existing(&self, log: &LogRecord, up_to: EntryId) -> Result<Option<EntryId>, LogError> {
        if up_to.segment < log.growing_from() {
            return Ok(Some(up_to));
        }
        Ok(self.client.last_entry(log).await?.map(|last| last.min(up_to)))
    }

    async fn delete_below(&self, truncated: EntryId) -> Result<(), LogError> {
        let closed = self.client.catalog.segments(self.view.id).await?;
        let below: Vec<ClosedSegment> = closed.into_iter().filter(|closed| closed.is_below(truncated)).collect();
        let deletes: Vec<_> = below.iter().map(|closed| self.client.delete(self.view.id, &closed.opened)).collect();
        stream::iter(deletes).buffer_unordered(DELETES_AT_ONCE).try_collect::<()>().await?;
        // The data first: a record that remains is deleted again, data without a record never.
        let numbers: Vec<u64> = below.iter().map(ClosedSegment::segment).collect();
        self.client.catalog.forget_segments(self.view.id, &numbers).await
    }

    /// What is known of it now.
    ///
    /// # Errors
    /// [`LogError::NotFound`], or the metadata store's.
    pub async fn describe(&self) -> Result<LogDescription, LogError> {
        let (log, _) = self.client.read(&self.view).await?;
        let closed = self.client.catalog.segments(self.view.id).await?.into_iter().map(|closed| SegmentDescription {
            segment: closed.opened.segment,
            backend: closed.opened.backend,
            placement: closed.opened.placement.to_string(),
            entries: Some(closed.entries),
            bytes: closed.bytes,
        });
        let open = log.open.iter().map(|open| SegmentDescription {
            segment: open.segment,
            backend: open.backend.clone(),
            placement: open.placement.to_string(),
            entries: None,
            bytes: None,
        });
        Ok(LogDescription {
            segments: closed.filter(|c| log.open.iter().all(|open| open.segment != c.segment)).chain(open).collect(),
            name: log.name.clone(),
            id: log.id.0,
            epoch: log.epoch,
            truncated: log.truncated,
        })
    }
}

impl Inner {
    /// The log's record, read now.
    pub async fn read(&self, view: &View) -> Result<Found, LogError> {
        match self.catalog.log(&view.name, Some(PATIENCE)).await? {
            Some(found) if found.0.id == view.id => {
                view.learn(found.clone(), []);
                Ok(found)
            }
            _ => {
                view.learn_deleted(None);
                Err(LogError::NotFound(view.name.clone()))
            }
        }
    }

    /// The log's record as it is now. While a writer of it is in this process, what is known here is just that.
    pub async fn current(&self, view: &View) -> Result<Found, LogError> {
        if view.has_writer() { Ok(view.log()) } else { self.read(view).await }
    }

    /// The last durable entry of the open segments.
    pub async fn open_tail(&self, log: &LogRecord) -> Result<Option<EntryId>, LogError> {
        for open in log.open.iter().rev() {
            let tail = self
                .retrying
                .run(Some(PATIENCE), || async { self.open_segment(log.id, open, None).await?.tail().await })
                .await?;
            if let Some(entry) = tail.checked_sub(1) {
                return Ok(Some(EntryId { segment: open.segment, entry }));
            }
        }
        Ok(None)
    }

    /// The last durable entry, truncated or not, as long as its segment is known.
    pub async fn last_entry(&self, log: &LogRecord) -> Result<Option<EntryId>, LogError> {
        if let Some(last) = self.open_tail(log).await? {
            return Ok(Some(last));
        }
        let closed = self.catalog.segments(log.id).await?;
        let last = closed.iter().rev().find(|closed| closed.entries > 0);
        Ok(last.map(|closed| EntryId { segment: closed.segment(), entry: closed.entries.saturating_sub(1) }))
    }

    /// Opens a segment for reading.
    pub async fn open_segment(
        &self,
        log: LogId,
        segment: &OpenSegment,
        end: Option<u64>,
    ) -> Result<Arc<dyn SegmentReader>, StoreError> {
        let key = SegmentKey { log, segment: segment.segment };
        let backend = self.backend(&segment.backend)?;
        self.retrying.once(backend.open(key, &segment.placement, end)).await
    }
}
