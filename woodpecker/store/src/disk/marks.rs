//! A volume's `marks` file: what others tell its writer, and one another. Append-only records of one size, each added
//! by one `O_APPEND` write, so any process may add one while the volume is being written.

use std::{collections::BTreeMap, fmt, io};

use woodpecker_base::disk::DiskFile;
use woodpecker_core::ids::{Epoch, LogId, SegmentKey};

use crate::{
    format::{Fields, FormatError, checksum},
    inspect::{Inspection, Part},
};

pub(super) const RECORD_BYTES: usize = 64;
pub(crate) const MAGIC: [u8; 4] = *b"WPKM";
const VERSION: u16 = 1;

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// The segment's writer may ack no more.
    Fence { key: SegmentKey, epoch: Epoch, taker: u128 },
    /// A fenced segment holds this many entries. The first such record of a segment counts, for ever.
    Tail { key: SegmentKey, epoch: Epoch, taker: u128, entries: u64 },
    /// The writer failed at this batch and acked nothing from it on: it does not exist.
    Stopped { batch: u64 },
    /// The segment is needed no more.
    Deleted { key: SegmentKey },
}

impl Mark {
    pub(super) fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let none = SegmentKey { log: LogId(0), segment: 0 };
        let (kind, key, epoch, value, taker) = match self {
            Self::Fence { key, epoch, taker } => (1_u16, key, epoch, 0, taker),
            Self::Tail { key, epoch, taker, entries } => (2, key, epoch, entries, taker),
            Self::Stopped { batch } => (3, none, Epoch(0), batch, 0),
            Self::Deleted { key } => (4, key, Epoch(0), 0, 0),
        };
        let mut bytes = [0; RECORD_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6..8].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&key.log.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&key.segment.to_le_bytes());
        bytes[24..32].copy_from_slice(&epoch.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&value.to_le_bytes());
        bytes[40..56].copy_from_slice(&taker.to_le_bytes());
        let crc = checksum([&bytes[..RECORD_BYTES - 4]]);
        bytes[RECORD_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `Err` when the bytes are no record; a whole record that a newer program wrote is a [`FormatError::Version`] or
    /// [`FormatError::Kind`].
    fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> Result<Self, FormatError> {
        let mut fields = Fields(bytes);
        if fields.array()? != MAGIC {
            return Err(FormatError::NoMagic);
        }
        let (version, kind) = (fields.u16()?, fields.u16()?);
        let key = SegmentKey { log: LogId(fields.u64()?), segment: fields.u64()? };
        let (epoch, value, taker) = (Epoch(fields.u64()?), fields.u64()?, fields.u128()?);
        let _reserved = fields.u32()?;
        if fields.u32()? != checksum([&bytes[..RECORD_BYTES - 4]]) {
            return Err(FormatError::Checksum("mark"));
        }
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        match kind {
            1 => Ok(Self::Fence { key, epoch, taker }),
            2 => Ok(Self::Tail { key, epoch, taker, entries: value }),
            3 => Ok(Self::Stopped { batch: value }),
            4 => Ok(Self::Deleted { key }),
            other => Err(FormatError::Kind(other)),
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fence { key, epoch, taker } => write!(f, "segment {key}, epoch {}, taker {taker:032x}", epoch.0),
            Self::Tail { key, epoch, taker, entries } => {
                write!(f, "segment {key}, {entries} entries, epoch {}, taker {taker:032x}", epoch.0)
            }
            Self::Stopped { batch } => write!(f, "from batch {batch} on nothing exists"),
            Self::Deleted { key } => write!(f, "segment {key}"),
        }
    }
}

/// Takes a `marks` file apart. Bytes between records are a part with a problem: an addition that a full disk cut off, or a
/// record that is damaged.
pub(crate) fn inspect(bytes: &[u8]) -> Inspection {
    let (mut parts, mut at): (Vec<Part>, u64) = (Vec::new(), 0);
    let mut rest = bytes;
    while !rest.is_empty() {
        let read = rest.first_chunk().map_or_else(|| Err(FormatError::NoMagic), Mark::from_bytes);
        let whole = matches!(read, Ok(_) | Err(FormatError::Version(_) | FormatError::Kind(_)));
        let what = match &read {
            Ok(Mark::Fence { .. }) => "fence",
            Ok(Mark::Tail { .. }) => "tail",
            Ok(Mark::Stopped { .. }) => "stopped",
            Ok(Mark::Deleted { .. }) => "deleted",
            Err(_) if whole => "mark",
            Err(_) => "gap",
        };
        let (detail, problem) = match read {
            Ok(mark) => (mark.to_string(), None),
            Err(error) => ("passed over, to the next record".to_owned(), Some(error.to_string())),
        };
        // A gap is one part, however long it is.
        if what != "gap" || parts.last().is_none_or(|last| last.what != "gap") {
            parts.push(Part { at, what, detail, problem });
        }
        let taken = if whole { RECORD_BYTES } else { 1 };
        rest = rest.get(taken..).unwrap_or_default();
        at += taken as u64;
    }
    Inspection { kind: "marks of a volume", about: Vec::new(), parts }
}

/// What a `marks` file says, as far as it was read.
#[derive(Debug, Default)]
pub(super) struct Marks {
    fences: BTreeMap<SegmentKey, Option<u64>>,
    /// With whether that was so when some were forgotten last.
    deleted: BTreeMap<SegmentKey, bool>,
    stopped: Option<u64>,
    read: u64,
}

impl Marks {
    /// Reads what was added since the last call. Costs one `fstat` when that is nothing.
    ///
    /// A record that is not all there yet is left for the next call: whoever adds it has not begun to look at the
    /// volume. Bytes that are no record (an addition cut off by a full disk) are skipped, to the next that are one.
    pub(super) fn read_new(&mut self, file: &dyn DiskFile) -> io::Result<()> {
        let len = file.len()?;
        if len < self.read + RECORD_BYTES as u64 {
            return Ok(());
        }
        let Ok(missing) = usize::try_from(len - self.read) else {
            return Err(io::Error::other("the marks file is too large"));
        };
        let bytes = file.read(missing, self.read)?;
        let mut rest = bytes.as_slice();
        while let Some(record) = rest.first_chunk::<RECORD_BYTES>() {
            let taken = match Mark::from_bytes(record) {
                Ok(mark) => {
                    self.add(mark);
                    RECORD_BYTES
                }
                // It may be a fence of a kind that this program does not know: going on could ack what is lost.
                Err(error @ (FormatError::Version(_) | FormatError::Kind(_))) => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, format!("in the marks file: {error}")));
                }
                Err(_) => 1,
            };
            rest = rest.get(taken..).unwrap_or_default();
        }
        self.read += (bytes.len() - rest.len()) as u64;
        Ok(())
    }

    pub(super) fn add(&mut self, mark: Mark) {
        match mark {
            Mark::Fence { key, .. } => {
                self.fences.entry(key).or_default();
            }
            Mark::Tail { key, entries, .. } => {
                self.fences.entry(key).or_default().get_or_insert(entries);
            }
            Mark::Stopped { batch } => {
                self.stopped.get_or_insert(batch);
            }
            Mark::Deleted { key } => {
                self.deleted.entry(key).or_default();
            }
        }
    }

    /// How many segments are known to be deleted.
    pub(super) fn deletions(&self) -> usize {
        self.deleted.len()
    }

    /// Forgets the deleted segments of which nothing `is_held`. Those that are new stay until the next time: something of
    /// them may be on its way into the volume.
    pub(super) fn forget_deleted(&mut self, is_held: impl Fn(SegmentKey) -> bool) {
        self.deleted.retain(|key, known| !std::mem::replace(known, true) || is_held(*key));
    }

    /// `None` for a segment that is not fenced; inside, the tail that was agreed on, if one was.
    pub(super) fn fence(&self, key: SegmentKey) -> Option<Option<u64>> {
        self.fences.get(&key).copied()
    }

    pub(super) fn is_deleted(&self, key: SegmentKey) -> bool {
        self.deleted.contains_key(&key)
    }

    /// The first batch that does not exist because its writer failed at it.
    pub(super) fn stopped(&self) -> Option<u64> {
        self.stopped
    }
}

#[cfg(test)]
mod tests {
    use woodpecker_base::disk::{Disk, OpenMode, RealDisk};

    use super::*;

    const KEY: SegmentKey = SegmentKey { log: LogId(3), segment: 9 };
    const OTHER: SegmentKey = SegmentKey { log: LogId(4), segment: 1 };

    #[test]
    fn a_record_comes_back() {
        let (epoch, taker) = (Epoch(5), u128::MAX - 7);
        for mark in [
            Mark::Fence { key: KEY, epoch, taker },
            Mark::Tail { key: KEY, epoch, taker, entries: 77 },
            Mark::Stopped { batch: 12 },
            Mark::Deleted { key: KEY },
        ] {
            assert_eq!(Mark::from_bytes(&mark.to_bytes()), Ok(mark));
            for bit in 0..RECORD_BYTES * 8 {
                let mut bytes = mark.to_bytes();
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(Mark::from_bytes(&bytes).is_err(), "bit {bit} flipped unnoticed");
            }
        }
    }

    #[test]
    fn a_file_is_shown_record_by_record_with_what_lies_between() {
        let fence = Mark::Fence { key: KEY, epoch: Epoch(5), taker: 7 }.to_bytes();
        let tail = Mark::Tail { key: KEY, epoch: Epoch(5), taker: 7, entries: 77 }.to_bytes();
        let file = [&fence[..], &tail[..33], &tail, &Mark::Deleted { key: OTHER }.to_bytes()].concat();
        let found = crate::inspect::inspect(&file.into()).unwrap();
        let parts: Vec<_> = found.parts.iter().map(|part| (part.at, part.what, part.problem.is_some())).collect();
        assert_eq!(parts, [(0, "fence", false), (64, "gap", true), (97, "tail", false), (161, "deleted", false)]);
        assert!(found.parts[2].detail.contains("77 entries"), "{:?}", found.parts);
    }

    #[test]
    fn records_count_when_they_are_whole_and_the_first_tail_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = RealDisk.open(&dir.path().join("marks"), OpenMode::Append).unwrap();
        let mut marks = Marks::default();
        marks.read_new(&*file).unwrap();
        assert_eq!(marks.fence(KEY), None);

        let (head, tail) = (Mark::Fence { key: KEY, epoch: Epoch(1), taker: 1 }.to_bytes(), 20);
        file.append(&head[..tail]).unwrap();
        marks.read_new(&*file).unwrap();
        assert_eq!(marks.fence(KEY), None, "half a record counted");
        file.append(&head[tail..]).unwrap();
        marks.read_new(&*file).unwrap();
        assert_eq!(marks.fence(KEY), Some(None));

        // A cut-off addition stays where it is; the next record is found behind it.
        file.append(&head[..33]).unwrap();
        marks.read_new(&*file).unwrap();
        for entries in [10, 20] {
            file.append(&Mark::Tail { key: KEY, epoch: Epoch(1), taker: 1, entries }.to_bytes()).unwrap();
            marks.read_new(&*file).unwrap();
        }
        assert_eq!(marks.fence(KEY), Some(Some(10)));
        assert_eq!(marks.fence(OTHER), None);
        assert!(!marks.is_deleted(KEY));

        let mut fresh = Marks::default();
        fresh.read_new(&*file).unwrap();
        assert_eq!(fresh.fence(KEY), Some(Some(10)));

        let mut newer = head;
        newer[6] = 99;
        let crc = checksum([&newer[..RECORD_BYTES - 4]]);
        newer[RECORD_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        file.append(&newer).unwrap();
        assert!(marks.read_new(&*file).is_err(), "a mark that is not understood was passed over");
    }
}
