//! What a WAL leaves to its next owner: checkpoint, collections, acknowledgements, and a log that does not grow for ever.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use prost::Message as _;
use streaming_proto::{
    data::{DropVirtualChannelRequest, UpdateChannelCheckpointRequest, data_coord_client::DataCoordClient},
    messages::{
        self, AlterReplicateConfigMessageHeader, BroadcastHeader, CreateCollectionMessageHeader,
        CreatePartitionMessageHeader, DropCollectionMessageHeader,
    },
    msg::{CreateCollectionRequest, MsgPosition},
    streaming::{
        ProduceMessageResponseResult, StreamingCode, VChannelMeta, WalCheckpoint, streaming_node_wal_metrics::Metrics,
    },
};
use streaming_types::{
    DeliverPolicy, Message, MessageBuilder, MessageId, MessageType, PChannel, channel::control_channel,
};
use tokio::sync::watch;
use woodpecker_base::{
    metadata::{Interfered, Interference, MetadataError, MetadataStore, Txn, TxnOutcome},
    tasks::Tasks,
};

use super::{
    harness::{PCHANNEL, Produce, TestNode, VCHANNEL, World, code, eventually, id, insert, rw},
    parts::delete,
};
use crate::{Recovery, Settings, recovery::catalog::Catalog};

const WAL: &str = "by-dev/meta/streamingnode-meta/wal/by-dev-rootcoord-dml_0";

/// Writes checkpoints all the time.
fn eager() -> Settings {
    let recovery = Recovery { persist_interval: Duration::from_millis(20), window_bytes: 0, ..Recovery::default() };
    Settings { recovery, ..Settings::default() }
}

fn create_collection(vchannel: &str) -> Message {
    let header = CreateCollectionMessageHeader { collection_id: 1, partition_ids: vec![10], db_id: 1 };
    let body = CreateCollectionRequest { schema: "\n\u{1}x".into(), ..Default::default() };
    MessageBuilder::new(&header).vchannel(vchannel).body(&body).build().unwrap()
}

fn drop_collection(vchannel: &str) -> Message {
    let header = DropCollectionMessageHeader { collection_id: 1, ..Default::default() };
    MessageBuilder::new(&header).vchannel(vchannel).payload("x").build().unwrap()
}

async fn checkpoint(world: &World) -> Option<(MessageId, u64)> {
    let found = world.metadata.get(&format!("{WAL}/consume-checkpoint")).await.unwrap()?;
    let checkpoint = WalCheckpoint::decode(found.value).unwrap();
    assert_eq!(checkpoint.recovery_magic, 1);
    Some((MessageId::from_proto(checkpoint.message_id.as_ref()).unwrap(), checkpoint.time_tick))
}

pub async fn until_saved(world: &World, tick: u64) {
    let saved = async || checkpoint(world).await.filter(|(_, saved)| *saved >= tick);
    eventually(world, "a checkpoint", saved).await;
}

#[tokio::test]
async fn collections_and_checkpoint_are_in_the_metadata_and_outlive_a_crash() {
    let world = World::new();
    let node = world.node_with(1, eager()).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    let created = produce.append(create_collection(VCHANNEL).into()).await.unwrap();
    until_saved(&world, created.timetick).await;
    drop(node);

    let next = world.node_with(2, eager()).await;
    next.assign(&rw(2)).await.unwrap();
    let vchannel = world.metadata.get(&format!("{WAL}/vchannel/{VCHANNEL}")).await.unwrap().unwrap();
    let vchannel = VChannelMeta::decode(vchannel.value).unwrap();
    assert_eq!((vchannel.vchannel.as_str(), vchannel.checkpoint_time_tick), (VCHANNEL, created.timetick));
    assert_eq!(vchannel.collection_info.unwrap().partitions[0].partition_id, 10);
}

#[tokio::test]
async fn clean_close_leaves_nothing_to_replay() {
    let world = World::new();
    let node = world.serving().await;
    let sent = node.producer(&rw(1)).await.append(insert(VCHANNEL, "x")).await.unwrap();
    node.remove(&rw(1)).await.unwrap();
    let (saved, tick) = checkpoint(&world).await.unwrap();
    assert!(tick >= sent.timetick && saved >= id(&sent), "{tick} {}", sent.timetick);
    let last = node.logs.open_log(PCHANNEL).await.unwrap().last_entry().await.unwrap().unwrap();
    assert_eq!(saved.to_u64(), (last.segment, last.entry));
}

#[tokio::test]
async fn owner_without_a_checkpoint_replays_the_whole_log() {
    let world = World::new();
    let node = world.serving().await;
    world.metadata.set_reachable(false);
    let mut produce = node.producer(&rw(1)).await;
    let created = produce.append(create_collection(VCHANNEL).into()).await.unwrap();
    drop(node);
    world.metadata.set_reachable(true);

    let next = world.node_with(2, eager()).await;
    next.assign(&rw(2)).await.unwrap();
    until_saved(&world, created.timetick + 1).await;
    assert!(world.metadata.get(&format!("{WAL}/vchannel/{VCHANNEL}")).await.unwrap().is_some());
}

fn broadcast(broadcast_id: u64) -> messages::Message {
    let mut message = create_collection(VCHANNEL);
    let header = BroadcastHeader { broadcast_id, vchannels: vec![VCHANNEL.to_owned()], ..Default::default() };
    message.properties.set_broadcast(&header);
    message.into()
}

#[tokio::test]
async fn broadcasts_are_acknowledged_before_the_checkpoint_passes_them() {
    let world = World::new();
    world.acks.answers.send_replace(false);
    let node = world.node_with(1, eager()).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    let before = produce.append(insert(VCHANNEL, "before")).await.unwrap();
    let first = produce.append(broadcast(1)).await.unwrap();
    let after = CreatePartitionMessageHeader { collection_id: 1, partition_id: 11 };
    let after = MessageBuilder::new(&after).vchannel(VCHANNEL).payload("after").build().unwrap();
    produce.append(after.into()).await.unwrap();
    until_saved(&world, before.timetick).await;
    world.clock.sleep(Duration::from_millis(100)).await;
    let (_, tick) = checkpoint(&world).await.unwrap();
    assert!(tick < first.timetick, "nobody has acknowledged it");
    drop(node);

    world.acks.answers.send_replace(true);
    let next = world.node_with(2, eager()).await;
    next.assign(&rw(2)).await.unwrap();
    until_saved(&world, first.timetick).await;
    assert!(world.acks.acked.lock().unwrap().contains(&id(&first)), "the next owner does");
}

#[tokio::test]
async fn owner_goes_on_behind_what_was_truncated_before_it_was_taken_in() {
    let world = World::new();
    let node = world.node_with(1, Settings { buffer_age: Duration::ZERO, ..eager() }).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    world.acks.answers.send_replace(false);
    // So many may be on their way.
    for n in 0..64 {
        produce.append(broadcast(n)).await.unwrap();
    }
    eventually(&world, "questions", async || (world.acks.asked.lock().unwrap().len() >= 64).then_some(())).await;
    for n in 64..70 {
        produce.append(broadcast(n)).await.unwrap();
    }
    let log = node.logs.open_log(PCHANNEL).await.unwrap();
    log.truncate(log.last_entry().await.unwrap().unwrap()).await.unwrap();
    world.acks.answers.send_replace(true);
    let behind = id(&produce.append(broadcast(70)).await.unwrap());
    let acked = async || world.acks.acked.lock().unwrap().contains(&behind).then_some(());
    eventually(&world, "the acknowledgement of what came behind", acked).await;
}

#[tokio::test]
async fn change_of_the_topology_is_acknowledged_after_every_broadcast_before_it() {
    let world = World::new();
    world.acks.answers.send_replace(false);
    let node = world.node_with(1, eager()).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    let mut change =
        MessageBuilder::new(&AlterReplicateConfigMessageHeader::default()).vchannel(PCHANNEL).build().unwrap();
    change.properties.set_broadcast(&BroadcastHeader { broadcast_id: 3, ..Default::default() });
    let mut sent = Vec::new();
    for message in [broadcast(1), broadcast(2), change.into(), broadcast(4)] {
        sent.push(id(&produce.append(message).await.unwrap()));
    }
    let asked = || {
        let mut asked = world.acks.asked.lock().unwrap().clone();
        asked.sort_unstable();
        asked
    };
    eventually(&world, "two acknowledgements", async || (asked().len() >= 2).then_some(())).await;
    world.clock.sleep(Duration::from_millis(100)).await;
    assert_eq!(asked(), sent[..2]);
    world.acks.answers.send_replace(true);
    eventually(&world, "the others", async || (asked().len() >= 4).then_some(())).await;
    assert_eq!(asked(), sent);
}

pub async fn report(node: &TestNode, channel: &str, position: MessageId) -> Result<(), StreamingCode> {
    report_at(node, channel, position, 0).await
}

pub async fn report_at(
    node: &TestNode,
    channel: &str,
    position: MessageId,
    timestamp: u64,
) -> Result<(), StreamingCode> {
    let position = MsgPosition { msg_id: position.to_bytes().into(), timestamp, ..MsgPosition::default() };
    let request = UpdateChannelCheckpointRequest {
        v_channel: channel.to_owned(),
        position: Some(position),
        ..UpdateChannelCheckpointRequest::default()
    };
    let mut client = DataCoordClient::new(node.channel.clone());
    client.update_channel_checkpoint(node.request(request)).await.map(drop).map_err(|status| code(&status))
}

/// A node whose log has twenty messages in more than one segment.
async fn filled(world: &World) -> (TestNode, Produce, Vec<ProduceMessageResponseResult>) {
    let node = world.node_with(1, eager()).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    let sent = fill(&mut produce, VCHANNEL).await;
    (node, produce, sent)
}

async fn fill(produce: &mut Produce, vchannel: &str) -> Vec<ProduceMessageResponseResult> {
    let filler = "x".repeat(200_000);
    let mut sent = Vec::new();
    for n in 0..20 {
        sent.push(produce.append(insert(vchannel, &format!("{n} {filler}"))).await.unwrap());
    }
    sent
}

#[tokio::test]
async fn log_is_truncated_behind_the_slowest_registered_consumer() {
    let world = World::new();
    let (node, mut produce, sent) = filled(&world).await;
    let log = node.logs.open_log(PCHANNEL).await.unwrap();
    until_saved(&world, sent[19].timetick).await;
    assert_eq!(log.describe().await.unwrap().truncated, None, "nobody said what it needs");

    report(&node, VCHANNEL, id(&sent[19])).await.unwrap();
    report(&node, PCHANNEL, id(&sent[10])).await.unwrap();
    produce.append(insert(VCHANNEL, "more")).await.unwrap();
    let truncated = async || log.describe().await.unwrap().truncated;
    let truncated = eventually(&world, "truncation", truncated).await;
    let (segment, _) = id(&sent[10]).to_u64();
    assert_eq!(truncated.segment, segment - 1);
    let mut consume = node.consumer(&rw(1), DeliverPolicy::StartFrom(id(&sent[10])), &[]).await;
    assert!(consume.payloads(1).await[0].starts_with("10 "), "what somebody needs is there");

    let missing = report(&node, "by-dev-rootcoord-dml_7_1v0", id(&sent[0])).await;
    assert_eq!(missing, Err(StreamingCode::ChannelNotExist));
}

pub async fn forget(node: &TestNode, consumer: &str) -> Result<(), StreamingCode> {
    let request = DropVirtualChannelRequest { channel_name: consumer.to_owned(), ..Default::default() };
    let mut client = DataCoordClient::new(node.channel.clone());
    let response = client.drop_virtual_channel(node.request(request)).await.map_err(|status| code(&status))?;
    assert!(response.into_inner().status.is_some_and(|status| status.code == 0), "Go clients look at it");
    Ok(())
}

#[tokio::test]
async fn consumer_that_was_dropped_holds_nothing_back_though_nothing_is_appended() {
    let world = World::new();
    let (node, _produce, sent) = filled(&world).await;
    report(&node, VCHANNEL, id(&sent[0])).await.unwrap();
    report(&node, PCHANNEL, id(&sent[19])).await.unwrap();
    until_saved(&world, sent[19].timetick).await;
    let log = node.logs.open_log(PCHANNEL).await.unwrap();
    assert_eq!(log.describe().await.unwrap().truncated, None, "somebody needs all of it");

    forget(&node, VCHANNEL).await.unwrap();
    let truncated = async || log.describe().await.unwrap().truncated;
    let truncated = eventually(&world, "truncation", truncated).await;
    assert_eq!(truncated.segment, id(&sent[19]).to_u64().0 - 1);
    forget(&node, VCHANNEL).await.unwrap();
    assert_eq!(forget(&node, "by-dev-rootcoord-dml_7_1v0").await, Err(StreamingCode::ChannelNotExist));
}

#[tokio::test]
async fn consumer_goes_with_the_collection_of_its_vchannel() {
    let world = World::new();
    let node = world.node_with(1, eager()).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    let created = produce.append(create_collection(VCHANNEL).into()).await.unwrap();
    report(&node, VCHANNEL, id(&created)).await.unwrap();
    report(&node, PCHANNEL, id(&created)).await.unwrap();
    until_saved(&world, created.timetick).await;
    let key = format!("{WAL}/consumer/{VCHANNEL}");
    assert!(world.metadata.get(&key).await.unwrap().is_some());

    produce.append(drop_collection(VCHANNEL).into()).await.unwrap();
    let gone = async || world.metadata.get(&key).await.unwrap().is_none().then_some(());
    eventually(&world, "the end of its registration", gone).await;
    assert!(world.metadata.get(&format!("{WAL}/consumer/{PCHANNEL}")).await.unwrap().is_some(), "another's stays");
}

#[tokio::test]
async fn consumer_that_reports_when_its_vchannel_was_dropped_is_not_heard_until_that_is_created_again() {
    let world = World::new();
    let node = world.node_with(1, eager()).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    let created = id(&produce.append(create_collection(VCHANNEL).into()).await.unwrap());
    report(&node, VCHANNEL, created).await.unwrap();
    let dropped = produce.append(drop_collection(VCHANNEL).into()).await.unwrap();
    until_saved(&world, dropped.timetick).await;
    assert_eq!(report(&node, VCHANNEL, created).await, Err(StreamingCode::IgnoredOperation));
    let position = |name: &str| MsgPosition {
        channel_name: name.to_owned(),
        msg_id: created.to_bytes().into(),
        ..MsgPosition::default()
    };
    let both = [VCHANNEL, PCHANNEL].map(position).into();
    let both = UpdateChannelCheckpointRequest { channel_checkpoints: both, ..Default::default() };
    let told = DataCoordClient::new(node.channel.clone()).update_channel_checkpoint(node.request(both)).await;
    assert_eq!(code(&told.unwrap_err()), StreamingCode::IgnoredOperation);
    let registered = async || world.metadata.list(&format!("{WAL}/consumer/")).await.unwrap().items.len();
    assert_eq!(registered().await, 1, "who is heard is not kept from it");
    drop(node);

    let next = world.node_with(2, eager()).await;
    next.assign(&rw(2)).await.unwrap();
    assert_eq!(report(&next, VCHANNEL, created).await, Err(StreamingCode::IgnoredOperation));
    let created = next.producer(&rw(2)).await.append(create_collection(VCHANNEL).into()).await.unwrap();
    until_saved(&world, created.timetick).await;
    report(&next, VCHANNEL, id(&created)).await.unwrap();
    assert_eq!(registered().await, 2);
}

#[tokio::test]
async fn dropped_vchannel_is_remembered_as_long_as_the_log_holds_its_drop() {
    let world = World::new();
    let node = world.node_with(1, eager()).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    let other = "by-dev-rootcoord-dml_0_7v0";
    produce.append(create_collection(other).into()).await.unwrap();
    produce.append(drop_collection(other).into()).await.unwrap();
    // Where no collection is needed.
    let control = control_channel(PCHANNEL);
    let sent = fill(&mut produce, &control).await;
    until_saved(&world, sent[19].timetick).await;
    let remembered = async || world.metadata.get(&format!("{WAL}/dropped-vchannel/{other}")).await.unwrap().is_some();
    assert!(remembered().await);
    report(&node, PCHANNEL, id(&sent[19])).await.unwrap();
    let forgotten = async || {
        produce.append(insert(&control, "more")).await.unwrap();
        (!remembered().await).then_some(())
    };
    eventually(&world, "the end of its memory", forgotten).await;
}

#[tokio::test]
async fn owner_that_lost_the_metadata_gives_the_wal_up() {
    let world = World::new();
    let node = world.node_with(1, eager()).await;
    node.assign(&rw(1)).await.unwrap();
    Catalog::claim(Arc::new(world.metadata.clone()), "by-dev/meta", PCHANNEL, 2).await.unwrap();
    node.producer(&rw(1)).await.append(insert(VCHANNEL, "x")).await.unwrap();
    eventually(&world, "the end", async || node.status().await.is_empty().then_some(())).await;
}

/// Refuses what is written, if it is told to, and counts that.
#[derive(Debug)]
struct Refusing {
    refuses: watch::Sender<bool>,
    refused: watch::Sender<u32>,
}

#[async_trait]
impl Interference for Refusing {
    async fn commit(&self, store: &dyn MetadataStore, txn: Txn) -> Result<TxnOutcome, MetadataError> {
        if *self.refuses.borrow() {
            self.refused.send_modify(|refused| *refused += 1);
            return Err(MetadataError::Invalid("not these credentials".to_owned()));
        }
        store.commit(txn).await
    }
}

#[tokio::test]
async fn owner_whose_metadata_is_refused_goes_on_and_writes_it_later() {
    let (world, tasks) = (World::new(), Tasks::new());
    let refusing = Refusing { refuses: watch::Sender::new(false), refused: watch::Sender::new(0) };
    let metadata = Arc::new(Interfered::new(Arc::new(world.metadata.clone()), refusing));
    let mut opener = world.opener(eager(), &tasks, &tasks);
    opener.metadata = Arc::<Interfered<Refusing>>::clone(&metadata);
    let wal = opener.open(&rw(1), 1).await.unwrap();
    metadata.by.refuses.send_replace(true);
    let before = checkpoint(&world).await;
    wal.appends().unwrap().append_own(MessageType::Delete, delete(VCHANNEL, "x", None)).await;
    let mut refused = metadata.by.refused.subscribe();
    let tried = world.clock.timeout(Duration::from_secs(10), refused.wait_for(|refused| *refused > 2));
    tried.await.expect("another try").unwrap();
    assert!(!wal.ended().is_cancelled() && checkpoint(&world).await == before);

    metadata.by.refuses.send_replace(false);
    eventually(&world, "a checkpoint", async || (checkpoint(&world).await != before).then_some(())).await;
    tasks.stop();
}

#[tokio::test]
async fn late_open_of_an_older_term_disturbs_nobody() {
    let world = World::new();
    let (late, owner) = (world.node(1).await, world.node(2).await);
    owner.assign(&rw(5)).await.unwrap();
    let mut produce = owner.producer(&rw(5)).await;
    assert_eq!(late.assign(&rw(4)).await.unwrap_err().code(), StreamingCode::Unknown);
    produce.append(insert(VCHANNEL, "still mine")).await.unwrap();
    late.assign(&rw(6)).await.unwrap();
}

#[tokio::test]
async fn recovery_tick_follows_an_idle_wal() {
    let world = World::new();
    let node = world.serving().await;
    let _reader = node.consumer(&rw(1), DeliverPolicy::Latest, &[]).await;
    let ticks = async || {
        let Some(Metrics::Rw(metrics)) = node.status().await[0].metrics else { panic!("not writable") };
        (metrics.mvcc_time_tick, metrics.recovery_time_tick)
    };
    let (first, _) = ticks().await;
    let follows = async || {
        let (newest, recovered) = ticks().await;
        (newest > first && newest == recovered).then_some(())
    };
    eventually(&world, "a tick up to which all was taken in", follows).await;
    let other = PChannel::read_only("by-dev-rootcoord-dml_1", 1).unwrap();
    node.assign(&other).await.unwrap();
    let denied = report(&node, "by-dev-rootcoord-dml_1", MessageId::new(1, 0)).await;
    assert_eq!(denied, Err(StreamingCode::ChannelFenced));
}
