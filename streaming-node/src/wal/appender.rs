//! The one task that appends to a WAL: takes what producers sent, groups it, sends groups down the stack and answers.
//!
//! Nothing happens per message but moving it: a group costs one append to the log, whatever its size, and several groups
//! are in flight at a time, answered in order.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::poll_fn,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesOrdered};
use streaming_types::{StreamingError, TimeTick};
use tokio::{sync::mpsc, task::yield_now};
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceBuilder};
use woodpecker::{AppendError, Writer};
use woodpecker_base::clock::{Clock, Instant};

use super::{
    group::{Append, Group},
    idempotency::{Idempotency, IdempotencyLayer},
    lock::{Lock, LockLayer},
    log_writer::LogWriter,
    publisher::Publisher,
    replicate::{Replicate, ReplicateLayer, SharedReplication},
    sessions::{End, SharedSessions},
    time_tick::{MAX_GROUP, SharedTicks, TICKS_PER_GROUP, TimeTickLayer, TimeTicks},
    trouble::Trouble,
    txn::{TxnLayer, Txns},
    window::Windows,
};
use crate::{
    metrics::{self, Reading},
    shard::{ShardLayer, Sharding},
    tenure::Tenure,
};

/// Bytes that are appended together; a larger message goes alone.
const GROUP_BYTES: usize = 1 << 20;

/// A message does not wait longer for its barrier to pass.
const LONGEST_BARRIER_MS: u64 = 60_000;

/// An append that has no outcome for so long is logged.
const SLOW: Duration = Duration::from_secs(3);

/// The append stack over `W`, outermost layer first.
pub type Stack<W = LogWriter> = Idempotency<Lock<Replicate<Sharding<TimeTicks<Txns<W>>>>>>;

/// What the layers of a stack work with.
pub struct StackParts {
    pub pchannel: Arc<str>,
    pub ticks: SharedTicks,
    pub sessions: SharedSessions,
    pub windows: Windows,
    pub replication: SharedReplication,
    pub sharding: ShardLayer,
    /// Of a transaction whose begin asks for none.
    pub keepalive: Duration,
}

/// Puts the stack together.
pub fn stack<W>(parts: StackParts, writer: W) -> Stack<W>
where
    W: Service<Group, Response = Group, Error = Infallible>,
    W::Future: Unpin,
{
    let StackParts { pchannel, ticks, sessions, windows, replication, sharding, keepalive } = parts;
    let lower = ServiceBuilder::new()
        .layer(TimeTickLayer { ticks })
        .layer(TxnLayer { pchannel: Arc::clone(&pchannel), sessions, replication: replication.clone(), keepalive })
        .service(writer);
    ServiceBuilder::new()
        .layer(IdempotencyLayer::new(windows))
        .layer(LockLayer { pchannel })
        .layer(ReplicateLayer { shared: replication })
        .service(sharding.layer(lower))
}

/// Why a WAL takes no more appends.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Ended {
    #[error("closed")]
    Closed,
    #[error(transparent)]
    Log(#[from] AppendError),
    #[error("an append has no outcome after {0:?}")]
    Stuck(Duration),
}

/// See the module.
pub struct Appender {
    pub pchannel: Arc<str>,
    pub stack: Stack,
    pub ticks: SharedTicks,
    pub sessions: SharedSessions,
    pub tenure: Tenure,
    /// What ended the WAL, if nobody wanted it to.
    pub trouble: Arc<OnceLock<Trouble>>,
    pub writer: Arc<Writer>,
    pub publisher: Publisher,
    pub inbox: mpsc::Receiver<Box<Append>>,
    pub clock: Clock,
    pub heartbeat: Duration,
    pub close_timeout: Duration,
    pub append_timeout: Duration,
    /// Messages without a tick, in arrival order.
    pub pending: VecDeque<Box<Append>>,
    /// Messages whose barrier the ticks have not passed.
    pub parked: Vec<Box<Append>>,
    /// When something last had an outcome, or began to wait for one.
    pub progress: Instant,
    pub in_flight: FuturesOrdered<<Stack as Service<Group>>::Future>,
    /// Whether the log ends with messages that no persisted tick follows.
    pub untold: bool,
    /// Whether readers are to get a tick as soon as there is a fresh one.
    pub beat_due: bool,
    /// Whether the log is to get a tick.
    pub tick_due: bool,
}

impl Appender {
    /// Runs until the WAL is told to stop or its log takes no more. Cancels `ended` before it lets go of anything.
    pub async fn run(mut self, stop: CancellationToken, ended: CancellationToken) {
        let reason = self.serve(&stop).await;
        match reason.trouble() {
            None => tracing::info!(pchannel = %self.pchannel, "closing the write-ahead log"),
            Some(trouble) => {
                tracing::error!(pchannel = %self.pchannel, reason = %trouble, "the write-ahead log has ended");
                metrics::failed(&self.pchannel, trouble.code());
                let _ = self.trouble.set(trouble);
            }
        }
        // Whoever sees the end finds the reason.
        ended.cancel();
        self.publisher.metrics.closed();
        self.inbox.close();
        while self.inbox.try_recv().is_ok() {}
        self.pending.clear();
        self.parked.clear();
        if matches!(reason, Ended::Stuck(_)) {
            return;
        }
        let clock = self.clock.clone();
        if clock.timeout(self.close_timeout, self.finish(&reason)).await.is_err() {
            tracing::warn!(pchannel = %self.pchannel, "closing the write-ahead log took too long, the next owner fences it");
        }
    }

    async fn serve(&mut self, stop: &CancellationToken) -> Ended {
        let mut heartbeat = self.clock.ticker(self.heartbeat);
        let writer = Arc::clone(&self.writer);
        let mut log_ended = std::pin::pin!(writer.ended());
        let mvcc = Arc::clone(&self.publisher.mvcc);
        let mut arrived = Vec::with_capacity(MAX_GROUP);
        loop {
            let (stack, ticks) = (&mut self.stack, &self.ticks);
            let room = MAX_GROUP.saturating_sub(self.pending.len());
            let due = !self.pending.is_empty() || self.tick_due;
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ended::Closed,
                Some(Ok(group)) = self.in_flight.next(), if !self.in_flight.is_empty() => {
                    match self.complete(group) {
                        Ok(wrote) => {
                            // Readers may be many: the answers leave before they take the cores.
                            yield_now().await;
                            self.publisher.buffer.wake(wrote);
                        }
                        Err(error) => return error.into(),
                    }
                }
                count = self.inbox.recv_many(&mut arrived, room), if room > 0 => {
                    if count == 0 {
                        return Ended::Closed;
                    }
                    arrived.drain(..).for_each(|append| self.arrive(append));
                }
                () = poll_fn(|cx| advance(stack, due, cx)), if due || !self.in_flight.is_empty() => self.dispatch(),
                () = poll_fn(|cx| ticks.lock().poll_fresh(cx)), if self.beat_due => self.beat(),
                () = mvcc.wanted() => self.beat_due = true,
                _ = heartbeat.tick() => if let Err(stuck) = self.heartbeat() {
                    return stuck;
                },
                error = &mut log_ended => return error.into(),
            }
        }
    }

    /// Looks after what no event does.
    fn heartbeat(&mut self) -> Result<(), Ended> {
        let now = self.clock.now();
        let waits = if self.is_idle() { Duration::ZERO } else { now.duration_since(self.progress) };
        self.show(waits);
        if waits > self.append_timeout {
            return Err(Ended::Stuck(waits));
        }
        if waits > SLOW {
            tracing::warn!(pchannel = %self.pchannel, ?waits, "an append has no outcome yet");
        }
        self.beat_due = self.untold || !self.parked.is_empty() || self.publisher.buffer.followers() > 0;
        if !self.beat_due {
            self.publisher.beat(now);
        }
        Ok(())
    }

    fn show(&self, waits: Duration) {
        let Publisher { buffer, metrics, .. } = &self.publisher;
        metrics.show(&Reading {
            allocated: TimeTick(self.ticks.lock().last()),
            confirmed: TimeTick(buffer.watermark().tick),
            waits,
            transactions: self.sessions.lock().open(),
            buffer: buffer.held(),
            slowest: buffer.readers.slowest(),
        });
    }

    fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.in_flight.is_empty()
    }

    fn enqueue(&mut self, append: Box<Append>) {
        if self.is_idle() {
            self.progress = self.clock.now();
        }
        self.pending.push_back(append);
    }

    /// Whether a transaction is to end whose other messages wait for their barrier.
    fn ends_early(&self, append: &Append) -> bool {
        let same = |parked: &Append| parked.txn == append.txn && parked.vchannel() == append.vchannel();
        End::of(append.kind).is_some() && self.parked.iter().any(|parked| same(parked))
    }

    fn arrive(&mut self, append: Box<Append>) {
        if self.ends_early(&append) {
            return self.parked.push(append);
        }
        let Some(barrier) = append.barrier else { return self.enqueue(append) };
        let ticks = self.ticks.lock();
        if ticks.is_past(barrier.into(), TICKS_PER_GROUP) {
            drop(ticks);
            self.enqueue(append);
        } else if barrier > TimeTick(ticks.time()).saturating_add_ms(LONGEST_BARRIER_MS) {
            let cause = format!("property _btt: {barrier} is more than {LONGEST_BARRIER_MS} ms ahead");
            append.reply.send(Err(StreamingError::unrecoverable(cause)));
        } else {
            self.parked.push(append);
            self.beat_due = true;
        }
    }

    /// Sends the next group: a message that needs the lock alone, others as many as go together, or only a tick.
    fn dispatch(&mut self) {
        let mut group = Group::default();
        let mut bytes = 0;
        while let Some(next) = self.pending.front() {
            bytes += next.bytes;
            let alone = next.is_exclusive();
            if !group.appends.is_empty() && (alone || bytes > GROUP_BYTES || group.appends.len() == MAX_GROUP) {
                break;
            }
            group.appends.extend(self.pending.pop_front());
            if alone {
                break;
            }
        }
        self.send(group);
    }

    fn send(&mut self, group: Group) {
        if group.appends.is_empty() && self.in_flight.is_empty() {
            // A tick of the WAL's own waits from now on, not since the last message.
            self.progress = self.clock.now();
        }
        self.tick_due = false;
        self.in_flight.push_back(self.stack.call(group));
    }

    /// Answers a group, which readers find from now on; they have to be woken, and want to know whether messages were written.
    fn complete(&mut self, group: Group) -> Result<bool, AppendError> {
        let now = self.clock.now();
        self.progress = now;
        let (closing, wrote) = self.publisher.publish(group, now)?;
        if let Some(closing) = closing {
            self.untold = !closing.persisted;
        }
        Ok(wrote)
    }

    /// Gives readers a tick; the log one if it ends with messages that none follows, or may be someone else's, or if only it
    /// tells the next owner how far ticks have got.
    fn beat(&mut self) {
        self.beat_due = false;
        let parked = std::mem::take(&mut self.parked);
        parked.into_iter().for_each(|append| self.arrive(append));
        // What is parked waits for the next heartbeat, not for as long as the ticks stay fresh.
        self.beat_due = false;
        let now = self.clock.now();
        if self.is_idle() {
            let (tick, is_own) = {
                let mut ticks = self.ticks.lock();
                (ticks.take(), ticks.is_alone())
            };
            // Asked once there is the tick: whoever was given the WAL later begins above it, however long we stand still here.
            if self.untold || is_own || !self.tenure.is_sure() {
                self.tick_due = true;
            } else {
                self.publisher.tick(tick, self.sessions.at(tick), now);
            }
        }
        self.publisher.beat(now);
    }

    /// Waits for what is in flight and gives the log up so that the next owner finds a clean end.
    async fn finish(&mut self, reason: &Ended) {
        self.drain(!matches!(reason, Ended::Closed)).await;
        if !matches!(reason, Ended::Closed) {
            return;
        }
        if self.untold {
            let stack = &mut self.stack;
            let Ok(()) = poll_fn(|cx| stack.poll_ready(cx)).await;
            self.send(Group::default());
            self.drain(false).await;
        }
        if let Err(error) = self.writer.close().await {
            tracing::warn!(pchannel = %self.pchannel, %error, "the log was not closed cleanly, the next owner fences it");
        }
    }

    /// Answers what is in flight. Once the log has failed, everyone hears that the WAL is gone, also whose message was
    /// settled without the log: that may rest on one that the log did not take.
    async fn drain(&mut self, mut failed: bool) {
        loop {
            let stack = &mut self.stack;
            tokio::select! {
                biased;
                group = self.in_flight.next() => match group {
                    Some(Ok(group)) if failed => drop(group),
                    Some(Ok(group)) => match self.complete(group) {
                        Ok(wrote) => self.publisher.buffer.wake(wrote),
                        Err(_) => failed = true,
                    },
                    None => return,
                },
                // Lets a group through that waits for the lock.
                () = poll_fn(|cx| advance(stack, false, cx)) => {}
            }
        }
    }
}

/// Lets the stack move what it holds back; ready when it takes the next group and there is one.
fn advance(stack: &mut Stack, due: bool, cx: &mut Context<'_>) -> Poll<()> {
    let ready: Poll<Result<(), Infallible>> = stack.poll_ready(cx);
    if due && ready.is_ready() { Poll::Ready(()) } else { Poll::Pending }
}

#[cfg(test)]
mod tests;
