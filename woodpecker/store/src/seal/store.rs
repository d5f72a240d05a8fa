//! Where runs are kept: objects `sealed/<log>/<segment>/<attempt>/<first entry>`.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, path::Path};
use quick_cache::Weighter;
use woodpecker_base::{clock::Clock, random::Random};
use woodpecker_core::{
    ids::{LogId, SealId, SegmentKey},
    record::{Sealed, SealedRun},
};

use super::{
    format::{BlockAt, Contents, RunId},
    reader::SealedReader,
    run::{Run, contents, slice},
};
use crate::{
    backend::StoreError,
    cache::{Cache, cache},
    format::FormatError,
    object::requests::{Operation, Requests},
};

/// Blocks are read in groups of about this many bytes before compression, each with one request: a group is taken apart
/// and kept as one, and a little of what is stored may be much of what was written.
const GROUP_BYTES: u64 = 1 << 20;
/// Read of an object's end whose index length is not known yet; it holds the index of a run of 64 MiB.
const TAIL_GUESS: u64 = 16 << 10;

/// How sealed segments are stored and read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedSettings {
    /// Bytes of one object, about.
    pub run_bytes: usize,
    /// One request may take so long, and a second more for each MiB it moves.
    pub request_timeout: Duration,
    /// Memory for what was read lately.
    pub cache_bytes: u64,
}

impl Default for SealedSettings {
    fn default() -> Self {
        Self { run_bytes: 16 << 20, request_timeout: Duration::from_secs(3), cache_bytes: 256 << 20 }
    }
}

/// One process's access to the sealed segments of an instance. What was read is shared by all readers of the process,
/// and reads of the same thing at the same time are one request.
pub struct SealedStore {
    requests: Requests,
    pub(super) settings: SealedSettings,
    indexes: Cache<RunId, Arc<RunIndex>, InBytes>,
    groups: Cache<(RunId, usize), Group, InBytes>,
}

/// What a run holds, and in which groups its blocks are read.
#[derive(Debug)]
pub(super) struct RunIndex {
    pub contents: Contents,
    /// The first block of each group, and the number of blocks at the end.
    bounds: Vec<usize>,
}

/// Entries that were read with one request.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub first: u64,
    pub entries: Arc<[Bytes]>,
    bytes: u64,
}

/// An object that may belong to no segment any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    pub key: SegmentKey,
    pub seal: SealId,
    /// Wall time in milliseconds, by the store's clock.
    pub stored_ms: u64,
    path: Path,
}

#[derive(Debug, Clone)]
struct InBytes;

const PLACE: u64 = 128;

impl Weighter<RunId, Arc<RunIndex>> for InBytes {
    fn weight(&self, _: &RunId, index: &Arc<RunIndex>) -> u64 {
        PLACE + (index.contents.blocks.len() * size_of::<BlockAt>()) as u64
    }
}

impl Weighter<(RunId, usize), Group> for InBytes {
    fn weight(&self, _: &(RunId, usize), group: &Group) -> u64 {
        PLACE + group.bytes
    }
}

impl SealedStore {
    /// Access to what is, and will be, in `store`. Makes no request.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, settings: SealedSettings, clock: Clock, random: Random) -> Arc<Self> {
        let (indexes, groups) = (settings.cache_bytes / 16, settings.cache_bytes - settings.cache_bytes / 16);
        let requests = Requests::new(store, clock, random, settings.request_timeout);
        Arc::new(Self {
            requests,
            settings,
            indexes: cache(indexes, TAIL_GUESS, InBytes),
            groups: cache(groups, GROUP_BYTES, InBytes),
        })
    }

    /// Makes the object store the instance's, or checks that it is.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] when it is another's, or has objects that do not say whose they are; the store's.
    pub async fn claim(&self, instance: &str) -> Result<(), StoreError> {
        self.requests.claim(instance).await
    }

    /// Whether the object store says that it is the instance's.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] when it is another's; the store's.
    pub async fn is_claimed(&self, instance: &str) -> Result<bool, StoreError> {
        self.requests.is_claimed(instance).await
    }

    /// Bytes of one object, about.
    #[must_use]
    pub fn run_bytes(&self) -> usize {
        self.settings.run_bytes.max(1)
    }

    /// Stores a run, reads it back, and checks every byte against what came from the source.
    ///
    /// # Errors
    /// The store's, or [`StoreError::Corrupt`] when it gave back something else.
    pub async fn put(&self, run: &Run) -> Result<SealedRun, StoreError> {
        let (path, bytes) = (path(run.id), run.bytes.len() as u64);
        // The name is this attempt's alone: to write it twice writes the same bytes.
        self.requests
            .retry(Operation::Put, path.as_ref(), bytes, || self.requests.store.put(&path, run.bytes.clone().into()))
            .await?;
        let stored = self.requests.range(&path, 0, bytes).await?;
        run.check(&stored).map_err(|error| corrupt(run.id, &error))?;
        Ok(SealedRun { first: run.id.first, bytes })
    }

    /// A reader of a sealed segment that holds so many entries. Makes no request.
    #[must_use]
    pub fn open(self: &Arc<Self>, key: SegmentKey, sealed: &Sealed, entries: u64) -> Arc<SealedReader> {
        Arc::new(SealedReader::new(self.clone(), key, sealed, entries))
    }

    /// Removes a sealed segment's objects; what is gone already is no error.
    ///
    /// # Errors
    /// The store's.
    pub async fn delete(&self, key: SegmentKey, sealed: &Sealed) -> Result<(), StoreError> {
        let paths = sealed.runs.iter().map(|run| path(RunId { key, seal: sealed.id, first: run.first })).collect();
        self.requests.delete(&format!("delete of sealed segment {key}"), paths).await
    }

    /// Removes whatever is left of a log that was deleted.
    ///
    /// # Errors
    /// The store's.
    pub async fn delete_log(&self, log: LogId) -> Result<(), StoreError> {
        let found = self.requests.list(&Path::from(format!("sealed/{log}")), None, usize::MAX).await?;
        let paths = found.into_iter().map(|meta| meta.location).collect();
        self.requests.delete(&format!("delete of sealed log {log}"), paths).await
    }

    /// Whether there is anything of a sealed form of a segment.
    ///
    /// # Errors
    /// The store's.
    pub async fn has(&self, key: SegmentKey) -> Result<bool, StoreError> {
        let found = self.requests.list(&segment(key), None, 1).await?;
        Ok(!found.is_empty())
    }

    /// Every object there is. What its name does not explain is not ours, and left alone.
    ///
    /// # Errors
    /// The store's.
    pub async fn list(&self) -> Result<Vec<Leftover>, StoreError> {
        let found = self.requests.list(&Path::from("sealed"), None, usize::MAX).await?;
        Ok(found.into_iter().filter_map(Leftover::new).collect())
    }

    /// Removes objects.
    ///
    /// # Errors
    /// The store's.
    pub async fn remove(&self, leftovers: Vec<Leftover>) -> Result<(), StoreError> {
        let paths = leftovers.into_iter().map(|leftover| leftover.path).collect();
        self.requests.delete("delete of leftovers of sealing", paths).await
    }

    /// What a run holds.
    pub(super) async fn index(&self, id: RunId, bytes: u64) -> Result<Arc<RunIndex>, StoreError> {
        let load = async {
            let guess = bytes.min(TAIL_GUESS);
            let mut tail = self.requests.range(&path(id), bytes - guess, bytes).await?;
            let need = Contents::tail_bytes(&tail).map_err(|error| corrupt(id, &error))?;
            if need > guess && need <= bytes {
                tail = self.requests.range(&path(id), bytes - need, bytes).await?;
            }
            contents(&tail, bytes, id).map(|contents| Arc::new(RunIndex::new(contents))).map_err(|e| corrupt(id, &e))
        };
        self.indexes.get_or_insert_async(&id, load).await
    }

    /// The entries of a group of blocks.
    pub(super) async fn group(&self, index: &RunIndex, number: usize) -> Result<Group, StoreError> {
        let id = index.contents.run;
        let load = async {
            let blocks = index.blocks(number);
            let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else {
                return Err(corrupt(id, &FormatError::Structure("no such group of blocks")));
            };
            let bytes = self.requests.range(&path(id), first.offset, last.end()).await?;
            let mut entries = Vec::new();
            for block in blocks {
                let stored = slice(&bytes, block.offset - first.offset, block.end() - first.offset);
                let decoded = stored.and_then(|stored| block.decode(id, &stored));
                entries.extend(decoded.map_err(|error| corrupt(id, &error))?);
            }
            let kept: usize = entries.iter().map(|entry| entry.len() + size_of::<Bytes>()).sum();
            Ok(Group { first: first.first, entries: entries.into(), bytes: kept as u64 })
        };
        self.groups.get_or_insert_async(&(id, number), load).await
    }
}

impl fmt::Debug for SealedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedStore").field("requests", &self.requests).finish_non_exhaustive()
    }
}

impl RunIndex {
    fn new(contents: Contents) -> Self {
        let (mut bounds, mut bytes) = (vec![0], 0);
        for (number, block) in contents.blocks.iter().enumerate() {
            bytes += u64::from(block.raw);
            if bytes >= GROUP_BYTES || number + 1 == contents.blocks.len() {
                bounds.push(number + 1);
                bytes = 0;
            }
        }
        Self { contents, bounds }
    }

    fn blocks(&self, group: usize) -> &[BlockAt] {
        match self.bounds.get(group..).and_then(|rest| rest.first_chunk::<2>()) {
            Some([from, to]) => self.contents.blocks.get(*from..*to).unwrap_or_default(),
            None => &[],
        }
    }

    /// The group with an entry that is in this run.
    pub fn group_of(&self, entry: u64) -> usize {
        let block = self.contents.blocks.partition_point(|block| block.next() <= entry);
        self.bounds.partition_point(|bound| *bound <= block).saturating_sub(1)
    }
}

impl Leftover {
    fn new(meta: ObjectMeta) -> Option<Self> {
        let names: Vec<String> = meta.location.parts().map(|part| part.as_ref().to_owned()).collect();
        let [.., sealed, log, segment, seal, first] = names.as_slice() else { return None };
        let ours = sealed == "sealed" && segment.len() == 20 && seal.len() == 32 && first.len() == 20;
        let key = SegmentKey { log: LogId(log.parse().ok()?), segment: segment.parse().ok()? };
        let seal = SealId(u128::from_str_radix(seal, 16).ok()?);
        let stored_ms = u64::try_from(meta.last_modified.timestamp_millis()).ok()?;
        ours.then_some(Self { key, seal, stored_ms, path: meta.location })
    }
}

pub(super) fn path(id: RunId) -> Path {
    let RunId { key, seal, first } = id;
    Path::from(format!("{}/{seal}/{first:020}", segment(key)))
}

fn segment(key: SegmentKey) -> Path {
    Path::from(format!("sealed/{}/{:020}", key.log, key.segment))
}

pub(super) fn corrupt(id: RunId, error: &FormatError) -> StoreError {
    StoreError::Corrupt { what: path(id).to_string(), detail: error.to_string() }
}
