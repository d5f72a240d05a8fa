//! Putting a run together, and checking one that was put together.

use bytes::Bytes;
use woodpecker_core::{
    ids::{SealId, SegmentKey},
    record::Compression,
};

use super::format::{BlockAt, Contents, FOOTER_BYTES, HEADER_BYTES, RunId};
use crate::{
    backend::StoreError,
    format::{Checksum, FormatError},
    inspect::{Inspection, Part},
};

/// A block is closed when its entries have this many bytes: what is read for a single entry, and compressed together.
const BLOCK_BYTES: usize = 256 << 10;

/// What is to be sealed, and how.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    pub key: SegmentKey,
    pub seal: SealId,
    /// Entries in the whole segment.
    pub entries: u64,
    pub compression: Compression,
    /// Wall time in milliseconds between which the entries were appended.
    pub times: (u64, u64),
}

/// Gathers entries of a segment, in order.
#[derive(Debug)]
pub struct RunBuilder {
    source: Source,
    contents: Contents,
    content: Checksum,
    out: Vec<u8>,
    /// The entries of the next block.
    pending: Vec<Bytes>,
    pending_bytes: usize,
    next: u64,
}

/// A finished run, to be stored.
#[derive(Debug, Clone)]
pub struct Run {
    pub(super) id: RunId,
    pub(super) segment_entries: u64,
    /// The checksum of the entries as they came from the source.
    pub(super) content: u32,
    /// The whole object.
    pub bytes: Bytes,
    /// The number after its last entry.
    pub next: u64,
}

impl RunBuilder {
    /// A run that starts at entry `first`.
    #[must_use]
    pub fn new(source: Source, first: u64) -> Self {
        let run = RunId { key: source.key, seal: source.seal, first };
        let contents = Contents {
            run,
            entries: 0,
            segment_entries: source.entries,
            entry_bytes: 0,
            content: 0,
            blocks: Vec::new(),
        };
        let out = run.header().to_vec();
        Self { source, contents, content: Checksum::new(), out, pending: Vec::new(), pending_bytes: 0, next: first }
    }

    /// Adds the next entry.
    ///
    /// # Errors
    /// The block it would be in is too large.
    pub fn push(&mut self, entry: Bytes) -> Result<(), StoreError> {
        add_content(&mut self.content, &entry);
        self.contents.entry_bytes += entry.len() as u64;
        self.pending_bytes += 4 + entry.len();
        self.pending.push(entry);
        self.next += 1;
        if self.pending_bytes >= BLOCK_BYTES { self.close_block() } else { Ok(()) }
    }

    /// Bytes gathered so far; those of the last block before compression.
    #[must_use]
    pub fn gathered(&self) -> usize {
        self.out.len() - HEADER_BYTES + self.pending_bytes
    }

    /// The number of the entry to be added next.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    fn close_block(&mut self) -> Result<(), StoreError> {
        let entries = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        if entries.is_empty() {
            return Ok(());
        }
        let first = self.next - entries.len() as u64;
        let Source { compression, times, .. } = self.source;
        let block = BlockAt::put(&mut self.out, self.contents.run, first, &entries, compression, times);
        self.contents.blocks.push(block.map_err(|error| unfit(self.contents.run, &error))?);
        Ok(())
    }

    /// The object.
    ///
    /// # Errors
    /// Nothing was added, or too much.
    pub fn finish(mut self) -> Result<Run, StoreError> {
        self.close_block()?;
        let id = self.contents.run;
        if self.contents.blocks.is_empty() {
            return Err(unfit(id, &FormatError::Structure("a run without entries")));
        }
        self.contents.entries = self.next - id.first;
        let Self { source, mut contents, content, mut out, next, .. } = self;
        contents.content = content.finish();
        contents.put(&mut out).map_err(|error| unfit(id, &error))?;
        Ok(Run { id, segment_entries: source.entries, content: contents.content, bytes: out.into(), next })
    }
}

impl Run {
    /// Checks every byte of an object that should be this run.
    pub(super) fn check(&self, object: &Bytes) -> Result<(), FormatError> {
        self.id.check_header(object)?;
        let contents = Contents::take(object, object.len() as u64, self.id)?;
        let mut content = Checksum::new();
        for block in &contents.blocks {
            for entry in block.decode(self.id, &slice(object, block.offset, block.end())?)? {
                add_content(&mut content, &entry);
            }
        }
        let same = contents.entries == self.next - self.id.first && contents.segment_entries == self.segment_entries;
        if same && content.finish() == contents.content && contents.content == self.content {
            return Ok(());
        }
        Err(FormatError::Checksum("entries"))
    }
}

/// Takes a run apart for people: what it says it is, and every block with what is wrong with it.
pub(crate) fn inspect(object: &Bytes) -> Result<Inspection, FormatError> {
    let id = RunId::of(object)?;
    let contents = Contents::take(object, object.len() as u64, id)?;
    let about = [
        ("log", id.key.log.to_string()),
        ("segment", id.key.segment.to_string()),
        ("attempt", id.seal.to_string()),
        ("entries", format!("{}..{}", id.first, id.first + contents.entries)),
        ("entries of the segment", contents.segment_entries.to_string()),
        ("bytes of entries", contents.entry_bytes.to_string()),
    ];
    let parts = contents.blocks.iter().map(|block| {
        let problem = slice(object, block.offset, block.end()).and_then(|stored| block.decode(id, &stored)).err();
        let detail = format!(
            "entries {}..{}, {} bytes as {} {:?}, from {} to {} ms",
            block.first,
            block.next(),
            block.raw,
            block.stored,
            block.compression,
            block.from_ms,
            block.to_ms
        );
        Part { at: block.offset, what: "block", detail, problem: problem.map(|problem| problem.to_string()) }
    });
    Ok(Inspection { kind: "sealed run", about: about.into(), parts: parts.collect() })
}

/// Index and footer of an object of which `tail` is the end.
pub(super) fn contents(tail: &[u8], object_bytes: u64, id: RunId) -> Result<Contents, FormatError> {
    if object_bytes < FOOTER_BYTES as u64 {
        return Err(FormatError::Truncated { have: object_bytes, need: FOOTER_BYTES as u64 });
    }
    Contents::take(tail, object_bytes, id)
}

pub(super) fn slice(bytes: &Bytes, from: u64, to: u64) -> Result<Bytes, FormatError> {
    let cut = || FormatError::Truncated { have: bytes.len() as u64, need: to };
    let (from, to) = (usize::try_from(from).map_err(|_| cut())?, usize::try_from(to).map_err(|_| cut())?);
    if from > to || to > bytes.len() {
        return Err(cut());
    }
    Ok(bytes.slice(from..to))
}

fn add_content(content: &mut Checksum, entry: &Bytes) {
    content.add(&(entry.len() as u64).to_le_bytes());
    content.add(entry);
}

fn unfit(run: RunId, error: &FormatError) -> StoreError {
    StoreError::Corrupt { what: format!("segment {} to be sealed", run.key), detail: error.to_string() }
}
