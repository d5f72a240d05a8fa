//! What the metadata store keeps of a log: JSON with a version, so that a later release can read an earlier one's and
//! an earlier one refuses a later one's instead of guessing.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::ids::{EntryId, Epoch, LogId, Placement, SealId};

/// The version this release writes, and the only one it reads.
const VERSION: u32 = 1;

/// A log. Every change of its chain of segments is a compare-and-swap of this one record, so they are totally ordered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogRecord {
    pub id: LogId,
    pub name: String,
    pub epoch: Epoch,
    /// Everything up to and including this entry was truncated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncated: Option<EntryId>,
    /// The number of the newest segment, 0 while there is none. It outlives the segment, so that no number returns.
    pub last: u64,
    /// The segments that may still grow, ascending; empty after a clean close. The owner appends to one at a time, and
    /// to a later one only when the one before it is complete and durable.
    #[serde(default)]
    pub open: Vec<OpenSegment>,
    #[serde(default, skip_serializing_if = "LogSettings::is_default")]
    pub settings: LogSettings,
}

/// What an operator wants of one log, part of the [`LogRecord`].
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct LogSettings {
    /// The medium of the segments to come; without it, each owner's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    pub compression: Compression,
    /// What was closed longer ago, in milliseconds, is truncated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_ms: Option<u64>,
    /// The oldest closed segments are truncated until the others hold no more bytes than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_bytes: Option<u64>,
}

impl LogSettings {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How the blocks of sealed segments are compressed. A block that does not get smaller is kept as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    None,
    #[default]
    Lz4,
    Zstd,
}

/// A segment that its owner may append to, part of the [`LogRecord`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpenSegment {
    pub segment: u64,
    /// The name of the medium that holds it.
    pub backend: String,
    pub placement: Placement,
    /// Wall time in milliseconds.
    pub created_ms: u64,
}

/// A segment that will never change again, a record of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClosedSegment {
    #[serde(flatten)]
    pub opened: OpenSegment,
    /// How many entries it holds, forever.
    pub entries: u64,
    /// Bytes of its entries; unknown when it was closed by fencing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Wall time in milliseconds.
    pub closed_ms: u64,
    /// Its final form in object storage, once that is complete and was read back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Sealed>,
}

/// The final form of a segment: objects in object storage that hold its entries, run after run, without a gap.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Sealed {
    /// Part of the objects' names, so that no two attempts at sealing write to one name.
    pub id: SealId,
    /// Ascending; none for a segment without entries.
    pub runs: Vec<SealedRun>,
    /// Wall time in milliseconds.
    pub sealed_ms: u64,
    /// Whether the medium it was written to was told that the segment is needed no more there.
    #[serde(default)]
    pub freed: bool,
}

/// One object of a sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SealedRun {
    /// The number of its first entry.
    pub first: u64,
    /// Length of the object.
    pub bytes: u64,
}

/// A registered reader: nothing from `next` on is collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReaderRecord {
    /// The first entry it has not read.
    pub next: EntryId,
}

/// A record that this release must not act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadRecord(String);

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    v: u32,
    #[serde(flatten)]
    record: T,
}

#[derive(Deserialize)]
struct VersionOnly {
    v: u32,
}

fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    // Plain structs of numbers, strings and lists: serialisation has nothing to fail on.
    serde_json::to_vec(&Versioned { v: VERSION, record }).unwrap_or_default()
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BadRecord> {
    let VersionOnly { v } = serde_json::from_slice(bytes).map_err(|e| BadRecord(e.to_string()))?;
    if v != VERSION {
        return Err(BadRecord(format!("version {v}, this release reads {VERSION}")));
    }
    let Versioned { record, .. } = serde_json::from_slice(bytes).map_err(|e| BadRecord(e.to_string()))?;
    Ok(record)
}

impl LogRecord {
    /// A log that holds nothing and has no owner.
    #[must_use]
    pub fn new(id: LogId, name: &str) -> Self {
        Self {
            id,
            name: name.to_owned(),
            epoch: Epoch(0),
            truncated: None,
            last: 0,
            open: Vec::new(),
            settings: LogSettings::default(),
        }
    }

    /// As stored.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// From what was stored.
    ///
    /// # Errors
    /// Another version, or a chain that no transition leads to.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadRecord> {
        let mut record: Self = decode(bytes)?;
        // It is kept, of every log.
        record.open.shrink_to_fit();
        let ascending = record.open.windows(2).all(|pair| matches!(pair, [a, b] if a.segment < b.segment));
        let newest = record.open.last().is_none_or(|open| open.segment == record.last);
        if !ascending || !newest || record.last == u64::MAX || record.epoch.0 == u64::MAX {
            return Err(BadRecord(format!("impossible chain: epoch {}, last {}", record.epoch, record.last)));
        }
        Ok(record)
    }
}

impl ClosedSegment {
    /// As stored.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// From what was stored.
    ///
    /// # Errors
    /// Another version, or a broken record.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadRecord> {
        let record: Self = decode(bytes)?;
        if let Some(sealed) = &record.sealed {
            let starts = sealed.runs.first().is_none_or(|run| run.first == 0);
            let ascending = sealed.runs.windows(2).all(|pair| matches!(pair, [a, b] if a.first < b.first));
            let covers = sealed.runs.is_empty() == (record.entries == 0)
                && sealed.runs.last().is_none_or(|run| run.first < record.entries);
            if !starts || !ascending || !covers {
                return Err(BadRecord(format!("impossible sealed form of segment {}", record.segment())));
            }
        }
        Ok(record)
    }

    /// Its number.
    #[must_use]
    pub fn segment(&self) -> u64 {
        self.opened.segment
    }
}

impl ReaderRecord {
    /// As stored.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// From what was stored.
    ///
    /// # Errors
    /// Another version, or a broken record.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadRecord> {
        decode(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::VolumeId;

    fn open(segment: u64) -> OpenSegment {
        OpenSegment {
            segment,
            backend: "local".into(),
            placement: Placement::Volume { volume: VolumeId(0xabc), from_batch: 9 },
            created_ms: 5,
        }
    }

    #[test]
    fn records_keep_their_written_form() {
        let mut log = LogRecord::new(LogId(3), "a");
        log.last = 2;
        log.open = vec![open(2)];
        let text = String::from_utf8(log.encode()).unwrap();
        assert_eq!(
            text,
            r#"{"v":1,"id":3,"name":"a","epoch":0,"last":2,"open":[{"segment":2,"backend":"local","placement":{"volume":"00000000000000000000000000000abc","from_batch":9},"created_ms":5}]}"#
        );
        assert_eq!(LogRecord::decode(text.as_bytes()), Ok(log));
        let closed = ClosedSegment { opened: open(1), entries: 7, bytes: Some(70), closed_ms: 6, sealed: None };
        let text = String::from_utf8(closed.encode()).unwrap();
        assert!(text.starts_with(r#"{"v":1,"segment":1,"#) && !text.contains("sealed"), "{text}");
        assert_eq!(ClosedSegment::decode(text.as_bytes()), Ok(closed.clone()));
        let runs = vec![SealedRun { first: 0, bytes: 90 }, SealedRun { first: 4, bytes: 80 }];
        let sealed =
            ClosedSegment { sealed: Some(Sealed { id: SealId(0xdef), runs, sealed_ms: 8, freed: false }), ..closed };
        let text = String::from_utf8(sealed.encode()).unwrap();
        let ending = r#""sealed":{"id":"00000000000000000000000000000def","runs":[{"first":0,"bytes":90},{"first":4,"bytes":80}],"sealed_ms":8,"freed":false}}"#;
        assert!(text.ends_with(ending), "{text}");
        assert_eq!(ClosedSegment::decode(text.as_bytes()), Ok(sealed));
        for impossible in [text.replace(r#""first":0"#, r#""first":1"#), text.replace(r#""first":4"#, r#""first":7"#)] {
            assert!(ClosedSegment::decode(impossible.as_bytes()).is_err(), "{impossible}");
        }
    }

    #[test]
    fn a_later_version_and_an_impossible_chain_are_refused() {
        let log = String::from_utf8(LogRecord::new(LogId(3), "a").encode()).unwrap();
        assert!(LogRecord::decode(log.replace(r#""v":1"#, r#""v":2"#).as_bytes()).is_err());
        assert!(LogRecord::decode(log.replace(r#""last":0"#, r#""last":18446744073709551615"#).as_bytes()).is_err());
        let mut twice = LogRecord::new(LogId(3), "a");
        twice.last = 2;
        twice.open = vec![open(2), open(2)];
        assert!(LogRecord::decode(&twice.encode()).is_err());
        twice.open = vec![open(1)];
        assert!(LogRecord::decode(&twice.encode()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = LogRecord::decode(&bytes);
            let _ = ClosedSegment::decode(&bytes);
            let _ = ReaderRecord::decode(&bytes);
        }
    }
}
