//! The roles of a cluster, each in a process of its own.

use std::net::SocketAddr;

use anyhow::Context;
use streaming_node::NodeCell;
use tokio::task::JoinHandle;
use woodpecker_base::net::Listener;

use super::{banner, consumers, maintenance::maintain_apart, process::Process, settings, storage, storage::Machine};
use crate::cli::ServerArgs;

/// Runs the coordinator until it is told to stop.
///
/// # Errors
/// It cannot start, or does not stop in time.
pub(crate) async fn coord(arguments: ServerArgs) -> anyhow::Result<()> {
    let Some(process) = Process::start(&arguments, "coord").await? else { return Ok(()) };
    let Process { config, machine, tasks, .. } = &process;
    let Some(metadata) = process.metadata(&process.health.coord).await? else { return Ok(()) };
    let maintaining = maintain_apart(config, machine, &metadata, tasks);
    let listener = listen(machine, "rootCoord", &config.root_coord.ip, config.root_coord.port).await?;
    let address = listener.address().to_owned();
    let edges = streaming_coord::Edges {
        listener,
        connector: machine.security.connector.clone(),
        metadata,
        clock: machine.clock.clone(),
        random: machine.random.clone(),
        health: process.health.coord.clone(),
        balance: process.live.balance(),
    };
    let mut role = Box::pin(streaming_coord::serve(settings::coord(config)?, edges, tasks.token().clone()));
    banner::print("coord", &process.addresses(&[("coordinator", &address)]), None);
    process
        .run(async {
            tokio::select! {
                biased;
                led = &mut role => Ok(led?),
                error = failed(maintaining) => {
                    // Another one may lead at once.
                    tasks.stop();
                    drop(role.await);
                    Err(error)
                }
            }
        })
        .await
}

/// Resolves when a task fails, and never if it does not.
async fn failed(task: JoinHandle<anyhow::Result<()>>) -> anyhow::Error {
    match task.await {
        Ok(Err(error)) => error,
        _ => std::future::pending().await,
    }
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// It cannot start, or does not stop in time.
pub(crate) async fn node(arguments: ServerArgs) -> anyhow::Result<()> {
    let cell = NodeCell::default();
    let pages = consumers::pages(cell.clone());
    let Some(process) = Process::start_with(&arguments, "node", pages).await? else { return Ok(()) };
    let Process { config, machine, tasks, .. } = &process;
    let Some(metadata) = process.metadata(&process.health.node).await? else { return Ok(()) };
    let roles = [&process.health.node];
    let opening = storage::logs_in_time(config, machine, &metadata, &roles);
    let Some((logs, engine)) = process.until_open(opening).await? else { return Ok(()) };
    let listener = listen(machine, "streamingNode", &config.streaming_node.ip, config.streaming_node.port).await?;
    let address = listener.address().to_owned();
    let edges = streaming_node::Edges {
        listener,
        connector: machine.security.connector.clone(),
        metadata,
        logs: logs.clone(),
        clock: machine.clock.clone(),
        random: machine.random.clone(),
        health: process.health.node.clone(),
        cell,
        flow: process.live.flow(),
        paused: process.live.paused(),
    };
    let role = Box::pin(streaming_node::serve(settings::node(config)?, edges, tasks.token().clone()));
    banner::print("node", &process.addresses(&[("node", &address)]), None);
    // The engine ends within the same grace.
    process
        .run(async {
            let outcome = role.await;
            logs.close().await;
            engine.drain(&machine.clock, config.common.grace()).await;
            outcome
        })
        .await
}

/// Binds a role's port, behind its gate.
///
/// # Errors
/// The address is taken or not ours; the message names the keys.
pub(super) async fn listen(machine: &Machine, section: &str, ip: &str, port: u16) -> anyhow::Result<Listener> {
    let address = SocketAddr::new(ip.parse().with_context(|| format!("{section}.ip: {ip:?}"))?, port);
    let bound = Listener::bind(address).await;
    let listener = bound.with_context(|| format!("{section}.ip and {section}.port: cannot listen on {address}"))?;
    Ok(listener.behind(&machine.security.ports))
}
