//! Finding the cluster.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use streaming_client::{Channel, Client, Discovery, Edges, Settings};
use woodpecker_base::{
    backoff::Backoff,
    clock::Clock,
    metadata::{EtcdSettings, EtcdStore, MetadataError},
    random::Random,
};

use super::credentials::{self, Protocol};
use crate::cli::ConnectArgs;

/// Between attempts to reach etcd.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// A connected client, and the clock its verbs share with it.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) clock: Clock,
}

/// Connects, and waits until the coordinator has told of at least one channel.
///
/// # Errors
/// Nobody answers in time: with the address and what to look at.
pub(crate) async fn connect(arguments: &ConnectArgs) -> anyhow::Result<Cluster> {
    let clock = Clock::system();
    let random = Random::system();
    let discovery = if arguments.etcd.is_empty() {
        Discovery::Address(arguments.coordinator.clone())
    } else {
        let mut settings = EtcdSettings::new(arguments.etcd.clone());
        settings.tls = credentials::etcd_tls(&arguments.etcd_credentials);
        settings.user = credentials::etcd_user(&arguments.etcd_credentials)?;
        let store = Box::pin(etcd(&settings, &clock, &random, arguments.timeout))
            .await
            .with_context(|| format!("cannot reach etcd at {}", arguments.etcd.join(",")))?;
        Discovery::Metadata { store: Arc::new(store), meta_root: arguments.meta_root.clone() }
    };
    let settings = Settings { cluster: arguments.cluster.clone(), ..Settings::new(discovery) };
    let edges = Edges {
        connector: credentials::connector(&arguments.credentials, Protocol::Grpc)?,
        clock: clock.clone(),
        random,
    };
    let client = Client::connect(settings, edges)?;
    if let Err(not_ready) = client.wait_ready(arguments.timeout).await {
        let whom = if arguments.etcd.is_empty() {
            format!("the coordinator at {}", arguments.coordinator)
        } else {
            format!("a coordinator known to etcd at {}", arguments.etcd.join(","))
        };
        return Err(anyhow::Error::new(not_ready).context(whom));
    }
    Ok(Cluster { client, clock })
}

/// Connects, and tries again for as long as it may take what may pass.
async fn etcd(
    settings: &EtcdSettings,
    clock: &Clock,
    random: &Random,
    timeout: Duration,
) -> Result<EtcdStore, MetadataError> {
    let deadline = clock.now() + timeout;
    let mut pauses = Backoff::new(clock.clone(), random, PAUSES.0, PAUSES.1);
    loop {
        match Box::pin(EtcdStore::connect(settings.clone(), clock.clone(), random.clone())).await {
            Err(error) if error.is_retryable() && clock.now() < deadline => pauses.wait().await,
            outcome => return outcome,
        }
    }
}

/// The channel of that name, or the one that the control channel is on: it does not depend on which of them are served by
/// now, so who writes and who reads mean the same.
///
/// # Errors
/// It does not exist, or nobody serves it in time.
pub(crate) async fn pick_channel(
    cluster: &Cluster,
    name: Option<&str>,
    arguments: &ConnectArgs,
) -> anyhow::Result<Channel> {
    let control = cluster.client.coordinator().control_channel;
    let Some(name) = name.or(control.as_deref()) else {
        return cluster.client.channels().into_iter().next().context("the cluster has no channel");
    };
    cluster
        .client
        .wait_channel(name, arguments.timeout)
        .await
        .with_context(|| format!("channel {name}\n`streaming channels` lists those that are served"))
}
