//! The replication topology: which cluster follows which.
//!
//! A change is a message to every pchannel, and in force once all of them have it: each WAL changes its role where its copy
//! stands. On a primary the coordinator appends the copies itself, until each stands in its log, whatever happens in
//! between; on a secondary they come from the source, and the nodes say when. A secondary whose source is lost is promoted
//! by force: then its coordinator appends the copies, as on a primary, and what the source broadcast and did not bring to all
//! channels.

mod append;
mod broadcasts;
mod copies;
mod task;
mod topology;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::future::join_all;
use streaming_proto::{
    common::{self, ReplicateConfiguration},
    streaming::{AckedCheckpoint, AckedResult, ReplicateConfigurationMeta, StreamingCode},
};
use streaming_types::{ImmutableMessage, StreamingError, channel::to_physical};
use tokio::sync::{Mutex, Notify, watch};
use woodpecker_base::{backoff::Backoff, clock::Clock, net::Connector, random::Random, tasks::Tasks};

pub(crate) use self::topology::is_listed;
use self::{
    append::Appending,
    broadcasts::{BroadcastId, Broadcasts},
    copies::Copies,
    task::{Arrival, Task},
    topology::is_secondary,
};
use crate::{
    allocator::{Allocator, Ids},
    assignment::Published,
    catalog::{Catalog, CatalogError, Record},
    metrics,
};

/// How long a call waits for a change to be in force. The change goes on when the call has ended.
const PATIENCE: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Where the topology in force is kept, and a change that is under way.
const IN_FORCE: &str = "replicate-configuration";
const UNDER_WAY: &str = "replicate-configuration-task";

/// The topology in force, if there ever was one.
pub(crate) type Topology = Option<Arc<ReplicateConfiguration>>;

/// What the control works with.
#[derive(Debug)]
pub(crate) struct Edges {
    pub(crate) cluster: String,
    /// Every pchannel, and the one that carries the control channel.
    pub(crate) pchannels: Vec<String>,
    pub(crate) control_channel: String,
    pub(crate) catalog: Catalog,
    pub(crate) assignment: watch::Receiver<Published>,
    pub(crate) connector: Connector,
    pub(crate) clock: Clock,
    pub(crate) random: Random,
    pub(crate) tasks: Tasks,
}

/// Changes the topology, one change at a time.
#[derive(Debug)]
pub(crate) struct ReplicationControl {
    edges: Edges,
    state: Mutex<State>,
    broadcasts: Broadcasts,
    /// Tells that a copy of a change is known to stand in its log.
    noted: Notify,
    in_force: watch::Sender<Topology>,
}

/// What is stored of the topology.
#[derive(Debug)]
pub(crate) struct State {
    record: Record,
    /// In force, and where its copies stand.
    meta: ReplicateConfigurationMeta,
    task_record: Record,
    task: Option<Task>,
}

impl State {
    pub(crate) async fn read(catalog: &Catalog) -> Result<Self, CatalogError> {
        let (record, meta) = catalog.message::<ReplicateConfigurationMeta>(IN_FORCE).await?;
        let (task_record, stored) = catalog.message(UNDER_WAY).await?;
        Ok(Self { record, meta: meta.unwrap_or_default(), task_record, task: stored.and_then(Task::from_stored) })
    }

    /// The only pchannels that a cluster may have, while clusters follow each other: those of one have their counterparts at
    /// the others. One that was served beside them would be in nobody's list, and no change of the topology possible any more.
    pub(crate) fn only_pchannels(&self, cluster: &str) -> Option<BTreeSet<String>> {
        let known = [self.meta.replicate_configuration.as_ref(), self.task.as_ref().map(Task::config)];
        let following = known.into_iter().flatten().filter(|config| topology::has_followers(config));
        let ours = following.flat_map(|config| &config.clusters).find(|listed| listed.cluster_id == cluster);
        ours.map(|ours| ours.pchannels.iter().cloned().collect())
    }
}

impl ReplicationControl {
    /// Goes on with a change that a former leader began.
    pub(crate) async fn load(edges: Edges, stored: State) -> Result<Arc<Self>, CatalogError> {
        metrics::broadcasts(stored.task.is_some());
        let broadcasts = Broadcasts::load(edges.catalog.clone()).await?;
        let in_force = watch::Sender::new(stored.meta.replicate_configuration.clone().map(Arc::new));
        let control = Arc::new(Self { edges, state: Mutex::new(stored), broadcasts, noted: Notify::new(), in_force });
        control.conclude(&mut *control.state.lock().await).await?;
        let going = control.clone();
        control.edges.tasks.spawn_until_stopped(async move { going.go_on().await });
        Ok(control)
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Topology> {
        self.in_force.subscribe()
    }

    /// Makes `wanted` the topology, and waits until it is. A secondary waits for its source to send it, unless it is promoted
    /// `by_force`.
    ///
    /// # Errors
    /// INVAILD_ARGUMENT with the first rule that it breaks; RESOURCE_ACQUIRED while another change is under way; INNER when
    /// it is not in force in time, and ON_SHUTDOWN when this coordinator ends before, though it may be later.
    pub(crate) async fn update(
        self: &Arc<Self>,
        wanted: ReplicateConfiguration,
        by_force: bool,
        ids: &Allocator<Ids>,
    ) -> Result<(), StreamingError> {
        let Edges { cluster, pchannels, .. } = &self.edges;
        let mut state = self.state.lock().await;
        state.settle(&self.edges.catalog).await.map_err(|error| unstored(&error))?;
        let current = state.meta.replicate_configuration.as_ref();
        if state.task.is_none() && current == Some(&wanted) {
            return Ok(());
        }
        topology::validate(&wanted, current, cluster, pchannels).map_err(StreamingError::invalid_argument)?;
        let follows = current.is_some_and(|current| is_secondary(current, cluster));
        if by_force {
            topology::validate_promotion(&wanted, follows, cluster).map_err(StreamingError::invalid_argument)?;
        }
        match &state.task {
            Some(task) if *task.config() == wanted && (task.is_by_force() || !by_force) => {}
            // What the source has begun, a promotion ends.
            Some(task) if !follows || (by_force && !task.arrives()) => {
                return Err(StreamingError::resource_acquired("another change is under way"));
            }
            _ if follows && !by_force => {}
            _ => self.begin(&mut state, &wanted, by_force, ids).await?,
        }
        drop(state);
        self.until_in_force(&wanted).await
    }

    /// Begins a change of our own.
    async fn begin(
        self: &Arc<Self>,
        state: &mut State,
        wanted: &ReplicateConfiguration,
        by_force: bool,
        ids: &Allocator<Ids>,
    ) -> Result<(), StreamingError> {
        let Edges { pchannels, control_channel, catalog, tasks, .. } = &self.edges;
        let id = ids.take(1).await.map_err(|error| StreamingError::inner(error.to_string()))?;
        let task = Task::new(id, wanted.clone(), by_force, pchannels, control_channel)?;
        state.store_task(catalog, Some(task)).await.map_err(|error| unstored(&error))?;
        tracing::info!(broadcast = id, by_force, "changing the replication topology");
        let control = self.clone();
        tasks.spawn_until_stopped(async move { control.go_on().await });
        Ok(())
    }

    async fn until_in_force(&self, wanted: &ReplicateConfiguration) -> Result<(), StreamingError> {
        let Edges { clock, tasks, .. } = &self.edges;
        let mut in_force = self.in_force.subscribe();
        let reached = in_force.wait_for(|topology| topology.as_deref() == Some(wanted));
        match tasks.token().run_until_cancelled(clock.timeout(PATIENCE, reached)).await {
            None => return Err(StreamingError::on_shutdown("not in force yet, the next coordinator goes on")),
            Some(Ok(Ok(_))) => return Ok(()),
            Some(Ok(Err(_)) | Err(_)) => {}
        }
        let missing = self.state.lock().await.task.as_ref().map(|task| task.copies.missing());
        let whom = match missing {
            None => "the source".to_owned(),
            Some(missing) if missing.is_empty() => "copies of what the source broadcast".to_owned(),
            Some(missing) => missing.join(", "),
        };
        Err(StreamingError::inner(format!("not in force after {PATIENCE:?}, waiting for {whom}")))
    }

    /// A node says that a copy of a broadcast stands in its log. Saying it again changes nothing.
    ///
    /// # Errors
    /// Retryable ones.
    pub(crate) async fn ack(&self, message: &common::ImmutableMessage) -> Result<(), StreamingError> {
        let Ok(message) = ImmutableMessage::try_from(message.clone()) else { return Ok(()) };
        let Some(arrival) = Arrival::of(&message) else {
            // A promotion waits for all of them, and nothing comes from the source any more.
            if !self.is_promoting().await && !self.broadcasts.has_room(&message).await {
                return Err(StreamingError::inner("broadcasts before this one are not on all channels yet"));
            }
            return self.broadcasts.arrived(&message).await.map_err(|error| unstored(&error));
        };
        let mut state = self.state.lock().await;
        match &state.task {
            Some(task) if task.is_of(&arrival) => {}
            _ if state.has_seen(&arrival) || !arrival.replicated => return Ok(()),
            // It stands before the promotion, which overrides it, and of which its node tells when this is answered.
            Some(task) if task.is_by_force() => return Ok(()),
            Some(_) => return Err(StreamingError::inner("the change before this one is not complete")),
            None => {
                tracing::info!(broadcast = arrival.broadcast_id, "the source changes the replication topology");
                let task = Task::arriving(&arrival);
                state.store_task(&self.edges.catalog, Some(task)).await.map_err(|error| unstored(&error))?;
            }
        }
        self.note(&mut state, &arrival.vchannel, arrival.checkpoint).await.map_err(|error| unstored(&error))
    }

    async fn is_promoting(&self) -> bool {
        self.state.lock().await.task.as_ref().is_some_and(Task::is_by_force)
    }

    async fn note(&self, state: &mut State, vchannel: &str, at: AckedCheckpoint) -> Result<(), CatalogError> {
        if let Some(mut task) = state.task.clone().filter(|task| task.copies.lacks(vchannel)) {
            task.copies.note(vchannel, &at);
            state.store_task(&self.edges.catalog, Some(task)).await?;
            self.noted.notify_waiters();
        }
        // Also of one that was noted before, for what came after that may have failed.
        self.conclude(state).await
    }

    /// Puts a change in force that all pchannels have. A promotion has more to do.
    async fn conclude(&self, state: &mut State) -> Result<(), CatalogError> {
        if state.task.as_ref().is_some_and(Task::is_by_force) { Ok(()) } else { self.put_in_force(state).await }
    }

    async fn put_in_force(&self, state: &mut State) -> Result<(), CatalogError> {
        let Some(task) = state.task.as_ref().filter(|task| task.copies.missing().is_empty()) else { return Ok(()) };
        let (channels, acked_checkpoints) = task.copies.places();
        let meta = ReplicateConfigurationMeta {
            replicate_configuration: Some(task.config().clone()),
            acked_result: Some(AckedResult { channels, acked_checkpoints }),
        };
        self.edges.catalog.store_message(&mut state.record, &meta).await?;
        state.meta = meta;
        state.store_task(&self.edges.catalog, None).await?;
        self.in_force.send_replace(state.meta.replicate_configuration.clone().map(Arc::new));
        tracing::info!("the replication topology has changed");
        Ok(())
    }

    /// Appends the copies of our own change that are not known to stand in their logs.
    async fn go_on(&self) {
        let task = self.state.lock().await.task.clone().filter(|task| !task.arrives());
        let Some(task) = task else { return };
        let (control, task) = (self, &task);
        let missing = task.copies.missing().into_iter();
        join_all(missing.map(|vchannel| async move { control.bring(task, &vchannel).await })).await;
        if task.is_by_force() {
            self.complete_broadcasts().await;
        }
        let mut backoff = self.backoff();
        while let Err(error) = self.put_this_in_force(task).await {
            tracing::warn!(%error, "the change of the topology could not be stored, trying again");
            backoff.wait().await;
        }
    }

    async fn put_this_in_force(&self, task: &Task) -> Result<(), CatalogError> {
        let mut state = self.state.lock().await;
        if state.is_at(task) { self.put_in_force(&mut state).await } else { Ok(()) }
    }

    async fn bring(&self, task: &Task, vchannel: &str) {
        let mut backoff = self.backoff();
        while self.lacks(task, vchannel).await {
            let noted = match self.append(&task.copies, vchannel).await {
                // Its node says so when it has told of every broadcast before it.
                Ok(_) if task.is_by_force() => return self.until_noted(task, vchannel).await,
                Ok(at) => {
                    let mut state = self.state.lock().await;
                    self.note(&mut state, vchannel, at).await.map_err(|error| error.to_string())
                }
                // A log that has it, and became secondary by it, refuses it; its node tells us then.
                Err(error) => Err(error.to_string()),
            };
            match noted {
                Ok(()) => return,
                Err(error) => tracing::warn!(vchannel, error, "the topology did not get there, trying again"),
            }
            backoff.wait().await;
        }
    }

    async fn lacks(&self, task: &Task, vchannel: &str) -> bool {
        let state = self.state.lock().await;
        state.is_at(task) && state.task.as_ref().is_some_and(|now| now.copies.lacks(vchannel))
    }

    async fn until_noted(&self, task: &Task, vchannel: &str) {
        loop {
            let noted = self.noted.notified();
            if !self.lacks(task, vchannel).await {
                return;
            }
            noted.await;
        }
    }

    /// Appends what the source broadcast and did not bring to all channels. No log takes anything of the source any more.
    async fn complete_broadcasts(&self) {
        while let Some((id, copies)) = self.broadcasts.next_incomplete().await {
            let (control, id, copies) = (self, &id, &copies);
            let missing = copies.missing().into_iter();
            join_all(missing.map(|vchannel| async move { control.supplement(id, copies, &vchannel).await })).await;
        }
    }

    async fn supplement(&self, id: &BroadcastId, copies: &Copies, vchannel: &str) {
        let mut backoff = self.backoff();
        loop {
            let settled = match self.append(copies, vchannel).await {
                Ok(at) => Ok(at),
                // As a partition of a collection that is not there.
                Err(error) if error.code() == StreamingCode::Unrecoverable => {
                    tracing::error!(?id, vchannel, %error, "a broadcast of the source is not taken here");
                    Ok(AckedCheckpoint { time_tick: u64::MAX, ..AckedCheckpoint::default() })
                }
                Err(error) => Err(error.to_string()),
            };
            let settled = match settled {
                Ok(at) => self.broadcasts.settle(id, vchannel, &at).await.map_err(|error| error.to_string()),
                Err(error) => Err(error),
            };
            match settled {
                Ok(()) => return,
                Err(error) => tracing::warn!(?id, vchannel, error, "a broadcast did not get there, trying again"),
            }
            backoff.wait().await;
        }
    }

    async fn append(&self, copies: &Copies, vchannel: &str) -> Result<AckedCheckpoint, StreamingError> {
        let Edges { assignment, connector, cluster, clock, .. } = &self.edges;
        let published = assignment.borrow().clone();
        let appending = Appending { cluster, connector, clock };
        appending.append(published.as_deref(), to_physical(vchannel), copies.copy(vchannel)).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(self.edges.clock.clone(), &self.edges.random, FIRST_PAUSE, LONGEST_PAUSE)
    }
}

impl State {
    async fn store_task(&mut self, catalog: &Catalog, task: Option<Task>) -> Result<(), CatalogError> {
        let stored = task.as_ref().map(Task::to_stored).unwrap_or_default();
        catalog.store_message(&mut self.task_record, &stored).await?;
        self.task = task;
        metrics::broadcasts(self.task.is_some());
        Ok(())
    }

    /// Makes the next leader find the task that is known here, and no other whose storing had an unknown outcome: it would
    /// carry that out.
    async fn settle(&mut self, catalog: &Catalog) -> Result<(), CatalogError> {
        if self.task_record.is_settled() { Ok(()) } else { self.store_task(catalog, self.task.clone()).await }
    }

    fn is_at(&self, task: &Task) -> bool {
        self.task.as_ref().is_some_and(|now| now.is_same(task))
    }

    /// Whether what is in force came after the arrival, or with it. Of the vchannels of a pchannel any may have the copy: a
    /// source's control channel is on a pchannel of its own choice.
    fn has_seen(&self, arrival: &Arrival) -> bool {
        let Some(acked) = &self.meta.acked_result else { return false };
        let (pchannel, tick) = (to_physical(&arrival.vchannel), arrival.checkpoint.time_tick);
        let mut places = acked.channels.iter().zip(&acked.acked_checkpoints);
        places.any(|(channel, at)| to_physical(channel) == pchannel && at.time_tick >= tick)
    }
}

fn unstored(error: &CatalogError) -> StreamingError {
    StreamingError::inner(format!("what concerns replication cannot be stored: {error}"))
}
