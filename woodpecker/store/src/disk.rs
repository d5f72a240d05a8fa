//! The `local` backend: volumes on this machine's disk.
//!
//! Every process that writes has one volume of its own, `<data dir>/volumes/<volume id>/`, with one writer, so the
//! number of syncs depends on time and bytes, not on the number of logs. Processes on the machine that share the
//! directory read and fence one another's segments. A volume is never repaired in place: whoever comes next starts a
//! new one. `docs/volume-format.md` describes the files and the fence.

mod file;
mod index;
mod instance;
pub(crate) mod marks;
mod pieces;
mod queue;
mod reader;
mod scan;
mod segment;
mod space;
#[cfg(test)]
mod tests;
mod volume;
mod writer;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt, StreamExt, stream};
use tokio::sync::{oneshot, watch};
use woodpecker_base::{
    clock::{Clock, Instant},
    disk::{Disk, OpenMode},
    random::Random,
};
use woodpecker_core::ids::{Epoch, SegmentKey, VolumeId};

use crate::{
    backend::{
        Backend, Named, Placement, SegmentOwner, SegmentReader, SegmentWriter, StoreError, Surveyed, SurveyedVolume,
        volume_of,
    },
    cache::cache,
};

pub use pieces::Piece;

use file::{VolumeDir, unreadable};
use reader::Reader;
use segment::{Live, MAX_APPEND_BYTES, Start, Writer};
use volume::{FullFiles, Volume, Weighter};
use writer::{Shared, VolumeWriter};

/// The content of `<data dir>/format`: says whose directory it is, and in which version.
const IDENTITY: &str = "woodpecker-volumes 1\n";
/// After a volume failed, how long until another is tried.
const RETRY_FAILED: Duration = Duration::from_secs(10);
/// Volumes of earlier processes that are scanned at once.
const PARALLEL_SCANS: usize = 4;
/// What was found of so many volumes is kept though nobody reads them: each deletion would look at all their files anew.
const RECENT: usize = 16;

/// Entry bytes of a batch that segments of several lanes share.
pub(crate) const SHARED_BATCH_BYTES: usize = 128 << 10;

/// How much of what a [`LocalBackend`] uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalSettings {
    /// Size of a data file, in bytes. A file is the unit in which space comes back.
    pub file_bytes: u64,
    /// Most entry bytes in one batch, unless a single append is larger.
    pub batch_bytes: usize,
    /// The same while segments of more than one lane are written: the longest that one lane waits for another.
    pub shared_batch_bytes: usize,
    /// Hard bound of what waits to be written, in entry bytes.
    pub queue_bytes: usize,
    /// Recently written entries kept in memory for tail readers, in bytes.
    pub tail_bytes: usize,
    /// Indexes of full files kept in memory for catch-up readers, in bytes.
    pub index_bytes: u64,
}

impl Default for LocalSettings {
    fn default() -> Self {
        Self {
            file_bytes: 64 << 20,
            batch_bytes: 4 << 20,
            shared_batch_bytes: SHARED_BATCH_BYTES,
            queue_bytes: 1 << 30,
            tail_bytes: 64 << 20,
            index_bytes: 64 << 20,
        }
    }
}

/// Segments on this machine's disk. An ack means: written and synced (fdatasync), the file's directory entry too.
pub struct LocalBackend {
    root: PathBuf,
    settings: LocalSettings,
    disk: Arc<dyn Disk>,
    clock: Clock,
    random: Random,
    /// This process, to others.
    process: u128,
    full: Arc<FullFiles>,
    volumes: Mutex<BTreeMap<VolumeId, Weak<Volume>>>,
    /// Those asked for last, the latest at the end.
    recent: Mutex<VecDeque<Arc<Volume>>>,
    own: tokio::sync::Mutex<Own>,
    /// A volume of this process failed because the disk was full.
    no_room: Arc<AtomicBool>,
}

/// The volume that this process writes.
enum Own {
    None,
    Writing { shared: Arc<Shared>, ended: watch::Receiver<()> },
    Failed { reason: Arc<str>, at: Instant, ended: watch::Receiver<()> },
    Closed,
}

impl fmt::Debug for LocalBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalBackend").field("root", &self.root).finish_non_exhaustive()
    }
}

/// Runs blocking work where the disk says, and waits for what it gives.
async fn blocking<T: Send + 'static>(
    disk: &Arc<dyn Disk>,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let (answer, answered) = oneshot::channel();
    disk.run(Box::new(move || {
        // Nobody waits any more when the caller was dropped.
        let _ = answer.send(work());
    }))
    .await;
    answered.await.unwrap_or_else(|_| Err(StoreError::Unavailable("the process is shutting down".into())))
}

impl LocalBackend {
    /// Opens the data directory, which is made if there is none.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] for a directory that is not ours or of a newer version; [`StoreError::Unavailable`] when
    /// the disk refuses.
    pub async fn open(
        root: impl Into<PathBuf>,
        settings: LocalSettings,
        disk: Arc<dyn Disk>,
        clock: Clock,
        random: Random,
    ) -> Result<Self, StoreError> {
        let root = root.into();
        let (at, on) = (root.clone(), disk.clone());
        let process = random.u128();
        blocking(&disk, move || claim(&at, &*on, process)).await?;
        let full = Arc::new(cache(settings.index_bytes, 64 << 10, Weighter));
        Ok(Self {
            root,
            settings,
            disk,
            clock,
            random,
            process,
            full,
            volumes: Mutex::default(),
            recent: Mutex::default(),
            own: tokio::sync::Mutex::new(Own::None),
            no_room: Arc::default(),
        })
    }

    /// Starts a piece of a segment in the volume this process writes: its entries are numbered from `first`, those below
    /// are elsewhere. Segments of one `lane` wait for one another; lanes take turns. A process starts at most one piece
    /// of a segment. See [`Backend::create`] for the rest.
    ///
    /// # Errors
    /// The medium failed or refuses writes.
    pub async fn create_piece(
        &self,
        key: SegmentKey,
        owner: Arc<dyn SegmentOwner>,
        first: u64,
        lane: u32,
    ) -> Result<Arc<dyn SegmentWriter>, StoreError> {
        let shared = self.writing().await?;
        let segment = shared.create(key, owner, Start { first, lane })?;
        Ok(Arc::new(Writer { segment, queue: shared.queue.clone() }))
    }

    /// Lets go of a volume that failed, once its owners know, so that the next segment begins another at once. For one that
    /// failed because the disk was full, when there is room again.
    pub async fn begin_anew(&self) {
        let mut own = self.own.lock().await;
        let ended = match &mut *own {
            Own::Writing { shared, ended } if shared.failure().is_some() => Some(ended),
            Own::Failed { ended, .. } => Some(ended),
            // None could be made.
            Own::None => None,
            Own::Writing { .. } | Own::Closed => return,
        };
        if let Some(ended) = ended {
            // Told later, the end of this volume's segments would be taken for that of what comes next.
            while ended.changed().await.is_ok() {}
        }
        *own = Own::None;
        self.no_room.store(false, Ordering::Release);
    }

    /// Whether a volume of this process failed because the disk was full, since [`Self::begin_anew`].
    #[must_use]
    pub fn ran_full(&self) -> bool {
        self.no_room.load(Ordering::Acquire)
    }

    /// What the volumes that are not written by this process hold, each volume by itself, synced. Segments that were
    /// deleted are left out.
    ///
    /// # Errors
    /// The directory cannot be read. What is wrong with one volume is said with it.
    pub async fn pieces(&self) -> Result<Vec<(VolumeId, Result<Vec<Piece>, StoreError>)>, StoreError> {
        let (root, disk) = (self.root.join("volumes"), self.disk.clone());
        let listed = move || disk.list(&root).map_err(|error| unreadable(&root, &error));
        let names = blocking(&self.disk, listed).await?;
        let ids: Vec<_> = names.iter().filter_map(|name| u128::from_str_radix(name, 16).ok().map(VolumeId)).collect();
        let own = match &*self.own.lock().await {
            Own::Writing { shared, .. } => Some(shared.volume.dir.id),
            _ => None,
        };
        let others = ids.into_iter().filter(|id| Some(*id) != own);
        let scans = others
            .map(|id| (id, self.volume(id)))
            .map(|(id, volume)| async move { (id, blocking(&self.disk, move || volume.pieces()).await) });
        Ok(stream::iter(scans).buffered(PARALLEL_SCANS).collect().await)
    }

    /// Removes the files of a volume that nobody writes and nobody needs; says how many there were. What is known of fences
    /// in it stays.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub async fn clear(&self, volume: VolumeId) -> Result<u64, StoreError> {
        let volume = self.volume(volume);
        blocking(&self.disk, move || volume.clear()).await
    }

    fn volumes(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Weak<Volume>>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dir(&self, id: VolumeId) -> VolumeDir {
        VolumeDir { id, path: self.root.join("volumes").join(id.to_string()), disk: self.disk.clone() }
    }

    /// The volume as this process knows it already, or a fresh look at it.
    fn volume(&self, id: VolumeId) -> Arc<Volume> {
        let volume = self.known(id);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|other| other.dir.id != id);
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(volume.clone());
        volume
    }

    fn known(&self, id: VolumeId) -> Arc<Volume> {
        let mut volumes = self.volumes();
        if let Some(known) = volumes.get(&id).and_then(Weak::upgrade) {
            return known;
        }
        volumes.retain(|_, volume| volume.strong_count() > 0);
        let found = Arc::new(Volume::found(self.dir(id), self.full.clone()));
        volumes.insert(id, Arc::downgrade(&found));
        found
    }

    /// The volume to write, made if there is none.
    async fn writing(&self) -> Result<Arc<Shared>, StoreError> {
        let mut own = self.own.lock().await;
        match &*own {
            Own::Writing { shared, ended } => match shared.failure() {
                None if !shared.queue.is_closed() => return Ok(shared.clone()),
                reason => {
                    let reason = reason.unwrap_or_else(|| "its writer is gone".into());
                    *own = Own::Failed { reason: reason.clone(), at: self.clock.now(), ended: ended.clone() };
                    return Err(StoreError::Failed(reason));
                }
            },
            Own::Failed { reason, at, .. } if self.clock.now().duration_since(*at) < RETRY_FAILED => {
                return Err(StoreError::Failed(reason.clone()));
            }
            Own::Closed => return Err(StoreError::Unavailable("the backend is closed".into())),
            Own::None | Own::Failed { .. } => {}
        }
        let (shared, ended) = self.start().await?;
        *own = Own::Writing { shared: shared.clone(), ended };
        Ok(shared)
    }

    /// Makes a volume, without a data file yet, and starts its writer.
    async fn start(&self) -> Result<(Arc<Shared>, watch::Receiver<()>), StoreError> {
        let dir = self.dir(VolumeId(self.random.u128()));
        let (volumes, made, no_room) = (self.root.join("volumes"), dir.clone(), self.no_room.clone());
        let marks = blocking(&self.disk, move || {
            let failed = |error: io::Error| {
                writer::note_no_room(&error, &no_room);
                StoreError::Failed(format!("cannot make {}: {error}", made.path.display()).into())
            };
            made.disk.create_dir_all(&made.path).map_err(failed)?;
            let marks = made.disk.open(&made.marks(), OpenMode::Append).map_err(failed)?;
            if !marks.try_lock().map_err(failed)? {
                return Err(failed(io::Error::other("another process writes it")));
            }
            made.disk.sync_dir(&made.path).map_err(failed)?;
            made.disk.sync_dir(&volumes).map_err(failed)?;
            Ok(marks)
        })
        .await?;
        let id = dir.id;
        let volume = Arc::new(Volume::fed(dir, self.full.clone()));
        self.volumes().insert(id, Arc::downgrade(&volume));
        let shared = Arc::new(Shared::new(volume, self.settings.queue_bytes, self.no_room.clone()));
        let (running, ended) = watch::channel(());
        let writer = VolumeWriter::new(
            shared.clone(),
            self.settings.clone(),
            marks,
            (self.process, self.clock.clone()),
            running,
        );
        self.disk.spawn_writer("volume", writer.run().boxed());
        tracing::info!(volume = %id, "started a volume");
        Ok((shared, ended))
    }

    /// The segment as this process writes it, if it does.
    async fn live(&self, key: SegmentKey, volume: VolumeId) -> Option<Arc<Live>> {
        match &*self.own.lock().await {
            Own::Writing { shared, .. } if shared.volume.dir.id == volume => shared.live(key),
            _ => None,
        }
    }
}

impl Drop for LocalBackend {
    fn drop(&mut self) {
        if let Own::Writing { shared, .. } = self.own.get_mut() {
            shared.queue.close();
        }
    }
}

/// Makes the directory ours, or checks that it is.
fn claim(root: &Path, disk: &dyn Disk, process: u128) -> Result<(), StoreError> {
    let failed = |error| unreadable(root, &error);
    let foreign = |detail: String| StoreError::Corrupt { what: root.display().to_string(), detail };
    disk.create_dir_all(&root.join("volumes")).map_err(failed)?;
    // Looked at first: a volume is made only after the `format` file, by whichever process.
    let empty = disk.list(&root.join("volumes")).map_err(failed)?.is_empty();
    match disk.open(&root.join("format"), OpenMode::Read) {
        Ok(file) => {
            let said = file.read(IDENTITY.len() + 1, 0).map_err(failed)?;
            let said = String::from_utf8_lossy(&said);
            if said == IDENTITY {
                Ok(())
            } else {
                let said = said.trim_end();
                Err(foreign(format!("its `format` file says {said:?}, this program needs {:?}", IDENTITY.trim_end())))
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !empty {
                return Err(foreign("it has volumes and no `format` file: not a data directory of ours".to_owned()));
            }
            // Under a name of its own first: another process may be doing the same.
            let draft = root.join(format!("format.{process:032x}"));
            let file = disk.open(&draft, OpenMode::CreateNew).map_err(failed)?;
            file.write_all_at(IDENTITY.as_bytes(), 0).map_err(failed)?;
            file.sync_data().map_err(failed)?;
            disk.rename(&draft, &root.join("format")).map_err(failed)?;
            disk.sync_dir(root).map_err(failed)?;
            match root.parent() {
                Some(parent) if parent == Path::new("") => disk.sync_dir(Path::new(".")).map_err(failed),
                Some(parent) => disk.sync_dir(parent).map_err(failed),
                None => Ok(()),
            }
        }
        Err(error) => Err(failed(error)),
    }
}

#[async_trait]
impl Backend for LocalBackend {
    fn name(&self) -> &'static str {
        "local"
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
        self.create_piece(key, owner, 0, 0).await
    }

    async fn open(
        &self,
        key: SegmentKey,
        placement: &Placement,
        end: Option<u64>,
    ) -> Result<Arc<dyn SegmentReader>, StoreError> {
        let (volume, from_batch) = volume_of(placement)?;
        let live = self.live(key, volume).await;
        let (clock, random) = (self.clock.clone(), self.random.clone());
        Ok(Arc::new(Reader::new((key, from_batch), end, live, self.volume(volume), clock, random)))
    }

    async fn fence(&self, key: SegmentKey, placement: &Placement, epoch: Epoch) -> Result<u64, StoreError> {
        let (volume, from_batch) = volume_of(placement)?;
        let (volume, process) = (self.volume(volume), self.process);
        blocking(&self.disk, move || volume.fence(key, from_batch, epoch, process)).await
    }

    async fn delete(&self, key: SegmentKey, placement: &Placement) -> Result<(), StoreError> {
        let volume = self.volume(volume_of(placement)?.0);
        blocking(&self.disk, move || volume.delete(key)).await
    }

    async fn claim(&self, instance: &str) -> Result<(), StoreError> {
        let (root, disk, process) = (self.root.clone(), self.disk.clone(), self.process);
        let instance = instance.to_owned();
        blocking(&self.disk, move || instance::claim(&root, &*disk, process, &instance)).await
    }

    async fn reaches(&self, placement: &Placement) -> Result<bool, StoreError> {
        let (dir, volumes) = (volume_of(placement)?.0.to_string(), self.root.join("volumes"));
        let disk = self.disk.clone();
        blocking(&self.disk, move || {
            let found = disk.list(&volumes).map_err(|error| unreadable(&volumes, &error))?;
            Ok(found.contains(&dir))
        })
        .await
    }

    async fn survey(&self) -> Result<Vec<Surveyed>, StoreError> {
        let (disk, volumes) = (self.disk.clone(), self.root.join("volumes"));
        let names =
            blocking(&self.disk, move || disk.list(&volumes).map_err(|error| unreadable(&volumes, &error))).await?;
        let mut surveyed = Vec::new();
        for volume in names.iter().filter_map(|name| u128::from_str_radix(name, 16).ok()).map(VolumeId) {
            let seen = self.volume(volume);
            if blocking(&self.disk, move || seen.is_left()).await? {
                let found = SurveyedVolume { volume, end: u64::MAX, ended: true, written_ms: 0 };
                surveyed.push(Surveyed::Volume(found));
            }
        }
        Ok(surveyed)
    }

    async fn reclaim(&self, surveyed: &[Surveyed], live: &[Named], _idle: Duration) -> Result<u64, StoreError> {
        let mut removed = 0;
        let needed: BTreeSet<VolumeId> =
            live.iter().filter_map(|(_, placement)| volume_of(placement).ok()).map(|(volume, _)| volume).collect();
        for left in surveyed.iter().filter_map(Surveyed::volume).filter(|left| !needed.contains(&left.volume)) {
            removed += self.clear(left.volume).await?;
        }
        Ok(removed)
    }

    async fn close(&self) {
        let ended = match std::mem::replace(&mut *self.own.lock().await, Own::Closed) {
            Own::Writing { shared, ended } => {
                shared.queue.close();
                Some(ended)
            }
            _ => None,
        };
        if let Some(mut ended) = ended {
            while ended.changed().await.is_ok() {}
        }
    }
}
