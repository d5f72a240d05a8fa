//! A block: contiguous entries of one segment.

use bytes::Bytes;
use woodpecker_core::ids::{LogId, SegmentKey};

use super::{BLOCK_ENTRY_BYTES, Checksum, Fields, FormatError};

/// Entries of one segment, to be encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    pub key: SegmentKey,
    /// The number of the first entry.
    pub first: u64,
    pub entries: Vec<Bytes>,
}

/// An entry that is written from where it is.
pub(super) struct Apart<'a> {
    /// How much of what was copied comes before it.
    pub at: usize,
    pub entry: &'a Bytes,
}

/// What the index of a batch says about one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockEntry {
    pub key: SegmentKey,
    /// The number of the first entry.
    pub first: u64,
    /// How many entries the block holds, at least one.
    pub count: u32,
    /// Where the block starts, from the start of the batch's body.
    pub offset: u32,
    pub length: u32,
    /// Over the block's identity (`key`, `first`, `count`) and its bytes, so that a block read from a wrong place fails
    /// even if it is whole.
    pub crc: u32,
}

impl Block {
    /// Length of the encoded block.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        self.entries.iter().map(|entry| 4 + entry.len()).sum()
    }

    /// Appends the block to `out`, except the entries of at least `apart_from` bytes, which are noted in `apart` with the
    /// place where they belong. `offset` is where the block starts in the body.
    pub(super) fn encode<'a>(
        &'a self,
        out: &mut Vec<u8>,
        offset: usize,
        apart_from: usize,
        apart: &mut Vec<Apart<'a>>,
    ) -> Result<BlockEntry, FormatError> {
        let too_large = |_| FormatError::Structure("the block is too large");
        if self.entries.is_empty() {
            return Err(FormatError::Structure("the block is empty"));
        }
        let mut placed = BlockEntry {
            key: self.key,
            first: self.first,
            count: u32::try_from(self.entries.len()).map_err(too_large)?,
            offset: u32::try_from(offset).map_err(too_large)?,
            length: u32::try_from(self.encoded_len()).map_err(too_large)?,
            crc: 0,
        };
        placed.next().ok_or(FormatError::Structure("entry numbers overflow"))?;
        let mut sum = placed.identity();
        let mut summed = out.len();
        for entry in &self.entries {
            out.extend_from_slice(&u32::try_from(entry.len()).map_err(too_large)?.to_le_bytes());
        }
        for entry in &self.entries {
            if entry.len() >= apart_from {
                sum.add(&out[summed..]);
                sum.add(entry);
                summed = out.len();
                apart.push(Apart { at: out.len(), entry });
            } else {
                out.extend_from_slice(entry);
            }
        }
        sum.add(&out[summed..]);
        placed.crc = sum.finish();
        Ok(placed)
    }
}

/// Appends a block's content: the length of each entry, then the entries.
pub(crate) fn put_entries(out: &mut Vec<u8>, entries: &[Bytes]) -> Result<(), FormatError> {
    for entry in entries {
        let length = u32::try_from(entry.len()).map_err(|_| FormatError::Structure("the block is too large"))?;
        out.extend_from_slice(&length.to_le_bytes());
    }
    for entry in entries {
        out.extend_from_slice(entry);
    }
    Ok(())
}

/// Takes a block's content apart, without copying the entries.
pub(crate) fn take_entries(block: &Bytes, count: u32) -> Result<Vec<Bytes>, FormatError> {
    let bad = FormatError::Structure("entry lengths do not add up to the block");
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let mut at = count.checked_mul(4).filter(|lengths| *lengths <= block.len()).ok_or_else(|| bad.clone())?;
    let mut lengths = Fields(&block[..at]);
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let end = usize::try_from(lengths.u32()?).ok().and_then(|length| at.checked_add(length));
        let end = end.filter(|end| *end <= block.len()).ok_or_else(|| bad.clone())?;
        entries.push(block.slice(at..end));
        at = end;
    }
    if at == block.len() { Ok(entries) } else { Err(bad) }
}

impl BlockEntry {
    /// The number after the last entry; `None` if it does not exist.
    #[must_use]
    pub fn next(&self) -> Option<u64> {
        self.first.checked_add(self.count.into())
    }

    /// The entries in `block`, without copying them.
    ///
    /// # Errors
    /// The bytes are not this block.
    pub fn decode(&self, block: &Bytes) -> Result<Vec<Bytes>, FormatError> {
        if block.len() as u64 != u64::from(self.length) {
            return Err(FormatError::Truncated { have: block.len() as u64, need: self.length.into() });
        }
        if self.checksum(block) != self.crc {
            return Err(FormatError::Checksum("block"));
        }
        take_entries(block, self.count)
    }

    /// Checks that `block` is this block without taking it apart.
    ///
    /// # Errors
    /// The bytes are not this block.
    pub fn verify(&self, block: &[u8]) -> Result<(), FormatError> {
        if block.len() as u64 != u64::from(self.length) {
            return Err(FormatError::Truncated { have: block.len() as u64, need: self.length.into() });
        }
        if self.checksum(block) == self.crc { Ok(()) } else { Err(FormatError::Checksum("block")) }
    }

    fn checksum(&self, block: &[u8]) -> u32 {
        let mut sum = self.identity();
        sum.add(block);
        sum.finish()
    }

    /// The checksum as far as it does not depend on the block's bytes.
    fn identity(&self) -> Checksum {
        let mut bytes = [0; 28];
        bytes[0..8].copy_from_slice(&self.key.log.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.key.segment.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.count.to_le_bytes());
        let mut sum = Checksum::new();
        sum.add(&bytes);
        sum
    }

    /// The index entry's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; BLOCK_ENTRY_BYTES] {
        let mut bytes = [0; BLOCK_ENTRY_BYTES];
        bytes[0..8].copy_from_slice(&self.key.log.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.key.segment.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.count.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.offset.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.length.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }

    /// Reads an index entry back. Only its own structure is checked.
    ///
    /// # Errors
    /// The numbers make no sense.
    pub fn from_bytes(bytes: &[u8; BLOCK_ENTRY_BYTES]) -> Result<Self, FormatError> {
        let mut fields = Fields(bytes);
        let entry = Self {
            key: SegmentKey { log: LogId(fields.u64()?), segment: fields.u64()? },
            first: fields.u64()?,
            count: fields.u32()?,
            offset: fields.u32()?,
            length: fields.u32()?,
            crc: fields.u32()?,
        };
        if entry.count == 0 || entry.next().is_none() {
            return Err(FormatError::Structure("impossible entry numbers in the index"));
        }
        Ok(entry)
    }
}
