//! Sealing one segment: read it from wherever it was written, write its final form, read that back, name it in the
//! segment's record, and only then free the source. A crash between any two steps leaves objects that no record names,
//! or a source that is freed again.

use std::{collections::VecDeque, sync::Arc};

use tokio::task::JoinHandle;
use woodpecker_base::metadata::{Compare, MetadataError, Revision};
use woodpecker_core::{
    ids::{SealId, SegmentKey},
    opening::CommitOutcome,
    record::{ClosedSegment, Compression, Sealed, SealedRun},
};
use woodpecker_store::{
    backend::{SegmentReader, StoreError},
    seal::{Run, RunBuilder, SealedStore, Source},
};

use crate::{LogError, catalog::PATIENCE, client::Inner};

/// What one read of the source brings.
const READ_BYTES: usize = 4 << 20;
/// Runs of one segment on their way to the object store.
const RUNS_AT_ONCE: usize = 2;

/// What a segment's worker needs.
#[derive(Debug, Clone)]
pub(super) struct Work {
    pub client: Arc<Inner>,
    /// Holds while this process leads.
    pub guard: Compare,
}

/// A record with its revision; `None` when it is gone.
pub(super) type Changed = Option<(ClosedSegment, Revision)>;

/// Memory that sealing one segment takes: what is read, gathered, on its way, and read back.
pub(super) fn memory(store: &SealedStore) -> usize {
    2 * READ_BYTES + (1 + 2 * RUNS_AT_ONCE) * store.run_bytes()
}

impl Work {
    /// Brings a segment into its final form. The source stays.
    pub async fn seal(
        &self,
        key: SegmentKey,
        closed: &ClosedSegment,
        revision: Revision,
        compression: Compression,
    ) -> Result<Changed, LogError> {
        let seal = SealId(self.client.random.u128());
        let times = (closed.opened.created_ms, closed.closed_ms);
        let source = Source { key, seal, entries: closed.entries, compression, times };
        let runs = self.write(source, closed).await?;
        let sealed = Sealed { id: seal, runs, sealed_ms: self.client.clock.wall_ms(), freed: false };
        // Objects of an attempt that lost against another stay, and are swept: its commit may still be on its way.
        self.change(key, closed, revision, |closed| {
            closed.sealed.is_none().then(|| ClosedSegment { sealed: Some(sealed.clone()), ..closed.clone() })
        })
        .await
    }

    async fn write(&self, source: Source, closed: &ClosedSegment) -> Result<Vec<SealedRun>, LogError> {
        if source.entries == 0 {
            return Ok(Vec::new());
        }
        let store = self.client.sealed()?;
        // The end is what the metadata store says, whatever the medium believes.
        let open = || self.client.open_segment(source.key.log, &closed.opened, Some(source.entries));
        let reader = self.client.retrying.run(Some(PATIENCE), open).await?;
        let (mut next, mut runs, mut puts) = (0, Vec::new(), VecDeque::new());
        while next < source.entries {
            let run = self.gather(&*reader, source, next, store.run_bytes()).await?;
            next = run.next;
            if puts.len() == RUNS_AT_ONCE
                && let Some(put) = puts.pop_front()
            {
                runs.push(landed(put).await?);
            }
            let store = store.clone();
            puts.push_back(self.client.tasks.spawn_until_stopped(async move { store.put(&run).await }));
        }
        for put in puts {
            runs.push(landed(put).await?);
        }
        Ok(runs)
    }

    /// Reads the next run's entries.
    async fn gather(
        &self,
        reader: &dyn SegmentReader,
        source: Source,
        first: u64,
        run_bytes: usize,
    ) -> Result<Run, StoreError> {
        let mut builder = RunBuilder::new(source, first);
        while builder.next() < source.entries && builder.gathered() < run_bytes {
            let from = builder.next();
            let wanted = READ_BYTES.min(run_bytes.saturating_sub(builder.gathered()));
            let entries = self.client.retrying.run(Some(PATIENCE), || reader.read(from, wanted)).await?;
            if entries.is_empty() || entries.len() as u64 > source.entries - from {
                let what = format!("segment {}", source.key);
                let detail = format!("it should hold {} entries, and ends or goes on at {from}", source.entries);
                return Err(StoreError::Corrupt { what, detail });
            }
            for entry in entries {
                builder.push(entry)?;
            }
            tokio::task::yield_now().await;
        }
        builder.finish()
    }

    /// Frees the medium that a sealed segment was written to.
    pub async fn free(&self, key: SegmentKey, closed: &ClosedSegment, revision: Revision) -> Result<Changed, LogError> {
        self.client.delete(key.log, &closed.opened).await?;
        self.change(key, closed, revision, |closed| {
            let sealed = closed.sealed.as_ref().filter(|sealed| !sealed.freed)?;
            let sealed = Some(Sealed { freed: true, ..sealed.clone() });
            Some(ClosedSegment { sealed, ..closed.clone() })
        })
        .await
    }

    /// Deletes what is left of a segment that is in no log any more.
    pub async fn collect(&self, key: SegmentKey, closed: &ClosedSegment) -> Result<(), LogError> {
        self.client.delete_closed(key.log, closed).await?;
        self.client.catalog.forget_garbage(key).await
    }

    /// Brings a segment's record to where `change` wants it, however often it changes meanwhile.
    async fn change(
        &self,
        key: SegmentKey,
        closed: &ClosedSegment,
        revision: Revision,
        change: impl Fn(&ClosedSegment) -> Option<ClosedSegment>,
    ) -> Result<Changed, LogError> {
        let catalog = &self.client.catalog;
        let mut attempts = self.client.retrying.attempts(Some(PATIENCE));
        let mut found = (closed.clone(), revision);
        loop {
            let Some(changed) = change(&found.0) else { return Ok(Some(found)) };
            let outcome = catalog.update_segment(key, &changed, found.1, &self.guard).await?;
            if let CommitOutcome::Committed(revision) = outcome {
                return Ok(Some((changed, revision)));
            }
            let before = found.1;
            match catalog.segment_found(key).await? {
                Some(again) => found = again,
                None => return Ok(None),
            }
            if outcome == CommitOutcome::Conflict && found.1 == before {
                return Err(MetadataError::Unavailable("this process maintains the logs no more".to_owned()).into());
            }
            if !attempts.wait().await {
                return Err(MetadataError::Unavailable(format!("the record of {key} cannot be changed")).into());
            }
        }
    }
}

/// A run that was stored by a task of its own.
async fn landed(put: JoinHandle<Option<Result<SealedRun, StoreError>>>) -> Result<SealedRun, StoreError> {
    let stopped = || Err(StoreError::Unavailable("the process is shutting down".into()));
    put.await.ok().flatten().unwrap_or_else(stopped)
}
