//! Segments in object storage: zero disk, at the price of a PUT's latency.
//!
//! Each process writes a volume of its own, objects `volumes/<volume>/<number>`, each a batch with blocks of many
//! segments, each PUT only if nothing is there yet. Who takes a segment over puts a *fence* into the first missing place:
//! what lies beyond does not exist, and the writer, whose PUT must fail there, goes on in a new volume. So a fenced
//! writer can never ack, whatever it believes, and the number of PUTs follows time and bytes, never the number of logs.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use object_store::ObjectStore;
use woodpecker_base::{clock::Clock, random::Random, tasks::Tasks};
use woodpecker_core::ids::{Epoch, SegmentKey, VolumeId};

use self::{
    bucket::Bucket,
    reader::Reader,
    remains::Swept,
    segment::MAX_APPEND_BYTES,
    view::View,
    volume::{Stopped, Volume},
};
use crate::backend::{
    Backend, Named, Placement, SegmentOwner, SegmentReader, SegmentWriter, StoreError, Surveyed, volume_of,
};

mod bucket;
mod claim;
mod fence;
mod metrics;
mod reader;
mod remains;
pub(crate) mod requests;
mod sections;
mod segment;
pub mod store;
mod view;
mod volume;

/// How objects are cut, paced and retried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectSettings {
    /// While a PUT is in flight, another one is started only when this many bytes are gathered.
    pub flush_bytes: usize,
    /// What is put into one object at most, unless a single append is larger.
    pub batch_bytes: usize,
    /// PUTs in flight at most; more than 8 count as 8.
    pub puts_in_flight: usize,
    /// PUTs started per second at most, by this process.
    pub puts_per_second: u32,
    /// Entries queued at most; beyond it appends are refused.
    pub queued_bytes: usize,
    /// A PUT is repeated for so long; then the volume stops and its segments end as failed.
    pub put_deadline: Duration,
    /// One request may take so long, and a second more for each MiB it moves.
    pub request_timeout: Duration,
    /// Memory for what was read or written lately.
    pub cache_bytes: u64,
}

impl Default for ObjectSettings {
    fn default() -> Self {
        Self {
            flush_bytes: 2 << 20,
            batch_bytes: 4 << 20,
            puts_in_flight: 4,
            puts_per_second: 200,
            queued_bytes: 256 << 20,
            put_deadline: Duration::from_secs(60),
            request_timeout: Duration::from_secs(3),
            cache_bytes: 256 << 20,
        }
    }
}

/// The backend `object`: one process's access to the segments in one object store.
#[derive(Debug)]
pub struct ObjectBackend {
    bucket: Arc<Bucket>,
    tasks: Tasks,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    /// The volume that new segments go to.
    current: Option<Arc<Volume>>,
    /// Every volume that this process wrote and that somebody in it may still need.
    own: BTreeMap<VolumeId, Arc<Volume>>,
    /// What is known of other processes' volumes, shared by all who read them.
    views: BTreeMap<VolumeId, Weak<View>>,
    /// What the last sweep left of each volume.
    swept: BTreeMap<VolumeId, Swept>,
}

impl ObjectBackend {
    /// A backend on a store that passed [`store::probe`]. Makes no request. Its volumes are written in `tasks`; what is
    /// not stored when they stop is lost, as in a crash.
    #[must_use]
    pub fn new(
        store: Arc<dyn ObjectStore>,
        settings: ObjectSettings,
        clock: Clock,
        random: Random,
        tasks: Tasks,
    ) -> Self {
        Self { bucket: Arc::new(Bucket::new(store, settings, clock, random)), tasks, state: Mutex::default() }
    }

    fn own(&self, id: VolumeId) -> Option<Arc<Volume>> {
        self.state().own.get(&id).cloned()
    }

    fn view(&self, id: VolumeId) -> Arc<View> {
        let mut state = self.state();
        if let Some(volume) = state.own.get(&id) {
            return Arc::clone(&volume.view);
        }
        if let Some(view) = state.views.get(&id).and_then(Weak::upgrade) {
            return view;
        }
        let view = View::new(Arc::clone(&self.bucket), id, false);
        state.views.retain(|_, view| view.strong_count() > 0);
        state.views.insert(id, Arc::downgrade(&view));
        view
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Backend for ObjectBackend {
    fn name(&self) -> &'static str {
        "object"
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
        let mut state = self.state();
        if state.closed || self.tasks.is_stopping() {
            return Err(StoreError::Unavailable("the backend is closed".into()));
        }
        if let Some(writer) = state.current.as_ref().and_then(|volume| volume.create(key, Arc::clone(&owner))) {
            return Ok(writer);
        }
        let volume = Volume::start(&self.bucket, &self.tasks);
        state.own.retain(|_, volume| !volume.is_spent());
        state.own.insert(volume.id(), Arc::clone(&volume));
        state.current = Some(Arc::clone(&volume));
        volume.create(key, owner).ok_or_else(|| StoreError::Unavailable("the backend is closed".into()))
    }

    async fn open(
        &self,
        key: SegmentKey,
        placement: &Placement,
        end: Option<u64>,
    ) -> Result<Arc<dyn SegmentReader>, StoreError> {
        let (volume, from_batch) = volume_of(placement)?;
        let (view, own) = (self.view(volume), self.own(volume));
        Ok(Arc::new(Reader::new(view, own, key, from_batch, end, self.tasks.clone())))
    }

    async fn fence(&self, key: SegmentKey, placement: &Placement, epoch: Epoch) -> Result<u64, StoreError> {
        let (volume, from_batch) = volume_of(placement)?;
        let stopped = match self.own(volume) {
            Some(own) => own.stop(key).await,
            None => None,
        };
        let view = self.view(volume);
        match stopped {
            Some(Stopped::At(tail)) => Ok(tail),
            Some(Stopped::Forgotten) => view.entries_below(key, from_batch, view.known().limit()).await,
            None => fence::fence(&view, key, from_batch, epoch).await,
        }
    }

    /// What is only in objects that this process wrote goes at once, as far as it knows whose they are. The rest goes with
    /// the next sweep, which knows every segment there is and so need not read what objects hold.
    async fn delete(&self, key: SegmentKey, placement: &Placement) -> Result<(), StoreError> {
        let (volume, _) = volume_of(placement)?;
        let unneeded = self.own(volume).map(|own| own.delete(key)).unwrap_or_default();
        if unneeded.is_empty() { Ok(()) } else { self.bucket.delete(volume, unneeded).await }
    }

    async fn claim(&self, instance: &str) -> Result<(), StoreError> {
        self.bucket.requests.claim(instance).await
    }

    async fn survey(&self) -> Result<Vec<Surveyed>, StoreError> {
        let mut surveyed = Vec::new();
        for id in self.bucket.volumes().await? {
            let found = match self.own(id).filter(|volume| !volume.is_ended()) {
                Some(own) => Ok(own.survey()),
                None => remains::survey(&self.view(id)).await,
            };
            surveyed.extend(unless_damaged(id, found)?.flatten().map(Surveyed::Volume));
        }
        Ok(surveyed)
    }

    async fn reclaim(&self, surveyed: &[Surveyed], live: &[Named], idle: Duration) -> Result<u64, StoreError> {
        let before = self.bucket.clock.wall().saturating_sub(idle);
        let mut by_volume: BTreeMap<VolumeId, BTreeMap<SegmentKey, u64>> = BTreeMap::new();
        for (key, placement) in live {
            if let Ok((volume, from_batch)) = volume_of(placement) {
                by_volume.entry(volume).or_default().insert(*key, from_batch);
            }
        }
        let mut swept = std::mem::take(&mut self.state().swept);
        let mut removed = 0;
        for found in surveyed.iter().filter_map(Surveyed::volume) {
            let live = by_volume.remove(&found.volume).unwrap_or_default();
            let is_idle = Duration::from_millis(found.written_ms) <= before;
            let last = swept.remove(&found.volume).unwrap_or_default();
            let reclaimed = remains::reclaim(&self.view(found.volume), found, live, is_idle, last).await;
            let Some((some, now)) = unless_damaged(found.volume, reclaimed)? else { continue };
            removed += some;
            self.state().swept.insert(found.volume, now);
        }
        Ok(removed)
    }

    async fn close(&self) {
        let volume = {
            let mut state = self.state();
            state.closed = true;
            state.current.take()
        };
        if let Some(volume) = volume {
            volume.close().await;
        }
    }
}

/// What is damaged in one volume keeps nothing in the others.
fn unless_damaged<T>(volume: VolumeId, swept: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match swept {
        Err(error) if !error.is_retryable() => {
            tracing::warn!(%volume, %error, "a volume is not swept");
            Ok(None)
        }
        swept => swept.map(Some),
    }
}

#[cfg(test)]
mod tests;
