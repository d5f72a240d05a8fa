//! Requests to an object store that may be repeated: a few attempts, each within its time.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{
    StreamExt,
    stream::{BoxStream, FusedStream},
};
use object_store::{Error, ObjectMeta, ObjectStore, ObjectStoreExt, path::Path};
use woodpecker_base::{
    backoff::Backoff,
    clock::{Clock, Elapsed},
    random::Random,
};

pub(crate) use super::metrics::Operation;
use super::metrics::RequestMetrics;
use crate::backend::StoreError;

/// Attempts of one request, each with the client's own retries inside.
const ATTEMPTS: u32 = 3;
/// Pauses between attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// What a request is given on top of its fixed time for what it moves.
const SLOWEST_BYTES_PER_SECOND: u64 = 1 << 20;
/// Names that stores list, or delete, with one request, and one more: with the last of them it is known that it was the
/// last page.
const PAGE: usize = 1001;

/// One process's access to an object store.
pub(crate) struct Requests {
    pub store: Arc<dyn ObjectStore>,
    pub clock: Clock,
    pub random: Random,
    /// One request may take so long, and a second more for each MiB it moves.
    pub timeout: Duration,
    metrics: RequestMetrics,
}

impl Requests {
    pub fn new(store: Arc<dyn ObjectStore>, clock: Clock, random: Random, timeout: Duration) -> Self {
        Self { store, clock, random, timeout, metrics: RequestMetrics::new() }
    }

    /// Part of an object.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Corrupt`] when the object ends before the part; or to try again.
    pub async fn range(&self, path: &Path, start: u64, end: u64) -> Result<Bytes, StoreError> {
        let read =
            self.retry(Operation::Get, path.as_ref(), end - start, || self.store.get_range(path, start..end)).await;
        // Of an empty object no range can be read, and stores do not say so in one way.
        if let Err(StoreError::Unavailable(_)) = read
            && let Ok(Ok(meta)) = self.once(Operation::Head, 0, self.store.head(path)).await
            && meta.size <= start
        {
            let detail = format!("it ends before byte {start}");
            return Err(StoreError::Corrupt { what: path.to_string(), detail });
        }
        read
    }

    /// Removes objects, however many; what is gone already is no error.
    pub async fn delete(&self, what: &str, paths: Vec<Path>) -> Result<(), StoreError> {
        self.attempts(what, 0, || {
            let deleted = self.store.delete_stream(futures::stream::iter(paths.clone()).map(Ok).boxed());
            let gone = deleted.map(|result| match result {
                Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(error),
            });
            self.pages(Operation::Delete, gone.boxed())
        })
        .await
        .map(|_| ())
    }

    /// Up to `limit` objects under a directory, behind `offset` if there is one; which ones is up to the store.
    pub async fn list(
        &self,
        directory: &Path,
        offset: Option<&Path>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        self.attempts(&format!("list of {directory}"), 0, || {
            let listed = match offset {
                Some(offset) => self.store.list_with_offset(Some(directory), offset),
                None => self.store.list(Some(directory)),
            };
            self.pages(Operation::List, listed.take(limit).boxed())
        })
        .await
    }

    /// All that comes of what takes as many requests as there are pages: each of them has its time.
    async fn pages<T>(
        &self,
        operation: Operation,
        stream: BoxStream<'static, object_store::Result<T>>,
    ) -> Result<object_store::Result<Vec<T>>, Elapsed> {
        let mut pages = stream.ready_chunks(PAGE);
        let mut all = Vec::new();
        while !pages.is_terminated() {
            let page = async { pages.next().await.into_iter().flatten().collect::<object_store::Result<Vec<T>>>() };
            match self.once(operation, 0, page).await? {
                Ok(page) => all.extend(page),
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(all))
    }

    /// Runs a request that may be repeated, a few times.
    pub async fn retry<T, F>(
        &self,
        operation: Operation,
        what: &str,
        bytes: u64,
        request: impl Fn() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        self.attempts(what, bytes, || self.once(operation, bytes, request())).await
    }

    async fn attempts<T, F>(&self, what: &str, bytes: u64, request: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<object_store::Result<T>, Elapsed>>,
    {
        let mut backoff = self.backoff();
        let mut attempt = 1;
        loop {
            let failure: Arc<str> = match request().await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(Error::NotFound { .. })) => {
                    return Err(StoreError::NotFound { what: what.to_owned() });
                }
                Ok(Err(error)) => format!("{what}: {error}").into(),
                Err(_) => format!("{what}: no answer within {:?}", self.time_for(bytes)).into(),
            };
            if attempt == ATTEMPTS {
                return Err(StoreError::Unavailable(failure));
            }
            attempt += 1;
            self.metrics.repeated();
            backoff.wait().await;
        }
    }

    /// Makes a request that moves so many bytes, once and within its time.
    pub fn once<T>(
        &self,
        operation: Operation,
        bytes: u64,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> impl Future<Output = Result<object_store::Result<T>, Elapsed>> {
        // In a box, because those of the client are large.
        let request = Box::pin(request);
        async move {
            let began = self.clock.now();
            let answer = self.clock.timeout(self.time_for(bytes), request).await;
            self.metrics.took(operation, answer.as_ref().ok(), self.clock.now().duration_since(began));
            answer
        }
    }

    /// Notes that a request of [`Self::once`] is made again.
    pub fn repeated(&self) {
        self.metrics.repeated();
    }

    pub fn backoff(&self) -> Backoff {
        Backoff::new(self.clock.clone(), &self.random, FIRST_PAUSE, LONGEST_PAUSE)
    }

    /// How long one request may take that moves this many bytes.
    pub fn time_for(&self, bytes: u64) -> Duration {
        self.timeout + Duration::from_millis(bytes.saturating_mul(1000) / SLOWEST_BYTES_PER_SECOND)
    }
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").field("store", &format_args!("{}", self.store)).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use object_store::{
        memory::InMemory,
        throttle::{ThrottleConfig, ThrottledStore},
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn many_objects_are_listed_and_deleted_though_all_of_them_take_longer_than_one_request_may() {
        const OBJECTS: usize = 3 * PAGE + 7;
        let store = Arc::new(ThrottledStore::new(InMemory::new(), ThrottleConfig::default()));
        let requests = Requests::new(store.clone(), Clock::system(), Random::seeded(1), Duration::from_secs(3));
        for number in 0..OBJECTS {
            store.put(&Path::from(format!("a/{number}")), "x".into()).await.unwrap();
        }
        store.config_mut(|config| {
            config.wait_list_per_entry = Duration::from_millis(2);
            config.wait_delete_per_call = Duration::from_millis(2);
        });
        let directory = Path::from("a");
        let found = requests.list(&directory, None, usize::MAX).await.unwrap();
        assert_eq!(found.len(), OBJECTS);
        requests.delete("all", found.into_iter().map(|meta| meta.location).collect()).await.unwrap();
        assert!(requests.list(&directory, None, 1).await.unwrap().is_empty());
    }
}
