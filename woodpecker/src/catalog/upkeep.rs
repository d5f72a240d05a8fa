//! What maintenance reads and changes: the records of all logs at once, and their segments' way to the end.

use std::{sync::Arc, time::Duration};

use woodpecker_base::metadata::{
    Compare, KeyValue, LeaseId, MetadataError, MetadataStore, Revision, Snapshot, Txn, TxnOutcome, Watch,
};
use woodpecker_core::{
    chain::Change,
    ids::{EntryId, LogId, SegmentKey},
    opening::CommitOutcome,
    record::{ClosedSegment, ReaderRecord},
};

use super::{Catalog, DELETES, PATIENCE, bad, decode_segment};
use crate::LogError;

/// What a key of maintenance's concern is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum About {
    Log(String),
    Closed(SegmentKey),
    Garbage(SegmentKey),
    Deleting(LogId),
}

impl Catalog {
    pub fn store(&self) -> &Arc<dyn MetadataStore> {
        &self.store
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    fn garbage_key(&self, key: SegmentKey) -> String {
        format!("{}/garbage/{}/{:020}", self.prefix, key.log, key.segment)
    }

    fn readers_prefix(&self, log: LogId) -> String {
        format!("{}/readers/{log}/", self.prefix)
    }

    fn reader_key(&self, log: LogId, name: &str) -> String {
        format!("{}/readers/{log}/{name}", self.prefix)
    }

    pub(super) fn generation_key(&self, log: LogId) -> String {
        format!("{}/holds/{log}", self.prefix)
    }

    /// All records, read now.
    pub async fn everything(&self) -> Result<Snapshot, MetadataError> {
        let all = format!("{}/", self.prefix);
        self.retrying.run(Some(PATIENCE), || self.store.list(&all)).await
    }

    /// What changes after a snapshot.
    pub async fn changes(&self, after: Revision) -> Result<Watch, MetadataError> {
        let all = format!("{}/", self.prefix);
        self.retrying.run(Some(PATIENCE), || self.store.watch(&all, after + 1)).await
    }

    /// What a key is about; `None` for what maintenance does not look at, or cannot read.
    pub fn about(&self, key: &str) -> Option<About> {
        let (kind, name) = key.strip_prefix(&self.prefix)?.strip_prefix('/')?.split_once('/')?;
        let segment = || {
            let (log, segment) = name.split_once('/')?;
            Some(SegmentKey { log: LogId(log.parse().ok()?), segment: segment.parse().ok()? })
        };
        match kind {
            "logs" => Some(About::Log(name.to_owned())),
            "deleting" => Some(About::Deleting(LogId(name.parse().ok()?))),
            "segments" => segment().map(About::Closed),
            "garbage" => segment().map(About::Garbage),
            _ => None,
        }
    }

    /// Changes a closed segment's record if it is still at `revision` and `guard` holds. One attempt.
    pub async fn update_segment(
        &self,
        key: SegmentKey,
        closed: &ClosedSegment,
        revision: Revision,
        guard: &Compare,
    ) -> Result<CommitOutcome, MetadataError> {
        let at = self.segment_key(key.log, key.segment);
        let same = Compare::ModRevision(at.clone(), revision);
        self.try_commit(Txn::new().when(guard.clone()).when(same).put(at, closed.encode())).await
    }

    /// A closed segment's record with its revision.
    pub async fn segment_found(&self, key: SegmentKey) -> Result<Option<(ClosedSegment, Revision)>, LogError> {
        let Some(item) = self.get(&self.segment_key(key.log, key.segment), Some(PATIENCE)).await? else {
            return Ok(None);
        };
        Ok(Some((decode_segment(&item)?, item.mod_revision)))
    }

    /// Changes a log's record if it is still at `revision` and `guard` holds. One attempt.
    pub async fn commit_guarded(
        &self,
        revision: Revision,
        change: &Change,
        guard: &Compare,
    ) -> Result<CommitOutcome, MetadataError> {
        let key = self.log_key(&change.log.name);
        let same = Compare::ModRevision(key.clone(), revision);
        self.try_commit(Txn::new().when(guard.clone()).when(same).put(key, change.log.encode())).await
    }

    /// Takes segments out of their log, unless a reader was registered since `generation` was read. Their data is
    /// deleted after: what must be deleted is known for as long as it is not.
    pub async fn discard(
        &self,
        log: LogId,
        segments: &[(ClosedSegment, Revision)],
        generation: Option<Revision>,
        guard: &Compare,
    ) -> Result<CommitOutcome, MetadataError> {
        let generation_key = self.generation_key(log);
        let unchanged = match generation {
            Some(revision) => Compare::ModRevision(generation_key, revision),
            None => Compare::Absent(generation_key),
        };
        let mut txn = Txn::new().when(guard.clone()).when(unchanged);
        for (closed, revision) in segments {
            let key = SegmentKey { log, segment: closed.segment() };
            let at = self.segment_key(log, key.segment);
            txn = txn.when(Compare::ModRevision(at.clone(), *revision)).delete(at);
            txn = txn.put(self.garbage_key(key), closed.encode());
        }
        self.try_commit(txn).await
    }

    /// Forgets a segment whose data is deleted.
    pub async fn forget_garbage(&self, key: SegmentKey) -> Result<(), LogError> {
        self.delete(vec![self.garbage_key(key)]).await
    }

    /// What of a log waits to be deleted.
    pub async fn garbage(&self, log: LogId) -> Result<Vec<ClosedSegment>, LogError> {
        let under = format!("{}/garbage/{log}/", self.prefix);
        let snapshot = self.retrying.run(Some(PATIENCE), || self.store.list(&under)).await?;
        snapshot.items.iter().map(decode_segment).collect()
    }

    /// The positions that registered readers hold, and the generation of registrations that they are true for.
    pub async fn holds(&self, log: LogId) -> Result<(Vec<EntryId>, Option<Revision>), LogError> {
        // The generation first: who registers after it changes it.
        let generation = self.get(&self.generation_key(log), Some(PATIENCE)).await?.map(|item| item.mod_revision);
        let under = self.readers_prefix(log);
        let snapshot = self.retrying.run(Some(PATIENCE), || self.store.list(&under)).await?;
        let position = |item: &KeyValue| {
            ReaderRecord::decode(&item.value).map(|reader| reader.next).map_err(|error| bad(item, &error))
        };
        Ok((snapshot.items.iter().map(position).collect::<Result<_, _>>()?, generation))
    }

    /// A name of which there is no second.
    pub fn unique(&self, name: &str) -> String {
        format!("{name}-{:016x}", self.random.u64())
    }

    /// Registers a reader, on a lease.
    pub async fn register(&self, log: LogId, name: &str, next: EntryId, lease: LeaseId) -> Result<(), MetadataError> {
        let generation = self.random.u128();
        let txn = Txn::new()
            .put_leased(self.reader_key(log, name), ReaderRecord { next }.encode(), lease)
            .put(self.generation_key(log), format!("{generation:032x}"));
        self.retrying.run(Some(PATIENCE), || self.store.commit(txn.clone())).await.map(|_| ())
    }

    /// Moves a registered reader forward; false if it is registered no more.
    pub async fn advance_reader(
        &self,
        log: LogId,
        name: &str,
        next: EntryId,
        lease: LeaseId,
    ) -> Result<bool, MetadataError> {
        let key = self.reader_key(log, name);
        let txn = Txn::new().when(Compare::Present(key.clone())).put_leased(key, ReaderRecord { next }.encode(), lease);
        Ok(matches!(self.retrying.once(self.store.commit(txn)).await?, TxnOutcome::Committed(_)))
    }

    /// Ends registrations.
    pub async fn unregister(&self, readers: &[(LogId, String)]) -> Result<(), LogError> {
        for some in readers.chunks(DELETES) {
            self.delete(some.iter().map(|(log, name)| self.reader_key(*log, name)).collect()).await?;
        }
        Ok(())
    }

    pub async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, MetadataError> {
        self.retrying.run(Some(PATIENCE), || self.store.grant_lease(ttl)).await
    }

    pub async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, MetadataError> {
        self.retrying.once(self.store.keep_alive(lease)).await
    }
}
