//! A volume as its readers see it: which files it has and where the blocks lie. All calls block on file I/O.

mod deletion;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use woodpecker_base::disk::{DiskFile, OpenMode};
use woodpecker_core::ids::{Epoch, SegmentKey, VolumeId};

use crate::{
    backend::StoreError,
    cache::Cache,
    format::{BlockEntry, FormatError, HEADER_BYTES, Header},
};

use super::{
    file::{DATA_START, VolumeDir, corrupt, unreadable},
    index::{BlockAt, FileIndex},
    marks::{Mark, Marks},
    scan::Scan,
};

/// Blocks of a segment that lie no further apart than this are read together.
const READ_GAP: u64 = 64 << 10;
/// The most that one read of a file takes, unless one block is larger.
const READ_MAX: u64 = 8 << 20;

/// A file that gets no more batches, with its index.
#[derive(Debug)]
pub(super) struct FullFile {
    file: Arc<dyn DiskFile>,
    index: FileIndex,
}

/// Indexes of full files, and their open handles, of all volumes. A handle counts as much as a large index, so that the
/// bound on bytes also bounds the handles.
pub(super) type FullFiles = Cache<(VolumeId, u64), Arc<FullFile>, Weighter>;

#[derive(Debug, Clone)]
pub(super) struct Weighter;

impl quick_cache::Weighter<(VolumeId, u64), Arc<FullFile>> for Weighter {
    fn weight(&self, _key: &(VolumeId, u64), file: &Arc<FullFile>) -> u64 {
        (64 << 10) + file.index.weight()
    }
}

/// One volume, seen from this process.
pub(super) struct Volume {
    pub dir: VolumeDir,
    full: Arc<FullFiles>,
    state: Mutex<State>,
}

struct State {
    /// The data files that have batches, with the number of the first: full ones and the live one.
    files: BTreeMap<u64, u64>,
    /// The last file that has batches.
    live: Option<Live>,
    /// A segment of a full file that is not deleted, where one is known: until it is, the file stays.
    needing: BTreeMap<u64, SegmentKey>,
    marks: Marks,
    /// Deletions are looked through when they are so many.
    forget_at: usize,
    /// A writer of this process feeds the index, so that there is nothing to scan.
    fed: bool,
}

struct Live {
    number: u64,
    file: Arc<dyn DiskFile>,
    index: FileIndex,
}

/// Where a run of blocks of one segment lies.
pub(super) struct Run {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    /// At least one.
    blocks: Vec<BlockAt>,
    /// The file's.
    pub number: u64,
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volume").field("id", &self.dir.id).finish_non_exhaustive()
    }
}

impl Volume {
    /// A volume of another process, or of an earlier one.
    pub(super) fn found(dir: VolumeDir, full: Arc<FullFiles>) -> Self {
        Self::new(dir, full, false)
    }

    /// A volume that this process is about to write.
    pub(super) fn fed(dir: VolumeDir, full: Arc<FullFiles>) -> Self {
        Self::new(dir, full, true)
    }

    fn new(dir: VolumeDir, full: Arc<FullFiles>, fed: bool) -> Self {
        let (files, needing, marks) = (BTreeMap::new(), BTreeMap::new(), Marks::default());
        let state = State { files, live: None, needing, marks, forget_at: deletion::REMEMBERED, fed };
        Self { dir, full, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer of this process made a batch durable.
    pub(super) fn wrote(
        &self,
        number: u64,
        file: &Arc<dyn DiskFile>,
        seq: u64,
        body: u64,
        blocks: &[BlockEntry],
        end: u64,
    ) -> Result<(), FormatError> {
        let mut state = self.lock();
        if state.live.as_ref().is_none_or(|live| live.number != number) {
            self.retire_live(&mut state);
            state.live = Some(Live { number, file: file.clone(), index: FileIndex::new() });
            state.files.insert(number, seq);
        }
        state.live.as_mut().map_or(Ok(()), |live| live.index.push(seq, body, blocks, end))
    }

    /// The writer of this process failed: its batches from this one on do not exist.
    pub(super) fn stop_at(&self, batch: u64) {
        let mut state = self.lock();
        state.fed = false;
        state.marks.add(Mark::Stopped { batch });
    }

    /// The live file gets no more batches.
    fn retire_live(&self, state: &mut State) {
        if let Some(Live { number, file, index }) = state.live.take() {
            if state.fed
                && let Err(error) = self.dir.write_sidecar(number, &index)
            {
                tracing::warn!(volume = %self.dir.id, number, %error, "no index beside a full file; readers will scan it");
            }
            self.full.insert((self.dir.id, number), Arc::new(FullFile { file, index }));
        }
    }

    /// The writer of this process is done with the volume; its last file is full too. Says where that file ends.
    pub(super) fn finish(&self) -> Option<(Arc<dyn DiskFile>, u64)> {
        let mut state = self.lock();
        let last = state.live.as_ref().map(|live| (live.file.clone(), live.index.end));
        if let Some(live) = &state.live
            && let Err(error) = self.dir.write_sidecar(live.number, &live.index)
        {
            tracing::warn!(volume = %self.dir.id, %error, "no index beside the last file; readers will scan it");
        }
        state.fed = false;
        last
    }

    /// Finds what was written since the last call. With `strict`, damage in front of whole batches is an error; without,
    /// the volume just seems to end there.
    fn refresh(&self, state: &mut State, strict: bool) -> Result<(), StoreError> {
        if state.fed {
            return Ok(());
        }
        match self.look(state, strict) {
            // A live writer may have gone on from one file to the next between two looks. Damage is there again.
            Err(StoreError::Corrupt { .. }) => self.look(state, strict),
            other => other,
        }
    }

    fn look(&self, state: &mut State, strict: bool) -> Result<(), StoreError> {
        self.read_marks(state)?;
        let numbers = self.dir.list().map_err(|error| unreadable(&self.dir.path, &error))?;
        self.look_at_live(state, false)?;
        let after = state.live.as_ref().map_or(0, |live| live.number + 1);
        for &number in numbers.iter().filter(|number| **number >= after) {
            let follows = number.checked_sub(1).is_some_and(|before| numbers.binary_search(&before).is_ok());
            self.look_at_next(state, number, follows, strict)?;
        }
        if strict { self.look_at_live(state, true) } else { Ok(()) }
    }

    fn look_at_live(&self, state: &mut State, strict: bool) -> Result<(), StoreError> {
        let stopped = state.marks.stopped();
        let Some(live) = &mut state.live else { return Ok(()) };
        let path = self.dir.data(live.number);
        let first_batch = live.index.first_batch;
        let scan = Scan { volume: self.dir.id, path: &path, file: &*live.file, first_batch, stopped };
        scan.extend(&mut live.index)?;
        if strict { scan.check_end(&mut live.index) } else { Ok(()) }
    }

    /// Takes note of a data file that was not known. If it has batches, the files before it are full. `follows` says
    /// that the file before it is there too, so that their batches must follow one another.
    fn look_at_next(&self, state: &mut State, number: u64, follows: bool, strict: bool) -> Result<(), StoreError> {
        let file = match self.dir.open(number) {
            Ok(Some(file)) => file,
            // Created and not used yet, or removed just now because no segment needs it.
            Ok(None) | Err(StoreError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let path = self.dir.data(number);
        let before =
            state.live.as_ref().map(|live| (self.dir.data(live.number), live.index.end, live.index.next_batch));
        let expected = match &before {
            Some((.., next_batch)) if follows => Some(*next_batch),
            None if number == 0 => Some(0),
            _ => first_batch(&*file, &path)?,
        };
        let mut index = self.dir.read_sidecar(number).unwrap_or_else(FileIndex::new);
        let stopped = state.marks.stopped();
        let scan = Scan { volume: self.dir.id, path: &path, file: &*file, first_batch: expected, stopped };
        scan.extend(&mut index)?;
        let Some(first_batch) = index.first_batch else {
            return if strict { scan.check_end(&mut index) } else { Ok(()) };
        };
        if expected.is_some_and(|expected| expected != first_batch) || (follows && before.is_none()) {
            return Err(skipped(before, &path));
        }
        self.retire_live(state);
        state.files.insert(number, first_batch);
        state.live = Some(Live { number, file, index });
        Ok(())
    }

    /// What `pick` takes from the index of one file; `None` if the file was removed, because no segment needs it.
    pub(super) fn in_file<T>(
        &self,
        number: u64,
        pick: impl FnOnce(&Arc<dyn DiskFile>, &FileIndex) -> T,
    ) -> Result<Option<T>, StoreError> {
        {
            let state = self.lock();
            if let Some(live) = state.live.as_ref().filter(|live| live.number == number) {
                return Ok(Some(pick(&live.file, &live.index)));
            }
        }
        Ok(self.full_file(number)?.map(|full| pick(&full.file, &full.index)))
    }

    /// A file that gets no more batches; `None` if it was removed.
    fn full_file(&self, number: u64) -> Result<Option<Arc<FullFile>>, StoreError> {
        let at = (self.dir.id, number);
        if let Some(full) = self.full.get(&at) {
            return Ok(Some(full));
        }
        match self.load(number) {
            Ok(full) => {
                let full = Arc::new(full);
                self.full.insert(at, full.clone());
                Ok(Some(full))
            }
            Err(StoreError::NotFound { .. }) => {
                self.lock().files.remove(&number);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn load(&self, number: u64) -> Result<FullFile, StoreError> {
        let path = self.dir.data(number);
        let file = self.dir.open(number)?.ok_or_else(|| {
            corrupt(&path, 0, &FormatError::Structure("the header is gone from a file that had batches"))
        })?;
        if let Some(index) = self.dir.read_sidecar(number) {
            return Ok(FullFile { file, index });
        }
        let (first_batch, stopped) = {
            let state = self.lock();
            (state.files.get(&number).copied(), state.marks.stopped())
        };
        let mut index = FileIndex::new();
        Scan { volume: self.dir.id, path: &path, file: &*file, first_batch, stopped }.extend(&mut index)?;
        Ok(FullFile { file, index })
    }

    /// The files that may hold blocks of a segment that starts at `from_batch`, ascending.
    fn files_from(&self, from_batch: u64) -> Vec<u64> {
        let state = self.lock();
        let start = state.files.iter().rev().find(|(_, first)| **first <= from_batch).map_or(0, |(number, _)| *number);
        state.files.range(start..).map(|(number, _)| *number).collect()
    }

    /// How many entries of the segment are in the volume's known batches.
    fn stored(&self, key: SegmentKey, from_batch: u64) -> Result<u64, StoreError> {
        for number in self.files_from(from_batch).into_iter().rev() {
            let end = self.in_file(number, |_, index| index.blocks(key).last().map(BlockAt::next))?;
            if let Some(end) = end.flatten() {
                return Ok(end);
            }
        }
        Ok(0)
    }

    /// Where entry `from` is, with what follows it, about `bytes`. `hint` is a file in which, or after which, `from` is
    /// known to be.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if the volume does not hold the entry.
    pub(super) fn run(
        &self,
        key: SegmentKey,
        from_batch: u64,
        from: u64,
        bytes: u64,
        hint: u64,
    ) -> Result<Run, StoreError> {
        let mut run = self.find(key, from_batch, from, bytes, hint)?;
        if run.is_none() {
            // The volume was not looked at yet, or its writer in this process failed and something is behind.
            self.refresh(&mut self.lock(), false)?;
            run = self.find(key, from_batch, from, bytes, 0)?;
        }
        run.ok_or_else(|| {
            let what = format!("volume {} in {}", self.dir.id, self.dir.path.display());
            StoreError::Corrupt { what, detail: format!("entry {from} of segment {key} is missing") }
        })
    }

    fn find(
        &self,
        key: SegmentKey,
        from_batch: u64,
        from: u64,
        bytes: u64,
        hint: u64,
    ) -> Result<Option<Run>, StoreError> {
        for number in self.files_from(from_batch).into_iter().filter(|number| *number >= hint) {
            let found = self.in_file(number, |file, index| {
                let blocks = index.blocks(key);
                let at = blocks.partition_point(|block| block.next() <= from);
                let blocks =
                    blocks.get(at..).filter(|blocks| blocks.first().is_some_and(|block| block.first <= from))?;
                Some((file.clone(), together(blocks, bytes)))
            })?;
            if let Some((file, blocks)) = found.flatten() {
                return Ok(Some(Run { path: self.dir.data(number), file, blocks, number }));
            }
        }
        Ok(None)
    }

    /// How many entries of a segment that another process may be writing are durable and will stay.
    ///
    /// What is found is made durable by an own sync. If no fence is marked after that, the fence that comes will find
    /// those entries too; if one is, only its recorded tail is sure, and until there is one nothing new is.
    pub(super) fn durable(&self, key: SegmentKey, from_batch: u64, known: u64) -> Result<u64, StoreError> {
        self.refresh(&mut self.lock(), false)?;
        let stored = self.stored(key, from_batch)?;
        if stored > known {
            self.sync_live()?;
        }
        self.read_marks(&mut self.lock())?;
        Ok(match self.lock().marks.fence(key) {
            None => stored.max(known),
            Some(Some(tail)) => tail,
            Some(None) => known,
        })
    }

    /// Looks at the whole volume, makes what is there durable, and says which files have batches, from which one on.
    pub(super) fn settled_files(&self) -> Result<BTreeMap<u64, u64>, StoreError> {
        self.refresh(&mut self.lock(), true)?;
        self.sync_live()?;
        Ok(self.lock().files.clone())
    }

    pub(super) fn is_deleted(&self, key: SegmentKey) -> bool {
        self.lock().marks.is_deleted(key)
    }

    /// Only the last file can hold a batch that is not durable: a batch is written when the one before it is.
    fn sync_live(&self) -> Result<(), StoreError> {
        let live = self.lock().live.as_ref().map(|live| (self.dir.data(live.number), live.file.clone()));
        match live {
            Some((path, file)) => file.sync_data().map_err(|error| unreadable(&path, &error)),
            None => Ok(()),
        }
    }

    fn read_marks(&self, state: &mut State) -> Result<(), StoreError> {
        let path = self.dir.marks();
        let file = self.dir.disk.open(&path, OpenMode::Read).map_err(|error| unreadable(&path, &error))?;
        state.marks.read_new(&*file).map_err(|error| unreadable(&path, &error))
    }

    /// Which of these segments are fenced, as of now.
    pub(super) fn fenced(
        &self,
        marks: &dyn DiskFile,
        keys: impl Iterator<Item = SegmentKey>,
    ) -> io::Result<BTreeSet<SegmentKey>> {
        let mut state = self.lock();
        state.marks.read_new(marks)?;
        Ok(keys.filter(|key| state.marks.fence(*key).is_some()).collect())
    }

    /// Adds a mark durably and reads all there are.
    pub(super) fn mark(&self, mark: Mark) -> Result<(), StoreError> {
        let path = self.dir.marks();
        let failed = |error| unreadable(&path, &error);
        // The writer made the file when it made the volume: where there is none, the volume is gone.
        self.dir.disk.open(&path, OpenMode::Read).map_err(failed)?;
        let file = self.dir.disk.open(&path, OpenMode::Append).map_err(failed)?;
        file.append(&mark.to_bytes()).map_err(failed)?;
        file.sync_data().map_err(failed)?;
        self.lock().marks.read_new(&*file).map_err(failed)
    }

    /// Stops the segment's writer and agrees with every other taker, for ever, on how many entries the segment holds.
    ///
    /// Why nothing acked is lost: a writer acks a batch only if it finds no mark *after* the batch was durable. If it
    /// found none, the mark came later, and the scan after the mark sees the batch: the tail counts it. If it found
    /// one, it acks nothing of the batch, whether the tail counts it or not. Why takers agree: the first tail in the
    /// file is the one that counts, and every taker reads the file after it added its own; each tail was found by a
    /// scan after a mark, so each covers everything acked.
    pub(super) fn fence(&self, key: SegmentKey, from_batch: u64, epoch: Epoch, taker: u128) -> Result<u64, StoreError> {
        self.read_marks(&mut self.lock())?;
        if let Some(Some(tail)) = self.lock().marks.fence(key) {
            return Ok(tail);
        }
        self.mark(Mark::Fence { key, epoch, taker })?;
        self.refresh(&mut self.lock(), true)?;
        let entries = self.stored(key, from_batch)?;
        // What was scanned may still be on its way to the disk, and must not vanish once it was counted.
        self.sync_live()?;
        self.mark(Mark::Tail { key, epoch, taker, entries })?;
        let agreed = self.lock().marks.fence(key).flatten();
        agreed.ok_or_else(|| StoreError::Unavailable("the tail that was just recorded is not there".into()))
    }
}

/// The number of the first batch of a file, if that looks like one.
fn first_batch(file: &dyn DiskFile, path: &Path) -> Result<Option<u64>, StoreError> {
    let mut head = [0; HEADER_BYTES];
    let got = file.read_at(&mut head, DATA_START).map_err(|error| unreadable(path, &error))?;
    Ok(Header::decode(head.get(..got).unwrap_or_default()).ok().map(|header| header.id.seq))
}

/// A file does not go on where the one before it ends: its writer moved on only when all of that one was durable.
fn skipped(before: Option<(PathBuf, u64, u64)>, path: &Path) -> StoreError {
    let detail = FormatError::Structure("a damaged batch: the next file goes on behind it");
    match before {
        Some((before, end, _)) => corrupt(&before, end, &detail),
        None => corrupt(path, DATA_START, &FormatError::Structure("the batches of the file before it are damaged")),
    }
}

/// The first block and those after it that are read with it: near by, up to `bytes`.
fn together(blocks: &[BlockAt], bytes: u64) -> Vec<BlockAt> {
    let mut run: Vec<BlockAt> = Vec::new();
    let mut start = 0;
    for block in blocks {
        if let Some(last) = run.last() {
            let end = last.offset + u64::from(last.length);
            let read = block.offset + u64::from(block.length) - start;
            if end - start >= bytes || read > READ_MAX || block.offset.saturating_sub(end) > READ_GAP {
                break;
            }
        } else {
            start = block.offset;
        }
        run.push(*block);
    }
    run
}

impl Run {
    pub(super) fn first(&self) -> u64 {
        self.blocks.first().map_or(0, |block| block.first)
    }

    pub(super) fn next(&self) -> u64 {
        self.blocks.last().map_or(0, BlockAt::next)
    }

    /// Leaves out the blocks behind the first that have an entry from `limit` on.
    pub(super) fn end_before(&mut self, limit: u64) {
        let fitting = self.blocks.iter().skip(1).take_while(|block| block.next() <= limit).count();
        self.blocks.truncate(1 + fitting);
    }

    /// Reads the blocks at once, checks them, and takes them apart.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if they are not unharmed.
    pub(super) fn read(&self, key: SegmentKey) -> Result<Vec<Bytes>, StoreError> {
        let (Some(first), Some(last)) = (self.blocks.first(), self.blocks.last()) else { return Ok(Vec::new()) };
        let length = last.offset + u64::from(last.length) - first.offset;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let buffer = self.file.read(length, first.offset).map_err(|error| unreadable(&self.path, &error))?;
        let buffer = Bytes::from(buffer);
        let mut entries = Vec::new();
        for block in &self.blocks {
            let start = usize::try_from(block.offset - first.offset).unwrap_or(usize::MAX).min(buffer.len());
            let end = start.saturating_add(usize::try_from(block.length).unwrap_or(usize::MAX)).min(buffer.len());
            let decoded = block.entry(key).decode(&buffer.slice(start..end));
            entries.extend(decoded.map_err(|error| corrupt(&self.path, block.offset, &error))?);
        }
        Ok(entries)
    }
}
