//! What a new owner has to know of a log before it serves it.

use woodpecker::{EntryId, Log, LogError, Position, ReadError};

use super::{chunk::Joiner, record::Stored, sessions::Sessions, window::Windows};
use crate::metrics;

/// How far from the end of the log idempotency keys are looked for: more than clients have in flight.
const TAIL_BYTES: u64 = 32 << 20;
const TAIL_ENTRIES: u64 = 1 << 16;
const LEAST_ENTRIES: u64 = 256;
/// Entries by which the size of the others is judged.
const SAMPLE: u64 = 64;

/// What replaying a log gave.
#[derive(Debug)]
pub struct Recovered {
    /// The largest tick in the log, 0 for an empty one. Every tick of the new term is greater.
    pub last_tick: u64,
    /// The transactions that were open at its end.
    pub sessions: Sessions,
    /// The idempotency keys of its newest messages.
    pub windows: Windows,
}

/// Why a log could not be replayed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Replays a log that nobody else writes any more, as far back as its state needs: to the begin of the oldest open
/// transaction, and over its newest messages for their keys.
pub async fn replay(log: &Log, window_bytes: usize) -> Result<Recovered, ReplayError> {
    let Some(last) = log.last_entry().await? else {
        let nothing = EntryId { segment: 0, entry: 0 };
        return Ok(Recovered { last_tick: 0, sessions: Sessions::new(nothing), windows: Windows::new(window_bytes) });
    };
    let (mut least, mut found) = (LEAST_ENTRIES, None);
    let (start, newest, windows, mut sessions) = loop {
        let Tail { start, is_all } = tail(log, last, least).await?;
        let (mut windows, mut sessions) = (Windows::new(window_bytes), Sessions::new(last));
        read(log, start, last, |stored| {
            windows.observe(&stored);
            observe(log, &mut sessions, &stored);
            found = Some(stored);
        })
        .await?;
        // The end of the log may be nothing but pieces of a message that was never completed.
        if found.is_some() || is_all {
            break (start, found, windows, sessions);
        }
        least *= 16;
    };
    // A transaction that was open at the end may have begun before that; the newest message says where.
    let confirmed = newest.as_ref().and_then(|newest| newest.confirmed().ok()).unwrap_or(last);
    if confirmed < start {
        sessions = Sessions::new(last);
        read(log, confirmed, last, |stored| observe(log, &mut sessions, &stored)).await?;
    }
    Ok(Recovered { last_tick: newest.map_or(0, |newest| newest.tick), sessions, windows })
}

fn observe(log: &Log, sessions: &mut Sessions, stored: &Stored) {
    if let Err(error) = sessions.observe(stored, log.name()) {
        skipped(log, &error);
    }
}

/// Where the end of a log begins.
struct Tail {
    start: EntryId,
    /// Whether the log holds nothing before it.
    is_all: bool,
}

/// The end of a log: its newest messages by bytes, and at least so many entries.
async fn tail(log: &Log, last: EntryId, least: u64) -> Result<Tail, ReplayError> {
    let (mut entries, mut bytes) = (0, 0);
    let sample = EntryId { segment: last.segment, entry: last.entry.saturating_sub(SAMPLE - 1) };
    entries_of(log, sample, last, |_, payload| {
        entries += 1;
        bytes += payload.len() as u64;
    })
    .await?;
    let mut back = (TAIL_BYTES * entries.max(1) / bytes.max(1)).clamp(LEAST_ENTRIES, TAIL_ENTRIES).max(least);
    let in_segment = |segment, entry| Tail { start: EntryId { segment, entry }, is_all: false };
    if let Some(entry) = last.entry.checked_sub(back) {
        return Ok(in_segment(last.segment, entry));
    }
    back -= last.entry;
    for segment in log.describe().await?.segments.iter().rev().filter(|described| described.segment < last.segment) {
        let entries = segment.entries.unwrap_or(0);
        if let Some(entry) = entries.checked_sub(back) {
            return Ok(in_segment(segment.segment, entry));
        }
        back -= entries;
    }
    Ok(Tail { start: EntryId { segment: 0, entry: 0 }, is_all: true })
}

/// Gives `observe` every message from `start` to `last`; what was truncated there is left out.
async fn read(log: &Log, start: EntryId, last: EntryId, mut observe: impl FnMut(Stored)) -> Result<(), ReplayError> {
    let mut joiner = Joiner::default();
    entries_of(log, start, last, |id, payload| match joiner.accept(id, payload) {
        Ok(Some(stored)) => observe(stored),
        Ok(None) => {}
        Err(error) => skipped(log, &error),
    })
    .await
}

async fn entries_of(
    log: &Log,
    start: EntryId,
    last: EntryId,
    mut take: impl FnMut(EntryId, bytes::Bytes),
) -> Result<(), ReplayError> {
    let mut reader = log.reader(Position::At(start));
    loop {
        let entries = match reader.next().await {
            Ok(entries) => entries,
            // Nothing is left to replay.
            Err(ReadError::PositionLost { earliest }) if earliest > last => return Ok(()),
            Err(ReadError::PositionLost { earliest }) => {
                reader = log.reader(Position::At(earliest));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        for entry in entries {
            if entry.id > last {
                return Ok(());
            }
            take(entry.id, entry.payload);
            if entry.id == last {
                return Ok(());
            }
        }
    }
}

fn skipped(log: &Log, error: &super::record::BadRecord) {
    metrics::bad_record();
    tracing::error!(log = log.name(), %error, "skipped an entry that is no message");
}
