//! The object store as volumes see it: numbered objects that are written once, listed, and read in parts.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future::join_all};
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use woodpecker_base::{
    backoff::Backoff,
    clock::{Clock, Instant},
    random::Random,
};
use woodpecker_core::ids::VolumeId;

use self::{cache::Cache, pace::Pace};
use super::ObjectSettings;
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
/// Attempts of one read, each with the client's own retries inside.
const READ_ATTEMPTS: u32 = 3;
/// Pauses between attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// What a request is given on top of [`ObjectSettings::request_timeout`] for what it moves.
const SLOWEST_BYTES_PER_SECOND: u64 = 1 << 20;

/// One process's access to the volumes in an object store.
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
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
        Self { store, settings, clock, random, writer, cache, pace }
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
                Some(bytes) => bytes,
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

    async fn page(&self, volume: VolumeId, from: u64) -> Result<Vec<u64>, StoreError> {
        self.list(volume, from, PAGE).await
    }

    /// Up to `limit` numbers in use from `from` on, sorted; which ones, if there are more, is up to the store.
    async fn list(&self, volume: VolumeId, from: u64, limit: usize) -> Result<Vec<u64>, StoreError> {
        let directory = directory(volume);
        self.retry(&format!("list of volume {volume}"), 0, || async {
            let listed = match from.checked_sub(1) {
                Some(before) => self.store.list_with_offset(Some(&directory), &path(volume, before)),
                None => self.store.list(Some(&directory)),
            };
            let names = listed.take(limit).map_ok(|meta| meta.location).try_collect::<Vec<_>>().await?;
            let mut seqs: Vec<_> = names.iter().filter_map(seq_of).filter(|seq| *seq >= from).collect();
            seqs.sort_unstable();
            Ok(seqs)
        })
        .await
    }

    async fn range(&self, volume: VolumeId, seq: u64, start: u64, end: u64) -> Result<Bytes, StoreError> {
        let path = path(volume, seq);
        let read = self.retry(path.as_ref(), end - start, || self.store.get_range(&path, start..end)).await;
        // Of an empty object no range can be read, and stores do not say so in one way.
        if let Err(StoreError::Unavailable(_)) = read
            && let Ok(Ok(meta)) = self.clock.timeout(self.time_for(0), self.store.head(&path)).await
            && meta.size <= start
        {
            let detail = format!("it ends before byte {start}");
            return Err(StoreError::Corrupt { what: path.to_string(), detail });
        }
        read
    }

    /// Removes objects; what is gone already is no error.
    pub async fn delete(&self, volume: VolumeId, seqs: Vec<u64>) -> Result<(), StoreError> {
        self.retry(&format!("delete in volume {volume}"), 0, || async {
            let paths = futures::stream::iter(seqs.clone()).map(move |seq| Ok(path(volume, seq))).boxed();
            let mut deleted = self.store.delete_stream(paths);
            while let Some(result) = deleted.next().await {
                match result {
                    Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
        .await
    }

    /// Runs a request that may be repeated, a few times, each within its time.
    async fn retry<T, F>(&self, what: &str, bytes: u64, request: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let mut backoff = self.backoff();
        let mut attempt = 1;
        loop {
            let failure: Arc<str> = match self.clock.timeout(self.time_for(bytes), request()).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(object_store::Error::NotFound { .. })) => {
                    return Err(StoreError::NotFound { what: what.to_owned() });
                }
                Ok(Err(error)) => format!("{what}: {error}").into(),
                Err(_) => format!("{what}: no answer within {:?}", self.time_for(bytes)).into(),
            };
            if attempt == READ_ATTEMPTS {
                return Err(StoreError::Unavailable(failure));
            }
            attempt += 1;
            backoff.wait().await;
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(self.clock.clone(), &self.random, FIRST_PAUSE, LONGEST_PAUSE)
    }

    /// How long one request may take that moves this many bytes.
    fn time_for(&self, bytes: u64) -> Duration {
        self.settings.request_timeout + Duration::from_millis(bytes.saturating_mul(1000) / SLOWEST_BYTES_PER_SECOND)
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket").field("store", &format_args!("{}", self.store)).finish_non_exhaustive()
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
