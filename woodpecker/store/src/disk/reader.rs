//! Reading one segment of a local volume.
//!
//! A read of a file takes whole blocks, since only those have checksums, and so usually more than was asked for. Reads
//! that meet in one such run share it: it is read, checked and taken apart once.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use woodpecker_base::{clock::Clock, random::Random};
use woodpecker_core::ids::SegmentKey;

use crate::backend::{SegmentReader, StoreError};

use super::{
    blocking,
    segment::{Live, fitting},
    volume::{Run, Volume},
};

/// A read of a file takes so much, and the rest of its last block: small reads of it share what that costs, and large ones
/// leave something for those that go on at the same time.
const READ_BYTES: u64 = 1 << 20;
/// Runs that a reader keeps at most, in case that nobody asks for the rest of them.
const RUNS: usize = 16;
/// How often a segment that another process writes is looked at: the pause doubles while nothing comes.
const POLL: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

/// The reading side.
#[derive(Debug)]
pub(super) struct Reader {
    key: SegmentKey,
    /// The first batch of the volume that may hold a block of it.
    from_batch: u64,
    /// How many entries the segment has, if that is final.
    end: Option<u64>,
    /// The segment as its writer in this process has it.
    live: Option<Arc<Live>>,
    volume: Arc<Volume>,
    clock: Clock,
    random: Random,
    kept: Arc<Mutex<Kept>>,
}

/// What a reader keeps from one call to the next.
#[derive(Debug, Default)]
struct Kept {
    /// What was read from files and is not all taken yet, or is being read. No block is in two of them.
    runs: VecDeque<Loading>,
    /// An entry, and the file it was in.
    found: (u64, u64),
    /// How many entries are known to be durable, of a segment that another process may be writing.
    durable: u64,
}

type Loaded = Option<Result<Arc<[Bytes]>, StoreError>>;

/// A run of blocks that was read, or is being read by whoever asked first.
#[derive(Debug, Clone)]
struct Loading {
    first: u64,
    next: u64,
    /// Entries that nobody has taken yet: with the last of them it is let go.
    left: u64,
    entries: watch::Receiver<Loaded>,
}

impl Kept {
    fn covering(&self, from: u64) -> Option<Loading> {
        self.runs.iter().find(|run| (run.first..run.next).contains(&from)).cloned()
    }

    /// The run as whoever reads it has it. With a sender for who is to read it, unless what was wanted of it is being
    /// read already. It ends where another one begins.
    fn start(&mut self, run: &mut Run, from: u64) -> (Loading, Option<watch::Sender<Loaded>>) {
        self.found = (run.first(), run.number);
        if let Some(known) = self.covering(from) {
            return (known, None);
        }
        if let Some(next) = self.runs.iter().map(|known| known.first).filter(|first| *first > from).min() {
            run.end_before(next);
        }
        let (first, next) = (run.first(), run.next());
        let (loaded, entries) = watch::channel(None);
        let loading = Loading { first, next, left: next - first, entries };
        if self.runs.len() == RUNS {
            self.runs.pop_front();
        }
        self.runs.push_back(loading.clone());
        (loading, Some(loaded))
    }

    /// So many entries of the run were taken.
    fn took(&mut self, run: &Loading, count: usize) {
        if let Some(at) = self.runs.iter().position(|known| known.entries.same_channel(&run.entries))
            && let Some(known) = self.runs.get_mut(at)
        {
            known.left = known.left.saturating_sub(count as u64);
            if known.left == 0 {
                self.runs.remove(at);
            }
        }
    }
}

impl Reader {
    pub(super) fn new(
        (key, from_batch): (SegmentKey, u64),
        end: Option<u64>,
        live: Option<Arc<Live>>,
        volume: Arc<Volume>,
        clock: Clock,
        random: Random,
    ) -> Self {
        Self { key, from_batch, end, live, volume, clock, random, kept: Arc::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        locked(&self.kept)
    }

    /// How many entries may be read, as far as is known without looking at the disk.
    fn known(&self) -> u64 {
        match (self.end, &self.live) {
            (Some(end), _) => end,
            (None, Some(live)) => live.acked.get(),
            (None, None) => self.kept().durable,
        }
    }

    /// Whether only the disk can say if there is more.
    fn polls(&self) -> bool {
        self.end.is_none() && self.live.is_none()
    }

    async fn poll(&self) -> Result<u64, StoreError> {
        let (volume, key, from_batch) = (self.volume.clone(), self.key, self.from_batch);
        let known = self.kept().durable;
        let durable = blocking(&self.volume.dir.disk, move || volume.durable(key, from_batch, known)).await?;
        let mut kept = self.kept();
        kept.durable = kept.durable.max(durable);
        Ok(kept.durable)
    }

    async fn read_file(&self, from: u64, limit: u64, max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        loop {
            let known = self.kept().covering(from);
            let mut run = match known {
                Some(run) => run,
                None => self.load(from).await?,
            };
            // Who was reading it may be gone without an answer.
            let loaded = run.entries.wait_for(Option::is_some).await.ok().and_then(|loaded| loaded.clone());
            match loaded {
                Some(Ok(entries)) => {
                    let skip = usize::try_from(from - run.first).unwrap_or(usize::MAX);
                    let take = usize::try_from(limit - from).unwrap_or(usize::MAX);
                    let taken = fitting(entries.iter().skip(skip).take(take), max_bytes);
                    self.kept().took(&run, taken.len());
                    return Ok(taken);
                }
                failed => {
                    self.kept().runs.retain(|kept| !kept.entries.same_channel(&run.entries));
                    if let Some(Err(error)) = failed {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Reads the run with this entry, unless another call does so already.
    async fn load(&self, from: u64) -> Result<Loading, StoreError> {
        let (volume, key, from_batch) = (self.volume.clone(), self.key, self.from_batch);
        let kept = self.kept.clone();
        let load = move || {
            let found = locked(&kept).found;
            let hint = if from >= found.0 { found.1 } else { 0 };
            let mut run = volume.run(key, from_batch, from, READ_BYTES, hint)?;
            let (loading, loaded) = locked(&kept).start(&mut run, from);
            if let Some(loaded) = loaded {
                // Sent also when nobody waits yet.
                loaded.send_replace(Some(run.read(key).map(Arc::from)));
            }
            Ok(loading)
        };
        blocking(&self.volume.dir.disk, load).await
    }
}

fn locked(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl SegmentReader for Reader {
    async fn read(&self, from: u64, max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        self.read_before(from, u64::MAX, max_bytes).await
    }

    async fn read_before(&self, from: u64, limit: u64, max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        let mut known = self.known();
        if from >= known && self.polls() {
            known = self.poll().await?;
        }
        if from >= known {
            // A reader that waits keeps no data.
            self.kept().runs.clear();
            return Ok(Vec::new());
        }
        let limit = limit.min(known);
        if from >= limit {
            return Ok(Vec::new());
        }
        match self.live.as_ref().and_then(|live| live.remembered(from, limit, max_bytes)) {
            Some(entries) => Ok(entries),
            None => self.read_file(from, limit, max_bytes).await,
        }
    }

    async fn tail(&self) -> Result<u64, StoreError> {
        if self.polls() { self.poll().await } else { Ok(self.known()) }
    }

    async fn readable(&self, from: u64) {
        if self.known() > from {
            return;
        }
        match (self.end, &self.live) {
            // Nothing comes after the end.
            (Some(_), _) => std::future::pending().await,
            (None, Some(live)) => live.acked.above(from).await,
            (None, None) => {
                let (mut pause, longest) = POLL;
                // An error is for `read` to tell.
                while self.poll().await.is_ok_and(|durable| durable <= from) {
                    // Spread, so that many readers of one volume do not look at once.
                    let spread = pause.mul_f64(0.75 + 0.5 * self.random.fork().f64());
                    self.clock.sleep(spread).await;
                    pause = (pause * 2).min(longest);
                }
            }
        }
    }
}
