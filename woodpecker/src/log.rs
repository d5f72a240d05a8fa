//! A named log: its chain of segments, its truncation point, and the way to its writer and readers.

use std::{fmt, sync::Arc, time::Duration};

use woodpecker_base::metadata::MetadataError;
use woodpecker_core::{
    chain::Change,
    ids::{LogId, SegmentKey},
    opening::CommitOutcome,
    record::{LogRecord, LogSettings, OpenSegment},
};
use woodpecker_store::backend::{SegmentReader, StoreError};

use crate::{
    EntryId, Epoch, LogError, OpenWriterError, Position, ReadError, Reader, Writer,
    catalog::{Found, PATIENCE},
    client::Inner,
    takeover::take_over,
    view::{Extent, Place, View},
};

/// A handle on a log. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    pub(crate) client: Arc<Inner>,
    pub(crate) view: Arc<View>,
}

/// What is known of a log.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LogDescription {
    pub name: String,
    pub id: u64,
    pub epoch: Epoch,
    /// Everything up to and including this entry was truncated.
    pub truncated: Option<EntryId>,
    pub settings: LogSettings,
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
    /// Wall time in milliseconds.
    pub created_ms: u64,
    /// Wall time in milliseconds; `None` while it is open.
    pub closed_ms: Option<u64>,
    /// Bytes of its final form in object storage, if it has one.
    pub sealed_bytes: Option<u64>,
    /// Whether the final form is the only one left.
    pub freed: bool,
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

    /// As [`Log::reader`], registered under a name that operators see: from its position on nothing is collected, truncated
    /// or not, while the reader exists and for a minute after its process died. Only such a reader may start at, and
    /// read on in, what is truncated.
    ///
    /// # Errors
    /// [`ReadError::PositionLost`] when what it asks for was collected already; the metadata store's.
    pub async fn registered_reader(&self, name: &str, position: Position) -> Result<Reader, ReadError> {
        let mut reader = self.reader(position);
        reader.register(name).await?;
        Ok(reader)
    }

    /// Where to start to meet every entry that was appended at or after a wall time, in milliseconds since the Unix
    /// epoch: the first entry of the first segment that was still open then. It comes no later than those entries, as
    /// far as the clocks of the log's owners agree, and a segment's length earlier at most.
    ///
    /// # Errors
    /// The metadata store's.
    pub async fn position_at(&self, wall_ms: u64) -> Result<EntryId, LogError> {
        let (log, _) = self.client.read(&self.view).await?;
        let closed = self.client.catalog.segments(self.view.id).await?;
        let still_open = closed.iter().find(|closed| closed.closed_ms >= wall_ms && closed.entries > 0);
        let segment = still_open.map_or_else(|| log.growing_from(), |closed| closed.segment());
        Ok(EntryId { segment, entry: 0 }.max(log.earliest()))
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

    /// Gives up everything up to and including `up_to`. Nobody reads it any more but who is registered; maintenance
    /// deletes it when nobody can need it. Truncating backwards does nothing, and what does not exist yet cannot be
    /// truncated.
    ///
    /// # Errors
    /// Storage and metadata errors.
    pub async fn truncate(&self, up_to: EntryId) -> Result<(), LogError> {
        let (log, _) = self.client.read(&self.view).await?;
        let Some(up_to) = self.existing(&log, up_to).await? else { return Ok(()) };
        self.change(|log| log.truncate(up_to)).await
    }

    /// Changes what is wanted of the log. A backend holds from its next segment on, wherever its writer runs; entries
    /// stay where they are, and readers walk across.
    ///
    /// # Errors
    /// The metadata store's.
    pub async fn alter(&self, alter: impl Fn(&mut LogSettings)) -> Result<(), LogError> {
        self.change(|log| {
            let mut altered = log.clone();
            alter(&mut altered.settings);
            (altered != *log).then_some(Change { log: altered, closed: Vec::new() })
        })
        .await
    }

    /// Makes a change of the record that anybody may make; `None` is no change.
    async fn change(&self, change: impl Fn(&LogRecord) -> Option<Change>) -> Result<(), LogError> {
        let mut attempts = self.client.retrying.attempts(Some(PATIENCE));
        loop {
            let (log, revision) = self.client.read(&self.view).await?;
            let Some(change) = change(&log) else { return Ok(()) };
            if let CommitOutcome::Committed(revision) = self.client.catalog.commit(revision, &change).await? {
                self.view.learn((change.log, revision), []);
                return Ok(());
            }
            if !attempts.wait().await {
                let why = format!("the record of {:?} cannot be changed", self.view.name);
                return Err(MetadataError::Unavailable(why).into());
            }
        }
    }

    /// `up_to`, or the last entry if that comes first: an entry appended later must not be born truncated.
    async fn existing(&self, log: &LogRecord, up_to: EntryId) -> Result<Option<EntryId>, LogError> {
        if up_to.segment < log.growing_from() {
            return Ok(Some(up_to));
        }
        Ok(self.client.last_entry(log).await?.map(|last| last.min(up_to)))
    }

    /// What is known of it now.
    ///
    /// # Errors
    /// [`LogError::NotFound`], or the metadata store's.
    pub async fn describe(&self) -> Result<LogDescription, LogError> {
        let (log, _) = self.client.read(&self.view).await?;
        let closed = self.client.catalog.segments(self.view.id).await?.into_iter().map(|closed| SegmentDescription {
            entries: Some(closed.entries),
            bytes: closed.bytes,
            closed_ms: Some(closed.closed_ms),
            sealed_bytes: closed.sealed.as_ref().map(|sealed| sealed.runs.iter().map(|run| run.bytes).sum()),
            freed: closed.sealed.as_ref().is_some_and(|sealed| sealed.freed),
            ..SegmentDescription::new(&closed.opened)
        });
        let open = log.open.iter().map(SegmentDescription::new);
        Ok(LogDescription {
            segments: closed.filter(|c| log.open.iter().all(|open| open.segment != c.segment)).chain(open).collect(),
            name: log.name.clone(),
            id: log.id.0,
            epoch: log.epoch,
            truncated: log.truncated,
            settings: log.settings,
        })
    }
}

impl SegmentDescription {
    fn new(opened: &OpenSegment) -> Self {
        Self {
            segment: opened.segment,
            backend: opened.backend.clone(),
            placement: opened.placement.to_string(),
            entries: None,
            bytes: None,
            created_ms: opened.created_ms,
            closed_ms: None,
            sealed_bytes: None,
            freed: false,
        }
    }
}

impl Inner {
    /// The log's record, read now.
    pub async fn read(&self, view: &View) -> Result<Found, LogError> {
        self.read_for(view, Some(PATIENCE)).await
    }

    async fn read_for(&self, view: &View, patience: Option<Duration>) -> Result<Found, LogError> {
        match self.catalog.log(&view.name, patience).await? {
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

    /// Where a segment is by its records, read now. One that could not be read may be somewhere else than was known: sealed,
    /// say, and its old place was freed; or gone with what was truncated.
    pub async fn find(&self, view: &View, segment: u64, patience: Option<Duration>) -> Result<Place, LogError> {
        self.read_for(view, patience).await?;
        match self.catalog.segment(view.id, segment, patience).await? {
            Some(closed) => {
                let extent = Extent::from(&closed);
                view.learn(view.log(), [closed]);
                Ok(Place::Ended(extent))
            }
            None => {
                view.forget(segment);
                Ok(view.place(segment))
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

    /// Opens a segment that gets no more entries for reading: its final form, if it has one.
    pub async fn open_extent(&self, log: LogId, extent: &Extent) -> Result<Arc<dyn SegmentReader>, StoreError> {
        let key = SegmentKey { log, segment: extent.opened.segment };
        match &extent.sealed {
            Some(sealed) if sealed.freed || self.sealed().is_ok() => {
                Ok(self.sealed()?.open(key, sealed, extent.entries))
            }
            _ => self.open_segment(log, &extent.opened, Some(extent.entries)).await,
        }
    }

    /// Opens a segment where it was written.
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
