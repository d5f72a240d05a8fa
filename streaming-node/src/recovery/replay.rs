//! Replaying a log: what a new owner does between fencing the log and serving it. The log is read once, from where its
//! checkpoint is or its newest idempotency keys begin, whichever comes first.

use bytes::Bytes;
use streaming_types::{ImmutableMessage, TimeTick};
use woodpecker::{EntryId, Log, LogError, Position, ReadError};

use super::{seen::Seen, state::State};
use crate::{
    metrics,
    wal::{
        BadRecord,
        chunk::Joiner,
        record,
        sessions::Sessions,
        window::{Windows, newest::NewestKeys},
    },
};

/// What replaying gave beside the state.
#[derive(Debug)]
pub struct Replayed {
    /// The largest tick in the log, 0 for an empty one. Every tick of the new term is greater.
    pub last_tick: u64,
    /// The transactions that were open at its end.
    pub sessions: Sessions,
    /// The idempotency keys of its newest messages.
    pub windows: Windows,
    /// Bytes that follow the checkpoint.
    pub bytes: u64,
    /// Copies of broadcasts that nobody may have acknowledged.
    pub broadcasts: Vec<ImmutableMessage>,
}

/// Why a log could not be replayed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Applies what follows the checkpoint of `state` to it, up to the end of a log that nobody else writes any more, and
/// remembers up to `window_bytes` of the keys of each vchannel; `seed` is nobody's to guess.
///
/// Where a former owner left an entry that is no message, it is skipped: a WAL that never opens again loses more.
pub async fn replay(log: &Log, state: &mut State, window_bytes: usize, seed: u128) -> Result<Replayed, ReplayError> {
    let last = log.last_entry().await?;
    // Transactions that are open at the end began behind the checkpoint: it is a last-confirmed id.
    let (checkpoint, start) = (state.checkpoint().id, state.replay_from());
    let mut replay = Replay {
        log,
        keys: NewestKeys::new(window_bytes, seed),
        done: state.observed_tick(),
        replayed: Replayed {
            last_tick: state.observed_tick(),
            sessions: Sessions::new(last.unwrap_or(EntryId { segment: 0, entry: 0 })),
            windows: Windows::new(window_bytes, seed),
            bytes: 0,
            broadcasts: Vec::new(),
        },
        state,
        joiner: Joiner::default(),
    };
    if let Some(last) = last {
        replay.run(start, checkpoint, last).await?;
    }
    replay.replayed.windows = replay.keys.into_windows();
    Ok(replay.replayed)
}

struct Replay<'a> {
    log: &'a Log,
    state: &'a mut State,
    keys: NewestKeys,
    /// Whoever had to be told of a message up to this tick was.
    done: u64,
    joiner: Joiner,
    replayed: Replayed,
}

impl Replay<'_> {
    async fn run(&mut self, start: EntryId, checkpoint: EntryId, last: EntryId) -> Result<(), ReplayError> {
        let mut reader = self.log.reader(Position::At(start));
        loop {
            let entries = match reader.next().await {
                Ok(entries) => entries,
                // Nothing is left to replay.
                Err(ReadError::PositionLost { earliest }) if earliest > last => return Ok(()),
                // Who truncated knew that it was not needed.
                Err(ReadError::PositionLost { earliest }) => {
                    reader = self.log.reader(Position::At(earliest));
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            for entry in entries {
                if entry.id > last {
                    return Ok(());
                }
                if entry.id >= checkpoint {
                    self.replayed.bytes += entry.payload.len() as u64;
                }
                self.take(entry.id, entry.payload);
                if entry.id == last {
                    return Ok(());
                }
            }
        }
    }

    fn take(&mut self, id: EntryId, entry: Bytes) {
        let met = match self.meet(id, &entry) {
            Ok(()) => {
                self.joiner.end();
                Ok(())
            }
            // What is no message by itself may be a piece of one.
            Err(_) => match self.joiner.record(id, entry) {
                Some((id, record)) => self.meet(id, &record),
                None => Ok(()),
            },
        };
        if let Err(error) = met {
            metrics::bad_record(self.log.name());
            tracing::error!(log = self.log.name(), %error, "skipped an entry that is no message");
        }
    }

    fn meet(&mut self, id: EntryId, record: &Bytes) -> Result<(), BadRecord> {
        let seen = Seen::read(id, record)?;
        let Replayed { last_tick, sessions, broadcasts, .. } = &mut self.replayed;
        *last_tick = seen.tick.max(*last_tick);
        self.state.apply(&seen);
        self.keys.observe(&seen);
        // Only what concerns transactions is worth being decoded as a whole.
        if seen.is_of_txn() || seen.kind.is_exclusive() {
            sessions.observe(&record::decode_message(id, record.clone())?, self.log.name())?;
        } else {
            sessions.expire(TimeTick(seen.tick));
        }
        if seen.is_broadcast() && seen.tick > self.done {
            broadcasts.push(record::decode_message(id, record.clone())?.message);
        }
        Ok(())
    }
}
