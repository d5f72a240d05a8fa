//! Bringing the chain to where the writer needs it: ends recorded, the next segment opened, the log given up. A short
//! task does it while appends go on; it ends when there is nothing left to do.

use std::sync::Arc;

use tokio::select;
use woodpecker_base::clock::Instant;
use woodpecker_core::{
    chain::{End, Plan, Step},
    opening::CommitOutcome,
    record::OpenSegment,
};
use woodpecker_store::backend::{Backend, StoreError};

use super::{After, Shared, state::Work};
use crate::{
    AppendError, LogError,
    catalog::{Found, ONCE, PATIENCE},
    retry::Attempts,
};

/// Why a step was not made.
enum Unmade {
    /// Another owner has the log, or it was deleted.
    Preempted,
    /// This writer ended, or the process is about to.
    Stopped,
    /// A clean close waited long enough for the metadata store.
    Impatient,
    Store(StoreError),
}

pub(super) async fn settle(shared: Arc<Shared>) {
    loop {
        let work = shared.state().work();
        let made = match work {
            Work::Nothing => return,
            Work::Open(ends) => shared.open_next(ends).await,
            Work::Close(ends) => shared.close_ended(ends).await,
            Work::GiveUp(ends) => shared.give_up(ends).await,
        };
        if let Err(unmade) = made {
            return shared.cannot_settle(unmade);
        }
    }
}

impl Shared {
    fn step(&self, close: Vec<End>, open: Option<OpenSegment>) -> Step {
        Step { epoch: self.epoch, close, open, at_ms: self.client.clock.wall_ms() }
    }

    async fn open_next(self: &Arc<Self>, ends: Vec<End>) -> Result<(), Unmade> {
        let segment = self.state().found().0.next_segment();
        let backend = match self.wanted_backend().await {
            Ok(backend) => backend,
            Err(error) => return Err(Unmade::Store(error)),
        };
        if self.state().is_ended() {
            return Err(Unmade::Stopped);
        }
        // Where segments ended is not kept from readers and maintenance until there is another one.
        let patience = if ends.is_empty() { Some(PATIENCE) } else { ONCE };
        let handle = match self.create(&backend, segment, patience).await {
            Ok(handle) => handle,
            Err(error) if error.is_retryable() => {
                tracing::warn!(log = self.view.name, segment, %error, "the next segment cannot be created yet");
                return self.close_ended(ends).await;
            }
            Err(error) => return Err(Unmade::Store(error)),
        };
        let open = OpenSegment {
            segment,
            backend: backend.name().to_owned(),
            placement: handle.placement().clone(),
            created_ms: self.client.clock.wall_ms(),
        };
        let step = self.step(ends, Some(open.clone()));
        let found = self.record(&step).await?;
        let mut after = After::default();
        self.state().opened(found, &step.close, open, handle, &mut after);
        self.finish(after);
        Ok(())
    }

    /// The backend that the log's record names now, or last named if the metadata store is away.
    async fn wanted_backend(&self) -> Result<Arc<dyn Backend>, StoreError> {
        if let Ok(Some(found)) = self.client.catalog.log(&self.view.name, ONCE).await {
            self.view.learn(found, []);
        }
        self.client.backend_for(&self.view.log().0.settings).cloned()
    }

    async fn close_ended(self: &Arc<Self>, ends: Vec<End>) -> Result<(), Unmade> {
        let step = self.step(ends, None);
        let found = self.record(&step).await?;
        let mut after = After::default();
        self.state().recorded(found, &step.close, &mut after);
        self.finish(after);
        Ok(())
    }

    async fn give_up(self: &Arc<Self>, ends: Vec<End>) -> Result<(), Unmade> {
        self.record(&self.step(ends, None)).await?;
        let mut after = After::default();
        self.state().gave_up(Ok(()), &mut after);
        self.finish(after);
        Ok(())
    }

    fn cannot_settle(self: &Arc<Self>, unmade: Unmade) {
        let mut after = After::default();
        match unmade {
            Unmade::Preempted => self.state().end(AppendError::Fenced, &mut after),
            Unmade::Store(error) => self.state().end(AppendError::Failed(error), &mut after),
            Unmade::Impatient => {
                let why = StoreError::Unavailable("the metadata store is unavailable".into());
                self.state().gave_up(Err(AppendError::Failed(why)), &mut after);
            }
            Unmade::Stopped => self.state().stop_settling(&mut after),
        }
        self.finish(after);
    }

    /// Makes the step, however often the record changes under it and however long the metadata store is away.
    async fn record(&self, step: &Step) -> Result<Found, Unmade> {
        let mut attempts = self.client.retrying.attempts(None);
        let mut deadline = None;
        let mut found = self.state().found();
        loop {
            let change = match found.0.plan(step) {
                Plan::Commit(change) => change,
                Plan::Done => return Ok(found),
                Plan::Preempted => return Err(Unmade::Preempted),
            };
            match self.client.catalog.commit(found.1, &change).await {
                Ok(CommitOutcome::Committed(revision)) => {
                    let found = (change.log, revision);
                    self.view.learn(found.clone(), change.closed);
                    return Ok(found);
                }
                Ok(CommitOutcome::Conflict) => {}
                Ok(CommitOutcome::Unknown) => self.pause(&mut attempts, &mut deadline).await?,
                Err(error) => {
                    tracing::warn!(log = self.view.name, %error, "the chain cannot be changed");
                    self.pause(&mut attempts, &mut deadline).await?;
                }
            }
            found = self.reread(&mut attempts, &mut deadline).await?;
        }
    }

    async fn reread(&self, attempts: &mut Attempts, deadline: &mut Option<Instant>) -> Result<Found, Unmade> {
        loop {
            match self.client.catalog.log(&self.view.name, ONCE).await {
                Ok(Some(found)) if found.0.id == self.view.id => {
                    self.view.learn(found.clone(), []);
                    return Ok(found);
                }
                Ok(_) => {
                    self.view.learn_deleted(None);
                    return Err(Unmade::Preempted);
                }
                Err(error) => {
                    if !matches!(error, LogError::Metadata(_)) {
                        tracing::warn!(log = self.view.name, %error, "the log's record cannot be read");
                    }
                    self.pause(attempts, deadline).await?;
                }
            }
        }
    }

    /// Waits before the next attempt, unless there is a reason to make none.
    async fn pause(&self, attempts: &mut Attempts, deadline: &mut Option<Instant>) -> Result<(), Unmade> {
        let (ended, closing) = {
            let state = self.state();
            (state.is_ended(), state.is_closing())
        };
        if ended {
            return Err(Unmade::Stopped);
        }
        if !closing {
            return select! {
                _ = attempts.wait() => Ok(()),
                () = self.client.tasks.stopped() => Err(Unmade::Stopped),
            };
        }
        let now = self.client.clock.now();
        if now > *deadline.get_or_insert(now + PATIENCE) {
            return Err(Unmade::Impatient);
        }
        attempts.wait().await;
        Ok(())
    }
}
