//! A disk in memory that fails, stops and forgets when told.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, Weak},
};

use futures::{FutureExt, future::BoxFuture};
use woodpecker_base::{
    disk::{Disk, DiskFile, OpenMode, Space},
    tasks::Tasks,
};

/// One process's way to the machine's files.
#[derive(Debug, Clone, Default)]
pub struct FaultyDisk {
    machine: Arc<Mutex<Machine>>,
    process: Arc<Mutex<Process>>,
}

#[derive(Debug, Default)]
struct Machine {
    files: BTreeMap<PathBuf, Arc<Mutex<Content>>>,
    dirs: BTreeSet<PathBuf>,
}

#[derive(Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// A batch was written since the last sync.
    written: bool,
    lock: Option<(Weak<()>, Arc<Mutex<Process>>)>,
}

/// When something is done to the writes or syncs of data files.
pub type Hook = Box<dyn FnOnce() + Send>;

/// What happens to this process's calls on data files, and what it did.
#[derive(Default)]
pub struct Process {
    pub dead: bool,
    /// No directory can be made for want of room.
    pub no_dirs: bool,
    pub writes: usize,
    pub syncs: usize,
    pub reads: usize,
    pub read_bytes: usize,
    /// The write of this number keeps so many bytes and then fails; `None` for the kind: the process dies.
    pub fail_write: Option<(usize, usize, Option<io::ErrorKind>)>,
    pub fail_sync: Option<usize>,
    pub fail_preallocate: bool,
    /// Runs before the sync of this number.
    pub before_sync: Option<(usize, Hook)>,
    /// Runs after the sync of this number.
    pub after_sync: Option<(usize, Hook)>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("dead", &self.dead).finish_non_exhaustive()
    }
}

impl FaultyDisk {
    /// Another process on the same machine.
    pub fn process(&self) -> Self {
        Self { machine: self.machine.clone(), process: Arc::default() }
    }

    pub fn faults(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap()
    }

    /// The machine stops: this process does nothing any more, and what no process had synced is gone.
    pub fn crash(&self) {
        self.faults().dead = true;
        for content in self.machine.lock().unwrap().files.values() {
            let mut content = content.lock().unwrap();
            content.bytes = content.durable.clone();
        }
    }

    pub fn names(&self) -> Vec<String> {
        let files = &self.machine.lock().unwrap().files;
        files.keys().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }

    /// The only file with this name.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        self.content(name).lock().unwrap().bytes.clone()
    }

    pub fn set_bytes(&self, name: &str, bytes: Vec<u8>) {
        let content = self.content(name);
        let mut content = content.lock().unwrap();
        content.durable = bytes.clone();
        content.bytes = bytes;
    }

    fn content(&self, name: &str) -> Arc<Mutex<Content>> {
        let files = &self.machine.lock().unwrap().files;
        let mut found = files.iter().filter(|(path, _)| path.ends_with(name));
        let content = found.next().unwrap_or_else(|| panic!("no file {name}")).1.clone();
        assert!(found.next().is_none(), "more than one file {name}");
        content
    }

    fn alive(&self) -> io::Result<()> {
        if self.faults().dead { Err(io::Error::other("the process is dead")) } else { Ok(()) }
    }
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        self.alive()?;
        let mut machine = self.machine.lock().unwrap();
        let known = machine.files.get(path).cloned();
        let content = match (mode, known) {
            (OpenMode::CreateNew, Some(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (OpenMode::Read | OpenMode::ReadWrite, None) => return Err(io::ErrorKind::NotFound.into()),
            (_, Some(content)) => content,
            (OpenMode::CreateNew | OpenMode::Append, None) => {
                let content = Arc::<Mutex<Content>>::default();
                machine.files.insert(path.to_owned(), content.clone());
                content
            }
        };
        let is_data = path.extension().is_some_and(|extension| extension == "vol");
        Ok(Arc::new(Handle { disk: self.clone(), content, is_data, token: Arc::default() }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.alive()?;
        if self.faults().no_dirs {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.machine.lock().unwrap().dirs.extend(path.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.alive()?;
        let machine = self.machine.lock().unwrap();
        if !machine.dirs.contains(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let within = machine.files.keys().chain(&machine.dirs).filter(|known| known.parent() == Some(path));
        Ok(within.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.alive()?;
        let mut machine = self.machine.lock().unwrap();
        let content = machine.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        machine.files.insert(to.to_owned(), content);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.alive()?;
        self.machine.lock().unwrap().files.remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        self.alive()
    }

    fn space(&self, _path: &Path) -> io::Result<Space> {
        Ok(Space { total: 1 << 40, free: 1 << 40 })
    }

    fn spawn_writer(&self, _name: &str, writer: BoxFuture<'static, ()>) {
        Tasks::new().spawn(writer);
    }

    fn run(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        work();
        async {}.boxed()
    }
}

#[derive(Debug)]
struct Handle {
    disk: FaultyDisk,
    content: Arc<Mutex<Content>>,
    is_data: bool,
    token: Arc<()>,
}

impl Handle {
    fn put(&self, data: &[u8], offset: usize) {
        let mut content = self.content.lock().unwrap();
        let end = content.bytes.len().max(offset + data.len());
        content.bytes.resize(end, 0);
        content.bytes[offset..offset + data.len()].copy_from_slice(data);
    }
}

impl DiskFile for Handle {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.alive()?;
        self.disk.faults().reads += usize::from(self.is_data);
        let content = self.content.lock().unwrap();
        let rest = content.bytes.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
        let got = rest.len().min(buffer.len());
        buffer[..got].copy_from_slice(&rest[..got]);
        self.disk.faults().read_bytes += if self.is_data { got } else { 0 };
        Ok(got)
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.disk.alive()?;
        let offset = usize::try_from(offset).unwrap();
        // The header page that every file starts with does not count.
        let fault = if self.is_data && offset > 0 {
            self.content.lock().unwrap().written = true;
            let mut process = self.disk.faults();
            process.writes += 1;
            let number = process.writes;
            process.fail_write.filter(|(nth, ..)| *nth == number)
        } else {
            None
        };
        let Some((_, keep, kind)) = fault else {
            self.put(data, offset);
            return Ok(());
        };
        self.put(&data[..keep.min(data.len())], offset);
        self.disk.faults().dead = kind.is_none();
        Err(kind.unwrap_or(io::ErrorKind::Other).into())
    }

    fn append(&self, data: &[u8]) -> io::Result<()> {
        self.disk.alive()?;
        self.content.lock().unwrap().bytes.extend_from_slice(data);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.alive()?;
        let counted = std::mem::take(&mut self.content.lock().unwrap().written);
        let (before, after, failed) = {
            let mut process = self.disk.faults();
            process.syncs += usize::from(counted);
            let number = process.syncs;
            let before = process.before_sync.take_if(|(nth, _)| counted && *nth == number);
            let after = process.after_sync.take_if(|(nth, _)| counted && *nth == number);
            (before, after, counted && process.fail_sync == Some(number))
        };
        if let Some((_, hook)) = before {
            hook();
        }
        if failed {
            return Err(io::Error::other("I/O error"));
        }
        {
            let mut content = self.content.lock().unwrap();
            content.durable = content.bytes.clone();
        }
        if let Some((_, hook)) = after {
            hook();
        }
        Ok(())
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.disk.alive()?;
        let mut content = self.content.lock().unwrap();
        let held = content.lock.as_ref().is_some_and(|(token, holder)| {
            token.upgrade().is_some_and(|token| !Arc::ptr_eq(&token, &self.token)) && !holder.lock().unwrap().dead
        });
        if !held {
            content.lock = Some((Arc::downgrade(&self.token), self.disk.process.clone()));
        }
        Ok(!held)
    }

    fn len(&self) -> io::Result<u64> {
        self.disk.alive()?;
        Ok(self.content.lock().unwrap().bytes.len() as u64)
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        self.disk.alive()?;
        if self.disk.faults().fail_preallocate {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.content.lock().unwrap().bytes.resize(usize::try_from(len).unwrap(), 0);
        Ok(())
    }
}
