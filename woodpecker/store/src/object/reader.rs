//! Reading a segment: find its blocks in the volume's objects, then load them in parallel.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tokio::sync::Mutex;
use woodpecker_base::tasks::Tasks;
use woodpecker_core::ids::SegmentKey;

use self::scan::{Found, Scan};
use super::{segment::Segment, view::View, volume::Volume};
use crate::backend::{SegmentReader, StoreError};

mod scan;

/// Blocks loaded in parallel.
const PARALLEL: usize = 8;
/// Bytes fetched ahead of a reader that goes forward.
const READ_AHEAD: usize = 8 << 20;
/// First and longest wait between looks at a volume that another process writes.
const POLL: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

#[derive(Debug, Clone)]
pub struct Reader {
    inner: Arc<Inner>,
    tasks: Tasks,
}

#[derive(Debug)]
struct Inner {
    view: Arc<View>,
    key: SegmentKey,
    from_batch: u64,
    end: u64,
    /// The volume, when this process writes it.
    volume: Option<Arc<Volume>>,
    scan: Mutex<Scan>,
    fetching_ahead: AtomicBool,
}

impl Reader {
    pub fn new(
        view: Arc<View>,
        volume: Option<Arc<Volume>>,
        key: SegmentKey,
        from_batch: u64,
        end: Option<u64>,
        tasks: Tasks,
    ) -> Self {
        let inner = Inner {
            view,
            key,
            from_batch,
            end: end.unwrap_or(u64::MAX),
            volume,
            scan: Mutex::new(Scan::at(from_batch, 0)),
            fetching_ahead: AtomicBool::new(false),
        };
        Self { inner: Arc::new(inner), tasks }
    }

    /// Loads what comes next while the caller works on what it got.
    fn fetch_ahead(&self, from: u64) {
        if self.inner.fetching_ahead.swap(true, Ordering::Relaxed) {
            return;
        }
        let inner = Arc::clone(&self.inner);
        self.tasks.spawn_until_stopped(async move {
            // What fails here fails again, and is told, when it is read.
            let _ = Box::pin(inner.load(from, READ_AHEAD, true)).await;
            inner.fetching_ahead.store(false, Ordering::Relaxed);
        });
    }
}

impl Inner {
    /// The segment, if it is being written by this process now.
    fn live(&self) -> Option<Arc<Segment>> {
        self.volume.as_ref()?.segment(self.key).filter(|segment| !segment.is_stopped())
    }

    /// How many entries are durable, if this process writes the segment.
    fn durable_here(&self) -> Option<u64> {
        self.live().map(|segment| segment.progress().borrow().durable)
    }

    /// Blocks that hold the entries from `from` on, at least so many bytes if there are.
    async fn find(&self, from: u64, bytes: usize, known_only: bool) -> Result<Vec<Found>, StoreError> {
        if from >= self.end || self.durable_here().is_some_and(|durable| from >= durable) {
            return Ok(Vec::new());
        }
        let mut scan = self.scan.lock().await;
        let hint = self.live().and_then(|segment| segment.place_before(from));
        scan.place(from, hint, self.from_batch);
        let mut looked = known_only;
        while !scan.covers(from, bytes) && scan.next() < self.end {
            let limit = self.view.known().limit();
            if scan.seq() < limit {
                scan.step(&self.view, self.key, from, limit).await?;
            } else if looked || scan.covers(from, 0) {
                break;
            } else {
                looked = true;
                self.view.refresh(self.from_batch, Duration::ZERO).await?;
            }
        }
        Ok(scan.found(from, bytes))
    }

    /// The entries in those blocks, each block with the number of its first entry.
    async fn load(&self, from: u64, bytes: usize, known_only: bool) -> Result<Vec<(u64, Arc<[Bytes]>)>, StoreError> {
        let found = self.find(from, bytes, known_only).await?;
        let bucket = &self.view.bucket;
        futures::stream::iter(found)
            .map(|Found { seq, block }| async move {
                let head = bucket.head(self.view.volume, seq).await?;
                let head = head.ok_or_else(|| StoreError::NotFound { what: format!("object {seq}") })?;
                Ok((block.first, bucket.block(&head, &block).await?.all))
            })
            .buffered(PARALLEL)
            .try_collect()
            .await
    }

    /// Waits for news; says whether there may be some.
    async fn wait(&self, from: u64, poll: &mut Duration) {
        let known = self.view.known();
        if known.fence.is_some_and(|fence| fence <= known.end) {
            return std::future::pending().await;
        }
        if self.view.is_pushed() {
            return self.view.pushed_news(known.limit()).await;
        }
        let clock = &self.view.bucket.clock;
        clock.sleep(*poll).await;
        *poll = (*poll * 2).min(POLL.1);
        match self.view.refresh(self.from_batch, *poll / 4).await {
            Ok(news) if news == known => {}
            Ok(_) => *poll = POLL.0,
            Err(error) => tracing::debug!(%error, from, "a volume cannot be listed; trying again"),
        }
    }
}

#[async_trait]
impl SegmentReader for Reader {
    async fn read(&self, from: u64, max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut next = from;
        for (first, block) in self.inner.load(from, max_bytes, false).await? {
            for (number, entry) in (first..self.inner.end).zip(block.iter()) {
                if number < next {
                    continue;
                }
                if !entries.is_empty() && bytes + entry.len() > max_bytes {
                    self.fetch_ahead(next);
                    return Ok(entries);
                }
                bytes += entry.len();
                entries.push(entry.clone());
                next = number + 1;
            }
        }
        if !entries.is_empty() && next < self.inner.end {
            self.fetch_ahead(next);
        }
        Ok(entries)
    }

    async fn tail(&self) -> Result<u64, StoreError> {
        let inner = &self.inner;
        if inner.end < u64::MAX {
            return Ok(inner.end);
        }
        if let Some(durable) = inner.durable_here() {
            return Ok(durable);
        }
        inner.view.refresh(inner.from_batch, Duration::ZERO).await?;
        let known = inner.view.look_for_fence().await?;
        inner.view.entries_below(inner.key, inner.from_batch, known.limit()).await
    }

    async fn readable(&self, from: u64) {
        let inner = &self.inner;
        if from >= inner.end {
            return std::future::pending().await;
        }
        let mut poll = POLL.0;
        loop {
            if let Some(mut progress) = inner.live().map(|segment| segment.progress()) {
                let news = progress.wait_for(|progress| progress.durable > from || progress.stopped).await;
                if news.is_ok_and(|progress| progress.durable > from) {
                    return;
                }
                continue;
            }
            match inner.find(from, 0, true).await {
                Ok(found) if found.is_empty() => inner.wait(from, &mut poll).await,
                // An error is the reader's to see.
                Ok(_) | Err(_) => return,
            }
        }
    }
}
