//! The object store as volumes see it: numbered objects that are written once, listed, and read in parts.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::future::join_all;
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use woodpecker_base::{
    clock::{Clock, Instant},
    random::Random,
};
use woodpecker_core::ids::VolumeId;

use self::{cache::Cache, pace::Pace};
use super::{
    ObjectSettings,
    requests::{Operation, Requests},
};
use crate::{
    backend::StoreError,
    format::{BatchHead, BlockEntry, FormatError, HEADER_BYTES, Header},
};

mod cache;
mod pace;
mod put;

pub use self::{
    cache::{Entries, Head},
    put::Put,
};

/// How many names a store lists at once.
const PAGE: usize = 1000;
/// Read of an object whose index length is not known yet; it holds all of a small object.
const HEAD_GUESS: u64 = 16 << 10;

/// One process's access to the volumes in an object store.
#[derive(Debug)]
pub struct Bucket {
    pub requests: Requests,
    pub settings: ObjectSettings,
    pub clock: Clock,
    pub random: Random,
    /// Names this process in what it writes.
    pub writer: u128,
    cache: Cache,
    pace: Mutex<Pace>,
}

impl Bucket {
    pub fn new(store: Arc<dyn ObjectStore>, settings: ObjectSettings, clock: Clock, random: Random) -> Self {
        let cache = Cache::new(settings.cache_bytes);
        let pace = Mutex::new(Pace::new(settings.puts_per_second, clock.now()));
        let writer = random.u128();
        let requests = Requests::new(store, clock.clone(), random.clone(), settings.request_timeout);
        Self { requests, settings, clock, random, writer, cache, pace }
    }

    /// Takes the right to start a PUT, or says when to ask again.
    pub fn may_put(&self) -> Result<(), Instant> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner).take(self.clock.now())
    }

    /// What is stored under this number; `None` when nothing is. Objects never change, so the answer is kept.
    pub async fn head(&self, volume: VolumeId, seq: u64) -> Result<Option<Arc<Head>>, StoreError> {
        let load = self.cache.head(volume, seq, async { self.load_head(volume, seq).await });
        match load.await {
            Ok(head) => Ok(Some(head)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn load_head(&self, volume: VolumeId, seq: u64) -> Result<Head, StoreError> {
        let mut bytes = self.range(volume, seq, 0, HEAD_GUESS).await?;
        let mut decoded = BatchHead::decode(&bytes);
        if let Err(FormatError::Truncated { need, .. }) = decoded
            && bytes.len() as u64 == HEAD_GUESS
        {
            bytes = self.range(volume, seq, 0, need).await?;
            decoded = BatchHead::decode(&bytes);
        }
        let head = decoded.map_err(|error| corrupt(volume, seq, &error))?;
        check_place(&head.header, volume, seq)?;
        Ok(Head::new(head, bytes))
    }

    /// The entries of one block.
    pub async fn block(&self, head: &Head, block: &BlockEntry) -> Result<Entries, StoreError> {
        let (volume, seq) = (head.batch.header.id.volume, head.batch.header.id.seq);
        let load = async {
            let bytes = match head.at_hand(block) {
                // What is kept must not hold the whole front of the object.
                Some(bytes) => Bytes::copy_from_slice(&bytes),
                None => {
                    let start = head.batch.header.head_len() + u64::from(block.offset);
                    self.range(volume, seq, start, start + u64::from(block.length)).await?
                }
            };
            block.decode(&bytes).map(Entries::new).map_err(|error| corrupt(volume, seq, &error))
        };
        self.cache.block(volume, seq, block.offset, load).await
    }

    /// Keeps what was just written, so that readers in this process need no request.
    pub fn keep(&self, head: Head, blocks: Vec<(BlockEntry, Entries)>) {
        self.cache.keep(head, blocks);
    }

    /// The header stored under this number, as it is now.
    async fn header_now(&self, volume: VolumeId, seq: u64) -> Result<Header, StoreError> {
        let bytes = self.range(volume, seq, 0, HEADER_BYTES as u64).await?;
        let header = Header::decode(&bytes).map_err(|error| corrupt(volume, seq, &error))?;
        check_place(&header, volume, seq)?;
        Ok(header)
    }

    /// The largest number in use from `from` on, and every number in use that is larger than it minus `window`.
    /// Takes few requests however many objects there are: it looks ahead in doubling steps, in parallel.
    pub async fn newest(
        &self,
        volume: VolumeId,
        from: u64,
        window: u64,
    ) -> Result<Option<(u64, Vec<u64>)>, StoreError> {
        let mut low = from;
        let mut page = self.page(volume, low).await?;
        let Some(mut newest) = page.last().copied() else { return Ok(None) };
        while page.len() >= PAGE {
            let ahead = (0..12).map(|step| self.page(volume, newest.saturating_add((PAGE as u64) << step)));
            for (step, found) in join_all(ahead).await.into_iter().enumerate() {
                let found = found?;
                if let Some(last) = found.last().copied() {
                    low = newest.saturating_add((PAGE as u64) << step);
                    page = found;
                    newest = newest.max(last);
                }
            }
            if page.len() >= PAGE {
                low = newest + 1;
                page = self.page(volume, low).await?;
                newest = page.last().copied().unwrap_or(newest);
            }
        }
        let window_start = newest.saturating_sub(window);
        if low > window_start {
            page = self.list(volume, window_start.max(from), usize::MAX).await?;
            newest = page.last().copied().unwrap_or(newest);
        }
        page.retain(|seq| *seq >= newest.saturating_sub(window));
        Ok(Some((newest, page)))
    }

    /// Every volume that has an object.
    pub async fn volumes(&self) -> Result<Vec<VolumeId>, StoreError> {
        let top = Path::from("volumes");
        let list = || self.requests.store.list_with_delimiter(Some(&top));
        let found = self.requests.retry(Operation::List, "list of volumes", 0, list).await?;
        let id = |path: &Path| u128::from_str_radix(path.filename().filter(|name| name.len() == 32)?, 16).ok();
        Ok(found.common_prefixes.iter().filter_map(id).map(VolumeId).collect())
    }

    /// When an object was stored, in milliseconds since the Unix epoch, by the store's clock.
    pub async fn stored_ms(&self, volume: VolumeId, seq: u64) -> Result<u64, StoreError> {
        let path = path(volume, seq);
        let meta = self.requests.retry(Operation::Head, path.as_ref(), 0, || self.requests.store.head(&path)).await?;
        Ok(u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0))
    }

    /// The smallest number in use.
    pub async fn lowest(&self, volume: VolumeId) -> Result<Option<u64>, StoreError> {
        Ok(self.page(volume, 0).await?.first().copied())
    }

    /// Removes every object below a number; says how many there were.
    pub async fn delete_below(&self, volume: VolumeId, below: u64) -> Result<u64, StoreError> {
        let mut count = 0;
        loop {
            let mut seqs = self.listed(volume, 0, PAGE).await?;
            // A file system lists in no order: those below may be anywhere.
            if seqs.len() == PAGE && !seqs.is_sorted() {
                seqs = self.listed(volume, 0, usize::MAX).await?;
            }
            let more = seqs.len() == PAGE;
            seqs.retain(|seq| *seq < below);
            if seqs.is_empty() {
                break;
            }
            count += seqs.len() as u64;
            self.delete(volume, seqs).await?;
            if !more {
                break;
            }
        }
        Ok(count)
    }

    async fn page(&self, volume: VolumeId, from: u64) -> Result<Vec<u64>, StoreError> {
        self.list(volume, from, PAGE).await
    }

    /// Up to `limit` numbers in use from `from` on, sorted; which ones, if there are more, is up to the store.
    async fn list(&self, volume: VolumeId, from: u64, limit: usize) -> Result<Vec<u64>, StoreError> {
        let mut seqs = self.listed(volume, from, limit).await?;
        seqs.sort_unstable();
        Ok(seqs)
    }

    /// The same, as the store lists them.
    async fn listed(&self, volume: VolumeId, from: u64, limit: usize) -> Result<Vec<u64>, StoreError> {
        let offset = from.checked_sub(1).map(|before| path(volume, before));
        let found = self.requests.list(&directory(volume), offset.as_ref(), limit).await?;
        Ok(found.iter().filter_map(|meta| seq_of(&meta.location)).filter(|seq| *seq >= from).collect())
    }

    async fn range(&self, volume: VolumeId, seq: u64, start: u64, end: u64) -> Result<Bytes, StoreError> {
        self.requests.range(&path(volume, seq), start, end).await
    }

    /// Removes objects; what is gone already is no error.
    pub async fn delete(&self, volume: VolumeId, seqs: Vec<u64>) -> Result<(), StoreError> {
        let paths = seqs.into_iter().map(|seq| path(volume, seq)).collect();
        self.requests.delete(&format!("delete in volume {volume}"), paths).await
    }
}

fn directory(volume: VolumeId) -> Path {
    Path::from(format!("volumes/{volume}"))
}

fn path(volume: VolumeId, seq: u64) -> Path {
    Path::from(format!("volumes/{volume}/{seq:020}"))
}

/// The number in an object's name; what is named otherwise is not ours.
fn seq_of(path: &Path) -> Option<u64> {
    path.filename().filter(|name| name.len() == 20)?.parse().ok()
}

fn check_place(header: &Header, volume: VolumeId, seq: u64) -> Result<(), StoreError> {
    if header.id.volume == volume && header.id.seq == seq {
        return Ok(());
    }
    let detail = format!("it says it is object {} of volume {}", header.id.seq, header.id.volume);
    Err(StoreError::Corrupt { what: path(volume, seq).to_string(), detail })
}

fn corrupt(volume: VolumeId, seq: u64, error: &FormatError) -> StoreError {
    StoreError::Corrupt { what: path(volume, seq).to_string(), detail: error.to_string() }
}
