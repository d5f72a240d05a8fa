//! The door: a process opens one client and finds its logs through it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures::future::join_all;
use woodpecker_base::{
    clock::Clock,
    metadata::{MetadataError, MetadataStore},
    random::Random,
    tasks::Tasks,
};
use woodpecker_core::{
    ids::{Epoch, LogId, SegmentKey},
    opening::CommitOutcome,
    record::{LogRecord, OpenSegment},
};
use woodpecker_store::backend::{Backend, StoreError};

use crate::{
    AppendError, Log, LogError,
    catalog::{Catalog, PATIENCE},
    retry::Retrying,
    views::Views,
    writer::Shared,
};

const LONGEST_NAME: usize = 255;

/// How logs are cut and bounded. Values, not parts.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Prefix of every key in the metadata store, without a trailing slash.
    pub metadata_prefix: String,
    /// The backend that new segments are created on, by name.
    pub backend: String,
    /// A segment is rolled when it holds this many bytes.
    pub segment_bytes: u64,
    /// A segment that holds something is rolled on the first append after this age.
    pub segment_age: Duration,
    /// Bytes one writer may have in flight before [`crate::Writer::reserve`] waits.
    pub in_flight_bytes: usize,
}

/// A connection to an instance of Woodpecker. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub settings: Settings,
    pub catalog: Arc<Catalog>,
    pub views: Arc<Views>,
    pub retrying: Retrying,
    pub clock: Clock,
    pub tasks: Tasks,
    backends: BTreeMap<String, Arc<dyn Backend>>,
    /// The open writers of this process, to end them with it.
    writers: Mutex<BTreeMap<(LogId, Epoch), Weak<Shared>>>,
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
        let catalog = Arc::new(Catalog::new(metadata, settings.metadata_prefix.clone(), retrying.clone(), random));
        let views = Arc::new(Views::new(catalog.clone(), tasks.clone()));
        let writers = Mutex::default();
        Self { inner: Arc::new(Inner { settings, catalog, views, retrying, clock, tasks, backends, writers }) }
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
        while let Some(found) = catalog.log(name, Some(PATIENCE)).await? {
            if let CommitOutcome::Committed(_) = catalog.condemn(&found).await? {
                self.inner.views.of(found).learn_deleted(None);
                break;
            }
            if !attempts.wait().await {
                return Err(MetadataError::Unavailable(format!("the record of {name:?} keeps changing")).into());
            }
        }
        let condemned: Vec<LogRecord> =
            catalog.condemned().await?.into_iter().filter(|record| record.name == name).collect();
        if condemned.is_empty() {
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

    /// Waits until everything queued is durable or failed, and releases the volumes of this process.
    pub async fn close(&self) {
        join_all(self.inner.backends.values().map(|backend| backend.close())).await;
        let writers: Vec<_> = self.inner.writers().values().filter_map(Weak::upgrade).collect();
        for writer in writers {
            writer.end(AppendError::Closed);
        }
    }
}

impl Inner {
    fn writers(&self) -> MutexGuard<'_, BTreeMap<(LogId, Epoch), Weak<Shared>>> {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add_writer(&self, log: LogId, writer: &Arc<Shared>) {
        self.writers().insert((log, writer.epoch), Arc::downgrade(writer));
    }

    pub fn remove_writer(&self, log: LogId, epoch: Epoch) {
        self.writers().remove(&(log, epoch));
    }

    /// The medium of that name.
    pub fn backend(&self, name: &str) -> Result<&Arc<dyn Backend>, StoreError> {
        self.backends.get(name).ok_or_else(|| StoreError::NotFound { what: format!("backend {name:?}") })
    }

    /// Fences a segment; its writer, if there is one, is stopped, and this many entries are in it for ever.
    pub async fn fence(&self, log: LogId, open: &OpenSegment, epoch: Epoch) -> Result<u64, StoreError> {
        let backend = self.backend(&open.backend)?;
        let key = SegmentKey { log, segment: open.segment };
        self.retrying.run(Some(PATIENCE), || backend.fence(key, &open.placement, epoch)).await
    }

    /// Deletes a segment's data.
    pub async fn delete(&self, log: LogId, segment: &OpenSegment) -> Result<(), StoreError> {
        let backend = self.backend(&segment.backend)?;
        let key = SegmentKey { log, segment: segment.segment };
        self.retrying.run(Some(PATIENCE), || backend.delete(key, &segment.placement)).await
    }

    /// Removes what is left of a log whose name is gone.
    async fn erase(&self, record: &LogRecord) -> Result<(), LogError> {
        let epoch = record.raise().log.epoch;
        for open in &record.open {
            match self.fence(record.id, open, epoch).await {
                Ok(_) | Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        for open in &record.open {
            self.delete(record.id, open).await?;
        }
        for closed in self.catalog.segments(record.id).await? {
            self.delete(record.id, &closed.opened).await?;
        }
        self.catalog.forget(record.id).await
    }
}

fn check_name(name: &str) -> Result<(), LogError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(allowed) {
        return Err(LogError::BadName(name.to_owned()));
    }
    Ok(())
}
