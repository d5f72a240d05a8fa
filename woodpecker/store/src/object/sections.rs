//! What objects say besides blocks: where segments stand, and for whom a fence was set.

use bytes::{BufMut, Bytes, BytesMut};
use woodpecker_core::ids::{Epoch, LogId, SegmentKey};

use crate::format::{BatchHead, Section};

/// Section of a [`Summary`].
const SUMMARY: u32 = 0x0053_554d;
/// Section of a [`FenceMark`].
const FENCE: u32 = 0x0046_4e43;

/// Objects whose number is a multiple of this carry a summary. Fixed, because takers rely on it.
pub const SUMMARY_EVERY: u64 = 32;

/// How many entries each open segment has in a volume's objects up to and including this one, sorted by key. Who takes a
/// segment over need not read what lies before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary(pub Vec<(SegmentKey, u64)>);

const SUMMARY_ENTRY: usize = 24;

impl Summary {
    pub fn section(&self) -> Section {
        let mut data = BytesMut::with_capacity(self.0.len() * SUMMARY_ENTRY);
        for (key, next) in &self.0 {
            data.put_u64_le(key.log.0);
            data.put_u64_le(key.segment);
            data.put_u64_le(*next);
        }
        Section { tag: SUMMARY, data: data.freeze() }
    }

    /// How many entries the segment has up to this object; `None` when the object does not say.
    pub fn entries_of(head: &BatchHead, key: SegmentKey) -> Option<u64> {
        let (rows, _) = head.section(SUMMARY)?.as_chunks::<SUMMARY_ENTRY>();
        let at = rows.binary_search_by_key(&key, |row| row_of(row).0).ok()?;
        rows.get(at).map(|row| row_of(row).1)
    }
}

fn row_of(row: &[u8; SUMMARY_ENTRY]) -> (SegmentKey, u64) {
    let field = |at: usize| {
        let bytes = row.get(at..).and_then(|rest| rest.first_chunk::<8>());
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    };
    (SegmentKey { log: LogId(field(0)), segment: field(8) }, field(16))
}

/// Which segment a fence was set for, and by which epoch of its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FenceMark {
    pub key: SegmentKey,
    pub epoch: Epoch,
}

impl FenceMark {
    pub fn section(self) -> Section {
        let mut data = BytesMut::with_capacity(24);
        data.put_u64_le(self.key.log.0);
        data.put_u64_le(self.key.segment);
        data.put_u64_le(self.epoch.0);
        Section { tag: FENCE, data: data.freeze() }
    }

    /// The mark in a fence object; `None` when it carries none that can be read.
    pub fn of(head: &BatchHead) -> Option<Self> {
        let data: &Bytes = head.section(FENCE)?;
        let (key, epoch) = row_of(data.first_chunk()?);
        Some(Self { key, epoch: Epoch(epoch) })
    }
}

#[cfg(test)]
mod tests {
    use woodpecker_core::ids::VolumeId;

    use super::*;
    use crate::format::{BatchId, Kind, encode_batch};

    fn head(sections: &[Section]) -> BatchHead {
        let id = BatchId { kind: Kind::Fence, volume: VolumeId(1), seq: 2, writer: 3, attempt: 4 };
        let mut out = Vec::new();
        encode_batch(&mut out, id, &[], sections).unwrap();
        BatchHead::decode(&out.into()).unwrap()
    }

    fn key(log: u64) -> SegmentKey {
        SegmentKey { log: LogId(log), segment: 1 }
    }

    #[test]
    fn a_summary_tells_each_segment_apart() {
        let summary = Summary((0..100).map(|log| (key(log * 2), log + 1000)).collect());
        let head = head(&[summary.section()]);
        for log in 0..100 {
            assert_eq!(Summary::entries_of(&head, key(log * 2)), Some(log + 1000));
            assert_eq!(Summary::entries_of(&head, key(log * 2 + 1)), None);
        }
    }

    #[test]
    fn a_fence_mark_comes_back_and_damage_is_no_mark() {
        let mark = FenceMark { key: key(7), epoch: Epoch(9) };
        assert_eq!(FenceMark::of(&head(&[mark.section()])), Some(mark));
        assert_eq!(FenceMark::of(&head(&[])), None);
        let short = Section { tag: FENCE, data: Bytes::from_static(b"short") };
        assert_eq!(FenceMark::of(&head(std::slice::from_ref(&short))), None);
        assert_eq!(Summary::entries_of(&head(&[Section { tag: SUMMARY, ..short }]), key(1)), None);
    }
}
