//! Starting: the facts, the volumes, and whether they belong together.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, atomic::AtomicBool},
};

use tokio::sync::{Notify, RwLock, Semaphore, watch};
use woodpecker_base::{clock::Clock, disk::Disk, metadata::MetadataStore, random::Random, tasks::Tasks};
use woodpecker_core::ids::{StoreId, VolumeId};
use woodpecker_store::{
    backend::StoreError,
    disk::{LocalBackend, LocalSettings, Piece},
};

use super::{Advertised, Store};
use crate::{
    failure::Failure,
    ledger::{Facts, Ledger, StoreMeta},
    metrics,
    namespace::{Namespace, Namespaces},
    refusal::Refusal,
    replica::{Common, Latency, Replica, ReplicaKey},
    settings::{Settings, SettingsError},
    watermark::Gauge,
};

/// What a store works with, injected.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The data directory; volumes lie in `volumes` below it.
    pub path: PathBuf,
    pub disk: Arc<dyn Disk>,
    /// Where the store keeps its facts: its own, on the same disk as the volumes.
    pub facts: Arc<dyn MetadataStore>,
    pub clock: Clock,
    pub random: Random,
}

/// Why a store did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("setting {0}")]
    Settings(#[from] SettingsError),
    #[error("the data directory {path}: {detail}")]
    Directory { path: String, detail: String },
    /// The disk under the facts was lost or swapped. Entries that were acked are gone; other replicas have them.
    #[error(
        "volume {volume} of store {id} is gone from {path}: the disk was lost or swapped. Put it back; or, if it is gone \
         for good, empty the data directory, so that a new store starts in its place"
    )]
    VolumeGone { volume: VolumeId, id: String, path: String },
    /// Volumes without the facts that belong to them: fences may have been forgotten.
    #[error("{path} has volumes and no identity: its facts were lost. Put them back, or empty the directory")]
    FactsGone { path: String },
    #[error("the store's facts: {0}")]
    Facts(Refusal),
    #[error(transparent)]
    Volumes(#[from] StoreError),
    #[error("serving gRPC: {0}")]
    Server(#[from] tonic::transport::Error),
}

impl StartError {
    /// A stable code for documentation and programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Settings(_) => "LOGSTORE_SETTINGS",
            Self::Directory { .. } => "LOGSTORE_DIRECTORY",
            Self::VolumeGone { .. } => "LOGSTORE_VOLUME_GONE",
            Self::FactsGone { .. } => "LOGSTORE_FACTS_GONE",
            Self::Facts(refusal) => refusal.code(),
            Self::Volumes(error) => error.code(),
            Self::Server(_) => "LOGSTORE_SERVER",
        }
    }

    /// Whether starting again may succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Settings(_) | Self::VolumeGone { .. } | Self::FactsGone { .. } => false,
            Self::Facts(refusal) => refusal.is_retryable(),
            Self::Volumes(error) => error.is_retryable(),
            Self::Directory { .. } | Self::Server(_) => true,
        }
    }

    /// Whether something may be left behind: an identity, a registration that ends with its lease.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        matches!(self, Self::Server(_))
    }
}

/// A store, and what is left to delete of what it held.
#[derive(Debug)]
pub struct Opened {
    pub store: Arc<Store>,
    pub orphans: Vec<Piece>,
}

impl Store {
    /// Opens the data directory: reads the facts, scans the volumes, and checks that they belong together.
    ///
    /// # Errors
    /// [`StartError`]; nothing is changed then.
    pub async fn start(settings: Settings, parts: Parts, tasks: &Tasks) -> Result<Opened, StartError> {
        settings.validate()?;
        let Parts { path, disk, facts, clock, random } = parts;
        let directory =
            |error: io::Error| StartError::Directory { path: path.display().to_string(), detail: error.to_string() };
        disk.create_dir_all(&path).map_err(directory)?;
        let gauge = Gauge::new(settings.watermarks, &*disk, &path, random.clone()).map_err(directory)?;
        let failure = Arc::new(Failure::default());
        let (ledger, facts) = Ledger::open(facts, failure.clone(), tasks).await.map_err(StartError::Facts)?;
        let volumes = volume_settings(&settings);
        let backend = LocalBackend::open(&path, volumes, disk.clone(), clock.clone(), random.clone()).await?;
        let scanned = backend.pieces().await?;
        let meta = identity(&facts, &scanned, &path, &ledger, &random).await?;
        if let Some(gone) = facts.volumes.iter().find(|id| !scanned.iter().any(|(found, _)| found == *id)) {
            return Err(StartError::VolumeGone {
                volume: *gone,
                id: meta.id.to_string(),
                path: path.display().to_string(),
            });
        }
        for volume in left(&facts, &scanned) {
            if let Err(error) = backend.clear(volume).await {
                tracing::warn!(%volume, %error, "what is left of a volume that nobody needs stays on the disk");
            }
        }
        let settings = Arc::new(settings);
        let namespaces = Namespaces::new(facts.namespaces.clone(), settings.clone(), clock.clone());
        let common = Common { failure, clock: clock.clone(), latency: Latency(metrics::append_latency()) };
        let Restored { replicas, orphans, doubt } = restore(&facts, scanned, &namespaces, &common);
        let [.., in_flight] = settings.in_flight.units();
        let store = Arc::new(Store {
            identity: meta.id,
            id: meta.id.to_string(),
            settings,
            clock,
            namespaces,
            path,
            disk,
            backend,
            letting_go: RwLock::default(),
            ledger,
            replicas: Mutex::new(replicas),
            released: Mutex::new(facts.released),
            volumes: Mutex::new(facts.volumes),
            gauge: Arc::new(gauge),
            common,
            in_flight: Arc::new(Semaphore::new(in_flight)),
            decommissioning: AtomicBool::new(meta.decommissioning),
            deciding: tokio::sync::Mutex::default(),
            doubt,
            unwritten: Mutex::new(VecDeque::new()),
            heard: Notify::new(),
            advertised: watch::Sender::default(),
        });
        metrics::has_zone(!store.settings.zone.is_empty());
        if store.settings.zone.is_empty() {
            tracing::warn!(
                "no zone is set (woodpecker.logstore.zone): replicas are not spread over zones by this store"
            );
        }
        store.advertise();
        Ok(Opened { store, orphans })
    }
}

fn volume_settings(settings: &Settings) -> LocalSettings {
    let all = usize::try_from(settings.in_flight.total).unwrap_or(usize::MAX);
    // What is counted in units may be a little more in bytes.
    LocalSettings { queue_bytes: all.saturating_mul(2), ..LocalSettings::default() }
}

/// The identity that was written once, or a new one for an empty directory.
async fn identity(
    facts: &Facts,
    scanned: &[(VolumeId, Result<Vec<Piece>, StoreError>)],
    path: &std::path::Path,
    ledger: &Ledger,
    random: &Random,
) -> Result<StoreMeta, StartError> {
    if let Some(meta) = &facts.store {
        return Ok(meta.clone());
    }
    if !scanned.is_empty() {
        return Err(StartError::FactsGone { path: path.display().to_string() });
    }
    let meta = StoreMeta { id: StoreId(random.u128()), decommissioning: false };
    ledger.settled(ledger.put_store(&meta)).await.map_err(StartError::Facts)?;
    tracing::info!(id = %meta.id, path = %path.display(), "a new store");
    Ok(meta)
}

/// Volumes of earlier runs of which nothing is needed any more: no release will come to what is left of their files.
fn left(facts: &Facts, scanned: &[(VolumeId, Result<Vec<Piece>, StoreError>)]) -> Vec<VolumeId> {
    let is_left = |(volume, pieces): &&(VolumeId, Result<Vec<Piece>, StoreError>)| {
        facts.volumes.contains(volume) && pieces.as_ref().is_ok_and(Vec::is_empty)
    };
    scanned.iter().filter(is_left).map(|(volume, _)| *volume).collect()
}

#[derive(Default)]
struct Restored {
    replicas: BTreeMap<ReplicaKey, Arc<Replica>>,
    /// Pieces of what was released or deleted.
    orphans: Vec<Piece>,
    doubt: Option<Arc<str>>,
}

/// Puts together what the facts and the volumes say.
fn restore(
    facts: &Facts,
    scanned: Vec<(VolumeId, Result<Vec<Piece>, StoreError>)>,
    namespaces: &Namespaces,
    common: &Common,
) -> Restored {
    let by_number: BTreeMap<u32, Arc<Namespace>> =
        namespaces.all().into_iter().map(|namespace| (namespace.number, namespace)).collect();
    let mut restored = Restored::default();
    let mut held: BTreeMap<ReplicaKey, Vec<Piece>> = BTreeMap::new();
    for (volume, pieces) in scanned {
        match pieces {
            Ok(pieces) if !facts.volumes.contains(&volume) && !pieces.is_empty() => {
                tracing::error!(%volume, "a volume that this store did not write; it is left alone");
            }
            Ok(pieces) => {
                for piece in pieces {
                    let key = ReplicaKey::from_disk(piece.key);
                    let known = key.and_then(|key| Some((key, by_number.get(&key.namespace)?)));
                    match known {
                        Some((key, namespace)) if namespace.is_deleted() || is_released(facts, key) => {
                            restored.orphans.push(piece);
                        }
                        Some((key, _)) => held.entry(key).or_default().push(piece),
                        None => tracing::error!(%volume, segment = %piece.key, "a segment of an unknown namespace"),
                    }
                }
            }
            Err(error) => {
                tracing::error!(%volume, %error, "a volume cannot be read whole: what it held is in doubt");
                let doubt = || format!("volume {volume} of the store is damaged: {error}").into();
                restored.doubt.get_or_insert_with(doubt);
            }
        }
    }
    let keys: BTreeSet<ReplicaKey> = held.keys().chain(facts.replicas.keys()).copied().collect();
    for key in keys {
        let Some(namespace) = by_number.get(&key.namespace).filter(|namespace| !namespace.is_deleted()) else {
            continue;
        };
        let mut pieces = held.remove(&key).unwrap_or_default();
        pieces.sort_by_key(|piece| (piece.first, piece.end));
        let replica = Replica::new(key, namespace.clone(), common.clone());
        let record = facts.replicas.get(&key).copied().unwrap_or_default();
        replica.restore(record, &pieces, restored.doubt.as_ref());
        restored.replicas.insert(key, Arc::new(replica));
    }
    restored
}

fn is_released(facts: &Facts, key: ReplicaKey) -> bool {
    facts.released.get(&(key.namespace, key.log)).is_some_and(|released| released.contains(key.segment))
}

impl Default for Advertised {
    fn default() -> Self {
        Self { state: streaming_proto::logstore::State::Unspecified, load: 0 }
    }
}
