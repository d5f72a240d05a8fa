//! A read stream. It reads only when its client takes what was read, and at the tail it waits without a timer.

use std::sync::Arc;

use streaming_proto::logstore::{ReadRequest, ReadResponse};
use woodpecker_store::backend::SegmentReader;

use crate::{
    metrics,
    refusal::Refusal,
    replica::{Part, Replica},
    store::Store,
};

/// One answer carries no more than this, beside its first entry.
const MOST_BYTES: usize = 8 << 20;
const USUAL_BYTES: usize = 1 << 20;

/// Entries of one replica in order.
#[derive(Debug)]
pub struct ReadStream {
    store: Arc<Store>,
    /// `None` if nothing was ever heard of the replica.
    replica: Option<Arc<Replica>>,
    next: u64,
    /// Entries below are wanted, acked or not; `None` for those that are known to be acked.
    end: Option<u64>,
    follow: bool,
    max_bytes: usize,
    reader: Option<(Part, Arc<dyn SegmentReader>)>,
}

impl ReadStream {
    pub fn new(store: Arc<Store>, replica: Option<Arc<Replica>>, request: &ReadRequest) -> Self {
        let max_bytes = match usize::try_from(request.max_bytes).unwrap_or(usize::MAX) {
            0 => USUAL_BYTES,
            asked => asked.min(MOST_BYTES),
        };
        let end = Some(request.end).filter(|end| *end > 0);
        Self { store, replica, next: request.from, end, follow: request.follow, max_bytes, reader: None }
    }

    /// The next answer; `None` at the end of what was asked for.
    pub async fn next(&mut self) -> Result<Option<ReadResponse>, Refusal> {
        let Some(replica) = self.replica.clone() else { return Ok(None) };
        loop {
            if self.end.is_some_and(|end| self.next >= end) {
                return Ok(None);
            }
            let limit = replica.readable(self.end)?;
            if self.next < limit {
                return self.read(&replica, limit).await.map(Some);
            }
            if !self.follow {
                return Ok(None);
            }
            replica.until_readable(self.next, self.end).await;
        }
    }

    async fn read(&mut self, replica: &Arc<Replica>, limit: u64) -> Result<ReadResponse, Refusal> {
        let part = replica.part(self.next)?;
        let reader = match &self.reader {
            Some((kept, reader)) if *kept == part => reader,
            // Another part, or the volume that held what was to come of it failed.
            _ => {
                let reader = self.store.reader(replica, &part).await?;
                &self.reader.insert((part, reader)).1
            }
        };
        let read = reader.read(self.next, self.max_bytes).await.map_err(Refusal::from);
        // What was released meanwhile may be gone by right.
        replica.readable(self.end)?;
        let mut entries = read.inspect_err(|refusal| {
            if matches!(refusal, Refusal::Corrupt(_)) {
                metrics::corrupt();
                tracing::error!(replica = ?replica.key, %refusal, "a replica cannot be read");
            }
        })?;
        entries.truncate(usize::try_from(limit - self.next).unwrap_or(usize::MAX));
        if entries.is_empty() {
            return Err(Refusal::Corrupt(format!("entry {} is missing", self.next).into()));
        }
        let first = self.next;
        self.next += entries.len() as u64;
        replica.namespace.metrics.read(entries.iter().map(bytes::Bytes::len).sum());
        Ok(ReadResponse { first, entries, committed: replica.committed() })
    }
}

impl Drop for ReadStream {
    fn drop(&mut self) {
        if let Some(replica) = self.replica.take() {
            self.store.forget_blank(&replica);
        }
    }
}
