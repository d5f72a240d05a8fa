//! Rows of collections: what a client is told of segments, and the code for rows that no collection takes. With any other
//! code the Go client would send them for ever.

use base64::{Engine, engine::general_purpose::STANDARD};
use prost::Message as _;
use streaming_proto::{
    messages::{
        CreateCollectionMessageHeader, DeleteMessageHeader, InsertMessageHeader, ManualFlushExtraResponse,
        ManualFlushMessageHeader, Message, PartitionSegmentAssignment,
    },
    msg::CreateCollectionRequest,
    streaming::StreamingCode,
};

use super::server::{Server, append, insert};

const NAME: &str = "wire-segments_0";
const INSERT: (&str, &str) = ("2", "1");
const DELETE: (&str, &str) = ("3", "1");
const CREATE_COLLECTION: (&str, &str) = ("5", "1");
const MANUAL_FLUSH: (&str, &str) = ("9", "2");

/// A message of a type and its version.
fn message((kind, version): (&str, &str), header: &impl prost::Message, payload: Vec<u8>) -> Message {
    let mut message = insert(NAME, "");
    message.payload = payload.into();
    let header = STANDARD.encode(header.encode_to_vec());
    message.properties.extend([("_v", version), ("_t", kind), ("_h", &header)]);
    message
}

/// A row in each of these partitions.
fn rows(collection_id: i64, partitions: &[i64]) -> Message {
    let partition = |id: &i64| PartitionSegmentAssignment { partition_id: *id, rows: 1, ..Default::default() };
    let header = InsertMessageHeader { collection_id, partitions: partitions.iter().map(partition).collect() };
    message(INSERT, &header, b"rows".to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_no_collection_takes_are_refused_for_good_and_a_flush_says_what_it_ended() -> anyhow::Result<()> {
    let Server { node, role: _role, .. } = &Server::start().await?;
    node.open(NAME, 1).await;
    let mut call = node.producer(NAME, 1).await;
    let create = CreateCollectionMessageHeader { collection_id: 1, partition_ids: vec![10], db_id: 1 };
    let body = CreateCollectionRequest { schema: "\n\u{1}x".into(), ..CreateCollectionRequest::default() };
    append(&mut call, message(CREATE_COLLECTION, &create, body.encode_to_vec())).await.expect("created");

    let mut elsewhere = rows(2, &[10]);
    elsewhere.properties.set("_vc", format!("{NAME}_2v0"));
    let delete = DeleteMessageHeader { collection_id: 2, ..DeleteMessageHeader::default() };
    let cases = [
        ("no partition", rows(1, &[])),
        ("two partitions", rows(1, &[10, 10])),
        ("an unknown partition", rows(1, &[11])),
        ("another collection", rows(2, &[10])),
        ("an unknown collection", elsewhere),
        ("a delete from another collection", message(DELETE, &delete, b"keys".to_vec())),
    ];
    for (what, message) in cases {
        let error = append(&mut call, message).await.expect_err(what);
        assert_eq!(error.code(), StreamingCode::Unrecoverable, "{what}: {}", error.cause);
        assert!(!error.cause.is_empty(), "{what}");
    }

    let last = append(&mut call, rows(1, &[10])).await.expect("appended");
    let flush = ManualFlushMessageHeader { collection_id: 1, flush_ts: last.timetick, segment_ids: Vec::new() };
    let flushed = append(&mut call, message(MANUAL_FLUSH, &flush, b"flush".to_vec())).await.expect("flushed");
    let extra = flushed.extra.expect("clients look into it");
    assert_eq!(extra.type_url, "type.googleapis.com/milvus.proto.messages.ManualFlushExtraResponse");
    assert_eq!(ManualFlushExtraResponse::decode(extra.value.as_slice())?.segment_ids.len(), 1);
    assert!(flushed.last_confirmed_id.is_some());
    Ok(())
}
