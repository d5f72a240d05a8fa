//! Reading a log in order, from sealed past to the moving tail.

use bytes::Bytes;

use crate::{EntryId, ReadError};

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
#[derive(Debug)]
pub struct Reader {}

impl Reader {
    /// The next entries, at least one; waits at the tail. Cancel-safe: an entry is either returned or still ahead.
    ///
    /// # Errors
    /// [`ReadError::PositionLost`] after truncation; checksum errors instead of wrong data; after a retryable error the
    /// same call goes on where it was.
    pub async fn next(&mut self) -> Result<Vec<Entry>, ReadError> {
        std::future::pending().await
    }
}
