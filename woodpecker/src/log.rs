//! A named log: its chain of segments, its truncation point, and the way to its writer and readers.

use crate::{EntryId, Epoch, LogError, OpenWriterError, Position, Reader, Writer};

/// A handle on a log. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Log {}

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
    pub volume: String,
    /// How many entries it holds; `None` while it is open.
    pub entries: Option<u64>,
    pub bytes: Option<u64>,
}

impl Log {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        ""
    }

    /// Takes the log for writing: raises its epoch, fences and closes what was open, opens a new segment. The writer
    /// before it, wherever it runs, never acks again.
    ///
    /// # Errors
    /// [`OpenWriterError::Preempted`] if a later writer came in between; storage and metadata errors to try again.
    pub async fn open_writer(&self) -> Result<Writer, OpenWriterError> {
        Err(OpenWriterError::Preempted)
    }

    /// A reader that starts at `position` and goes on past the tail.
    #[must_use]
    pub fn reader(&self, _position: Position) -> Reader {
        Reader {}
    }

    /// The last durable entry, or `None` for a log that holds none.
    ///
    /// # Errors
    /// Storage and metadata errors.
    pub async fn last_entry(&self) -> Result<Option<EntryId>, LogError> {
        Ok(None)
    }

    /// Gives up everything up to and including `up_to`. Truncating backwards is no error and does nothing.
    ///
    /// # Errors
    /// The metadata store's.
    pub async fn truncate(&self, _up_to: EntryId) -> Result<(), LogError> {
        Ok(())
    }

    /// What is known of it now.
    ///
    /// # Errors
    /// The metadata store's.
    pub async fn describe(&self) -> Result<LogDescription, LogError> {
        Err(LogError::NotFound(String::new()))
    }
}
