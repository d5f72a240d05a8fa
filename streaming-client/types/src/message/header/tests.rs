use proptest::prelude::*;
use prost::Message as _;
use streaming_proto::messages::{
    InsertMessageHeader, ManualFlushMessageHeader, PartitionSegmentAssignment, SegmentAssignment,
};

use super::*;
use crate::Message;

fn manual_flush(header: &[u8]) -> Message {
    let mut message = Message::default();
    message.properties.set_type(MessageType::ManualFlush);
    message.properties.set_header_bytes(header);
    message
}

#[test]
fn rewritten_header_has_its_known_text() {
    let mut message = Message::default();
    message.properties.set_type(MessageType::Insert);
    message.properties.set("_h", "CAESBwgCEAoYgAg=");
    message
        .rewrite_header(|header: &mut InsertMessageHeader| {
            header.partitions[0].segment_assignment = Some(SegmentAssignment { segment_id: 777 });
        })
        .unwrap();
    assert_eq!(message.properties.get("_h"), Some("CAESDAgCEAoYgAgiAwiJBg=="));
}

#[test]
fn rewriting_keeps_fields_that_are_newer_than_we_are() {
    let header = ManualFlushMessageHeader { collection_id: 1, flush_ts: 2, segment_ids: vec![] };
    // Fields 15 (varint), 16 (bytes), 17 (32 bits), 18 (64 bits), which no header here has.
    let newer = [
        &[0x78, 0x07][..],
        &[0x82, 0x01, 0x01, 0xff],
        &[0x8d, 0x01, 1, 2, 3, 4],
        &[0x91, 0x01, 1, 2, 3, 4, 5, 6, 7, 8],
    ];
    let mut bytes = header.encode_to_vec();
    bytes.extend(newer.concat());
    let mut message = manual_flush(&bytes);
    message.rewrite_header(|header: &mut ManualFlushMessageHeader| header.segment_ids = vec![5, 6]).unwrap();

    let rewritten = message.properties.header_bytes().unwrap().to_vec();
    let changed = ManualFlushMessageHeader { segment_ids: vec![5, 6], ..header };
    assert_eq!(message.header(), Ok(changed.clone()));
    assert_eq!(rewritten, [newer.concat(), changed.encode_to_vec()].concat());
}

#[test]
fn a_default_value_that_was_written_out_does_not_win_over_the_new_one() {
    // flush_ts = 0, written out as peers of other languages may.
    let mut message = manual_flush(&[0x10, 0x00]);
    message.rewrite_header(|header: &mut ManualFlushMessageHeader| header.flush_ts = 9).unwrap();
    assert_eq!(message.header::<ManualFlushMessageHeader>().unwrap().flush_ts, 9);
}

#[test]
fn rewriting_a_header_that_is_none_changes_nothing() {
    let mut message = manual_flush(&[0x08]);
    let before = message.clone();
    assert!(message.rewrite_header(|_: &mut ManualFlushMessageHeader| ()).is_err());
    assert!(message.rewrite_header(|_: &mut InsertMessageHeader| ()).is_err());
    assert_eq!(message, before);
}

#[test]
fn every_type_takes_an_empty_header_and_no_broken_one() {
    for kind in MessageType::ALL {
        assert!(header_decodes(*kind, &[]), "{kind}");
        assert!(!header_decodes(*kind, &[0x0a]), "{kind}");
    }
}

proptest! {
    #[test]
    fn known_fields_are_never_kept_twice(
        collection_id: i64,
        partitions in proptest::collection::vec((any::<i64>(), any::<u64>(), proptest::option::of(any::<i64>())), 0..4),
    ) {
        let header = InsertMessageHeader {
            collection_id,
            partitions: partitions
                .into_iter()
                .map(|(partition_id, rows, segment)| PartitionSegmentAssignment {
                    partition_id,
                    rows,
                    binary_size: rows,
                    segment_assignment: segment.map(|segment_id| SegmentAssignment { segment_id }),
                })
                .collect(),
        };
        prop_assert_eq!(unknown_fields::<InsertMessageHeader>(&header.encode_to_vec()), Vec::<u8>::new());
    }

    #[test]
    fn any_bytes_have_unknown_fields_or_none(bytes: Vec<u8>) {
        let unknown = unknown_fields::<InsertMessageHeader>(&bytes);
        prop_assert!(unknown.len() <= bytes.len());
        prop_assert_eq!(unknown_fields::<InsertMessageHeader>(&unknown), unknown);
    }

    #[test]
    fn rewriting_without_a_change_reads_the_same(bytes: Vec<u8>) {
        let mut message = manual_flush(&bytes);
        let before = message.header::<ManualFlushMessageHeader>();
        let rewritten = message.rewrite_header(|_: &mut ManualFlushMessageHeader| ());
        prop_assert_eq!(before.is_ok(), rewritten.is_ok());
        prop_assert_eq!(message.header::<ManualFlushMessageHeader>(), before);
    }
}
