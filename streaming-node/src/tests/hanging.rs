//! Storage that stops answering, or cannot be read, when a test says so; and closing all the same.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use streaming_types::StreamingCode;
use tokio::sync::watch;
use woodpecker_base::clock::Instant;
use woodpecker_core::ids::{Epoch, SegmentKey};
use woodpecker_store::backend::{Backend, Placement, SegmentOwner, SegmentReader, SegmentWriter, StoreError};

use super::harness::{VCHANNEL, World, code, eventually, insert, rw};
use crate::Settings;

/// How the medium takes what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writing {
    Works,
    /// No append is ever acked.
    Hangs,
    /// There is no room, which shows when something is appended.
    Full,
    /// No segment can be created.
    Away,
}

/// As the kernel says it.
pub const NO_SPACE: &str = "No space left on device (os error 28)";

/// A backend whose calls never return, and whose appends are never acked, while `hung` is true. While `unreadable` is, reads
/// fail.
#[derive(Debug)]
pub struct Hanging {
    pub inner: Arc<dyn Backend>,
    pub hung: watch::Receiver<bool>,
    pub unreadable: watch::Receiver<bool>,
    pub writing: watch::Receiver<Writing>,
}

#[derive(Debug)]
struct FailingReader {
    inner: Arc<dyn SegmentReader>,
    unreadable: watch::Receiver<bool>,
}

#[async_trait]
impl SegmentReader for FailingReader {
    async fn read(&self, from: u64, max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        if *self.unreadable.borrow() {
            return Err(StoreError::Unavailable("a test says so".into()));
        }
        self.inner.read(from, max_bytes).await
    }

    async fn tail(&self) -> Result<u64, StoreError> {
        self.inner.tail().await
    }

    async fn readable(&self, from: u64) {
        self.inner.readable(from).await;
    }
}

#[derive(Debug)]
struct HangingWriter {
    inner: Arc<dyn SegmentWriter>,
    hung: watch::Receiver<bool>,
    writing: watch::Receiver<Writing>,
    next: AtomicU64,
}

impl Hanging {
    async fn answers(&self) {
        let _ = self.hung.clone().wait_for(|hung| !hung).await;
    }
}

impl SegmentWriter for HangingWriter {
    fn placement(&self) -> &Placement {
        self.inner.placement()
    }

    fn append(&self, entries: Vec<Bytes>) -> Result<u64, StoreError> {
        let count = entries.len() as u64;
        let writing = *self.writing.borrow();
        if writing == Writing::Full {
            return Err(StoreError::Failed(NO_SPACE.into()));
        }
        if *self.hung.borrow() || writing == Writing::Hangs {
            return Ok(self.next.fetch_add(count, Ordering::SeqCst));
        }
        let first = self.inner.append(entries)?;
        self.next.store(first + count, Ordering::SeqCst);
        Ok(first)
    }
}

#[async_trait]
impl Backend for Hanging {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn max_append_bytes(&self) -> usize {
        self.inner.max_append_bytes()
    }

    async fn create(
        &self,
        key: SegmentKey,
        epoch: Epoch,
        owner: Arc<dyn SegmentOwner>,
    ) -> Result<Arc<dyn SegmentWriter>, StoreError> {
        self.answers().await;
        if *self.writing.borrow() == Writing::Away {
            return Err(StoreError::Unavailable("the bucket is not there".into()));
        }
        let inner = self.inner.create(key, epoch, owner).await?;
        let (hung, writing) = (self.hung.clone(), self.writing.clone());
        Ok(Arc::new(HangingWriter { inner, hung, writing, next: AtomicU64::new(0) }))
    }

    async fn open(
        &self,
        key: SegmentKey,
        placement: &Placement,
        end: Option<u64>,
    ) -> Result<Arc<dyn SegmentReader>, StoreError> {
        self.answers().await;
        let inner = self.inner.open(key, placement, end).await?;
        Ok(Arc::new(FailingReader { inner, unreadable: self.unreadable.clone() }))
    }

    async fn fence(&self, key: SegmentKey, placement: &Placement, epoch: Epoch) -> Result<u64, StoreError> {
        self.answers().await;
        self.inner.fence(key, placement, epoch).await
    }

    async fn delete(&self, key: SegmentKey, placement: &Placement) -> Result<(), StoreError> {
        self.answers().await;
        self.inner.delete(key, placement).await
    }

    async fn close(&self) {
        self.answers().await;
        self.inner.close().await;
    }
}

fn hasty() -> Settings {
    Settings { close_timeout: Duration::from_secs(2), ..Settings::default() }
}

/// What is stuck never ends.
fn in_time(world: &World, began: Instant) {
    let took = world.clock.now() - began;
    assert!(took < 4 * hasty().close_timeout, "{took:?}");
}

#[tokio::test]
async fn remove_ends_in_time_though_storage_and_metadata_hang() {
    let world = World::new();
    let node = world.node_with(1, hasty()).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    produce.append(insert(VCHANNEL, "kept")).await.unwrap();
    world.hung.send_replace(true);
    world.metadata.set_reachable(false);
    let sent = produce.send(insert(VCHANNEL, "in flight")).await;
    world.clock.sleep(Duration::from_millis(100)).await;

    let began = world.clock.now();
    assert_eq!(node.remove(&rw(1)).await, Ok(()));
    in_time(&world, began);
    let (answered, result) = produce.answer().await;
    assert_eq!((answered, result.unwrap_err().code()), (sent, StreamingCode::ChannelFenced));

    world.hung.send_replace(false);
    world.metadata.set_reachable(true);
    let next = world.node(2).await;
    next.assign(&rw(2)).await.unwrap();
    next.producer(&rw(2)).await.append(insert(VCHANNEL, "goes on")).await.unwrap();
}

#[tokio::test]
async fn shutdown_ends_in_time_though_storage_hangs() {
    let world = World::new();
    let node = world.node_with(1, hasty()).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    produce.append(insert(VCHANNEL, "kept")).await.unwrap();
    world.hung.send_replace(true);
    produce.send(insert(VCHANNEL, "in flight")).await;
    world.clock.sleep(Duration::from_millis(100)).await;
    let began = world.clock.now();
    let pchannel = rw(1);
    let (removed, ()) = futures::join!(node.remove(&pchannel), node.node.drain());
    assert_eq!(removed, Ok(()));
    in_time(&world, began);
}

#[tokio::test]
async fn open_that_hangs_is_given_up_at_once() {
    let world = World::new();
    let old = world.serving().await;
    let node = world.node_with(2, hasty()).await;
    world.hung.send_replace(true);
    let (wanted, took) = (rw(2), world.clock.now());
    let (assigned, removed) = futures::join!(node.assign(&wanted), async {
        world.clock.sleep(Duration::from_millis(200)).await;
        node.remove(&wanted).await
    });
    assert!(assigned.is_err());
    assert_eq!(removed, Ok(()));
    in_time(&world, took);
    world.hung.send_replace(false);
    // What the open had begun ends the old owner or leaves it; never two at a time.
    node.assign(&rw(3)).await.unwrap();
    eventually(&world, "the end of the old owner", async || old.status().await.is_empty().then_some(())).await;
    let refused = old.produce(&rw(1)).await.map(drop).unwrap_err();
    assert_eq!(code(&refused), StreamingCode::ChannelNotExist);
}
