//! Everything in one process: coordinator, one node and the log engine, talking over loopback like any others.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use streaming_node::NodeCell;
use woodpecker::Client;
use woodpecker_base::{
    health::{Health, State},
    metadata::MetadataStore,
    tasks::Tasks,
};

use super::{
    banner,
    cluster::listen,
    consumers,
    live::Live,
    maintenance::maintain,
    process::{Process, Reporters},
    settings, storage,
    storage::Machine,
};
use crate::{cli::ServerArgs, config::Config};

#[cfg(test)]
mod tests;

/// Recovery of a long log is progress; only beyond this is it worth an error.
const SERVED_LIMIT: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(20);

/// A running cluster of one process.
#[derive(Debug)]
pub(crate) struct Standalone {
    coordinator: String,
    node: String,
    logs: Client,
    metadata: Arc<dyn MetadataStore>,
    machine: Machine,
    /// Stopped from the outermost role inwards: what serves first, what is stood on last.
    node_role: Role,
    coord_role: Role,
    upkeep: Tasks,
    engine: Tasks,
    grace: Duration,
    health: Reporters,
}

#[derive(Debug)]
struct Role {
    tasks: Tasks,
    ended: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Role {
    fn spawn<E>(tasks: Tasks, role: impl Future<Output = Result<(), E>> + Send + 'static) -> Self
    where
        anyhow::Error: From<E>,
        E: Send + 'static,
    {
        let ended = tasks.spawn(async move { Ok(role.await?) });
        Self { tasks, ended }
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.tasks.stop();
        self.ended.await.context("a role panicked")?
    }
}

impl Standalone {
    /// Starts everything that the configuration says, on the machine's own ports.
    ///
    /// # Errors
    /// A port is taken, a medium or the metadata cannot be opened.
    pub(crate) async fn start(
        config: &Config,
        machine: &Machine,
        health: &Reporters,
        cell: &NodeCell,
        live: &Live,
    ) -> anyhow::Result<Self> {
        let metadata = storage::metadata_in_time(config, machine, &[&health.coord, &health.node]).await?;
        Self::start_on(metadata, config, machine, health, cell, live).await
    }

    /// As [`Standalone::start`], on this metadata store.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn start_on(
        metadata: Arc<dyn MetadataStore>,
        config: &Config,
        machine: &Machine,
        health: &Reporters,
        cell: &NodeCell,
        live: &Live,
    ) -> anyhow::Result<Self> {
        let roles = [&health.coord, &health.node];
        let (logs, engine) = storage::logs_in_time(config, machine, &metadata, &roles).await?;
        let upkeep = Tasks::new();
        maintain(config, machine, &metadata, &logs, &upkeep);
        let at_coord = listen(machine, "rootCoord", &config.root_coord.ip, config.root_coord.port).await?;
        let at_node = listen(machine, "streamingNode", &config.streaming_node.ip, config.streaming_node.port).await?;
        let (coordinator, node) = (at_coord.address().to_owned(), at_node.address().to_owned());
        let (coord_tasks, node_tasks) = (Tasks::new(), Tasks::new());
        let coord_edges = streaming_coord::Edges {
            listener: at_coord,
            connector: machine.security.connector.clone(),
            metadata: metadata.clone(),
            clock: machine.clock.clone(),
            random: machine.random.clone(),
            health: health.coord.clone(),
            balance: live.balance(),
        };
        let coordinating = streaming_coord::serve(settings::coord(config)?, coord_edges, coord_tasks.token().clone());
        let node_edges = streaming_node::Edges {
            listener: at_node,
            connector: machine.security.connector.clone(),
            metadata: metadata.clone(),
            logs: logs.clone(),
            clock: machine.clock.clone(),
            random: machine.random.clone(),
            health: health.node.clone(),
            cell: cell.clone(),
            flow: live.flow(),
            paused: live.paused(),
        };
        let serving = streaming_node::serve(settings::node(config)?, node_edges, node_tasks.token().clone());
        Ok(Self {
            coordinator,
            node,
            logs,
            metadata,
            machine: machine.clone(),
            coord_role: Role::spawn(coord_tasks, coordinating),
            node_role: Role::spawn(node_tasks, serving),
            upkeep,
            engine,
            grace: config.common.grace(),
            health: health.clone(),
        })
    }

    /// Waits until every channel is served, so that who reads that it is ready finds it so.
    ///
    /// # Errors
    /// It takes longer than the limit, or a role ends.
    pub(crate) async fn until_served(&mut self) -> anyhow::Result<()> {
        let (clock, Reporters { coord, node, .. }) = (self.machine.clock.clone(), self.health.clone());
        // On its way to lead, a coordinator is a standby for a moment, and ready as such.
        let leads = || coord.now() == Health { state: State::Healthy, missing: Vec::new() };
        let served = async {
            while !(leads() && node.now().is_ready()) {
                clock.sleep(POLL).await;
            }
        };
        tokio::select! {
            biased;
            error = self.failed() => Err(error),
            in_time = clock.timeout(SERVED_LIMIT, served) => in_time
                .with_context(|| format!("not ready after {SERVED_LIMIT:?}: {}", coord.now().missing.join("; "))),
        }
    }

    /// The coordinator's address, which is all a client needs.
    pub(crate) fn address(&self) -> &str {
        &self.coordinator
    }

    /// The log engine under the node.
    pub(crate) fn logs(&self) -> &Client {
        &self.logs
    }

    /// The metadata store of all of them.
    pub(crate) fn metadata(&self) -> &Arc<dyn MetadataStore> {
        &self.metadata
    }

    /// Ends when a role does, which none should.
    async fn failed(&mut self) -> anyhow::Error {
        let (role, ended) = tokio::select! {
            ended = &mut self.coord_role.ended => ("coordinator", ended),
            ended = &mut self.node_role.ended => ("node", ended),
        };
        match ended {
            Ok(Err(error)) => error.context(format!("the {role} ended")),
            _ => anyhow::anyhow!("the {role} ended"),
        }
    }

    /// Drains the node, then the coordinator, then the engine.
    ///
    /// # Errors
    /// What did not end as it should; the rest is stopped all the same.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        let node = self.node_role.stop().await;
        let coord = self.coord_role.stop().await;
        self.upkeep.drain(&self.machine.clock, self.grace).await;
        self.logs.close().await;
        self.engine.drain(&self.machine.clock, self.grace).await;
        node.and(coord)
    }
}

/// Runs everything until told to stop.
///
/// # Errors
/// It cannot start, a role ended by itself, or the stop took too long.
pub(crate) async fn standalone(arguments: ServerArgs) -> anyhow::Result<()> {
    let cell = NodeCell::default();
    let pages = consumers::pages(cell.clone());
    let Some(process) = Process::start_with(&arguments, "standalone", pages).await? else { return Ok(()) };
    let starting = Standalone::start(&process.config, &process.machine, &process.health, &cell, &process.live);
    let Some(mut cluster) = process.until_open(starting).await? else { return Ok(()) };
    let addresses = process.addresses(&[("coordinator", cluster.address()), ("node", &cluster.node)]);
    process
        .run(async {
            tokio::select! {
                biased;
                () = process.tasks.stopped() => return cluster.stop().await,
                served = cluster.until_served() => served?,
            }
            banner::print("standalone", &addresses, Some(cluster.address()));
            tokio::select! {
                biased;
                () = process.tasks.stopped() => cluster.stop().await,
                error = cluster.failed() => Err(error),
            }
        })
        .await
}
