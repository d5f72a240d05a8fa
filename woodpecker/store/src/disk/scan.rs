//! Finding the batches of a file from their headers: for a volume that another process writes, or left behind.

use std::path::Path;

use bytes::Bytes;
use woodpecker_base::disk::DiskFile;
use woodpecker_core::ids::VolumeId;

use crate::{
    backend::StoreError,
    format::{Batch, BatchHead, FormatError, HEADER_BYTES, Header},
};

use super::{
    file::{ALIGN, align_up, corrupt, unreadable},
    index::FileIndex,
};

/// Most batches have their whole head in this.
const HEAD_READ: u64 = 4_096;
const SEARCH_READ: u64 = 1 << 20;

/// A data file that is scanned.
#[derive(Clone, Copy)]
pub(super) struct Scan<'a> {
    pub volume: VolumeId,
    pub path: &'a Path,
    pub file: &'a dyn DiskFile,
    /// The number that the file's first batch must have, where that is known.
    pub first_batch: Option<u64>,
    /// Batches from this one on do not exist: their writer said so.
    pub stopped: Option<u64>,
}

/// Why no batch starts at a place.
enum NoBatch {
    /// Nothing was written there, or not all of it: a tail that a crash cut off, or a write going on.
    Unfinished,
    Error(StoreError),
}

impl From<StoreError> for NoBatch {
    fn from(error: StoreError) -> Self {
        Self::Error(error)
    }
}

impl Scan<'_> {
    /// Adds the batches from `index.end` on to the index. Stops where there is none; what is there is then a torn last
    /// batch, or nothing. All of the last batch is checked; of those before it only the heads, since a writer starts a
    /// batch only when the one before it is durable (their blocks are checked when they are read).
    ///
    /// # Errors
    /// The file cannot be read; what is there makes no sense; a newer format.
    pub(super) fn extend(&self, index: &mut FileIndex) -> Result<(), StoreError> {
        let len = self.len()?;
        let mut unchecked: Option<(u64, BatchHead)> = None;
        loop {
            let (at, expected) = match &unchecked {
                Some((at, head)) => (align_up(at + head.header.batch_len()), Some(head.header.id.seq + 1)),
                None => (index.end, index.first_batch.map_or(self.first_batch, |_| Some(index.next_batch))),
            };
            match self.head(at, expected, len) {
                Ok(head) => {
                    if let Some((at, head)) = unchecked.replace((at, head)) {
                        self.push(index, at, &head)?;
                    }
                }
                Err(NoBatch::Unfinished) => break,
                Err(NoBatch::Error(error)) => return Err(error),
            }
        }
        match unchecked {
            Some((at, head)) if self.is_whole(at, &head)? => self.push(index, at, &head),
            _ => Ok(()),
        }
    }

    /// Fails if a batch of the volume lies behind the place where the scan stopped: then what is there was damaged, for
    /// a crash can only cut off the last batch.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`], with the file and the place.
    pub(super) fn check_end(&self, index: &mut FileIndex) -> Result<(), StoreError> {
        while let Some(later) = self.later_batch(index)? {
            let stopped_at = index.end;
            // A live writer may have finished the one and started the next since: then the scan gets on now.
            self.extend(index)?;
            if index.end == stopped_at {
                let detail = FormatError::Structure("a damaged batch: a later one of the volume is whole");
                let error = corrupt(self.path, stopped_at, &detail);
                tracing::error!(%error, later, "a volume is damaged");
                return Err(error);
            }
        }
        Ok(())
    }

    fn len(&self) -> Result<u64, StoreError> {
        self.file.len().map_err(|error| unreadable(self.path, &error))
    }

    fn read(&self, at: u64, bytes: u64) -> Result<Bytes, StoreError> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.file.read(bytes, at).map(Bytes::from).map_err(|error| unreadable(self.path, &error))
    }

    /// The head of the batch that starts at `at`.
    fn head(&self, at: u64, expected: Option<u64>, len: u64) -> Result<BatchHead, NoBatch> {
        if at >= len {
            return Err(NoBatch::Unfinished);
        }
        let mut bytes = self.read(at, HEAD_READ.min(len - at))?;
        let header = match Header::decode(&bytes) {
            Ok(header) => header,
            // The checksum of such a header holds: a newer program wrote it.
            Err(error @ (FormatError::Version(_) | FormatError::Kind(_))) => {
                return Err(corrupt(self.path, at, &error).into());
            }
            Err(_) => return Err(NoBatch::Unfinished),
        };
        if header.id.volume != self.volume {
            return Err(corrupt(self.path, at, &FormatError::Structure("a batch of another volume")).into());
        }
        if expected.is_some_and(|seq| seq != header.id.seq) {
            let detail = FormatError::Structure("a batch out of its turn: one before it is damaged or missing");
            return Err(corrupt(self.path, at, &detail).into());
        }
        let stopped = self.stopped.is_some_and(|stopped| header.id.seq >= stopped);
        if stopped || header.batch_len() > len - at {
            return Err(NoBatch::Unfinished);
        }
        if header.head_len() > bytes.len() as u64 {
            bytes = self.read(at, header.head_len())?;
        }
        BatchHead::decode(&bytes).map_err(|_| NoBatch::Unfinished)
    }

    fn is_whole(&self, at: u64, head: &BatchHead) -> Result<bool, StoreError> {
        Ok(Batch::decode(&self.read(at, head.header.batch_len())?).is_ok())
    }

    fn push(&self, index: &mut FileIndex, at: u64, head: &BatchHead) -> Result<(), StoreError> {
        let body = at + head.header.head_len();
        let end = align_up(at + head.header.batch_len());
        index.push(head.header.id.seq, body, &head.blocks, end).map_err(|error| corrupt(self.path, at, &error))
    }

    /// Looks for a batch of the volume behind the place where the scan stopped, and says where one starts.
    fn later_batch(&self, index: &FileIndex) -> Result<Option<u64>, StoreError> {
        let len = self.len()?;
        let known = index.first_batch.map(|_| index.next_batch).or(self.first_batch).unwrap_or_default();
        let mut at = index.end + ALIGN;
        while at < len {
            let bytes = self.read(at, SEARCH_READ.min(len - at))?;
            let pages = bytes.chunks(usize::try_from(ALIGN).unwrap_or(HEADER_BYTES));
            for (page, offset) in pages.zip((at..).step_by(usize::try_from(ALIGN).unwrap_or(HEADER_BYTES))) {
                let found = Header::decode(page).is_ok_and(|header| {
                    header.id.volume == self.volume
                        && header.id.seq > known
                        && self.stopped.is_none_or(|stopped| header.id.seq < stopped)
                });
                if found {
                    return Ok(Some(offset));
                }
            }
            if bytes.is_empty() {
                break;
            }
            at += bytes.len() as u64;
        }
        Ok(None)
    }
}
