//! What exists only while this coordinator leads.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
};

use tokio::sync::{mpsc, watch};
use woodpecker_base::{
    clock::Clock,
    election::Leadership,
    health::HealthReporter,
    metadata::MetadataStore,
    net::Connector,
    random::Random,
    session::{Session, SessionKeys, watch_sessions},
    tasks::Tasks,
};

use crate::{
    allocator::{Allocator, Ids, Timestamps},
    assignment::Publisher,
    balancer::{Balancer, Context, Report},
    catalog::{Catalog, CatalogError},
    nodes::Watcher,
    pchannel::{PChannel, State},
    replication::{self, ReplicationControl},
    runtime_policy::PolicyControl,
    settings::Balance,
    shared::Shared,
};

/// How many reports may wait for the balancer.
const REPORTS: usize = 256;

/// What a coordinator works with, injected.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Connects to streaming nodes.
    pub connector: Connector,
    pub metadata: Arc<dyn MetadataStore>,
    pub clock: Clock,
    pub random: Random,
    /// Where the coordinator says how it is.
    pub health: HealthReporter,
    /// How channels are spread, as it is set at the moment.
    pub balance: watch::Receiver<Balance>,
}

/// The active coordinator of one reign.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) timestamps: Allocator<Timestamps>,
    pub(crate) ids: Allocator<Ids>,
    pub(crate) policy: PolicyControl,
    pub(crate) replication: Arc<ReplicationControl>,
    pub(crate) reports: mpsc::Sender<Report>,
    session: Weak<Session>,
    clock: Clock,
}

/// Why a reign could not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BeginError {
    /// An earlier leader had a larger server id, so clients would ignore what this one publishes.
    #[error("server id {ours} is not larger than an earlier leader's, {earlier}")]
    Outranked { ours: i64, earlier: u64 },
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl Active {
    /// Recovers what was stored and starts to balance; everything runs until `tasks` is stopped.
    pub(crate) async fn begin(
        shared: &Shared,
        parts: &Parts,
        (session, leadership): (&Arc<Session>, &Leadership),
        tasks: &Tasks,
    ) -> Result<Self, BeginError> {
        let settings = &shared.settings;
        let server_id = session.record().server_id;
        let catalog = Catalog::new(
            parts.metadata.clone(),
            &settings.metadata_root,
            leadership.guard(),
            (parts.clock.clone(), parts.random.clone()),
            settings.metadata_timeout,
        );
        claim_rank(&catalog, server_id).await?;
        let mut stored = catalog.load(&settings.channel_names()).await?;
        let topology = replication::State::read(&catalog).await?;
        if let Some(only) = topology.only_pchannels(&settings.cluster) {
            stored.channels.retain(|name, (channel, _)| may_be_served(channel, name, &only));
        }
        let policy = PolicyControl::load(catalog.clone(), settings.balance.allow_rebalance).await?;
        let timestamps = catalog.number("timestamp-ceiling").await?;
        let ids = catalog.number("id-ceiling").await?;
        let edges = replication::Edges {
            cluster: settings.cluster.clone(),
            pchannels: stored.channels.keys().cloned().collect(),
            control_channel: stored.control_channel.clone(),
            catalog: catalog.clone(),
            assignment: shared.assignment.subscribe(),
            connector: parts.connector.clone(),
            clock: parts.clock.clone(),
            random: parts.random.clone(),
            tasks: tasks.clone(),
        };
        let replication = ReplicationControl::load(edges, topology).await?;

        // Nothing fails from here on: what runs, runs once in a reign.
        let (record, ceiling) = timestamps;
        let window = Timestamps::recover(ceiling, settings.timestamp_window);
        let timestamps = Allocator::start(window, record, catalog.clone(), parts.clock.clone(), tasks);
        let (record, ceiling) = ids;
        let ids = Ids::recover(ceiling, parts.clock.wall_ms());
        let ids = Allocator::start(ids, record, catalog.clone(), parts.clock.clone(), tasks);
        let (watcher, nodes) = Watcher::new(settings.clone(), parts.connector.clone(), parts.clock.clone());
        let sessions = watch_sessions(
            parts.metadata.clone(),
            &settings.metadata_root,
            SessionKeys::Shared("streamingnode"),
            parts.clock.clone(),
            &parts.random,
        );
        tasks.spawn_until_stopped(watcher.run(sessions));
        let (reports, receiver) = mpsc::channel(REPORTS);
        let (cluster, control) = (settings.cluster.clone(), stored.control_channel.clone());
        let publisher = Publisher::new(server_id, cluster, control, replication.subscribe(), shared.assignment.clone());
        let context = Context {
            settings: settings.clone(),
            balance: parts.balance.clone(),
            catalog,
            nodes,
            policy: policy.subscribe(),
            publisher,
            status: shared.status.clone(),
            clock: parts.clock.clone(),
            random: parts.random.clone(),
            tasks: tasks.clone(),
        };
        tasks.spawn_until_stopped(Balancer::new(context, stored).run(receiver));
        let (session, clock) = (Arc::downgrade(session), parts.clock.clone());
        Ok(Self { timestamps, ids, policy, replication, reports, session, clock })
    }

    /// Whether, on our own clock, nobody else can lead yet. Without that a timestamp could be smaller than one that a
    /// successor has already given out.
    pub(crate) fn is_sure_to_lead(&self) -> bool {
        self.session.upgrade().is_some_and(|session| self.clock.now() < session.valid_until())
    }
}

/// Whether a channel may be served while clusters follow each other by a topology with `only` these.
fn may_be_served(channel: &PChannel, name: &str, only: &BTreeSet<String>) -> bool {
    let may = channel.state() != State::Uninitialized || only.contains(name);
    if !may {
        tracing::warn!(channel = name, "not served as long as clusters follow each other: it is in no topology");
    }
    may
}

/// Clients order assignments by the leader's server id first, so each leader's must be larger than all before it. An equal one
/// is our own, of a try to begin that failed later on.
async fn claim_rank(catalog: &Catalog, server_id: i64) -> Result<(), BeginError> {
    let (mut record, earlier) = catalog.number("leader-rank").await?;
    let ours = u64::try_from(server_id).unwrap_or_default();
    if ours < earlier {
        return Err(BeginError::Outranked { ours: server_id, earlier });
    }
    Ok(catalog.store_number(&mut record, ours).await?)
}
