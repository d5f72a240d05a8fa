//! The one writer of a log.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;

use crate::{AppendError, EntryId, Epoch};

/// The appending side of a log. Shared by reference; order is the order of [`Writer::append`] calls.
///
/// It rolls segments and moves to a new volume by itself. The first [`AppendError::Fenced`] or
/// [`AppendError::Failed`] is final: every later append gets the same.
#[derive(Debug)]
pub struct Writer {}

/// Where entries went: `count` consecutive entries of one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    pub first: EntryId,
    pub count: u64,
}

/// Resolves when the entries are durable, or to why they may not be. Appends of one writer resolve in order; dropping
/// this does not take the append back.
#[derive(Debug)]
pub struct Append {}

impl Future for Append {
    type Output = Result<Appended, AppendError>;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Err(AppendError::Closed))
    }
}

impl Writer {
    /// The epoch this writer owns the log with.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        Epoch::default()
    }

    /// Waits until less than the in-flight limit is queued.
    pub async fn reserve(&self) {}

    /// Queues entries, all of them in one segment and contiguous.
    pub fn append(&self, _entries: Vec<Bytes>) -> Append {
        Append {}
    }

    /// Resolves when this writer will never ack again, with the reason.
    pub async fn ended(&self) -> AppendError {
        AppendError::Closed
    }

    /// Waits for what is in flight, closes the open segment and gives the log up without a fence, so that the next owner
    /// finds a clean end.
    ///
    /// # Errors
    /// What kept the segment from being closed; the next owner will fence it.
    pub async fn close(&self) -> Result<(), AppendError> {
        Ok(())
    }
}
