//! Ships the logs of one cluster to those that follow it.

use std::time::Duration;

use anyhow::Context;
use streaming_client::{Client, Discovery, Edges, NotReady, Settings};
use streaming_replicate::Replicator;
use woodpecker_base::{
    health::{HealthReporter, State},
    tasks::Tasks,
};

use self::targets::Targets;
use super::{banner, process::Process, reload};
use crate::cli::ServerArgs;

mod targets;
#[cfg(test)]
mod tests;

/// How long what is on its way may take to end.
const GRACE: Duration = Duration::from_secs(5);
/// How long the source is looked for before it is told that it is not there.
const LOOK: Duration = Duration::from_secs(5);

/// Runs until it is told to stop.
///
/// # Errors
/// It cannot start, or does not stop in time.
pub(crate) async fn replicate(arguments: ServerArgs) -> anyhow::Result<()> {
    let Some(process) = Process::start(&arguments, "replicate").await? else { return Ok(()) };
    let Process { config, machine, tasks, health, .. } = &process;
    let (discovery, found) = match config.replicate.source.as_str() {
        "" => {
            let Some(store) = process.metadata(&health.replicate).await? else { return Ok(()) };
            (Discovery::Metadata { store, meta_root: config.meta_root() }, "through the metadata store".to_owned())
        }
        address => (Discovery::Address(address.to_owned()), address.to_owned()),
    };
    let cluster = config.msg_channel.chan_name_prefix.cluster.clone();
    let connector = machine.security.connector.clone();
    let edges = Edges { connector, clock: machine.clock.clone(), random: machine.random.clone() };
    let settings = Settings { cluster: cluster.clone(), ..Settings::new(discovery) };
    let source = Client::connect(settings, edges.clone()).context("the source")?;
    let shipping = Tasks::new();
    let targets = Targets::open(config)?;
    let connectors = targets.connectors(&edges.connector);
    let replicator = Replicator::new(source.clone(), cluster.clone(), config.replicator(), edges, connectors)?;
    reload::watch(vec![targets.watched()], config.common.reload_interval, machine.clock.clone(), tasks)?;
    let role = async {
        let token = shipping.token().clone();
        let running = shipping.clone();
        let replicating = shipping.spawn(async move { replicator.run(&running).await });
        tokio::select! {
            biased;
            () = tasks.stopped() => {}
            () = until_found(&source, &health.replicate) => tasks.stopped().await,
        }
        health.replicate.report(State::Stopping, Vec::new());
        token.cancel();
        replicating.await.context("the replicator panicked")?;
        shipping.drain(&machine.clock, GRACE).await;
        source.close().await;
        anyhow::Ok(())
    };
    banner::print("replicate", &process.addresses(&[("cluster", &cluster), ("source", &found)]), None);
    process.run(role).await
}

/// Says that the source is not there as long as it is not: nothing is shipped then, and nothing else would tell.
async fn until_found(source: &Client, health: &HealthReporter) {
    while let Err(NotReady { cause, .. }) = source.wait_ready(LOOK).await {
        tracing::warn!(cause, "the source is not found yet");
        health.report(State::Initializing, vec![format!("the source is not found yet: {cause}")]);
    }
    health.report(State::Healthy, Vec::new());
}
