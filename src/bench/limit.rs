//! The medium under a run: which one it is, what it can do by itself, and how often it was written.

use std::{path::PathBuf, sync::Arc};

use metrics_exporter_prometheus::PrometheusHandle;
use object_store::{ObjectStore, path::Path as ObjectPath};

use super::{PARALLEL, SMALL, Size, medium};
use crate::{
    bench::latency::Percentiles,
    config::{Config, StorageType},
    roles::{Machine, object_store},
};

/// Objects in flight at once, as the engine has them.
const PUTS_IN_FLIGHT: usize = 4;
/// Bytes the engine gathers before it starts another PUT while one is in flight.
const PUT_BYTES: usize = 2 << 20;

#[derive(Debug)]
pub(super) enum Medium {
    Disk(PathBuf),
    Object(Arc<dyn ObjectStore>),
}

/// What the medium does by itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes per second, written durably, in blocks as large as the engine's.
    pub(super) write_rate: f64,
    /// Bytes per second, read.
    pub(super) read_rate: f64,
    /// One small durable write after another.
    pub(super) write: Percentiles,
}

impl Limits {
    /// Between a measurement before and one after: machines drift.
    pub(super) fn mean(&self, other: &Self) -> Self {
        let mean = |a: f64, b: f64| f64::midpoint(a, b);
        Self {
            write_rate: mean(self.write_rate, other.write_rate),
            read_rate: mean(self.read_rate, other.read_rate),
            write: Percentiles {
                count: self.write.count + other.write.count,
                p50_ms: mean(self.write.p50_ms, other.write.p50_ms),
                p99_ms: mean(self.write.p99_ms, other.write.p99_ms),
                p999_ms: mean(self.write.p999_ms, other.write.p999_ms),
            },
        }
    }
}

impl Medium {
    pub(super) fn open(config: &Config, _machine: &Machine) -> anyhow::Result<Self> {
        match config.woodpecker.storage.kind {
            // Log stores have disks like this one, where they run on one machine with the bench.
            StorageType::Local | StorageType::Quorum => Ok(Self::Disk(config.data_path("medium"))),
            StorageType::Object => Ok(Self::Object(object_store(config).open()?)),
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Disk(_) => StorageType::Local.name(),
            Self::Object(_) => StorageType::Object.name(),
        }
    }

    pub(super) async fn measure(&self, machine: &Machine, size: Size) -> anyhow::Result<Limits> {
        eprintln!("measuring the medium");
        let Machine { clock, disk, random } = machine;
        let bytes = size.entry * size.entries;
        match self {
            Self::Disk(directory) => {
                disk.create_dir_all(directory)?;
                let block = size.entry * PARALLEL;
                let count = (bytes / block).max(1);
                let write = medium::disk_writes(disk, directory, clock, block, count).await?;
                let read = medium::disk_reads(disk, directory, clock, block, count).await?;
                let small = medium::disk_writes(disk, directory, clock, SMALL, size.operations).await?;
                Ok(Limits { write_rate: write.rate(), read_rate: read.rate(), write: small.latencies.percentiles() })
            }
            Self::Object(store) => {
                let prefix = ObjectPath::from(format!("bench-{:032x}", random.u128()));
                let count = (bytes / PUT_BYTES).max(PUTS_IN_FLIGHT);
                let large = prefix.clone().join("large");
                let write = medium::object_puts(store, &large, clock, PUT_BYTES, count, PUTS_IN_FLIGHT).await?;
                let read = medium::object_gets(store, &large, clock, count, PUTS_IN_FLIGHT).await?;
                let small = prefix.join("small");
                let one = medium::object_puts(store, &small, clock, SMALL, size.operations, 1).await?;
                medium::object_gets(store, &small, clock, size.operations, PUTS_IN_FLIGHT).await?;
                Ok(Limits { write_rate: write.rate(), read_rate: read.rate(), write: one.latencies.percentiles() })
            }
        }
    }

    /// How often the engine has written the medium so far: synced batches, or objects.
    pub(super) fn writes(&self, metrics: &PrometheusHandle) -> f64 {
        let name = match self {
            Self::Disk(_) => "woodpecker_volume_batch_bytes_count",
            Self::Object(_) => "woodpecker_object_batches_total",
        };
        let rendered = metrics.render();
        let mut values = rendered.lines().filter_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
        values.next().unwrap_or(0.0)
    }
}
