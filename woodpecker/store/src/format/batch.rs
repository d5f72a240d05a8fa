//! A batch: header, index of blocks, sections, blocks.

use bytes::Bytes;
use woodpecker_core::ids::VolumeId;

use super::{BLOCK_ENTRY_BYTES, BlockEntry, Fields, FormatError, HEADER_BYTES, VERSION, checksum, prefix};

const MAGIC: [u8; 4] = *b"WPKB";
/// Bytes of a section around its data: tag, length, checksum.
pub(super) const SECTION_OVERHEAD: usize = 12;

/// What a batch is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Blocks of entries.
    Data,
    /// The end of a volume: no batch after it exists. Written by who takes over, in object storage.
    Fence,
}

/// Who wrote a batch, and where it belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchId {
    pub kind: Kind,
    pub volume: VolumeId,
    /// Counts the batches of a volume, from 0, without a gap.
    pub seq: u64,
    /// The process.
    pub writer: u128,
    /// The attempt to write: tells a retry of one's own from another's batch.
    pub attempt: u128,
}

/// The fixed part of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub id: BatchId,
    pub index_bytes: u32,
    pub sections_bytes: u32,
    pub body_bytes: u64,
    pub(super) index_crc: u32,
}

/// Typed extra data of a batch, with a checksum of its own. A reader skips tags it does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    pub tag: u32,
    pub data: Bytes,
}

/// A batch without its blocks: enough to know where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchHead {
    pub header: Header,
    /// The blocks in the order they lie in the body, which they fill without a gap.
    pub blocks: Vec<BlockEntry>,
    pub sections: Vec<Section>,
}

/// A whole batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub head: BatchHead,
    body: Bytes,
}

impl Kind {
    fn code(self) -> u16 {
        match self {
            Self::Data => 1,
            Self::Fence => 2,
        }
    }
}

impl Header {
    /// Length of header, index and sections: what [`BatchHead::decode`] needs, and where the body starts.
    #[must_use]
    pub fn head_len(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.index_bytes) + u64::from(self.sections_bytes)
    }

    /// Length of the whole batch.
    #[must_use]
    pub fn batch_len(&self) -> u64 {
        self.head_len().saturating_add(self.body_bytes)
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.id.kind.code().to_le_bytes());
        bytes[8..24].copy_from_slice(&self.id.volume.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.id.seq.to_le_bytes());
        bytes[32..48].copy_from_slice(&self.id.writer.to_le_bytes());
        bytes[48..64].copy_from_slice(&self.id.attempt.to_le_bytes());
        bytes[64..68].copy_from_slice(&self.index_bytes.to_le_bytes());
        bytes[68..72].copy_from_slice(&self.sections_bytes.to_le_bytes());
        bytes[72..80].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[80..84].copy_from_slice(&self.index_crc.to_le_bytes());
        let crc = checksum([&bytes[..84]]);
        bytes[84..88].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the header at the front of `bytes`.
    ///
    /// # Errors
    /// It is none. [`FormatError::Version`] only for a header whose checksum holds, so that garbage is never taken for a
    /// newer format.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = prefix(bytes, HEADER_BYTES)?;
        let mut fields = Fields(bytes);
        if fields.array()? != MAGIC {
            return Err(FormatError::NoMagic);
        }
        let (version, kind) = (fields.u16()?, fields.u16()?);
        let (volume, seq) = (VolumeId(fields.u128()?), fields.u64()?);
        let (writer, attempt) = (fields.u128()?, fields.u128()?);
        let (index_bytes, sections_bytes, body_bytes) = (fields.u32()?, fields.u32()?, fields.u64()?);
        let index_crc = fields.u32()?;
        if fields.u32()? != checksum([&bytes[..HEADER_BYTES - 4]]) {
            return Err(FormatError::Checksum("header"));
        }
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        let kind = match kind {
            1 => Kind::Data,
            2 => Kind::Fence,
            other => return Err(FormatError::Kind(other)),
        };
        let id = BatchId { kind, volume, seq, writer, attempt };
        Ok(Self { id, index_bytes, sections_bytes, body_bytes, index_crc })
    }
}

impl BatchHead {
    /// Reads header, index and sections at the front of `bytes`.
    ///
    /// # Errors
    /// They are not whole; [`FormatError::Truncated`] says how many bytes it takes.
    pub fn decode(bytes: &Bytes) -> Result<Self, FormatError> {
        let header = Header::decode(bytes)?;
        let need = usize::try_from(header.head_len()).map_err(|_| FormatError::Structure("the index is too large"))?;
        prefix(bytes, need)?;
        let sections_at = need - usize::try_from(header.sections_bytes).unwrap_or(need);
        let index = &bytes[HEADER_BYTES..sections_at];
        if checksum([index]) != header.index_crc {
            return Err(FormatError::Checksum("index"));
        }
        let (entries, rest) = index.as_chunks::<BLOCK_ENTRY_BYTES>();
        if !rest.is_empty() {
            return Err(FormatError::Structure("the index ends within an entry"));
        }
        let blocks = entries.iter().map(BlockEntry::from_bytes).collect::<Result<Vec<_>, _>>()?;
        let mut end = 0;
        for block in &blocks {
            if u64::from(block.offset) != end {
                return Err(FormatError::Structure("blocks do not lie one after the other"));
            }
            end += u64::from(block.length);
        }
        if end != header.body_bytes {
            return Err(FormatError::Structure("blocks do not fill the body"));
        }
        let sections = decode_sections(&bytes.slice(sections_at..need))?;
        Ok(Self { header, blocks, sections })
    }

    /// The data of the first section with this tag.
    #[must_use]
    pub fn section(&self, tag: u32) -> Option<&Bytes> {
        self.sections.iter().find(|section| section.tag == tag).map(|section| &section.data)
    }
}

fn decode_sections(bytes: &Bytes) -> Result<Vec<Section>, FormatError> {
    let mut sections = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let mut fields = Fields(&bytes[at..]);
        let (tag, length) = (fields.u32()?, fields.u32()?);
        let cut = FormatError::Structure("a section is cut off");
        let end =
            usize::try_from(length).ok().and_then(|length| length.checked_add(at + 8)).ok_or_else(|| cut.clone())?;
        let data = bytes.get(at..end).ok_or_else(|| cut.clone())?;
        let crc = Fields(bytes.get(end..).ok_or(cut)?).u32()?;
        if crc != checksum([data]) {
            return Err(FormatError::Checksum("section"));
        }
        sections.push(Section { tag, data: bytes.slice(at + 8..end) });
        at = end + 4;
    }
    Ok(sections)
}

impl Batch {
    /// Takes the batch at the front of `bytes` and checks all of it, block by block.
    ///
    /// # Errors
    /// It is not whole; [`FormatError::Truncated`] says how many bytes it takes.
    pub fn decode(bytes: &Bytes) -> Result<Self, FormatError> {
        let head = BatchHead::decode(bytes)?;
        let too_large = |_| FormatError::Structure("the batch is too large");
        let start = usize::try_from(head.header.head_len()).map_err(too_large)?;
        let end = usize::try_from(head.header.batch_len()).map_err(too_large)?;
        prefix(bytes, end)?;
        let batch = Self { head, body: bytes.slice(start..end) };
        for block in &batch.head.blocks {
            block.verify(&batch.block_bytes(block)?)?;
        }
        Ok(batch)
    }

    /// The entries of one of the batch's blocks, without copying them.
    ///
    /// # Errors
    /// The block is not what its entry says.
    pub fn block(&self, entry: &BlockEntry) -> Result<Vec<Bytes>, FormatError> {
        entry.decode(&self.block_bytes(entry)?)
    }

    fn block_bytes(&self, entry: &BlockEntry) -> Result<Bytes, FormatError> {
        let outside = FormatError::Structure("a block lies outside of the body");
        let start = usize::try_from(entry.offset).map_err(|_| outside.clone())?;
        let length = usize::try_from(entry.length).map_err(|_| outside.clone())?;
        let end = start.checked_add(length).filter(|end| *end <= self.body.len()).ok_or(outside)?;
        Ok(self.body.slice(start..end))
    }
}
