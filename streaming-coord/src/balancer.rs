//! Brings every channel to a node and keeps it on one. Single owner of the channels' state; all I/O runs in jobs, one
//! for a channel at most, so that a slow node or a long recovery holds up nobody else.

mod attempt;
mod channel;
mod status;

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::{mpsc, watch};
use woodpecker_base::{
    clock::{Clock, Instant},
    random::Random,
    tasks::Tasks,
};

pub use self::status::{CHANNEL_TROUBLE, ChannelState, ChannelStatus};
use self::{
    attempt::{Event, Tools},
    channel::Channel,
};
use crate::{
    assignment::Publisher,
    catalog::{Catalog, CatalogError, Stored},
    metrics,
    nodes::{self, Condition, Nodes},
    pchannel::{HandOver, State},
    policy::{self, NodeView, Placement},
    runtime_policy::RuntimePolicy,
    settings::{Balance, Settings},
};

/// A client saw the WAL of a channel fail at a term.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) channel: String,
    pub(crate) term: i64,
}

/// What the balancer works with besides the channels.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) settings: Settings,
    pub(crate) balance: watch::Receiver<Balance>,
    pub(crate) catalog: Catalog,
    pub(crate) nodes: nodes::NodeView,
    pub(crate) policy: watch::Receiver<Arc<RuntimePolicy>>,
    pub(crate) publisher: Publisher,
    pub(crate) status: Arc<watch::Sender<Arc<Vec<ChannelStatus>>>>,
    pub(crate) clock: Clock,
    pub(crate) random: Random,
    pub(crate) tasks: Tasks,
}

/// The actor.
pub(crate) struct Balancer {
    context: Context,
    channels: BTreeMap<String, Channel>,
    events: mpsc::Receiver<Event>,
    tools: Tools,
}

impl Balancer {
    pub(crate) fn new(context: Context, stored: Stored) -> Self {
        let (sender, events) = mpsc::channel(64);
        let tools = Tools {
            catalog: context.catalog.clone(),
            nodes: context.nodes.clone(),
            settings: context.settings.nodes.clone(),
            clock: context.clock.clone(),
            events: sender,
        };
        let channels = stored
            .channels
            .into_iter()
            .map(|(name, (channel, record))| (name, Channel::new(channel, record, &context)))
            .collect();
        Self { context, channels, events, tools }
    }

    /// Balances until the reports end or this coordinator turns out to be deposed.
    pub(crate) async fn run(mut self, mut reports: mpsc::Receiver<Report>) {
        let mut balance = self.context.balance.clone();
        let mut ticker = self.context.clock.ticker(balance.borrow_and_update().interval);
        let mut nodes = self.context.nodes.clone();
        let mut policy = self.context.policy.clone();
        loop {
            let clock = self.context.clock.clone();
            let before = clock.now();
            self.round();
            // What was due and was not started waits for a node, which wakes the loop; its timer would only spin.
            let due = self.channels.values().filter_map(Channel::wakes_at).filter(|at| *at > before).min();
            let timer = async {
                match due {
                    Some(at) => clock.sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(event) = self.events.recv() => {
                    if self.note(event).is_err() {
                        return;
                    }
                }
                report = reports.recv() => match report {
                    Some(Report { channel, term }) => {
                        tracing::info!(channel, term, "a client reports a failed channel");
                        self.lost(&channel, term);
                    }
                    None => return,
                },
                Ok(()) = nodes.0.changed() => {}
                Ok(()) = policy.changed() => {}
                Ok(()) = balance.changed() => ticker = clock.ticker(balance.borrow_and_update().interval),
                () = self.context.publisher.topology_changed() => {}
                _ = ticker.tick() => {}
                () = timer => {}
            }
        }
    }

    /// Takes what a job says; an error if this coordinator no longer leads.
    fn note(&mut self, event: Event) -> Result<(), CatalogError> {
        match event {
            Event::Stored(pchannel) => {
                if let Some(channel) = self.channels.get_mut(pchannel.name()) {
                    channel.stored(pchannel);
                }
            }
            Event::Ended { channel, past, why } => {
                tracing::warn!(channel, term = past.term, node = past.node.server_id, why, "its WAL ended by itself");
                if let Some(channel) = self.channels.get_mut(&channel) {
                    channel.ended(&past, &why);
                }
            }
            Event::Finished { channel: pchannel, record, outcome } => {
                if let Err(attempt::AttemptError::Catalog(CatalogError::Deposed)) = outcome {
                    return Err(CatalogError::Deposed);
                }
                let (now, name) = (self.now(), pchannel.name().to_owned());
                if let Some(channel) = self.channels.get_mut(&name) {
                    channel.finished(pchannel, record, outcome, now);
                    if let Some(term) = channel.take_report() {
                        self.lost(&name, term);
                    }
                }
            }
        }
        Ok(())
    }

    fn now(&self) -> Now {
        (self.context.clock.now(), self.context.clock.wall().as_secs())
    }

    /// The WAL of a channel has ended at its node, though nobody took it away.
    fn lost(&mut self, name: &str, term: i64) {
        let now = self.now();
        let Some(channel) = self.channels.get_mut(name) else { return };
        let Some(unavailable) = channel.pchannel().unavailable(term) else { return };
        let Some(record) = channel.start(None) else { return channel.keep_report(term) };
        channel.lost(now);
        self.context.tasks.spawn_until_stopped(attempt::mark_unavailable(self.tools.clone(), unavailable, record));
    }

    /// Looks at everything anew: what needs a node or may be moved is given to a job; what changed is published.
    fn round(&mut self) {
        let nodes = self.context.nodes.now();
        let policy = self.context.policy.borrow().clone();
        let now = self.context.clock.now();
        // Clients report what they use only.
        let ended: Vec<_> =
            self.channels.values().filter(|channel| channel.has_ended(&nodes)).map(Channel::at_term).collect();
        ended.iter().for_each(|(name, term)| self.lost(name, *term));
        self.channels.values_mut().for_each(|channel| channel.prove(now));
        // A node that has just appeared answers within a moment; without it the layout would be lopsided.
        let settled = !nodes.0.values().any(|status| status.condition == Condition::New);
        if settled && self.is_ready_to_begin(&nodes) {
            for placement in self.plan(&nodes, &policy) {
                self.hand_over(&nodes, &placement);
            }
        }
        self.context.publisher.publish(&nodes, self.channels.values().map(Channel::pchannel));
        let status: Arc<Vec<_>> = Arc::new(self.channels.values().map(|channel| channel.status(&nodes)).collect());
        let before = self.context.status.send_replace(status.clone());
        metrics::channels(&before, &status);
    }

    /// A cluster that has never assigned anything may wait for its nodes, so as not to load the first one with all.
    fn is_ready_to_begin(&self, nodes: &Nodes) -> bool {
        let fresh = self.channels.values().all(|channel| channel.pchannel().state() == State::Uninitialized);
        let healthy = nodes.0.values().filter(|status| status.condition == Condition::Healthy).count();
        !fresh || u32::try_from(healthy).unwrap_or(u32::MAX) >= self.context.balance.borrow().initial_nodes
    }

    fn plan(&self, nodes: &Nodes, policy: &RuntimePolicy) -> Vec<Placement> {
        let now = self.now();
        let balance = self.context.balance.borrow().clone();
        let seen = nodes.0.iter().map(|(id, status)| {
            let usable = !policy.frozen.contains(id);
            let view = NodeView {
                retains: usable && status.condition.retains(),
                receives: usable && status.condition == Condition::Healthy,
                primary: balance.primary_group.is_empty() || balance.primary_group == status.group,
            };
            (*id, view)
        });
        let eligible = policy::eligible(&seen.collect(), balance.strict_groups);
        let views: Vec<_> =
            self.channels.values().filter_map(|channel| channel.view(nodes, &eligible.homes, &balance, now)).collect();
        policy::plan(&views, &eligible.targets, policy.allow_rebalance)
    }

    fn hand_over(&mut self, nodes: &Nodes, placement: &Placement) {
        let Some(channel) = self.channels.get_mut(&placement.channel) else { return };
        let Some(node) = nodes.get(placement.node).map(|status| status.node.clone()) else { return };
        let owner = channel.pchannel().owner().and_then(|owner| nodes.get(owner.server_id));
        let is_silent = owner.is_some_and(|owner| owner.condition.is_silent());
        let begin = if is_silent { HandOver::begin_by_asking } else { HandOver::begin };
        let Some(hand_over) = begin(channel.pchannel(), node) else { return };
        if let Some(record) = channel.start(Some(placement.node)) {
            let term = channel.pchannel().term() + 1;
            tracing::info!(channel = placement.channel, term, node = placement.node, is_silent, "assigning");
            self.context.tasks.spawn_until_stopped(attempt::run(self.tools.clone(), hand_over, record));
        }
    }
}

/// A moment on both clocks: for timers, and in seconds since the Unix epoch.
pub(crate) type Now = (Instant, u64);
