//! Shows a durable group to readers, then answers its producers: who was answered finds his message.

use std::sync::Arc;

use streaming_types::PChannel;
use woodpecker::{AppendError, EntryId};
use woodpecker_base::clock::Instant;

use super::{
    buffer::Buffer,
    group::{Append, Closing, Group, Placed},
    mvcc::Mvcc,
    record::Stored,
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
    /// closed, if the log has something of it, and whether messages were written.
    pub fn publish(&self, mut group: Group, now: Instant) -> Result<(Option<Closing>, bool), AppendError> {
        // Dropping a message tells its producer that the WAL is gone. That goes for settled ones too, which may rest on one
        // that the log did not take.
        if let Some(Err(error)) = group.written {
            return Err(error);
        }
        // What needed nothing of the log proves nothing about it: it may be someone else's, and hold what we have not seen.
        let closing = group.closing.filter(|_| group.written.is_some());
        let mut wrote = false;
        if let Some(closing) = closing {
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
        Ok((closing, wrote))
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
    let Some(Ok(Placed { id, tick, .. })) = append.outcome else { return None };
    let (message, record) = (std::mem::take(&mut append.message), std::mem::take(&mut append.record));
    Some(Stored::written(id, tick, append.kind, message, record))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use woodpecker_base::clock::Clock;

    use super::*;
    use crate::wal::{
        buffer::{Capacity, NodeBudget},
        group::samples,
        record,
    };

    #[tokio::test]
    async fn what_needs_nothing_of_the_log_is_answered_and_tells_readers_nothing() {
        let id = EntryId { segment: 1, entry: 0 };
        let first = Stored::new(id, record::tick(100, None, 1)).unwrap();
        let node = Arc::new(NodeBudget::new(usize::MAX));
        let capacity = Capacity { bytes: 1 << 20, age: Duration::from_secs(30), node };
        let buffer = Arc::new(Buffer::new(&first, None, capacity));
        let publisher = Publisher::of(&PChannel::read_write("p", 1).unwrap(), &buffer, &Arc::default());
        let closing = Closing { tick: 200, persisted: false, confirmed: None };
        for (written, told, tick) in [(None, None, 100), (Some(Ok(id)), Some(closing), 200)] {
            let (mut refused, mut answers) = samples::append(1, "p_1v0", false);
            refused.outcome = Some(Err(streaming_types::StreamingError::inner("refused")));
            let group = Group { settled: vec![refused], closing: Some(closing), written, ..Group::default() };
            assert_eq!(publisher.publish(group, Clock::system().now()).unwrap(), (told, false));
            assert!(answers.try_recv().is_ok());
            assert_eq!(buffer.watermark().tick, tick);
        }
    }
}
