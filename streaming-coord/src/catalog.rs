//! What the coordinator keeps in the metadata store, under `<root>/streamingcoord-meta/`.
//!
//! Every write holds only while this coordinator leads (the leader's key is still the incarnation it created) and only
//! on top of the value it knows, so that neither a deposed leader nor a request that was given up and arrives late can
//! put back what has been written since.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message;
use streaming_proto::streaming::{CChannelMeta, PChannelMeta, StreamingVersion};
use woodpecker_base::{
    backoff::Backoff,
    clock::Clock,
    metadata::{Compare, KeyValue, MetadataError, MetadataStore, Revision, Snapshot, Txn, TxnOutcome},
    random::Random,
};

use crate::pchannel::{Damaged, PChannel};

/// Why the catalogue could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CatalogError {
    /// Nothing was written, and never will be by this reign.
    #[error("another coordinator leads")]
    Deposed,
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Damaged(#[from] Damaged),
    #[error("the value of {key} is damaged")]
    DamagedValue { key: String },
}

impl CatalogError {
    pub(crate) fn is_retryable(&self) -> bool {
        matches!(self, Self::Metadata(error) if error.is_retryable())
    }
}

/// A key and the revision of the value that we know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    key: String,
    revision: Option<Revision>,
    /// Whether the outcome of the last write is known.
    settled: bool,
}

impl Record {
    fn new(key: String, revision: Option<Revision>) -> Self {
        Self { key, revision, settled: true }
    }

    /// Whether what stands there is surely what was last written with success. Otherwise a write that failed, or that nobody
    /// waited for to its end, may have come through, and who reads the key next would go by it: write it again.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled
    }
}

/// What was stored before.
#[derive(Debug)]
pub(crate) struct Stored {
    /// Every stored or configured channel.
    pub(crate) channels: BTreeMap<String, (PChannel, Record)>,
    /// The channel that carries the control channel, for ever.
    pub(crate) control_channel: String,
}

/// The catalogue, as the leader of one reign reads and writes it.
#[derive(Debug, Clone)]
pub(crate) struct Catalog {
    store: Arc<dyn MetadataStore>,
    root: String,
    guard: Compare,
    clock: Clock,
    random: Random,
    timeout: Duration,
}

impl Catalog {
    pub(crate) fn new(
        store: Arc<dyn MetadataStore>,
        metadata_root: &str,
        guard: Compare,
        (clock, random): (Clock, Random),
        timeout: Duration,
    ) -> Self {
        Self { store, root: format!("{metadata_root}/streamingcoord-meta"), guard, clock, random, timeout }
    }

    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.root)
    }

    /// Reads all channels and the control channel; what a new cluster lacks is written.
    pub(crate) async fn load(&self, configured: &[String]) -> Result<Stored, CatalogError> {
        let prefix = self.key("pchannel/");
        let snapshot = self.list(&prefix).await?;
        let mut channels = BTreeMap::new();
        for item in snapshot.items {
            let name = item.key.strip_prefix(&prefix).unwrap_or_default();
            let meta = PChannelMeta::decode(item.value).map_err(|_| damaged(&item.key))?;
            let channel = PChannel::from_meta(name, meta)?;
            let record = Record::new(item.key.clone(), Some(item.mod_revision));
            channels.insert(name.to_owned(), (channel, record));
        }
        for name in configured {
            let record = Record::new(format!("{prefix}{name}"), None);
            channels.entry(name.clone()).or_insert_with(|| (PChannel::fresh(name), record));
        }
        let control_channel = self.control_channel(configured).await?;
        // Its existence tells every reader that channels are served for reading and writing.
        let (mut version, stored) = self.read(self.key("version")).await?;
        if stored.is_none() {
            self.write(&mut version, StreamingVersion { version: 1 }.encode_to_vec().into()).await?;
        }
        Ok(Stored { channels, control_channel })
    }

    async fn control_channel(&self, configured: &[String]) -> Result<String, CatalogError> {
        let (mut record, stored) = self.read(self.key("cchannel")).await?;
        if let Some(value) = stored {
            let meta = CChannelMeta::decode(value).map_err(|_| damaged(&record.key))?;
            return if meta.pchannel.is_empty() { Err(damaged(&record.key)) } else { Ok(meta.pchannel) };
        }
        let pchannel = configured.first().cloned().ok_or_else(|| damaged(&record.key))?;
        self.write(&mut record, CChannelMeta { pchannel: pchannel.clone() }.encode_to_vec().into()).await?;
        Ok(pchannel)
    }

    /// Makes the channel durable, trying until it is.
    ///
    /// # Errors
    /// Never one that a later try could overcome.
    pub(crate) async fn store_channel(&self, record: &mut Record, channel: &PChannel) -> Result<(), CatalogError> {
        self.write_until_stored(record, channel.to_meta().encode_to_vec().into()).await
    }

    /// A number by name, 0 if there is none.
    pub(crate) async fn number(&self, name: &str) -> Result<(Record, u64), CatalogError> {
        let (record, stored) = self.read(self.key(name)).await?;
        let value = match stored {
            None => 0,
            Some(value) => {
                let text = std::str::from_utf8(&value).ok();
                text.and_then(|text| text.parse().ok()).ok_or_else(|| damaged(&record.key))?
            }
        };
        Ok((record, value))
    }

    /// Makes a number durable; one try.
    pub(crate) async fn store_number(&self, record: &mut Record, value: u64) -> Result<(), CatalogError> {
        self.write(record, value.to_string().into()).await
    }

    /// A JSON value by name.
    pub(crate) async fn json<T: serde::de::DeserializeOwned + Default>(
        &self,
        name: &str,
    ) -> Result<(Record, T), CatalogError> {
        let (record, stored) = self.read(self.key(name)).await?;
        let value = match stored {
            None => T::default(),
            Some(value) => serde_json::from_slice(&value).map_err(|_| damaged(&record.key))?,
        };
        Ok((record, value))
    }

    /// Makes a JSON value durable; one try.
    pub(crate) async fn store_json<T: serde::Serialize + Sync>(
        &self,
        record: &mut Record,
        value: &T,
    ) -> Result<(), CatalogError> {
        let json = serde_json::to_vec(value).map_err(|error| MetadataError::Invalid(error.to_string()))?;
        self.write(record, json.into()).await
    }

    /// A proto message by name.
    pub(crate) async fn message<M: Message + Default>(&self, name: &str) -> Result<(Record, Option<M>), CatalogError> {
        let (record, stored) = self.read(self.key(name)).await?;
        let value = stored.map(|value| M::decode(value).map_err(|_| damaged(&record.key))).transpose()?;
        Ok((record, value))
    }

    /// Makes a proto message durable; one try.
    pub(crate) async fn store_message(&self, record: &mut Record, value: &impl Message) -> Result<(), CatalogError> {
        self.write(record, value.encode_to_vec().into()).await
    }

    /// All proto messages whose names begin with `prefix`, by the rest of their names.
    pub(crate) async fn messages<M: Message + Default>(
        &self,
        prefix: &str,
    ) -> Result<Vec<(String, Record, M)>, CatalogError> {
        let prefix = self.key(prefix);
        let items = self.list(&prefix).await?.items.into_iter();
        let read = items.map(|KeyValue { key, value, mod_revision, .. }| {
            let message = M::decode(value).map_err(|_| damaged(&key))?;
            Ok((key[prefix.len()..].to_owned(), Record::new(key, Some(mod_revision)), message))
        });
        read.collect()
    }

    /// The record of something that is not there yet.
    pub(crate) fn fresh(&self, name: &str) -> Record {
        Record::new(self.key(name), None)
    }

    /// Removes a record; one try.
    pub(crate) async fn remove(&self, record: &Record) -> Result<(), CatalogError> {
        let txn = Txn::new().when(self.guard.clone()).delete(&record.key);
        match self.within(self.store.commit(txn)).await? {
            TxnOutcome::Committed(_) => Ok(()),
            TxnOutcome::Conflict => Err(CatalogError::Deposed),
        }
    }

    async fn write_until_stored(&self, record: &mut Record, value: Bytes) -> Result<(), CatalogError> {
        let (first, limit) = (Duration::from_millis(50), Duration::from_secs(2));
        let mut backoff = Backoff::new(self.clock.clone(), &self.random, first, limit);
        loop {
            match self.write(record, value.clone()).await {
                Err(error) if error.is_retryable() => {
                    tracing::warn!(key = record.key, %error, "metadata write failed, trying again");
                    backoff.wait().await;
                }
                done => return done,
            }
        }
    }

    async fn write(&self, record: &mut Record, value: Bytes) -> Result<(), CatalogError> {
        record.settled = false;
        loop {
            let known = match record.revision {
                Some(revision) => Compare::ModRevision(record.key.clone(), revision),
                None => Compare::Absent(record.key.clone()),
            };
            let txn = Txn::new().when(self.guard.clone()).when(known).put(&record.key, value.clone());
            if let TxnOutcome::Committed(revision) = self.within(self.store.commit(txn)).await? {
                record.revision = Some(revision);
                break;
            }
            // Only this reign writes here: what stands there is a write of ours whose outcome we never learned.
            let leads = Txn::new().when(self.guard.clone());
            if self.within(self.store.commit(leads)).await? == TxnOutcome::Conflict {
                return Err(CatalogError::Deposed);
            }
            let current = self.within(self.store.get(&record.key)).await?;
            record.revision = current.as_ref().map(|current| current.mod_revision);
            if current.is_some_and(|current| current.value == value) {
                break;
            }
        }
        record.settled = true;
        Ok(())
    }

    async fn read(&self, key: String) -> Result<(Record, Option<Bytes>), CatalogError> {
        let stored = self.within(self.store.get(&key)).await?;
        let revision = stored.as_ref().map(|stored| stored.mod_revision);
        Ok((Record::new(key, revision), stored.map(|stored| stored.value)))
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, CatalogError> {
        self.within(self.store.list(prefix)).await
    }

    async fn within<T>(&self, call: impl Future<Output = Result<T, MetadataError>> + Send) -> Result<T, CatalogError> {
        match self.clock.timeout(self.timeout, call).await {
            Ok(outcome) => Ok(outcome?),
            Err(_) => Err(MetadataError::Unavailable("the request took too long".into()).into()),
        }
    }
}

fn damaged(key: &str) -> CatalogError {
    CatalogError::DamagedValue { key: key.to_owned() }
}

#[cfg(test)]
pub(crate) mod tests {
    use woodpecker_base::metadata::MemoryStore;

    use super::*;

    /// Takes the leadership from whoever has it.
    pub(crate) async fn reign(store: &MemoryStore) -> Compare {
        store.commit(Txn::new().delete("leader")).await.unwrap();
        let TxnOutcome::Committed(create_revision) = store.commit(Txn::new().put("leader", "me")).await.unwrap() else {
            panic!("no compare, no conflict");
        };
        Compare::CreateRevision("leader".into(), create_revision)
    }

    pub(crate) fn catalog(store: &MemoryStore, guard: Compare) -> Catalog {
        let edges = (Clock::system(), Random::seeded(1));
        Catalog::new(Arc::new(store.clone()), "r", guard, edges, Duration::from_secs(1))
    }

    #[tokio::test]
    async fn a_new_cluster_gets_its_control_channel_once() {
        let store = MemoryStore::new(Clock::system());
        let catalog = catalog(&store, reign(&store).await);
        assert_eq!(catalog.load(&["b".into(), "c".into()]).await.unwrap().control_channel, "b");
        let again = catalog.load(&["a".into(), "b".into()]).await.unwrap();
        assert_eq!(again.control_channel, "b");
        assert!(store.get("r/streamingcoord-meta/version").await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_channel_that_is_no_longer_configured_stays() {
        let store = MemoryStore::new(Clock::system());
        let catalog = catalog(&store, reign(&store).await);
        let mut stored = catalog.load(&["a".into(), "b".into()]).await.unwrap();
        let (channel, record) = stored.channels.get_mut("b").unwrap();
        catalog.store_channel(record, channel).await.unwrap();
        let stored = catalog.load(&["a".into()]).await.unwrap();
        assert_eq!(stored.channels.keys().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[tokio::test]
    async fn a_deposed_leader_writes_nothing() {
        let store = MemoryStore::new(Clock::system());
        let old = catalog(&store, reign(&store).await);
        let (mut record, _) = old.number("n").await.unwrap();
        old.store_number(&mut record, 1).await.unwrap();
        let _successor = reign(&store).await;
        assert!(matches!(old.store_number(&mut record, 2).await, Err(CatalogError::Deposed)));
        assert_eq!(old.number("n").await.unwrap().1, 1);
    }

    #[tokio::test]
    async fn a_write_of_unknown_outcome_is_found_and_overwritten() {
        let store = MemoryStore::new(Clock::system());
        let catalog = catalog(&store, reign(&store).await);
        let (mut record, _) = catalog.number("n").await.unwrap();
        let mut lost = record.clone();
        catalog.store_number(&mut lost, 7).await.unwrap();
        catalog.store_number(&mut record, 8).await.unwrap();
        assert_eq!(catalog.number("n").await.unwrap().1, 8);
    }

    #[tokio::test]
    async fn a_damaged_value_stops_the_load() {
        let store = MemoryStore::new(Clock::system());
        let catalog = catalog(&store, reign(&store).await);
        store.commit(Txn::new().put("r/streamingcoord-meta/pchannel/a", "\u{ff}\u{ff}")).await.unwrap();
        assert!(catalog.load(&["a".into()]).await.is_err());
    }
}
