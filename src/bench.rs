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
mod paced;
mod report;
mod restart;
mod stream;
mod subscribers;
mod transport;

use std::collections::VecDeque;

use anyhow::Context;
use metrics_exporter_prometheus::PrometheusHandle;
use streaming_node::NodeCell;
use tokio::runtime::Runtime;

use crate::{
    cli::BenchArgs,
    config::{Config, StorageType},
    print::say,
    roles::{Live, Machine, Reporters, Standalone},
    telemetry,
};
use engine::Engine;
use latency::{Latencies, Rates};
use medium::Medium;
use paced::Paced;
use report::Report;
use restart::Restart;
use stream::Stream;
use subscribers::{SUBSCRIBERS, Subscribers};
use transport::Transport;

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
    /// Bytes of log after the checkpoint where a restart is measured; 0 measures none.
    restart: u64,
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
            restart: arguments.restart.as_u64(),
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
    if !arguments.subscribe.is_empty() {
        return subscribers::follow(&arguments).await;
    }
    let scratch = Scratch::new(&arguments)?;
    let config = scratch.config(&arguments)?;
    let metrics = telemetry::init_metrics()?;
    let machine = Machine::real(&config)?;
    let medium = Medium::open(&config, &machine)?;
    let plan = Plan::of(&arguments, medium.blocks())?;
    let cell = NodeCell::default();
    // Threads of its own, as on another machine: what clients do does not stand in its queues. They end with the process.
    let served: &Runtime = Box::leak(Box::new(crate::runtime()?));
    let starting = {
        let (config, machine, cell) = (config.clone(), machine.clone(), cell.clone());
        async move { Standalone::start(&config, &machine, &Reporters::default(), &cell, &Live::new(&config)).await }
    };
    let mut cluster = served.spawn(starting).await??;
    cluster.until_served().await?;
    let mut run = Run { config, machine, metrics, cluster, cell, medium, plan };
    let report = run.measure().await;
    let cleared = run.medium.clear().await;
    let stopped = run.cluster.stop().await;
    let report = report?;
    cleared.and(stopped)?;
    if arguments.json {
        say!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        say!("{}", report.table()?);
    }
    Ok(())
}

struct Run {
    config: Config,
    machine: Machine,
    metrics: PrometheusHandle,
    cluster: Standalone,
    cell: NodeCell,
    medium: Medium,
    plan: Plan,
}

impl Run {
    async fn measure(&mut self) -> anyhow::Result<Report> {
        let Plan { entry, in_flight, rounds, .. } = self.plan;
        let mut report =
            Report::new(self.config.woodpecker.storage.kind.name(), entry, in_flight, self.medium.blocks(), rounds);
        let engine = Engine::open(self.cluster.logs(), &self.machine.clock, self.plan).await?;
        let mut stream = Stream::connect(self.cluster.address(), None, &self.machine, self.plan).await?;
        let node = self.cell.get().context("no node")?.local();
        let mut local = Stream::connect(self.cluster.address(), Some(node), &self.machine, self.plan).await?;
        eprintln!("measuring appends");
        self.appends(&engine, &stream, &local, &mut report).await?;
        engine.close_large().await?;
        eprintln!("measuring reads");
        self.reads(&stream, &mut report).await?;
        eprintln!("measuring latencies");
        self.latencies(&engine, &mut stream, &mut local, &mut report).await?;
        local.close().await;
        eprintln!("measuring with {SUBSCRIBERS} subscribers");
        self.subscribers(&mut stream, &mut report).await?;
        engine.close().await?;
        stream.close().await;
        self.restart(&mut report).await?;
        eprintln!("measuring writes of the medium with 1 and with {} logs", self.plan.logs);
        self.many_logs(&mut report).await?;
        Ok(report)
    }

    async fn appends(
        &mut self,
        engine: &Engine,
        stream: &Stream,
        local: &Stream,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let (mut medium, mut ours, mut through) = (Rates::default(), Rates::default(), Rates::default());
        let (mut alone, mut small, mut beside) = (Rates::default(), Rates::default(), Rates::default());
        let (transport, mut exchanged) = (Transport::start(&self.machine.clock, self.plan).await?, Rates::default());
        for _ in 0..self.plan.rounds {
            self.medium.write(self.plan.bytes(), &mut medium).await?;
            engine.append(&mut ours).await?;
            stream.append(&mut through).await?;
            engine.append_many_small(&mut alone).await?;
            transport.exchange_small(&mut exchanged).await?;
            stream.append_small(&mut small).await?;
            local.append_small(&mut beside).await?;
        }
        transport.end();
        report.throughput("engine append", &ours, &medium);
        report.throughput("stream append", &through, &medium);
        let what = format!("stream append of 1 KiB messages, {} producers", stream::PRODUCERS);
        for (ours, way) in [(&small, ""), (&beside, ", in one process")] {
            let what = format!("{what}{way}, beside the engine");
            report.compare(&what, "1/s", ours.median(), Some(alone.median()), Some(ours.ratio(&alone)));
        }
        for (other, name) in [(&exchanged, "gRPC by itself"), (&exchanged.after(&alone), "gRPC and then the engine")] {
            let what = format!("{what}, beside {name}");
            report.compare(&what, "1/s", small.median(), Some(other.median()), Some(small.ratio(other)));
        }
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

    async fn latencies(
        &mut self,
        engine: &Engine,
        stream: &mut Stream,
        local: &mut Stream,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let (mut medium, mut ours) = (Latencies::new()?, Latencies::new()?);
        let (mut acks, mut deliveries) = (Latencies::new()?, Latencies::new()?);
        let (mut local_acks, mut local_deliveries) = (Latencies::new()?, Latencies::new()?);
        for _ in 0..self.plan.rounds {
            self.medium.write_small(self.plan.operations, &mut medium).await?;
            engine.append_small(&mut ours).await?;
            stream.latencies(&mut acks, &mut deliveries).await?;
            local.latencies(&mut local_acks, &mut local_deliveries).await?;
        }
        report.latency("engine ack", &ours, &medium);
        report.latency("stream ack", &acks, &medium);
        report.latency("produce to consume", &deliveries, &medium);
        report.latency("stream ack, in one process", &local_acks, &medium);
        report.latency("produce to consume, in one process", &local_deliveries, &medium);
        report.figure("engine ack p50 over the medium's", "ms", ours.at(0.5) - medium.at(0.5));
        report.figure("produce to consume p50 over the ack's", "ms", deliveries.at(0.5) - acks.at(0.5));
        Ok(())
    }

    async fn subscribers(&self, stream: &mut Stream, report: &mut Report) -> anyhow::Result<()> {
        let Plan { rounds, operations, .. } = self.plan;
        let (mut alone, mut crowded, mut grown) = (Paced::new()?, Paced::new()?, None);
        let messages = paced::FACTOR * operations;
        for _ in 0..rounds {
            stream.pace(messages, &mut alone).await?;
            let before = paced::memory()?;
            let subscribers =
                Subscribers::start(self.cluster.address(), stream.producer.channel(), &stream.clock).await?;
            stream.pace(messages, &mut crowded).await?;
            // Later rounds find memory that the first one has left.
            grown.get_or_insert(paced::memory()?.saturating_sub(before));
            subscribers.end().await?;
        }
        for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
            let (alone, crowded) = (alone.acks.at(quantile), crowded.acks.at(quantile));
            report.figure(&format!("stream ack {name} at 1,000/s"), "ms", alone);
            let what = format!("stream ack {name} at 1,000/s with {SUBSCRIBERS} subscribers, beside without");
            report.compare(&what, "ms", crowded, Some(alone), Some(crowded / alone));
        }
        let delivered = alone.deliveries.at(0.5);
        report.figure("produce to consume p50 at 1,000/s over the ack's", "ms", delivered - alone.acks.at(0.5));
        let buffer = self.config.streaming.wal_write_ahead_buffer.capacity.as_u64();
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        let (grown, buffer) = (grown.unwrap_or(0) as f64 / f64::from(1 << 20), buffer as f64 / f64::from(1 << 20));
        let what = format!("memory that {SUBSCRIBERS} subscribers take, beside one write-ahead buffer");
        report.compare(&what, "MiB", grown, Some(buffer), Some(grown / buffer));
        Ok(())
    }

    async fn restart(&mut self, report: &mut Report) -> anyhow::Result<()> {
        let bytes = self.plan.restart;
        if bytes == 0 || self.config.woodpecker.storage.kind != StorageType::Local {
            return Ok(());
        }
        eprintln!("measuring a restart with {} of log", bytesize::ByteSize(bytes));
        let cold = self.medium.forget()?;
        let mut medium = Rates::default();
        self.medium.read(self.plan.bytes() * self.plan.rounds, &mut medium).await?;
        let Restart { took, replayed } =
            restart::restart(&self.config.data_path(""), bytes, cold, &self.machine).await?;
        let mut ours = Rates::default();
        ours.record(replayed, took);
        let what = format!("restart with {} of 1 KiB messages after the checkpoint", bytesize::ByteSize(bytes));
        report.figure(&what, "s", took.as_secs_f64());
        report.throughput(&what, &ours, &medium);
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
        if arguments.configuration.data.is_some() {
            return Ok(Self { directory: None });
        }
        let directory = std::path::PathBuf::from("data").join(format!("bench-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        Ok(Self { directory: Some(directory) })
    }

    /// As for `standalone`, on free ports.
    fn config(&self, arguments: &BenchArgs) -> anyhow::Result<Config> {
        let mut config = arguments.configuration.load()?;
        config.root_coord.port = 0;
        config.streaming_node.port = 0;
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

/// Begins `count` operations, of which at most so many are under way, and waits until all are done.
async fn keep_in_flight<O, T, E>(
    count: usize,
    most: usize,
    mut begin: impl AsyncFnMut() -> anyhow::Result<O>,
) -> anyhow::Result<()>
where
    O: Future<Output = Result<T, E>>,
    anyhow::Error: From<E>,
{
    let mut in_flight = VecDeque::new();
    for _ in 0..count {
        if in_flight.len() == most
            && let Some(oldest) = in_flight.pop_front()
        {
            oldest.await?;
        }
        in_flight.push_back(begin().await?);
    }
    for operation in in_flight {
        operation.await?;
    }
    Ok(())
}
