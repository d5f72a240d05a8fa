//! `streaming bench`: append, read and the medium under them, measured in one run and set side by side.
//!
//! Every figure stands beside the medium's own limit, measured in turns with it, because machines are shared and noisy:
//! the ratio is what one compares.

mod disk;
mod engine;
mod latency;
mod many;
mod medium;
mod objects;
mod report;
mod stream;

use metrics_exporter_prometheus::PrometheusHandle;

use crate::{
    cli::BenchArgs,
    config::Config,
    roles::{Machine, Reporters, Standalone},
    telemetry,
};
use engine::Engine;
use latency::{Latencies, Rates};
use medium::Medium;
use report::Report;
use stream::Stream;

/// Bytes of one entry in the latency measurements.
const SMALL: usize = 1024;
/// How often each side of a comparison has its turn.
const ROUNDS: usize = 5;
/// Entries on their way fill the medium's writes so many times over: one is being written while the next gathers.
const GATHERED: usize = 2;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
struct Plan {
    rounds: usize,
    /// Bytes of one entry where throughput is measured.
    entry: usize,
    /// Entries of a round where throughput is measured.
    entries: usize,
    /// Entries on their way at once where throughput is measured.
    in_flight: usize,
    /// Operations of a round where latency is measured.
    operations: usize,
    /// How many logs are written when the cost of many is compared with that of one.
    logs: usize,
}

impl Plan {
    fn of(arguments: &BenchArgs, (block, parallel): (usize, usize)) -> anyhow::Result<Self> {
        let entry = usize::try_from(arguments.entry.as_u64())?.max(1);
        let round = usize::try_from(arguments.volume.as_u64())? / ROUNDS;
        let in_flight = (GATHERED * block * parallel / entry).max(GATHERED);
        Ok(Self {
            rounds: ROUNDS,
            entry,
            entries: (round / entry).max(in_flight),
            in_flight,
            operations: (arguments.operations / ROUNDS).max(10),
            logs: arguments.logs.max(1),
        })
    }

    /// Bytes of a round where throughput is measured.
    fn bytes(&self) -> usize {
        self.entry * self.entries
    }
}

/// Runs every measurement against a process of its own: coordinator, node and engine over loopback.
///
/// # Errors
/// Something cannot be started or fails under load.
pub(crate) async fn bench(arguments: BenchArgs) -> anyhow::Result<()> {
    let scratch = Scratch::new(&arguments)?;
    let config = scratch.config(&arguments)?;
    let metrics = telemetry::init_metrics()?;
    let machine = Machine::real();
    let medium = Medium::open(&config, &machine)?;
    let plan = Plan::of(&arguments, medium.blocks())?;
    let cluster = Standalone::start(&config, &machine, &Reporters::default()).await?;
    cluster.until_served().await?;
    let mut run = Run { config, machine, metrics, cluster, medium, plan };
    let report = run.measure().await;
    let cleared = run.medium.clear().await;
    let stopped = run.cluster.stop().await;
    let report = report?;
    cleared.and(stopped)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", report.table()?);
    }
    Ok(())
}

struct Run {
    config: Config,
    machine: Machine,
    metrics: PrometheusHandle,
    cluster: Standalone,
    medium: Medium,
    plan: Plan,
}

impl Run {
    async fn measure(&mut self) -> anyhow::Result<Report> {
        let Plan { entry, in_flight, rounds, .. } = self.plan;
        let mut report =
            Report::new(self.config.woodpecker.storage.kind.name(), entry, in_flight, self.medium.blocks(), rounds);
        let engine = Engine::open(self.cluster.logs(), &self.machine.clock, self.plan).await?;
        let mut stream = Stream::connect(self.cluster.address(), &self.machine, self.plan).await?;
        eprintln!("measuring appends");
        self.appends(&engine, &stream, &mut report).await?;
        engine.close_large().await?;
        eprintln!("measuring reads");
        self.reads(&stream, &mut report).await?;
        eprintln!("measuring latencies");
        self.latencies(&engine, &mut stream, &mut report).await?;
        engine.close().await?;
        stream.close().await;
        eprintln!("measuring writes of the medium with 1 and with {} logs", self.plan.logs);
        self.many_logs(&mut report).await?;
        Ok(report)
    }

    async fn appends(&mut self, engine: &Engine, stream: &Stream, report: &mut Report) -> anyhow::Result<()> {
        let (mut medium, mut ours, mut through, mut small) =
            (Rates::default(), Rates::default(), Rates::default(), Rates::default());
        for _ in 0..self.plan.rounds {
            self.medium.write(self.plan.bytes(), &mut medium).await?;
            engine.append(&mut ours).await?;
            stream.append(&mut through).await?;
            stream.append_small(&mut small).await?;
        }
        report.throughput("engine append", &ours, &medium);
        report.throughput("stream append", &through, &medium);
        let what = format!("stream append of 1 KiB messages, {} producers", stream::PRODUCERS);
        report.figure(&what, "1/s", small.median());
        Ok(())
    }

    async fn reads(&self, stream: &Stream, report: &mut Report) -> anyhow::Result<()> {
        let bytes = self.plan.bytes() * self.plan.rounds;
        let (config, machine) = (&self.config, &self.machine);
        let metadata = self.cluster.metadata();
        let (mut medium, mut ours, mut through) = (Rates::default(), Rates::default(), Rates::default());
        let (mut cold_medium, mut cold) = (Rates::default(), Rates::default());
        let mut forgets = true;
        for _ in 0..self.plan.rounds {
            self.medium.read(bytes, &mut medium).await?;
            engine::read(config, machine, metadata, self.plan, &mut ours).await?;
            stream.read(&mut through).await?;
            forgets = self.medium.forget()?;
            if forgets {
                self.medium.read(bytes, &mut cold_medium).await?;
                engine::read(config, machine, metadata, self.plan, &mut cold).await?;
            }
        }
        report.throughput("engine catch-up read", &ours, &medium);
        report.throughput("stream catch-up read", &through, &medium);
        if forgets {
            report.throughput("engine catch-up read, not in the page cache", &cold, &cold_medium);
        }
        Ok(())
    }

    async fn latencies(&mut self, engine: &Engine, stream: &mut Stream, report: &mut Report) -> anyhow::Result<()> {
        let (mut medium, mut ours) = (Latencies::new()?, Latencies::new()?);
        let (mut acks, mut deliveries) = (Latencies::new()?, Latencies::new()?);
        for _ in 0..self.plan.rounds {
            self.medium.write_small(self.plan.operations, &mut medium).await?;
            engine.append_small(&mut ours).await?;
            stream.latencies(&mut acks, &mut deliveries).await?;
        }
        report.latency("engine ack", &ours, &medium);
        report.latency("stream ack", &acks, &medium);
        report.latency("produce to consume", &deliveries, &medium);
        report.figure("engine ack p50 over the medium's", "ms", ours.at(0.5) - medium.at(0.5));
        report.figure("produce to consume p50 over the ack's", "ms", deliveries.at(0.5) - acks.at(0.5));
        Ok(())
    }

    async fn many_logs(&self, report: &mut Report) -> anyhow::Result<()> {
        let (clock, written) = (&self.machine.clock, || self.medium.written(&self.metrics));
        let writes = many::writes(self.cluster.logs(), clock, self.plan.logs, self.plan.rounds, written).await?;
        report.figure("writes of the medium, one log", "1/s", writes.one_log.median());
        let what = format!("writes of the medium, the same entries on {} logs", self.plan.logs);
        report.figure(&what, "1/s", writes.many_logs.median());
        report.figure(&format!("{what}, ratio to one log"), "", writes.many_logs.ratio(&writes.one_log));
        Ok(())
    }
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
