//! What roles stand on: the metadata store, the media, and the log engine over both.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use object_store::ObjectStore;
use woodpecker::{Client, LogError};
use woodpecker_base::{
    backoff::Backoff,
    clock::Clock,
    disk::{Disk, RealDisk},
    health::{HealthReporter, State},
    metadata::{EtcdSettings, EtcdStore, EtcdTls, EtcdUser, MetadataError, MetadataStore, RedbStore},
    random::Random,
    tasks::Tasks,
};
use woodpecker_store::{
    backend::Backend,
    disk::{LocalBackend, LocalSettings},
    object::{
        ObjectBackend, ObjectSettings,
        store::{ObjectStoreSettings, Provider, Secret, StoreOpenError, probe},
    },
    quorum::{
        QuorumBackend, QuorumSettings,
        selection::{Affinity, SelectionPolicy, Selector, Spread, Strategy},
    },
    seal::{SealedSettings, SealedStore},
};

use super::security::Security;
use crate::config::{AffinityMode, Config, MetastoreType, Quorum, SelectStrategy, StorageType};

/// Between attempts to reach what is not there yet.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// The machine, as far as a process uses it.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) clock: Clock,
    pub(crate) random: Random,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) security: Security,
}

impl Machine {
    /// The real one, secured as the configuration says.
    ///
    /// # Errors
    /// A certificate or a token cannot be read.
    pub(crate) fn real(config: &Config) -> anyhow::Result<Self> {
        let clock = Clock::system();
        let security = Security::open(config, &clock)?;
        Ok(Self { clock, random: Random::system(), disk: Arc::new(RealDisk), security })
    }
}

/// Opens the metadata store that the configuration names.
///
/// # Errors
/// It cannot be reached, or another process has the embedded one.
pub(crate) async fn metadata(config: &Config, machine: &Machine) -> anyhow::Result<Arc<dyn MetadataStore>> {
    match config.metastore.kind {
        MetastoreType::Embedded => {
            let path = config.metadata_file();
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)
                    .with_context(|| format!("woodpecker.storage.rootPath: cannot create {}", parent.display()))?;
            }
            let store = RedbStore::open(&path, machine.clock.clone())
                .await
                .with_context(|| format!("metadata file {}", path.display()))?;
            Ok(Arc::new(store))
        }
        MetastoreType::Etcd => {
            let etcd = &config.etcd;
            let mut settings = EtcdSettings::new(etcd.endpoints.clone());
            settings.tls = etcd.ssl.enabled.then(|| EtcdTls {
                ca_file: etcd.ssl.tls_ca_cert.clone().into(),
                client: (!etcd.ssl.tls_cert.is_empty())
                    .then(|| (etcd.ssl.tls_cert.clone().into(), etcd.ssl.tls_key.clone().into())),
            });
            settings.user = etcd.auth.enabled.then(|| EtcdUser {
                name: etcd.auth.user_name.clone(),
                password: etcd.auth.password.expose().to_owned(),
            });
            let store = EtcdStore::connect(settings, machine.clock.clone(), machine.random.clone())
                .await
                .with_context(|| format!("etcd.endpoints {}", etcd.endpoints.join(",")))?;
            Ok(Arc::new(store))
        }
    }
}

/// As [`metadata`], and waits for a store that cannot be reached: a role that starts before it is not ready, not broken.
/// The roles say meanwhile what they wait for.
///
/// # Errors
/// As [`metadata`]'s; or it could not be reached within `common.startTimeout`.
pub(crate) async fn metadata_in_time(
    config: &Config,
    machine: &Machine,
    roles: &[&HealthReporter],
) -> anyhow::Result<Arc<dyn MetadataStore>> {
    in_time("the metadata store was not reached yet", config, machine, roles, || metadata(config, machine)).await
}

/// As [`logs`], and waits for media that cannot be reached, as [`metadata_in_time`] does. With the tasks that the engine
/// runs in.
///
/// # Errors
/// As [`logs`]'s; or a medium could not be reached within `common.startTimeout`.
pub(crate) async fn logs_in_time(
    config: &Config,
    machine: &Machine,
    metadata: &Arc<dyn MetadataStore>,
    roles: &[&HealthReporter],
) -> anyhow::Result<(Client, Tasks)> {
    let open = || async {
        let engine = Tasks::new();
        let opened = Box::pin(logs(config, machine, metadata.clone(), &engine)).await;
        opened.map(|logs| (logs, engine.clone())).inspect_err(|_| engine.stop())
    };
    in_time("the logs' storage was not reached yet", config, machine, roles, open).await
}

/// Tries again what may pass, for as long as a start may take.
async fn in_time<T, F>(
    missing: &str,
    config: &Config,
    machine: &Machine,
    roles: &[&HealthReporter],
    attempt: impl Fn() -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let Machine { clock, random, .. } = machine;
    let say = |missing: Vec<String>| roles.iter().for_each(|role| role.report(State::Initializing, missing.clone()));
    let deadline = clock.now() + config.common.start_timeout;
    let mut pauses = Backoff::new(clock.clone(), random, PAUSES.0, PAUSES.1);
    say(vec![missing.to_owned()]);
    loop {
        let error = match Box::pin(attempt()).await {
            Ok(opened) => {
                say(Vec::new());
                return Ok(opened);
            }
            Err(error) => error,
        };
        if !may_pass(&error) || clock.now() >= deadline {
            return Err(error);
        }
        tracing::warn!(error = format!("{error:#}"), "{missing}; trying again");
        say(vec![format!("{missing}: {error:#}")]);
        pauses.wait().await;
    }
}

/// Whether what could not be opened may be there later. A directory that cannot be opened is for the operator.
fn may_pass(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(MetadataError::is_retryable)
        || error.downcast_ref().is_some_and(LogError::is_retryable)
        || error.downcast_ref().is_some_and(StoreOpenError::is_retryable)
}

/// Opens the log engine on every medium that the configuration describes.
///
/// # Errors
/// A medium cannot be opened or cannot fence.
pub(crate) async fn logs(
    config: &Config,
    machine: &Machine,
    metadata: Arc<dyn MetadataStore>,
    tasks: &Tasks,
) -> anyhow::Result<Client> {
    let Machine { clock, random, disk, .. } = machine;
    let mut backends: BTreeMap<String, Arc<dyn Backend>> = BTreeMap::new();
    let storage = &config.woodpecker.storage;
    if storage.uses(StorageType::Local) {
        let root = config.data_path("woodpecker");
        let local = LocalBackend::open(&root, LocalSettings::default(), disk.clone(), clock.clone(), random.clone())
            .await
            .with_context(|| format!("woodpecker.storage.rootPath: {}", root.display()))?;
        backends.insert(StorageType::Local.name().into(), Arc::new(local));
    }
    let mut objects = None;
    if config.uses_object_store() {
        objects = Some(open_objects(config)?);
    }
    if storage.uses(StorageType::Object)
        && let Some(store) = objects.clone()
    {
        probe(&*store, random).await.context("minio")?;
        let object = &config.woodpecker.client.object_storage;
        let settings = ObjectSettings {
            queued_bytes: usize::try_from(object.max_queued.as_u64())?,
            puts_per_second: object.puts_per_second,
            cache_bytes: object.cache_size.as_u64(),
            ..ObjectSettings::default()
        };
        let object = ObjectBackend::new(store, settings, clock.clone(), random.clone(), tasks.clone());
        backends.insert(StorageType::Object.name().into(), Arc::new(object));
    }
    let rolling = &config.woodpecker.client.segment_rolling_policy;
    let settings = woodpecker::Settings {
        metadata_prefix: format!("{}/{}", config.etcd.root_path, config.woodpecker.meta.prefix),
        backend: storage.kind.name().into(),
        segment_bytes: rolling.max_size.as_u64(),
        segment_age: rolling.max_interval,
        in_flight_bytes: usize::try_from(config.woodpecker.client.segment_append.max_in_flight.as_u64())?,
        read_ahead_bytes: usize::try_from(config.streaming.wal_read_ahead_buffer.capacity.as_u64())?,
    };
    if storage.uses(StorageType::Quorum) {
        let backend = log_stores(config, machine, &settings, &metadata, tasks).await?;
        backends.insert(StorageType::Quorum.name().into(), Arc::new(backend));
    }
    let mut client = Client::new(settings, metadata, backends, clock.clone(), random.clone(), tasks.clone());
    if let Some(store) = objects {
        let cache_bytes = config.woodpecker.client.sealed.cache_size.as_u64();
        let settings = SealedSettings { cache_bytes, ..SealedSettings::default() };
        client = client.with_sealed(SealedStore::new(store, settings, clock.clone(), random.clone()));
    }
    client.claim_media().await.context("woodpecker.storage and minio")?;
    Ok(client)
}

/// The backend on log stores, which a watch of the metadata finds.
async fn log_stores(
    config: &Config,
    machine: &Machine,
    settings: &woodpecker::Settings,
    metadata: &Arc<dyn MetadataStore>,
    tasks: &Tasks,
) -> anyhow::Result<QuorumBackend> {
    let Machine { clock, random, .. } = machine;
    // Log stores outlive the metadata: what belongs to records that are gone must meet none of the new ones.
    let (backends, clocked) = (BTreeMap::new(), (clock.clone(), random.clone()));
    let names =
        Client::new(settings.clone(), metadata.clone(), backends, clocked.0.clone(), clocked.1.clone(), tasks.clone());
    let namespace = names.instance().await.context("the instance's identity")?;
    let quorum = &config.woodpecker.client.quorum;
    let prefix = match quorum.log_store_prefix.as_str() {
        "" => &settings.metadata_prefix,
        prefix => prefix,
    };
    let wanted = QuorumSettings {
        region: quorum.region.clone(),
        zone: quorum.az.clone(),
        ..QuorumSettings::new(&namespace, selection(quorum))
    };
    Ok(QuorumBackend::start(wanted, metadata.clone(), prefix, machine.security.connector.clone(), clocked, tasks))
}

/// Opens the log engine with its metadata, for a process that has no other use for them.
///
/// # Errors
/// The metadata or a medium cannot be opened.
pub(crate) async fn open_logs(config: &Config, machine: &Machine, tasks: &Tasks) -> anyhow::Result<Client> {
    let metadata = Box::pin(metadata(config, machine)).await?;
    logs(config, machine, metadata, tasks).await
}

/// Which log stores new segments go to.
fn selection(quorum: &Quorum) -> SelectionPolicy {
    let chosen = &quorum.quorum_select_strategy;
    let spread = |zone, resource_group, region| Strategy::Spread { zone, resource_group, region };
    let (any, one, many) = (Spread::Any, Spread::One, Spread::Many);
    let strategy = match chosen.strategy {
        SelectStrategy::Random => spread(any, any, any),
        SelectStrategy::RandomGroup => spread(any, one, any),
        SelectStrategy::SingleAzSingleRg => spread(one, one, any),
        SelectStrategy::SingleAzMultiRg => spread(one, many, any),
        SelectStrategy::MultiAzSingleRg => spread(many, one, any),
        SelectStrategy::MultiAzMultiRg => spread(many, many, any),
        SelectStrategy::CrossRegion => spread(any, any, many),
        SelectStrategy::Custom => {
            let selectors = chosen.custom_placement.iter().map(|place| Selector {
                region: place.region.clone(),
                zone: place.az.clone(),
                resource_group: place.resource_group.clone(),
            });
            Strategy::Custom(selectors.collect())
        }
    };
    let affinity = match chosen.affinity_mode {
        AffinityMode::Soft => Affinity::Soft,
        AffinityMode::Hard => Affinity::Hard,
    };
    SelectionPolicy { replicas: chosen.replicas, strategy, affinity }
}

/// Opens the object store of the configuration. No request is made.
///
/// # Errors
/// What no store can be opened with, and its key.
pub(crate) fn open_objects(config: &Config) -> anyhow::Result<Arc<dyn ObjectStore>> {
    object_store(config).open().map_err(|error| {
        let key = match &error {
            StoreOpenError::Setting { key: "ca_file", .. } => "minio.ssl.tlsCACert",
            StoreOpenError::Setting { key: "access_key", .. } => "minio.accessKeyID",
            StoreOpenError::Setting { key: "endpoint", .. } => "minio.address",
            StoreOpenError::Setting { key: "path" | "root", .. } => "minio.rootPath",
            _ => "minio",
        };
        anyhow::Error::from(error).context(key)
    })
}

fn object_store(config: &Config) -> ObjectStoreSettings {
    let minio = &config.minio;
    let provider = match minio.cloud_provider.as_str() {
        "gcp" => Provider::Gcs,
        "azure" => Provider::Azure,
        "local" => Provider::File,
        _ => Provider::S3,
    };
    let endpoint = minio.endpoint();
    ObjectStoreSettings {
        provider,
        bucket: minio.bucket_name.clone(),
        root: if provider == Provider::File { String::new() } else { minio.root_path.clone() },
        allow_http: endpoint.starts_with("http://"),
        endpoint,
        region: minio.region.clone(),
        access_key: minio.access_key_id.clone(),
        secret_key: Secret(minio.secret_access_key.expose().to_owned()),
        virtual_host_style: minio.use_virtual_host,
        path: Path::new(&minio.root_path).to_path_buf(),
        ca_file: minio.ssl.tls_ca_cert.clone().into(),
        ..ObjectStoreSettings::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    fn objects(assignments: &[&str]) -> anyhow::Result<ObjectStoreSettings> {
        let assignments =
            assignments.iter().chain(&["woodpecker.storage.type=object"]).map(ToString::to_string).collect();
        let config = load(&Sources { assignments, ..Sources::default() })?;
        open_objects(&config)?;
        Ok(object_store(&config))
    }

    #[test]
    fn on_azure_an_identity_needs_the_name_of_the_account_and_no_key() {
        let settings = objects(&["minio.cloudProvider=azure", "minio.accessKeyID=logs"]).unwrap();
        assert_eq!((settings.access_key.as_str(), settings.endpoint.as_str()), ("logs", ""));
        let error = objects(&["minio.cloudProvider=azure"]).unwrap_err().to_string();
        assert!(error.starts_with("minio.accessKeyID:"), "{error}");
    }

    #[test]
    fn a_cloud_is_dialled_where_it_is_unless_an_address_is_set() {
        let azure = ["minio.cloudProvider=azure", "minio.accessKeyID=logs"];
        for (address, endpoint) in [
            ("core.chinacloudapi.cn", "https://logs.blob.core.chinacloudapi.cn"),
            ("http://127.0.0.1:10000/logs", "http://127.0.0.1:10000/logs"),
        ] {
            let settings = objects(&[azure[0], azure[1], &format!("minio.address={address}")]).unwrap();
            assert_eq!((settings.endpoint.as_str(), settings.allow_http), (endpoint, endpoint.starts_with("http:")));
        }
        let gcp = |more: &[&str]| objects(&[&["minio.cloudProvider=gcp"][..], more].concat()).unwrap().endpoint;
        assert_eq!(gcp(&[]), "");
        assert_eq!(
            gcp(&["minio.address=storage.me-central2.rep.googleapis.com"]),
            "https://storage.me-central2.rep.googleapis.com"
        );
        assert_eq!(objects(&["minio.address=s3.example.com"]).unwrap().endpoint, "http://s3.example.com:9000");
    }
}
