//! The file system, as far as a volume needs it: a seam that the simulation replaces with a disk that loses what was
//! not synced.

use std::{
    fmt,
    io::{self, IoSlice},
    path::Path,
    sync::Arc,
};

use futures::future::BoxFuture;

pub use self::real::RealDisk;

mod real;

/// An open file. All calls are synchronous and may block; run them where [`Disk::run`] or [`Disk::spawn_writer`] says.
#[expect(clippy::len_without_is_empty, reason = "nobody asks a file whether it is empty")]
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end of the file.
    ///
    /// # Errors
    /// The operating system's.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// As [`DiskFile::read_at`], into memory of its own; a disk that can fills it without clearing it first.
    ///
    /// # Errors
    /// The operating system's.
    fn read(&self, length: usize, offset: u64) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; length];
        let read = self.read_at(&mut buffer, offset)?;
        buffer.truncate(read);
        Ok(buffer)
    }

    /// Writes all bytes at `offset`.
    ///
    /// # Errors
    /// The operating system's; how much was written is then unknown.
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Writes all bytes of the pieces, one after the other, from `offset` on, as one write; a disk that can writes them
    /// from where they are. The slices are used up.
    ///
    /// # Errors
    /// The operating system's; how much was written is then unknown.
    fn write_pieces_at(&self, pieces: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let data: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        self.write_all_at(&data, offset)
    }

    /// Appends in one call, atomically with respect to other appenders of a file opened with [`OpenMode::Append`].
    ///
    /// # Errors
    /// The operating system's.
    fn append(&self, data: &[u8]) -> io::Result<()>;

    /// Makes everything written so far durable (fdatasync). After an error nothing written may be trusted.
    ///
    /// # Errors
    /// The operating system's.
    fn sync_data(&self) -> io::Result<()>;

    /// Takes the file's exclusive advisory lock, which ends when the file is closed, also by the death of the process.
    /// False if another opening of the file holds it.
    ///
    /// # Errors
    /// The operating system's.
    fn try_lock(&self) -> io::Result<bool>;

    /// The file's length in bytes.
    ///
    /// # Errors
    /// The operating system's.
    fn len(&self) -> io::Result<u64>;

    /// Sets the length and fills what is new with zeros that are really written, so that later writes inside it change
    /// no file metadata (a sync then costs a third). Does not sync.
    ///
    /// # Errors
    /// The operating system's; a full disk among them.
    fn preallocate(&self, len: u64) -> io::Result<()>;
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    Read,
    ReadWrite,
    /// Fails if the file exists.
    CreateNew,
    /// Creates the file if need be; [`DiskFile::append`] adds at its end.
    Append,
}

/// Room on a file system, in bytes, as far as this process may use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub total: u64,
    pub free: u64,
}

/// The file system and where its blocking work runs.
pub trait Disk: Send + Sync + fmt::Debug + 'static {
    /// Opens a file.
    ///
    /// # Errors
    /// The operating system's.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;

    /// Creates a directory and its parents.
    ///
    /// # Errors
    /// The operating system's.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// The operating system's.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Renames within one file system, replacing the target.
    ///
    /// # Errors
    /// The operating system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// The operating system's.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Makes the directory's entries (creations, renames, removals) durable.
    ///
    /// # Errors
    /// The operating system's.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Room on the file system that holds `path`.
    ///
    /// # Errors
    /// The operating system's.
    fn space(&self, path: &Path) -> io::Result<Space>;

    /// Runs a volume's writer, a future that blocks in file calls between its awaits: on a thread of its own, or, in
    /// the simulation, as an ordinary task.
    fn spawn_writer(&self, name: &str, writer: BoxFuture<'static, ()>);

    /// Runs one blocking piece of work off the async threads; in the simulation inline.
    fn run(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()>;
}
