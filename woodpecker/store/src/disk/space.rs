//! Room to write in: the next data file is made ready in the background while the current one fills.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::future::BoxFuture;
use tokio::sync::oneshot;
use woodpecker_base::disk::DiskFile;

use super::file::{DATA_START, VolumeDir};

/// Zeros are written in steps of this size, so that giving up between two is quick.
const STEP: u64 = 1 << 20;

/// A data file that is being filled.
#[derive(Debug)]
pub(super) struct Room {
    pub number: u64,
    pub file: Arc<dyn DiskFile>,
    /// Where the next batch goes.
    pub at: u64,
    /// Up to here the file was written before: a write there changes no file metadata, so its sync costs a third.
    allocated: u64,
}

impl Room {
    fn new(dir: &VolumeDir, number: u64) -> io::Result<Self> {
        Ok(Self { number, file: dir.create(number)?, at: DATA_START, allocated: DATA_START })
    }

    /// Prepares for a write of `bytes`. Where nothing was allocated ahead, small writes get zeros in advance, for many
    /// of them at once; large ones extend the file by themselves, since to write the zeros would cost as much.
    pub(super) fn reserve(&mut self, bytes: u64, file_bytes: u64) -> io::Result<()> {
        let end = self.at + bytes;
        if end > self.allocated {
            self.allocated = end;
            if bytes < STEP / 8 {
                self.allocated = (end + STEP).min(file_bytes).max(end);
                self.file.preallocate(self.allocated)?;
            }
        }
        Ok(())
    }
}

/// Makes the next file ready.
pub(super) struct Space {
    dir: VolumeDir,
    file_bytes: u64,
    next: Option<Preparing>,
}

struct Preparing {
    /// Asks for the file as it is, without more zeros.
    enough: Arc<AtomicBool>,
    ready: oneshot::Receiver<io::Result<Room>>,
    /// Drives the work where that is not a thread of its own.
    work: BoxFuture<'static, ()>,
}

impl Space {
    pub(super) fn new(dir: VolumeDir, file_bytes: u64) -> Self {
        Self { dir, file_bytes, next: None }
    }

    /// Starts to make file `number` ready; with zeros if `zeroed`.
    fn prepare(&mut self, number: u64, zeroed: bool) {
        let (dir, file_bytes) = (self.dir.clone(), self.file_bytes);
        let enough = Arc::new(AtomicBool::new(!zeroed));
        let (answer, ready) = oneshot::channel();
        let asked = enough.clone();
        let work = self.dir.disk.run(Box::new(move || {
            // Nobody waits for the answer when the volume was closed.
            let _ = answer.send(prepared(&dir, number, file_bytes, &asked));
        }));
        self.next = Some(Preparing { enough, ready, work });
    }

    /// Large batches outrun the zeros: leaves the disk to them.
    pub(super) fn stop_zeroing(&self) {
        if let Some(next) = &self.next {
            next.enough.store(true, Ordering::Relaxed);
        }
    }

    /// File `number` to write in, and starts on the one after it.
    pub(super) async fn take(&mut self, number: u64, zeroed: bool) -> io::Result<Room> {
        let ready = match self.next.take() {
            Some(next) => next.finish().await.ok(),
            None => None,
        };
        // What failed ahead of time, for want of room most likely, may go by now.
        let room = match ready {
            Some(room) => room,
            None => Room::new(&self.dir, number)?,
        };
        self.prepare(number + 1, zeroed);
        Ok(room)
    }

    /// Removes the file that was made ready and not used.
    pub(super) async fn close(&mut self) -> io::Result<()> {
        let Some(next) = self.next.take() else { return Ok(()) };
        let room = next.finish().await?;
        self.dir.disk.remove_file(&self.dir.data(room.number))?;
        self.dir.disk.sync_dir(&self.dir.path)
    }
}

impl Preparing {
    async fn finish(self) -> io::Result<Room> {
        self.enough.store(true, Ordering::Relaxed);
        self.work.await;
        self.ready.await.unwrap_or_else(|_| Err(io::Error::other("the next file was not made ready")))
    }
}

/// A file with zeros in it; none at all if that fails, because others may need its room.
fn prepared(dir: &VolumeDir, number: u64, file_bytes: u64, enough: &AtomicBool) -> io::Result<Room> {
    let room = zeroed(dir, number, file_bytes, enough);
    if let Err(error) = &room {
        tracing::warn!(volume = %dir.id, file = number, %error, "the next file cannot be made ready");
        dir.disk.remove_file(&dir.data(number))?;
    }
    room
}

fn zeroed(dir: &VolumeDir, number: u64, file_bytes: u64, enough: &AtomicBool) -> io::Result<Room> {
    let mut room = Room::new(dir, number)?;
    while room.allocated < file_bytes && !enough.load(Ordering::Relaxed) {
        room.allocated = (room.allocated + STEP).min(file_bytes);
        room.file.preallocate(room.allocated)?;
        room.file.sync_data()?;
    }
    Ok(room)
}
