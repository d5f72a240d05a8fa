//! Assign, Remove, CollectStatus and the state of the component.

use std::time::Duration;

use streaming_proto::{
    common::StateCode,
    milvus::GetComponentStatesRequest,
    streaming::{
        StreamingCode, StreamingNodeManagerAssignRequest,
        streaming_node_state_service_client::StreamingNodeStateServiceClient, streaming_node_wal_metrics::Metrics,
    },
};
use streaming_types::{DeliverPolicy, PChannel};

use super::harness::{PCHANNEL, VCHANNEL, World, code, insert, ro, rw};

#[tokio::test]
async fn terms_only_grow() {
    let node = World::new().serving().await;
    let assign = async |term| node.assign(&rw(term)).await.map_err(|error| error.code());
    let remove = async |term| node.remove(&rw(term)).await.map_err(|error| error.code());
    let ignored = Err(StreamingCode::IgnoredOperation);
    assert_eq!(assign(1).await, Ok(()), "who asks again for what is open has it");
    assert_eq!(assign(3).await, Ok(()));
    assert_eq!(assign(2).await, ignored);
    assert_eq!(remove(2).await, ignored);
    assert_eq!(remove(3).await, Ok(()));
    assert_eq!(remove(3).await, Ok(()), "removing twice is fine");
    assert_eq!(assign(3).await, ignored, "a removed term does not come back");
    assert_eq!(remove(9).await, Ok(()), "nothing was open at that term");
    assert_eq!(assign(9).await, ignored);
    assert_eq!(assign(10).await, Ok(()));
    assert_eq!(
        node.assign(&rw(9)).await.unwrap_err().cause(),
        format!("channel {PCHANNEL} with expired term 9, cannot change expected state for open")
    );
}

#[tokio::test]
async fn what_was_written_survives_every_change_of_term() {
    let world = World::new();
    let node = world.serving().await;
    let mut expected = Vec::new();
    for term in 1..=4 {
        node.assign(&rw(term)).await.unwrap();
        let mut produce = node.producer(&rw(term)).await;
        for n in 0..10 {
            let payload = format!("{term}/{n}");
            produce.append(insert(VCHANNEL, &payload)).await.unwrap();
            expected.push(payload);
        }
    }
    let mut consume = node.consumer(&rw(4), DeliverPolicy::All, &[]).await;
    assert_eq!(consume.payloads(40).await, expected);
}

#[tokio::test]
async fn failed_open_burns_its_term() {
    let node = World::new().node(1).await;
    let bad = |term| PChannel::read_write("no/log/has/this/name", term).unwrap();
    assert_eq!(node.assign(&bad(1)).await.unwrap_err().code(), StreamingCode::Unknown);
    assert_eq!(node.assign(&bad(1)).await.unwrap_err().code(), StreamingCode::IgnoredOperation);
    assert_eq!(node.remove(&bad(1)).await, Ok(()));
    assert_eq!(node.assign(&bad(2)).await.unwrap_err().code(), StreamingCode::Unknown);
    assert!(node.status().await.is_empty());
}

#[tokio::test]
async fn open_outlives_the_call_that_asked_for_it() {
    let world = World::new();
    let node = world.node(1).await;
    world.timestamps.answer(false);
    let mut request = node.request(StreamingNodeManagerAssignRequest { pchannel: Some(rw(1).to_proto()) });
    request.set_timeout(Duration::from_millis(100));
    node.manager().assign(request).await.unwrap_err();
    assert_eq!(code(&node.produce(&rw(1)).await.map(drop).unwrap_err()), StreamingCode::ChannelNotExist);
    assert!(node.status().await.is_empty(), "status is answered while a WAL opens");
    let first = rw(1);
    let (again, ()) = futures::join!(node.assign(&first), async {
        world.clock.sleep(Duration::from_millis(100)).await;
        world.timestamps.answer(true);
    });
    assert_eq!(again, Ok(()));
    node.producer(&rw(1)).await.append(insert(VCHANNEL, "x")).await.unwrap();
}

#[tokio::test]
async fn newer_term_overtakes_an_open_that_takes_long() {
    let world = World::new();
    let node = world.node(1).await;
    world.timestamps.answer(false);
    let (older, newer) = (rw(1), rw(2));
    let (first, second) = futures::join!(node.assign(&older), async {
        world.clock.sleep(Duration::from_millis(100)).await;
        let (second, ()) = futures::join!(node.assign(&newer), async {
            world.clock.sleep(Duration::from_millis(100)).await;
            world.timestamps.answer(true);
        });
        second
    });
    // The first call learns of it as soon as its own term is over.
    assert!(matches!(first.unwrap_err().code(), StreamingCode::UnmatchedChannelTerm | StreamingCode::Unknown));
    assert_eq!(second, Ok(()));
}

#[tokio::test]
async fn status_lists_what_is_available() {
    let world = World::new();
    let node = world.serving().await;
    let other = PChannel::read_only("by-dev-rootcoord-dml_1", 4).unwrap();
    node.assign(&other).await.unwrap();
    let status = node.status().await;
    assert_eq!(status.len(), 2);
    assert_eq!(status[0].info, Some(rw(1).to_proto()));
    let Some(Metrics::Rw(first)) = status[0].metrics else { panic!("not writable") };
    assert_eq!(status[1].info, Some(other.to_proto()));
    assert!(matches!(status[1].metrics, Some(Metrics::Ro(_))));

    let sent = node.producer(&rw(1)).await.append(insert(VCHANNEL, "x")).await.unwrap();
    let Some(Metrics::Rw(second)) = node.status().await[0].metrics else { panic!("not writable") };
    assert!(second.mvcc_time_tick > first.mvcc_time_tick && second.mvcc_time_tick >= sent.timetick);
    node.remove(&rw(1)).await.unwrap();
    assert_eq!(node.status().await.len(), 1);
}

#[tokio::test]
async fn access_mode_changes_with_the_term() {
    let node = World::new().serving().await;
    node.producer(&rw(1)).await.append(insert(VCHANNEL, "x")).await.unwrap();
    node.assign(&ro(2)).await.unwrap();
    let mut consume = node.consumer(&ro(2), DeliverPolicy::All, &[]).await;
    assert_eq!(consume.payloads(1).await, ["x"]);
    node.assign(&rw(3)).await.unwrap();
    node.producer(&rw(3)).await.append(insert(VCHANNEL, "y")).await.unwrap();
}

#[tokio::test]
async fn calls_without_a_readable_pchannel_are_invalid() {
    let node = World::new().node(1).await;
    for pchannel in [None, Some(Default::default())] {
        let request = node.request(StreamingNodeManagerAssignRequest { pchannel });
        assert_eq!(code(&node.manager().assign(request).await.unwrap_err()), StreamingCode::InvaildArgument);
    }
}

#[tokio::test]
async fn drained_node_opens_nothing_and_has_closed_everything() {
    let world = World::new();
    let node = world.serving().await;
    let states = async || {
        let mut client = StreamingNodeStateServiceClient::new(node.channel.clone());
        let states = client.get_component_states(node.request(GetComponentStatesRequest {})).await.unwrap();
        let info = states.into_inner().state.unwrap();
        assert_eq!((info.node_id, info.role.as_str()), (1, "streamingnode"));
        StateCode::try_from(info.state_code).unwrap()
    };
    assert_eq!(states().await, StateCode::Healthy);
    node.producer(&rw(1)).await.append(insert(VCHANNEL, "x")).await.unwrap();
    node.node.drain().await;
    assert_eq!(states().await, StateCode::Stopping);
    let shutdown = StreamingCode::OnShutdown;
    assert_eq!(node.assign(&rw(2)).await.unwrap_err().code(), shutdown);
    assert_eq!(code(&node.produce(&rw(1)).await.map(drop).unwrap_err()), shutdown);
    assert_eq!(code(&node.consume(&rw(1)).await.map(drop).unwrap_err()), shutdown);
    assert_eq!(node.remove(&rw(1)).await, Ok(()), "remove is still answered");
    assert_eq!(node.try_status().await.unwrap_err().code(), shutdown, "nothing of it ended by itself");

    let next = world.node(2).await;
    next.assign(&rw(2)).await.unwrap();
    let mut consume = next.consumer(&rw(2), DeliverPolicy::All, &[]).await;
    assert_eq!(consume.payloads(1).await, ["x"]);
}
