//! The file's tables.

use std::{
    collections::BTreeMap,
    fmt::Display,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use redb::{Database, DatabaseError, ReadableTable, StorageError, Table, TableDefinition, WriteTransaction};

use crate::{
    disk::{Disk, RealDisk},
    metadata::{
        KeyValue, LeaseId, MetadataError, WatchEvent,
        state::{Change, Content, State},
    },
};

/// Create revision, modification revision, lease (0: none), value.
type Row = (i64, i64, i64, &'static [u8]);

const KEYS: TableDefinition<'_, &str, Row> = TableDefinition::new("keys");
/// Lease → time to live in seconds.
const LEASES: TableDefinition<'_, i64, u64> = TableDefinition::new("leases");
const COUNTERS: TableDefinition<'_, &str, i64> = TableDefinition::new("counters");
const REVISION: &str = "revision";
const LAST_LEASE: &str = "last_lease";

/// Opens the database at a path, or makes it.
pub(super) type Create = Box<dyn Fn(&Path) -> Result<Database, DatabaseError> + Send + Sync>;

pub(super) struct MetadataFile {
    path: PathBuf,
    create: Create,
    database: Database,
}

/// As a process does. A file is checked whole, since a damaged page found later could not be reported.
pub(super) fn create(path: &Path) -> Result<Database, DatabaseError> {
    Database::builder().set_check_integrity_on_open(true).create(path)
}

impl MetadataFile {
    pub fn open(path: &Path, create: Create) -> Result<(Self, State), MetadataError> {
        let at = |error: &dyn Display| format!("{}: {error}", path.display());
        RealDisk.create_dir_all(directory(path)).map_err(|error| MetadataError::Unavailable(at(&error)))?;
        let database = create(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => {
                MetadataError::Invalid(at(&"in use by another process; an embedded metadata store serves only one"))
            }
            DatabaseError::Storage(StorageError::Io(error)) if error.kind() != io::ErrorKind::InvalidData => {
                MetadataError::Unavailable(at(&error))
            }
            error => MetadataError::Invalid(at(&error)),
        })?;
        RealDisk.sync_dir(directory(path)).map_err(|error| MetadataError::Unavailable(at(&error)))?;
        let file = Self { path: path.to_owned(), create, database };
        let state = file.load().map_err(|error| MetadataError::Invalid(at(&error)))?;
        Ok((file, state))
    }

    /// Writes everything to a new file, which takes the place of this one. After a failed commit this one is of no use:
    /// redb takes no more, and what a failed sync left unwritten looks written to whoever reads it again.
    pub fn rewrite(&mut self, content: &Content) -> Result<(), MetadataError> {
        let mut beside = self.path.clone().into_os_string();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        let database = self.written(&beside, content).map_err(|error| failed(&error))?;
        RealDisk.rename(&beside, &self.path).map_err(|error| failed(&error))?;
        // From here on, so that nobody else opens what has the name now.
        self.database = database;
        RealDisk.sync_dir(directory(&self.path)).map_err(|error| failed(&error))
    }

    /// A new database with this content.
    fn written(&self, path: &Path, content: &Content) -> Result<Database, redb::Error> {
        match RealDisk.remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let database = (self.create)(path)?;
        let transaction = database.begin_write()?;
        {
            let mut keys = transaction.open_table(KEYS)?;
            content.keys.iter().try_for_each(|item| put(&mut keys, item))?;
            let mut leases = transaction.open_table(LEASES)?;
            for (lease, ttl) in &content.leases {
                leases.insert(lease.0, ttl.as_secs())?;
            }
            let mut counters = transaction.open_table(COUNTERS)?;
            counters.insert(REVISION, content.revision)?;
            counters.insert(LAST_LEASE, content.last_lease)?;
        }
        transaction.commit()?;
        Ok(database)
    }

    fn load(&self) -> Result<State, redb::Error> {
        let transaction = self.database.begin_write()?;
        let (mut keys, mut leases, revision, last_lease) = (BTreeMap::new(), Vec::new(), 1, 0);
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
            keys.insert(key.clone(), KeyValue { key, value, create_revision, mod_revision, lease });
        }
        for row in transaction.open_table(LEASES)?.iter()? {
            leases.push(LeaseId(row?.0.value()));
        }
        transaction.commit()?;
        Ok(State::restore(revision, last_lease, keys, &leases))
    }

    pub fn apply(&self, change: &Change) -> Result<(), MetadataError> {
        if change.events.is_empty() && change.ended.is_none() {
            return Ok(());
        }
        self.write(|transaction| {
            let mut keys = transaction.open_table(KEYS)?;
            for event in &change.events {
                match event {
                    WatchEvent::Put(item) => put(&mut keys, item)?,
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
        written().map_err(|error| failed(&error))
    }
}

fn directory(path: &Path) -> &Path {
    let named = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    named.unwrap_or_else(|| Path::new("."))
}

fn put(keys: &mut Table<'_, &'static str, Row>, item: &KeyValue) -> Result<(), redb::Error> {
    let lease = item.lease.map_or(0, |lease| lease.0);
    keys.insert(item.key.as_str(), (item.create_revision, item.mod_revision, lease, item.value.as_ref()))?;
    Ok(())
}

fn failed(error: &dyn Display) -> MetadataError {
    MetadataError::Unavailable(format!("the metadata file failed: {error}"))
}
