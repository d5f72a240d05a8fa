//! A process that stops for ever at its n-th step: before or after something it does to the metadata store, the object
//! store or a medium.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result as StoreResult, path::Path,
};
use tokio::sync::watch;
use woodpecker_base::metadata::{Interference, MetadataError, MetadataStore, Txn, TxnOutcome};
use woodpecker_core::ids::{Epoch, Placement, SegmentKey};
use woodpecker_store::backend::{Backend, SegmentOwner, SegmentReader, SegmentWriter, StoreError};

/// Steps that may still be taken.
#[derive(Debug, Clone)]
pub struct Steps {
    left: Arc<AtomicI64>,
    stopped: watch::Sender<bool>,
}

impl Steps {
    pub fn new(left: i64) -> Self {
        Self { left: Arc::new(AtomicI64::new(left)), stopped: watch::Sender::new(false) }
    }

    /// Takes a step, or never returns.
    async fn step(&self) {
        if self.left.fetch_sub(1, Ordering::Relaxed) <= 0 {
            self.stopped.send_replace(true);
            std::future::pending::<()>().await;
        }
    }

    /// Resolves when the process has stopped.
    pub async fn stopped(&self) {
        let _ = self.stopped.subscribe().wait_for(|stopped| *stopped).await;
    }
}

#[async_trait]
impl Interference for Steps {
    async fn commit(&self, store: &dyn MetadataStore, txn: Txn) -> Result<TxnOutcome, MetadataError> {
        self.step().await;
        let outcome = store.commit(txn).await;
        self.step().await;
        outcome
    }
}

#[derive(Debug)]
pub struct SteppingObjects(pub Arc<dyn ObjectStore>, pub Steps);

impl fmt::Display for SteppingObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for SteppingObjects {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        self.1.step().await;
        let outcome = self.0.put_opts(at, payload, options).await;
        self.1.step().await;
        outcome
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.0.get_opts(at, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, StoreResult<Path>>) -> BoxStream<'static, StoreResult<Path>> {
        let (store, steps) = (self.0.clone(), self.1.clone());
        futures::stream::once(async move {
            steps.step().await;
            let deleted: Vec<_> = store.delete_stream(paths).collect().await;
            steps.step().await;
            futures::stream::iter(deleted)
        })
        .flatten()
        .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.0.copy_opts(from, to, options).await
    }
}

/// A medium that stops at deletions, and whose readers of some segments see less than there is.
#[derive(Debug)]
pub struct SteppingBackend {
    pub inner: Arc<dyn Backend>,
    pub steps: Steps,
    /// How many entries are to be seen, of these segments.
    pub lagging: BTreeMap<u64, u64>,
}

#[async_trait]
impl Backend for SteppingBackend {
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
        self.inner.create(key, epoch, owner).await
    }

    async fn open(
        &self,
        key: SegmentKey,
        placement: &Placement,
        end: Option<u64>,
    ) -> Result<Arc<dyn SegmentReader>, StoreError> {
        let seen = self.lagging.get(&key.segment).copied();
        self.inner.open(key, placement, seen.or(end)).await
    }

    async fn fence(&self, key: SegmentKey, placement: &Placement, epoch: Epoch) -> Result<u64, StoreError> {
        self.inner.fence(key, placement, epoch).await
    }

    async fn delete(&self, key: SegmentKey, placement: &Placement) -> Result<(), StoreError> {
        self.steps.step().await;
        let outcome = self.inner.delete(key, placement).await;
        self.steps.step().await;
        outcome
    }

    async fn claim(&self, instance: &str) -> Result<(), StoreError> {
        self.inner.claim(instance).await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
