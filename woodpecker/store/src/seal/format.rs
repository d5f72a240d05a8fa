//! The bytes of a run: header, blocks, index, footer. Every byte is under a checksum, and nothing is between the parts.
//!
//! Decoding slices what it is given, checks every checksum, and neither panics nor allocates more than what the
//! checked parts say, whatever the bytes.

use bytes::Bytes;
use woodpecker_core::{
    ids::{LogId, SealId, SegmentKey},
    record::Compression,
};

use crate::format::{Fields, FormatError, checksum, put_entries, take_entries};

pub(super) const HEADER_BYTES: usize = 52;
pub(super) const INDEX_ENTRY_BYTES: usize = 52;
pub(super) const FOOTER_BYTES: usize = 96;
const VERSION: u16 = 1;
const HEADER_MAGIC: [u8; 4] = *b"WPKS";
const FOOTER_MAGIC: [u8; 4] = *b"WPKF";
/// No block is larger than this before compression: one append and its lengths, with room to spare.
const MAX_RAW_BYTES: u32 = 1 << 29;
const ZSTD_LEVEL: i32 = 1;

/// Which run of which attempt at sealing which segment: part of every checksum, so that a block found in a wrong place
/// fails even if it is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RunId {
    pub key: SegmentKey,
    pub seal: SealId,
    /// The number of the run's first entry.
    pub first: u64,
}

impl RunId {
    fn to_bytes(self) -> [u8; 40] {
        let mut bytes = [0; 40];
        bytes[0..8].copy_from_slice(&self.key.log.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.key.segment.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.seal.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.first.to_le_bytes());
        bytes
    }

    fn take(fields: &mut Fields<'_>) -> Result<Self, FormatError> {
        let key = SegmentKey { log: LogId(fields.u64()?), segment: fields.u64()? };
        Ok(Self { key, seal: SealId(fields.u128()?), first: fields.u64()? })
    }

    /// The header of the run's object.
    pub fn header(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&HEADER_MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..48].copy_from_slice(&self.to_bytes());
        let crc = checksum([&bytes[..HEADER_BYTES - 4]]);
        bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// What an object that begins so says it is.
    pub fn of(object: &[u8]) -> Result<Self, FormatError> {
        let header = object.get(..HEADER_BYTES).ok_or_else(|| cut(object, HEADER_BYTES))?;
        Self::take(&mut opened(header, HEADER_MAGIC, "header")?)
    }

    /// Checks that the object begins as this run does.
    pub fn check_header(self, object: &[u8]) -> Result<(), FormatError> {
        if Self::of(object)? == self { Ok(()) } else { Err(FormatError::Structure("another run's header")) }
    }
}

/// One block, as the index has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockAt {
    pub first: u64,
    pub count: u32,
    /// Bytes before compression.
    pub raw: u32,
    /// Where it starts in the object.
    pub offset: u64,
    pub stored: u32,
    pub compression: Compression,
    /// Wall time in milliseconds between which its entries were appended.
    pub from_ms: u64,
    pub to_ms: u64,
    crc: u32,
}

impl BlockAt {
    /// Appends a block to the run's object.
    pub fn put(
        out: &mut Vec<u8>,
        run: RunId,
        first: u64,
        entries: &[Bytes],
        compression: Compression,
        (from_ms, to_ms): (u64, u64),
    ) -> Result<Self, FormatError> {
        let large = |_| FormatError::Structure("the block is too large");
        let mut raw = Vec::with_capacity(entries.iter().map(|entry| 4 + entry.len()).sum());
        put_entries(&mut raw, entries)?;
        let packed = pack(&raw, compression).filter(|packed| packed.len() < raw.len());
        let compression = if packed.is_some() { compression } else { Compression::None };
        let stored = packed.as_deref().unwrap_or(&raw);
        let offset = out.len() as u64;
        out.extend_from_slice(stored);
        let mut block = Self {
            first,
            count: u32::try_from(entries.len()).map_err(large)?,
            raw: u32::try_from(raw.len())
                .ok()
                .filter(|raw| *raw <= MAX_RAW_BYTES)
                .ok_or(())
                .map_err(|()| FormatError::Structure("the block is too large"))?,
            offset,
            stored: u32::try_from(stored.len()).map_err(large)?,
            compression,
            from_ms,
            to_ms,
            crc: 0,
        };
        block.crc = checksum([&run.to_bytes()[..], &block.described(), stored]);
        Ok(block)
    }

    /// The number after its last entry.
    pub fn next(&self) -> u64 {
        self.first.saturating_add(self.count.into())
    }

    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.stored.into())
    }

    /// Checks the block's bytes and takes them apart.
    pub fn decode(&self, run: RunId, stored: &Bytes) -> Result<Vec<Bytes>, FormatError> {
        if stored.len() as u64 != u64::from(self.stored) {
            return Err(FormatError::Truncated { have: stored.len() as u64, need: self.stored.into() });
        }
        if checksum([&run.to_bytes()[..], &self.described(), stored]) != self.crc {
            return Err(FormatError::Checksum("block"));
        }
        let raw = unpack(stored, self.compression, usize::try_from(self.raw).unwrap_or(usize::MAX))?;
        take_entries(&raw, self.count)
    }

    /// All that the index says of it but its checksum.
    fn described(&self) -> [u8; INDEX_ENTRY_BYTES - 4] {
        let mut bytes = [0; INDEX_ENTRY_BYTES - 4];
        bytes[0..8].copy_from_slice(&self.first.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.count.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.raw.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.stored.to_le_bytes());
        bytes[28] = match self.compression {
            Compression::None => 0,
            Compression::Lz4 => 1,
            Compression::Zstd => 2,
        };
        bytes[32..40].copy_from_slice(&self.from_ms.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.to_ms.to_le_bytes());
        bytes
    }

    fn take(fields: &mut Fields<'_>) -> Result<Self, FormatError> {
        let (first, count, raw) = (fields.u64()?, fields.u32()?, fields.u32()?);
        let (offset, stored) = (fields.u64()?, fields.u32()?);
        let compression = match fields.array::<4>()? {
            [0, 0, 0, 0] => Compression::None,
            [1, 0, 0, 0] => Compression::Lz4,
            [2, 0, 0, 0] => Compression::Zstd,
            _ => return Err(FormatError::Structure("unknown compression")),
        };
        let (from_ms, to_ms, crc) = (fields.u64()?, fields.u64()?, fields.u32()?);
        if count == 0 || raw > MAX_RAW_BYTES || first.checked_add(count.into()).is_none() {
            return Err(FormatError::Structure("impossible numbers in the index"));
        }
        Ok(Self { first, count, raw, offset, stored, compression, from_ms, to_ms, crc })
    }
}

/// What a run holds, from its footer and index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Contents {
    pub run: RunId,
    /// Entries in this run.
    pub entries: u64,
    /// Entries in the whole segment.
    pub segment_entries: u64,
    /// Bytes of the run's entries.
    pub entry_bytes: u64,
    /// Of the run's entries, each with its length before it: what was read from the segment's source.
    pub content: u32,
    pub blocks: Vec<BlockAt>,
}

impl Contents {
    /// Appends index and footer to the run's object, which ends with them.
    pub fn put(&self, out: &mut Vec<u8>) -> Result<(), FormatError> {
        let index = out.len();
        for block in &self.blocks {
            out.extend_from_slice(&block.described());
            out.extend_from_slice(&block.crc.to_le_bytes());
        }
        let length = u32::try_from(out.len() - index).map_err(|_| FormatError::Structure("the index is too large"))?;
        let index_crc = checksum([out.get(index..).unwrap_or_default()]);
        let mut footer = Vec::with_capacity(FOOTER_BYTES);
        footer.extend_from_slice(&FOOTER_MAGIC);
        footer.extend_from_slice(&VERSION.to_le_bytes());
        footer.extend_from_slice(&[0; 2]);
        footer.extend_from_slice(&self.run.to_bytes());
        for number in [self.entries, self.segment_entries, self.entry_bytes, index as u64] {
            footer.extend_from_slice(&number.to_le_bytes());
        }
        for number in [length, index_crc, self.content] {
            footer.extend_from_slice(&number.to_le_bytes());
        }
        let crc = checksum([footer.as_slice()]);
        footer.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&footer);
        Ok(())
    }

    /// How many bytes at the end of the object are index and footer.
    pub fn tail_bytes(footer: &[u8]) -> Result<u64, FormatError> {
        let footer = footer.last_chunk::<FOOTER_BYTES>().ok_or_else(|| cut(footer, FOOTER_BYTES))?;
        let mut fields = opened(footer, FOOTER_MAGIC, "footer")?;
        fields.array::<{ 40 + 32 }>()?;
        Ok(u64::from(fields.u32()?) + FOOTER_BYTES as u64)
    }

    /// Reads index and footer off the end of an object of `object_bytes`; `tail` is at least all of them.
    pub fn take(tail: &[u8], object_bytes: u64, expected: RunId) -> Result<Self, FormatError> {
        let tail_bytes = Self::tail_bytes(tail)?;
        let at = usize::try_from(tail_bytes).ok().and_then(|bytes| tail.len().checked_sub(bytes));
        let tail = at.and_then(|at| tail.get(at..)).ok_or_else(|| cut(tail, FOOTER_BYTES))?;
        let (index, footer) = tail.split_at(tail.len() - FOOTER_BYTES);
        let mut fields = opened(footer, FOOTER_MAGIC, "footer")?;
        let run = RunId::take(&mut fields)?;
        if run != expected {
            return Err(FormatError::Structure("another run's footer"));
        }
        let (entries, segment_entries) = (fields.u64()?, fields.u64()?);
        let (entry_bytes, offset) = (fields.u64()?, fields.u64()?);
        let (_length, index_crc, content) = (fields.u32()?, fields.u32()?, fields.u32()?);
        if checksum([index]) != index_crc {
            return Err(FormatError::Checksum("index"));
        }
        if offset.checked_add(tail_bytes) != Some(object_bytes) {
            return Err(FormatError::Structure("index and footer are not where the footer says"));
        }
        let (rows, rest) = index.as_chunks::<INDEX_ENTRY_BYTES>();
        if !rest.is_empty() {
            return Err(FormatError::Structure("the index ends within an entry"));
        }
        let blocks = rows.iter().map(|row| BlockAt::take(&mut Fields(row))).collect::<Result<Vec<_>, _>>()?;
        let contents = Self { run, entries, segment_entries, entry_bytes, content, blocks };
        contents.check(offset)?;
        Ok(contents)
    }

    /// The blocks follow one another, in entries and in bytes, from the header to the index.
    fn check(&self, index: u64) -> Result<(), FormatError> {
        let (mut next, mut offset) = (self.run.first, HEADER_BYTES as u64);
        for block in &self.blocks {
            if block.first != next || block.offset != offset {
                return Err(FormatError::Structure("a gap between two blocks"));
            }
            (next, offset) = (block.next(), block.end());
        }
        let whole = next.checked_sub(self.run.first) == Some(self.entries) && offset == index;
        if whole && next <= self.segment_entries && !self.blocks.is_empty() {
            return Ok(());
        }
        Err(FormatError::Structure("the blocks are not what the footer says"))
    }
}

/// The fields of a header or footer, behind magic and version, if its checksum holds.
fn opened<'a>(bytes: &'a [u8], magic: [u8; 4], what: &'static str) -> Result<Fields<'a>, FormatError> {
    let (body, crc) = bytes.split_last_chunk::<4>().ok_or_else(|| cut(bytes, 4))?;
    let mut fields = Fields(body);
    if fields.array()? != magic {
        return Err(FormatError::NoMagic);
    }
    if u32::from_le_bytes(*crc) != checksum([body]) {
        return Err(FormatError::Checksum(what));
    }
    let version = fields.u16()?;
    if version != VERSION {
        return Err(FormatError::Version(version));
    }
    fields.u16()?;
    Ok(fields)
}

fn cut(bytes: &[u8], need: usize) -> FormatError {
    FormatError::Truncated { have: bytes.len() as u64, need: need as u64 }
}

/// `None` when it is not to be, or cannot be, compressed.
fn pack(raw: &[u8], compression: Compression) -> Option<Vec<u8>> {
    match compression {
        Compression::None => None,
        Compression::Lz4 => Some(lz4_flex::block::compress(raw)),
        Compression::Zstd => zstd::bulk::compress(raw, ZSTD_LEVEL).ok(),
    }
}

fn unpack(stored: &Bytes, compression: Compression, raw: usize) -> Result<Bytes, FormatError> {
    let unpacked = match compression {
        Compression::None => return Ok(stored.clone()),
        Compression::Lz4 => lz4_flex::block::decompress(stored, raw).ok(),
        Compression::Zstd => zstd::bulk::decompress(stored, raw).ok(),
    };
    let whole = unpacked.filter(|unpacked| unpacked.len() == raw);
    whole.map(Bytes::from).ok_or(FormatError::Structure("a block cannot be decompressed"))
}
