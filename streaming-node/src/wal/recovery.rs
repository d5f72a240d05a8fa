//! What a new owner has to know of a log before it serves it.

use woodpecker::{EntryId, Log, LogError, Position, ReadError};

use super::record;

/// What replaying a log from its checkpoint gave.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The largest tick in the log, 0 for an empty one. Every tick of the new term is greater.
    pub last_tick: u64,
}

/// Why a log could not be replayed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Where the replay of a fenced log that ends at `last` begins. All state that outlives a term is the last tick, and log
/// order is tick order, so the last entry is checkpoint enough.
fn checkpoint(last: EntryId) -> Position {
    Position::At(last)
}

/// Replays a log that nobody else writes any more.
pub async fn replay(log: &Log) -> Result<Recovered, ReplayError> {
    let mut recovered = Recovered::default();
    let Some(last) = log.last_entry().await? else { return Ok(recovered) };
    let mut reader = log.reader(checkpoint(last));
    loop {
        let entries = match reader.next().await {
            Ok(entries) => entries,
            // Nothing is left to replay.
            Err(ReadError::PositionLost { earliest }) if earliest > last => return Ok(recovered),
            Err(error) => return Err(error.into()),
        };
        for entry in entries {
            match record::decode(entry.id, entry.payload) {
                Ok(stored) => recovered.last_tick = recovered.last_tick.max(stored.tick),
                Err(error) => tracing::error!(log = log.name(), %error, "skipped an entry that is no message"),
            }
            if entry.id >= last {
                return Ok(recovered);
            }
        }
    }
}
