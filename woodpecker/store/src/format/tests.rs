use bytes::Bytes;
use proptest::prelude::*;
use woodpecker_core::ids::{LogId, SegmentKey, VolumeId};

use super::{
    Batch, BatchHead, BatchId, Block, FormatError, HEADER_BYTES, Header, Kind, Section, encode_batch, encode_pieces,
};

fn id() -> BatchId {
    BatchId { kind: Kind::Data, volume: VolumeId(0xa1), seq: 3, writer: 0xb2, attempt: 0xc3 << 120 | 0xd4 }
}

fn block(log: u64, segment: u64, first: u64, entries: &[&'static [u8]]) -> Block {
    let key = SegmentKey { log: LogId(log), segment };
    Block { key, first, entries: entries.iter().map(|entry| Bytes::from_static(entry)).collect() }
}

fn sample() -> (Vec<Block>, Vec<Section>) {
    let blocks = vec![block(7, 1, 40, &[b"first", b""]), block(0x0102_0304_0506_0708, 2, 0, &[b"other"])];
    (blocks, vec![Section { tag: 9, data: Bytes::from_static(b"abc") }])
}

fn encoded(blocks: &[Block], sections: &[Section]) -> Bytes {
    let mut out = Vec::new();
    encode_batch(&mut out, id(), blocks, sections).unwrap();
    out.into()
}

fn blocks_of(batch: &Batch) -> Vec<Block> {
    let entries = &batch.head.blocks;
    entries
        .iter()
        .map(|entry| Block { key: entry.key, first: entry.first, entries: batch.block(entry).unwrap() })
        .collect()
}

/// Computed by a program of its own from docs/volume-format.md.
const GOLDEN: &str = "\
    57504b4201000100a10000000000000000000000000000000300000000000000\
    b2000000000000000000000000000000d40000000000000000000000000000c3\
    500000000f0000001600000000000000b162cddb5c7afd75\
    0700000000000000010000000000000028000000000000000200000000000000\
    0d000000d4eade64080706050403020102000000000000000000000000000000\
    010000000d0000000900000001e6df9e\
    090000000300000061626360cdb47f\
    05000000000000006669727374050000006f74686572";

#[test]
fn a_small_batch_has_the_documented_bytes() {
    let (blocks, sections) = sample();
    let hex: String = encoded(&blocks, &sections).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, GOLDEN);
}

#[test]
fn a_batch_comes_back_without_a_copy() {
    let (blocks, sections) = sample();
    let bytes = encoded(&blocks, &sections);
    let batch = Batch::decode(&bytes).unwrap();
    assert_eq!(batch.head.header.id, id());
    assert_eq!(blocks_of(&batch), blocks);
    assert_eq!(batch.head.section(9), Some(&Bytes::from_static(b"abc")));
    assert_eq!(batch.head.section(1), None);
    let entry = &batch.block(&batch.head.blocks[0]).unwrap()[0];
    assert!(bytes.as_ptr_range().contains(&entry.as_ptr()), "the entry was copied");
}

#[test]
fn a_batch_in_pieces_is_the_same_batch_padded_and_large_entries_are_not_copied() {
    let large = Bytes::from(vec![7; 100 << 10]);
    let small = Bytes::from_static(b"small");
    let entries = [&small, &large, &large, &small, &Bytes::new(), &large].map(Bytes::clone).to_vec();
    let alone = Block { entries: vec![large.clone()], ..block(8, 1, 0, &[]) };
    let blocks = vec![block(7, 1, 40, &[b"first", b""]), Block { entries, ..block(7, 2, 3, &[]) }, alone];
    let whole = encoded(&blocks, &[]);
    let mut rest = b"of the batch before".to_vec();
    let pieces = encode_pieces(&mut rest, id(), &blocks, 4_096).unwrap();
    let written: Vec<u8> = pieces.slices.iter().flat_map(|slice| slice.to_vec()).collect();
    assert_eq!(pieces.length, written.len() as u64);
    assert_eq!(written.len(), whole.len().next_multiple_of(4_096));
    assert_eq!(written[..whole.len()], whole);
    assert!(written[whole.len()..].iter().all(|byte| *byte == 0));
    assert_eq!(pieces.slices.iter().filter(|slice| slice.as_ptr() == large.as_ptr()).count(), 4);
    let batch = Batch::decode(&written.into()).unwrap();
    assert_eq!(batch.head.header.head_len(), pieces.body);
    assert_eq!((batch.head.blocks.clone(), blocks_of(&batch)), (pieces.blocks, blocks));
}

#[test]
fn what_follows_a_batch_is_left_alone() {
    let (blocks, sections) = sample();
    let mut bytes = encoded(&blocks, &sections).to_vec();
    let length = bytes.len() as u64;
    encode_batch(&mut bytes, BatchId { seq: 4, ..id() }, &blocks, &[]).unwrap();
    let bytes = Bytes::from(bytes);
    let first = Batch::decode(&bytes).unwrap();
    assert_eq!(first.head.header.batch_len(), length);
    let second = Batch::decode(&bytes.slice(usize::try_from(length).unwrap()..)).unwrap();
    assert_eq!((second.head.header.id.seq, blocks_of(&second)), (4, blocks));
}

#[test]
fn a_batch_cut_at_any_byte_says_how_much_is_missing() {
    let (blocks, sections) = sample();
    let whole = encoded(&blocks, &sections);
    for cut in 0..whole.len() {
        match Batch::decode(&whole.slice(..cut)) {
            Err(FormatError::Truncated { have, need }) => {
                assert_eq!(have, cut as u64);
                assert!(need > have && need <= whole.len() as u64);
            }
            other => panic!("cut at {cut}: {other:?}"),
        }
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let (blocks, sections) = sample();
    let whole = encoded(&blocks, &sections);
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let decoded = Batch::decode(&bytes.into());
        assert!(decoded.is_err(), "bit {bit} flipped unnoticed");
    }
}

#[test]
fn a_block_of_another_place_is_refused() {
    let twins = [block(1, 1, 0, &[b"same"]), block(2, 1, 0, &[b"same"])];
    let batch = Batch::decode(&encoded(&twins, &[])).unwrap();
    let [first, second] = [batch.head.blocks[0], batch.head.blocks[1]];
    let swapped = super::BlockEntry { offset: second.offset, ..first };
    assert!(batch.block(&swapped).is_ok(), "the bytes of twins are the same");
    let posing = super::BlockEntry { key: second.key, ..first };
    assert_eq!(batch.block(&posing), Err(FormatError::Checksum("block")));
}

#[test]
fn a_newer_version_is_told_from_garbage() {
    let (blocks, _) = sample();
    let mut bytes = encoded(&blocks, &[]).to_vec();
    bytes[4] = 2;
    assert_eq!(Header::decode(&bytes), Err(FormatError::Checksum("header")));
    let crc = super::checksum([&bytes[..HEADER_BYTES - 4]]);
    bytes[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(Header::decode(&bytes), Err(FormatError::Version(2)));
    assert_eq!(Header::decode(&[0; 200]), Err(FormatError::NoMagic));
}

#[test]
fn what_cannot_be_said_in_the_format_is_refused() {
    let mut out = Vec::new();
    assert!(encode_batch(&mut out, id(), &[block(1, 1, 0, &[])], &[]).is_err());
    assert!(encode_batch(&mut out, id(), &[block(1, 1, u64::MAX, &[b"x"])], &[]).is_err());
}

fn any_block() -> impl Strategy<Value = Block> {
    let entry = prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
    (any::<u64>(), any::<u64>(), 0..u64::MAX / 2, prop::collection::vec(entry, 1..20)).prop_map(
        |(log, segment, first, entries)| Block { key: SegmentKey { log: LogId(log), segment }, first, entries },
    )
}

fn any_section() -> impl Strategy<Value = Section> {
    (any::<u32>(), prop::collection::vec(any::<u8>(), 0..100))
        .prop_map(|(tag, data)| Section { tag, data: data.into() })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_batch_comes_back(
        blocks in prop::collection::vec(any_block(), 0..10),
        sections in prop::collection::vec(any_section(), 0..4),
    ) {
        let batch = Batch::decode(&encoded(&blocks, &sections)).unwrap();
        prop_assert_eq!(blocks_of(&batch), blocks);
        prop_assert_eq!(batch.head.sections, sections);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
        let bytes = Bytes::from(bytes);
        prop_assert!(Batch::decode(&bytes).is_err());
        prop_assert!(BatchHead::decode(&bytes).is_err());
    }

    /// Past the header's checksum, where lengths are believed.
    #[test]
    fn no_lengths_make_it_panic(index in any::<u32>(), sections in any::<u32>(), body in any::<u64>(), rest in prop::collection::vec(any::<u8>(), 0..300)) {
        let (blocks, _) = sample();
        let mut bytes = encoded(&blocks, &[]).to_vec();
        for (small, index, sections, body) in [(false, index, sections, body), (true, index % 256, sections % 64, body % 64)] {
            bytes[64..68].copy_from_slice(&index.to_le_bytes());
            bytes[68..72].copy_from_slice(&sections.to_le_bytes());
            bytes[72..80].copy_from_slice(&body.to_le_bytes());
            bytes.truncate(HEADER_BYTES);
            bytes.extend_from_slice(&rest);
            if small {
                let end = (HEADER_BYTES + usize::try_from(index).unwrap()).min(bytes.len());
                let crc = super::checksum([&bytes[HEADER_BYTES..end]]);
                bytes[80..84].copy_from_slice(&crc.to_le_bytes());
            }
            let crc = super::checksum([&bytes[..HEADER_BYTES - 4]]);
            bytes[84..88].copy_from_slice(&crc.to_le_bytes());
            let _ = Batch::decode(&Bytes::copy_from_slice(&bytes));
        }
    }
}
