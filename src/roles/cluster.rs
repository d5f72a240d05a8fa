//! The roles of a cluster, each in a process of its own.

use std::net::SocketAddr;

use anyhow::Context;
use streaming_node::NodeCell;
use woodpecker_base::{
    net::{Listener, tcp_connector},
    tasks::Tasks,
};

use super::{banner, consumers, maintenance::maintain_apart, process::Process, settings, storage};
use crate::cli::ServerArgs;

/// Runs the coordinator until it is told to stop.
///
/// # Errors
/// It cannot start, or does not stop in time.
pub(crate) async fn coord(arguments: ServerArgs) -> anyhow::Result<()> {
    let Some(process) = Process::start(&arguments, "coord").await? else { return Ok(()) };
    let Process { config, machine, tasks, .. } = &process;
    let metadata = storage::metadata(config, machine).await?;
    maintain_apart(config, machine, &metadata, tasks);
    let listener = listen("rootCoord", &config.root_coord.ip, config.root_coord.port).await?;
    let address = listener.address().to_owned();
    let edges = streaming_coord::Edges {
        listener,
        connector: tcp_connector(),
        metadata,
        clock: machine.clock.clone(),
        random: machine.random.clone(),
        health: process.health.coord.clone(),
    };
    let role = streaming_coord::serve(settings::coord(config), edges, tasks.token().clone());
    banner::print("coord", &process.addresses(&[("coordinator", &address)]), None);
    process.run(role).await
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
    let metadata = storage::metadata(config, machine).await?;
    let engine = Tasks::new();
    let logs = storage::logs(config, machine, metadata.clone(), &engine).await?;
    let listener = listen("streamingNode", &config.streaming_node.ip, config.streaming_node.port).await?;
    let address = listener.address().to_owned();
    let edges = streaming_node::Edges {
        listener,
        connector: tcp_connector(),
        metadata,
        logs: logs.clone(),
        clock: machine.clock.clone(),
        random: machine.random.clone(),
        health: process.health.node.clone(),
        cell,
    };
    let role = Box::pin(streaming_node::serve(settings::node(config)?, edges, tasks.token().clone()));
    banner::print("node", &process.addresses(&[("node", &address)]), None);
    let outcome = process.run(role).await;
    logs.close().await;
    engine.drain(&machine.clock, config.common.grace()).await;
    outcome
}

/// Binds a role's port.
///
/// # Errors
/// The address is taken or not ours; the message names the keys.
pub(super) async fn listen(section: &str, ip: &str, port: u16) -> anyhow::Result<Listener> {
    let address = SocketAddr::new(ip.parse().with_context(|| format!("{section}.ip: {ip:?}"))?, port);
    Listener::bind(address)
        .await
        .with_context(|| format!("{section}.ip and {section}.port: cannot listen on {address}"))
}
