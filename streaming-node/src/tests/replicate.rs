//! A WAL in a replication topology, as whoever ships to it sees it.

use std::{collections::BTreeMap, time::Duration};

use streaming_proto::{
    common::{CrossClusterTopology, MilvusCluster, ReplicateCheckpoint, ReplicateConfiguration},
    messages::{
        AlterReplicateConfigMessageHeader, BeginTxnMessageHeader, CommitTxnMessageHeader, CreateSegmentMessageHeader,
        DeleteMessageHeader, DropCollectionMessageHeader, InsertMessageHeader, ManualFlushMessageHeader, Message,
        ReplicateHeader, SegmentAssignment,
    },
    streaming::{GetReplicateCheckpointRequest, ProduceMessageResponseResult, StreamingCode},
};
use streaming_types::{
    DeliverPolicy, Message as Building, MessageBuilder, MessageId, MessageType, TimeTick, TxnContext,
    channel::control_channel,
};

use super::{
    harness::{PCHANNEL, Produce, TestNode, VCHANNEL, World, code, code_of, eventually, insert, rw},
    shard::{create_collection, ids, message, rows},
};
use crate::{Recovery, Settings};

const SOURCE: &str = "source";
const SOURCE_CHANNEL: &str = "source-rootcoord-dml_0";
const VIOLATION: Option<StreamingCode> = Some(StreamingCode::ReplicateViolation);
const IGNORED: Option<StreamingCode> = Some(StreamingCode::IgnoredOperation);

/// Our cluster, the source and a third one; the edges as named.
fn topology(edges: &[(&str, &str)]) -> ReplicateConfiguration {
    let cluster = |id: &str, pchannel: &str| MilvusCluster {
        cluster_id: id.to_owned(),
        pchannels: vec![pchannel.to_owned()],
        ..MilvusCluster::default()
    };
    let edge = |(source, target): &(&str, &str)| CrossClusterTopology {
        source_cluster_id: (*source).to_owned(),
        target_cluster_id: (*target).to_owned(),
    };
    ReplicateConfiguration {
        clusters: vec![cluster("by-dev", PCHANNEL), cluster(SOURCE, SOURCE_CHANNEL), cluster("other", "other_0")],
        cross_cluster_topology: edges.iter().map(edge).collect(),
    }
}

fn alter(edges: &[(&str, &str)]) -> Message {
    alter_by(edges, false)
}

fn alter_by(edges: &[(&str, &str)], force_promote: bool) -> Message {
    let replicate_configuration = Some(topology(edges));
    let header = AlterReplicateConfigMessageHeader { replicate_configuration, force_promote, ..Default::default() };
    MessageBuilder::new(&header).vchannel(control_channel(PCHANNEL)).build().unwrap().into()
}

/// The message as it comes from entry `entry` of the source's log, where it has tick `tick`.
fn from_source(message: Message, entry: i64, tick: u64) -> Message {
    let mut message: Building = message.into();
    message.properties.set_replicate(&ReplicateHeader {
        cluster_id: SOURCE.to_owned(),
        message_id: Some(MessageId::new(1, entry).to_proto()),
        last_confirmed_message_id: Some(MessageId::new(1, entry).to_proto()),
        time_tick: tick,
        vchannel: format!("{SOURCE_CHANNEL}_1v0"),
    });
    message.into()
}

fn row(entry: i64, tick: u64) -> Message {
    from_source(insert(VCHANNEL, &format!("row {entry}")), entry, tick)
}

async fn checkpoint(node: &TestNode, term: i64) -> Result<ReplicateCheckpoint, StreamingCode> {
    let request = node.request(GetReplicateCheckpointRequest { pchannel: Some(rw(term).to_proto()) });
    let response = node.handler().get_replicate_checkpoint(request).await.map_err(|status| code(&status))?;
    Ok(response.into_inner().checkpoint.expect("a checkpoint"))
}

async fn tick_of(node: &TestNode, term: i64) -> u64 {
    checkpoint(node, term).await.expect("a secondary").time_tick
}

/// A node whose WAL follows the source, and a stream to it.
async fn secondary(world: &World) -> (TestNode, Produce) {
    secondary_with(world, Settings::default()).await
}

async fn secondary_with(world: &World, settings: Settings) -> (TestNode, Produce) {
    let node = world.node_with(1, settings).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    produce.append(alter(&[(SOURCE, "by-dev")])).await.unwrap();
    (node, produce)
}

async fn payloads(node: &TestNode, term: i64, last: &str) -> Vec<String> {
    let mut consume = node.consumer(&rw(term), DeliverPolicy::All, &[]).await;
    let mut payloads: Vec<String> = Vec::new();
    while payloads.last().is_none_or(|payload| payload != last) {
        let message = consume.message().await;
        if message.properties.vchannel() == Some(VCHANNEL) {
            payloads.push(String::from_utf8_lossy(&message.payload).into_owned());
        }
    }
    payloads
}

#[tokio::test]
async fn role_follows_the_topology_in_the_log() {
    let node = World::new().serving().await;
    let mut produce = node.producer(&rw(1)).await;
    assert_eq!(code_of(produce.append(row(1, 10)).await), VIOLATION, "by itself");
    produce.append(alter(&[("by-dev", SOURCE)])).await.unwrap();
    assert_eq!(code_of(produce.append(row(1, 10)).await), VIOLATION, "a source");
    assert_eq!(checkpoint(&node, 1).await, Err(StreamingCode::ReplicateViolation));
    produce.append(insert(VCHANNEL, "own")).await.unwrap();

    produce.append(alter(&[(SOURCE, "by-dev")])).await.unwrap();
    assert_eq!(code_of(produce.append(insert(VCHANNEL, "own")).await), VIOLATION);
    let before = checkpoint(&node, 1).await.unwrap();
    assert_eq!((before.cluster_id.as_str(), before.pchannel.as_str()), (SOURCE, SOURCE_CHANNEL));
    assert_eq!((before.message_id, before.time_tick), (None, 0));
    produce.append(row(1, 10)).await.unwrap();
    let after = checkpoint(&node, 1).await.unwrap();
    assert_eq!((after.message_id, after.time_tick), (Some(MessageId::new(1, 1).to_proto()), 10));

    let switch = from_source(alter(&[("by-dev", SOURCE)]), 2, 20);
    produce.append(switch.clone()).await.unwrap();
    assert_eq!(checkpoint(&node, 1).await, Err(StreamingCode::ReplicateViolation));
    assert_eq!(code_of(produce.append(switch).await), VIOLATION, "a primary takes it no more");
    produce.append(insert(VCHANNEL, "own again")).await.unwrap();
    assert_eq!(payloads(&node, 1, "own again").await, ["own", "row 1", "own again"]);
}

#[tokio::test]
async fn follower_that_is_promoted_by_force_takes_clients_messages_and_none_of_its_source() {
    let world = World::new();
    let (node, mut produce) = secondary(&world).await;
    produce.append(row(1, 10)).await.unwrap();
    let [begin, body, _, commit] = txn();
    produce.append(begin).await.unwrap();
    produce.append(body).await.unwrap();

    assert_eq!(code_of(produce.append(alter_by(&[("other", "by-dev")], true)).await), VIOLATION, "no promotion");
    assert_eq!(code_of(produce.append(alter(&[])).await), VIOLATION, "not by force");
    produce.append(alter_by(&[], true)).await.unwrap();
    assert_eq!(checkpoint(&node, 1).await, Err(StreamingCode::ReplicateViolation));
    produce.append(insert(VCHANNEL, "own")).await.unwrap();
    for late in [commit, row(9, 60)] {
        assert_eq!(code_of(produce.append(late).await), VIOLATION, "the source comes back");
    }
    drop(node);
    let node = world.node(2).await;
    node.assign(&rw(2)).await.unwrap();
    node.producer(&rw(2)).await.append(insert(VCHANNEL, "own again")).await.unwrap();
    assert_eq!(payloads(&node, 2, "own again").await, ["row 1", "own", "own again"]);
}

#[tokio::test]
async fn repeats_and_what_each_cluster_writes_for_itself_are_ignored_and_strangers_refused() {
    let (node, mut produce) = secondary(&World::new()).await;
    produce.append(row(1, 10)).await.unwrap();
    produce.append(row(2, 20)).await.unwrap();
    assert_eq!(code_of(produce.append(row(1, 10)).await), IGNORED);
    assert_eq!(code_of(produce.append(row(2, 20)).await), IGNORED);
    let segment = MessageBuilder::new(&CreateSegmentMessageHeader::default()).vchannel(VCHANNEL);
    let segment = from_source(segment.build().unwrap().into(), 3, 30);
    assert_eq!(code_of(produce.append(segment).await), IGNORED);
    let mut stranger: Building = row(3, 30).into();
    let mut header = stranger.properties.replicate().unwrap().unwrap();
    header.cluster_id = "other".to_owned();
    stranger.properties.set_replicate(&header);
    assert_eq!(code_of(produce.append(stranger.into()).await), VIOLATION);
    assert_eq!(code_of(produce.append(alter(&[])).await), VIOLATION, "no change of its own");
    assert_eq!(code_of(produce.append(alter(&[(SOURCE, "by-dev")])).await), IGNORED, "in force already");
    produce.append(row(3, 30)).await.unwrap();
    assert_eq!(payloads(&node, 1, "row 3").await, ["row 1", "row 2", "row 3"]);
}

#[tokio::test]
async fn barrier_of_the_source_holds_nothing_back() {
    let (node, mut produce) = secondary(&World::new()).await;
    let mut ahead: Building = row(1, 10).into();
    ahead.properties.set_barrier(TimeTick(u64::MAX / 2));
    produce.append(ahead.into()).await.unwrap();
    produce.append(row(2, 20)).await.unwrap();
    assert_eq!(tick_of(&node, 1).await, 20);
}

#[tokio::test]
async fn manual_flush_ends_what_its_source_wrote_before_it_at_whatever_ticks_that_came_here() {
    let world = World::new();
    let (_node, mut produce) = secondary(&world).await;
    let flush = ManualFlushMessageHeader { collection_id: 1, flush_ts: 2, segment_ids: vec![] };
    let messages = [create_collection(VCHANNEL, 1), message(VCHANNEL, &rows(1, 10, 10)), message(VCHANNEL, &flush)];
    let mut last = None;
    for (tick, message) in (1..).zip(messages) {
        last = Some(produce.append(from_source(message, tick, tick.unsigned_abs())).await.unwrap());
    }
    assert_eq!(ids(&last.unwrap()).len(), 1);
}

#[tokio::test]
async fn rows_of_a_collection_that_the_source_has_and_its_follower_does_not_are_taken_and_grow_no_segment() {
    let world = World::new();
    let (node, mut produce) = secondary(&world).await;
    let mut elsewhere = rows(1, 10, 10);
    elsewhere.partitions[0].segment_assignment = Some(SegmentAssignment { segment_id: 4711 });
    let delete = DeleteMessageHeader { collection_id: 1, rows: 1 };
    // Collections have lived here, so that the node looks at what comes; where its source was opened since, it does not.
    let messages = [
        create_collection(VCHANNEL, 1),
        message(VCHANNEL, &DropCollectionMessageHeader { collection_id: 1, db_id: 1 }),
        message(VCHANNEL, &elsewhere),
        message(VCHANNEL, &delete),
        insert(VCHANNEL, "of no collection at all"),
    ];
    for (entry, message) in (1..).zip(messages) {
        produce.append(from_source(message, entry, 10 * entry.unsigned_abs())).await.unwrap();
    }
    assert_eq!(tick_of(&node, 1).await, 50);
    let mut consume = node.consumer(&rw(1), DeliverPolicy::All, &[]).await;
    let row = loop {
        let message = consume.message().await;
        if message.properties.message_type() == Ok(MessageType::Insert) {
            break message.header::<InsertMessageHeader>().unwrap();
        }
    };
    assert_eq!(row.partitions[0].segment_assignment, None, "segments are each cluster's own");
}

/// Transaction 77 of the source, which has two bodies and is committed at tick 50.
fn txn() -> [Message; 4] {
    let of = |builder: MessageBuilder, entry| {
        let mut message = builder.vchannel(VCHANNEL).payload(format!("part {entry}")).build().unwrap();
        message.properties.set_txn(TxnContext::new(77, 1));
        from_source(message.into(), entry, 50)
    };
    let commit = MessageBuilder::new(&CommitTxnMessageHeader {}).txn(TxnContext::new(77, 1));
    [
        of(MessageBuilder::new(&BeginTxnMessageHeader { keepalive_milliseconds: 1 }), 5),
        of(MessageBuilder::new(&InsertMessageHeader { collection_id: 1, ..Default::default() }), 6),
        of(MessageBuilder::new(&DeleteMessageHeader::default()), 7),
        of(commit, 8),
    ]
}

#[tokio::test]
async fn transaction_is_replicated_as_a_whole_across_a_crash_and_never_expires() {
    let world = World::new();
    let (node, mut produce) = secondary(&world).await;
    produce.append(row(1, 10)).await.unwrap();
    let [begin, first, second, commit] = txn();
    let begun: ProduceMessageResponseResult = produce.append(begin.clone()).await.unwrap();
    assert_eq!(begun.txn_context.map(|txn| (txn.txn_id, txn.keepalive_milliseconds < 0)), Some((77, true)));
    produce.append(first.clone()).await.unwrap();
    assert_eq!(code_of(produce.append(row(9, 60)).await), VIOLATION, "amid a transaction");
    assert_eq!(code_of(produce.append(begin.clone()).await), IGNORED);
    assert_eq!(code_of(produce.append(first.clone()).await), IGNORED);
    assert_eq!(tick_of(&node, 1).await, 10, "it counts when it is committed");
    drop(node);

    // Longer than the keepalive that the source's client asked for.
    world.clock.sleep(Duration::from_millis(20)).await;
    let node = world.node(2).await;
    node.assign(&rw(2)).await.unwrap();
    assert_eq!(tick_of(&node, 2).await, 10);
    let mut produce = node.producer(&rw(2)).await;
    assert_eq!(code_of(produce.append(begin.clone()).await), IGNORED);
    assert_eq!(code_of(produce.append(first).await), IGNORED);
    produce.append(second).await.unwrap();
    produce.append(commit.clone()).await.unwrap();
    assert_eq!(tick_of(&node, 2).await, 50);
    for part in txn() {
        assert_eq!(code_of(produce.append(part).await), IGNORED);
    }
    produce.append(row(9, 60)).await.unwrap();
    let seen = payloads(&node, 2, "row 9").await;
    assert_eq!(seen, ["row 1", "part 5", "part 6", "part 7", "part 8", "row 9"]);
}

#[tokio::test]
async fn role_and_checkpoint_outlive_their_owner_whether_they_were_saved_or_not() {
    for interval in [Duration::from_millis(10), Duration::from_secs(3600)] {
        let world = World::new();
        let recovery = Recovery { persist_interval: interval, ..Recovery::default() };
        let settings = Settings { recovery, ..Settings::default() };
        let node = world.node_with(1, settings.clone()).await;
        node.assign(&rw(1)).await.unwrap();
        let mut produce = node.producer(&rw(1)).await;
        produce.append(alter(&[(SOURCE, "by-dev")])).await.unwrap();
        for n in 1..=20 {
            produce.append(row(n, 10 * n.cast_unsigned())).await.unwrap();
            world.clock.sleep(Duration::from_millis(2)).await;
        }
        drop(node);
        let node = world.node_with(2, settings).await;
        node.assign(&rw(2)).await.unwrap();
        assert_eq!(tick_of(&node, 2).await, 200, "{interval:?}");
        let mut produce = node.producer(&rw(2)).await;
        assert_eq!(code_of(produce.append(row(20, 200)).await), IGNORED);
        assert_eq!(code_of(produce.append(insert(VCHANNEL, "own")).await), VIOLATION);
        produce.append(row(21, 210)).await.unwrap();
    }
}

#[tokio::test]
async fn nothing_is_taken_after_a_message_that_was_refused_until_that_one_comes() {
    let world = World::new();
    let (node, mut produce) = secondary(&world).await;
    produce.append(row(1, 10)).await.unwrap();
    // A collection lives on the vchannel, so the shard layer looks at inserts, and refuses one that names two partitions.
    let create = streaming_proto::messages::CreateCollectionMessageHeader { collection_id: 1, ..Default::default() };
    let create = MessageBuilder::new(&create).vchannel(VCHANNEL).payload(vec![8, 0]).build().unwrap();
    produce.append(from_source(create.into(), 2, 20)).await.unwrap();
    let two = InsertMessageHeader { collection_id: 1, partitions: vec![Default::default(); 2] };
    let two = MessageBuilder::new(&two).vchannel(VCHANNEL).payload("two").build().unwrap();
    let two = from_source(two.into(), 3, 30);
    let delete = |entry, tick| {
        let header = DeleteMessageHeader { collection_id: 1, ..DeleteMessageHeader::default() };
        let delete = MessageBuilder::new(&header).vchannel(VCHANNEL).payload("delete").build().unwrap();
        from_source(delete.into(), entry, tick)
    };
    // All at once, so that some of them are in one group.
    let mut outcomes = Vec::new();
    for message in [two.clone(), delete(4, 40), delete(5, 50)] {
        produce.send(message).await;
    }
    for _ in 0..3 {
        outcomes.push(code_of(produce.answer().await.1));
    }
    outcomes.push(code_of(produce.append(delete(6, 60)).await));
    let inner = Some(StreamingCode::Inner);
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Some(StreamingCode::Unrecoverable)).count(), 1);
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == inner).count(), 3, "{outcomes:?}");
    assert_eq!(tick_of(&node, 1).await, 20);
    assert_eq!(code_of(produce.append(two.clone()).await), Some(StreamingCode::Unrecoverable), "asked again");
    assert_eq!(code_of(produce.append(delete(4, 40)).await), inner);
    // The same message of the source in a form that is taken.
    produce.append(delete(3, 30)).await.unwrap();
    produce.append(delete(4, 40)).await.unwrap();
    assert_eq!(tick_of(&node, 1).await, 40);
    // Who is promoted by force waits for nothing more.
    assert_eq!(code_of(produce.append(from_source(two, 7, 70)).await), Some(StreamingCode::Unrecoverable));
    produce.append(alter_by(&[], true)).await.unwrap();
    assert_eq!(checkpoint(&node, 1).await, Err(StreamingCode::ReplicateViolation));
}

#[tokio::test]
async fn nothing_is_taken_after_a_message_that_this_release_does_not_take_until_that_one_comes() {
    let world = World::new();
    let settings = Settings { max_message_bytes: 4096, ..Settings::default() };
    let (node, mut produce) = secondary_with(&world, settings).await;
    let large = from_source(insert(VCHANNEL, &"x".repeat(100 << 10)), 2, 20);
    let mut unknown = row(2, 20);
    unknown.properties.set("_t", "4711");
    for (first, refused) in [(row(1, 10), large), (row(1, 10), unknown)] {
        // All at once, as who ships does.
        let mut sent = BTreeMap::new();
        for message in [first, refused, row(3, 30), row(4, 40)] {
            sent.insert(produce.send(message).await, None);
        }
        for _ in 0..sent.len() {
            let (request_id, result) = produce.answer().await;
            sent.insert(request_id, code_of(result));
        }
        let [_, refused, third, fourth] = sent.into_values().collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(refused, Some(StreamingCode::Unrecoverable));
        assert_eq!([third, fourth], [Some(StreamingCode::Inner); 2]);
        assert_eq!(tick_of(&node, 1).await, 10);
    }
    for n in 2..=4 {
        produce.append(row(n, 10 * n.cast_unsigned())).await.unwrap();
    }
    assert_eq!(payloads(&node, 1, "row 4").await, ["row 1", "row 2", "row 3", "row 4"]);
}

#[tokio::test]
async fn message_that_the_source_just_takes_is_not_too_large_for_its_follower() {
    let own = Building::from(insert(VCHANNEL, &"x".repeat(2000)));
    let limit = own.payload.len() + own.properties.size();
    let settings = Settings { max_message_bytes: limit, ..Settings::default() };
    let world = World::new();
    let node = world.node_with(1, settings).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    produce.append(own.clone().into()).await.unwrap();
    produce.append(alter(&[(SOURCE, "by-dev")])).await.unwrap();
    produce.append(from_source(own.into(), 1, 10)).await.unwrap();
}

#[tokio::test]
async fn log_is_kept_for_a_cluster_that_follows_and_has_not_said_what_it_needs() {
    use streaming_proto::{
        data::{UpdateChannelCheckpointRequest, data_coord_client::DataCoordClient},
        msg::MsgPosition,
    };
    use streaming_types::channel::replica_consumer;
    let world = World::new();
    let recovery = Recovery { persist_interval: Duration::from_millis(20), window_bytes: 0, ..Recovery::default() };
    let node = world.node_with(1, Settings { recovery, ..Settings::default() }).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    produce.append(alter(&[("by-dev", SOURCE)])).await.unwrap();
    // Three segments of the log.
    let mut last = None;
    for n in 0..30 {
        last = Some(produce.append(insert(VCHANNEL, &format!("{n} {}", "x".repeat(100 << 10)))).await.unwrap());
    }
    let last = last.unwrap();
    let report = async |consumer: &str| {
        let id = MessageId::from_proto(last.id.as_ref()).unwrap().to_bytes();
        let position = MsgPosition {
            channel_name: consumer.to_owned(),
            msg_id: id.into(),
            timestamp: last.timetick,
            ..MsgPosition::default()
        };
        let request = UpdateChannelCheckpointRequest { channel_checkpoints: vec![position], ..Default::default() };
        DataCoordClient::new(node.channel.clone()).update_channel_checkpoint(node.request(request)).await.unwrap();
    };
    let log = node.logs.open_or_create_log(PCHANNEL).await.unwrap();
    let truncated = async || log.describe().await.unwrap().truncated.is_some();
    report(PCHANNEL).await;
    world.clock.sleep(Duration::from_millis(200)).await;
    assert!(!truncated().await, "the follower has not said anything");
    report(&replica_consumer(PCHANNEL, SOURCE)).await;
    // A message, so that there is a new checkpoint.
    produce.append(insert(VCHANNEL, "more")).await.unwrap();
    eventually(&world, "truncation", async || truncated().await.then_some(())).await;
}
