//! The client: what its parts share, and how it starts and ends.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use streaming_types::{LocalNode, channel::to_physical};
use tokio::runtime::Handle;
use woodpecker_base::{
    backoff::Backoff,
    clock::{Clock, Instant},
    random::Random,
    tasks::Tasks,
};

use crate::{
    assignment::{
        Assignment, Channel, Node, Version,
        locator::Locator,
        watcher::{Assignments, Watcher},
    },
    connections::Connections,
    consumer::{ConsumeOptions, Consumer},
    error::{ConsumeError, NotReady},
    producer::{self, Producer},
    settings::{Edges, InvalidSetting, Settings},
};

/// A client of one streaming cluster. Cheap to clone. It finds channels and nodes by itself and follows every change; it is
/// closed by [`Client::close`], or abandoned when the last clone, producer and consumer is dropped.
#[derive(Debug, Clone)]
pub struct Client {
    session: Arc<Session>,
}

/// The coordinator as the client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coordinator {
    /// `host:port`; `None` before it was found.
    pub address: Option<String>,
    /// `None` before it was found, or where it was given by address.
    pub server_id: Option<i64>,
    /// Whether the assignment stream stands.
    pub connected: bool,
    /// Version of the newest assignment; `None` before the first.
    pub version: Option<Version>,
    /// Where broadcasts to all channels go, as the coordinator said.
    pub control_channel: Option<String>,
    /// Why the stream does not stand.
    pub last_failure: Option<String>,
}

/// What every part works with. Tasks hold it, so it must not hold what stops them.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) settings: Settings,
    pub(crate) clock: Clock,
    pub(crate) random: Random,
    pub(crate) connections: Arc<Connections>,
    pub(crate) assignments: Assignments,
    /// The producers' tasks, and the signal that the client closes.
    pub(crate) tasks: Tasks,
    /// Where tasks run, whoever makes a producer or drops a transaction: that may happen outside of it.
    runtime: Handle,
}

/// Lives as long as anything a user holds; its end stops the tasks.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) core: Arc<Core>,
    watcher: Tasks,
    producers: Mutex<BTreeMap<String, Weak<producer::Shared>>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.core.tasks.stop();
        self.watcher.stop();
    }
}

impl Core {
    /// Runs a task to its end.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let _entered = self.runtime.enter();
        self.tasks.spawn(task);
    }

    /// Runs a task until the client is closed.
    pub(crate) fn spawn_until_stopped(&self, task: impl Future<Output = ()> + Send + 'static) {
        let _entered = self.runtime.enter();
        self.tasks.spawn_until_stopped(task);
    }

    pub(crate) fn backoff(&self) -> Backoff {
        self.settings.timeouts.backoff(&self.clock, &self.random)
    }

    pub(crate) fn assigned(&self, pchannel: &str) -> Option<Channel> {
        self.assignments.latest().channels.get(pchannel).cloned()
    }

    /// The channel's owner, if it is in this process.
    pub(crate) fn local(&self, channel: &Channel) -> Option<&dyn LocalNode> {
        let node = self.settings.local.as_deref()?;
        node.is(&self.settings.cluster, channel.owner.server_id).then_some(node)
    }

    /// What to tell someone who waits for an owner.
    pub(crate) fn why_unassigned(&self, pchannel: &str) -> String {
        let missing = format!("no node is assigned to {pchannel}");
        match self.assignments.link().last_failure {
            Some(failure) => format!("{missing}: {failure}"),
            None => missing,
        }
    }

    /// The channel, as soon as it is assigned the way it should be. Waits for ever when it never is.
    pub(crate) async fn wait_assigned(&self, pchannel: &str, wanted: impl Fn(&Channel) -> bool) -> Channel {
        let mut latest = self.assignments.watch();
        loop {
            let channel = latest.borrow_and_update().channels.get(pchannel).filter(|channel| wanted(channel)).cloned();
            if let Some(channel) = channel {
                return channel;
            }
            if latest.changed().await.is_err() {
                // The watcher ended with the client: there is no more news.
                return std::future::pending().await;
            }
        }
    }

    /// Waits for an owner of a later term, at most for `pause`.
    pub(crate) async fn newer_term(&self, pchannel: &str, term: i64, pause: Duration) {
        let newer = self.wait_assigned(pchannel, |channel| channel.pchannel.term() > term);
        // Both outcomes mean: try again now.
        let _ = self.clock.timeout(pause, newer).await;
    }
}

impl Client {
    /// Starts a client. It returns at once and looks for the coordinator in the background: see [`Client::wait_ready`].
    /// Must be called on a tokio runtime.
    ///
    /// # Errors
    /// The first setting that is impossible.
    pub fn connect(settings: Settings, edges: Edges) -> Result<Self, InvalidSetting> {
        settings.validate()?;
        let Edges { connector, clock, random } = edges;
        let connections = Arc::new(Connections::new(connector, &settings)?);
        let locator = Locator::new(&settings.discovery, clock.clone(), &random, settings.timeouts.connect);
        let backoff = settings.timeouts.backoff(&clock, &random);
        let (watcher, assignments) = Watcher::new(locator, connections.clone(), clock.clone(), &settings, backoff);
        let watcher_tasks = Tasks::new();
        watcher_tasks.spawn(watcher.run(watcher_tasks.clone()));
        let (tasks, runtime) = (Tasks::new(), Handle::current());
        let core = Core { settings, clock, random, connections, assignments, tasks, runtime };
        let session = Session { core: Arc::new(core), watcher: watcher_tasks, producers: Mutex::default() };
        Ok(Self { session: Arc::new(session) })
    }

    /// A producer for a physical channel, or for the one that a vchannel belongs to. Whether the channel exists shows when
    /// something is appended: one that is on its way between nodes looks the same as one that does not exist.
    #[must_use]
    pub fn producer(&self, channel: &str) -> Producer {
        let channel = to_physical(channel);
        let mut producers = self.session.producers.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = producers.get(channel).and_then(Weak::upgrade).unwrap_or_else(|| {
            producers.retain(|_, shared| shared.strong_count() > 0);
            let shared = producer::Shared::start(&self.session.core, channel.to_owned());
            producers.insert(channel.to_owned(), Arc::downgrade(&shared));
            shared
        });
        Producer::new(shared, self.session.clone())
    }

    /// A consumer of a physical channel (all its vchannels) or of one vchannel. It connects when its `next` is called.
    ///
    /// # Errors
    /// [`ConsumeError::InvalidRequest`] without a channel.
    pub fn consume(&self, options: ConsumeOptions) -> Result<Consumer, ConsumeError> {
        Consumer::new(self.session.clone(), options)
    }

    /// Every assigned channel, by name. A channel on its way between nodes is not listed.
    #[must_use]
    pub fn channels(&self) -> Vec<Channel> {
        self.session.core.assignments.latest().channels.values().cloned().collect()
    }

    /// Every live streaming node, by server id, also those without channels.
    #[must_use]
    pub fn nodes(&self) -> Vec<Node> {
        self.session.core.assignments.latest().nodes.values().cloned().collect()
    }

    /// The physical channel of that name, or the one a vchannel belongs to, if it is assigned.
    #[must_use]
    pub fn describe(&self, channel: &str) -> Option<Channel> {
        self.session.core.assigned(to_physical(channel))
    }

    /// The coordinator.
    #[must_use]
    pub fn coordinator(&self) -> Coordinator {
        let link = self.session.core.assignments.link();
        let latest = self.session.core.assignments.latest();
        Coordinator {
            server_id: link.server.as_ref().and_then(|server| server.id),
            address: link.server.map(|server| server.address),
            connected: link.connected,
            version: (latest.version > Version::NONE).then_some(latest.version),
            control_channel: latest.control_channel.clone(),
            last_failure: link.last_failure,
        }
    }

    /// Waits until the coordinator has said which nodes and channels there are, and there is at least one channel.
    ///
    /// # Errors
    /// [`NotReady`] after `limit`.
    pub async fn wait_ready(&self, limit: Duration) -> Result<(), NotReady> {
        self.wait(limit, "no channel is assigned", |assignment| !assignment.channels.is_empty()).await
    }

    /// Waits until the channel, or the one a vchannel belongs to, is assigned, and describes it.
    ///
    /// # Errors
    /// [`NotReady`] after `limit`.
    pub async fn wait_channel(&self, channel: &str, limit: Duration) -> Result<Channel, NotReady> {
        let pchannel = to_physical(channel);
        let missing = format!("channel {pchannel} is not assigned");
        self.wait(limit, &missing, |assignment| assignment.channels.contains_key(pchannel)).await?;
        self.describe(pchannel).ok_or(NotReady { after: limit, cause: missing })
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.session.core
    }

    async fn wait(&self, limit: Duration, missing: &str, ready: impl Fn(&Assignment) -> bool) -> Result<(), NotReady> {
        let core = &self.session.core;
        let mut latest = core.assignments.watch();
        let wait = latest.wait_for(|assignment| ready(assignment));
        match core.clock.timeout(limit, wait).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(NotReady { after: limit, cause: "client closed".to_owned() }),
            Err(_) => {
                let failure = core.assignments.link().last_failure;
                let cause = failure.map_or_else(|| missing.to_owned(), |failure| format!("{missing}: {failure}"));
                Err(NotReady { after: limit, cause })
            }
        }
    }

    /// Closes the client and everything made from it: accepted appends get
    /// [`Timeouts::close`](crate::Timeouts::close) to be acknowledged, then streams end by the protocol's handshake. Says
    /// whether all of that happened in time; what was left is abandoned.
    pub async fn close(&self) -> bool {
        let core = &self.session.core;
        let limit: Instant = core.clock.now() + core.settings.timeouts.close + core.settings.timeouts.drain * 2;
        let remaining = || limit.saturating_duration_since(core.clock.now());
        let producers = core.tasks.drain(&core.clock, remaining()).await;
        let watcher = self.session.watcher.drain(&core.clock, remaining()).await;
        producers && watcher
    }
}
