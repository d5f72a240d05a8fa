//! The files of a volume: names, the header of a data file, and what an I/O error means.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use woodpecker_base::disk::{Disk, DiskFile, OpenMode};
use woodpecker_core::ids::VolumeId;

use crate::{
    backend::StoreError,
    format::{Fields, FormatError, checksum},
};

use super::index::FileIndex;

/// Batches start at multiples of this, so that no write touches a page that holds what was made durable before.
pub(super) const ALIGN: u64 = 4_096;
/// Where the first batch of a file starts.
pub(super) const DATA_START: u64 = ALIGN;

const MAGIC: [u8; 4] = *b"WPKV";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 36;

pub(super) fn align_up(at: u64) -> u64 {
    at.next_multiple_of(ALIGN)
}

/// A volume's directory.
#[derive(Debug, Clone)]
pub(super) struct VolumeDir {
    pub id: VolumeId,
    pub path: PathBuf,
    pub disk: Arc<dyn Disk>,
}

impl VolumeDir {
    pub(super) fn marks(&self) -> PathBuf {
        self.path.join("marks")
    }

    pub(super) fn data(&self, number: u64) -> PathBuf {
        self.path.join(format!("{number:08}.vol"))
    }

    pub(super) fn sidecar(&self, number: u64) -> PathBuf {
        self.path.join(format!("{number:08}.idx"))
    }

    /// The numbers of the data files, ascending.
    pub(super) fn list(&self) -> io::Result<Vec<u64>> {
        let names = self.disk.list(&self.path)?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| name.strip_suffix(".vol")?.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Creates data file `number` with its header, and makes both the header and the name durable.
    pub(super) fn create(&self, number: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.disk.open(&self.data(number), OpenMode::CreateNew)?;
        let mut page = vec![0; usize::try_from(ALIGN).unwrap_or(HEADER_BYTES)];
        page[..HEADER_BYTES].copy_from_slice(&header(self.id, number));
        file.write_all_at(&page, 0)?;
        file.sync_data()?;
        self.disk.sync_dir(&self.path)?;
        Ok(file)
    }

    /// Opens data file `number`. `None` if its header was never finished: a crash in [`Self::create`], no batch in it.
    pub(super) fn open(&self, number: u64) -> Result<Option<Arc<dyn DiskFile>>, StoreError> {
        let path = self.data(number);
        let file = self.disk.open(&path, OpenMode::Read).map_err(|error| unreadable(&path, &error))?;
        let mut bytes = [0; HEADER_BYTES];
        let got = file.read_at(&mut bytes, 0).map_err(|error| unreadable(&path, &error))?;
        if got < HEADER_BYTES || bytes == [0; HEADER_BYTES] {
            return Ok(None);
        }
        check_header(&bytes, self.id, number).map_err(|error| corrupt(&path, 0, &error))?;
        Ok(Some(file))
    }

    /// The index that was written beside a full file, if it is there and holds.
    pub(super) fn read_sidecar(&self, number: u64) -> Option<FileIndex> {
        let file = self.disk.open(&self.sidecar(number), OpenMode::Read).ok()?;
        let bytes = file.read(usize::try_from(file.len().ok()?).ok()?, 0).ok()?;
        FileIndex::from_bytes(&bytes, self.id, number).ok()
    }

    /// Writes the index beside a file that gets no more batches. Not synced: its checksum says if it is whole.
    pub(super) fn write_sidecar(&self, number: u64, index: &FileIndex) -> io::Result<()> {
        self.disk.open(&self.sidecar(number), OpenMode::CreateNew)?.write_all_at(&index.to_bytes(self.id, number), 0)
    }
}

fn header(volume: VolumeId, number: u64) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[0..4].copy_from_slice(&MAGIC);
    bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
    bytes[8..24].copy_from_slice(&volume.0.to_le_bytes());
    bytes[24..32].copy_from_slice(&number.to_le_bytes());
    let crc = checksum([&bytes[..HEADER_BYTES - 4]]);
    bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn check_header(bytes: &[u8; HEADER_BYTES], volume: VolumeId, number: u64) -> Result<(), FormatError> {
    let mut fields = Fields(bytes);
    if fields.array()? != MAGIC {
        return Err(FormatError::Structure("not a volume file"));
    }
    let version = fields.u16()?;
    if checksum([&bytes[..HEADER_BYTES - 4]]).to_le_bytes() != bytes[HEADER_BYTES - 4..] {
        return Err(FormatError::Checksum("file header"));
    }
    if version != VERSION {
        return Err(FormatError::Version(version));
    }
    let _reserved = fields.u16()?;
    if fields.u128()? != volume.0 || fields.u64()? != number {
        return Err(FormatError::Structure("a file of another volume, or renamed"));
    }
    Ok(())
}

/// A file that could not be read: gone, or worth another try.
pub(super) fn unreadable(path: &Path, error: &io::Error) -> StoreError {
    if error.kind() == io::ErrorKind::NotFound {
        StoreError::NotFound { what: path.display().to_string() }
    } else {
        StoreError::Unavailable(format!("{}: {error}", path.display()).into())
    }
}

pub(super) fn corrupt(path: &Path, offset: u64, detail: &FormatError) -> StoreError {
    StoreError::Corrupt { what: format!("{} at byte {offset}", path.display()), detail: detail.to_string() }
}
