//! The appends of one channel that are not acknowledged yet, and what a failure does to their order.
//!
//! ```text
//! queue ──next──▶ sent ──answer: done──▶ reply
//!   ▲              │ answer: retry
//!   └──retry─── failed          a stream that ends puts `sent` and `failed` back in front of the queue, in order
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use streaming_proto::messages::Message;
use streaming_types::StreamingError;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use woodpecker_base::clock::Instant;

use super::{AppendResult, Shared};
use crate::{error::AppendError, settings::Order};

/// An accepted append. In a box, because it moves from queue to queue.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) message: Arc<Message>,
    pub(super) size: usize,
    pub(super) admitted: Instant,
    pub(super) deadline: Instant,
    pub(super) reply: oneshot::Sender<Result<AppendResult, AppendError>>,
    /// Given back when the entry is finished.
    pub(super) held: Option<Held>,
    /// Whether it ever went out: then it may be in the log.
    pub(super) sent: bool,
    /// Answers that asked for a retry.
    pub(super) failures: u32,
    pub(super) retry_at: Instant,
    /// Of the last failure.
    pub(super) scope: Scope,
}

/// What an entry holds of its channel.
#[derive(Debug)]
pub(super) struct Held {
    /// Room in the byte budget.
    pub(super) _credit: OwnedSemaphorePermit,
    /// A producer that is made before the entry is finished joins those before it: appends of a second stream could pass.
    pub(super) _shared: Arc<Shared>,
}

impl Entry {
    pub(super) fn finish(self, outcome: Result<AppendResult, AppendError>) {
        // The caller may have dropped its future: then nobody wants to know.
        let _ = self.reply.send(outcome);
    }
}

/// What a failure says about the requests behind it on the same stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Nothing: they may be appended.
    Request,
    /// The log behind the stream takes no more appends.
    Log,
}

#[derive(Debug)]
pub(super) struct Window {
    order: Order,
    queue: VecDeque<Box<Entry>>,
    /// By request id, so in the order in which they went out on this stream.
    sent: BTreeMap<i64, Box<Entry>>,
    failed: BTreeMap<i64, Box<Entry>>,
    next_id: i64,
    /// The largest request id of this stream that is in the log, or may be and is not sent again.
    landed: i64,
}

impl Window {
    pub(super) fn new(order: Order) -> Self {
        Self { order, queue: VecDeque::new(), sent: BTreeMap::new(), failed: BTreeMap::new(), next_id: 1, landed: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len() + self.sent.len() + self.failed.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn push(&mut self, entry: Box<Entry>) {
        self.queue.push_back(entry);
    }

    /// Whether [`Window::next`] has something.
    pub(super) fn has_next(&self) -> bool {
        !self.queue.is_empty() && !self.is_held()
    }

    /// In strict order nothing may pass an append that is to be retried.
    fn is_held(&self) -> bool {
        self.order == Order::Strict && !self.failed.is_empty()
    }

    /// The append to send next and its request id on this stream.
    pub(super) fn next(&mut self) -> Option<(i64, Arc<Message>)> {
        if self.is_held() {
            return None;
        }
        let mut entry = self.queue.pop_front()?;
        entry.sent = true;
        let (id, message) = (self.next_id, entry.message.clone());
        self.next_id += 1;
        self.sent.insert(id, entry);
        Some((id, message))
    }

    /// The entry a final answer is for. `None` for an id that is not waiting: it was answered before, or ran out of time.
    pub(super) fn take(&mut self, id: i64, acknowledged: bool) -> Option<Box<Entry>> {
        let entry = self.sent.remove(&id)?;
        if acknowledged {
            self.landed = self.landed.max(id);
        }
        Some(entry)
    }

    /// The server asks to retry `id`; `pause` says how long to wait after so many earlier failures of this append.
    pub(super) fn fail(&mut self, id: i64, scope: Scope, now: Instant, pause: impl FnOnce(u32) -> Duration) {
        if let Some(mut entry) = self.sent.remove(&id) {
            entry.retry_at = now + pause(entry.failures);
            entry.failures = entry.failures.saturating_add(1);
            entry.scope = scope;
            self.failed.insert(id, entry);
        }
    }

    /// Puts failed appends whose pause is over back in front of the queue. In strict order that happens only when all that
    /// went out after them is answered, for only then their place is known.
    pub(super) fn retry(&mut self, now: Instant) {
        match self.order {
            Order::Strict => {
                if self.sent.is_empty() && self.failed.values().all(|entry| entry.retry_at <= now) {
                    let failed = std::mem::take(&mut self.failed);
                    self.requeue(failed);
                }
            }
            Order::Relaxed => {
                let due = self.failed.extract_if(.., |_, entry| entry.retry_at <= now).collect();
                self.requeue(due);
            }
        }
    }

    /// The stream is gone: what it did not acknowledge is to be sent on the next one, in the same order.
    pub(super) fn stream_ended(&mut self) {
        let mut open = std::mem::take(&mut self.sent);
        // What was not answered may be in the log: a failed append cannot take its place in front of it any more.
        let unanswered = open.last_key_value().map_or(0, |(id, _)| *id);
        for (id, entry) in std::mem::take(&mut self.failed) {
            if self.order == Order::Strict && entry.scope == Scope::Request && id < unanswered {
                entry.finish(Err(AppendError::Overtaken));
            } else {
                open.insert(id, entry);
            }
        }
        self.requeue(open);
        self.next_id = 1;
        self.landed = 0;
    }

    fn requeue(&mut self, entries: BTreeMap<i64, Box<Entry>>) {
        for (id, entry) in entries.into_iter().rev() {
            if self.order == Order::Strict && id < self.landed {
                entry.finish(Err(AppendError::Overtaken));
            } else {
                self.queue.push_front(entry);
            }
        }
    }

    /// Ends the appends whose time is over; `cause` is what the channel last suffered from.
    pub(super) fn expire(&mut self, now: Instant, cause: Option<&str>) {
        let mut over: Vec<Box<Entry>> =
            self.failed.extract_if(.., |_, entry| entry.deadline <= now).map(|(_, e)| e).collect();
        while let Some(first) = self.sent.first_entry().filter(|first| first.get().deadline <= now) {
            self.landed = self.landed.max(*first.key());
            over.push(first.remove());
        }
        while let Some(entry) = self.queue.pop_front_if(|first| first.deadline <= now) {
            over.push(entry);
        }
        for entry in over {
            let error = AppendError::Timeout {
                after: now.saturating_duration_since(entry.admitted),
                sent: entry.sent,
                cause: cause.unwrap_or("no answer").to_owned(),
            };
            entry.finish(Err(error));
        }
    }

    /// When [`Window::expire`] or [`Window::retry`] next has something to do, unless an answer comes first.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let waits_for_answers = self.order == Order::Strict && !self.sent.is_empty();
        let retry = self.failed.values().map(|entry| entry.retry_at);
        let retry = match self.order {
            Order::Strict => retry.max().filter(|_| !waits_for_answers),
            Order::Relaxed => retry.min(),
        };
        let failed = self.failed.values().map(|entry| entry.deadline).min();
        let sent = self.sent.first_key_value().map(|(_, entry)| entry.deadline);
        let queued = self.queue.front().map(|entry| entry.deadline);
        [retry, failed, sent, queued].into_iter().flatten().min()
    }

    /// Whether answers are awaited.
    pub(super) fn has_sent(&self) -> bool {
        !self.sent.is_empty()
    }

    /// Whether a strict window waits for the answers of what it sent before it may go on.
    pub(super) fn is_draining(&self) -> bool {
        self.is_held() && !self.sent.is_empty()
    }

    /// Ends what was never sent, because the node will not have it from us. What was sent may be in the log: its caller is
    /// not told that it is not, but that its time is over.
    pub(super) fn refuse(&mut self, why: &StreamingError) -> usize {
        let (sent, refused): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.queue).into_iter().partition(|entry| entry.sent);
        self.queue = sent;
        let count = refused.len();
        for entry in refused {
            entry.finish(Err(AppendError::Refused(why.clone())));
        }
        count
    }

    /// Ends everything, telling each caller whether its append may be in the log.
    pub(super) fn close(&mut self) {
        self.stream_ended();
        for entry in std::mem::take(&mut self.queue) {
            let sent = entry.sent;
            entry.finish(Err(AppendError::Closed { sent }));
        }
    }
}

#[cfg(test)]
mod tests;
