//! Maintenance of the logs, beside a role that has other things to do.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinHandle;
use woodpecker::{Client, LogError, Maintenance, MaintenanceSettings};
use woodpecker_base::{backoff::Backoff, disk::Space, metadata::MetadataStore, tasks::Tasks};
use woodpecker_store::backend::StoreError;

use self::pressure::Pressed;
use super::{storage, storage::Machine};
use crate::config::{Config, StorageType};

mod pressure;

const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long the engine may take to end.
const GRACE: Duration = Duration::from_secs(5);

/// Maintains the logs of a client in `tasks`, if the configuration wants it.
pub(super) fn maintain(
    config: &Config,
    machine: &Machine,
    metadata: &Arc<dyn MetadataStore>,
    logs: &Client,
    tasks: &Tasks,
) {
    if config.woodpecker.maintenance.enabled {
        let maintenance = maintenance(config, machine, metadata, logs, tasks);
        let stop = tasks.clone();
        tasks.spawn(async move { maintenance.serve(&stop).await });
    }
}

/// As [`maintain`], with an engine of its own, which is opened in the background: a medium that is away keeps no role
/// from starting. What comes of it is an error when a medium is another instance's: whoever is so mistaken must not go on.
pub(super) fn maintain_apart(
    config: &Config,
    machine: &Machine,
    metadata: &Arc<dyn MetadataStore>,
    tasks: &Tasks,
) -> JoinHandle<anyhow::Result<()>> {
    let (config, machine, metadata, stop) = (config.clone(), machine.clone(), metadata.clone(), tasks.clone());
    tasks.spawn(async move {
        if !config.woodpecker.maintenance.enabled {
            return Ok(());
        }
        let mut pauses = Backoff::new(machine.clock.clone(), &machine.random, PAUSES.0, PAUSES.1);
        let (logs, engine) = loop {
            let engine = Tasks::new();
            let opened = tokio::select! {
                biased;
                () = stop.stopped() => return Ok(()),
                opened = storage::logs(&config, &machine, metadata.clone(), &engine) => opened,
            };
            match opened {
                Ok(logs) => break (logs, engine),
                Err(error) if is_foreign(&error) => return Err(error),
                Err(error) => tracing::warn!(error = format!("{error:#}"), "the logs cannot be maintained yet"),
            }
            engine.stop();
            tokio::select! {
                biased;
                () = stop.stopped() => return Ok(()),
                () = pauses.wait() => {}
            }
        };
        maintenance(&config, &machine, &metadata, &logs, &engine).serve(&stop).await;
        logs.close().await;
        engine.drain(&machine.clock, GRACE).await;
        Ok(())
    })
}

fn is_foreign(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(LogError::Store(StoreError::Foreign { .. })))
}

fn maintenance(
    config: &Config,
    machine: &Machine,
    metadata: &Arc<dyn MetadataStore>,
    logs: &Client,
    tasks: &Tasks,
) -> Maintenance {
    let Config { woodpecker, etcd, .. } = config;
    let own = woodpecker.storage.uses(StorageType::Local).then(|| (machine.disk.clone(), config.data_path("")));
    let stores = woodpecker.storage.uses(StorageType::Quorum).then(|| {
        let prefix = match woodpecker.client.quorum.log_store_prefix.as_str() {
            "" => format!("{}/{}", etcd.root_path, woodpecker.meta.prefix),
            prefix => prefix.to_owned(),
        };
        Pressed::follow(metadata, &prefix, machine, tasks)
    });
    let least = woodpecker.maintenance.min_free;
    Maintenance::new(logs, settings(config)).with_pressure(move || {
        // A disk that does not say how full it is gives no reason to delete anything early.
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        let full = |space: Space| (space.free as f64) < least * space.total as f64;
        let here = own.as_ref().is_some_and(|(disk, data)| disk.space(data).is_ok_and(full));
        here || stores.as_ref().is_some_and(Pressed::any)
    })
}

fn settings(config: &Config) -> MaintenanceSettings {
    let wanted = &config.woodpecker.maintenance;
    MaintenanceSettings {
        sealing: wanted.sealing.unwrap_or(true),
        seal_after: wanted.seal_after,
        seal_bytes: wanted.seal_size.as_u64(),
        parallelism: wanted.parallelism,
        memory_bytes: usize::try_from(wanted.memory.as_u64()).unwrap_or(usize::MAX),
        interval: wanted.interval,
        keep_truncated: wanted.keep_truncated,
        sweep_interval: wanted.sweep_interval,
        sweep_grace: wanted.sweep_grace,
        session_ttl: config.common.session.ttl,
    }
}
