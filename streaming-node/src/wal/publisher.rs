//! Shows a durable group to readers, then answers its producers: who was answered finds his message.

use std::sync::Arc;

use streaming_types::{MessageId, PChannel, StreamingError};
use woodpecker::{AppendError, EntryId};
use woodpecker_base::clock::Instant;

use super::{
    buffer::Buffer,
    group::{Append, Closing, Group},
    mvcc::Mvcc,
    record::{BadRecord, Stored},
};
use crate::metrics::WalMetrics;

/// See the module.
#[derive(Debug, Clone)]
pub struct Publisher {
    pub pchannel: Arc<str>,
    pub buffer: Arc<Buffer>,
    pub mvcc: Arc<Mvcc>,
    pub metrics: Arc<WalMetrics>,
}

impl Publisher {
    /// Of a channel that was opened.
    pub fn of(channel: &PChannel, buffer: &Arc<Buffer>, mvcc: &Arc<Mvcc>) -> Self {
        Self {
            pchannel: channel.name().into(),
            buffer: Arc::clone(buffer),
            mvcc: Arc::clone(mvcc),
            metrics: Arc::new(WalMetrics::opened(channel.name(), channel.term())),
        }
    }

    /// Publishes what the log answered, except that readers have to be [woken](Buffer::wake). Says by which tick the group was
    /// closed, and whether messages were written.
    pub fn publish(&self, mut group: Group, now: Instant) -> Result<(Option<Closing>, bool), AppendError> {
        // Dropping a message tells its producer that the WAL is gone. That goes for settled ones too, which may rest on one
        // that the log did not take.
        if let Some(Err(error)) = group.written {
            return Err(error);
        }
        let mut wrote = false;
        if let Some(closing) = group.closing {
            self.metrics.appended(group.appends.iter().map(|append| append.bytes));
            self.metrics.synced(closing.persisted);
            self.mvcc.appended(&group.appends, &self.pchannel);
            let mut messages = Vec::with_capacity(group.appends.len() + 1);
            messages.extend(group.appends.iter_mut().filter_map(|append| stored(append)).map(Arc::new));
            let tick = group.tick.and_then(|(id, tick)| Stored::new(id, tick).ok());
            messages.extend(tick.map(Arc::new));
            wrote = self.buffer.publish(messages, (closing.tick, closing.confirmed), now);
        }
        for append in group.appends.into_iter().chain(group.settled) {
            append.answer();
        }
        Ok((group.closing, wrote))
    }

    /// Gives readers a tick, by which everything up to it is there.
    pub fn tick(&self, tick: u64, confirmed: Option<EntryId>, now: Instant) {
        let wrote = self.buffer.publish([], (tick, confirmed), now);
        self.buffer.wake(wrote);
    }

    /// Makes every reader give its client a tick.
    pub fn beat(&self, now: Instant) {
        self.buffer.beat(now);
        self.mvcc.told(self.buffer.watermark().tick);
    }
}

/// The message as readers get it.
fn stored(append: &mut Append) -> Option<Stored> {
    let Some(Ok(placed)) = &append.outcome else { return None };
    match Stored::new(entry_id(placed.id), std::mem::take(&mut append.message)) {
        Ok(mut stored) => {
            stored.record = std::mem::take(&mut append.record);
            Some(stored)
        }
        Err(error) => {
            append.outcome = Some(Err(unreadable(&error)));
            None
        }
    }
}

fn entry_id(id: MessageId) -> EntryId {
    let (segment, entry) = id.to_u64();
    EntryId { segment, entry }
}

fn unreadable(error: &BadRecord) -> StreamingError {
    StreamingError::inner(error.to_string())
}
