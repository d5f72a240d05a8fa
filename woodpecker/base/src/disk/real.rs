//! The operating system's file system.

use std::{
    fs::{self, File},
    io::{self, IoSlice, Write},
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

use futures::{FutureExt, future::BoxFuture};

use super::{Disk, DiskFile, OpenMode, Space};

/// Zeros are written in pieces of this size when a file is preallocated.
const ZEROS: &[u8] = &[0; 256 << 10];
/// Pieces that Linux takes in one call.
const PIECES: usize = 1_024;

/// The machine's file system. Writers run on threads of their own; other work runs on tokio's blocking threads, so
/// [`Disk::run`] must be called within a tokio runtime.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl RealDisk {
    /// Asks the system to forget what it holds of a file in memory, so that the next read comes from the medium. For
    /// measurements.
    ///
    /// # Errors
    /// The operating system's.
    pub fn forget(&self, path: &Path) -> io::Result<()> {
        let file = File::open(path)?;
        // Only clean pages are let go.
        file.sync_data()?;
        Ok(rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?)
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = File::options();
        match mode {
            OpenMode::Read => options.read(true),
            OpenMode::ReadWrite => options.read(true).write(true),
            OpenMode::CreateNew => options.read(true).write(true).create_new(true),
            OpenMode::Append => options.read(true).append(true).create(true),
        };
        Ok(Arc::new(RealFile(options.open(path)?)))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            let name = entry?.file_name().into_string();
            names.push(name.map_err(|name| io::Error::other(format!("a file name that is not UTF-8: {name:?}")))?);
        }
        names.sort_unstable();
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(path)?;
        // Blocks kept for the superuser count neither as free nor as part of the whole.
        let usable = stat.f_blocks.saturating_sub(stat.f_bfree).saturating_add(stat.f_bavail);
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Space { total: bytes(usable), free: bytes(stat.f_bavail) })
    }

    fn spawn_writer(&self, name: &str, writer: BoxFuture<'static, ()>) {
        let run = move || {
            // A runtime of its own, so that the writer can wait for timers as well as for channels.
            match tokio::runtime::Builder::new_current_thread().enable_time().build() {
                Ok(runtime) => runtime.block_on(writer),
                Err(error) => tracing::error!(%error, "a writer thread has no runtime; its volume takes no appends"),
            }
        };
        // The writer is dropped if the thread cannot start; its owner sees that by the closed channel.
        if let Err(error) = std::thread::Builder::new().name(name.to_owned()).spawn(run) {
            tracing::error!(%error, name, "cannot start a writer thread; its volume takes no appends");
        }
    }

    fn run(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        #[expect(clippy::disallowed_methods, reason = "the one place that uses blocking threads")]
        let running = tokio::task::spawn_blocking(work);
        async move {
            // Otherwise it ran, or the runtime is shutting down and nobody is left to be told that it did not.
            if let Err(Ok(panic)) = running.await.map_err(tokio::task::JoinError::try_into_panic) {
                std::panic::resume_unwind(panic);
            }
        }
        .boxed()
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.0.read_at(rest, offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn read(&self, length: usize, offset: u64) -> io::Result<Vec<u8>> {
        let mut buffer = Vec::with_capacity(length);
        while buffer.len() < length {
            let at = offset + buffer.len() as u64;
            match rustix::io::pread(&self.0, rustix::buffer::spare_capacity(&mut buffer), at) {
                Ok(0) => break,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // An allocator may give more than was asked for.
        buffer.truncate(length);
        Ok(buffer)
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn write_pieces_at(&self, mut pieces: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        IoSlice::advance_slices(&mut pieces, 0);
        while !pieces.is_empty() {
            let some = pieces.get(..PIECES).unwrap_or(pieces);
            match rustix::io::pwritev(&self.0, some, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    IoSlice::advance_slices(&mut pieces, written);
                    offset += written as u64;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn append(&self, data: &[u8]) -> io::Result<()> {
        loop {
            match (&self.0).write(data) {
                Ok(written) if written == data.len() => return Ok(()),
                Ok(written) => {
                    return Err(io::Error::new(
                        io::ErrorKind::WriteZero,
                        format!("appended {written} of {} bytes", data.len()),
                    ));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn try_lock(&self) -> io::Result<bool> {
        match self.0.try_lock() {
            Ok(()) => Ok(true),
            Err(fs::TryLockError::WouldBlock) => Ok(false),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        let mut offset = self.len()?;
        if offset >= len {
            return self.0.set_len(len);
        }
        // Reserving first finds a full disk before anything is written, and gives the file few extents.
        match rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::KEEP_SIZE, offset, len - offset) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
        while offset < len {
            let piece = usize::try_from(len - offset).map_or(ZEROS, |left| ZEROS.get(..left).unwrap_or(ZEROS));
            self.0.write_all_at(piece, offset)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_short_only_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = RealDisk.open(&dir.path().join("f"), OpenMode::CreateNew).unwrap();
        file.write_all_at(b"hello world", 0).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(file.read_at(&mut buffer, 6).unwrap(), 5);
        assert_eq!(&buffer[..5], b"world");
        assert_eq!(file.read_at(&mut buffer, 11).unwrap(), 0);
        assert_eq!(file.read_at(&mut buffer, 1).unwrap(), 8);
        assert_eq!(&buffer, b"ello wor");
        for (length, offset, read) in [(8, 6, "world"), (8, 11, ""), (8, 1, "ello wor"), (3, 1, "ell"), (0, 1, "")] {
            assert_eq!(file.read(length, offset).unwrap(), read.as_bytes());
        }
    }

    #[test]
    fn pieces_are_written_in_order_however_many_and_empty_ones_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let file = RealDisk.open(&path, OpenMode::CreateNew).unwrap();
        let letters = (b'a'..=b'z').cycle().take(3_000);
        let data: Vec<Vec<u8>> = letters.enumerate().map(|(i, letter)| vec![letter; i % 5]).collect();
        let mut pieces: Vec<IoSlice<'_>> = data.iter().map(|piece| IoSlice::new(piece)).collect();
        file.write_pieces_at(&mut pieces, 7).unwrap();
        assert_eq!(fs::read(&path).unwrap(), [vec![0; 7], data.concat()].concat());
        file.write_pieces_at(&mut [], 0).unwrap();
        file.write_pieces_at(&mut [IoSlice::new(b"")], 0).unwrap();
    }

    #[test]
    fn create_new_refuses_a_file_that_exists_and_read_one_that_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert_eq!(RealDisk.open(&path, OpenMode::Read).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(RealDisk.open(&path, OpenMode::ReadWrite).unwrap_err().kind(), io::ErrorKind::NotFound);
        RealDisk.open(&path, OpenMode::CreateNew).unwrap();
        assert_eq!(RealDisk.open(&path, OpenMode::CreateNew).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn appenders_of_one_file_do_not_overwrite_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("marks");
        let (one, two) =
            (RealDisk.open(&path, OpenMode::Append).unwrap(), RealDisk.open(&path, OpenMode::Append).unwrap());
        for _ in 0..50 {
            one.append(b"1111").unwrap();
            two.append(b"2222").unwrap();
        }
        one.sync_data().unwrap();
        let written = fs::read(&path).unwrap();
        assert_eq!(written, b"11112222".repeat(50));
    }

    #[test]
    fn a_lock_is_held_until_its_file_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("marks");
        let (one, two) =
            (RealDisk.open(&path, OpenMode::Append).unwrap(), RealDisk.open(&path, OpenMode::Append).unwrap());
        assert!(one.try_lock().unwrap());
        assert!(!two.try_lock().unwrap());
        drop(one);
        assert!(two.try_lock().unwrap());
    }

    #[test]
    fn room_is_that_of_the_file_system_that_holds_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let space = RealDisk.space(dir.path()).unwrap();
        assert!(space.total > 0 && space.free <= space.total, "{space:?}");
        assert!(RealDisk.space(&dir.path().join("none")).is_err());
    }

    #[test]
    fn preallocation_writes_zeros_keeps_data_and_takes_blocks() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let file = RealDisk.open(&path, OpenMode::CreateNew).unwrap();
        file.write_all_at(b"data", 0).unwrap();
        let len = (1 << 20) + 5;
        file.preallocate(len).unwrap();
        file.sync_data().unwrap();
        assert_eq!(file.len().unwrap(), len);
        let content = fs::read(&path).unwrap();
        assert_eq!(&content[..4], b"data");
        assert!(content[4..].iter().all(|byte| *byte == 0));
        assert!(fs::metadata(&path).unwrap().blocks() * 512 >= len, "a hole is not preallocated");
        file.preallocate(2).unwrap();
        assert_eq!(file.len().unwrap(), 2);
    }

    #[test]
    fn names_are_sorted_and_follow_renames_and_removals() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("a/b");
        RealDisk.create_dir_all(&sub).unwrap();
        for name in ["2", "10", "1"] {
            RealDisk.open(&sub.join(name), OpenMode::CreateNew).unwrap();
        }
        RealDisk.rename(&sub.join("2"), &sub.join("0")).unwrap();
        RealDisk.remove_file(&sub.join("10")).unwrap();
        RealDisk.sync_dir(&sub).unwrap();
        assert_eq!(RealDisk.list(&sub).unwrap(), ["0", "1"]);
    }

    #[tokio::test]
    async fn a_writer_runs_on_a_named_thread_and_wakes_on_channels_and_timers() {
        let (to_writer, mut requests) = tokio::sync::mpsc::channel::<u32>(1);
        let (answer, answers) = tokio::sync::oneshot::channel();
        let clock = crate::clock::Clock::system();
        let writer = async move {
            let mut sum = 0;
            while let Some(number) = requests.recv().await {
                sum += number;
            }
            clock.sleep(std::time::Duration::from_millis(1)).await;
            answer.send((sum, std::thread::current().name().map(str::to_owned))).unwrap();
        };
        RealDisk.spawn_writer("volume", writer.boxed());
        for number in 1..=10 {
            to_writer.send(number).await.unwrap();
        }
        drop(to_writer);
        assert_eq!(answers.await.unwrap(), (55, Some("volume".to_owned())));
    }

    #[tokio::test]
    async fn blocking_work_runs_off_the_async_thread() {
        let here = std::thread::current().id();
        let (answer, answers) = tokio::sync::oneshot::channel();
        RealDisk.run(Box::new(move || answer.send(std::thread::current().id()).unwrap())).await;
        assert_ne!(answers.await.unwrap(), here);
    }
}
