//! The medium under a run: which one it is, what it can do by itself, and how often the engine wrote it.

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;

use super::{
    disk::{self, RawDisk},
    latency::{Latencies, Rates},
    objects::{self, RawObjects},
};
use crate::{
    config::{Config, StorageType},
    roles::{Machine, open_objects},
};

#[derive(Debug)]
pub(super) enum Medium {
    Disk(RawDisk),
    Objects(RawObjects),
}

impl Medium {
    pub(super) fn open(config: &Config, machine: &Machine) -> anyhow::Result<Self> {
        let directory = config.data_path("medium");
        match config.woodpecker.storage.kind {
            StorageType::Local => {
                let volumes = config.data_path("woodpecker").join("volumes");
                Ok(Self::Disk(RawDisk::open(directory, Some(volumes), machine)?))
            }
            // Log stores have disks like this one, where they run on one machine with the bench.
            StorageType::Quorum => Ok(Self::Disk(RawDisk::open(directory, None, machine)?)),
            StorageType::Object => Ok(Self::Objects(RawObjects::open(open_objects(config)?, machine))),
        }
    }

    /// Bytes of one write, and how many are on their way at once.
    pub(super) fn blocks(&self) -> (usize, usize) {
        match self {
            Self::Disk(_) => (disk::BLOCK, 1),
            Self::Objects(_) => (objects::BLOCK, objects::PUTS),
        }
    }

    /// Writes about so many bytes, durably.
    pub(super) async fn write(&mut self, bytes: usize, rates: &mut Rates) -> anyhow::Result<()> {
        let (block, _) = self.blocks();
        let blocks = bytes.div_ceil(block);
        let elapsed: Duration = match self {
            Self::Disk(raw) => raw.write(blocks).await?,
            Self::Objects(raw) => raw.write(blocks).await?,
        };
        rates.record((blocks * block) as u64, elapsed);
        Ok(())
    }

    /// Reads so many bytes of what was written.
    pub(super) async fn read(&self, bytes: usize, rates: &mut Rates) -> anyhow::Result<()> {
        let elapsed = match self {
            Self::Disk(raw) => raw.read(bytes).await?,
            Self::Objects(raw) => raw.read(bytes).await?,
        };
        rates.record(bytes as u64, elapsed);
        Ok(())
    }

    /// Makes the next read, of the medium or through the engine, come from the medium; false if it does so anyway.
    pub(super) fn forget(&self) -> anyhow::Result<bool> {
        match self {
            Self::Disk(raw) => raw.forget(),
            Self::Objects(_) => Ok(false),
        }
    }

    /// One small durable write after another.
    pub(super) async fn write_small(&mut self, count: usize, latencies: &mut Latencies) -> anyhow::Result<()> {
        match self {
            Self::Disk(raw) => raw.write_small(count, latencies).await,
            Self::Objects(raw) => raw.write_small(count, latencies).await,
        }
    }

    /// Removes what was written here.
    pub(super) async fn clear(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Disk(raw) => raw.clear(),
            Self::Objects(raw) => raw.clear().await,
        }
    }

    /// How often the engine has written the medium so far: synced batches, or objects.
    pub(super) fn written(&self, metrics: &PrometheusHandle) -> u64 {
        let name = match self {
            Self::Disk(_) => "woodpecker_volume_batch_bytes_count",
            Self::Objects(_) => "woodpecker_object_batches_total",
        };
        let rendered = metrics.render();
        let mut values = rendered.lines().filter_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        values.next().unwrap_or(0)
    }
}
