//! What roles stand on: the metadata store, the media, and the log engine over both.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use anyhow::Context;
use woodpecker::Client;
use woodpecker_base::{
    clock::Clock,
    disk::{Disk, RealDisk},
    metadata::{EtcdSettings, EtcdStore, EtcdTls, EtcdUser, MetadataStore, RedbStore},
    net::tcp_connector,
    random::Random,
    tasks::Tasks,
};
use woodpecker_store::{
    backend::Backend,
    disk::{LocalBackend, LocalSettings},
    object::{
        ObjectBackend, ObjectSettings,
        store::{ObjectStoreSettings, Provider, Secret, probe},
    },
    quorum::{
        QuorumBackend, QuorumSettings,
        selection::{Affinity, SelectionPolicy, Selector, Spread, Strategy},
    },
};

use crate::config::{AffinityMode, Config, MetastoreType, Quorum, SelectStrategy, StorageType};

/// The machine, as far as a process uses it.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) clock: Clock,
    pub(crate) random: Random,
    pub(crate) disk: Arc<dyn Disk>,
}

impl Machine {
    pub(crate) fn real() -> Self {
        Self { clock: Clock::system(), random: Random::system(), disk: Arc::new(RealDisk) }
    }
}

/// Opens the metadata store that the configuration names.
///
/// # Errors
/// It cannot be reached, or another process has the embedded one.
pub(crate) async fn metadata(config: &Config, machine: &Machine) -> anyhow::Result<Arc<dyn MetadataStore>> {
    match config.metastore.kind {
        MetastoreType::Embedded => {
            let path = match config.metastore.path.as_str() {
                "" => config.data_path("metadata.redb"),
                path => path.into(),
            };
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
    let Machine { clock, random, disk } = machine;
    let mut backends: BTreeMap<String, Arc<dyn Backend>> = BTreeMap::new();
    let kind = config.woodpecker.storage.kind;
    if kind == StorageType::Local {
        let root = config.data_path("woodpecker");
        let local = LocalBackend::open(&root, LocalSettings::default(), disk.clone(), clock.clone(), random.clone())
            .await
            .with_context(|| format!("woodpecker.storage.rootPath: {}", root.display()))?;
        backends.insert(StorageType::Local.name().into(), Arc::new(local));
    }
    if kind == StorageType::Object {
        let settings = object_store(config);
        let store = settings.open().context("minio")?;
        probe(&*store, random).await.context("minio")?;
        let object = ObjectBackend::new(store, ObjectSettings::default(), clock.clone(), random.clone(), tasks.clone());
        backends.insert(StorageType::Object.name().into(), Arc::new(object));
    }
    let rolling = &config.woodpecker.client.segment_rolling_policy;
    let metadata_prefix = format!("{}/{}", config.etcd.root_path, config.woodpecker.meta.prefix);
    let settings = woodpecker::Settings {
        metadata_prefix: metadata_prefix.clone(),
        backend: kind.name().into(),
        segment_bytes: rolling.max_size.as_u64(),
        segment_age: rolling.max_interval,
        in_flight_bytes: usize::try_from(config.woodpecker.client.segment_append.max_in_flight.as_u64())?,
    };
    if kind == StorageType::Quorum {
        // Log stores outlive the metadata: what belongs to records that are gone must meet none of the new ones.
        let names = Client::new(
            settings.clone(),
            metadata.clone(),
            BTreeMap::new(),
            clock.clone(),
            random.clone(),
            tasks.clone(),
        );
        let namespace = names.instance().await.context("the instance's identity")?;
        let quorum = &config.woodpecker.client.quorum;
        let prefix = match quorum.log_store_prefix.as_str() {
            "" => &metadata_prefix,
            prefix => prefix,
        };
        let backend = QuorumBackend::start(
            QuorumSettings {
                region: quorum.region.clone(),
                zone: quorum.az.clone(),
                ..QuorumSettings::new(&namespace, selection(quorum))
            },
            metadata.clone(),
            prefix,
            tcp_connector(),
            (clock.clone(), random.clone()),
            tasks,
        );
        backends.insert(StorageType::Quorum.name().into(), Arc::new(backend));
    }
    Ok(Client::new(settings, metadata, backends, clock.clone(), random.clone(), tasks.clone()))
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

/// The object store of the configuration.
pub(crate) fn object_store(config: &Config) -> ObjectStoreSettings {
    let minio = &config.minio;
    let provider = match minio.cloud_provider.as_str() {
        "gcp" => Provider::Gcs,
        "azure" => Provider::Azure,
        "local" => Provider::File,
        _ => Provider::S3,
    };
    let endpoint = if provider == Provider::S3 { minio.endpoint() } else { String::new() };
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
        ..ObjectStoreSettings::default()
    }
}
