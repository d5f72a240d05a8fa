//! The real disk with a valve: syncs of data files can be held up, made to fail, or made to cost, and the room can be
//! what a test says.

use std::{
    io,
    path::Path,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use tokio::sync::oneshot;
use woodpecker_base::disk::{Disk, DiskFile, OpenMode, RealDisk, Space};

use crate::lock;

#[derive(Debug, Clone, Default)]
pub struct ValveDisk(Arc<State>);

#[derive(Debug, Default)]
struct State {
    closed: Mutex<bool>,
    opened: Condvar,
    broken: AtomicBool,
    filling: AtomicBool,
    space: Mutex<Option<Space>>,
    /// What the next work off the async threads waits for.
    held: Mutex<Option<Held>>,
    /// Nanoseconds that each byte written costs, and each sync.
    byte_cost: AtomicU64,
    sync_cost: AtomicU64,
}

/// Work is asked for; it goes on when the other end says so.
type Held = (oneshot::Sender<()>, oneshot::Receiver<()>);

impl ValveDisk {
    /// Holds up the next work off the async threads: resolves when it is asked for, and lets it go on.
    pub fn hold_next_work(&self) -> (oneshot::Receiver<()>, oneshot::Sender<()>) {
        let ((asked, is_asked), (go_on, goes_on)) = (oneshot::channel(), oneshot::channel());
        *lock(&self.0.held) = Some((asked, goes_on));
        (is_asked, go_on)
    }

    /// Syncs of data files wait.
    pub fn close(&self) {
        *lock(&self.0.closed) = true;
    }

    pub fn open(&self) {
        *lock(&self.0.closed) = false;
        self.0.opened.notify_all();
    }

    /// Syncs of data files fail from now on.
    pub fn break_down(&self) {
        self.0.broken.store(true, Ordering::Relaxed);
    }

    /// The next write of a data file finds no room, and from then on there is none.
    pub fn fill_up(&self) {
        self.0.filling.store(true, Ordering::Relaxed);
    }

    /// There is so much room, and writes find it.
    pub fn make_room(&self, space: Space) {
        self.0.filling.store(false, Ordering::Relaxed);
        self.set_space(space);
    }

    pub fn set_space(&self, space: Space) {
        *lock(&self.0.space) = Some(space);
    }

    /// Every sync of a data file takes this long, and as much more for every byte before it.
    pub fn set_costs(&self, sync: Duration, bytes_per_second: u64) {
        self.0.sync_cost.store(u64::try_from(sync.as_nanos()).unwrap(), Ordering::Relaxed);
        self.0.byte_cost.store(1_000_000_000 / bytes_per_second, Ordering::Relaxed);
    }
}

impl Disk for ValveDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let file = RealDisk.open(path, mode)?;
        let is_data = path.extension().is_some_and(|extension| extension == "vol");
        Ok(if is_data { Arc::new(ValveFile { file, state: self.0.clone(), written: AtomicU64::new(0) }) } else { file })
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.sync_dir(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let said = *lock(&self.0.space);
        said.map_or_else(|| RealDisk.space(path), Ok)
    }

    fn spawn_writer(&self, name: &str, writer: BoxFuture<'static, ()>) {
        RealDisk.spawn_writer(name, writer);
    }

    fn run(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        let Some((asked, goes_on)) = lock(&self.0.held).take() else { return RealDisk.run(work) };
        async move {
            asked.send(()).unwrap();
            goes_on.await.unwrap();
            RealDisk.run(work).await;
        }
        .boxed()
    }
}

#[derive(Debug)]
struct ValveFile {
    file: Arc<dyn DiskFile>,
    state: Arc<State>,
    written: AtomicU64,
}

impl DiskFile for ValveFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        if self.state.filling.load(Ordering::Relaxed) {
            *lock(&self.state.space) = Some(Space { total: 1 << 40, free: 0 });
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.written.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.file.write_all_at(data, offset)
    }

    fn append(&self, data: &[u8]) -> io::Result<()> {
        self.file.append(data)
    }

    fn sync_data(&self) -> io::Result<()> {
        let written = self.written.swap(0, Ordering::Relaxed);
        if written > 0 {
            let closed = lock(&self.state.closed);
            drop(self.state.opened.wait_while(closed, |closed| *closed).unwrap());
            if self.state.broken.load(Ordering::Relaxed) {
                return Err(io::Error::other("a broken disk"));
            }
            let cost = |of: &AtomicU64| of.load(Ordering::Relaxed);
            let cost = cost(&self.state.sync_cost) + written * cost(&self.state.byte_cost);
            if cost > 0 {
                #[expect(clippy::disallowed_methods, reason = "a modelled disk takes its time on the writer's thread")]
                std::thread::sleep(Duration::from_nanos(cost));
                return Ok(());
            }
        }
        self.file.sync_data()
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.file.try_lock()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        self.file.preallocate(len)
    }
}
