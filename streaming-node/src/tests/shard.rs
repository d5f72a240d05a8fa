//! Collections on a WAL: inserts get segments, segments end, and what is wrong is refused for good.

use std::time::Duration;

use prost::Message as _;
use streaming_proto::{
    messages::{
        self, CreateCollectionMessageHeader, CreatePartitionMessageHeader, CreateSegmentMessageHeader,
        DeleteMessageHeader, DropCollectionMessageHeader, DropPartitionMessageHeader, FlushMessageHeader,
        InsertMessageHeader, ManualFlushExtraResponse, ManualFlushMessageHeader, PartitionSegmentAssignment,
        SchemaChangeMessageBody, SchemaChangeMessageHeader,
    },
    msg::CreateCollectionRequest,
    schema::CollectionSchema,
    streaming::{ProduceMessageResponseResult, StreamingCode},
};
use streaming_types::{DeliverPolicy, ImmutableMessage, MessageBuilder, MessageType, message::Header};

use super::{
    harness::{Consume, PCHANNEL, Produce, TestNode, VCHANNEL, World, code_of, insert, rw},
    parts::keyed,
};
use crate::{Segments, Settings};

const OTHER: &str = "by-dev-rootcoord-dml_0_2v0";

pub(super) fn message<H: Header>(vchannel: &str, header: &H) -> messages::Message {
    MessageBuilder::new(header).vchannel(vchannel).payload("body").build().unwrap().into()
}

pub(super) fn create_collection(vchannel: &str, collection_id: i64) -> messages::Message {
    let header = CreateCollectionMessageHeader { collection_id, partition_ids: vec![10], db_id: 1 };
    let body = CreateCollectionRequest { schema: "\n\u{1}x".into(), ..Default::default() };
    MessageBuilder::new(&header).vchannel(vchannel).body(&body).build().unwrap().into()
}

pub(super) fn rows(collection_id: i64, partition_id: i64, binary_size: u64) -> InsertMessageHeader {
    let partition = PartitionSegmentAssignment { partition_id, rows: 1, binary_size, ..Default::default() };
    InsertMessageHeader { collection_id, partitions: vec![partition] }
}

/// The next message of one of these types.
async fn next(consume: &mut Consume, kinds: &[MessageType]) -> ImmutableMessage {
    loop {
        let message = consume.message().await;
        if kinds.contains(&message.properties.message_type().unwrap()) {
            return message;
        }
    }
}

async fn inserted(consume: &mut Consume) -> (i64, u64) {
    let header: InsertMessageHeader = next(consume, &[MessageType::Insert]).await.header().unwrap();
    let partition = &header.partitions[0];
    (partition.segment_assignment.unwrap().segment_id, partition.binary_size)
}

/// The segments that a manual flush says it ended.
pub(super) fn ids(result: &ProduceMessageResponseResult) -> Vec<i64> {
    let extra = result.extra.as_ref().unwrap();
    assert_eq!(extra.type_url, "type.googleapis.com/milvus.proto.messages.ManualFlushExtraResponse");
    ManualFlushExtraResponse::decode(extra.value.as_slice()).unwrap().segment_ids
}

/// A node with small segments on which collection 1 lives.
async fn collected(world: &World, segments: Segments) -> (TestNode, Produce) {
    let node = world.node_with(1, Settings { segments, ..Settings::default() }).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    produce.append(create_collection(VCHANNEL, 1)).await.unwrap();
    (node, produce)
}

/// Segments of exactly 1 MiB.
fn small() -> Segments {
    Segments { max_bytes: 1 << 20, seal_percent: 100, jitter_percent: 0, ..Segments::default() }
}

const MIB: u64 = 1048500;

#[tokio::test]
async fn insert_gets_a_segment_that_is_created_before_it_and_flushed_when_full() {
    let world = World::new();
    let (node, mut produce) = collected(&world, small()).await;
    let mut consume = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    for bytes in [600_000, 400_000, 600_000] {
        produce.append(message(VCHANNEL, &rows(1, 10, bytes))).await.unwrap();
    }
    let created = next(&mut consume, &[MessageType::CreateSegment, MessageType::Insert]).await;
    let header: CreateSegmentMessageHeader = created.header().unwrap();
    assert_eq!((header.collection_id, header.partition_id, header.level), (1, 10, 2));
    assert!((1_000_000..=1 << 20).contains(&header.max_segment_size), "{}", header.max_segment_size);
    assert_eq!(inserted(&mut consume).await, (header.segment_id, 600_000));
    assert_eq!(inserted(&mut consume).await, (header.segment_id, 400_000));
    let (second, _) = inserted(&mut consume).await;
    assert_ne!(second, header.segment_id, "the first one is full");
    let flush: FlushMessageHeader = next(&mut consume, &[MessageType::Flush]).await.header().unwrap();
    assert_eq!(flush.segment_id, header.segment_id);
}

#[tokio::test]
async fn size_of_an_insert_that_names_none_is_its_own() {
    let world = World::new();
    let (node, mut produce) = collected(&world, small()).await;
    produce.append(message(VCHANNEL, &rows(1, 10, 0))).await.unwrap();
    let mut consume = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    assert!(inserted(&mut consume).await.1 > 0);
}

#[tokio::test]
async fn what_no_collection_takes_is_unrecoverable() {
    let world = World::new();
    let (_node, mut produce) = collected(&world, small()).await;
    let partition = PartitionSegmentAssignment { partition_id: 10, rows: 1, ..Default::default() };
    let two = InsertMessageHeader { collection_id: 1, partitions: vec![partition, partition] };
    let delete = DeleteMessageHeader { collection_id: 2, rows: 1 };
    let cases = [
        ("two partitions", message(VCHANNEL, &two)),
        ("no partition", insert(VCHANNEL, "x")),
        ("unknown collection", message(OTHER, &rows(2, 10, 10))),
        ("other collection", message(VCHANNEL, &rows(2, 10, 10))),
        ("unknown partition", message(VCHANNEL, &rows(1, 11, 10))),
        ("too large", message(VCHANNEL, &rows(1, 10, 2 * MIB))),
        ("delete from an unknown collection", message(OTHER, &delete)),
    ];
    for (what, message) in cases {
        let result = produce.append(message).await;
        assert_eq!(code_of(result), Some(StreamingCode::Unrecoverable), "{what}");
    }
    produce.append(message(VCHANNEL, &rows(1, 10, 10))).await.unwrap();
    let delete = DeleteMessageHeader { collection_id: 1, rows: 1 };
    produce.append(message(VCHANNEL, &delete)).await.unwrap();
}

#[tokio::test]
async fn wal_without_collections_takes_everything() {
    let node = World::new().serving().await;
    let mut produce = node.producer(&rw(1)).await;
    produce.append(message(VCHANNEL, &rows(9, 9, 10))).await.unwrap();
    produce.append(insert(VCHANNEL, "x")).await.unwrap();
    let mut consume = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    let header: InsertMessageHeader = next(&mut consume, &[MessageType::Insert]).await.header().unwrap();
    assert_eq!(header.partitions[0].segment_assignment, None);
}

#[tokio::test]
async fn partitions_and_collections_come_and_go_with_their_messages() {
    let world = World::new();
    let (_node, mut produce) = collected(&world, small()).await;
    let in_eleven = || message(VCHANNEL, &rows(1, 11, 10));
    let create = CreatePartitionMessageHeader { collection_id: 1, partition_id: 11 };
    let drop = DropPartitionMessageHeader { collection_id: 1, partition_id: 11 };
    for _ in 0..2 {
        produce.append(message(VCHANNEL, &create)).await.expect("creating twice is taken");
    }
    produce.append(in_eleven()).await.unwrap();
    for _ in 0..2 {
        produce.append(message(VCHANNEL, &drop)).await.expect("dropping twice is taken");
    }
    assert_eq!(code_of(produce.append(in_eleven()).await), Some(StreamingCode::Unrecoverable));
    produce.append(create_collection(VCHANNEL, 1)).await.expect("creating twice is taken");
    let drop = DropCollectionMessageHeader { collection_id: 1, db_id: 1 };
    for _ in 0..2 {
        produce.append(message(VCHANNEL, &drop)).await.unwrap();
    }
    let gone = produce.append(message(VCHANNEL, &rows(1, 10, 10))).await;
    assert_eq!(code_of(gone), Some(StreamingCode::Unrecoverable));
}

#[tokio::test]
async fn manual_flush_names_the_segments_it_ends() {
    let world = World::new();
    let (node, mut produce) = collected(&world, small()).await;
    let first = produce.append(message(VCHANNEL, &rows(1, 10, 10))).await.unwrap();
    let flush =
        |flush_ts| message(VCHANNEL, &ManualFlushMessageHeader { collection_id: 1, flush_ts, segment_ids: vec![] });
    let early = produce.append(flush(1)).await.unwrap();
    assert_eq!(ids(&early), [] as [i64; 0], "no segment is older than that");
    let flushed = produce.append(flush(first.timetick)).await.unwrap();
    let mut consume = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    let (segment, _) = inserted(&mut consume).await;
    assert_eq!(ids(&flushed), [segment]);
    next(&mut consume, &[MessageType::ManualFlush]).await;
    let header: ManualFlushMessageHeader = next(&mut consume, &[MessageType::ManualFlush]).await.header().unwrap();
    assert_eq!(header.segment_ids, [segment]);
    produce.append(message(VCHANNEL, &rows(1, 10, 10))).await.unwrap();
    assert_ne!(inserted(&mut consume).await.0, segment);
}

#[tokio::test]
async fn manual_flush_says_what_it_ends_where_no_collection_lives() {
    let node = World::new().serving().await;
    let mut produce = node.producer(&rw(1)).await;
    let header = ManualFlushMessageHeader { collection_id: 1, flush_ts: u64::MAX, segment_ids: vec![] };
    let flushed = produce.append(message(VCHANNEL, &header)).await.unwrap();
    assert_eq!(ids(&flushed), [] as [i64; 0]);
}

#[tokio::test]
async fn collection_that_the_next_owner_could_not_read_is_refused() {
    let world = World::new();
    let (_node, mut produce) = collected(&world, small()).await;
    let header = CreateCollectionMessageHeader { collection_id: 2, partition_ids: vec![10], db_id: 1 };
    let refused = produce.append(message(OTHER, &header)).await;
    assert_eq!(code_of(refused), Some(StreamingCode::Unrecoverable));
    let nowhere = produce.append(message(OTHER, &rows(2, 10, 10))).await;
    assert_eq!(code_of(nowhere), Some(StreamingCode::Unrecoverable));
}

#[tokio::test]
async fn schema_that_the_metadata_could_not_hold_is_refused() {
    let world = World::new();
    let (_node, mut produce) = collected(&world, small()).await;
    let schema = || CollectionSchema { description: "x".repeat(1 << 20), ..Default::default() };
    let created = CreateCollectionMessageHeader { collection_id: 2, partition_ids: vec![10], db_id: 1 };
    let create = CreateCollectionRequest { schema: schema().encode_to_vec().into(), ..Default::default() };
    let changed = SchemaChangeMessageHeader { collection_id: 1, ..Default::default() };
    let change = SchemaChangeMessageBody { schema: Some(schema()) };
    for message in [
        MessageBuilder::new(&created).vchannel(OTHER).body(&create),
        MessageBuilder::new(&changed).vchannel(VCHANNEL).body(&change),
    ] {
        let refused = produce.append(message.build().unwrap().into()).await;
        assert_eq!(code_of(refused), Some(StreamingCode::Unrecoverable));
    }
}

#[tokio::test]
async fn repeated_manual_flush_names_the_segments_that_the_first_one_ended() {
    let world = World::new();
    let (node, mut produce) = collected(&world, small()).await;
    let first = produce.append(message(VCHANNEL, &rows(1, 10, 10))).await.unwrap();
    let header = ManualFlushMessageHeader { collection_id: 1, flush_ts: first.timetick, segment_ids: vec![] };
    let flush = || -> messages::Message {
        let message = MessageBuilder::new(&header).vchannel(VCHANNEL).payload("body").build().unwrap();
        keyed(message, "flush").into()
    };
    for _ in 0..2 {
        produce.send(flush()).await;
    }
    let flushed = produce.answer().await.1.unwrap();
    assert_eq!(produce.answer().await.1.unwrap(), flushed, "while the first is on its way");
    assert_eq!(produce.append(flush()).await.unwrap(), flushed, "from memory");
    node.assign(&rw(2)).await.unwrap();
    let again = node.producer(&rw(2)).await.append(flush()).await.unwrap();
    assert_eq!(again, flushed, "from the next owner");
    let mut consume = node.consumer(&rw(2), DeliverPolicy::All, &[]).await;
    let (segment, _) = inserted(&mut consume).await;
    assert_eq!(ids(&again), [segment]);
}

#[tokio::test]
async fn schema_change_ends_what_grew_under_the_old_schema() {
    let world = World::new();
    let (node, mut produce) = collected(&world, small()).await;
    produce.append(message(VCHANNEL, &rows(1, 10, 10))).await.unwrap();
    produce
        .append(message(VCHANNEL, &SchemaChangeMessageHeader { collection_id: 1, ..Default::default() }))
        .await
        .unwrap();
    produce.append(message(VCHANNEL, &rows(1, 10, 10))).await.unwrap();
    let mut consume = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    let (before, _) = inserted(&mut consume).await;
    let header: SchemaChangeMessageHeader = next(&mut consume, &[MessageType::SchemaChange]).await.header().unwrap();
    assert_eq!(header.flushed_segment_ids, [before]);
    assert_ne!(inserted(&mut consume).await.0, before);
}

#[tokio::test]
async fn next_owner_goes_on_with_the_segments_that_grow() {
    let world = World::new();
    let (node, mut produce) = collected(&world, small()).await;
    produce.append(message(VCHANNEL, &rows(1, 10, 600_000))).await.unwrap();
    node.assign(&rw(2)).await.unwrap();
    let mut produce = node.producer(&rw(2)).await;
    for bytes in [400_000, 600_000] {
        produce.append(message(VCHANNEL, &rows(1, 10, bytes))).await.unwrap();
    }
    let mut consume = node.consumer(&rw(2), DeliverPolicy::All, &[]).await;
    let (first, _) = inserted(&mut consume).await;
    assert_eq!(inserted(&mut consume).await.0, first, "it has room for one more");
    assert_ne!(inserted(&mut consume).await.0, first, "and no more");
    let unknown = produce.append(message(OTHER, &rows(2, 10, 10))).await;
    assert_eq!(code_of(unknown), Some(StreamingCode::Unrecoverable));
}

#[tokio::test]
async fn idle_segments_and_those_of_a_node_short_of_memory_are_flushed() {
    let world = World::new();
    let idle = Segments { idle: Duration::from_millis(300), idle_bytes: 100, ..small() };
    let (node, mut produce) = collected(&world, idle).await;
    produce.append(create_collection(OTHER, 2)).await.unwrap();
    produce.append(message(VCHANNEL, &rows(1, 10, 101))).await.unwrap();
    produce.append(message(OTHER, &rows(2, 10, 50))).await.unwrap();
    let mut consume = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    let flush = next(&mut consume, &[MessageType::Flush]).await;
    assert_eq!(flush.properties.vchannel(), Some(VCHANNEL), "the other one is too small");

    world.memory_percent.store(61, std::sync::atomic::Ordering::SeqCst);
    produce.append(message(OTHER, &rows(2, 10, 10))).await.unwrap();
    // All that grows is below the low mark of a node with so much memory, until it has less.
    let large = Segments { growing_low_percent: 0, ..small() };
    let node = {
        drop(node);
        world.node_with(2, Settings { segments: large, ..Settings::default() }).await
    };
    node.assign(&rw(2)).await.unwrap();
    let mut consume = node.consumer(&rw(2), DeliverPolicy::All, &[]).await;
    loop {
        let flush = next(&mut consume, &[MessageType::Flush]).await;
        if flush.properties.vchannel() == Some(OTHER) {
            break;
        }
    }
    assert_eq!(streaming_types::channel::to_physical(OTHER), PCHANNEL);
}
