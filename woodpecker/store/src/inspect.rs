//! What a file or an object of ours holds, for people who look at a disk or a bucket.

use bytes::Bytes;
use serde::Serialize;

use crate::{
    disk::marks,
    format::{BatchHead, FormatError, Kind},
    seal,
};

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    pub kind: &'static str,
    pub about: Vec<(&'static str, String)>,
    pub parts: Vec<Part>,
}

/// A batch, a block or a mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Where it starts, in bytes.
    pub at: u64,
    pub what: &'static str,
    pub detail: String,
    /// Why it cannot be read.
    pub problem: Option<String>,
}

const DATA_FILE: &[u8] = b"WPKV";
const BATCH: &[u8] = b"WPKB";
const RUN: &[u8] = b"WPKS";
/// Batches of a data file start at multiples of this.
const PAGE: usize = 4_096;

/// Takes a data file or the marks of a volume, an object of one, or a sealed run apart, and checks every checksum. What is
/// damaged is a part with a problem.
///
/// # Errors
/// It is none of these, or nothing of it can be read.
pub fn inspect(bytes: &Bytes) -> Result<Inspection, FormatError> {
    match bytes.get(..4) {
        Some(DATA_FILE) => Ok(data_file(bytes)),
        Some(magic) if magic == marks::MAGIC => Ok(marks::inspect(bytes)),
        Some(BATCH) => {
            let (mut parts, length) = batch(bytes, 0)?;
            if length != bytes.len()
                && let Some(first) = parts.first_mut()
            {
                first.problem = Some("the object is not as long as its batch".to_owned());
            }
            Ok(Inspection { kind: "object of a volume", about: Vec::new(), parts })
        }
        Some(RUN) => seal::inspect(bytes),
        _ => Err(FormatError::NoMagic),
    }
}

fn data_file(bytes: &Bytes) -> Inspection {
    let (mut parts, mut at) = (Vec::new(), PAGE);
    while at < bytes.len() {
        let rest = bytes.slice(at..);
        if rest.iter().take(PAGE).all(|byte| *byte == 0) {
            break;
        }
        match batch(&rest, at as u64) {
            Ok((some, length)) => {
                parts.extend(some);
                at = at.saturating_add(length).next_multiple_of(PAGE);
            }
            Err(error) => {
                let detail = "what follows cannot be read; a crash can leave this at the end".to_owned();
                parts.push(Part { at: at as u64, what: "batch", detail, problem: Some(error.to_string()) });
                break;
            }
        }
    }
    Inspection { kind: "data file of a volume", about: vec![("ends at", at.to_string())], parts }
}

/// A batch and its blocks, and how long it is.
fn batch(bytes: &Bytes, at: u64) -> Result<(Vec<Part>, usize), FormatError> {
    let head = BatchHead::decode(bytes)?;
    let (header, body) = (&head.header, head.header.head_len());
    let id = header.id;
    let kind = if id.kind == Kind::Fence { "fence" } else { "batch" };
    let detail = format!("{} of volume {}, writer {:032x}, {} blocks", id.seq, id.volume, id.writer, head.blocks.len());
    let mut parts = vec![Part { at, what: kind, detail, problem: None }];
    for block in &head.blocks {
        let start = body + u64::from(block.offset);
        let range = usize::try_from(start).ok().and_then(|from| {
            let to = from.checked_add(usize::try_from(block.length).ok()?)?;
            bytes.get(from..to)
        });
        let cut = || FormatError::Truncated { have: bytes.len() as u64, need: start + u64::from(block.length) };
        let problem = range.ok_or_else(cut).and_then(|stored| block.verify(stored)).err();
        let next = block.first.saturating_add(block.count.into());
        let detail = format!("segment {}, entries {}..{next}, {} bytes", block.key, block.first, block.length);
        let problem = problem.map(|problem| problem.to_string());
        parts.push(Part { at: at + start, what: "block", detail, problem });
    }
    let length = usize::try_from(header.batch_len()).unwrap_or(usize::MAX);
    Ok((parts, length))
}
