//! What a WAL keeps in the metadata store, under `<metadata root>/streamingnode-meta/wal/<pchannel>/`.
//!
//! Every write is conditional on the term of the WAL's owner, which is a key among the others: an owner that lost the WAL
//! without noticing cannot overwrite what its successor wrote.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message as _;
use streaming_proto::{
    common::ReplicateCheckpoint,
    streaming::{SegmentAssignmentMeta, VChannelMeta, WalCheckpoint},
};
use woodpecker::EntryId;
use woodpecker_base::metadata::{Compare, KeyValue, MetadataError, MetadataStore, Txn, TxnOutcome, Write};

use super::state::{Checkpoint, Schema, VChannel};

const TERM: &str = "term";
const CHECKPOINT: &str = "consume-checkpoint";
const VCHANNEL: &str = "vchannel/";
const SCHEMA: &str = "/schema/";
const DROPPED: &str = "dropped-vchannel/";
const SEGMENT: &str = "segment-assign/";
const CONSUMER: &str = "consumer/";
const KEYS_FROM: &str = "idempotency-keys-from";
const SALVAGE: &str = "salvage-checkpoint/";
/// Bytes of a transaction: etcd takes none larger than 1.5 MiB unless it is told to.
const TXN_BYTES: usize = 1 << 20;

/// The metadata could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CatalogError {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error("the write-ahead log belongs to term {0}")]
    Overtaken(String),
}

impl CatalogError {
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Metadata(error) if error.is_retryable())
    }
}

/// One WAL's keys, for the owner of one term.
#[derive(Debug, Clone)]
pub struct Catalog {
    store: Arc<dyn MetadataStore>,
    /// Ends with a slash.
    prefix: String,
    term: i64,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Persisted {
    pub checkpoint: Option<Checkpoint>,
    /// Where the newest idempotency keys begin.
    pub keys_from: Option<EntryId>,
    pub vchannels: BTreeMap<String, VChannel>,
    /// Those that are gone, and where in the log their drop stands.
    pub dropped: BTreeMap<String, EntryId>,
    pub segments: BTreeMap<i64, SegmentAssignmentMeta>,
}

/// What is to be written: components first, the checkpoint that presumes them last.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Changes {
    pub components: Vec<Change>,
    pub checkpoint: Checkpoint,
    /// Where the newest idempotency keys begin; `None` if the log has no messages.
    pub keys_from: Option<EntryId>,
}

/// One component as it is now.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    VChannel(String, VChannel),
    /// Dropped by the message at this entry.
    VChannelGone(String, EntryId),
    /// The log holds nothing of a dropped vchannel any more.
    DropGone(String),
    Segment(SegmentAssignmentMeta),
    SegmentGone(i64),
    /// Where the WAL was at the source that it was promoted without.
    Salvage(ReplicateCheckpoint),
}

impl Catalog {
    /// Makes `term` the owner of a WAL's metadata, unless a later one is.
    ///
    /// # Errors
    /// [`CatalogError::Overtaken`] by a later term; the metadata store's.
    pub async fn claim(
        store: Arc<dyn MetadataStore>,
        metadata_root: &str,
        pchannel: &str,
        term: i64,
    ) -> Result<Self, CatalogError> {
        let prefix = format!("{metadata_root}/streamingnode-meta/wal/{pchannel}/");
        let catalog = Self { store, prefix, term };
        let key = catalog.key(TERM);
        loop {
            let held = catalog.store.get(&key).await?;
            let unchanged = match held {
                None => Compare::Absent(key.clone()),
                Some(KeyValue { value, mod_revision, .. }) => {
                    let text = String::from_utf8_lossy(&value).into_owned();
                    match text.parse::<i64>() {
                        Ok(held) if held == term => return Ok(catalog),
                        Ok(held) if held < term => Compare::ModRevision(key.clone(), mod_revision),
                        _ => return Err(CatalogError::Overtaken(text)),
                    }
                }
            };
            let txn = Txn::new().when(unchanged).put(key.clone(), catalog.owner());
            if let TxnOutcome::Committed(_) = catalog.store.commit(txn).await? {
                return Ok(catalog);
            }
        }
    }

    /// Reads everything at one revision. What cannot be read is left out and said aloud: a WAL that does not open for it
    /// would help nobody.
    ///
    /// # Errors
    /// [`CatalogError::Overtaken`] if the WAL has a later owner by now; the metadata store's.
    pub async fn load(&self) -> Result<Persisted, CatalogError> {
        let items = self.store.list(&self.prefix).await?.items;
        let owner = items.iter().find(|item| item.key[self.prefix.len()..] == *TERM).map(|item| &item.value);
        if owner != Some(&self.owner()) {
            return Err(overtaken(&owner.cloned().unwrap_or_default()));
        }
        let mut persisted = Persisted::default();
        // A vchannel sorts before its schemas.
        for item in items {
            if persisted.read(&item.key[self.prefix.len()..], item.value).is_none() {
                tracing::error!(key = item.key, "left out a record that cannot be read");
            }
        }
        Ok(persisted)
    }

    /// Writes changes, in as many transactions as they need; schemas that a vchannel had before are left as they are. After an
    /// error the same changes may be written again.
    ///
    /// # Errors
    /// [`CatalogError::Overtaken`] if the WAL has a later owner; the metadata store's.
    pub async fn save(&self, changes: &Changes) -> Result<(), CatalogError> {
        // What is gone goes in transactions of its own: a vchannel may be there again, under the same keys.
        let gone = |change: &&Change| matches!(change, Change::VChannelGone(..) | Change::DropGone(_));
        let deletes: Vec<Write> =
            changes.components.iter().filter(gone).flat_map(|change| self.writes(change)).collect();
        let others = changes.components.iter().filter(|change| !gone(change));
        let mut writes: Vec<Write> = others.flat_map(|change| self.writes(change)).collect();
        let keys_from = changes.keys_from.map(|from| (KEYS_FROM, Checkpoint::at(from, 0)));
        for (name, position) in keys_from.into_iter().chain([(CHECKPOINT, changes.checkpoint.clone())]) {
            let value = position.to_proto().encode_to_vec().into();
            writes.push(Write::Put { key: self.key(name), value, lease: None });
        }
        for batch in batches(&deletes).into_iter().chain(batches(&writes)) {
            let txn = Txn { compares: vec![self.owned()], writes: batch.to_vec() };
            if self.store.commit(txn).await? == TxnOutcome::Conflict {
                let owner = self.store.get(&self.key(TERM)).await?;
                return Err(overtaken(&owner.map(|owner| owner.value).unwrap_or_default()));
            }
        }
        Ok(())
    }

    /// Where the registered consumers are: who, and from where on it may still need the log.
    ///
    /// # Errors
    /// The metadata store's.
    pub async fn consumers(&self) -> Result<BTreeMap<String, Checkpoint>, CatalogError> {
        let prefix = self.key(CONSUMER);
        let items = self.store.list(&prefix).await?.items;
        // A position that cannot be read holds back everything.
        let position = |item: &KeyValue| {
            let checkpoint = WalCheckpoint::decode(item.value.as_ref()).ok();
            checkpoint.and_then(|proto| Checkpoint::from_proto(&proto)).unwrap_or_default()
        };
        Ok(items.iter().map(|item| (item.key[prefix.len()..].to_owned(), position(item))).collect())
    }

    /// Notes that `consumer` needs nothing before `position` any more; the first report registers it. Whoever owns the
    /// WAL writes this, so it follows the owner's order. `false` if it is a vchannel that was dropped: nothing is noted.
    ///
    /// # Errors
    /// [`CatalogError::Overtaken`]; the metadata store's.
    pub async fn report(&self, consumer: &str, position: Checkpoint) -> Result<bool, CatalogError> {
        let (key, value) = (self.consumer(consumer), position.to_proto().encode_to_vec());
        // In one transaction: the drop is written together with the end of the registration, which must not come back.
        let alive = Compare::Absent(self.key(&format!("{DROPPED}{consumer}")));
        let txn = Txn::new().when(self.owned()).when(alive).put(key, value);
        if let TxnOutcome::Committed(_) = self.store.commit(txn).await? {
            return Ok(true);
        }
        let owner = self.store.get(&self.key(TERM)).await?.map(|owner| owner.value).unwrap_or_default();
        if owner == self.owner() { Ok(false) } else { Err(overtaken(&owner)) }
    }

    /// Forgets a consumer, known or not: nothing is kept for it any more.
    ///
    /// # Errors
    /// [`CatalogError::Overtaken`]; the metadata store's.
    pub async fn forget(&self, consumer: &str) -> Result<(), CatalogError> {
        let txn = Txn::new().when(self.owned()).delete(self.consumer(consumer));
        match self.store.commit(txn).await? {
            TxnOutcome::Committed(_) => Ok(()),
            TxnOutcome::Conflict => Err(CatalogError::Overtaken(String::new())),
        }
    }

    fn consumer(&self, name: &str) -> String {
        self.key(&format!("{CONSUMER}{name}"))
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn owned(&self) -> Compare {
        Compare::Value(self.key(TERM), self.owner())
    }

    fn owner(&self) -> Bytes {
        self.term.to_string().into()
    }

    fn not_dropped(&self, vchannel: &str) -> Write {
        Write::Delete { key: self.key(&format!("{DROPPED}{vchannel}")) }
    }

    fn writes(&self, change: &Change) -> Vec<Write> {
        let put = |key: String, value: Vec<u8>| Write::Put { key, value: value.into(), lease: None };
        match change {
            Change::VChannel(name, vchannel) => {
                let key = self.key(&format!("{VCHANNEL}{name}"));
                let schema = |schema: &Schema| put(format!("{key}{SCHEMA}{}", schema.tick), schema.encode());
                let schemas: Vec<Write> = vchannel.schemas.iter().map(schema).collect();
                // The schemas first: peers trust a vchannel to have one.
                let vchannel = [put(key, vchannel.to_proto(name).encode_to_vec()), self.not_dropped(name)];
                schemas.into_iter().chain(vchannel).collect()
            }
            Change::VChannelGone(name, dropped) => {
                let key = self.key(&format!("{VCHANNEL}{name}"));
                // Its consumer may have nothing to say any more, and is not waited for. It goes no later than the vchannel,
                // which is what the next owner would know it by.
                let dropped = Checkpoint::at(*dropped, 0).to_proto().encode_to_vec();
                vec![
                    Write::Delete { key: self.consumer(name) },
                    put(self.key(&format!("{DROPPED}{name}")), dropped),
                    Write::DeletePrefix { prefix: format!("{key}/") },
                    Write::Delete { key },
                ]
            }
            Change::DropGone(name) => vec![self.not_dropped(name)],
            Change::Segment(segment) => {
                vec![put(self.key(&format!("{SEGMENT}{}", segment.segment_id)), segment.encode_to_vec())]
            }
            Change::SegmentGone(id) => vec![Write::Delete { key: self.key(&format!("{SEGMENT}{id}")) }],
            Change::Salvage(left) => {
                vec![put(self.key(&format!("{SALVAGE}{}", left.cluster_id)), left.encode_to_vec())]
            }
        }
    }
}

/// Writes that go together: no more, and no larger, than a metadata store takes.
fn batches(mut writes: &[Write]) -> Vec<&[Write]> {
    let mut batches = Vec::new();
    while !writes.is_empty() {
        let mut bytes = 0;
        let fits = writes.iter().take(Txn::MAX_OPERATIONS).take_while(|write| {
            bytes += size(write);
            bytes <= TXN_BYTES
        });
        let (batch, rest) = writes.split_at(fits.count().max(1));
        batches.push(batch);
        writes = rest;
    }
    batches
}

fn size(write: &Write) -> usize {
    match write {
        Write::Put { key, value, .. } => key.len() + value.len(),
        Write::Delete { key } | Write::DeletePrefix { prefix: key } => key.len(),
    }
}

fn overtaken(owner: &[u8]) -> CatalogError {
    CatalogError::Overtaken(String::from_utf8_lossy(owner).into_owned())
}

impl Persisted {
    fn read(&mut self, key: &str, value: Bytes) -> Option<()> {
        if key == CHECKPOINT {
            self.checkpoint = Some(Checkpoint::from_proto(&WalCheckpoint::decode(value).ok()?)?);
        } else if key == KEYS_FROM {
            self.keys_from = Some(Checkpoint::from_proto(&WalCheckpoint::decode(value).ok()?)?.id);
        } else if let Some(name) = key.strip_prefix(DROPPED) {
            let dropped = Checkpoint::from_proto(&WalCheckpoint::decode(value).ok()?)?.id;
            self.dropped.insert(name.to_owned(), dropped);
        } else if let Some(id) = key.strip_prefix(SEGMENT) {
            let segment = SegmentAssignmentMeta::decode(value).ok()?;
            self.segments.insert(id.parse().ok()?, segment);
        } else if let Some(name) = key.strip_prefix(VCHANNEL) {
            match name.split_once(SCHEMA) {
                Some((name, _)) => self.vchannels.get_mut(name)?.schemas.push(Schema::decode(value)?),
                None => {
                    let vchannel = VChannel::from_proto(&VChannelMeta::decode(value).ok()?);
                    self.vchannels.insert(name.to_owned(), vchannel);
                }
            }
        }
        Some(())
    }

    /// The segments whose vchannel is not there (any more).
    pub fn orphans(&self) -> BTreeSet<i64> {
        let orphan = |segment: &&SegmentAssignmentMeta| !self.vchannels.contains_key(&segment.vchannel);
        self.segments.values().filter(orphan).map(|segment| segment.segment_id).collect()
    }
}
