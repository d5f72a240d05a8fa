//! The task that keeps what a WAL needs to recover: follows its messages, acknowledges broadcasts, writes the metadata
//! and then the checkpoint, and gives up the log behind it.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use streaming_types::{ImmutableMessage, MessageType, channel::replica_consumer};
use tokio_util::sync::CancellationToken;
use woodpecker::{EntryId, Log, ReadError};
use woodpecker_base::{backoff::Backoff, clock::Clock, random::Random};

use super::{
    acks::BroadcastAcks,
    catalog::{Catalog, CatalogError, Changes},
    follower::{Batch, Follower},
    seen::Seen,
    state::State,
    truncation,
};
use crate::{
    metrics,
    settings::Recovery,
    wal::{buffer::Watermark, record},
};

/// Acknowledgements that are on their way at a time; following waits while there are more.
const ACKS: usize = 64;
const ACK_DEADLINE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How far a WAL's recovery state has got; read by others at any time.
#[derive(Debug)]
pub struct Progress {
    /// The last message that was taken in, and its tick.
    met: Mutex<(EntryId, u64)>,
    tail: AtomicU64,
    slowest: AtomicU64,
    consumers_moved: AtomicBool,
}

impl Progress {
    pub fn at(met: EntryId, tick: u64) -> Self {
        Self {
            met: Mutex::new((met, tick)),
            tail: AtomicU64::new(0),
            slowest: AtomicU64::new(0),
            consumers_moved: AtomicBool::new(false),
        }
    }

    /// The tick of the last message that was taken in. An idle WAL stays there.
    pub fn met(&self) -> u64 {
        self.met.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    /// The tick up to which everything was taken in. Whoever has met every message is as far as the WAL's newest tick,
    /// which may be in memory only.
    pub fn tick(&self, newest: Watermark) -> u64 {
        let (met, tick) = *self.met.lock().unwrap_or_else(PoisonError::into_inner);
        if met >= newest.last { newest.tick.max(tick) } else { tick }
    }

    /// Bytes of the log that the next owner would have to replay.
    pub fn tail(&self) -> u64 {
        self.tail.load(Ordering::Relaxed)
    }

    /// The tick of the registered consumer that is furthest behind, if there is one.
    pub fn slowest(&self) -> Option<u64> {
        Some(self.slowest.load(Ordering::Relaxed)).filter(|tick| *tick > 0)
    }

    /// A registered consumer is elsewhere now, or gone: the log is looked at again, though nothing may be appended to it.
    pub fn consumers_moved(&self) {
        self.consumers_moved.store(true, Ordering::Relaxed);
    }
}

/// See the module.
pub struct Keeper {
    pub pchannel: Arc<str>,
    pub state: State,
    pub follower: Follower,
    pub catalog: Catalog,
    pub log: Log,
    pub acks: Arc<dyn BroadcastAcks>,
    pub clock: Clock,
    pub random: Random,
    pub settings: Recovery,
    pub progress: Arc<Progress>,
    /// Bytes that were replayed or followed, and those of them that a checkpoint is ahead of.
    pub taken: u64,
    pub saved: u64,
}

/// The ends of a keeper's life.
#[derive(Debug, Clone)]
pub struct Ends {
    /// The WAL takes no more appends.
    pub ended: CancellationToken,
    /// Its appender has written its last.
    pub quiet: CancellationToken,
    /// Cancelled by the keeper when the WAL belongs to someone else.
    pub lost: CancellationToken,
    /// How long the end may take once the WAL is quiet.
    pub grace: Duration,
}

/// What a finished save knows.
struct Saved {
    taken: u64,
    tick: u64,
    truncated: Option<EntryId>,
}

type Saving = BoxFuture<'static, Result<Saved, CatalogError>>;
type Acking = FuturesUnordered<BoxFuture<'static, u64>>;

impl Keeper {
    /// Runs until the WAL has ended; then takes in the rest and writes a last checkpoint, so that the next owner has
    /// nothing to replay. `broadcasts` are those that replaying met.
    pub async fn run(mut self, broadcasts: Vec<ImmutableMessage>, ends: Ends) {
        let (mut waiting, mut acking) = (VecDeque::from(broadcasts), Acking::new());
        let mut saving: Option<Saving> = None;
        let mut due = self.clock.ticker(self.settings.persist_interval);
        let mut backoff = Backoff::new(self.clock.clone(), &self.random, FIRST_PAUSE, LONGEST_PAUSE);
        let mut saved_tick = 0;
        loop {
            self.publish();
            self.acknowledge(&mut waiting, &mut acking);
            let full = self.taken - self.saved >= self.settings.persist_bytes;
            if full && saving.is_none() {
                saving = Some(self.save());
            }
            tokio::select! {
                biased;
                () = ends.ended.cancelled() => break,
                Some(tick) = acking.next(), if !acking.is_empty() => self.state.release(tick),
                outcome = finished(&mut saving) => {
                    saving = None;
                    match outcome {
                        Ok(saved) => {
                            (self.saved, saved_tick) = (saved.taken, saved.tick);
                            saved.truncated.into_iter().for_each(|end| self.state.truncated(end));
                        }
                        Err(error) => return self.give_up(&error, &ends),
                    }
                }
                _ = due.tick() => {
                    let is_due = self.state.checkpoint().tick > saved_tick
                        || self.progress.consumers_moved.load(Ordering::Relaxed);
                    if saving.is_none() && is_due {
                        saving = Some(self.save());
                    }
                }
                batch = self.follower.next(), if acking.len() + waiting.len() < ACKS => match self.take(batch) {
                    Ok(broadcasts) => {
                        backoff.reset();
                        waiting.extend(broadcasts);
                    }
                    Err(error) => {
                        tracing::warn!(pchannel = %self.pchannel, %error, "following the log failed, trying again");
                        let _ = ends.ended.run_until_cancelled(backoff.wait()).await;
                    }
                },
            }
        }
        let clock = self.clock.clone();
        ends.quiet.cancelled().await;
        match clock.timeout(ends.grace, self.finish(saving)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "no last checkpoint, the next owner replays what it lacks"),
            Err(_) => tracing::warn!("no last checkpoint in time, the next owner replays what it lacks"),
        }
    }

    fn give_up(&self, error: &CatalogError, ends: &Ends) {
        tracing::error!(pchannel = %self.pchannel, %error, "the metadata takes no more of this owner, closing");
        ends.lost.cancel();
    }

    /// Takes in messages; returns those of them that are to be acknowledged.
    fn take(&mut self, batch: Result<Batch, ReadError>) -> Result<Vec<ImmutableMessage>, ReadError> {
        let mut broadcasts = Vec::new();
        match batch? {
            Batch::Memory(messages) => {
                for stored in messages {
                    let seen = Seen::of(&stored);
                    self.taken += stored.bytes as u64;
                    self.state.apply(&seen);
                    if seen.is_broadcast() {
                        broadcasts.push(stored.message.clone());
                    }
                }
            }
            Batch::Log(entries) => {
                for entry in entries {
                    self.taken += entry.payload.len() as u64;
                    let Ok(seen) = Seen::read(entry.id, &entry.payload) else { continue };
                    self.state.apply(&seen);
                    if seen.is_broadcast()
                        && let Ok(stored) = record::decode_message(entry.id, entry.payload.clone())
                    {
                        broadcasts.push(stored.message);
                    }
                }
            }
        }
        Ok(broadcasts)
    }

    /// Acknowledges what waits for it. Whoever hears of a change of the topology has heard of all that was broadcast before:
    /// when that is a promotion, nothing of the source comes behind it.
    fn acknowledge(&self, waiting: &mut VecDeque<ImmutableMessage>, acking: &mut Acking) {
        while let Some(next) = waiting.front() {
            let is_change = next.properties.message_type() == Ok(MessageType::AlterReplicateConfig);
            if is_change && !acking.is_empty() {
                return;
            }
            acking.extend(waiting.pop_front().and_then(|message| self.ack(message)));
        }
    }

    /// Acknowledges a broadcast, however long that takes; resolves to its tick.
    fn ack(&self, message: ImmutableMessage) -> Option<BoxFuture<'static, u64>> {
        let tick: u64 = message.time_tick().ok()?.into();
        let (acks, clock) = (Arc::clone(&self.acks), self.clock.clone());
        let mut backoff = Backoff::new(clock.clone(), &self.random, FIRST_PAUSE, LONGEST_PAUSE);
        let acked = async move {
            loop {
                match clock.timeout(ACK_DEADLINE, acks.ack(message.clone())).await {
                    Ok(Ok(())) => return tick,
                    Ok(Err(error)) => tracing::warn!(id = %message.id, %error, "trying again"),
                    Err(_) => {
                        tracing::warn!(id = %message.id, "a broadcast was not acknowledged in time, trying again")
                    }
                }
                backoff.wait().await;
            }
        };
        Some(acked.boxed())
    }

    /// Writes what has changed, and truncates the log behind it.
    fn save(&mut self) -> Saving {
        self.progress.consumers_moved.store(false, Ordering::Relaxed);
        let changes = self.state.take_changes();
        let vchannels = self.state.vchannels().keys().cloned().collect();
        let targets = self.state.replication().targets();
        let replicas: Vec<String> = targets.map(|target| replica_consumer(&self.pchannel, target)).collect();
        let (catalog, log, pchannel) = (self.catalog.clone(), self.log.clone(), Arc::clone(&self.pchannel));
        let progress = Arc::clone(&self.progress);
        let backoff = Backoff::new(self.clock.clone(), &self.random, FIRST_PAUSE, LONGEST_PAUSE);
        let mut saved = Saved { taken: self.taken, tick: changes.checkpoint.tick, truncated: None };
        let saving = async move {
            write(&catalog, &changes, backoff).await?;
            metrics::checkpointed(&pchannel, saved.tick);
            // The log is not the worse for being truncated later.
            match truncation::truncate(&log, &catalog, &changes, vchannels, &replicas).await {
                Ok(truncated) => {
                    progress.slowest.store(truncated.slowest.unwrap_or(0), Ordering::Relaxed);
                    saved.truncated = truncated.end;
                }
                Err(error) => {
                    progress.consumers_moved();
                    tracing::warn!(%pchannel, %error, "truncating failed, it is tried again");
                }
            }
            Ok(saved)
        };
        saving.boxed()
    }

    async fn finish(&mut self, saving: Option<Saving>) -> Result<(), CatalogError> {
        if let Some(saving) = saving {
            self.saved = saving.await?.taken;
        }
        while !self.follower.is_at_end() {
            let batch = self.follower.next().await;
            // Broadcasts stay unacknowledged: the checkpoint stays before them, and the next owner meets them.
            if let Err(error) = self.take(batch) {
                tracing::warn!(pchannel = %self.pchannel, %error, "the end of the log was not taken in");
                break;
            }
        }
        if self.taken > self.saved {
            self.save().await?;
        }
        Ok(())
    }

    fn publish(&self) {
        let met = (self.follower.cursor(), self.state.observed_tick());
        *self.progress.met.lock().unwrap_or_else(PoisonError::into_inner) = met;
        self.progress.tail.store(self.taken.saturating_sub(self.saved), Ordering::Relaxed);
    }
}

async fn write(catalog: &Catalog, changes: &Changes, mut backoff: Backoff) -> Result<(), CatalogError> {
    loop {
        match catalog.save(changes).await {
            // Appends need no metadata, and what the store refuses of this owner it would refuse of the next one.
            Err(CatalogError::Metadata(error)) => tracing::warn!(%error, "writing a checkpoint failed, trying again"),
            outcome => return outcome,
        }
        backoff.wait().await;
    }
}

async fn finished(saving: &mut Option<Saving>) -> Result<Saved, CatalogError> {
    match saving {
        Some(saving) => saving.await,
        None => std::future::pending().await,
    }
}
