//! A simulated disk that the nodes share: what was not synced is lost, wholly or in part, when the host that wrote it
//! crashes.
//!
//! File contents become durable with [`DiskFile::sync_data`], names with [`Disk::sync_dir`]. Of what a host wrote to a
//! file of its own since the last sync, a crash keeps any prefix, the last write of it possibly torn; a name that was not
//! synced goes. What another host has seen stays: hosts that share a disk share its cache, and no cache forgets for one
//! of them only.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::future::BoxFuture;
use woodpecker_base::{
    disk::{Disk, DiskFile, OpenMode, Space},
    tasks::Tasks,
};

type Host = &'static str;

/// One host's view of the disk; it outlives the host's software.
#[derive(Debug, Clone)]
pub struct SimDisk {
    host: Host,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// The directory tree as programs see it.
    names: BTreeMap<PathBuf, Arc<Content>>,
    /// The directory tree as it would be found after every host crashed.
    durable_names: BTreeMap<PathBuf, Arc<Content>>,
    /// What makes the one out of the other, in order; nothing as content is a removal.
    unsynced_names: Vec<(Host, PathBuf, Option<Arc<Content>>)>,
    directories: BTreeSet<PathBuf>,
    /// Raised by every crash of a host; its handles from before are dead.
    lives: BTreeMap<Host, u64>,
    syncs: u64,
}

impl State {
    fn change(&mut self, host: Host, path: &Path, content: Option<Arc<Content>>) {
        set(&mut self.names, path, content.clone());
        self.unsynced_names.push((host, path.into(), content));
    }

    /// Makes the unsynced names that `which` selects durable.
    fn settle(&mut self, which: impl Fn(Host, &Path) -> bool) {
        for (host, path, content) in std::mem::take(&mut self.unsynced_names) {
            if which(host, &path) {
                set(&mut self.durable_names, &path, content);
            } else {
                self.unsynced_names.push((host, path, content));
            }
        }
    }

    fn life(&self, host: Host) -> u64 {
        self.lives.get(host).copied().unwrap_or_default()
    }
}

fn set(names: &mut BTreeMap<PathBuf, Arc<Content>>, path: &Path, content: Option<Arc<Content>>) {
    match content {
        Some(content) => names.insert(path.into(), content),
        None => names.remove(path),
    };
}

#[derive(Debug)]
struct Content {
    creator: Host,
    bytes: Mutex<Bytes>,
}

#[derive(Debug, Default)]
struct Bytes {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Changes since the last sync, in order.
    unsynced: Vec<Change>,
    /// How many of them another host has seen, or made.
    seen: usize,
    /// The life of the host that holds the lock, and which of its handles does.
    lock: Option<(Host, u64, u64)>,
    handles: u64,
}

#[derive(Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => {
                let end = offset + data.len();
                bytes.resize(bytes.len().max(end), 0);
                bytes[*offset..end].copy_from_slice(data);
            }
            Self::Length(len) => bytes.resize(*len, 0),
        }
    }

    /// The part of it that happened when it was cut short.
    fn torn(&self, random: &mut fastrand::Rng) -> Option<Self> {
        match self {
            Self::Write(offset, data) => Some(Self::Write(*offset, data[..random.usize(0..=data.len())].to_vec())),
            Self::Length(_) => None,
        }
    }
}

impl Content {
    /// The bytes, as `host` uses them.
    fn bytes(&self, host: Host) -> MutexGuard<'_, Bytes> {
        let mut bytes = locked(&self.bytes);
        if host != self.creator {
            bytes.seen = bytes.unsynced.len();
        }
        bytes
    }

    fn change(&self, host: Host, change: impl FnOnce(usize) -> Option<Change>) {
        let mut bytes = self.bytes(host);
        if let Some(change) = change(bytes.now.len()) {
            change.apply(&mut bytes.now);
            bytes.unsynced.push(change);
        }
        drop(bytes);
        drop(self.bytes(host));
    }

    fn crash(&self, random: &mut fastrand::Rng) {
        let mut bytes = locked(&self.bytes);
        let changes = std::mem::take(&mut bytes.unsynced);
        let kept = random.usize(bytes.seen..=changes.len());
        let mut survived = std::mem::take(&mut bytes.durable);
        let torn = changes.get(kept).and_then(|change| change.torn(random));
        for change in changes.iter().take(kept).chain(&torn) {
            change.apply(&mut survived);
        }
        bytes.now.clone_from(&survived);
        bytes.durable = survived;
        bytes.seen = 0;
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimDisk {
    /// An empty disk, seen from `host`.
    #[must_use]
    pub fn new(host: Host) -> Self {
        Self { host, state: Arc::default() }
    }

    /// The same disk, seen from another host.
    #[must_use]
    pub fn view(&self, host: Host) -> Self {
        Self { host, state: self.state.clone() }
    }

    /// This host's power goes: its unsynced names vanish, its unsynced writes survive up to a random point.
    pub fn crash(&self, random: &mut fastrand::Rng) {
        let mut state = locked(&self.state);
        *state.lives.entry(self.host).or_default() += 1;
        state.unsynced_names.retain(|(host, ..)| *host != self.host);
        let mut names = state.durable_names.clone();
        for (_, path, content) in &state.unsynced_names {
            set(&mut names, path, content.clone());
        }
        state.names = names;
        for content in state.names.values().filter(|content| content.creator == self.host) {
            content.crash(random);
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
    number: u64,
    content: Arc<Content>,
}

impl Handle {
    fn alive(&self) -> io::Result<()> {
        let alive = locked(&self.disk.state).life(self.disk.host) == self.life;
        if alive { Ok(()) } else { Err(io::Error::other("the host crashed")) }
    }

    fn bytes(&self) -> io::Result<MutexGuard<'_, Bytes>> {
        self.alive()?;
        Ok(self.content.bytes(self.disk.host))
    }

    fn change(&self, change: impl FnOnce(usize) -> Option<Change>) -> io::Result<()> {
        self.alive()?;
        self.content.change(self.disk.host, change);
        Ok(())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut bytes = locked(&self.content.bytes);
        if bytes.lock == Some((self.disk.host, self.life, self.number)) {
            bytes.lock = None;
        }
    }
}

fn index(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::Error::other("offset too large"))
}

impl DiskFile for Handle {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.bytes()?;
        let from = index(offset)?.min(bytes.now.len());
        let count = buffer.len().min(bytes.now.len() - from);
        buffer[..count].copy_from_slice(&bytes.now[from..from + count]);
        Ok(count)
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let offset = index(offset)?;
        self.change(|_| Some(Change::Write(offset, data.to_vec())))
    }

    fn append(&self, data: &[u8]) -> io::Result<()> {
        self.change(|end| Some(Change::Write(end, data.to_vec())))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.alive()?;
        locked(&self.disk.state).syncs += 1;
        let mut bytes = self.bytes()?;
        for change in std::mem::take(&mut bytes.unsynced) {
            change.apply(&mut bytes.durable);
        }
        bytes.seen = 0;
        Ok(())
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.alive()?;
        let own = (self.disk.host, self.life, self.number);
        let state = locked(&self.disk.state);
        let mut bytes = locked(&self.content.bytes);
        let held =
            bytes.lock.is_some_and(|(host, life, handle)| state.life(host) == life && (host, life, handle) != own);
        if !held {
            bytes.lock = Some(own);
        }
        Ok(!held)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes()?.now.len() as u64)
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        let len = index(len)?;
        self.change(|now| (now != len).then_some(Change::Length(len)))
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = locked(&self.state);
        let content = match (state.names.get(path).cloned(), mode) {
            (Some(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(content), _) => {
                // A name that another host has seen stays.
                state.settle(|host, name| host != self.host && name == path);
                content
            }
            (None, OpenMode::Read | OpenMode::ReadWrite) => return Err(io::ErrorKind::NotFound.into()),
            (None, OpenMode::CreateNew | OpenMode::Append) => {
                let content = Arc::new(Content { creator: self.host, bytes: Mutex::default() });
                state.change(self.host, path, Some(content.clone()));
                content
            }
        };
        let life = state.life(self.host);
        let mut bytes = locked(&content.bytes);
        bytes.handles += 1;
        let number = bytes.handles;
        drop(bytes);
        Ok(Arc::new(Handle { disk: self.clone(), life, number, content }))
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
        let content = state.names.get(from).cloned().ok_or(io::ErrorKind::NotFound)?;
        state.change(self.host, to, Some(content));
        state.change(self.host, from, None);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = locked(&self.state);
        if !state.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change(self.host, path, None);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        locked(&self.state).settle(|_, name| name.parent() == Some(path));
        Ok(())
    }

    fn space(&self, _path: &Path) -> io::Result<Space> {
        Ok(Space { total: 1 << 40, free: 1 << 40 })
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
            let disk = SimDisk::new("a");
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
        let disk = SimDisk::new("a");
        disk.create_dir_all(Path::new("/d")).unwrap();
        let file = disk.open(Path::new("/d/f"), OpenMode::CreateNew).unwrap();
        file.write_all_at(b"x", 0).unwrap();
        file.sync_data().unwrap();
        disk.crash(&mut fastrand::Rng::with_seed(1));
        assert_eq!(contents(&disk, "/d/f"), None);
    }

    #[test]
    fn a_crash_takes_nothing_from_other_hosts() {
        for seed in 0..50 {
            let a = SimDisk::new("a");
            let b = a.view("b");
            a.create_dir_all(Path::new("/d")).unwrap();
            let of_a = a.open(Path::new("/d/f"), OpenMode::CreateNew).unwrap();
            of_a.write_all_at(b"seen", 0).unwrap();
            assert_eq!(contents(&b, "/d/f").as_deref(), Some(&b"seen"[..]));
            of_a.write_all_at(b"-unseen", 4).unwrap();
            let of_b = b.open(Path::new("/d/g"), OpenMode::CreateNew).unwrap();
            of_b.write_all_at(b"other", 0).unwrap();
            a.crash(&mut fastrand::Rng::with_seed(seed));
            assert!(of_a.len().is_err(), "a handle from before the crash is dead");
            let found = contents(&b, "/d/f").unwrap();
            assert!(b"seen-unseen".starts_with(&found) && found.len() >= 4, "{found:?}");
            assert_eq!(of_b.len().unwrap(), 5);
            assert_eq!(contents(&b, "/d/g").as_deref(), Some(&b"other"[..]));
        }
    }

    #[test]
    fn a_lock_ends_with_its_handle_and_with_its_host() {
        let a = SimDisk::new("a");
        let b = a.view("b");
        let first = a.open(Path::new("/f"), OpenMode::Append).unwrap();
        a.sync_dir(Path::new("/")).unwrap();
        let second = b.open(Path::new("/f"), OpenMode::Append).unwrap();
        assert!(first.try_lock().unwrap());
        assert!(!second.try_lock().unwrap());
        a.crash(&mut fastrand::Rng::with_seed(1));
        assert!(second.try_lock().unwrap());
        let third = a.open(Path::new("/f"), OpenMode::Append).unwrap();
        drop(first);
        assert!(!third.try_lock().unwrap());
        drop(second);
        assert!(third.try_lock().unwrap());
    }
}
