//! The records of logs and segments in the metadata store: keys, and typed reads and commits.
//!
//! ```text
//! <prefix>/instance                      a number written once: which data belongs to these records
//! <prefix>/objects                       there once an object store is known to be this instance's
//! <prefix>/log-id                        the last log id given out
//! <prefix>/logs/<name>                   LogRecord; every change of a log is a compare-and-swap of this key
//! <prefix>/segments/<log id>/<segment>   ClosedSegment
//! <prefix>/deleting/<log id>             LogRecord of a log that is being deleted
//! <prefix>/garbage/<log id>/<segment>    ClosedSegment that left its log and whose data is being deleted
//! <prefix>/readers/<log id>/<name>       Held, on a lease: what a registered reader has not read
//! <prefix>/holds/<log id>                written with every registration: no segment leaves the log at the same time
//! ```

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::{Mutex, OnceCell};
use woodpecker_base::{
    metadata::{Compare, KeyValue, MetadataError, MetadataStore, Revision, Txn, TxnOutcome, Watch},
    random::Random,
};
use woodpecker_core::{
    chain::Change,
    ids::{LogId, SegmentKey},
    opening::CommitOutcome,
    record::{BadRecord, ClosedSegment, LogRecord},
};

use crate::{LogError, retry::Retrying};

mod media;
mod upkeep;

pub(crate) use self::upkeep::About;

/// How long a caller waits for a metadata store that does not answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);
/// The patience of one who comes back anyway.
pub(crate) const ONCE: Option<Duration> = Some(Duration::ZERO);
/// Deletes in one transaction, within the store's limit.
const DELETES: usize = 100;

/// A log's record with its revision.
pub(crate) type Found = (LogRecord, Revision);

#[derive(Debug)]
pub(crate) struct Catalog {
    store: Arc<dyn MetadataStore>,
    prefix: String,
    retrying: Retrying,
    random: Random,
    instance: OnceCell<Bytes>,
    /// Creations take a number from one counter: within a process they queue instead of conflicting.
    creating: Mutex<()>,
}

impl Catalog {
    pub fn new(store: Arc<dyn MetadataStore>, prefix: String, retrying: Retrying, random: Random) -> Self {
        Self { store, prefix, retrying, random, instance: OnceCell::new(), creating: Mutex::new(()) }
    }

    fn log_key(&self, name: &str) -> String {
        format!("{}/logs/{name}", self.prefix)
    }

    fn segments_prefix(&self, id: LogId) -> String {
        format!("{}/segments/{id}/", self.prefix)
    }

    fn segment_key(&self, id: LogId, segment: u64) -> String {
        format!("{}/segments/{id}/{segment:020}", self.prefix)
    }

    fn deleting_key(&self, id: LogId) -> String {
        format!("{}/deleting/{id}", self.prefix)
    }

    /// The log of that name.
    pub async fn log(&self, name: &str, patience: Option<Duration>) -> Result<Option<Found>, LogError> {
        match self.get(&self.log_key(name), patience).await? {
            Some(item) => decode_log(&item).map(Some),
            None => Ok(None),
        }
    }

    /// The names of logs that start with `prefix`, sorted.
    pub async fn names(&self, prefix: &str) -> Result<Vec<String>, LogError> {
        let all = self.log_key("");
        let under = self.log_key(prefix);
        let snapshot = self.retrying.run(Some(PATIENCE), || self.store.list(&under)).await?;
        Ok(snapshot.items.iter().filter_map(|item| item.key.strip_prefix(&all)).map(str::to_owned).collect())
    }

    /// The closed segments of a log, ascending.
    pub async fn segments(&self, id: LogId) -> Result<Vec<ClosedSegment>, LogError> {
        let under = self.segments_prefix(id);
        let snapshot = self.retrying.run(Some(PATIENCE), || self.store.list(&under)).await?;
        snapshot.items.iter().map(decode_segment).collect()
    }

    /// One closed segment.
    pub async fn segment(
        &self,
        id: LogId,
        segment: u64,
        patience: Option<Duration>,
    ) -> Result<Option<ClosedSegment>, LogError> {
        let item = self.get(&self.segment_key(id, segment), patience).await?;
        item.as_ref().map(decode_segment).transpose()
    }

    /// Makes a change if the log's record is still at `revision`. One attempt: what an unknown outcome came to is seen
    /// in the record only.
    pub async fn commit(&self, revision: Revision, change: &Change) -> Result<CommitOutcome, MetadataError> {
        let key = self.log_key(&change.log.name);
        let mut txn = Txn::new().when(Compare::ModRevision(key.clone(), revision)).put(key, change.log.encode());
        for closed in &change.closed {
            txn = txn.put(self.segment_key(change.log.id, closed.segment()), closed.encode());
        }
        self.try_commit(txn).await
    }

    async fn try_commit(&self, txn: Txn) -> Result<CommitOutcome, MetadataError> {
        match self.retrying.once(self.store.commit(txn)).await {
            Ok(TxnOutcome::Committed(revision)) => Ok(CommitOutcome::Committed(revision)),
            Ok(TxnOutcome::Conflict) => Ok(CommitOutcome::Conflict),
            Err(error) if error.is_retryable() => Ok(CommitOutcome::Unknown),
            Err(error) => Err(error),
        }
    }

    /// Creates a log that is known under no other id.
    pub async fn create(&self, name: &str) -> Result<Found, LogError> {
        let _turn = self.creating.lock().await;
        let instance = self.instance().await?;
        let counter_key = self.counter_key();
        let mut attempts = self.retrying.attempts(Some(PATIENCE));
        let mut tried = None;
        loop {
            if let Some((log, revision)) = self.log(name, Some(PATIENCE)).await? {
                // An id is given out once: a log with the id of an attempt whose answer was lost is that attempt's.
                let ours = tried == Some(log.id);
                return if ours { Ok((log, revision)) } else { Err(LogError::Exists(name.to_owned())) };
            }
            let counter = self.get(&counter_key, Some(PATIENCE)).await?;
            let last = counter.as_ref().map_or(Ok(0), number)?;
            let log = LogRecord::new(LogId(last.saturating_add(1)), name);
            let unchanged = match counter {
                Some(item) => Compare::ModRevision(item.key, item.mod_revision),
                None => Compare::Absent(counter_key.clone()),
            };
            let txn = Txn::new()
                .when(Compare::Value(self.instance_key(), instance.clone()))
                .when(Compare::Absent(self.log_key(name)))
                .when(unchanged)
                .put(counter_key.clone(), log.id.to_string())
                .put(self.log_key(name), log.encode());
            match self.try_commit(txn).await? {
                CommitOutcome::Committed(revision) => return Ok((log, revision)),
                CommitOutcome::Unknown => tried = Some(log.id),
                CommitOutcome::Conflict => self.check_instance(&instance).await?,
            }
            if !attempts.wait().await {
                return Err(MetadataError::Unavailable(format!("too much contention to create log {name:?}")).into());
            }
        }
    }

    /// Removes a log's name, so that whoever owns it cannot change it any more, and keeps the record as work to do.
    pub async fn condemn(&self, found: &Found) -> Result<CommitOutcome, MetadataError> {
        let (log, revision) = found;
        let key = self.log_key(&log.name);
        let txn = Txn::new()
            .when(Compare::ModRevision(key.clone(), *revision))
            .put(self.deleting_key(log.id), log.encode())
            .delete(key);
        self.try_commit(txn).await
    }

    /// Logs whose deletion was begun.
    pub async fn condemned(&self) -> Result<Vec<LogRecord>, LogError> {
        let under = format!("{}/deleting/", self.prefix);
        let snapshot = self.retrying.run(Some(PATIENCE), || self.store.list(&under)).await?;
        snapshot.items.iter().map(|item| decode_log(item).map(|(log, _)| log)).collect()
    }

    /// Removes the last traces of a condemned log.
    pub async fn forget(&self, id: LogId) -> Result<(), LogError> {
        let segments: Vec<u64> = self.segments(id).await?.iter().map(ClosedSegment::segment).collect();
        for some in segments.chunks(DELETES) {
            self.delete(some.iter().map(|segment| self.segment_key(id, *segment)).collect()).await?;
        }
        for closed in self.garbage(id).await? {
            self.forget_garbage(SegmentKey { log: id, segment: closed.segment() }).await?;
        }
        self.delete(vec![self.deleting_key(id), self.generation_key(id)]).await
    }

    async fn delete(&self, keys: Vec<String>) -> Result<(), LogError> {
        let txn = keys.into_iter().fold(Txn::new(), Txn::delete);
        self.retrying.run(Some(PATIENCE), || self.store.commit(txn.clone())).await?;
        Ok(())
    }

    /// Changes to the records of logs from now on, and how to find the log's name in an event's key. Tried until it is
    /// there: what refuses now, for rights that are missing say, may not do so later, and nobody else would try again.
    pub async fn watch_logs(&self) -> (Watch, String) {
        let under = self.log_key("");
        let mut attempts = self.retrying.attempts(None);
        loop {
            match self.try_watch_logs(&under).await {
                Ok(watch) => return (watch, under),
                Err(error) => tracing::warn!(%error, "logs cannot be watched yet"),
            }
            attempts.wait().await;
        }
    }

    async fn try_watch_logs(&self, under: &str) -> Result<Watch, MetadataError> {
        // The smallest read that tells the store's revision.
        let now = self.retrying.once(self.store.list(&self.instance_key())).await?.revision;
        self.retrying.once(self.store.watch(under, now + 1)).await
    }

    /// Which data belongs to these records: a random number, written by the first process ever.
    pub async fn instance(&self) -> Result<Bytes, LogError> {
        let found = self.instance.get_or_try_init(|| self.load_instance()).await?;
        Ok(found.clone())
    }

    async fn load_instance(&self) -> Result<Bytes, LogError> {
        let key = self.instance_key();
        let proposal = format!("{:032x}", self.random.u128());
        let mut attempts = self.retrying.attempts(Some(PATIENCE));
        loop {
            if let Some(item) = self.get(&key, Some(PATIENCE)).await? {
                return Ok(item.value);
            }
            let txn = Txn::new().when(Compare::Absent(key.clone())).put(key.clone(), proposal.clone());
            self.try_commit(txn).await?;
            if !attempts.wait().await {
                return Err(MetadataError::Unavailable("the instance's number cannot be written".to_owned()).into());
            }
        }
    }

    /// Records that vanished under a running process, or were replaced by another instance's, must not be added to:
    /// ids given out now would be given out again.
    async fn check_instance(&self, expected: &Bytes) -> Result<(), LogError> {
        let found = self.get(&self.instance_key(), Some(PATIENCE)).await?;
        if found.as_ref().is_some_and(|item| item.value == expected) {
            return Ok(());
        }
        let detail = "the metadata store was emptied or replaced while this process ran".to_owned();
        Err(LogError::BadRecord { what: self.instance_key(), detail })
    }

    async fn get(&self, key: &str, patience: Option<Duration>) -> Result<Option<KeyValue>, MetadataError> {
        self.retrying.run(patience, || self.store.get(key)).await
    }

    pub fn instance_key(&self) -> String {
        format!("{}/instance", self.prefix)
    }

    fn counter_key(&self) -> String {
        format!("{}/log-id", self.prefix)
    }
}

/// The record in a log's key.
pub(crate) fn decode_log(item: &KeyValue) -> Result<Found, LogError> {
    let log = LogRecord::decode(&item.value).map_err(|e| bad(item, &e))?;
    Ok((log, item.mod_revision))
}

/// The record in a closed segment's key.
pub(crate) fn decode_segment(item: &KeyValue) -> Result<ClosedSegment, LogError> {
    ClosedSegment::decode(&item.value).map_err(|e| bad(item, &e))
}

fn bad(item: &KeyValue, error: &BadRecord) -> LogError {
    LogError::BadRecord { what: item.key.clone(), detail: error.to_string() }
}

fn number(item: &KeyValue) -> Result<u64, LogError> {
    std::str::from_utf8(&item.value)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| LogError::BadRecord { what: item.key.clone(), detail: "not a number".to_owned() })
}
