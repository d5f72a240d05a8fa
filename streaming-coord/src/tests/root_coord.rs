use std::collections::BTreeSet;

use streaming_proto::{
    common::StateCode,
    milvus::{DescribeCollectionRequest, GetComponentStatesRequest},
    rootcoord::{AllocIdRequest, AllocTimestampRequest, GetPChannelInfoRequest, root_coord_client::RootCoordClient},
};
use tonic::{Code, Request, transport::Channel};

use super::cluster::{Cluster, settings};

async fn client(address: &str) -> RootCoordClient<Channel> {
    RootCoordClient::connect(format!("http://{address}")).await.unwrap()
}

async fn timestamp(client: &mut RootCoordClient<Channel>, count: u32, block_timestamp: u64) -> Result<u64, i32> {
    let request = AllocTimestampRequest { count, block_timestamp, ..AllocTimestampRequest::default() };
    let response = client.alloc_timestamp(request).await.unwrap().into_inner();
    match response.status.unwrap().code {
        0 => {
            assert_eq!(response.count, count);
            Ok(response.timestamp)
        }
        code => Err(code),
    }
}

#[tokio::test]
async fn timestamps_and_ids_rise_across_coordinators() {
    let cluster = Cluster::new();
    let (mut last_timestamp, mut last_id) = (0, 0);
    for _ in 0..3 {
        let coordinator = cluster.coordinator(settings(1)).await;
        let mut client = client(&coordinator.address).await;
        for _ in 0..20 {
            let first = timestamp(&mut client, 5, 0).await.unwrap();
            assert!(first > last_timestamp);
            last_timestamp = first + 4;
            let request = AllocIdRequest { count: 3, ..AllocIdRequest::default() };
            let response = client.alloc_id(request).await.unwrap().into_inner();
            assert!(response.id > last_id);
            last_id = response.id + 2;
        }
        coordinator.stop().await.unwrap();
    }
}

#[tokio::test]
async fn concurrent_callers_share_no_timestamp() {
    let cluster = Cluster::new();
    let coordinator = cluster.coordinator(settings(1)).await;
    let callers = (0..10).map(|_| async {
        let mut client = client(&coordinator.address).await;
        let mut mine = Vec::new();
        for _ in 0..20 {
            mine.push(timestamp(&mut client, 1, 0).await.unwrap());
        }
        assert!(mine.is_sorted_by(|a, b| a < b));
        mine
    });
    let all: Vec<_> = futures::future::join_all(callers).await.concat();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 200);
    coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn a_timestamp_comes_after_the_one_it_waits_for() {
    let cluster = Cluster::new();
    let coordinator = cluster.coordinator(settings(1)).await;
    let mut client = client(&coordinator.address).await;
    let soon = (cluster.clock.wall_ms() + 150) << 18;
    assert!(timestamp(&mut client, 1, soon).await.unwrap() > soon);
    assert!(cluster.clock.wall_ms() << 18 > soon);
    assert_eq!(timestamp(&mut client, 1, u64::MAX).await, Err(1100));
    assert_eq!(timestamp(&mut client, 0, 0).await, Err(1100));
    assert_eq!(timestamp(&mut client, u32::MAX, 0).await, Err(1100));
    coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn component_states_follow_the_role() {
    let cluster = Cluster::new();
    let active = cluster.coordinator(settings(1)).await;
    let mut client_of_active = client(&active.address).await;
    timestamp(&mut client_of_active, 1, 0).await.unwrap();
    let state = async |client: &mut RootCoordClient<Channel>| {
        let states = client.get_component_states(GetComponentStatesRequest {}).await.unwrap().into_inner();
        let info = states.state.unwrap();
        assert_eq!(info.role, "mixcoord");
        (info.state_code(), info.node_id)
    };
    let (code, id) = state(&mut client_of_active).await;
    assert_eq!(code, StateCode::Healthy);

    let mut impatient = settings(1);
    impatient.ready_timeout = std::time::Duration::from_millis(50);
    let standby = cluster.coordinator(impatient).await;
    let mut client_of_standby = client(&standby.address).await;
    let clock = cluster.clock.clone();
    while state(&mut client_of_standby).await.0 != StateCode::StandBy {
        clock.sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(state(&mut client_of_standby).await.1 > id);
    assert_eq!(timestamp(&mut client_of_standby, 1, 0).await, Err(1), "not ready");
    standby.stop().await.unwrap();
    active.stop().await.unwrap();
}

#[tokio::test]
async fn a_cluster_without_collections_says_so() {
    let cluster = Cluster::new();
    let coordinator = cluster.coordinator(settings(1)).await;
    let mut client = client(&coordinator.address).await;
    let info = client.get_p_channel_info(GetPChannelInfoRequest::default()).await.unwrap().into_inner();
    assert_eq!((info.status.unwrap().code, info.collections), (0, Vec::new()));
    let described = client.describe_collection_internal(DescribeCollectionRequest::default()).await.unwrap();
    assert_eq!(described.into_inner().status.unwrap().code, 100);

    let mut request = Request::new(GetComponentStatesRequest {});
    request.metadata_mut().insert("serverid", 999.into());
    assert_eq!(client.get_component_states(request).await.unwrap_err().code(), Code::FailedPrecondition);
    coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn a_bad_setting_stops_the_start() {
    let cluster = Cluster::new();
    let mut bad = settings(1);
    bad.cluster.clear();
    let refused = cluster.coordinator(bad).await.stop().await.unwrap_err();
    assert_eq!((refused.code(), refused.to_string().contains("cluster")), ("COORDINATOR_SETTINGS", true));
}
