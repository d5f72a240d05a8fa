//! What was read or written lately: heads of objects, and entries of blocks. Bounded in bytes.

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use quick_cache::Weighter;
use woodpecker_core::ids::VolumeId;

use crate::{
    backend::StoreError,
    cache,
    format::{BatchHead, BlockEntry},
};

/// Everything about an object but its blocks, and the blocks too as far as they came along.
#[derive(Debug)]
pub struct Head {
    pub batch: BatchHead,
    /// The front of the object.
    front: Bytes,
}

impl Head {
    /// `front` is what `batch` was decoded from, or longer.
    pub fn new(batch: BatchHead, front: Bytes) -> Self {
        Self { batch, front }
    }

    /// The block's bytes, if they came along.
    pub fn at_hand(&self, block: &BlockEntry) -> Option<Bytes> {
        let start = usize::try_from(self.batch.header.head_len() + u64::from(block.offset)).ok()?;
        let end = start.checked_add(usize::try_from(block.length).ok()?)?;
        (end <= self.front.len()).then(|| self.front.slice(start..end))
    }
}

/// A block's entries.
#[derive(Debug, Clone)]
pub struct Entries {
    pub all: Arc<[Bytes]>,
    bytes: u64,
}

impl Entries {
    pub fn new(all: Vec<Bytes>) -> Self {
        let bytes = all.iter().map(|entry| entry.len() + size_of::<Bytes>()).sum::<usize>();
        Self { all: all.into(), bytes: bytes as u64 }
    }
}

type HeadKey = (VolumeId, u64);
type BlockKey = (VolumeId, u64, u32);

/// Counts what a cached item takes, its place in the cache included.
#[derive(Debug, Clone)]
struct InBytes;

const PLACE: u64 = 128;

impl Weighter<HeadKey, Arc<Head>> for InBytes {
    fn weight(&self, _: &HeadKey, head: &Arc<Head>) -> u64 {
        PLACE + (head.front.len() + head.batch.blocks.len() * size_of::<BlockEntry>()) as u64
    }
}

impl Weighter<BlockKey, Entries> for InBytes {
    fn weight(&self, _: &BlockKey, entries: &Entries) -> u64 {
        PLACE + entries.bytes
    }
}

/// Loads of the same thing at the same time are one load.
#[derive(Debug)]
pub struct Cache {
    heads: cache::Cache<HeadKey, Arc<Head>, InBytes>,
    blocks: cache::Cache<BlockKey, Entries, InBytes>,
}

impl Cache {
    /// An eighth of `bytes` is for heads.
    pub fn new(bytes: u64) -> Self {
        let (heads, blocks) = (bytes / 8, bytes - bytes / 8);
        Self { heads: cache::cache(heads, 1 << 12, InBytes), blocks: cache::cache(blocks, 1 << 12, InBytes) }
    }

    pub async fn head(
        &self,
        volume: VolumeId,
        seq: u64,
        load: impl Future<Output = Result<Head, StoreError>>,
    ) -> Result<Arc<Head>, StoreError> {
        self.heads.get_or_insert_async(&(volume, seq), async { load.await.map(Arc::new) }).await
    }

    pub async fn block(
        &self,
        volume: VolumeId,
        seq: u64,
        offset: u32,
        load: impl Future<Output = Result<Entries, StoreError>>,
    ) -> Result<Entries, StoreError> {
        self.blocks.get_or_insert_async(&(volume, seq, offset), load).await
    }

    pub fn keep(&self, head: Head, blocks: Vec<(BlockEntry, Entries)>) {
        let id = head.batch.header.id;
        for (block, entries) in blocks {
            self.blocks.insert((id.volume, id.seq, block.offset), entries);
        }
        self.heads.insert((id.volume, id.seq), Arc::new(head));
    }
}
