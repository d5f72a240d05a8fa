//! The session in the metadata store, and a node on a listener of its own that finds its coordinator through it.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use streaming_proto::{
    common, milvus,
    rootcoord::{
        AllocIdRequest, AllocIdResponse, AllocTimestampRequest, AllocTimestampResponse, GetPChannelInfoRequest,
        GetPChannelInfoResponse,
        root_coord_server::{RootCoord as RootCoordService, RootCoordServer},
    },
    streaming::{
        StreamingCode, StreamingNodeManagerAssignRequest, produce_response::Response::Close as Closed,
        streaming_node_manager_service_client::StreamingNodeManagerServiceClient,
    },
};
use streaming_types::{DeliverPolicy, PChannel};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use woodpecker_base::{
    health::{HealthReporter, State},
    metadata::{MemoryStore, MetadataStore, Txn},
    net::{Listener, tcp_connector},
    random::Random,
    session::SessionRecord,
    tasks::Tasks,
};

use super::harness::{VCHANNEL, World, code, eventually, insert, rw};
use crate::{Edges, RootCoord, Settings, TimestampSource, serve};

async fn session(world: &World, server_id: i64) -> Option<SessionRecord> {
    let key = format!("by-dev/meta/session/streamingnode-{server_id}");
    let found = world.metadata.get(&key).await.unwrap()?;
    Some(SessionRecord::decode(&found.value).unwrap())
}

/// Ends the session of node 1.
async fn revoke(world: &World) {
    let key = "by-dev/meta/session/streamingnode-1";
    let lease = world.metadata.get(key).await.unwrap().unwrap().lease.unwrap();
    world.metadata.revoke_lease(lease).await.unwrap();
}

#[tokio::test]
async fn node_that_lost_its_session_closes_what_it_had_and_comes_back_under_a_new_id() {
    let world = World::new();
    let node = world.serving().await;
    let record = session(&world, 1).await.unwrap();
    assert_eq!((record.server_id, record.role.as_str(), record.stopping), (1, "streamingnode", false));
    let mut produce = node.producer(&rw(1)).await;
    produce.append(insert(VCHANNEL, "x")).await.unwrap();

    revoke(&world).await;
    let record = eventually(&world, "a new session", async || session(&world, 2).await).await;
    assert_eq!(record.server_id, 2);
    assert!(matches!(produce.next().await, Some(Ok(Closed(_)))));

    let old = node.request(StreamingNodeManagerAssignRequest { pchannel: Some(rw(2).to_proto()) });
    assert_eq!(code(&node.manager().assign(old).await.unwrap_err()), StreamingCode::IgnoredOperation);
    let mut new = Request::new(StreamingNodeManagerAssignRequest { pchannel: Some(rw(2).to_proto()) });
    new.metadata_mut().insert("serverid", "2".parse().unwrap());
    node.manager().assign(new).await.unwrap();
}

#[tokio::test]
async fn what_is_assigned_while_a_node_gives_its_old_id_up_is_refused() {
    let world = World::new();
    let mut node = world.serving().await;
    let mut produce = node.producer(&rw(1)).await;
    produce.append(insert(VCHANNEL, "x")).await.unwrap();
    world.hung.send_replace(true);
    produce.send(insert(VCHANNEL, "in flight")).await;
    revoke(&world).await;
    let refused = eventually(&world, "an end", async || node.try_status().await.err()).await;
    assert_eq!(refused.code(), StreamingCode::OnShutdown, "what is not there any more did not end by itself");

    let late = PChannel::read_write("by-dev-rootcoord-dml_1", 1).unwrap();
    assert_eq!(node.assign(&late).await.unwrap_err().code(), StreamingCode::OnShutdown);
    world.hung.send_replace(false);
    eventually(&world, "a new session", async || session(&world, 2).await).await;
    node.server_id = 2;
    assert!(node.status().await.is_empty());
    node.assign(&late).await.unwrap();
}

#[tokio::test]
async fn node_that_cannot_see_the_metadata_store_goes_on() {
    let world = World::new();
    let settings = Settings { session_ttl: Duration::from_secs(3), ..Settings::default() };
    let node = world.node_with(1, settings).await;
    node.assign(&rw(1)).await.unwrap();
    let mut produce = node.producer(&rw(1)).await;
    world.metadata.set_reachable(false);
    let refused = async || {
        produce.append(insert(VCHANNEL, "x")).await.unwrap();
        node.node.local().latest_time_tick(&rw(1), VCHANNEL).err()
    };
    let refused = eventually(&world, "the end of the lease", refused).await;
    assert_eq!(refused.code(), StreamingCode::ChannelNotExist);
    // Only the log knows whose it is, and says so with every tick that it takes.
    let mut consume = node.consumer(&rw(1), DeliverPolicy::Latest, &[]).await;
    let (first, second) = (consume.any().await, consume.any().await);
    assert!(second.time_tick().unwrap() > first.time_tick().unwrap());
    assert!(!first.properties.is_not_persisted() && !second.properties.is_not_persisted());
    world.metadata.set_reachable(true);
}

/// A coordinator that gives timestamps from `first` on, or an error.
struct Coordinator {
    first: u64,
    error: i32,
}

#[tonic::async_trait]
impl RootCoordService for Coordinator {
    async fn alloc_timestamp(
        &self,
        request: Request<AllocTimestampRequest>,
    ) -> Result<Response<AllocTimestampResponse>, Status> {
        assert_eq!(request.metadata().get("serverid").unwrap(), "77");
        assert_eq!(request.metadata().get("cluster").unwrap(), "by-dev");
        let status = common::Status { code: self.error, ..common::Status::default() };
        let count = request.into_inner().count;
        Ok(Response::new(AllocTimestampResponse { status: Some(status), timestamp: self.first, count }))
    }

    async fn get_component_states(
        &self,
        _: Request<milvus::GetComponentStatesRequest>,
    ) -> Result<Response<milvus::ComponentStates>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn alloc_id(&self, _: Request<AllocIdRequest>) -> Result<Response<AllocIdResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn describe_collection_internal(
        &self,
        _: Request<milvus::DescribeCollectionRequest>,
    ) -> Result<Response<milvus::DescribeCollectionResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_p_channel_info(
        &self,
        _: Request<GetPChannelInfoRequest>,
    ) -> Result<Response<GetPChannelInfoResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// Starts a coordinator and announces it.
async fn coordinate(metadata: &MemoryStore, coordinator: Coordinator) -> Tasks {
    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    let record = SessionRecord::new("mixcoord", 77, listener.address(), "2.6.2");
    metadata.commit(Txn::new().put("by-dev/meta/session/mixcoord", record.encode())).await.unwrap();
    let server = tonic::transport::Server::builder().add_service(RootCoordServer::new(coordinator));
    let tasks = Tasks::new();
    let stop = tasks.token().clone();
    tasks.spawn(server.serve_with_incoming_shutdown(listener, stop.cancelled_owned()));
    tasks
}

#[tokio::test]
async fn timestamps_come_from_the_coordinator_that_is_active_now() {
    let world = World::new();
    let source = RootCoord::new(Arc::new(world.metadata.clone()), "by-dev/meta", "by-dev", tcp_connector());
    assert!(source.allocate(10).await.unwrap_err().to_string().contains("no coordinator is active"));
    let first = coordinate(&world.metadata, Coordinator { first: 100, error: 0 }).await;
    assert_eq!(source.allocate(10).await.unwrap(), 100..110);
    assert_eq!(source.allocate(1).await.unwrap(), 100..101);

    first.drain(&world.clock, Duration::from_secs(5)).await;
    let _failing = coordinate(&world.metadata, Coordinator { first: 0, error: 5 }).await;
    // The connection to the first one breaks, or the second one refuses: never a timestamp.
    source.allocate(10).await.unwrap_err();
    let _second = coordinate(&world.metadata, Coordinator { first: 500, error: 0 }).await;
    let range = eventually(&world, "the new coordinator", async || source.allocate(10).await.ok()).await;
    assert_eq!(range, 500..510);
}

async fn edges(world: &World, tasks: &Tasks, health: &HealthReporter) -> Edges {
    Edges {
        listener: Listener::bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap(),
        connector: tcp_connector(),
        metadata: Arc::new(world.metadata.clone()),
        logs: world.logs(tasks),
        clock: world.clock.clone(),
        random: Random::seeded(1),
        health: health.clone(),
        cell: crate::NodeCell::default(),
        flow: tokio::sync::watch::channel(crate::Flow::default()).1,
        paused: tokio::sync::watch::channel(false).1,
    }
}

#[tokio::test]
async fn served_node_registers_works_and_leaves_nothing_behind() {
    let world = World::new();
    let tasks = Tasks::new();
    let now = world.clock.wall_ms() << 18;
    let _coordinator = coordinate(&world.metadata, Coordinator { first: now, error: 0 }).await;
    let health = HealthReporter::default();
    let edges = edges(&world, &tasks, &health).await;
    let shutdown = CancellationToken::new();
    let labels = [("RESOURCE_GROUP".to_owned(), "blue".to_owned())].into();
    let served = tasks.spawn(serve(Settings { labels, ..Settings::default() }, edges, shutdown.clone()));
    let record = eventually(&world, "the session", async || session(&world, 1).await).await;
    assert_eq!(record.resource_group(), "blue");
    let address = format!("http://{}", record.address);
    let mut manager = StreamingNodeManagerServiceClient::connect(address).await.unwrap();
    let request = StreamingNodeManagerAssignRequest { pchannel: Some(rw(1).to_proto()) };
    manager.assign(request).await.unwrap();
    eventually(&world, "healthy", async || health.now().is_ready().then_some(())).await;

    shutdown.cancel();
    world.clock.timeout(Duration::from_secs(10), served).await.unwrap().unwrap().unwrap();
    assert_eq!(health.now().state, State::Stopping);
    assert_eq!(session(&world, 1).await, None);
}

#[tokio::test]
async fn impossible_settings_stop_the_start() {
    let world = World::new();
    let tasks = Tasks::new();
    let edges = edges(&world, &tasks, &HealthReporter::default()).await;
    let settings = Settings { heartbeat: Duration::ZERO, ..Settings::default() };
    let error = serve(settings, edges, CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().starts_with("heartbeat: "), "{error}");
    assert_eq!(error.code(), "NODE_SETTINGS");
}
