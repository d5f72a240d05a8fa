//! Reading a sealed segment straight from object storage.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use woodpecker_core::{
    ids::SegmentKey,
    record::{Sealed, SealedRun},
};

use super::{
    format::RunId,
    store::{RunIndex, SealedStore, corrupt},
};
use crate::{
    backend::{SegmentReader, StoreError},
    format::FormatError,
};

/// The entries of one sealed segment.
#[derive(Debug)]
pub struct SealedReader {
    store: Arc<SealedStore>,
    key: SegmentKey,
    sealed: Sealed,
    entries: u64,
}

impl SealedReader {
    pub(super) fn new(store: Arc<SealedStore>, key: SegmentKey, sealed: &Sealed, entries: u64) -> Self {
        Self { store, key, sealed: sealed.clone(), entries }
    }

    fn id(&self, run: SealedRun) -> RunId {
        RunId { key: self.key, seal: self.sealed.id, first: run.first }
    }

    /// The run with the entry, and what it holds.
    async fn index(&self, entry: u64) -> Result<Arc<RunIndex>, StoreError> {
        let at = self.sealed.runs.partition_point(|run| run.first <= entry).checked_sub(1);
        let Some(run) = at.and_then(|at| self.sealed.runs.get(at)).copied() else {
            let what = format!("sealed segment {}", self.key);
            return Err(StoreError::Corrupt { what, detail: format!("no object holds entry {entry}") });
        };
        let index = self.store.index(self.id(run), run.bytes).await?;
        let contents = &index.contents;
        let next = self.sealed.runs.get(at.map_or(0, |at| at + 1)).map_or(self.entries, |run| run.first);
        if contents.segment_entries != self.entries || run.first.checked_add(contents.entries) != Some(next) {
            return Err(corrupt(self.id(run), &FormatError::Structure("it holds other entries than its record says")));
        }
        Ok(index)
    }
}

#[async_trait]
impl SegmentReader for SealedReader {
    async fn read(&self, from: u64, max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        self.read_before(from, self.entries, max_bytes).await
    }

    async fn read_before(&self, from: u64, limit: u64, max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        let (mut next, mut bytes, limit) = (from, 0, limit.min(self.entries));
        let mut entries: Vec<Bytes> = Vec::new();
        while next < limit {
            let index = self.index(next).await?;
            let number = index.group_of(next);
            let group = self.store.group(&index, number).await?;
            let skip = next.checked_sub(group.first).and_then(|skip| usize::try_from(skip).ok());
            let found = skip.and_then(|skip| group.entries.get(skip..)).unwrap_or_default();
            if found.is_empty() {
                return Err(corrupt(index.contents.run, &FormatError::Structure("an entry is missing")));
            }
            for entry in found.iter().take(usize::try_from(limit - next).unwrap_or(usize::MAX)) {
                if !entries.is_empty() && bytes + entry.len() > max_bytes {
                    return Ok(entries);
                }
                bytes += entry.len();
                entries.push(entry.clone());
                next += 1;
            }
        }
        Ok(entries)
    }

    async fn tail(&self) -> Result<u64, StoreError> {
        Ok(self.entries)
    }

    async fn readable(&self, from: u64) {
        // Nothing comes after the end.
        if from >= self.entries {
            std::future::pending().await
        }
    }
}
