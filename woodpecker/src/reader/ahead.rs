//! Reading ahead of a reader that is behind the tail: several chunks at once, across segments, in order, within a bound.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use tokio::sync::OnceCell;
use woodpecker_base::tasks::Held;
use woodpecker_core::{ids::LogId, record::OpenSegment};
use woodpecker_store::backend::{SegmentReader, StoreError};

use crate::{
    EntryId,
    client::Inner,
    view::{Extent, Place, View},
};

/// What one chunk is meant to hold; about twice of it is the most it holds.
pub(super) const CHUNK_BYTES: usize = 1 << 20;
const CHUNKS: usize = 8;
/// The size of entries that nothing is known of.
const GUESSED_ENTRY_BYTES: u64 = 1 << 10;

/// One reader per segment, opened by the first chunk that needs it.
type Opened = Arc<OnceCell<Arc<dyn SegmentReader>>>;

/// Chunks that are being read, in order.
#[derive(Default)]
pub(super) struct Ahead {
    chunks: VecDeque<Reading>,
    /// Where the next chunk starts; meaningless while there are none.
    cursor: Option<EntryId>,
    /// The ended segment that was opened last.
    opened: Option<(u64, Opened)>,
    /// Of what was read last.
    entry_bytes: Option<u64>,
}

/// A chunk and the segment it is of.
struct Reading {
    segment: u64,
    task: Held<Chunk>,
}

/// An error and the segment it is about.
type Failure = (u64, StoreError);

/// Entries `from..to` of one segment, as far as they fit.
struct Chunk {
    client: Arc<Inner>,
    log: LogId,
    segment: Extent,
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
    fn start(mut self) -> Reading {
        let (segment, tasks) = (self.segment.opened.segment, self.client.tasks.clone());
        let task = tasks.spawn_held(async move {
            self.entries = self.try_read().await;
            self
        });
        Reading { segment, task }
    }

    async fn try_read(&self) -> Result<Vec<Bytes>, StoreError> {
        let open = || self.client.open_extent(self.log, &self.segment);
        let reader = self.opened.get_or_try_init(open).await?;
        let wanted = usize::try_from(self.to - self.from).unwrap_or(usize::MAX);
        let (mut entries, mut room) = (Vec::new(), 2 * CHUNK_BYTES);
        // A read ends where what the medium checks as one ends; the chunk goes on in the next.
        while entries.len() < wanted && room > 0 {
            let at = self.from + entries.len() as u64;
            let read = self.client.retrying.once(reader.read(at, room)).await?;
            if read.is_empty() {
                let what = format!("segment {}/{}", self.log, self.segment.opened.segment);
                let detail = format!("it should hold {} entries, and has no entry {at}", self.segment.entries);
                return Err(StoreError::Corrupt { what, detail });
            }
            room = room.saturating_sub(read.iter().map(|entry| entry.len().max(1)).sum());
            entries.extend(read);
        }
        entries.truncate(wanted);
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
        while self.chunks.len() < CHUNKS {
            let Some(at) = self.cursor else { return };
            let Place::Ended(segment) = view.place(at.segment) else { return };
            if at.entry >= segment.entries {
                self.cursor = Some(EntryId { segment: at.segment + 1, entry: 0 });
                continue;
            }
            let entry_bytes = view.entry_bytes(at.segment).or(self.entry_bytes);
            let opened = match &self.opened {
                Some((known, opened)) if *known == at.segment => opened.clone(),
                _ => self.opened.insert((at.segment, Opened::default())).1.clone(),
            };
            self.start((client, view.id), segment, at, entry_bytes, opened);
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
        while self.chunks.len() < CHUNKS && at.entry < durable {
            self.start((client, log), extent.clone(), at, self.entry_bytes, opened.clone());
            at = self.cursor.unwrap_or(at);
        }
    }

    fn start(
        &mut self,
        (client, log): (&Arc<Inner>, LogId),
        segment: Extent,
        at: EntryId,
        entry_bytes: Option<u64>,
        opened: Opened,
    ) {
        let number = segment.opened.segment;
        let count = CHUNK_BYTES as u64 / entry_bytes.unwrap_or(GUESSED_ENTRY_BYTES).max(1);
        let to = segment.entries.min(at.entry.saturating_add(count.max(1)));
        self.cursor = Some(EntryId { segment: number, entry: to });
        let (guessed, entries) = (entry_bytes.is_none(), Ok(Vec::new()));
        let chunk = Chunk { client: client.clone(), log, segment, from: at.entry, to, guessed, opened, entries };
        self.chunks.push_back(chunk.start());
    }

    /// The next entries that were read ahead, or `None` if nothing was planned; an error with the segment it is about,
    /// which may be a later one than the last entries were of. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<(EntryId, Vec<Bytes>), Failure>> {
        let reading = self.chunks.front_mut()?;
        let (segment, chunk) = (reading.segment, (&mut reading.task).await);
        self.chunks.pop_front();
        let Some(mut chunk) = chunk.ok().flatten() else {
            return Some(Err((segment, StoreError::Unavailable("the client is closed".into()))));
        };
        let first = EntryId { segment: chunk.segment.opened.segment, entry: chunk.from };
        let entries = match std::mem::replace(&mut chunk.entries, Ok(Vec::new())) {
            Ok(entries) => entries,
            Err(error) => return Some(Err((first.segment, error))),
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
                self.chunks.push_front(chunk.start());
            }
        }
        Some(Ok((first, entries)))
    }
}
