//! Calls that are meant for another cluster or another server.

use streaming_proto::{
    milvus::GetComponentStatesRequest,
    node::{LatestRequest, read_points_client::ReadPointsClient},
    rootcoord::{AllocIdRequest, root_coord_client::RootCoordClient},
    streaming::{
        AssignmentDiscoverResponse, BroadcastAckRequest, ConsumeResponse, GetReplicateCheckpointRequest,
        ProduceResponse, StreamingCode, StreamingNodeManagerAssignRequest, StreamingNodeManagerCollectStatusRequest,
        StreamingNodeManagerRemoveRequest, UpdateWalBalancePolicyRequest,
        streaming_coord_assignment_service_client::StreamingCoordAssignmentServiceClient,
        streaming_coord_broadcast_service_client::StreamingCoordBroadcastServiceClient,
        streaming_node_handler_service_client::StreamingNodeHandlerServiceClient,
        streaming_node_state_service_client::StreamingNodeStateServiceClient,
    },
};
use tonic::{Code, Request};

use super::{
    raw::{Call, Headers, Refusal, add_headers},
    server::{CONSUME, DISCOVER, PRODUCE, Server},
};

fn request<T>(message: T, headers: Headers<'_>) -> Request<T> {
    let mut request = Request::new(message);
    add_headers(request.metadata_mut(), headers);
    request
}

/// What each method of the node says to such metadata; `None` where it was let in.
async fn ask_node(server: &Server, headers: Headers<'_>) -> Vec<(&'static str, Option<Refusal>)> {
    let channel = &server.node.channel;
    let refusal = |status: tonic::Status| Refusal::of(&status);
    let (mut manager, mut handler) = (server.node.manager(), StreamingNodeHandlerServiceClient::new(channel.clone()));
    let mut state = StreamingNodeStateServiceClient::new(channel.clone());
    let assign = manager.assign(request(StreamingNodeManagerAssignRequest::default(), headers)).await;
    let remove = manager.remove(request(StreamingNodeManagerRemoveRequest::default(), headers)).await;
    let status = manager.collect_status(request(StreamingNodeManagerCollectStatusRequest::default(), headers)).await;
    let checkpoint = handler.get_replicate_checkpoint(request(GetReplicateCheckpointRequest::default(), headers)).await;
    let mut points = ReadPointsClient::new(channel.clone());
    let latest = points.latest(request(LatestRequest::default(), headers)).await;
    let states = state.get_component_states(request(GetComponentStatesRequest::default(), headers)).await;
    let produce = Call::<ProduceResponse>::open(channel, PRODUCE, headers).await;
    let consume = Call::<ConsumeResponse>::open(channel, CONSUME, headers).await;
    vec![
        ("Assign", assign.err().map(refusal)),
        ("Remove", remove.err().map(refusal)),
        ("CollectStatus", status.err().map(refusal)),
        ("GetReplicateCheckpoint", checkpoint.err().map(refusal)),
        ("GetComponentStates", states.err().map(refusal)),
        ("Latest", latest.err().map(refusal)),
        ("Produce", produce.err()),
        ("Consume", consume.err()),
    ]
}

/// The same of the coordinator's streaming services.
async fn ask_coordinator(server: &Server, headers: Headers<'_>) -> Vec<(&'static str, Option<Refusal>)> {
    let channel = &server.coord;
    let refusal = |status: tonic::Status| Refusal::of(&status);
    let mut assignment = StreamingCoordAssignmentServiceClient::new(channel.clone());
    let policy = assignment.update_wal_balance_policy(request(UpdateWalBalancePolicyRequest::default(), headers)).await;
    let mut broadcast = StreamingCoordBroadcastServiceClient::new(channel.clone());
    let ack = broadcast.ack(request(BroadcastAckRequest::default(), headers)).await;
    let discover = Call::<AssignmentDiscoverResponse>::open(channel, DISCOVER, headers).await;
    vec![
        ("UpdateWALBalancePolicy", policy.err().map(refusal)),
        ("Ack", ack.err().map(refusal)),
        ("AssignmentDiscover", discover.err()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_refuses_what_is_meant_for_others_before_it_looks_at_the_request() -> anyhow::Result<()> {
    let server = &Server::start().await?;
    let other = (server.node.id + server.coord_id).to_string();
    let cases: [(Headers<'_>, &str); 3] = [
        (&[("cluster", "other")], "cross cluster routing"),
        (&[("cluster", "by-dev"), ("serverid", &other)], "node not match"),
        // The cluster is looked at first.
        (&[("cluster", "other"), ("serverid", &other)], "cross cluster routing"),
    ];
    for (headers, cause) in cases {
        let answers = ask_node(server, headers).await.into_iter().chain(ask_coordinator(server, headers).await);
        for (method, refusal) in answers {
            let refusal = refusal.unwrap_or_else(|| panic!("{method} let {headers:?} in"));
            refusal.expect(method, StreamingCode::IgnoredOperation, cause);
        }
        // A service that is no streaming service says so in its own words.
        let mut root = RootCoordClient::new(server.coord.clone());
        let status = root.alloc_id(request(AllocIdRequest { count: 1, ..Default::default() }, headers)).await;
        let status = status.expect_err("refused");
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains(cause), "{status:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_absent_empty_or_unreadable_passes() -> anyhow::Result<()> {
    let server = &Server::start().await?;
    let (node, coord) = (server.node.id.to_string(), server.coord_id.to_string());
    let cases: [(Headers<'_>, Headers<'_>); 5] = [
        (&[], &[]),
        (&[("cluster", ""), ("serverid", "")], &[("cluster", ""), ("serverid", "")]),
        (&[("serverid", "seven")], &[("serverid", "seven")]),
        (&[("serverid", "99999999999999999999")], &[("serverid", "99999999999999999999")]),
        (&[("cluster", "by-dev"), ("serverid", &node)], &[("cluster", "by-dev"), ("serverid", &coord)]),
    ];
    for (of_node, of_coord) in cases {
        let answers = ask_node(server, of_node).await.into_iter().chain(ask_coordinator(server, of_coord).await);
        for (method, refusal) in answers {
            // What was let in may be refused for what it lacks.
            let misrouted = refusal.filter(|refusal| refusal.code == StreamingCode::IgnoredOperation);
            assert_eq!(misrouted, None, "{method} {of_node:?}");
        }
    }
    Ok(())
}
