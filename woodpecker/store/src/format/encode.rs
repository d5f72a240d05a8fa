//! Putting a batch together, in one piece or in several.

use std::io::IoSlice;

use super::{
    BLOCK_ENTRY_BYTES, BatchId, Block, BlockEntry, FormatError, HEADER_BYTES, Header, Section, batch::SECTION_OVERHEAD,
    block::Apart, checksum,
};

/// Entries from this size on are not worth a copy.
const APART_BYTES: usize = 8 << 10;

/// A batch as it goes to a file.
#[derive(Debug)]
pub struct Pieces<'a> {
    /// Everything, in order.
    pub slices: Vec<IoSlice<'a>>,
    /// Bytes of all slices, padding included.
    pub length: u64,
    /// Where the body starts.
    pub body: u64,
    /// Where the blocks lie in the body.
    pub blocks: Vec<BlockEntry>,
}

/// Appends a batch to `out`, in which each payload is copied once, and says where its blocks lie.
///
/// # Errors
/// A block is empty, or something is larger than its length field can say. `out` then ends with half a batch.
pub fn encode_batch(
    out: &mut Vec<u8>,
    id: BatchId,
    blocks: &[Block],
    sections: &[Section],
) -> Result<Vec<BlockEntry>, FormatError> {
    encode(out, id, blocks, sections, usize::MAX).map(|(index, _)| index)
}

/// A batch without sections, padded with zeros to a multiple of `align`. Large entries stay where they are; `rest` is
/// filled with what is between them.
///
/// # Errors
/// As [`encode_batch`].
pub fn encode_pieces<'a>(
    rest: &'a mut Vec<u8>,
    id: BatchId,
    blocks: &'a [Block],
    align: usize,
) -> Result<Pieces<'a>, FormatError> {
    rest.clear();
    let (index, apart) = encode(rest, id, blocks, &[], APART_BYTES)?;
    let unpadded = rest.len() + apart.iter().map(|apart| apart.entry.len()).sum::<usize>();
    let length = unpadded.next_multiple_of(align);
    rest.resize(rest.len() + length - unpadded, 0);
    let mut slices = Vec::with_capacity(2 * apart.len() + 1);
    let mut done = 0;
    for Apart { at, entry } in apart {
        if at > done {
            slices.push(IoSlice::new(&rest[done..at]));
            done = at;
        }
        slices.push(IoSlice::new(entry));
    }
    if done < rest.len() {
        slices.push(IoSlice::new(&rest[done..]));
    }
    let body = HEADER_BYTES + blocks.len() * BLOCK_ENTRY_BYTES;
    Ok(Pieces { slices, length: length as u64, body: body as u64, blocks: index })
}

fn encode<'a>(
    out: &mut Vec<u8>,
    id: BatchId,
    blocks: &'a [Block],
    sections: &[Section],
    apart_from: usize,
) -> Result<(Vec<BlockEntry>, Vec<Apart<'a>>), FormatError> {
    let too_large = |_| FormatError::Structure("the batch is too large");
    let start = out.len();
    let index_bytes = blocks.len() * BLOCK_ENTRY_BYTES;
    let sections_bytes: usize = sections.iter().map(|section| SECTION_OVERHEAD + section.data.len()).sum();
    let copied = |block: &Block| {
        let entries = block.entries.iter().map(|entry| entry.len());
        4 * block.entries.len() + entries.filter(|length| *length < apart_from).sum::<usize>()
    };
    out.reserve(HEADER_BYTES + index_bytes + sections_bytes + blocks.iter().map(copied).sum::<usize>());
    out.resize(start + HEADER_BYTES + index_bytes, 0);
    for Section { tag, data } in sections {
        let at = out.len();
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&u32::try_from(data.len()).map_err(too_large)?.to_le_bytes());
        out.extend_from_slice(data);
        let crc = checksum([&out[at..]]);
        out.extend_from_slice(&crc.to_le_bytes());
    }
    let (mut index, mut apart, mut body) = (Vec::with_capacity(blocks.len()), Vec::new(), 0);
    for block in blocks {
        let placed = block.encode(out, body, apart_from, &mut apart)?;
        body += block.encoded_len();
        index.push(placed);
    }
    for (slot, entry) in out[start + HEADER_BYTES..].chunks_exact_mut(BLOCK_ENTRY_BYTES).zip(&index) {
        slot.copy_from_slice(&entry.to_bytes());
    }
    let header = Header {
        id,
        index_bytes: u32::try_from(index_bytes).map_err(too_large)?,
        sections_bytes: u32::try_from(sections_bytes).map_err(too_large)?,
        body_bytes: body as u64,
        index_crc: checksum([&out[start + HEADER_BYTES..start + HEADER_BYTES + index_bytes]]),
    };
    out[start..start + HEADER_BYTES].copy_from_slice(&header.to_bytes());
    Ok((index, apart))
}
