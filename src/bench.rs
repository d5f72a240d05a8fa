//! `streaming bench`: append, read and the medium under them, measured in one run and set side by side.
//!
//! Every figure stands beside the medium's own limit from the same run, because machines are shared and noisy: the ratio
//! is what one compares.

mod engine;
mod latency;
mod limit;
mod medium;
mod report;
mod stream;

use crate::{
    cli::BenchArgs,
    config::Config,
    roles::{Machine, Standalone},
    telemetry,
};
use limit::Medium;
use report::Report;

/// Entries on their way at once in the throughput measurements.
const PARALLEL: usize = 32;
/// Bytes of one entry in the latency measurements.
const SMALL: usize = 1024;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
struct Size {
    /// Bytes of one entry where throughput is measured.
    entry: usize,
    /// Entries in each throughput measurement.
    entries: usize,
    /// Operations in each latency measurement.
    operations: usize,
    /// How many logs are written at once when the cost of many is compared with that of one.
    logs: usize,
}

impl Size {
    fn of(arguments: &BenchArgs) -> anyhow::Result<Self> {
        let entry = usize::try_from(arguments.entry.as_u64())?.max(1);
        let entries = (usize::try_from(arguments.volume.as_u64())? / entry).max(PARALLEL);
        Ok(Self { entry, entries, operations: arguments.operations.max(10), logs: arguments.logs.max(1) })
    }
}

/// Runs every measurement against a process of its own: coordinator, node and engine over loopback.
///
/// # Errors
/// Something cannot be started or fails under load.
pub(crate) async fn bench(arguments: BenchArgs) -> anyhow::Result<()> {
    let size = Size::of(&arguments)?;
    let scratch = Scratch::new(&arguments)?;
    let config = scratch.config(&arguments)?;
    let metrics = telemetry::init_metrics()?;
    let machine = Machine::real();
    let medium = Medium::open(&config, &machine)?;
    let cluster = Standalone::start(&config, &machine).await?;
    cluster.until_served(config.channels().len()).await?;
    let outcome = async {
        let mut report = Report::new(medium.name(), size);
        let before = medium.measure(&machine, size).await?;
        report.engine = Some(engine::measure(cluster.logs(), &machine.clock, size).await?);
        report.stream = Some(stream::measure(cluster.address(), &machine, size).await?);
        let after = medium.measure(&machine, size).await?;
        report.medium = Some(before.mean(&after));
        report.writes = Some(engine::writes(cluster.logs(), &machine.clock, size, || medium.writes(&metrics)).await?);
        anyhow::Ok(report)
    };
    let report = outcome.await;
    let stopped = cluster.stop().await;
    let report = report?;
    stopped?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report.figures()?)?);
    } else {
        println!("{}", report.table()?);
    }
    Ok(())
}

/// A data directory that goes away with the run, unless one was named.
#[derive(Debug)]
struct Scratch {
    directory: Option<std::path::PathBuf>,
}

impl Scratch {
    fn new(arguments: &BenchArgs) -> anyhow::Result<Self> {
        if arguments.server.data.is_some() {
            return Ok(Self { directory: None });
        }
        let directory = std::path::PathBuf::from("data").join(format!("bench-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        Ok(Self { directory: Some(directory) })
    }

    /// As for `standalone`, on free ports.
    fn config(&self, arguments: &BenchArgs) -> anyhow::Result<Config> {
        let mut config = arguments.server.load()?;
        config.root_coord.port = 0;
        config.admin.enabled = false;
        if let Some(directory) = &self.directory {
            config.woodpecker.storage.root_path = directory.display().to_string();
        }
        Ok(config)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}
