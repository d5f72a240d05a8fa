//! One leadership: what is to be done is found in the records, and done by a bounded number of tasks at a time.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    panic::AssertUnwindSafe,
    sync::Arc,
};

use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::{select, sync::Semaphore, task::JoinHandle};
use woodpecker_base::{backoff::Backoff, clock::Instant, metadata::Compare, tasks::Tasks};
use woodpecker_core::{
    ids::SegmentKey,
    record::{ClosedSegment, Compression, LogRecord},
    sealing::{SealPolicy, SealStep},
};
use woodpecker_store::backend::StoreError;

use super::{
    MaintenanceSettings, PAUSES, Pass,
    inventory::Inventory,
    sealer::{Changed, Work, memory},
};
use crate::{LogError, client::Inner};

/// First and longest wait before a failed segment is tried again.
const RETRY: (std::time::Duration, std::time::Duration) = (PAUSES.1, std::time::Duration::from_secs(600));

pub(super) struct Shift {
    pub client: Arc<Inner>,
    pub settings: MaintenanceSettings,
    pub pressed: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Holds while this process leads.
    pub guard: Compare,
    pub inventory: Inventory,
    pub done: Pass,
    /// Media are being swept.
    pub sweeping: Option<JoinHandle<Option<u64>>>,
    pub tasks: Tasks,
    memory: Arc<Semaphore>,
    queue: VecDeque<(SegmentKey, Job)>,
    busy: BTreeSet<SegmentKey>,
    failed: BTreeMap<SegmentKey, (u32, Instant)>,
    backoff: Backoff,
    running: FuturesUnordered<JoinHandle<Option<Outcome>>>,
}

/// What is to be done about one segment.
enum Job {
    Seal(ClosedSegment, i64, Compression),
    Free(ClosedSegment, i64),
    Collect(ClosedSegment),
    /// The whole log, whose deletion was begun; under segment 0.
    Erase(LogRecord),
}

/// What came of a job.
enum Made {
    Sealed(Changed),
    Freed(Changed),
    Collected,
    Erased,
}

type Outcome = (SegmentKey, Result<Made, LogError>);

impl fmt::Debug for Shift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shift").field("done", &self.done).finish_non_exhaustive()
    }
}

impl Shift {
    pub fn new(
        client: Arc<Inner>,
        settings: MaintenanceSettings,
        pressed: Arc<dyn Fn() -> bool + Send + Sync>,
        guard: Compare,
        tasks: Tasks,
    ) -> Self {
        let memory = Arc::new(Semaphore::new(permits(settings.memory_bytes)));
        let backoff = Backoff::new(client.clock.clone(), &client.random, RETRY.0, RETRY.1);
        Self {
            client,
            settings,
            pressed,
            guard,
            inventory: Inventory::default(),
            done: Pass::default(),
            sweeping: None,
            tasks,
            memory,
            queue: VecDeque::new(),
            busy: BTreeSet::new(),
            failed: BTreeMap::new(),
            backoff,
            running: FuturesUnordered::new(),
        }
    }

    /// Works until the metadata store fails.
    pub async fn run(&mut self) -> Result<(), LogError> {
        let catalog = self.client.catalog.clone();
        self.client.claim_media().await?;
        let snapshot = catalog.everything().await?;
        self.inventory = Inventory::read(&catalog, &snapshot);
        let mut changes = catalog.changes(snapshot.revision).await?;
        let clock = self.client.clock.clone();
        let mut look_at = clock.now();
        let mut sweep_at = clock.now() + self.settings.sweep_interval;
        loop {
            self.start();
            select! {
                Some(ended) = self.running.next(), if !self.running.is_empty() => self.take(ended.ok().flatten()),
                event = changes.next() => match event {
                    Some(Ok(event)) => self.inventory.apply(&catalog, event),
                    Some(Err(error)) => tracing::debug!(%error, "the watch of records is interrupted"),
                    None => return Ok(()),
                },
                () = clock.sleep_until(look_at) => {
                    self.collect().await;
                    self.look();
                    if clock.now() >= sweep_at {
                        self.begin_sweep().await;
                        sweep_at = clock.now() + self.settings.sweep_interval;
                    }
                    look_at = clock.now() + self.settings.interval;
                }
            }
        }
    }

    /// Works until nothing is left that can be done now.
    pub async fn run_to_rest(&mut self) -> Result<(), LogError> {
        let catalog = self.client.catalog.clone();
        self.client.claim_media().await?;
        loop {
            // Records that are in memory keep no one waiting: whoever tells that this process leads no more has a turn.
            tokio::task::yield_now().await;
            self.inventory = Inventory::read(&catalog, &catalog.everything().await?);
            let collected = self.collect().await;
            self.look();
            if !collected && self.queue.is_empty() {
                break;
            }
            self.start();
            while let Some(ended) = self.running.next().await {
                self.take(ended.ok().flatten());
                self.start();
            }
        }
        self.sweep().await;
        Ok(())
    }

    /// Finds what is to be done: what frees space first, then the oldest segments first.
    fn look(&mut self) {
        let mut policy = self.settings.policy();
        if (self.pressed)() {
            policy = SealPolicy { min_age_ms: 0, min_bytes: 0 };
        }
        let now = self.client.clock.wall_ms();
        let sealing = self.settings.sealing && self.client.sealed().is_ok();
        let logs: BTreeMap<_, _> = self.inventory.logs.values().map(|(log, _)| (log.id, log)).collect();
        let mut jobs: Vec<(SegmentKey, Job)> = Vec::new();
        for log in self.inventory.deleting.values() {
            jobs.push((SegmentKey { log: log.id, segment: 0 }, Job::Erase(log.clone())));
        }
        for (key, closed) in &self.inventory.garbage {
            jobs.push((*key, Job::Collect(closed.clone())));
        }
        let mut unsealed = Vec::new();
        for (key, (closed, revision)) in &self.inventory.closed {
            let Some(log) = logs.get(&key.log) else { continue };
            let truncated = log.truncated.is_some_and(|truncated| closed.is_below(truncated));
            match closed.seal_step(policy, now) {
                Some(SealStep::Free) => jobs.push((*key, Job::Free(closed.clone(), *revision))),
                Some(SealStep::Seal) if sealing && !truncated => unsealed.push((*key, closed, *revision, log)),
                Some(SealStep::Seal) | None => {}
            }
        }
        unsealed.sort_by_key(|(key, closed, ..)| (closed.closed_ms, *key));
        let oldest = unsealed.first().map_or(0, |(_, closed, ..)| now.saturating_sub(closed.closed_ms));
        report(unsealed.len(), oldest, self.inventory.garbage.len());
        jobs.extend(
            unsealed.into_iter().map(|(key, closed, revision, log)| {
                (key, Job::Seal(closed.clone(), revision, log.settings.compression))
            }),
        );
        let instant = self.client.clock.now();
        let ready = |key: &SegmentKey| {
            !self.busy.contains(key) && self.failed.get(key).is_none_or(|(_, not_before)| *not_before <= instant)
        };
        jobs.retain(|(key, _)| ready(key));
        self.queue = jobs.into();
    }

    /// Starts as much of what was found as may run at a time.
    fn start(&mut self) {
        while self.running.len() < self.settings.parallelism.max(1) {
            let Some((key, job)) = self.queue.pop_front() else { return };
            self.busy.insert(key);
            let work = Work { client: self.client.clone(), guard: self.guard.clone() };
            let memory = self.memory.clone();
            let all = permits(self.settings.memory_bytes);
            let making = async move {
                let made = AssertUnwindSafe(work.make(key, job, &memory, all)).catch_unwind().await;
                // The next attempt begins with what the records say, as after a crash.
                (key, made.unwrap_or_else(|_| Err(StoreError::Unavailable("the work on it panicked".into()).into())))
            };
            self.running.push(self.tasks.spawn_until_stopped(making));
        }
    }

    fn take(&mut self, outcome: Option<Outcome>) {
        let Some((key, outcome)) = outcome else { return };
        self.busy.remove(&key);
        let made = match outcome {
            Ok(made) => made,
            Err(error) => return self.fail(key, &error),
        };
        self.failed.remove(&key);
        match made {
            Made::Sealed(changed) => {
                self.done.sealed += 1;
                metrics::counter!("woodpecker_sealed_segments_total").increment(1);
                if let Some((closed, revision)) = changed {
                    metrics::counter!("woodpecker_sealed_bytes_total").increment(closed.known_bytes().unwrap_or(0));
                    // Its source goes at once, and before anything else is sealed.
                    self.queue.push_front((key, Job::Free(closed.clone(), revision)));
                    self.inventory.update_closed(key, closed, revision);
                }
            }
            Made::Freed(changed) => {
                self.done.freed += 1;
                if let Some((closed, revision)) = changed {
                    self.inventory.update_closed(key, closed, revision);
                }
            }
            Made::Collected => {
                self.done.collected += 1;
                metrics::counter!("woodpecker_collected_segments_total").increment(1);
                self.inventory.garbage.remove(&key);
            }
            Made::Erased => {
                self.inventory.deleting.remove(&key.log);
            }
        }
    }

    /// A segment that fails keeps no other waiting.
    fn fail(&mut self, key: SegmentKey, error: &LogError) {
        self.done.failed += 1;
        metrics::counter!("woodpecker_maintenance_failures_total", "code" => error.code()).increment(1);
        let failures = self.failed.get(&key).map_or(0, |(failures, _)| *failures);
        let pause = self.backoff.delay_after(failures);
        tracing::warn!(segment = %key, %error, ?pause, "maintenance of a segment failed");
        self.failed.insert(key, (failures.saturating_add(1), self.client.clock.now() + pause));
    }

    /// Whether this process is at work on the segment.
    pub fn is_busy(&self, key: SegmentKey) -> bool {
        self.busy.contains(&key)
    }
}

impl Work {
    async fn make(&self, key: SegmentKey, job: Job, room: &Semaphore, all: usize) -> Result<Made, LogError> {
        match job {
            Job::Seal(closed, revision, compression) => {
                let store = self.client.sealed()?;
                let bytes = closed.bytes.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(usize::MAX);
                let needed = permits(memory(store).min(bytes.saturating_mul(4))).min(all);
                // Fails only when the semaphore is closed, which nobody does.
                let _room = room.acquire_many(u32::try_from(needed).unwrap_or(u32::MAX)).await;
                Ok(Made::Sealed(self.seal(key, &closed, revision, compression).await?))
            }
            Job::Free(closed, revision) => Ok(Made::Freed(self.free(key, &closed, revision).await?)),
            Job::Collect(closed) => self.collect(key, &closed).await.map(|()| Made::Collected),
            Job::Erase(log) => self.client.erase(&log).await.map(|()| Made::Erased),
        }
    }
}

/// Memory is counted in pieces of this size.
fn permits(bytes: usize) -> usize {
    (bytes >> 16).max(1)
}

pub(super) fn report(unsealed: usize, oldest_ms: u64, garbage: usize) {
    #[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
    let (unsealed, oldest, garbage) = (unsealed as f64, oldest_ms as f64 / 1e3, garbage as f64);
    metrics::gauge!("woodpecker_unsealed_segments").set(unsealed);
    metrics::gauge!("woodpecker_unsealed_age_seconds").set(oldest);
    metrics::gauge!("woodpecker_garbage_segments").set(garbage);
}
