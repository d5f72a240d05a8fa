//! What the services see of the coordinator: its role, and what it has published.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use streaming_types::{StreamingError, metadata::check_destination};
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use woodpecker_base::{
    clock::Clock,
    health::{HealthReporter, State},
};

use crate::{active::Active, assignment::Published, balancer::ChannelStatus, metrics, settings::Settings};

/// What the coordinator is at the moment.
#[derive(Debug, Clone)]
pub(crate) enum Phase {
    /// Not yet known: registering, or taking over.
    Initializing,
    /// Another coordinator leads.
    StandBy,
    Active(Arc<Active>),
    Stopping,
}

impl Phase {
    pub(crate) fn state(&self) -> State {
        match self {
            Self::Initializing => State::Initializing,
            Self::StandBy => State::StandBy,
            Self::Active(_) => State::Healthy,
            Self::Stopping => State::Stopping,
        }
    }
}

/// The coordinator as its services see it.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) clock: Clock,
    pub(crate) phase: watch::Sender<Phase>,
    /// Where another coordinator leads, as long as this one stands by.
    pub(crate) leader: watch::Sender<Option<String>>,
    pub(crate) assignment: Arc<watch::Sender<Published>>,
    pub(crate) status: Arc<watch::Sender<Arc<Vec<ChannelStatus>>>>,
    /// Our session's server id; 0 before there is one.
    server_id: AtomicI64,
}

impl Shared {
    pub(crate) fn new(settings: Settings, clock: Clock) -> Self {
        Self {
            settings,
            clock,
            phase: watch::Sender::new(Phase::Initializing),
            leader: watch::Sender::new(None),
            assignment: Arc::new(watch::Sender::new(None)),
            status: Arc::new(watch::Sender::new(Arc::default())),
            server_id: AtomicI64::new(0),
        }
    }

    pub(crate) fn server_id(&self) -> i64 {
        self.server_id.load(Ordering::Relaxed)
    }

    pub(crate) fn set_server_id(&self, server_id: i64) {
        self.server_id.store(server_id, Ordering::Relaxed);
    }

    /// Keeps saying how the coordinator is, until it stops.
    pub(crate) async fn report(self: Arc<Self>, health: HealthReporter) {
        let (mut phase, mut status) = (self.phase.subscribe(), self.status.subscribe());
        loop {
            let state = phase.borrow_and_update().state();
            metrics::leads(state == State::Healthy);
            let channels = status.borrow_and_update().clone();
            health.report(state, if state == State::Healthy { unserved(&channels) } else { Vec::new() });
            if state == State::Stopping {
                return;
            }
            // Both senders are ours.
            tokio::select! {
                _ = phase.changed() => {}
                _ = status.changed() => {}
            }
        }
    }

    /// The active coordinator; waits a while to become it.
    pub(crate) async fn active(&self) -> Result<Arc<Active>, StreamingError> {
        let mut phase = self.phase.subscribe();
        let decided = phase.wait_for(|phase| matches!(phase, Phase::Active(_) | Phase::Stopping));
        let decided = self.clock.timeout(self.settings.ready_timeout, decided).await;
        match decided.as_ref().map(|phase| phase.as_deref()) {
            Ok(Ok(Phase::Active(active))) => Ok(active.clone()),
            Ok(_) => Err(StreamingError::on_shutdown("this coordinator is stopping")),
            Err(_) => Err(StreamingError::inner("this coordinator is not active")),
        }
    }

    /// Refuses a call that is meant for another cluster or another process.
    pub(crate) fn check(&self, metadata: &MetadataMap) -> Result<(), StreamingError> {
        // Nobody can know an id that is not registered yet: a call for any server is then for someone else.
        check_destination(metadata, &self.settings.cluster, self.server_id())
    }
}

/// What each channel that nobody serves is waiting for.
fn unserved(channels: &[ChannelStatus]) -> Vec<String> {
    if channels.is_empty() {
        return vec!["the channels have not been looked at yet".to_owned()];
    }
    let unserved = channels.iter().filter(|channel| !channel.served);
    unserved
        .map(|channel| {
            let ChannelStatus { name, term, busy, .. } = channel;
            let begins = if *busy { "an attempt is running" } else { "it waits for a node" };
            let trouble = channel.trouble().unwrap_or_else(|| begins.to_owned());
            format!("{name} is not served: term {term}, {trouble}")
        })
        .collect()
}
