//! The hosts: what each runs, and what of it survives a crash.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use streaming_client::Discovery;
use tokio::sync::watch;
use turmoil::Sim;
use woodpecker_base::{clock::Clock, health::HealthReporter, metadata::MemoryStore, random::Random, tasks::Tasks};
use woodpecker_store::{
    backend::Backend,
    disk::{LocalBackend, LocalSettings},
};

use crate::{
    disk::SimDisk,
    net::{connector, listen},
    trace::Trace,
};

/// The coordinator's host.
pub const COORD: &str = "coord";
/// The nodes' hosts.
pub const NODES: [&str; 2] = ["node-1", "node-2"];
/// The workload's host.
pub const CLIENT: &str = "client";
/// Where the coordinator listens.
pub const COORD_ADDRESS: &str = "coord:53100";
/// How long a session outlives its process.
pub const LEASE: Duration = Duration::from_secs(3);

const COORD_PORT: u16 = 53100;
const NODE_PORT: u16 = 22222;
/// Any date will do, if it is always the same.
const EPOCH: Duration = Duration::from_secs(1_750_000_000);

/// The clock of every host: simulated time.
#[must_use]
pub fn clock() -> Clock {
    Clock::from_fn(|| EPOCH + turmoil::sim_elapsed().unwrap_or_default())
}

/// One host's belongings, which outlive its software.
#[derive(Debug, Clone)]
pub struct Machine {
    pub name: &'static str,
    pub disk: SimDisk,
    pub metadata: MemoryStore,
    pub random: Random,
    trace: Trace,
}

/// The machines that can crash, by host name.
pub type Machines = BTreeMap<&'static str, Machine>;

/// Adds the coordinator and the nodes to the simulation.
pub fn start(sim: &mut Sim<'_>, seed: u64, trace: &Trace) -> Machines {
    let random = Random::seeded(seed);
    let metadata = MemoryStore::with_time(clock(), || turmoil::sim_elapsed().unwrap_or_default());
    let disk = SimDisk::new(COORD);
    let machine = |name: &'static str| Machine {
        name,
        disk: disk.view(name),
        metadata: metadata.connect(),
        random: Random::seeded(random.u64()),
        trace: trace.clone(),
    };
    let machines: Machines = [COORD].iter().chain(&NODES).map(|name| (*name, machine(name))).collect();
    for (name, machine) in &machines {
        let machine = machine.clone();
        sim.host(*name, move || machine.clone().run());
    }
    machines
}

/// How the client finds the coordinator: half of the seeds give it the address, the others let it look for the session.
#[must_use]
pub fn discovery(seed: u64, machines: &Machines) -> Discovery {
    match machines.get(COORD) {
        Some(machine) if seed % 2 == 1 => {
            Discovery::Metadata { store: Arc::new(machine.metadata.connect()), meta_root: "by-dev/meta".to_owned() }
        }
        _ => Discovery::Address(COORD_ADDRESS.to_owned()),
    }
}

impl Machine {
    /// The role of this host, until it ends, which is noted: whoever watches the host starts it again.
    async fn run(self) -> turmoil::Result {
        let ended = if self.name == COORD { self.coordinator().await } else { self.node().await };
        self.trace.here(format_args!("{} ended: {ended:?}", self.name));
        Ok(())
    }

    async fn coordinator(&self) -> anyhow::Result<()> {
        let settings = streaming_coord::Settings {
            channels: streaming_coord::Channels { count: 2, names: Vec::new() },
            advertised_address: Some(COORD_ADDRESS.to_owned()),
            session_ttl: LEASE,
            ..streaming_coord::Settings::default()
        };
        let edges = streaming_coord::Edges {
            listener: listen(self.name, COORD_PORT).await?,
            connector: connector(),
            metadata: Arc::new(self.metadata.clone()),
            clock: clock(),
            random: self.random.clone(),
            health: HealthReporter::default(),
            balance: watch::channel(settings.balance.clone()).1,
        };
        Ok(streaming_coord::serve(settings, edges, Tasks::new().token().clone()).await?)
    }

    async fn node(&self) -> anyhow::Result<()> {
        let settings = streaming_node::Settings {
            advertised_address: Some(format!("{}:{NODE_PORT}", self.name)),
            session_ttl: LEASE,
            ..streaming_node::Settings::default()
        };
        let tasks = Tasks::new();
        let edges = streaming_node::Edges {
            listener: listen(self.name, NODE_PORT).await?,
            connector: connector(),
            metadata: Arc::new(self.metadata.clone()),
            logs: self.logs(&tasks).await?,
            clock: clock(),
            random: self.random.clone(),
            health: HealthReporter::default(),
            cell: streaming_node::NodeCell::default(),
            flow: watch::channel(settings.flow.clone()).1,
            paused: watch::channel(false).1,
        };
        Ok(streaming_node::serve(settings, edges, tasks.token().clone()).await?)
    }

    /// The log engine. Its limits are small, so that files and segments are rolled during a run.
    async fn logs(&self, tasks: &Tasks) -> anyhow::Result<woodpecker::Client> {
        let files = LocalSettings { file_bytes: 1 << 20, ..LocalSettings::default() };
        let disk = Arc::new(self.disk.clone());
        let local = LocalBackend::open(Path::new("/woodpecker"), files, disk, clock(), self.random.clone()).await?;
        let backends: BTreeMap<String, Arc<dyn Backend>> =
            [("local".to_owned(), Arc::new(local) as Arc<dyn Backend>)].into();
        let settings = woodpecker::Settings {
            metadata_prefix: "by-dev/woodpecker".to_owned(),
            backend: "local".to_owned(),
            segment_bytes: 1 << 14,
            segment_age: Duration::from_secs(600),
            in_flight_bytes: 64 << 20,
            read_ahead_bytes: woodpecker::Settings::READ_AHEAD_BYTES,
        };
        let metadata = Arc::new(self.metadata.clone());
        Ok(woodpecker::Client::new(settings, metadata, backends, clock(), self.random.clone(), tasks.clone()))
    }
}
