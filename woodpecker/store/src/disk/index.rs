//! Where the blocks of one file lie.

use std::collections::BTreeMap;

use woodpecker_core::ids::{LogId, SegmentKey, VolumeId};

use crate::format::{BlockEntry, Fields, FormatError, checksum};

use super::file::DATA_START;

const MAGIC: [u8; 4] = *b"WPKI";
const VERSION: u16 = 1;
const ENTRY_BYTES: usize = 44;

/// One block in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockAt {
    pub first: u64,
    /// From the start of the file.
    pub offset: u64,
    pub count: u32,
    pub length: u32,
    pub crc: u32,
}

/// The blocks of one file, by segment, in entry order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileIndex {
    segments: BTreeMap<SegmentKey, Vec<BlockAt>>,
    blocks: usize,
    /// The number of the file's first batch; `None` while it has none.
    pub first_batch: Option<u64>,
    /// The number of the batch that would come next.
    pub next_batch: u64,
    /// Where the next batch would start.
    pub end: u64,
}

impl BlockAt {
    pub(super) fn next(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    /// What the batch's index says of the block, as far as checking and taking it apart needs.
    pub(super) fn entry(&self, key: SegmentKey) -> BlockEntry {
        BlockEntry { key, first: self.first, count: self.count, offset: 0, length: self.length, crc: self.crc }
    }
}

impl FileIndex {
    pub(super) fn new() -> Self {
        Self { segments: BTreeMap::new(), blocks: 0, first_batch: None, next_batch: 0, end: DATA_START }
    }

    /// Adds a batch: its number, where its body starts, its blocks, and where the next batch starts.
    pub(super) fn push(&mut self, seq: u64, body: u64, blocks: &[BlockEntry], end: u64) -> Result<(), FormatError> {
        for block in blocks {
            // Of most segments there is one, where segments are many.
            let known = self.segments.entry(block.key).or_insert_with(|| Vec::with_capacity(1));
            if known.last().is_some_and(|last| last.next() != block.first) {
                return Err(FormatError::Structure("the entries of a segment do not follow one another"));
            }
            let offset = body + u64::from(block.offset);
            known.push(BlockAt {
                first: block.first,
                offset,
                count: block.count,
                length: block.length,
                crc: block.crc,
            });
            self.blocks += 1;
        }
        self.first_batch.get_or_insert(seq);
        self.next_batch = seq + 1;
        self.end = end;
        Ok(())
    }

    /// The file's blocks of a segment; empty if it has none.
    pub(super) fn blocks(&self, key: SegmentKey) -> &[BlockAt] {
        self.segments.get(&key).map_or(&[], Vec::as_slice)
    }

    /// The segments that have blocks in the file.
    pub(super) fn segments(&self) -> impl Iterator<Item = SegmentKey> {
        self.segments.keys().copied()
    }

    /// Bytes of memory the index takes, about.
    pub(super) fn weight(&self) -> u64 {
        (self.blocks * size_of::<BlockAt>() + self.segments.len() * 96) as u64
    }

    /// The content of the sidecar file `<number>.idx`.
    pub(super) fn to_bytes(&self, volume: VolumeId, number: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(80 + self.blocks * ENTRY_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&volume.0.to_le_bytes());
        for field in [number, self.first_batch.unwrap_or_default(), self.next_batch, self.end, self.blocks as u64] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        for (key, blocks) in &self.segments {
            for block in blocks {
                for field in [key.log.0, key.segment, block.first, block.offset] {
                    out.extend_from_slice(&field.to_le_bytes());
                }
                for field in [block.count, block.length, block.crc] {
                    out.extend_from_slice(&field.to_le_bytes());
                }
            }
        }
        let crc = checksum([out.as_slice()]);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a sidecar back. The sidecar only saves a scan: where it does not hold, the file itself is read.
    pub(super) fn from_bytes(bytes: &[u8], volume: VolumeId, number: u64) -> Result<Self, FormatError> {
        let (content, crc) = bytes.split_last_chunk::<4>().ok_or(FormatError::NoMagic)?;
        let mut fields = Fields(content);
        if fields.array()? != MAGIC {
            return Err(FormatError::NoMagic);
        }
        let version = fields.u16()?;
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        if checksum([content]) != u32::from_le_bytes(*crc) {
            return Err(FormatError::Checksum("file index"));
        }
        let _reserved = fields.u16()?;
        if fields.u128()? != volume.0 || fields.u64()? != number {
            return Err(FormatError::Structure("the index of another file"));
        }
        let (first_batch, next_batch, end, blocks) = (fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?);
        let mut index = Self { first_batch: Some(first_batch), next_batch, end, ..Self::new() };
        for _ in 0..blocks {
            let key = SegmentKey { log: LogId(fields.u64()?), segment: fields.u64()? };
            let (first, offset) = (fields.u64()?, fields.u64()?);
            let (count, length, crc) = (fields.u32()?, fields.u32()?, fields.u32()?);
            let block = BlockAt { first, offset, count, length, crc };
            index.segments.entry(key).or_default().push(block);
            index.blocks += 1;
        }
        Ok(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(log: u64, first: u64, count: u32, offset: u32) -> BlockEntry {
        let key = SegmentKey { log: LogId(log), segment: 1 };
        BlockEntry { key, first, count, offset, length: 10, crc: 7 }
    }

    fn sample() -> FileIndex {
        let mut index = FileIndex::new();
        index.push(5, 5_000, &[entry(1, 0, 3, 0), entry(2, 8, 1, 10)], 8_192).unwrap();
        index.push(6, 9_000, &[entry(1, 3, 2, 0)], 12_288).unwrap();
        index
    }

    #[test]
    fn blocks_are_found_by_segment() {
        let index = sample();
        let firsts: Vec<_> = index.blocks(entry(1, 0, 1, 0).key).iter().map(|at| (at.first, at.offset)).collect();
        assert_eq!(firsts, [(0, 5_000), (3, 9_000)]);
        assert!(index.blocks(entry(3, 0, 1, 0).key).is_empty());
        assert_eq!((index.first_batch, index.next_batch, index.end), (Some(5), 7, 12_288));
    }

    #[test]
    fn a_gap_in_a_segment_is_refused() {
        assert!(sample().push(7, 13_000, &[entry(1, 6, 1, 0)], 16_384).is_err());
    }

    #[test]
    fn a_sidecar_comes_back_and_every_flipped_bit_or_cut_is_found() {
        let index = sample();
        let bytes = index.to_bytes(VolumeId(9), 4);
        assert_eq!(FileIndex::from_bytes(&bytes, VolumeId(9), 4), Ok(index));
        assert!(FileIndex::from_bytes(&bytes, VolumeId(9), 5).is_err());
        assert!(FileIndex::from_bytes(&bytes, VolumeId(8), 4).is_err());
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(FileIndex::from_bytes(&bytes, VolumeId(9), 4).is_err(), "bit {bit} flipped unnoticed");
        }
        for cut in 0..bytes.len() {
            assert!(FileIndex::from_bytes(&bytes[..cut], VolumeId(9), 4).is_err(), "cut at {cut} unnoticed");
        }
    }
}
