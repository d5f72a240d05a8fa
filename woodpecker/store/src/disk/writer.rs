//! The one writer of a volume: take what is queued, one write, one sync, look for fences, ack in order. While a sync is
//! going on the next batch gathers, so there is no timer and no tuning.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use metrics::{Histogram, histogram};
use tokio::sync::watch;
use woodpecker_base::{clock::Clock, disk::DiskFile};
use woodpecker_core::ids::SegmentKey;

use crate::{
    backend::{Placement, SegmentEnd, SegmentOwner, StoreError},
    format::{BatchId, Block, Kind, encode_pieces},
};

use super::{
    LocalSettings,
    file::{ALIGN, DATA_START},
    marks::Mark,
    queue::{Append, Queue},
    segment::{Live, Segment, Start},
    space::{Room, Space},
    volume::Volume,
};

/// A block takes appends of its segment until it has this much: a reader must read a block whole to check it.
const BLOCK_BYTES: usize = 1 << 20;
/// A batch below this size waits for the sync, not for the bandwidth: zeros written ahead pay.
const SMALL_BATCH: u64 = 256 << 10;
/// What is copied of an ordinary batch; more memory than that is not kept for the next.
const BUFFER_BYTES: usize = 8 << 20;

/// What the writer shares with the rest of the process.
#[derive(Debug)]
pub(super) struct Shared {
    pub volume: Arc<Volume>,
    pub queue: Arc<Queue>,
    /// The batch that is written next.
    next_batch: AtomicU64,
    open: Mutex<Open>,
    /// Set when the writer failed.
    failed: Mutex<Option<Arc<str>>>,
    /// Set before that, if it failed because the disk was full.
    no_room: Arc<AtomicBool>,
}

impl Shared {
    pub(super) fn new(volume: Arc<Volume>, queue_bytes: usize, no_room: Arc<AtomicBool>) -> Self {
        Self {
            volume,
            queue: Arc::new(Queue::new(queue_bytes)),
            next_batch: AtomicU64::new(0),
            open: Mutex::default(),
            failed: Mutex::default(),
            no_room,
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a segment, which starts with the batch that is written next.
    ///
    /// # Errors
    /// The volume failed.
    pub(super) fn create(
        &self,
        key: SegmentKey,
        owner: Arc<dyn SegmentOwner>,
        start: Start,
    ) -> Result<Arc<Segment>, StoreError> {
        let from_batch = self.next_batch.load(Ordering::Acquire);
        let placement = Placement::Volume { volume: self.volume.dir.id, from_batch };
        let segment = {
            let mut open = self.open();
            open.sweep();
            let live = open.live.get(&key).and_then(Weak::upgrade);
            let live = live.unwrap_or_else(|| Arc::new(Live::starting_at(start.first)));
            open.live.insert(key, Arc::downgrade(&live));
            let segment = Arc::new(Segment::new(key, placement, owner, live, start));
            open.segments.push(Arc::downgrade(&segment));
            segment
        };
        // Looked at after the registration: a failure that comes now is told to the owner.
        match self.failure() {
            None => Ok(segment),
            Some(reason) => Err(StoreError::Failed(reason)),
        }
    }

    pub(super) fn live(&self, key: SegmentKey) -> Option<Arc<Live>> {
        self.open().live.get(&key).and_then(Weak::upgrade)
    }

    /// Why the volume takes no more appends, if it failed.
    pub(super) fn failure(&self) -> Option<Arc<str>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fail(&self, batch: u64, reason: &Arc<str>) {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.clone());
        self.volume.stop_at(batch);
        self.queue.abandon();
        let segments: Vec<_> = self.open().segments.iter().filter_map(Weak::upgrade).collect();
        for segment in segments {
            segment.end(SegmentEnd::Failed(StoreError::Failed(reason.clone())));
        }
    }
}

/// What fails for want of room works again when there is some.
pub(super) fn note_no_room(error: &io::Error, no_room: &AtomicBool) {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        no_room.store(true, Ordering::Release);
    }
}

/// What is open in the volume, and some that was dropped since the last sweep.
#[derive(Debug, Default)]
struct Open {
    segments: Vec<Weak<Segment>>,
    live: BTreeMap<SegmentKey, Weak<Live>>,
    sweep_at: usize,
}

impl Open {
    /// Lets go what was dropped, when that may be half of what is here: so a registration costs the same however many
    /// segments are open.
    fn sweep(&mut self) {
        if self.segments.len().max(self.live.len()) >= self.sweep_at {
            self.segments.retain(|known| known.strong_count() > 0);
            self.live.retain(|_, known| known.strong_count() > 0);
            self.sweep_at = 2 * self.segments.len().max(self.live.len()) + 64;
        }
    }
}

/// The writer's own state.
pub(super) struct VolumeWriter {
    shared: Arc<Shared>,
    settings: LocalSettings,
    /// Open since before the first ack, and locked: whoever gets the lock knows that the writer is gone.
    marks: Arc<dyn DiskFile>,
    writer: u128,
    seq: u64,
    space: Space,
    room: Option<Room>,
    buffer: Vec<u8>,
    last_batch: u64,
    tail: Tail,
    clock: Clock,
    batch_bytes: Histogram,
    sync_took: Histogram,
    /// The owners were told what there is to tell.
    done: bool,
    /// Dropped when the writer ended, however it ended.
    _running: watch::Sender<()>,
}

/// The blocks that are kept in memory for tail readers, oldest first.
struct Tail {
    blocks: VecDeque<(Arc<Live>, usize)>,
    bytes: usize,
    limit: usize,
}

/// The blocks of one batch and whose they are.
#[derive(Default)]
struct Gathered {
    blocks: Vec<Block>,
    owners: Vec<Arc<Segment>>,
    bytes: Vec<usize>,
}

impl fmt::Debug for VolumeWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VolumeWriter").field("volume", &self.shared.volume).field("seq", &self.seq).finish()
    }
}

impl VolumeWriter {
    pub(super) fn new(
        shared: Arc<Shared>,
        settings: LocalSettings,
        marks: Arc<dyn DiskFile>,
        (writer, clock): (u128, Clock),
        running: watch::Sender<()>,
    ) -> Self {
        let space = Space::new(shared.volume.dir.clone(), settings.file_bytes);
        let tail = Tail { blocks: VecDeque::new(), bytes: 0, limit: settings.tail_bytes };
        Self {
            shared,
            settings,
            marks,
            writer,
            seq: 0,
            space,
            room: None,
            buffer: Vec::new(),
            last_batch: 0,
            tail,
            clock,
            batch_bytes: histogram!("woodpecker_volume_batch_bytes"),
            sync_took: histogram!("woodpecker_volume_sync_duration_seconds"),
            done: false,
            _running: running,
        }
    }

    /// Writes until the queue is closed and empty, or until something fails: then nothing that was written and not
    /// acked can be trusted any more (a failed sync drops pages), and the volume stops for good.
    pub(super) async fn run(mut self) {
        let shared = self.shared.clone();
        let (cap, shared_cap) = (self.settings.batch_bytes, self.settings.shared_batch_bytes);
        while let Some(appends) = shared.queue.take(cap, shared_cap).await {
            let gathered = gather(appends);
            if gathered.blocks.is_empty() {
                continue;
            }
            if let Err(error) = self.write(gathered).await {
                self.fail(&error);
                return;
            }
        }
        self.finish().await;
    }

    async fn write(&mut self, gathered: Gathered) -> io::Result<()> {
        let id = BatchId {
            kind: Kind::Data,
            volume: self.shared.volume.dir.id,
            seq: self.seq,
            writer: self.writer,
            attempt: u128::from(self.seq),
        };
        self.shared.next_batch.store(self.seq + 1, Ordering::Release);
        let mut buffer = std::mem::take(&mut self.buffer);
        let align = usize::try_from(ALIGN).unwrap_or(1);
        let mut pieces = encode_pieces(&mut buffer, id, &gathered.blocks, align).map_err(io::Error::other)?;
        let (padded, file_bytes) = (pieces.length, self.settings.file_bytes);
        let room = self.room_for(padded).await?;
        room.reserve(padded, file_bytes)?;
        let (number, file, at) = (room.number, room.file.clone(), room.at);
        file.write_pieces_at(&mut pieces.slices, at)?;
        let began = self.clock.now();
        let synced = file.sync_data();
        self.sync_took.record(self.clock.now().duration_since(began));
        synced?;
        if let Some(room) = &mut self.room {
            room.at += padded;
        }
        self.seq += 1;
        self.last_batch = padded;
        if padded >= SMALL_BATCH {
            self.space.stop_zeroing();
        }
        let (body, placed) = (pieces.body, pieces.blocks);
        if buffer.capacity() <= BUFFER_BYTES {
            self.buffer = buffer;
        }
        // Known to a fence of this process before it is acked.
        let volume = &self.shared.volume;
        volume.wrote(number, &file, id.seq, at + body, &placed, at + padded).map_err(io::Error::other)?;
        self.batch_bytes.record(self.last_batch as f64);
        self.ack(gathered)
    }

    /// The current file, or the next one if the batch does not fit. A batch larger than a file gets one of its own.
    async fn room_for(&mut self, bytes: u64) -> io::Result<&mut Room> {
        let next = match &self.room {
            None => Some(0),
            Some(room) if room.at > DATA_START && room.at + bytes > self.settings.file_bytes => Some(room.number + 1),
            Some(_) => None,
        };
        if let Some(number) = next {
            self.room = Some(self.space.take(number, self.last_batch < SMALL_BATCH).await?);
        }
        self.room.as_mut().ok_or_else(|| io::Error::other("no file to write in"))
    }

    /// Tells the owners, after a look at the marks. The look must come after the sync: see [`Volume::fence`].
    fn ack(&mut self, gathered: Gathered) -> io::Result<()> {
        let fenced = self.shared.volume.fenced(&*self.marks, gathered.owners.iter().map(|segment| segment.key))?;
        let Gathered { blocks, owners, bytes } = gathered;
        for ((block, segment), bytes) in blocks.into_iter().zip(owners).zip(bytes) {
            if fenced.contains(&segment.key) {
                segment.end(SegmentEnd::Fenced);
            } else {
                // An entry costs its handle too, however small it is.
                let weight = bytes + block.entries.len() * size_of::<Bytes>();
                segment.ack(block.first, block.entries);
                self.tail.push(segment.live.clone(), weight);
            }
        }
        Ok(())
    }

    fn fail(&mut self, error: &io::Error) {
        self.done = true;
        self.space.stop_zeroing();
        let volume = &self.shared.volume;
        tracing::error!(volume = %volume.dir.id, batch = self.seq, %error, "the volume stops after a failed write");
        metrics::counter!("woodpecker_volume_failures_total").increment(1);
        // As far as the disk still takes it: others must not believe what this batch left in the page cache.
        let stopped = self.marks.append(&Mark::Stopped { batch: self.seq }.to_bytes());
        if let Err(error) = stopped.and_then(|()| self.marks.sync_data()) {
            tracing::warn!(volume = %volume.dir.id, %error, "cannot mark the volume as stopped");
        }
        note_no_room(error, &self.shared.no_room);
        let reason = format!("volume {} at batch {}: {error}", volume.dir.id, self.seq);
        self.shared.fail(self.seq, &reason.into());
    }

    /// Gives back what was allocated ahead.
    async fn finish(mut self) {
        self.done = true;
        let volume = self.shared.volume.clone();
        let trimmed = match volume.finish() {
            Some((file, end)) => file.preallocate(end),
            None => Ok(()),
        };
        if let Err(error) = self.space.close().await.and(trimmed) {
            tracing::warn!(volume = %volume.dir.id, %error, "cannot give back the space of a closed volume");
        }
    }
}

impl Drop for VolumeWriter {
    fn drop(&mut self) {
        if !self.done {
            self.shared.fail(self.seq, &"its writer was dropped".into());
        }
    }
}

impl Tail {
    fn push(&mut self, live: Arc<Live>, bytes: usize) {
        self.bytes += bytes;
        self.blocks.push_back((live, bytes));
        while self.bytes > self.limit {
            let Some((live, bytes)) = self.blocks.pop_front() else { break };
            live.forget_oldest();
            self.bytes -= bytes;
        }
    }
}

/// Puts the appends of each segment together. What a segment that has ended had queued is dropped.
fn gather(appends: Vec<Append>) -> Gathered {
    let mut gathered = Gathered::default();
    let mut open: BTreeMap<SegmentKey, usize> = BTreeMap::new();
    for Append { segment, first, entries, bytes } in appends {
        if segment.has_ended() {
            continue;
        }
        let at = open.get(&segment.key).copied();
        let room = at.and_then(|at| Some((gathered.blocks.get_mut(at)?, gathered.bytes.get_mut(at)?)));
        match room.filter(|(_, filled)| **filled + bytes <= BLOCK_BYTES) {
            Some((block, filled)) => {
                block.entries.extend(entries);
                *filled += bytes;
            }
            None => {
                open.insert(segment.key, gathered.blocks.len());
                gathered.blocks.push(Block { key: segment.key, first, entries });
                gathered.owners.push(segment);
                gathered.bytes.push(bytes);
            }
        }
    }
    gathered
}
