//! The one writer of a log.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};
use woodpecker_base::level::Level;
use woodpecker_core::{ids::SegmentKey, record::OpenSegment};
use woodpecker_store::backend::{Backend, SegmentEnd, SegmentOwner, SegmentWriter, StoreError};

use self::state::{After, Limits, State};
use crate::{AppendError, EntryId, Epoch, catalog::Found, client::Inner, view::View};

mod settle;
mod state;

/// The appending side of a log. Shared by reference; order is the order of [`Writer::append`] calls.
///
/// It rolls segments and moves to a new volume by itself. The first [`AppendError::Fenced`] or
/// [`AppendError::Failed`] is final: every later append gets the same. Dropping it without [`Writer::close`] is like a
/// crash: what is queued still resolves, and the next owner has to fence.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
}

/// Where entries went: `count` consecutive entries of one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    pub first: EntryId,
    pub count: u64,
}

/// Resolves when the entries are durable, or to why they may not be. Appends of one writer resolve in order; dropping
/// this does not take the append back.
#[derive(Debug)]
pub struct Append {
    state: AppendState,
}

#[derive(Debug)]
enum AppendState {
    Refused(AppendError),
    Queued(oneshot::Receiver<Result<Appended, AppendError>>),
}

impl Future for Append {
    type Output = Result<Appended, AppendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.state {
            AppendState::Refused(error) => Poll::Ready(Err(error.clone())),
            AppendState::Queued(reply) => Pin::new(reply).poll(cx).map(|reply| {
                let lost = || AppendError::Failed(StoreError::Failed("the volume is gone".into()));
                reply.unwrap_or_else(|_| Err(lost()))
            }),
        }
    }
}

impl Writer {
    /// The epoch this writer owns the log with.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.shared.epoch
    }

    /// Waits until less than the in-flight limit is queued.
    pub async fn reserve(&self) {
        loop {
            let room = self.shared.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if self.shared.state().has_room() {
                return;
            }
            room.await;
        }
    }

    /// Queues entries, all of them in one segment and contiguous.
    pub fn append(&self, entries: Vec<Bytes>) -> Append {
        let mut after = After::default();
        let append = self.shared.state().append(entries, &mut after);
        self.shared.finish(after);
        append
    }

    /// Resolves when this writer will never ack again, with the reason.
    pub async fn ended(&self) -> AppendError {
        self.shared.told.above(0).await;
        // Set before it is told.
        self.shared.ended.get().cloned().unwrap_or(AppendError::Closed)
    }

    /// Waits for what is in flight, closes the open segment and gives the log up without a fence, so that the next owner
    /// finds a clean end.
    ///
    /// # Errors
    /// What kept the segment from being closed; the next owner will fence it.
    pub async fn close(&self) -> Result<(), AppendError> {
        let mut after = After::default();
        self.shared.state().close(&mut after);
        self.shared.finish(after);
        match self.ended().await {
            AppendError::Closed => self.shared.state().close_outcome(),
            reason => Err(reason),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut after = After::default();
        self.shared.state().abandon(&mut after);
        self.shared.finish(after);
    }
}

/// What a writer, the volume that tells it of acks, and the short tasks that change its chain share. Nothing runs for a
/// writer that is idle.
pub(crate) struct Shared {
    pub epoch: Epoch,
    client: Arc<Inner>,
    view: Arc<View>,
    state: Mutex<State>,
    room: Notify,
    ended: OnceLock<AppendError>,
    /// Rises when it ended.
    told: Level,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("log", &self.view.name).field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl Shared {
    /// The writer-to-be of an epoch that was just raised.
    pub fn new(client: Arc<Inner>, view: Arc<View>, epoch: Epoch) -> Arc<Self> {
        let limits = Limits::new(&client.settings, client.max_append_bytes());
        let state = Mutex::new(State::new(limits, view.log(), client.clock.clone()));
        let (room, told) = (Notify::new(), Level::default());
        Arc::new(Self { epoch, client, view, state, room, ended: OnceLock::new(), told })
    }

    /// Creates a segment whose owner this writer is, and which no record leads to yet.
    pub async fn create(
        self: &Arc<Self>,
        backend: &Arc<dyn Backend>,
        segment: u64,
        patience: Option<Duration>,
    ) -> Result<Arc<dyn SegmentWriter>, StoreError> {
        let key = SegmentKey { log: self.view.id, segment };
        let owner = Arc::new(Owner { shared: self.clone(), segment });
        self.client.retrying.run(patience, || backend.create(key, self.epoch, owner.clone())).await
    }

    /// The log is ours, and the segment is open by its record.
    pub fn start(self: Arc<Self>, found: Found, open: OpenSegment, handle: Arc<dyn SegmentWriter>) -> Writer {
        self.view.attach_writer();
        self.client.add_writer(self.view.id, &self);
        let mut after = After::default();
        self.state().opened(found, &[], open, handle, &mut after);
        self.finish(after);
        Writer { shared: self }
    }

    /// Whether its chain is changing.
    pub fn is_settling(&self) -> bool {
        self.state().is_settling()
    }

    /// Ends the active segment if it must though nobody appends; whether its chain is about to change.
    pub fn tend(self: &Arc<Self>) -> bool {
        let mut after = After::default();
        let changing = self.state().tend(self.client.is_elsewhere(&self.view), &mut after);
        self.finish(after);
        changing
    }

    /// Learns of changes of the log's record from now on; whether that is new.
    pub fn follow(&self) -> bool {
        self.client.views.follow(&self.view)
    }

    /// Ends the writer from outside, unless it ended by itself.
    pub fn end(self: &Arc<Self>, reason: AppendError) {
        let mut after = After::default();
        self.state().end(reason, &mut after);
        self.finish(after);
    }

    async fn hand_on_again(self: Arc<Self>, pause: Duration) {
        self.client.clock.sleep(pause).await;
        let mut after = After::default();
        self.state().hand_on_again(&mut after);
        self.finish(after);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what a change of the state asks for, outside the lock.
    fn finish(self: &Arc<Self>, after: After) {
        for (segment, entries) in after.retired {
            self.view.end(segment, entries);
        }
        if after.room {
            self.room.notify_waiters();
        }
        if let Some(reason) = after.ended {
            if matches!(reason, AppendError::Closed) {
                tracing::debug!(log = self.view.name, epoch = %self.epoch, "writer closed");
            } else {
                tracing::warn!(log = self.view.name, epoch = %self.epoch, %reason, "writer ended");
            }
            self.view.detach_writer();
            self.client.remove_writer(self.view.id, self.epoch);
            // A writer ends once.
            let _ = self.ended.set(reason);
            self.told.step();
        }
        if after.settle {
            self.client.tasks.spawn(settle::settle(self.clone()));
        }
        if let Some(pause) = after.again {
            self.client.tasks.spawn(self.clone().hand_on_again(pause));
        }
    }
}

/// What a volume knows of a segment's owner.
#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
    segment: u64,
}

impl SegmentOwner for Owner {
    fn acked(&self, next: u64) {
        let mut after = After::default();
        self.shared.state().acked(self.segment, next, &mut after);
        self.shared.finish(after);
    }

    fn ended(&self, end: SegmentEnd) {
        let mut after = After::default();
        self.shared.state().segment_ended(self.segment, end, &mut after);
        self.shared.finish(after);
    }
}
