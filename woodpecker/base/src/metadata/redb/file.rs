//! The file's tables.

use std::{fmt::Display, path::Path, time::Duration};

use bytes::Bytes;
use redb::{Database, DatabaseError, ReadableTable, StorageError, TableDefinition, WriteTransaction};

use super::Content;
use crate::{
    disk::{Disk, RealDisk},
    metadata::{
        KeyValue, LeaseId, MetadataError, WatchEvent,
        state::{Change, State},
    },
};

/// Key → create revision, modification revision, lease (0: none), value.
const KEYS: TableDefinition<'_, &str, (i64, i64, i64, &[u8])> = TableDefinition::new("keys");
/// Lease → time to live in seconds.
const LEASES: TableDefinition<'_, i64, u64> = TableDefinition::new("leases");
const COUNTERS: TableDefinition<'_, &str, i64> = TableDefinition::new("counters");
const REVISION: &str = "revision";
const LAST_LEASE: &str = "last_lease";

pub(super) struct MetadataFile {
    database: Database,
}

impl MetadataFile {
    pub fn open(path: &Path) -> Result<(Self, State), MetadataError> {
        let at = |error: &dyn Display| format!("{}: {error}", path.display());
        let named = path.parent().filter(|directory| !directory.as_os_str().is_empty());
        let directory = named.unwrap_or_else(|| Path::new("."));
        RealDisk.create_dir_all(directory).map_err(|error| MetadataError::Unavailable(at(&error)))?;
        // Checked whole, since a damaged page found later could not be reported.
        let opened = Database::builder().set_check_integrity_on_open(true).create(path);
        let database = opened.map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => {
                MetadataError::Invalid(at(&"in use by another process; an embedded metadata store serves only one"))
            }
            DatabaseError::Storage(StorageError::Io(error)) if error.kind() != std::io::ErrorKind::InvalidData => {
                MetadataError::Unavailable(at(&error))
            }
            error => MetadataError::Invalid(at(&error)),
        })?;
        RealDisk.sync_dir(directory).map_err(|error| MetadataError::Unavailable(at(&error)))?;
        let file = Self { database };
        let state = file.load().map_err(|error| MetadataError::Invalid(at(&error)))?;
        Ok((file, state))
    }

    fn load(&self) -> Result<State, redb::Error> {
        let transaction = self.database.begin_write()?;
        let (mut content, revision, last_lease) = (Content::default(), 1, 0);
        let (revision, last_lease) = {
            let counters = transaction.open_table(COUNTERS)?;
            let counter = |name, default| -> Result<i64, redb::Error> {
                Ok(counters.get(name)?.map_or(default, |value| value.value()))
            };
            (counter(REVISION, revision)?, counter(LAST_LEASE, last_lease)?)
        };
        for row in transaction.open_table(KEYS)?.iter()? {
            let (key, row) = row?;
            let (create_revision, mod_revision, lease, value) = row.value();
            let lease = (lease != 0).then_some(LeaseId(lease));
            let (key, value) = (key.value().to_owned(), Bytes::copy_from_slice(value));
            content.0.insert(key.clone(), KeyValue { key, value, create_revision, mod_revision, lease });
        }
        for row in transaction.open_table(LEASES)?.iter()? {
            content.1.push(LeaseId(row?.0.value()));
        }
        transaction.commit()?;
        Ok(State::restore(revision, last_lease, content.0, &content.1))
    }

    pub fn apply(&self, change: &Change) -> Result<(), MetadataError> {
        if change.events.is_empty() && change.ended.is_none() {
            return Ok(());
        }
        self.write(|transaction| {
            let mut keys = transaction.open_table(KEYS)?;
            for event in &change.events {
                match event {
                    WatchEvent::Put(item) => {
                        let lease = item.lease.map_or(0, |lease| lease.0);
                        let row = (item.create_revision, item.mod_revision, lease, item.value.as_ref());
                        keys.insert(item.key.as_str(), row)?;
                    }
                    WatchEvent::Delete { key, .. } => drop(keys.remove(key.as_str())?),
                    WatchEvent::Resync(_) => {}
                }
            }
            if let Some(lease) = change.ended {
                transaction.open_table(LEASES)?.remove(lease.0)?;
            }
            transaction.open_table(COUNTERS)?.insert(REVISION, change.revision)?;
            Ok(())
        })
    }

    pub fn add_lease(&self, lease: LeaseId, ttl: Duration) -> Result<(), MetadataError> {
        self.write(|transaction| {
            transaction.open_table(LEASES)?.insert(lease.0, ttl.as_secs())?;
            transaction.open_table(COUNTERS)?.insert(LAST_LEASE, lease.0)?;
            Ok(())
        })
    }

    /// One durable commit.
    fn write(&self, work: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>) -> Result<(), MetadataError> {
        let written = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            work(&transaction)?;
            Ok(transaction.commit()?)
        };
        written().map_err(|error| MetadataError::Unavailable(format!("the metadata file failed: {error}")))
    }
}
