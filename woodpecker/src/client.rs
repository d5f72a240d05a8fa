//! The door: a process opens one client and finds its logs through it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use woodpecker_base::{clock::Clock, metadata::MetadataStore, random::Random, tasks::Tasks};
use woodpecker_store::backend::Backend;

use crate::{Log, LogError};

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
    _inner: Arc<()>,
}

impl Client {
    /// Puts a client together. `backends` holds every medium this process can read, by name.
    #[must_use]
    pub fn new(
        _settings: Settings,
        _metadata: Arc<dyn MetadataStore>,
        _backends: BTreeMap<String, Arc<dyn Backend>>,
        _clock: Clock,
        _random: Random,
        _tasks: Tasks,
    ) -> Self {
        Self { _inner: Arc::new(()) }
    }

    /// Creates a log.
    ///
    /// # Errors
    /// [`LogError::Exists`], [`LogError::BadName`], or the metadata store's.
    pub async fn create_log(&self, _name: &str) -> Result<Log, LogError> {
        Err(LogError::NotFound(String::new()))
    }

    /// Opens a log; any number of handles may be open, in any number of processes.
    ///
    /// # Errors
    /// [`LogError::NotFound`], or the metadata store's.
    pub async fn open_log(&self, _name: &str) -> Result<Log, LogError> {
        Err(LogError::NotFound(String::new()))
    }

    /// Opens a log, creating it first if it does not exist.
    ///
    /// # Errors
    /// [`LogError::BadName`], or the metadata store's.
    pub async fn open_or_create_log(&self, _name: &str) -> Result<Log, LogError> {
        Err(LogError::NotFound(String::new()))
    }

    /// The names of all logs that start with `prefix`, sorted.
    ///
    /// # Errors
    /// The metadata store's.
    pub async fn list_logs(&self, _prefix: &str) -> Result<Vec<String>, LogError> {
        Ok(Vec::new())
    }

    /// Deletes a log and what it holds. Writers of it are fenced first.
    ///
    /// # Errors
    /// [`LogError::NotFound`], the store's, or the metadata store's.
    pub async fn delete_log(&self, _name: &str) -> Result<(), LogError> {
        Ok(())
    }

    /// Waits until everything queued is durable or failed, and releases the volumes of this process.
    pub async fn close(&self) {}
}
