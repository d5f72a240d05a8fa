//! A change of the replication topology, with nodes that only acknowledge.

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use streaming_proto::{
    common::{ConnectionParam, CrossClusterTopology, ImmutableMessage, MilvusCluster, ReplicateConfiguration},
    messages::{AlterReplicateConfigMessageHeader, BroadcastHeader, CreatePartitionMessageHeader, ReplicateHeader},
    streaming::{
        BroadcastAckRequest, BroadcastTask, BroadcastTaskState, ReplicateConfigurationMeta, StreamingCode,
        UpdateReplicateConfigurationRequest,
        streaming_coord_assignment_service_client::StreamingCoordAssignmentServiceClient,
        streaming_coord_broadcast_service_client::StreamingCoordBroadcastServiceClient,
    },
};
use streaming_types::{Message, MessageBuilder, MessageId, TimeTick, properties::key};
use tokio::task::JoinHandle;
use tonic::Status;
use woodpecker_base::{clock::Clock, metadata::MetadataStore, tasks::Tasks};

use super::{
    cluster::{Cluster, ROOT, TestNode, code, eventually, settings},
    loss::Loss,
};

const CHANNELS: [&str; 2] = ["by-dev-rootcoord-dml_0", "by-dev-rootcoord-dml_1"];
/// The pchannel with the control channel gets its copy there.
const COPIES: [&str; 2] = ["by-dev-rootcoord-dml_0_vcchan", "by-dev-rootcoord-dml_1"];
/// The copies of a source whose control channel has another counterpart.
const REPLICATED: [&str; 2] = ["by-dev-rootcoord-dml_0", "by-dev-rootcoord-dml_1_vcchan"];

fn topology(source: &str, target: &str) -> ReplicateConfiguration {
    let cluster = |id: &str, pchannels: [&str; 2]| MilvusCluster {
        cluster_id: id.to_owned(),
        connection_param: Some(ConnectionParam { uri: format!("http://{id}:53100"), token: String::new() }),
        pchannels: pchannels.map(str::to_owned).into(),
    };
    let edge = CrossClusterTopology { source_cluster_id: source.into(), target_cluster_id: target.into() };
    ReplicateConfiguration {
        clusters: vec![cluster("by-dev", CHANNELS), cluster("far", ["far_0", "far_1"])],
        cross_cluster_topology: vec![edge],
    }
}

/// The topology in which nobody follows anybody.
fn alone() -> ReplicateConfiguration {
    ReplicateConfiguration { cross_cluster_topology: Vec::new(), ..topology("far", "by-dev") }
}

/// Asks for a topology; the answer comes when it is in force.
fn update(address: &str, wanted: ReplicateConfiguration, tasks: &Tasks) -> JoinHandle<Result<(), Status>> {
    ask(address, wanted, false, tasks)
}

fn ask(
    address: &str,
    wanted: ReplicateConfiguration,
    force_promote: bool,
    tasks: &Tasks,
) -> JoinHandle<Result<(), Status>> {
    let address = format!("http://{address}");
    tasks.spawn(async move {
        let mut client = StreamingCoordAssignmentServiceClient::connect(address).await.unwrap();
        let request = UpdateReplicateConfigurationRequest { configuration: Some(wanted), force_promote };
        client.update_replicate_configuration(request).await.map(drop)
    })
}

async fn stored<M: prost::Message + Default>(store: &Arc<dyn MetadataStore>, name: &str) -> Option<M> {
    let found = store.get(&format!("{ROOT}/streamingcoord-meta/{name}")).await.unwrap()?;
    Some(M::decode(found.value).unwrap())
}

/// The change that is under way, as soon as there is one.
async fn change(store: &Arc<dyn MetadataStore>) -> Message {
    change_that(store, |_| true).await
}

async fn change_that(store: &Arc<dyn MetadataStore>, is: impl Fn(&Message) -> bool) -> Message {
    for _ in 0..500 {
        let task: Option<BroadcastTask> = stored(store, "replicate-configuration-task").await;
        if let Some(message) = task.and_then(|task| task.message).map(Message::from)
            && is(&message)
        {
            return message;
        }
        Clock::system().sleep(Duration::from_millis(10)).await;
    }
    panic!("no change is under way");
}

/// Says that a copy stands in a log at `tick`.
async fn ack(address: &str, change: &Message, vchannel: &str, tick: u64) -> Result<(), Status> {
    let mut copy = change.clone();
    copy.properties.set_vchannel(vchannel);
    copy.properties.set_time_tick(TimeTick(tick));
    copy.properties.set_last_confirmed_is_self();
    let message: ImmutableMessage = copy.into_immutable(MessageId::new(1, 7)).into();
    let mut client = StreamingCoordBroadcastServiceClient::connect(format!("http://{address}")).await.unwrap();
    client.ack(BroadcastAckRequest { message: Some(message), ..Default::default() }).await.map(drop)
}

/// A copy of another change, like one of our own.
fn as_the_source_sends_it(ours: &Message, wanted: &ReplicateConfiguration) -> Message {
    let mut replicated = ours.clone();
    let mut broadcast = ours.properties.broadcast().unwrap().unwrap();
    broadcast.broadcast_id += 1000;
    broadcast.vchannels = REPLICATED.map(str::to_owned).into();
    replicated.properties.set_broadcast(&broadcast);
    replicated.properties.set_replicate(&ReplicateHeader { cluster_id: "far".into(), ..Default::default() });
    let header = AlterReplicateConfigMessageHeader {
        replicate_configuration: Some(wanted.clone()),
        ..AlterReplicateConfigMessageHeader::default()
    };
    replicated.properties.set_header_bytes(&header.encode_to_vec());
    replicated
}

#[tokio::test]
async fn change_is_in_force_when_every_channel_has_it_whoever_leads_by_then() {
    let cluster = Cluster::new();
    let tasks = Tasks::new();
    let coordinator = cluster.coordinator(settings(2)).await;
    let wanted = topology("far", "by-dev");
    let mut wrong = wanted.clone();
    wrong.clusters[0].pchannels.pop();
    let refused = update(&coordinator.address, wrong, &tasks).await.unwrap().unwrap_err();
    assert_eq!(code(&refused), StreamingCode::InvaildArgument);

    let asked = update(&coordinator.address, wanted.clone(), &tasks);
    let message = change(&cluster.store).await;
    let other = update(&coordinator.address, topology("by-dev", "far"), &tasks).await.unwrap().unwrap_err();
    assert_eq!(code(&other), StreamingCode::ResourceAcquired);
    ack(&coordinator.address, &message, COPIES[0], 10).await.unwrap();
    assert!(!asked.is_finished(), "one channel does not have it");
    coordinator.stop().await.unwrap();
    assert_eq!(code(&asked.await.unwrap().unwrap_err()), StreamingCode::OnShutdown);

    let next = cluster.coordinator(settings(2)).await;
    let again = update(&next.address, wanted.clone(), &tasks);
    ack(&next.address, &message, COPIES[1], 20).await.unwrap();
    again.await.unwrap().unwrap();
    let meta: ReplicateConfigurationMeta = stored(&cluster.store, "replicate-configuration").await.unwrap();
    assert_eq!(meta.replicate_configuration, Some(wanted.clone()));
    let places = meta.acked_result.unwrap();
    assert_eq!(places.channels, COPIES);
    assert_eq!(places.acked_checkpoints.iter().map(|at| at.time_tick).collect::<Vec<_>>(), [10, 20]);
    update(&next.address, wanted, &tasks).await.unwrap().unwrap();
    next.stop().await.unwrap();
}

/// The next leader would find this topology, and no change under way.
async fn assert_in_force(cluster: &Cluster, wanted: ReplicateConfiguration) {
    let meta: ReplicateConfigurationMeta = stored(&cluster.store, "replicate-configuration").await.unwrap();
    assert_eq!(meta.replicate_configuration, Some(wanted));
    let task: BroadcastTask = stored(&cluster.store, "replicate-configuration-task").await.unwrap();
    assert_eq!(task.message, None, "nothing is under way");
}

#[tokio::test]
async fn channel_that_is_added_waits_until_no_cluster_follows_another() {
    let cluster = Cluster::new();
    let tasks = Tasks::new();
    let mut grown = topology("by-dev", "far");
    grown.clusters[0].pchannels.push("by-dev-rootcoord-dml_2".to_owned());
    grown.clusters[1].pchannels.push("far_2".to_owned());
    for (channels, wanted, copies) in [
        (2, topology("by-dev", "far"), COPIES.to_vec()),
        (3, alone(), COPIES.to_vec()),
        (3, grown, [&COPIES[..], &["by-dev-rootcoord-dml_2"]].concat()),
    ] {
        let coordinator = cluster.coordinator(settings(channels)).await;
        let asked = update(&coordinator.address, wanted.clone(), &tasks);
        let message = change(&cluster.store).await;
        for copy in copies {
            ack(&coordinator.address, &message, copy, 10).await.unwrap();
        }
        asked.await.unwrap().unwrap();
        assert_in_force(&cluster, wanted).await;
        coordinator.stop().await.unwrap();
    }
}

#[tokio::test]
async fn secondary_waits_for_its_source_and_an_old_word_changes_nothing() {
    let cluster = Cluster::new();
    let tasks = Tasks::new();
    let coordinator = cluster.coordinator(settings(2)).await;
    let first = update(&coordinator.address, topology("far", "by-dev"), &tasks);
    let message = change(&cluster.store).await;
    for copy in COPIES {
        ack(&coordinator.address, &message, copy, 10).await.unwrap();
    }
    first.await.unwrap().unwrap();

    let wanted = topology("by-dev", "far");
    let asked = update(&coordinator.address, wanted.clone(), &tasks);
    let replicated = as_the_source_sends_it(&message, &wanted);
    ack(&coordinator.address, &replicated, REPLICATED[1], 30).await.unwrap();
    assert!(!asked.is_finished());
    ack(&coordinator.address, &replicated, REPLICATED[0], 31).await.unwrap();
    asked.await.unwrap().unwrap();

    // Nodes may say anything again after a crash.
    for (word, copy, tick) in [(&message, COPIES[1], 10), (&replicated, REPLICATED[1], 30)] {
        ack(&coordinator.address, word, copy, tick).await.unwrap();
    }
    assert_in_force(&cluster, wanted).await;
    coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn follower_is_promoted_by_force_amid_a_change_that_its_source_left_incomplete() {
    let cluster = Cluster::new();
    let tasks = Tasks::new();
    let coordinator = cluster.coordinator(settings(2)).await;
    let alone = alone();
    let refused = ask(&coordinator.address, alone.clone(), true, &tasks).await.unwrap().unwrap_err();
    assert_eq!(code(&refused), StreamingCode::InvaildArgument, "it follows nobody");
    let first = update(&coordinator.address, topology("far", "by-dev"), &tasks);
    let message = change(&cluster.store).await;
    for copy in COPIES {
        ack(&coordinator.address, &message, copy, 10).await.unwrap();
    }
    first.await.unwrap().unwrap();
    let refused = ask(&coordinator.address, topology("far", "by-dev"), true, &tasks).await.unwrap();
    assert_eq!(refused.map_err(|status| code(&status)), Ok(()), "in force already");

    // The source is lost when one of two channels has its change.
    let replicated = as_the_source_sends_it(&message, &topology("by-dev", "far"));
    ack(&coordinator.address, &replicated, REPLICATED[1], 30).await.unwrap();
    let promoted = ask(&coordinator.address, alone.clone(), true, &tasks);
    let by_force = |message: &Message| {
        message.header::<AlterReplicateConfigMessageHeader>().is_ok_and(|header| header.force_promote)
    };
    let message = change_that(&cluster.store, by_force).await;
    let other = ask(&coordinator.address, topology("by-dev", "far"), true, &tasks).await.unwrap().unwrap_err();
    assert_eq!(code(&other), StreamingCode::ResourceAcquired);
    ack(&coordinator.address, &message, COPIES[0], 40).await.unwrap();
    ack(&coordinator.address, &replicated, REPLICATED[0], 31).await.expect("its node says no more before it is heard");
    assert!(!promoted.is_finished());
    ack(&coordinator.address, &message, COPIES[1], 41).await.unwrap();
    promoted.await.unwrap().unwrap();

    for (copy, tick) in [(REPLICATED[0], 31), (REPLICATED[1], 30)] {
        ack(&coordinator.address, &replicated, copy, tick).await.expect("it stands before the promotion");
    }
    assert_in_force(&cluster, alone).await;
    coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn change_that_all_channels_have_comes_into_force_though_it_could_not_be_stored_at_first() {
    let is_in_force = |key: &str, _: &[u8]| key.ends_with("/replicate-configuration");
    let is_over = |key: &str, value: &[u8]| key.ends_with("/replicate-configuration-task") && value.is_empty();
    for fails in [is_in_force, is_over] {
        let store = Loss::on_a_new_store();
        let cluster = Cluster::on(store.clone());
        let tasks = Tasks::new();
        let coordinator = cluster.coordinator(settings(2)).await;
        let ours = update(&coordinator.address, topology("far", "by-dev"), &tasks);
        let message = change(&cluster.store).await;
        ack(&coordinator.address, &message, COPIES[0], 10).await.unwrap();
        store.by.fail(fails);
        ack(&coordinator.address, &message, COPIES[1], 11).await.expect_err("it is not in force");
        ours.await.unwrap().expect("nobody needs to say it again");

        let wanted = topology("by-dev", "far");
        let replicated = as_the_source_sends_it(&message, &wanted);
        ack(&coordinator.address, &replicated, REPLICATED[0], 30).await.unwrap();
        store.by.fail(fails);
        ack(&coordinator.address, &replicated, REPLICATED[1], 31).await.expect_err("it is not in force");
        ack(&coordinator.address, &replicated, REPLICATED[1], 31).await.expect("its node says it again");
        update(&coordinator.address, wanted.clone(), &tasks).await.unwrap().unwrap();
        assert_in_force(&cluster, wanted).await;
        coordinator.stop().await.unwrap();
    }
}

#[tokio::test]
async fn change_that_was_stored_unseen_is_nobodys_once_the_present_topology_is_said_to_be_in_force() {
    let store = Loss::on_a_new_store();
    let cluster = Cluster::on(store.clone());
    let tasks = Tasks::new();
    let node = cluster.node().await;
    let coordinator = cluster.coordinator(settings(2)).await;
    let present = topology("by-dev", "far");
    update(&coordinator.address, present.clone(), &tasks).await.unwrap().unwrap();
    store.by.fail_though_written(|key, _| key.ends_with("/replicate-configuration-task"));
    let unknown = update(&coordinator.address, alone(), &tasks).await.unwrap().unwrap_err();
    assert_eq!(code(&unknown), StreamingCode::Inner);
    change(&cluster.store).await;
    update(&coordinator.address, present.clone(), &tasks).await.unwrap().unwrap();
    coordinator.stop().await.unwrap();

    let next = cluster.coordinator(settings(2)).await;
    update(&next.address, present, &tasks).await.unwrap().unwrap();
    let task: BroadcastTask = stored(&cluster.store, "replicate-configuration-task").await.unwrap();
    assert_eq!(task.message, None, "nothing is under way");
    let is_change = |message: &&Message| message.header::<AlterReplicateConfigMessageHeader>().is_ok();
    assert_eq!(node.logs.lock().unwrap().taken.iter().filter(is_change).count(), 2, "the first change alone");
    next.stop().await.unwrap();
}

/// A broadcast of the source, as it came to the vchannels of collection 7 here.
fn broadcast(broadcast_id: u64) -> Message {
    let header = CreatePartitionMessageHeader { collection_id: 7, partition_id: 1 };
    let mut message = MessageBuilder::new(&header).vchannel(V[0]).payload("body").build().unwrap();
    let vchannels = V.map(str::to_owned).into();
    message.properties.set_broadcast(&BroadcastHeader { broadcast_id, vchannels, ..Default::default() });
    message.properties.set_replicate(&ReplicateHeader { cluster_id: "far".into(), ..Default::default() });
    message
}

const V: [&str; 2] = ["by-dev-rootcoord-dml_0_7v0", "by-dev-rootcoord-dml_1_7v1"];

/// The copies of broadcasts in a node's logs that the coordinator appended.
fn appended(node: &TestNode) -> Vec<(u64, String)> {
    let logs = node.logs.lock().unwrap();
    let copies = logs.taken.iter().filter(|message| message.header::<CreatePartitionMessageHeader>().is_ok());
    let copy = |message: &Message| {
        assert!(!message.properties.contains(key::REPLICATE) && !message.properties.contains(key::TIME_TICK));
        let broadcast = message.properties.broadcast().unwrap().unwrap();
        assert_eq!((message.payload.as_ref(), &broadcast.vchannels[..]), (&b"body"[..], &V.map(str::to_owned)[..]));
        (broadcast.broadcast_id, message.properties.vchannel().unwrap().to_owned())
    };
    copies.map(copy).collect()
}

/// Waits until a broadcast of the source is known to be on all its channels.
async fn until_whole(store: &Arc<dyn MetadataStore>, id: u64) {
    let name = format!("replicated-broadcast/far/{id}");
    while stored::<BroadcastTask>(store, &name).await.unwrap().state() != BroadcastTaskState::Tombstone {
        Clock::system().sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn promotion_completes_what_the_source_broadcast_to_some_channels_only_whoever_leads_by_then() {
    let cluster = Cluster::new();
    let tasks = Tasks::new();
    let node = cluster.node().await;
    let coordinator = cluster.coordinator(settings(2)).await;
    update(&coordinator.address, topology("far", "by-dev"), &tasks).await.unwrap().unwrap();

    for copy in V {
        ack(&coordinator.address, &broadcast(1), copy, 10).await.unwrap();
    }
    ack(&coordinator.address, &broadcast(2), V[1], 11).await.unwrap();
    ack(&coordinator.address, &broadcast(1), V[1], 10).await.expect("a node that died says it again");
    let alone = alone();
    node.logs.lock().unwrap().fails.insert(V[1].to_owned());
    let promoted = ask(&coordinator.address, alone.clone(), true, &tasks);
    let message = change(&cluster.store).await;
    ack(&coordinator.address, &broadcast(3), V[0], 12).await.expect("it stands before the promotion");
    for copy in COPIES {
        ack(&coordinator.address, &message, copy, 40).await.unwrap();
    }
    let copies = [(2, V[0].to_owned()), (3, V[1].to_owned())];
    eventually("the copy of the older one", || appended(&node) == copies[..1]).await;
    // What nobody noted the next leader appends again, and this node does not look at keys.
    let noted = until_whole(&cluster.store, 2);
    Clock::system().timeout(Duration::from_secs(20), noted).await.expect("it is noted");
    assert!(!promoted.is_finished());
    coordinator.stop().await.unwrap();
    assert_eq!(code(&promoted.await.unwrap().unwrap_err()), StreamingCode::OnShutdown);

    let next = cluster.coordinator(settings(2)).await;
    let again = ask(&next.address, alone.clone(), true, &tasks);
    Clock::system().sleep(Duration::from_millis(200)).await;
    assert!(!again.is_finished());
    node.logs.lock().unwrap().fails.clear();
    again.await.unwrap().unwrap();
    assert_eq!(appended(&node), copies);
    let meta: ReplicateConfigurationMeta = stored(&cluster.store, "replicate-configuration").await.unwrap();
    assert_eq!(meta.replicate_configuration, Some(alone));

    for (id, copy) in [(1, V[0]), (2, V[1]), (3, V[0])] {
        ack(&next.address, &broadcast(id), copy, 12).await.unwrap();
        let task: BroadcastTask = stored(&cluster.store, &format!("replicated-broadcast/far/{id}")).await.unwrap();
        assert_eq!((task.state(), task.message), (BroadcastTaskState::Tombstone, None));
    }
    next.stop().await.unwrap();
}

#[tokio::test]
async fn copy_that_a_log_refuses_for_good_does_not_hold_a_promotion_up() {
    let cluster = Cluster::new();
    let tasks = Tasks::new();
    let node = cluster.node().await;
    let coordinator = cluster.coordinator(settings(2)).await;
    update(&coordinator.address, topology("far", "by-dev"), &tasks).await.unwrap().unwrap();
    ack(&coordinator.address, &broadcast(1), V[0], 10).await.unwrap();
    node.logs.lock().unwrap().refuses.insert(V[1].to_owned());
    let alone = alone();
    let promoted = ask(&coordinator.address, alone, true, &tasks);
    let message = change(&cluster.store).await;
    for copy in COPIES {
        ack(&coordinator.address, &message, copy, 40).await.unwrap();
    }
    promoted.await.unwrap().unwrap();
    assert_eq!(appended(&node), []);
    coordinator.stop().await.unwrap();
}
