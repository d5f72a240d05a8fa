//! Replaying a log from its checkpoint: what a new owner does between fencing the log and serving it.

use bytes::Bytes;
use streaming_types::ImmutableMessage;
use woodpecker::{EntryId, Log, Position, ReadError};

use super::{seen::Seen, state::State};
use crate::{
    metrics,
    wal::{BadRecord, ReplayError, chunk::Joiner, record},
};

/// What replaying gave beside the state.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Bytes that were read.
    pub bytes: u64,
    /// Copies of broadcasts that nobody may have acknowledged.
    pub broadcasts: Vec<ImmutableMessage>,
}

/// Applies what follows the checkpoint of `state` to it, up to the end of a log that nobody else writes any more.
///
/// Where a former owner left an entry that is no message, it is skipped: a WAL that never opens again loses more.
pub async fn replay(log: &Log, state: &mut State) -> Result<Replayed, ReplayError> {
    let mut replayed = Replayed::default();
    let Some(last) = log.last_entry().await? else { return Ok(replayed) };
    let done = state.observed_tick();
    let mut reader = log.reader(Position::At(state.checkpoint().id));
    let mut joiner = Joiner::default();
    loop {
        let entries = match reader.next().await {
            Ok(entries) => entries,
            // Nothing is left to replay.
            Err(ReadError::PositionLost { earliest }) if earliest > last => return Ok(replayed),
            // Who truncated knew that it was not needed.
            Err(ReadError::PositionLost { earliest }) => {
                reader = log.reader(Position::At(earliest));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        for entry in entries {
            replayed.bytes += entry.payload.len() as u64;
            let met = match meet(entry.id, &entry.payload, done, state, &mut replayed) {
                Ok(()) => Ok(()),
                // What is no message by itself may be a piece of one.
                Err(_) => match joiner.record(entry.id, entry.payload) {
                    Some((id, record)) => meet(id, &record, done, state, &mut replayed),
                    None => Ok(()),
                },
            };
            if let Err(error) = met {
                metrics::bad_record();
                tracing::error!(log = log.name(), %error, "skipped an entry that is no message");
            }
            if entry.id >= last {
                return Ok(replayed);
            }
        }
    }
}

fn meet(id: EntryId, record: &Bytes, done: u64, state: &mut State, replayed: &mut Replayed) -> Result<(), BadRecord> {
    let seen = Seen::read(id, record)?;
    state.apply(&seen);
    if seen.is_broadcast() && seen.tick > done {
        replayed.broadcasts.push(record::decode_message(id, record.clone())?.message);
    }
    Ok(())
}
