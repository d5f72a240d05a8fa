//! Finding the cluster.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use streaming_client::{Channel, Client, Coordinator, Discovery, Edges, NotReady, Settings};
use streaming_coord::CHANNEL_TROUBLE;
use streaming_proto::rootcoord::{GetPChannelInfoRequest, root_coord_client::RootCoordClient};
use streaming_types::metadata::set_destination;
use tonic::{Request, transport::Endpoint};
use woodpecker_base::{
    backoff::Backoff,
    clock::Clock,
    metadata::{EtcdSettings, EtcdStore, MetadataError},
    net::Connector,
    random::Random,
};

use super::credentials::{self, Protocol};
use crate::cli::ConnectArgs;

/// How often it is looked what is known of the coordinator.
const LOOK: Duration = Duration::from_millis(20);
/// How long one waits for the cluster without a word.
const SILENCE: Duration = Duration::from_secs(3);
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
    let cluster = begin(arguments).await?;
    wait_ready(&cluster, arguments).await?;
    Ok(cluster)
}

/// A client that looks for the coordinator.
async fn begin(arguments: &ConnectArgs) -> anyhow::Result<Cluster> {
    let clock = Clock::system();
    let random = Random::system();
    let discovery = if arguments.place.etcd.is_empty() {
        Discovery::Address(arguments.place.coordinator.clone())
    } else {
        let mut settings = EtcdSettings::new(arguments.place.etcd.clone());
        settings.tls = credentials::etcd_tls(&arguments.etcd_credentials);
        settings.user = credentials::etcd_user(&arguments.etcd_credentials)?;
        let store = Box::pin(etcd(&settings, &clock, &random, arguments.timeout))
            .await
            .with_context(|| format!("cannot reach etcd at {}", arguments.place.etcd.join(",")))?;
        Discovery::Metadata { store: Arc::new(store), meta_root: arguments.meta_root.clone() }
    };
    let settings = Settings { cluster: arguments.cluster.clone(), ..Settings::new(discovery) };
    let edges = Edges {
        connector: credentials::connector(&arguments.credentials, Protocol::Grpc)?,
        clock: clock.clone(),
        random,
    };
    let client = Client::connect(settings, edges)?;
    Ok(Cluster { client, clock })
}

async fn wait_ready(cluster: &Cluster, arguments: &ConnectArgs) -> anyhow::Result<()> {
    let whom = if arguments.place.etcd.is_empty() {
        format!("the coordinator at {}", arguments.place.coordinator)
    } else {
        format!("a coordinator known to etcd at {}", arguments.place.etcd.join(","))
    };
    let (client, limit) = (&cluster.client, arguments.timeout);
    let mut waited = client.wait_ready(limit.min(SILENCE)).await;
    if let Err(early) = &waited
        && limit > SILENCE
    {
        // Who waits at a terminal may see by now that it is in vain.
        eprintln!("waiting for {whom}, {limit:?} at most: {}", early.cause);
        waited = client.wait_ready(limit - SILENCE).await;
    }
    waited.map_err(|not_ready| NotReady { after: limit, ..not_ready }).with_context(|| whom)
}

/// A channel with its owner, and what failed lately when it was brought to one. Where something did, an owner is not waited for.
///
/// # Errors
/// It does not exist, or nobody serves it in time and nothing has failed.
pub(crate) async fn look_at(name: &str, arguments: &ConnectArgs) -> anyhow::Result<(Option<Channel>, Option<String>)> {
    let cluster = begin(arguments).await?;
    let connector = credentials::connector(&arguments.credentials, Protocol::Grpc)?;
    let asking = trouble(&cluster, &connector, name, arguments);
    let trouble = cluster.clock.timeout(arguments.timeout, asking).await.ok().flatten();
    let owner = if trouble.is_some() {
        cluster.client.describe(name)
    } else {
        wait_ready(&cluster, arguments).await?;
        Some(pick_channel(&cluster, Some(name), arguments).await?)
    };
    cluster.client.close().await;
    Ok((owner, trouble))
}

/// What the coordinator says that failed of a channel, if it leads and something did.
async fn trouble(cluster: &Cluster, connector: &Connector, name: &str, arguments: &ConnectArgs) -> Option<String> {
    let address = found(cluster, |coordinator| coordinator.address).await;
    let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
    let mut request = Request::new(GetPChannelInfoRequest { pchannel: name.to_owned(), ..Default::default() });
    set_destination(request.metadata_mut(), &arguments.cluster, None);
    let answer = RootCoordClient::new(connector.dial(endpoint)).get_p_channel_info(request).await.ok()?;
    let trouble = answer.into_inner().status?.extra_info.remove(CHANNEL_TROUBLE)?;
    // From then on it is known who is an owner.
    found(cluster, |coordinator| coordinator.version).await;
    Some(trouble)
}

/// What becomes known of the coordinator.
async fn found<T>(cluster: &Cluster, look: impl Fn(Coordinator) -> Option<T>) -> T {
    let mut looks = cluster.clock.ticker(LOOK);
    loop {
        looks.tick().await;
        if let Some(found) = look(cluster.client.coordinator()) {
            return found;
        }
    }
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
        .with_context(|| format!("channel {name} (`streaming channels` lists those that are served)"))
}
