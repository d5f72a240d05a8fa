//! One run: a cluster, a workload, faults, and what came of it.

use std::{
    fmt,
    time::{Duration, UNIX_EPOCH},
};

use turmoil::Builder;
use woodpecker_base::random::Random;

use crate::{
    cluster::{self, CLIENT},
    faults::Faults,
    trace::Trace,
    workload::{self, Progress},
};

/// A run that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(600);
const TICK: Duration = Duration::from_millis(2);

/// How a run went.
#[derive(Debug)]
pub struct Outcome {
    pub seed: u64,
    /// Nothing, or what was wrong.
    pub result: anyhow::Result<()>,
    pub trace: Trace,
    pub acked: usize,
    pub crashes: u32,
    pub partitions: u32,
    /// Simulated time.
    pub took: Duration,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, acked, crashes, partitions, took, .. } = self;
        write!(f, "seed {seed}: {acked} acknowledged, {crashes} crashes, {partitions} partitions in {took:?}, trace ")?;
        write!(f, "{:016x}, {:?}", self.trace.hash(), self.result)
    }
}

/// Runs the seed's scenario to its end.
#[must_use]
pub fn run(seed: u64) -> Outcome {
    let mut sim = Builder::new()
        .rng_seed(seed)
        .epoch(UNIX_EPOCH)
        .tick_duration(TICK)
        .simulation_duration(LIMIT)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(10))
        .tcp_capacity(1 << 16)
        .enable_random_order()
        .build();
    let (trace, progress) = (Trace::default(), Progress::default());
    let machines = cluster::start(&mut sim, seed, &trace);
    let mut faults = Faults::draw(seed, &trace);
    let discovery = cluster::discovery(seed, &machines);
    let work = workload::run(progress.clone(), discovery, Random::seeded(seed), trace.clone());
    sim.client(CLIENT, async move { Ok(work.await?) });
    let mut first_ack = None;
    let result = loop {
        match sim.step() {
            Ok(false) => {}
            Ok(true) => break Ok(()),
            Err(error) => break Err(anyhow::anyhow!("{error}")),
        }
        if first_ack.is_none() && progress.state().acked > 0 {
            first_ack = Some(sim.elapsed());
        }
        let owner = progress.state().owner.clone();
        let since = first_ack.map(|first| sim.elapsed() - first);
        faults.advance(&mut sim, &machines, since, &owner);
        progress.state().healed = faults.are_over();
    };
    let acked = progress.state().acked;
    let Faults { crashes, partitions, .. } = faults;
    Outcome { seed, result, trace, acked, crashes, partitions, took: sim.elapsed() }
}
