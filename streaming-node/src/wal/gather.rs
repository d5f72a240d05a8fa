//! Reads one committed transaction from the log once more, for a reader that found no room to keep its messages while it was
//! open. They come a piece of the log at a time, so that no more than that is in memory.

use std::sync::Arc;

use streaming_types::properties::key;
use woodpecker::{EntryId, Log, Position, ReadError, Reader};

use super::{
    chunk::Joiner,
    delivery::{Scattered, placed},
    record::Stored,
};

/// See the module.
pub struct Gather {
    reader: Reader,
    joiner: Joiner,
    txn_id: i64,
    commit: Arc<Stored>,
    /// The tick of the last message that was found.
    last: u64,
}

impl Gather {
    /// What stands between begin and commit.
    pub fn new(log: &Log, Scattered { txn_id, begin, commit }: Scattered) -> Self {
        let reader = log.reader(Position::After(begin.id));
        Self { reader, joiner: Joiner::default(), txn_id, commit, last: begin.tick }
    }

    /// More bodies, at their place, or none; the commit behind the last one. Cancel-safe.
    ///
    /// # Errors
    /// The log's; the same call may go on where it was.
    pub async fn next(&mut self) -> Result<Vec<Arc<Stored>>, ReadError> {
        let mut found = Vec::new();
        for entry in self.reader.next().await? {
            if entry.id >= self.commit.id {
                found.push(Arc::clone(&self.commit));
                break;
            }
            found.extend(self.body(entry.id, entry.payload));
        }
        Ok(found)
    }

    fn body(&mut self, id: EntryId, entry: bytes::Bytes) -> Option<Arc<Stored>> {
        // What is no message was told of when it was met first.
        let stored = self.joiner.accept(id, entry).ok().flatten()?;
        let properties = &stored.message.properties;
        let is_body = properties.contains(key::TXN)
            && properties.txn().is_ok_and(|txn| txn.is_some_and(|txn| txn.txn_id == self.txn_id));
        // Ticks rise; the same one is the same record written twice.
        if !is_body || stored.tick <= self.last {
            return None;
        }
        self.last = stored.tick;
        Some(placed(&stored, &self.commit, None))
    }
}
