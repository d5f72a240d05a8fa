//! The one seam between the engine and a medium.
//!
//! A backend keeps segments: append → durable ack in order, read a range, follow the tail, fence, delete. Every
//! implementation runs the same conformance suite (module `conformance`).

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use woodpecker_core::ids::{Epoch, SegmentKey, StoreId, VolumeId};

pub use woodpecker_core::ids::Placement;

/// What a segment's writer is told, in order, from the volume's own thread or task. Calls are short and never block.
/// They never come from inside [`SegmentWriter::append`], nor while a lock is held that `append` takes: the owner calls
/// `append` under a lock of its own.
pub trait SegmentOwner: Send + Sync + fmt::Debug {
    /// Every entry below `next` is durable and readable. `next` only grows; one call may cover many appends.
    fn acked(&self, next: u64);

    /// The segment takes no more appends. Entries not acked before this call have an unknown outcome, except where
    /// [`SegmentEnd`] says more. Called at most once, and nothing is called after it.
    fn ended(&self, end: SegmentEnd);
}

/// Why a segment takes no more appends.
#[derive(Debug, Clone)]
pub enum SegmentEnd {
    /// Another process fenced this segment: its log has, or is about to have, another writer.
    Fenced,
    /// The segment cannot go on where it is: another process fenced the volume because of some other segment in it, or a
    /// replica was lost. The owner, if it still owns the log by epoch, closes the segment where it was acked and appends
    /// the rest to a new one; once that is recorded, what was not acked is never seen.
    Displaced,
    /// The medium failed and the volume stopped for good. Reads go on.
    Failed(StoreError),
}

/// The appending side of one open segment.
pub trait SegmentWriter: Send + Sync + fmt::Debug {
    /// Where the segment lives; written to metadata before the first append.
    fn placement(&self) -> &Placement;

    /// Queues entries; they get the next numbers, in call order, and are never split over two blocks. Returns the first
    /// number at once; durability is told to the [`SegmentOwner`]. The caller bounds what it has in flight, in bytes.
    ///
    /// # Errors
    /// [`StoreError::Ended`] when the segment takes no more appends (the owner was or is being told why);
    /// [`StoreError::TooLarge`] when the entries cannot fit one block; [`StoreError::Unavailable`] when the process has
    /// more in flight than the backend's hard bound. Neither takes numbers.
    fn append(&self, entries: Vec<Bytes>) -> Result<u64, StoreError>;
}

/// The reading side of one segment.
#[async_trait]
pub trait SegmentReader: Send + Sync + fmt::Debug {
    /// Entries from number `from` on, in order and without a gap: at least one, then as many as fit `max_bytes`.
    /// An empty answer means that `from` is not durable yet, as far as this process can know now.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] instead of wrong data; [`StoreError::Unavailable`] to try again.
    async fn read(&self, from: u64, max_bytes: usize) -> Result<Vec<Bytes>, StoreError>;

    /// As [`SegmentReader::read`], but nothing from entry `limit` on, which another call reads, maybe at the same time.
    ///
    /// # Errors
    /// As [`SegmentReader::read`].
    async fn read_before(&self, from: u64, limit: u64, max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        let mut entries = self.read(from, max_bytes).await?;
        entries.truncate(usize::try_from(limit.saturating_sub(from)).unwrap_or(usize::MAX));
        Ok(entries)
    }

    /// How many entries are durable, as far as this process can know now: everything below may be read.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] to try again.
    async fn tail(&self) -> Result<u64, StoreError>;

    /// Resolves when entry `from` may be readable. Pushed when the writer is in this process; never spins.
    async fn readable(&self, from: u64);
}

/// A medium that keeps segments.
///
/// - **Order**: entries of a segment are numbered from 0 without a gap, in the order of `append` calls.
/// - **Ack**: `acked(n)` is called only when every entry below `n` survives what the medium promises to survive, and
///   only while the segment is not fenced.
/// - **Fence**: once `fence` returned tail `t`, no writer of the segment is ever told `acked(n)` with `n > t`, and every
///   entry that was ever acked is below `t` and stays readable. Fencing twice gives the same tail.
/// - **Truth**: a read returns what was appended or an error; never other bytes.
#[async_trait]
pub trait Backend: Send + Sync + fmt::Debug + 'static {
    /// The name of the medium in configuration and metadata: `local`, `object`, `quorum`, `memory`.
    fn name(&self) -> &'static str;

    /// Largest total of entry bytes one `append` takes.
    fn max_append_bytes(&self) -> usize;

    /// Starts a segment of the log's owner at `epoch`, somewhere this process can write. Nothing is stored until the first
    /// append, and a segment that nothing was ever appended to reads, fences (tail 0) and deletes like any other, from any
    /// process. The same key may be created again while nothing was appended to it: of several owners-to-be, only the one that metadata
    /// confirms appends.
    ///
    /// # Errors
    /// The medium failed or refuses writes.
    async fn create(
        &self,
        key: SegmentKey,
        epoch: Epoch,
        owner: Arc<dyn SegmentOwner>,
    ) -> Result<Arc<dyn SegmentWriter>, StoreError>;

    /// Opens a segment for reading. `end` is the entry count of a closed segment, `None` while it is open; nothing at or
    /// beyond `end` is ever returned.
    ///
    /// # Errors
    /// The volume cannot be read.
    async fn open(
        &self,
        key: SegmentKey,
        placement: &Placement,
        end: Option<u64>,
    ) -> Result<Arc<dyn SegmentReader>, StoreError>;

    /// Stops every writer of the segment, durably, and returns how many entries it holds.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] to try again; [`StoreError::Corrupt`] when the tail cannot be trusted;
    /// [`StoreError::Fenced`] when the medium knows of a later epoch.
    async fn fence(&self, key: SegmentKey, placement: &Placement, epoch: Epoch) -> Result<u64, StoreError>;

    /// Tells the medium that the segment is needed no more. Space comes back when nothing else shares it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] to try again. Deleting what is gone is no error.
    async fn delete(&self, key: SegmentKey, placement: &Placement) -> Result<(), StoreError>;

    /// Makes the medium the instance's, or checks that it is, before anything is written to it or removed from it.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] when it is another's, or holds what does not say whose it is; or to try again.
    async fn claim(&self, _instance: &str) -> Result<(), StoreError> {
        Ok(())
    }

    /// Whether this process can get at the segment at all: one on another machine's disk it can neither read nor free,
    /// and must not take for gone.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] to try again.
    async fn reaches(&self, _placement: &Placement) -> Result<bool, StoreError> {
        Ok(true)
    }

    /// Takes note of what the medium holds and of how far that goes now, for [`Backend::reclaim`].
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] to try again.
    async fn survey(&self) -> Result<Vec<Surveyed>, StoreError> {
        Ok(Vec::new())
    }

    /// Frees what is needed by no segment of `live`: all segments of this medium that metadata names, read *after* the
    /// survey. A segment is recorded before its first append, so what the survey saw and metadata does not name is needed
    /// by nobody. A volume without live segments is ended for good when nothing was written to it for `idle`; a replica
    /// is released when no survey of so long a time found it named. Says how many files, objects or replicas were removed.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] to try again.
    async fn reclaim(&self, _surveyed: &[Surveyed], _live: &[Named], _idle: Duration) -> Result<u64, StoreError> {
        Ok(0)
    }

    /// Waits until everything queued is durable or failed, and releases the volumes this process writes.
    async fn close(&self);
}

/// The volume, and the first batch of it to look at, that a placement of a medium made of volumes names.
pub(crate) fn volume_of(placement: &Placement) -> Result<(VolumeId, u64), StoreError> {
    match placement {
        Placement::Volume { volume, from_batch } => Ok((*volume, *from_batch)),
        Placement::Replicas(_) => Err(StoreError::Corrupt {
            what: format!("placement {placement}"),
            detail: "it names log stores and not a volume".to_owned(),
        }),
    }
}

/// A segment that metadata names, and where it is.
pub type Named = (SegmentKey, Placement);

/// What a survey found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surveyed {
    Volume(SurveyedVolume),
    /// A log store holds a replica of the segment.
    Replica(StoreId, SegmentKey),
}

impl Surveyed {
    /// The volume that was found, if it is one.
    pub(crate) fn volume(&self) -> Option<&SurveyedVolume> {
        match self {
            Self::Volume(volume) => Some(volume),
            Self::Replica(..) => None,
        }
    }
}

/// A volume as it was at a survey.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SurveyedVolume {
    pub volume: VolumeId,
    /// Batches below this number were there.
    pub end: u64,
    /// Nobody can write to it any more.
    pub ended: bool,
    /// When it was last written to, in milliseconds since the Unix epoch, by the medium's clock.
    pub written_ms: u64,
}

/// What a medium can answer instead of doing what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    #[error("{what}: checksum or structure does not hold: {detail}")]
    Corrupt { what: String, detail: String },
    #[error("{what} is gone")]
    NotFound { what: String },
    /// It belongs to others; nothing in it was read, changed or removed.
    #[error("{what} is not ours: {detail}")]
    Foreign { what: String, detail: String },
    #[error("{bytes} bytes in one append, at most {limit} fit")]
    TooLarge { bytes: usize, limit: usize },
    #[error("the segment takes no more appends")]
    Ended,
    /// Who asked was overtaken and owns the log no more.
    #[error("{what} is a later owner's")]
    Fenced { what: String },
    #[error("volume stopped after a failed write: {0}")]
    Failed(Arc<str>),
    #[error("storage unavailable: {0}")]
    Unavailable(Arc<str>),
}

impl StoreError {
    /// A stable code for documentation and programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Corrupt { .. } => "STORE_CORRUPT",
            Self::NotFound { .. } => "STORE_NOT_FOUND",
            Self::Foreign { .. } => "STORE_FOREIGN",
            Self::TooLarge { .. } => "STORE_TOO_LARGE",
            Self::Ended => "STORE_ENDED",
            Self::Fenced { .. } => "STORE_FENCED",
            Self::Failed(_) => "STORE_FAILED",
            Self::Unavailable(_) => "STORE_UNAVAILABLE",
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// Whether what was asked may still have happened.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Unavailable(_))
    }
}
