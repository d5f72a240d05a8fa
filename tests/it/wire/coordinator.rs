//! The coordinator's other calls: timestamps, ids, states, the balance policy, broadcast.

use std::time::Duration;

use streaming_proto::{
    common::{self, StateCode},
    milvus::{DescribeCollectionRequest, GetComponentStatesRequest},
    rootcoord::{AllocIdRequest, AllocTimestampRequest, GetPChannelInfoRequest, root_coord_client::RootCoordClient},
    streaming::{
        BroadcastAckRequest, StreamingCode, UpdateReplicateConfigurationRequest, UpdateWalBalancePolicyRequest,
        WalBalancePolicyConfig, WalBalancePolicyNodes,
        streaming_coord_assignment_service_client::StreamingCoordAssignmentServiceClient,
        streaming_coord_broadcast_service_client::StreamingCoordBroadcastServiceClient,
    },
};
use tonic::{Request, transport::Channel};

use super::{
    raw::{Refusal, add_headers},
    server::Server,
};

fn request<T>(server: &Server, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let id = server.coord_id.to_string();
    add_headers(request.metadata_mut(), &[("cluster", "by-dev"), ("serverid", &id)]);
    request
}

fn root(server: &Server) -> RootCoordClient<Channel> {
    RootCoordClient::new(server.coord.clone())
}

async fn timestamps(server: &Server, count: u32, block_timestamp: u64) -> (common::Status, u64, u32) {
    let message = AllocTimestampRequest { count, block_timestamp, ..AllocTimestampRequest::default() };
    let given = root(server).alloc_timestamp(request(server, message)).await.expect("an answer").into_inner();
    (given.status.expect("a status"), given.timestamp, given.count)
}

async fn ids(server: &Server, count: u32) -> (common::Status, i64, u32) {
    let message = AllocIdRequest { count, ..AllocIdRequest::default() };
    let given = root(server).alloc_id(request(server, message)).await.expect("an answer").into_inner();
    (given.status.expect("a status"), given.id, given.count)
}

#[tokio::test(flavor = "multi_thread")]
async fn timestamps_and_ids_rise_and_no_call_gets_what_another_has() -> anyhow::Result<()> {
    let server = &Server::start().await?;
    let (mut next_time, mut next_id) = (0, 0);
    for count in [1, 1000, 1, 200_000, 7] {
        let (status, first, given) = timestamps(server, count, 0).await;
        assert!(status.code == 0 && first >= next_time && given == count, "{first} after {next_time}: {status:?}");
        next_time = first + u64::from(count);
        let (status, first, given) = ids(server, count).await;
        assert!(status.code == 0 && first >= next_id && given == count, "{first} after {next_id}: {status:?}");
        next_id = first + i64::from(count);
    }
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis();
    let at_ms = u128::from(next_time >> 18);
    assert!(now_ms.abs_diff(at_ms) < 10_000, "{at_ms} is not the time of day, {now_ms}");
    // One that is to be passed is waited for.
    let barrier = next_time + (50 << 18);
    let (status, first, _) = timestamps(server, 1, barrier).await;
    assert!(status.code == 0 && first > barrier, "{first} is not above {barrier}: {status:?}");
    // Impossible counts and a barrier in another age are refused in the answer, not by the call.
    for count in [0, u32::MAX] {
        assert!(timestamps(server, count, 0).await.0.code != 0 && ids(server, count).await.0.code != 0, "{count}");
    }
    let far = u64::try_from(now_ms)? + 3_600_000;
    let refused = tokio::time::timeout(Duration::from_secs(5), timestamps(server, 1, far << 18)).await?;
    assert!(refused.0.code != 0 && !refused.0.retriable, "{refused:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_about_collections_are_answered_that_there_are_none() -> anyhow::Result<()> {
    let server = &Server::start().await?;
    let states = root(server).get_component_states(request(server, GetComponentStatesRequest {})).await?.into_inner();
    let info = states.state.expect("a state");
    assert_eq!((info.node_id, info.role.as_str()), (server.coord_id, "mixcoord"));
    assert_eq!(info.state_code(), StateCode::Healthy);

    let asked = GetPChannelInfoRequest { pchannel: "by-dev-rootcoord-dml_0".into(), ..Default::default() };
    let known = root(server).get_p_channel_info(request(server, asked)).await?.into_inner();
    assert_eq!((known.status.expect("a status").code, known.collections.len()), (0, 0));
    let asked = DescribeCollectionRequest { collection_id: 7, ..Default::default() };
    let known = root(server).describe_collection_internal(request(server, asked)).await?.into_inner();
    assert_eq!(known.status.expect("a status").code, 100, "collection not found");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_balance_policy_changes_in_what_the_mask_names() -> anyhow::Result<()> {
    let server = &Server::start().await?;
    let mut client = StreamingCoordAssignmentServiceClient::new(server.coord.clone());
    let mut update = async |allow_rebalance, freeze: Vec<i64>, thaw: Vec<i64>, mask: Option<&[&str]>| {
        let message = UpdateWalBalancePolicyRequest {
            config: Some(WalBalancePolicyConfig { allow_rebalance }),
            nodes: Some(WalBalancePolicyNodes { freeze_node_ids: freeze, defreeze_node_ids: thaw }),
            update_mask: mask
                .map(|paths| prost_types::FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() }),
        };
        let updated = client.update_wal_balance_policy(request(server, message)).await.expect("updated").into_inner();
        (updated.config.expect("a policy").allow_rebalance, updated.freeze_node_ids)
    };
    let node = server.node.id;
    assert_eq!(update(false, vec![], vec![], None).await, (false, vec![]), "without a mask all of it counts");
    assert_eq!(update(true, vec![node], vec![], Some(&[])).await, (false, vec![node]), "nodes are not masked");
    assert_eq!(update(true, vec![], vec![], Some(&["config.allow_rebalance"])).await, (true, vec![node]));
    assert_eq!(update(false, vec![99], vec![node], Some(&[])).await, (true, vec![99]));
    let unknown = prost_types::FieldMask { paths: vec!["config.elsewhere".to_owned()] };
    let message = UpdateWalBalancePolicyRequest { update_mask: Some(unknown), ..Default::default() };
    let status = client.update_wal_balance_policy(request(server, message)).await.expect_err("refused");
    Refusal::of(&status).expect("an unknown path", StreamingCode::InvaildArgument, "config.elsewhere");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ack_of_no_known_broadcast_succeeds_and_what_is_not_served_says_so_for_good() -> anyhow::Result<()> {
    let server = &Server::start().await?;
    let mut broadcast = StreamingCoordBroadcastServiceClient::new(server.coord.clone());
    // In the form of nodes before 2.6.1.
    let legacy = BroadcastAckRequest { broadcast_id: 99, vchannel: "by-dev-rootcoord-dml_0_1v0".into(), message: None };
    broadcast.ack(request(server, legacy)).await?;

    let mut assignment = StreamingCoordAssignmentServiceClient::new(server.coord.clone());
    let configuration = UpdateReplicateConfigurationRequest::default();
    let status = assignment.update_replicate_configuration(request(server, configuration)).await.expect_err("refused");
    Refusal::of(&status).expect("replication", StreamingCode::InvaildArgument, "no replicate configuration");
    Ok(())
}
