//! The door: a process opens one client and finds its logs through it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use tokio::sync::{OnceCell, Semaphore};
use woodpecker_base::{
    clock::Clock,
    metadata::{MetadataError, MetadataStore},
    random::Random,
    tasks::Tasks,
};
use woodpecker_core::{
    ids::{Epoch, LogId, SegmentKey},
    opening::CommitOutcome,
    record::{ClosedSegment, LogRecord, LogSettings, OpenSegment},
};
use woodpecker_store::{
    backend::{Backend, StoreError},
    seal::SealedStore,
};

use crate::{
    AppendError, Log, LogError,
    catalog::{Catalog, PATIENCE},
    holds::Holds,
    retry::Retrying,
    tending::tend,
    views::Views,
    writer::Shared,
};

const LONGEST_NAME: usize = 255;
/// How long an open of a log asks object storage whether a segment that seems empty was sealed.
const SEALED: Duration = Duration::from_secs(3);

/// How logs are cut and bounded. Values, not parts.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Prefix of every key in the metadata store, without a trailing slash.
    pub metadata_prefix: String,
    /// The backend that new segments are created on, by name.
    pub backend: String,
    /// A segment is rolled when it holds this many bytes.
    pub segment_bytes: u64,
    /// A segment that holds something ends at this age, whether anything is appended or not.
    pub segment_age: Duration,
    /// Bytes one writer may have in flight before [`crate::Writer::reserve`] waits.
    pub in_flight_bytes: usize,
    /// Bytes that all readers together may have read ahead. A reader that gets none of them goes on, chunk by chunk.
    pub read_ahead_bytes: usize,
}

impl Settings {
    /// Room for a few readers that catch up at full speed.
    pub const READ_AHEAD_BYTES: usize = 64 << 20;
}

/// A connection to an instance of Woodpecker. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub settings: Settings,
    pub catalog: Arc<Catalog>,
    pub views: Arc<Views>,
    pub holds: Arc<Holds>,
    pub retrying: Retrying,
    pub clock: Clock,
    pub random: Random,
    pub tasks: Tasks,
    /// Kibibytes that readers may still read ahead.
    pub read_ahead: Arc<Semaphore>,
    backends: BTreeMap<String, Arc<dyn Backend>>,
    sealed: OnceLock<Arc<SealedStore>>,
    /// All media are known to be this instance's.
    claimed: OnceCell<()>,
    /// The open writers of this process, to end them with it.
    writers: Mutex<BTreeMap<(LogId, Epoch), Weak<Shared>>>,
    /// The task that looks after them was started.
    tending: AtomicBool,
}

impl Client {
    /// Puts a client together. `backends` holds every medium this process can read, by name.
    #[must_use]
    pub fn new(
        settings: Settings,
        metadata: Arc<dyn MetadataStore>,
        backends: BTreeMap<String, Arc<dyn Backend>>,
        clock: Clock,
        random: Random,
        tasks: Tasks,
    ) -> Self {
        let retrying = Retrying::new(clock.clone(), random.clone());
        let catalog =
            Arc::new(Catalog::new(metadata, settings.metadata_prefix.clone(), retrying.clone(), random.clone()));
        let views = Arc::new(Views::new(catalog.clone(), tasks.clone()));
        let holds = Holds::new(catalog.clone(), clock.clone(), tasks.clone());
        let (sealed, writers) = (OnceLock::new(), Mutex::default());
        let (claimed, tending) = (OnceCell::new(), AtomicBool::new(false));
        let read_ahead = Arc::new(Semaphore::new(settings.read_ahead_bytes / 1024));
        let inner = Inner {
            settings,
            catalog,
            views,
            holds,
            retrying,
            clock,
            random,
            tasks,
            read_ahead,
            backends,
            sealed,
            claimed,
            writers,
            tending,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Gives the client, and all its clones, access to sealed segments. Without it they cannot be read; a second call
    /// changes nothing.
    #[must_use]
    pub fn with_sealed(self, sealed: Arc<SealedStore>) -> Self {
        self.inner.sealed.get_or_init(|| sealed);
        self
    }

    /// Creates a log.
    ///
    /// # Errors
    /// [`LogError::Exists`], [`LogError::BadName`], or the metadata store's.
    pub async fn create_log(&self, name: &str) -> Result<Log, LogError> {
        check_name(name)?;
        let found = self.inner.catalog.create(name).await?;
        Ok(Log::new(self.inner.clone(), self.inner.views.of(found)))
    }

    /// Opens a log; any number of handles may be open, in any number of processes.
    ///
    /// # Errors
    /// [`LogError::NotFound`], or the metadata store's.
    pub async fn open_log(&self, name: &str) -> Result<Log, LogError> {
        match self.inner.catalog.log(name, Some(PATIENCE)).await? {
            Some(found) => Ok(Log::new(self.inner.clone(), self.inner.views.of(found))),
            None => Err(LogError::NotFound(name.to_owned())),
        }
    }

    /// Opens a log, creating it first if it does not exist.
    ///
    /// # Errors
    /// [`LogError::BadName`], or the metadata store's.
    pub async fn open_or_create_log(&self, name: &str) -> Result<Log, LogError> {
        match self.open_log(name).await {
            Err(LogError::NotFound(_)) => {}
            other => return other,
        }
        match self.create_log(name).await {
            // Another process was faster.
            Err(LogError::Exists(_)) => self.open_log(name).await,
            other => other,
        }
    }

    /// The names of all logs that start with `prefix`, sorted.
    ///
    /// # Errors
    /// The metadata store's.
    pub async fn list_logs(&self, prefix: &str) -> Result<Vec<String>, LogError> {
        self.inner.catalog.names(prefix).await
    }

    /// Deletes a log and what it holds. Its name is free at once and its writers are fenced before anything is removed.
    /// After an error the same call goes on with what is left.
    ///
    /// # Errors
    /// [`LogError::NotFound`], the store's, or the metadata store's.
    pub async fn delete_log(&self, name: &str) -> Result<(), LogError> {
        let catalog = &self.inner.catalog;
        let mut attempts = self.inner.retrying.attempts(Some(PATIENCE));
        // Condemned by us, or maybe.
        let mut ours = None;
        while let Some(found) = catalog.log(name, Some(PATIENCE)).await? {
            // The name was free meanwhile: what has it now came after the deletion.
            if ours.is_some_and(|condemned| condemned != found.0.id) {
                break;
            }
            match catalog.condemn(&found).await? {
                CommitOutcome::Committed(at) => {
                    ours = Some(found.0.id);
                    self.inner.views.of(found).learn_deleted(Some(at));
                    break;
                }
                CommitOutcome::Unknown => ours = Some(found.0.id),
                CommitOutcome::Conflict => {}
            }
            if !attempts.wait().await {
                return Err(MetadataError::Unavailable(format!("the record of {name:?} keeps changing")).into());
            }
        }
        let condemned: Vec<LogRecord> =
            catalog.condemned().await?.into_iter().filter(|record| record.name == name).collect();
        // Of ours maintenance may have erased all by now.
        if condemned.is_empty() && ours.is_none() {
            return Err(LogError::NotFound(name.to_owned()));
        }
        for record in condemned {
            self.inner.erase(&record).await?;
        }
        Ok(())
    }

    /// Which data belongs to the metadata store's records: the same for every process and for ever, and another one
    /// after the store was emptied. Data that was written under another instance must be neither read nor removed.
    ///
    /// # Errors
    /// The metadata store's.
    pub async fn instance(&self) -> Result<String, LogError> {
        Ok(String::from_utf8_lossy(&self.inner.catalog.instance().await?).into_owned())
    }

    /// Makes all media of this process the instance's, or checks that they are. Happens by itself before anything is
    /// written or removed.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] when one holds another instance's data; the stores'.
    pub async fn claim_media(&self) -> Result<(), LogError> {
        self.inner.claim_media().await
    }

    /// Waits until everything queued is durable or failed, and releases the volumes of this process.
    pub async fn close(&self) {
        join_all(self.inner.backends.values().map(|backend| backend.close())).await;
        for writer in self.inner.open_writers() {
            writer.end(AppendError::Closed);
        }
    }
}

impl Inner {
    fn writers(&self) -> MutexGuard<'_, BTreeMap<(LogId, Epoch), Weak<Shared>>> {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add_writer(self: &Arc<Self>, log: LogId, writer: &Arc<Shared>) {
        self.writers().insert((log, writer.epoch), Arc::downgrade(writer));
        if !self.tending.swap(true, Ordering::AcqRel) {
            let (client, clock) = (Arc::downgrade(self), self.clock.clone());
            self.tasks.spawn_until_stopped(tend(client, clock, self.settings.segment_age));
        }
    }

    pub fn open_writers(&self) -> Vec<Arc<Shared>> {
        self.writers().values().filter_map(Weak::upgrade).collect()
    }

    pub fn remove_writer(&self, log: LogId, epoch: Epoch) {
        self.writers().remove(&(log, epoch));
    }

    /// The medium of that name.
    pub fn backend(&self, name: &str) -> Result<&Arc<dyn Backend>, StoreError> {
        self.backends.get(name).ok_or_else(|| StoreError::NotFound { what: format!("backend {name:?}") })
    }

    pub fn backends(&self) -> impl Iterator<Item = &Arc<dyn Backend>> {
        self.backends.values()
    }

    /// Where sealed segments are.
    pub fn sealed(&self) -> Result<&Arc<SealedStore>, StoreError> {
        let what = || "the object store of sealed segments: this process has none configured".to_owned();
        self.sealed.get().ok_or_else(|| StoreError::NotFound { what: what() })
    }

    pub async fn claim_media(&self) -> Result<(), LogError> {
        let claim = || async {
            let instance = self.catalog.instance().await?;
            let instance = String::from_utf8_lossy(&instance);
            let mut unclaimed = self.sealed().ok();
            if let Some(store) = unclaimed
                && self.catalog.had_objects().await?
            {
                self.check_objects(store, &instance).await?;
                unclaimed = None;
            }
            for backend in self.backends.values() {
                self.retrying.run(Some(PATIENCE), || backend.claim(&instance)).await?;
            }
            if let Some(store) = unclaimed {
                self.retrying.run(Some(PATIENCE), || store.claim(&instance)).await?;
                self.catalog.note_objects().await?;
            }
            Ok(())
        };
        self.claimed.get_or_try_init(|| Box::pin(claim())).await.copied()
    }

    /// A bucket that nobody has claimed is for a new instance. In place of one that was used it would have nothing of a log's
    /// last segment, and who takes the log over would end that with no entries.
    async fn check_objects(&self, store: &SealedStore, instance: &str) -> Result<(), LogError> {
        if self.retrying.run(Some(PATIENCE), || store.is_claimed(instance)).await? {
            return Ok(());
        }
        let what = format!("the object store of instance {instance}");
        let detail = "nothing in it says so, and this instance has its objects in one already".to_owned();
        Err(StoreError::Foreign { what, detail }.into())
    }

    /// The backend of a log's next segment: the one the log wants, if this process has it.
    pub fn backend_for(&self, settings: &LogSettings) -> Result<&Arc<dyn Backend>, StoreError> {
        let wanted = settings.backend.as_deref().unwrap_or(&self.settings.backend);
        match self.backends.get(wanted) {
            Some(backend) => Ok(backend),
            None => {
                tracing::warn!(wanted, instead = self.settings.backend, "this process does not have the log's backend");
                self.backend(&self.settings.backend)
            }
        }
    }

    /// The largest append that every backend takes, since a log may move to any of them.
    pub fn max_append_bytes(&self) -> usize {
        self.backends.values().map(|backend| backend.max_append_bytes()).min().unwrap_or(0)
    }

    /// Fences a segment; its writer, if there is one, is stopped, and this many entries are in it for ever.
    pub async fn fence(&self, log: LogId, open: &OpenSegment, epoch: Epoch) -> Result<u64, StoreError> {
        let backend = self.backend(&open.backend)?;
        let key = SegmentKey { log, segment: open.segment };
        self.retrying.run(Some(PATIENCE), || backend.fence(key, &open.placement, epoch)).await
    }

    /// Checks a segment that its record calls open, and of which nothing is found where it was written: it may have been
    /// sealed, and freed there, after a backup of the record.
    ///
    /// # Errors
    /// [`StoreError::Foreign`]: it was, and with the record as it is all of that would be lost.
    pub async fn check_unsealed(&self, log: LogId, open: &OpenSegment) -> Result<(), StoreError> {
        let Ok(store) = self.sealed() else { return Ok(()) };
        let key = SegmentKey { log, segment: open.segment };
        // Object storage that is away keeps no log from its next owner.
        if !matches!(self.clock.timeout(SEALED, store.has(key)).await, Ok(Ok(true))) {
            return Ok(());
        }
        let detail =
            "it was sealed, and its record says that it is open: the metadata were brought back from an older backup";
        Err(StoreError::Foreign { what: format!("segment {key}"), detail: detail.to_owned() })
    }

    /// Deletes a segment's data where it was written.
    pub async fn delete(&self, log: LogId, segment: &OpenSegment) -> Result<(), StoreError> {
        let backend = self.backend(&segment.backend)?;
        let key = SegmentKey { log, segment: segment.segment };
        if !backend.reaches(&segment.placement).await? {
            let why = format!("segment {key} is on a disk that this process cannot reach");
            return Err(StoreError::Unavailable(why.into()));
        }
        self.retrying.run(Some(PATIENCE), || backend.delete(key, &segment.placement)).await
    }

    /// Deletes all of a closed segment's data, in whatever form it is.
    pub async fn delete_closed(&self, log: LogId, closed: &ClosedSegment) -> Result<(), StoreError> {
        if closed.sealed.as_ref().is_none_or(|sealed| !sealed.freed) {
            self.delete(log, &closed.opened).await?;
        }
        match &closed.sealed {
            Some(sealed) if !sealed.runs.is_empty() => {
                let store = self.sealed()?;
                let key = SegmentKey { log, segment: closed.segment() };
                self.retrying.run(Some(PATIENCE), || store.delete(key, sealed)).await
            }
            _ => Ok(()),
        }
    }

    /// Removes what is left of a log whose name is gone.
    pub async fn erase(&self, record: &LogRecord) -> Result<(), LogError> {
        let epoch = record.raise(self.clock.wall_ms()).log.epoch;
        for open in &record.open {
            match self.fence(record.id, open, epoch).await {
                Ok(_) | Err(StoreError::NotFound { .. }) => {}
                // The end is of no interest any more, and whoever still writes there can record nothing: without a name
                // nobody finds it.
                Err(error) => {
                    let segment = open.segment;
                    tracing::warn!(log = record.name, segment, %error, "a deleted log's segment is not fenced");
                }
            }
        }
        // What is damaged keeps nothing else, and is known until it is deleted. What cannot be reached would cost as much
        // time for every segment.
        let mut left = None;
        for open in &record.open {
            left = lasting(self.delete(record.id, open).await)?.or(left);
        }
        for closed in self.catalog.segments(record.id).await?.iter().chain(&self.catalog.garbage(record.id).await?) {
            left = lasting(self.delete_closed(record.id, closed).await)?.or(left);
        }
        if let Ok(store) = self.sealed() {
            // What attempts at sealing left behind.
            store.delete_log(record.id).await?;
        }
        match left {
            Some(error) => Err(error.into()),
            None => self.catalog.forget(record.id).await,
        }
    }
}

/// Fails with an error that a later attempt may not meet, and gives back any other.
fn lasting(deleted: Result<(), StoreError>) -> Result<Option<StoreError>, StoreError> {
    match deleted {
        Err(error) if error.is_retryable() => Err(error),
        other => Ok(other.err()),
    }
}

fn check_name(name: &str) -> Result<(), LogError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(allowed) {
        return Err(LogError::BadName(name.to_owned()));
    }
    Ok(())
}
