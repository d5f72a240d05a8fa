//! The one format of both media: a *batch* is what one write makes durable, and holds *blocks* of many segments.
//! `docs/volume-format.md` describes it byte by byte. All numbers are little-endian, all checksums CRC-32C.
//!
//! Decoding slices what it is given, checks every checksum, and neither panics nor allocates more than a small multiple
//! of its input, whatever the bytes.

mod batch;
mod block;
mod checksum;
mod encode;

#[cfg(test)]
mod tests;

pub use batch::{Batch, BatchHead, BatchId, Header, Kind, Section};
pub use block::{Block, BlockEntry};
pub(crate) use block::{put_entries, take_entries};
pub(crate) use checksum::Checksum;
pub use checksum::checksum;
pub use encode::{Pieces, encode_batch, encode_pieces};

/// The version this program writes, and the only one it reads.
pub const VERSION: u16 = 1;
/// Length of an encoded [`Header`].
pub const HEADER_BYTES: usize = 88;
/// Length of an encoded [`BlockEntry`].
pub const BLOCK_ENTRY_BYTES: usize = 40;

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("not a batch: no magic number")]
    NoMagic,
    #[error("written in format version {0}, this program reads version {VERSION}")]
    Version(u16),
    #[error("unknown kind of batch {0}")]
    Kind(u16),
    #[error("cut off: {have} bytes of {need}")]
    Truncated { have: u64, need: u64 },
    #[error("checksum of the {0} does not match")]
    Checksum(&'static str),
    #[error("{0}")]
    Structure(&'static str),
}

/// Reads fields off the front of a slice. What is missing reads as an error, never as a panic.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl Fields<'_> {
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(FormatError::Structure("a field is cut off"))?;
        self.0 = rest;
        Ok(*field)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, FormatError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FormatError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FormatError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self) -> Result<u128, FormatError> {
        self.array().map(u128::from_le_bytes)
    }
}

/// The first `need` bytes, or how many are missing.
fn prefix(bytes: &[u8], need: usize) -> Result<&[u8], FormatError> {
    bytes.get(..need).ok_or(FormatError::Truncated { have: bytes.len() as u64, need: need as u64 })
}
