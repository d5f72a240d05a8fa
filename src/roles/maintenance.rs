//! Maintenance of the logs, beside a role that has other things to do.

use std::{sync::Arc, time::Duration};

use woodpecker::{Client, Maintenance, MaintenanceSettings};
use woodpecker_base::{backoff::Backoff, disk::Space, metadata::MetadataStore, tasks::Tasks};

use super::{storage, storage::Machine};
use crate::config::{Config, StorageType};

const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long the engine may take to end.
const GRACE: Duration = Duration::from_secs(5);

/// Maintains the logs of a client in `tasks`, if the configuration wants it.
pub(super) fn maintain(config: &Config, machine: &Machine, logs: &Client, tasks: &Tasks) {
    if config.woodpecker.maintenance.enabled {
        let maintenance = maintenance(config, machine, logs);
        let stop = tasks.clone();
        tasks.spawn(async move { maintenance.serve(&stop).await });
    }
}

/// As [`maintain`], with an engine of its own, which is opened in the background: a medium that is away keeps no role
/// from starting.
pub(super) fn maintain_apart(config: &Config, machine: &Machine, metadata: &Arc<dyn MetadataStore>, tasks: &Tasks) {
    if !config.woodpecker.maintenance.enabled {
        return;
    }
    let (config, machine, metadata, stop) = (config.clone(), machine.clone(), metadata.clone(), tasks.clone());
    tasks.spawn(async move {
        let mut pauses = Backoff::new(machine.clock.clone(), &machine.random, PAUSES.0, PAUSES.1);
        let (logs, engine) = loop {
            let engine = Tasks::new();
            let opened = tokio::select! {
                biased;
                () = stop.stopped() => return,
                opened = storage::logs(&config, &machine, metadata.clone(), &engine) => opened,
            };
            match opened {
                Ok(logs) => break (logs, engine),
                Err(error) => tracing::warn!(error = format!("{error:#}"), "the logs cannot be maintained yet"),
            }
            engine.stop();
            tokio::select! {
                biased;
                () = stop.stopped() => return,
                () = pauses.wait() => {}
            }
        };
        maintenance(&config, &machine, &logs).serve(&stop).await;
        logs.close().await;
        engine.drain(&machine.clock, GRACE).await;
    });
}

fn maintenance(config: &Config, machine: &Machine, logs: &Client) -> Maintenance {
    let maintenance = Maintenance::new(logs, settings(config));
    if !config.woodpecker.storage.uses(StorageType::Local) {
        return maintenance;
    }
    let (disk, data, least) = (machine.disk.clone(), config.data_path(""), config.woodpecker.maintenance.min_free);
    maintenance.with_pressure(move || {
        let space = disk.space(&data);
        // A disk that does not say how full it is gives no reason to delete anything early.
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        let full = |space: Space| (space.free as f64) < least * space.total as f64;
        space.is_ok_and(full)
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
