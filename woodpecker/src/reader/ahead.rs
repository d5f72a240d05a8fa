//! Reading ahead of a reader that is behind the tail: several chunks at once, across segments, in order, within a bound
//! for each reader and one for all readers of the process.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use tokio::sync::{OnceCell, OwnedSemaphorePermit};
use woodpecker_base::tasks::Held;
use woodpecker_core::{ids::LogId, record::OpenSegment};
use woodpecker_store::backend::{SegmentReader, StoreError};

use crate::{
    EntryId,
    client::Inner,
    view::{Extent, Form, Place, View},
};

/// What one chunk is meant to hold; about twice of it is the most it holds.
pub(super) const CHUNK_BYTES: usize = 1 << 20;
const CHUNKS: usize = 8;
/// The size of entries that nothing is known of.
const GUESSED_ENTRY_BYTES: u64 = 1 << 10;

/// One reader per segment and form of it, opened by the first chunk that needs it.
type Opened = Arc<OnceCell<Arc<dyn SegmentReader>>>;

/// Chunks that are being read, in order.
#[derive(Default)]
pub(super) struct Ahead {
    chunks: VecDeque<Reading>,
    /// Where the next chunk starts; meaningless while there are none.
    cursor: Option<EntryId>,
    /// The ended segment that was opened last, and in which form.
    opened: Option<(u64, Form, Opened)>,
    /// Of what was read last.
    entry_bytes: Option<u64>,
}

/// A chunk and the segment it is of.
struct Reading {
    segment: u64,
    form: Form,
    task: Held<Chunk>,
    room: Room,
}

/// A chunk's part of what readers may read ahead; the chunk that a reader waits for needs none.
type Room = Option<OwnedSemaphorePermit>;

/// An error and the segment it is about, in the form that was read.
type Failure = (u64, Form, StoreError);

/// Entries `from..to` of one segment, as far as they fit.
struct Chunk {
    client: Arc<Inner>,
    log: LogId,
    segment: Extent,
    form: Form,
    from: u64,
    to: u64,
    /// Nothing was known of the size of the entries.
    guessed: bool,
    opened: Opened,
    entries: Result<Vec<Bytes>, StoreError>,
}

impl Chunk {
    /// Begins to read. It is a task because others may wait for what it loads into the caches, and whoever reads ahead
    /// may rest for as long as it likes.
    fn start(mut self, room: Room) -> Reading {
        let (segment, form, tasks) = (self.segment.opened.segment, self.form, self.client.tasks.clone());
        let task = tasks.spawn_held(async move {
            self.entries = self.try_read().await;
            self
        });
        Reading { segment, form, task, room }
    }

    async fn try_read(&self) -> Result<Vec<Bytes>, StoreError> {
        let open = || self.client.open_extent(self.log, &self.segment);
        let reader = self.opened.get_or_try_init(open).await?;
        let wanted = usize::try_from(self.to - self.from).unwrap_or(usize::MAX);
        let (mut entries, mut room) = (Vec::new(), 2 * CHUNK_BYTES);
        // A read ends where what the medium checks as one ends; the chunk goes on in the next.
        while entries.len() < wanted && room > 0 {
            let at = self.from + entries.len() as u64;
            let read = self.client.retrying.once(reader.read_before(at, self.to, room)).await?;
            if read.is_empty() {
                let what = format!("segment {}/{}", self.log, self.segment.opened.segment);
                let detail = format!("it should hold {} entries, and has no entry {at}", self.segment.entries);
                return Err(StoreError::Corrupt { what, detail });
            }
            room = room.saturating_sub(read.iter().map(|entry| entry.len().max(1)).sum());
            entries.extend(read);
        }
        Ok(entries)
    }
}

impl Ahead {
    /// Forgets what was read ahead; reading goes on at the next plan.
    pub fn clear(&mut self) {
        self.chunks.clear();
        self.cursor = None;
        self.opened = None;
    }

    /// Starts reading what is known to exist from `next` on, as far as the bound lets it.
    pub fn plan(&mut self, client: &Arc<Inner>, view: &View, next: EntryId) {
        if self.chunks.is_empty() {
            self.cursor = Some(next);
        }
        loop {
            let Some(at) = self.cursor else { return };
            let Place::Ended(segment) = view.place(at.segment) else { return };
            if at.entry >= segment.entries {
                self.cursor = Some(EntryId { segment: at.segment + 1, entry: 0 });
                continue;
            }
            let entry_bytes = view.entry_bytes(at.segment).or(self.entry_bytes);
            let Some(room) = self.room(client, entry_bytes) else { return };
            let form = segment.form();
            let opened = match &self.opened {
                Some((known, of, opened)) if (*known, *of) == (at.segment, form) => opened.clone(),
                _ => self.opened.insert((at.segment, form, Opened::default())).2.clone(),
            };
            self.start((client, view.id), (segment, form), at, entry_bytes, opened, room);
        }
    }

    /// As [`Ahead::plan`], in the open segment, of which this much is durable. Its reader is of no use once the segment has
    /// ended: it may learn of the last acks later than the log's record says how many there are.
    pub fn plan_open(
        &mut self,
        client: &Arc<Inner>,
        log: LogId,
        reader: Arc<dyn SegmentReader>,
        open: &OpenSegment,
        from: u64,
        durable: u64,
    ) {
        let opened: Opened = Arc::new(OnceCell::new_with(Some(reader)));
        let mut at = EntryId { segment: open.segment, entry: from };
        let extent = Extent { opened: open.clone(), entries: durable, sealed: None };
        while at.entry < durable {
            let Some(room) = self.room(client, self.entry_bytes) else { return };
            self.start((client, log), (extent.clone(), Form::Open), at, self.entry_bytes, opened.clone(), room);
            at = self.cursor.unwrap_or(at);
        }
    }

    /// Room for one more chunk, if there is any. A reader has no more of what all share than it leaves to the others: so
    /// the next one to fall behind finds some.
    fn room(&self, client: &Inner, entry_bytes: Option<u64>) -> Option<Room> {
        if self.chunks.is_empty() {
            return Some(None);
        }
        let most = entry_bytes.unwrap_or(0).max(2 * CHUNK_BYTES as u64);
        let permits = u32::try_from(most.div_ceil(1024)).unwrap_or(u32::MAX);
        let held = |reading: &Reading| reading.room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let mine: usize = self.chunks.iter().map(held).sum();
        let fair = mine < client.read_ahead.available_permits();
        let room =
            (fair && self.chunks.len() < CHUNKS).then(|| client.read_ahead.clone().try_acquire_many_owned(permits));
        Some(Some(room?.ok()?))
    }

    fn start(
        &mut self,
        (client, log): (&Arc<Inner>, LogId),
        (segment, form): (Extent, Form),
        at: EntryId,
        entry_bytes: Option<u64>,
        opened: Opened,
        room: Room,
    ) {
        let number = segment.opened.segment;
        let count = CHUNK_BYTES as u64 / entry_bytes.unwrap_or(GUESSED_ENTRY_BYTES).max(1);
        let to = segment.entries.min(at.entry.saturating_add(count.max(1)));
        self.cursor = Some(EntryId { segment: number, entry: to });
        let (guessed, entries) = (entry_bytes.is_none(), Ok(Vec::new()));
        let chunk = Chunk { client: client.clone(), log, segment, form, from: at.entry, to, guessed, opened, entries };
        self.chunks.push_back(chunk.start(room));
    }

    /// The next entries that were read ahead, or `None` if nothing was planned; an error with the segment it is about,
    /// which may be a later one than the last entries were of. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<(EntryId, Vec<Bytes>), Failure>> {
        let reading = self.chunks.front_mut()?;
        let (segment, form, chunk) = (reading.segment, reading.form, (&mut reading.task).await);
        let room = self.chunks.pop_front().and_then(|reading| reading.room);
        let Some(mut chunk) = chunk.ok().flatten() else {
            return Some(Err((segment, form, StoreError::Unavailable("the client is closed".into()))));
        };
        let first = EntryId { segment, entry: chunk.from };
        let entries = match std::mem::replace(&mut chunk.entries, Ok(Vec::new())) {
            Ok(entries) => entries,
            Err(error) => return Some(Err((segment, form, error))),
        };
        let count = entries.len() as u64;
        let bytes: usize = entries.iter().map(Bytes::len).sum();
        self.entry_bytes = (bytes as u64).checked_div(count);
        chunk.from += count;
        if chunk.from < chunk.to {
            // Entries were larger than thought. The rest of the chunk comes before the chunks after it, or, where they
            // were cut by a mere guess, all is planned again.
            if chunk.guessed {
                self.chunks.clear();
            } else {
                self.chunks.push_front(chunk.start(room));
            }
        }
        Some(Ok((first, entries)))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use woodpecker_base::{clock::Clock, metadata::MemoryStore, random::Random, tasks::Tasks};
    use woodpecker_store::memory::{MemoryBackend, MemoryMedium};

    use super::*;
    use crate::{Client, Position, Reader, Settings};

    const BUDGET: usize = 8 << 20;
    const ENTRIES: usize = 256;
    const ENTRY_BYTES: usize = 64 << 10;

    /// A process with a log of 16 MiB in segments of 4.
    async fn filled() -> (Client, crate::Log) {
        let settings = Settings {
            metadata_prefix: "test".to_owned(),
            backend: "memory".to_owned(),
            segment_bytes: 4 << 20,
            segment_age: Duration::from_secs(3600),
            in_flight_bytes: 1 << 20,
            read_ahead_bytes: BUDGET,
        };
        let (clock, random, tasks) = (Clock::system(), Random::seeded(7), Tasks::new());
        let backend: Arc<dyn woodpecker_store::backend::Backend> =
            Arc::new(MemoryBackend::new(MemoryMedium::default(), &tasks));
        let backends = BTreeMap::from([("memory".to_owned(), backend)]);
        let metadata = Arc::new(MemoryStore::new(clock.clone()));
        let client = Client::new(settings, metadata, backends, clock, random, tasks);
        let log = client.create_log("lagging").await.unwrap();
        let writer = log.open_writer().await.unwrap();
        for _ in 0..ENTRIES {
            writer.append(vec![Bytes::from(vec![7; ENTRY_BYTES])]).await.unwrap();
        }
        (client, log)
    }

    /// What a reader has read and nobody has asked for yet.
    async fn held(reader: &mut Reader) -> usize {
        let mut bytes = 0;
        for reading in &mut reader.ahead.chunks {
            let chunk = (&mut reading.task).await.unwrap().unwrap();
            bytes += chunk.entries.unwrap().iter().map(Bytes::len).sum::<usize>();
        }
        bytes
    }

    #[tokio::test]
    async fn readers_that_lag_together_hold_no_more_than_their_budget() {
        let (client, log) = filled().await;
        let mut readers: Vec<_> = (0..12).map(|_| log.reader(Position::Earliest)).collect();
        for reader in &mut readers {
            assert!(!reader.next().await.unwrap().is_empty());
        }
        let mut ahead = Vec::new();
        for reader in &mut readers {
            // Plans anew, with what the first read taught.
            let next = reader.next.unwrap();
            reader.ahead.plan(&reader.client, &reader.view, next);
            ahead.push(held(reader).await);
        }
        // The chunk that a reader asks for next is not ahead of it.
        let waited_for = readers.len() * 2 * CHUNK_BYTES;
        let total: usize = ahead.iter().sum();
        assert!(total <= BUDGET + waited_for, "{ahead:?}");
        assert!(total >= BUDGET / 2, "nothing was read ahead: {ahead:?}");
        assert!(ahead.iter().max() > ahead.iter().min(), "without the budget all have as much: {ahead:?}");

        drop(readers);
        assert_eq!(client.inner.read_ahead.available_permits(), BUDGET / 1024);
        // One that gets nothing of it reads all the same.
        let _taken = client.inner.read_ahead.clone().try_acquire_many_owned(8192).unwrap();
        let mut reader = log.reader(Position::Earliest);
        let mut count = 0;
        while count < ENTRIES {
            count += reader.next().await.unwrap().len();
            assert!(reader.ahead.chunks.len() <= 1);
        }
    }
}
