//! A simulated disk: what was not synced is lost, wholly or in part, when its host crashes.
//!
//! File contents become durable with [`DiskFile::sync_data`], names with [`Disk::sync_dir`]. A crash keeps, of the
//! writes since the last sync of a file, any prefix, the last of them possibly torn; a name that was not synced goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::future::BoxFuture;
use woodpecker_base::{
    disk::{Disk, DiskFile, OpenMode},
    tasks::Tasks,
};

/// One host's disk; it outlives the host's software.
#[derive(Debug, Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// The directory tree as programs see it.
    names: BTreeMap<PathBuf, Arc<Content>>,
    /// The directory tree as it would be found after a crash.
    durable_names: BTreeMap<PathBuf, Arc<Content>>,
    directories: BTreeSet<PathBuf>,
    /// Raised by every crash; handles from before it are dead.
    life: u64,
    syncs: u64,
}

#[derive(Debug, Default)]
struct Content {
    bytes: Mutex<Bytes>,
}

#[derive(Debug, Default, Clone)]
struct Bytes {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Writes since the last sync, in order.
    unsynced: Vec<(usize, Vec<u8>)>,
}

impl Bytes {
    fn write(&mut self, offset: usize, data: &[u8]) {
        apply(&mut self.now, offset, data);
        self.unsynced.push((offset, data.to_vec()));
    }
}

fn apply(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if bytes.len() < offset + data.len() {
        bytes.resize(offset + data.len(), 0);
    }
    bytes[offset..offset + data.len()].copy_from_slice(data);
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimDisk {
    /// The power goes: unsynced names vanish, unsynced writes survive up to a random point.
    pub fn crash(&self, random: &mut fastrand::Rng) {
        let mut state = locked(&self.state);
        state.life += 1;
        state.names = state.durable_names.clone();
        for content in state.names.values() {
            let mut bytes = locked(&content.bytes);
            let mut survived = std::mem::take(&mut bytes.durable);
            let unsynced = std::mem::take(&mut bytes.unsynced);
            let kept = random.usize(0..=unsynced.len());
            for (offset, data) in &unsynced[..kept] {
                apply(&mut survived, *offset, data);
            }
            if let Some((offset, data)) = unsynced.get(kept) {
                apply(&mut survived, *offset, &data[..random.usize(0..=data.len())]);
            }
            bytes.now.clone_from(&survived);
            bytes.durable = survived;
        }
    }

    /// How many syncs of files succeeded.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        locked(&self.state).syncs
    }
}

#[derive(Debug)]
struct Handle {
    disk: SimDisk,
    life: u64,
    content: Arc<Content>,
}

impl Handle {
    fn alive(&self) -> io::Result<()> {
        if locked(&self.disk.state).life == self.life { Ok(()) } else { Err(io::Error::other("the host crashed")) }
    }
}

fn index(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::Error::other("offset too large"))
}

impl DiskFile for Handle {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.alive()?;
        let bytes = locked(&self.content.bytes);
        let from = index(offset)?.min(bytes.now.len());
        let count = buffer.len().min(bytes.now.len() - from);
        buffer[..count].copy_from_slice(&bytes.now[from..from + count]);
        Ok(count)
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.alive()?;
        locked(&self.content.bytes).write(index(offset)?, data);
        Ok(())
    }

    fn append(&self, data: &[u8]) -> io::Result<()> {
        self.alive()?;
        let mut bytes = locked(&self.content.bytes);
        let end = bytes.now.len();
        bytes.write(end, data);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.alive()?;
        locked(&self.disk.state).syncs += 1;
        let mut bytes = locked(&self.content.bytes);
        for (offset, data) in std::mem::take(&mut bytes.unsynced) {
            apply(&mut bytes.durable, offset, &data);
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.alive()?;
        Ok(locked(&self.content.bytes).now.len() as u64)
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        self.alive()?;
        let mut bytes = locked(&self.content.bytes);
        let from = bytes.now.len();
        let len = index(len)?;
        if from < len {
            bytes.write(from, &vec![0; len - from]);
        }
        Ok(())
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = locked(&self.state);
        let content = match (state.names.get(path), mode) {
            (Some(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(content), _) => content.clone(),
            (None, OpenMode::Read | OpenMode::ReadWrite) => return Err(io::ErrorKind::NotFound.into()),
            (None, OpenMode::CreateNew | OpenMode::Append) => {
                let content = Arc::new(Content::default());
                state.names.insert(path.into(), content.clone());
                content
            }
        };
        Ok(Arc::new(Handle { disk: self.clone(), life: state.life, content }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = locked(&self.state);
        state.directories.extend(path.ancestors().map(Path::to_path_buf));
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = locked(&self.state);
        if !state.directories.contains(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let below = |entry: &PathBuf| {
            let rest = entry.strip_prefix(path).ok()?;
            Some(rest.components().next()?.as_os_str().to_string_lossy().into_owned())
        };
        let names: BTreeSet<String> = state.names.keys().chain(&state.directories).filter_map(below).collect();
        Ok(names.into_iter().collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = locked(&self.state);
        let content = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.into(), content);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        locked(&self.state).names.remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = locked(&self.state);
        let inside = |entry: &Path| entry.parent() == Some(path);
        state.durable_names.retain(|name, _| !inside(name));
        let synced: Vec<_> =
            state.names.iter().filter(|(name, _)| inside(name)).map(|(n, c)| (n.clone(), c.clone())).collect();
        state.durable_names.extend(synced);
        Ok(())
    }

    fn spawn_writer(&self, _name: &str, writer: BoxFuture<'static, ()>) {
        Tasks::new().spawn(writer);
    }

    fn run(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        Box::pin(async move { work() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(disk: &SimDisk, path: &str) -> Option<Vec<u8>> {
        let file = disk.open(Path::new(path), OpenMode::Read).ok()?;
        let mut buffer = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
        file.read_at(&mut buffer, 0).unwrap();
        Some(buffer)
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_a_prefix_of_the_rest() {
        let mut lengths = BTreeSet::new();
        for seed in 0..50 {
            let disk = SimDisk::default();
            disk.create_dir_all(Path::new("/d")).unwrap();
            let file = disk.open(Path::new("/d/f"), OpenMode::CreateNew).unwrap();
            disk.sync_dir(Path::new("/d")).unwrap();
            file.write_all_at(b"synced", 0).unwrap();
            file.sync_data().unwrap();
            file.write_all_at(b"-lost", 6).unwrap();
            disk.crash(&mut fastrand::Rng::with_seed(seed));
            assert!(file.len().is_err(), "a handle from before the crash is dead");
            let found = contents(&disk, "/d/f").unwrap();
            assert!(b"synced-lost".starts_with(&found) && found.len() >= 6, "{found:?}");
            lengths.insert(found.len());
        }
        assert!(lengths.len() > 3, "torn at many places: {lengths:?}");
    }

    #[test]
    fn a_name_that_was_not_synced_is_lost() {
        let disk = SimDisk::default();
        disk.create_dir_all(Path::new("/d")).unwrap();
        let file = disk.open(Path::new("/d/f"), OpenMode::CreateNew).unwrap();
        file.write_all_at(b"x", 0).unwrap();
        file.sync_data().unwrap();
        disk.crash(&mut fastrand::Rng::with_seed(1));
        assert_eq!(contents(&disk, "/d/f"), None);
    }
}
