//! Segments in memory: as durable as the [`MemoryMedium`] they share. For tests and the simulation.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Notify, watch};
use woodpecker_base::tasks::Tasks;
use woodpecker_core::ids::{Epoch, SegmentKey, VolumeId};

use crate::backend::{
    Backend, Placement, SegmentEnd, SegmentOwner, SegmentReader, SegmentWriter, StoreError, volume_of,
};

const MAX_APPEND_BYTES: usize = 32 << 20;
/// More than any caller should have in flight; beyond it appends are refused rather than memory eaten.
const MAX_QUEUED_BYTES: usize = 1 << 30;

/// What outlives a [`MemoryBackend`], as a disk outlives a process. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryMedium {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    volumes: u128,
    segments: BTreeMap<(VolumeId, SegmentKey), Stored>,
}

struct Stored {
    entries: Vec<Bytes>,
    fenced: bool,
    /// The number of entries, to wake readers.
    count: watch::Sender<u64>,
}

impl Default for Stored {
    fn default() -> Self {
        Self { entries: Vec::new(), fenced: false, count: watch::Sender::new(0) }
    }
}

impl MemoryMedium {
    /// An empty medium.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemoryMedium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryMedium").field("segments", &self.lock().segments.len()).finish()
    }
}

/// One process's view of a [`MemoryMedium`]: a volume with one writer task, which makes everything queued durable at
/// once and then acks it in order.
#[derive(Debug)]
pub struct MemoryBackend {
    medium: MemoryMedium,
    volume: VolumeId,
    queue: Arc<Queue>,
    /// Closes when the writer task has ended.
    writer: watch::Receiver<()>,
}

impl MemoryBackend {
    /// A new volume on `medium`. Its writer runs in `tasks`; what is queued when they stop is lost, as in a crash.
    #[must_use]
    pub fn new(medium: MemoryMedium, tasks: &Tasks) -> Self {
        let volume = {
            let mut state = medium.lock();
            state.volumes += 1;
            VolumeId(state.volumes)
        };
        let queue = Arc::new(Queue::default());
        let (running, writer) = watch::channel(());
        let (written, todo) = (medium.clone(), queue.clone());
        tasks.spawn_until_stopped(async move {
            write(written, volume, todo).await;
            drop(running);
        });
        Self { medium, volume, queue, writer }
    }
}

impl Drop for MemoryBackend {
    fn drop(&mut self) {
        self.queue.close();
    }
}

#[derive(Debug, Default)]
struct Queue {
    pending: Mutex<Pending>,
    /// Something was queued, or the queue closed.
    work: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    appends: VecDeque<Append>,
    bytes: usize,
    closed: bool,
}

#[derive(Debug)]
struct Append {
    segment: Arc<Segment>,
    entries: Vec<Bytes>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.lock().closed = true;
        self.work.notify_one();
    }
}

/// Makes what is queued durable until the queue is closed and empty.
async fn write(medium: MemoryMedium, volume: VolumeId, queue: Arc<Queue>) {
    loop {
        let (appends, closed) = {
            let mut pending = queue.lock();
            pending.bytes = 0;
            (std::mem::take(&mut pending.appends), pending.closed)
        };
        if !appends.is_empty() {
            for append in appends {
                store(&medium, volume, append);
            }
            tokio::task::yield_now().await;
        } else if closed {
            return;
        } else {
            queue.work.notified().await;
        }
    }
}

/// Stores one append and tells its owner, outside the lock. A fence that comes between the two counts the entries, so
/// the ack is still true.
fn store(medium: &MemoryMedium, volume: VolumeId, append: Append) {
    let Append { segment, entries } = append;
    let stored = {
        let mut state = medium.lock();
        // A segment that was deleted has no writer any more, just as one that was fenced.
        state.segments.get_mut(&(volume, segment.key)).filter(|stored| !stored.fenced).map(|stored| {
            stored.entries.extend(entries);
            (stored.entries.len() as u64, stored.count.clone())
        })
    };
    match stored {
        Some((next, count)) => {
            count.send_replace(next);
            segment.owner.acked(next);
        }
        None => segment.end(SegmentEnd::Fenced),
    }
}

/// An open segment: what its writer handle and the writer task share.
#[derive(Debug)]
struct Segment {
    key: SegmentKey,
    placement: Placement,
    owner: Arc<dyn SegmentOwner>,
    numbering: Mutex<Numbering>,
    queue: Arc<Queue>,
}

#[derive(Debug, Default)]
struct Numbering {
    next: u64,
    ended: bool,
}

impl Segment {
    fn numbering(&self) -> MutexGuard<'_, Numbering> {
        self.numbering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, end: SegmentEnd) {
        if !std::mem::replace(&mut self.numbering().ended, true) {
            self.owner.ended(end);
        }
    }
}

#[derive(Debug)]
struct Writer(Arc<Segment>);

impl SegmentWriter for Writer {
    fn placement(&self) -> &Placement {
        &self.0.placement
    }

    fn append(&self, entries: Vec<Bytes>) -> Result<u64, StoreError> {
        let bytes: usize = entries.iter().map(Bytes::len).sum();
        if bytes > MAX_APPEND_BYTES {
            return Err(StoreError::TooLarge { bytes, limit: MAX_APPEND_BYTES });
        }
        let mut numbering = self.0.numbering();
        if numbering.ended {
            return Err(StoreError::Ended);
        }
        let first = numbering.next;
        if entries.is_empty() {
            return Ok(first);
        }
        let mut pending = self.0.queue.lock();
        if pending.closed {
            return Err(StoreError::Ended);
        }
        if pending.bytes > 0 && pending.bytes + bytes > MAX_QUEUED_BYTES {
            return Err(StoreError::Unavailable("the volume's queue is full".into()));
        }
        numbering.next += entries.len() as u64;
        pending.bytes += bytes;
        pending.appends.push_back(Append { segment: self.0.clone(), entries });
        drop(pending);
        self.0.queue.work.notify_one();
        Ok(first)
    }
}

#[derive(Debug)]
struct Reader {
    medium: MemoryMedium,
    at: (VolumeId, SegmentKey),
    end: u64,
    count: watch::Receiver<u64>,
}

#[async_trait]
impl SegmentReader for Reader {
    async fn read(&self, from: u64, max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        let state = self.medium.lock();
        let Some(stored) = state.segments.get(&self.at) else {
            return Err(StoreError::NotFound { what: format!("segment {}", self.at.1) });
        };
        let known = self.end.min(stored.entries.len() as u64);
        let mut bytes = 0;
        let mut entries = Vec::new();
        for number in from..known {
            let Some(entry) = usize::try_from(number).ok().and_then(|at| stored.entries.get(at)) else { break };
            if !entries.is_empty() && bytes + entry.len() > max_bytes {
                break;
            }
            bytes += entry.len();
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    async fn tail(&self) -> Result<u64, StoreError> {
        Ok(self.end.min(*self.count.borrow()))
    }

    async fn readable(&self, from: u64) {
        let gone = self.count.clone().wait_for(|count| from < self.end.min(*count)).await.is_err();
        // The segment was deleted: a read will say so.
        if gone && from >= self.end {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl Backend for MemoryBackend {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn max_append_bytes(&self) -> usize {
        MAX_APPEND_BYTES
    }

    async fn create(
        &self,
        key: SegmentKey,
        _epoch: Epoch,
        owner: Arc<dyn SegmentOwner>,
    ) -> Result<Arc<dyn SegmentWriter>, StoreError> {
        if self.queue.lock().closed {
            return Err(StoreError::Unavailable("the backend is closed".into()));
        }
        self.medium.lock().segments.entry((self.volume, key)).or_default();
        Ok(Arc::new(Writer(Arc::new(Segment {
            key,
            placement: Placement::Volume { volume: self.volume, from_batch: 0 },
            owner,
            numbering: Mutex::default(),
            queue: self.queue.clone(),
        }))))
    }

    async fn open(
        &self,
        key: SegmentKey,
        placement: &Placement,
        end: Option<u64>,
    ) -> Result<Arc<dyn SegmentReader>, StoreError> {
        let at = (volume_of(placement)?.0, key);
        let count = match self.medium.lock().segments.get(&at) {
            Some(stored) => stored.count.subscribe(),
            None => return Err(StoreError::NotFound { what: format!("segment {key}") }),
        };
        Ok(Arc::new(Reader { medium: self.medium.clone(), at, end: end.unwrap_or(u64::MAX), count }))
    }

    async fn fence(&self, key: SegmentKey, placement: &Placement, _epoch: Epoch) -> Result<u64, StoreError> {
        let volume = volume_of(placement)?.0;
        let mut state = self.medium.lock();
        let Some(stored) = state.segments.get_mut(&(volume, key)) else {
            return Err(StoreError::NotFound { what: format!("segment {key}") });
        };
        stored.fenced = true;
        Ok(stored.entries.len() as u64)
    }

    async fn delete(&self, key: SegmentKey, placement: &Placement) -> Result<(), StoreError> {
        self.medium.lock().segments.remove(&(volume_of(placement)?.0, key));
        Ok(())
    }

    async fn close(&self) {
        self.queue.close();
        let mut writer = self.writer.clone();
        while writer.changed().await.is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::Medium;

    #[derive(Debug, Default)]
    struct Memory {
        medium: MemoryMedium,
        processes: Mutex<Vec<(Arc<dyn Backend>, Tasks)>>,
    }

    #[async_trait]
    impl Medium for Memory {
        async fn process(&self) -> Arc<dyn Backend> {
            let tasks = Tasks::new();
            let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::new(self.medium.clone(), &tasks));
            self.processes.lock().unwrap().push((backend.clone(), tasks));
            backend
        }

        async fn kill(&self, process: Arc<dyn Backend>) {
            let processes = self.processes.lock().unwrap();
            let (_, tasks) = processes.iter().find(|(known, _)| Arc::ptr_eq(known, &process)).unwrap();
            tasks.stop();
        }
    }

    crate::conformance_tests!(Memory::default());
}
