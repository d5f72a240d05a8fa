//! The calls that a coordinator makes to a node, by an order of terms that a real one would not give.

use streaming_proto::{
    common::StateCode,
    milvus::GetComponentStatesRequest,
    streaming::{
        GetReplicateCheckpointRequest, PChannelInfo, StreamingCode, StreamingNodeManagerCollectStatusRequest,
        StreamingNodeWalMetrics, streaming_node_handler_service_client::StreamingNodeHandlerServiceClient,
        streaming_node_state_service_client::StreamingNodeStateServiceClient, streaming_node_wal_metrics::Metrics,
    },
};

use super::{
    raw::Refusal,
    server::{Node, READ_ONLY, READ_WRITE, Server, append, insert, pchannel},
};

const NAME: &str = "wire-manager_0";

#[derive(Debug, Clone, Copy)]
enum Order {
    Assign(i64, i32),
    Remove(i64),
}

impl Order {
    async fn give(self, node: &Node) -> Result<(), Refusal> {
        match self {
            Self::Assign(term, mode) => node.assign(Some(pchannel(NAME, term, mode))).await,
            Self::Remove(term) => node.remove(Some(pchannel(NAME, term, READ_WRITE))).await,
        }
    }
}

/// What the node says of our channel.
async fn status(node: &Node) -> Option<StreamingNodeWalMetrics> {
    let request = node.request(StreamingNodeManagerCollectStatusRequest {});
    let status = node.manager().collect_status(request).await.expect("a status").into_inner();
    let wals = status.metrics.expect("metrics").wals;
    wals.into_iter().find(|wal| wal.info.as_ref().is_some_and(|info| info.name == NAME))
}

#[tokio::test(flavor = "multi_thread")]
async fn terms_only_grow_and_within_one_a_channel_is_opened_once() -> anyhow::Result<()> {
    use Order::{Assign, Remove};
    let Server { node, role: _role, .. } = &Server::start().await?;
    let open = "with expired term 1, cannot change expected state for open";
    let remove = "with expired term 1, cannot change expected state for remove";
    let cases: [(&str, Order, Option<&str>, Option<i64>); 14] = [
        ("nothing was ever open", Remove(1), None, None),
        ("its term is over all the same", Assign(1, READ_WRITE), Some(open), None),
        ("a first open", Assign(2, READ_WRITE), None, Some(2)),
        ("the same again joins the first", Assign(2, READ_WRITE), None, Some(2)),
        ("the same term in another mode", Assign(2, READ_ONLY), Some("with expired term 2"), Some(2)),
        ("an earlier term", Assign(1, READ_WRITE), Some(open), Some(2)),
        ("a remove of an earlier term", Remove(1), Some(remove), Some(2)),
        ("a later term closes the earlier one", Assign(4, READ_WRITE), None, Some(4)),
        ("a remove", Remove(4), None, None),
        ("and again", Remove(4), None, None),
        ("a term is not opened twice", Assign(4, READ_WRITE), Some("with expired term 4"), None),
        ("for reading only", Assign(5, READ_ONLY), None, Some(5)),
        ("a remove of a later term", Remove(7), None, None),
        ("counts for all before", Assign(6, READ_WRITE), Some("with expired term 6"), None),
    ];
    for (what, order, refused, left) in cases {
        match (order.give(node).await, refused) {
            (Ok(()), None) => {}
            (Err(refusal), Some(cause)) => refusal.expect(what, StreamingCode::IgnoredOperation, cause),
            (outcome, _) => panic!("{what}: {outcome:?}"),
        }
        let wal = status(node).await;
        assert_eq!(wal.and_then(|wal| wal.info).map(|info| info.term), left, "{what}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_without_a_channel_are_invalid() -> anyhow::Result<()> {
    let Server { node, role: _role, .. } = &Server::start().await?;
    let cases: [(Option<PChannelInfo>, &str); 5] = [
        (None, "missing"),
        (Some(pchannel("", 1, READ_WRITE)), "no name"),
        (Some(pchannel(NAME, 0, READ_WRITE)), "terms begin at 1"),
        (Some(pchannel(NAME, -1, READ_WRITE)), "terms begin at 1"),
        (Some(pchannel(NAME, 1, 2)), "access mode"),
    ];
    for (info, cause) in cases {
        let assigned = node.assign(info.clone()).await.expect_err("refused");
        let removed = node.remove(info.clone()).await.expect_err("refused");
        let request = node.request(GetReplicateCheckpointRequest { pchannel: info.clone() });
        let mut handler = StreamingNodeHandlerServiceClient::new(node.channel.clone());
        let asked = Refusal::of(&handler.get_replicate_checkpoint(request).await.expect_err("refused"));
        for refusal in [assigned, removed, asked] {
            refusal.expect(&format!("{info:?}"), StreamingCode::InvaildArgument, cause);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_tells_how_far_each_open_channel_is() -> anyhow::Result<()> {
    let Server { node, role: _role, .. } = &Server::start().await?;
    node.open(NAME, 1).await;
    let mut producer = node.producer(NAME, 1).await;
    let placed = append(&mut producer, insert(NAME, "x")).await.expect("appended");
    let Some(Metrics::Rw(written)) = status(node).await.and_then(|wal| wal.metrics) else { panic!("not writable") };
    assert!(written.mvcc_time_tick >= placed.timetick, "{written:?}, {placed:?}");
    node.assign(Some(pchannel(NAME, 2, READ_ONLY))).await.expect("assigned");
    let read_only = status(node).await.and_then(|wal| wal.metrics);
    assert!(matches!(read_only, Some(Metrics::Ro(_))), "{read_only:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_healthy_and_replicates_from_nowhere() -> anyhow::Result<()> {
    let Server { node, role: _role, .. } = &Server::start().await?;
    let mut state = StreamingNodeStateServiceClient::new(node.channel.clone());
    let states = state.get_component_states(node.request(GetComponentStatesRequest {})).await?.into_inner();
    let info = states.state.expect("a state");
    assert_eq!((info.node_id, info.role.as_str()), (node.id, "streamingnode"));
    assert_eq!(info.state_code(), StateCode::Healthy);
    assert_eq!(states.status.expect("a status").code, 0);

    node.open(NAME, 3).await;
    let mut handler = StreamingNodeHandlerServiceClient::new(node.channel.clone());
    for (info, code) in [
        (pchannel("nowhere", 3, READ_WRITE), StreamingCode::ChannelNotExist),
        (pchannel(NAME, 2, READ_WRITE), StreamingCode::UnmatchedChannelTerm),
        (pchannel(NAME, 3, READ_WRITE), StreamingCode::ReplicateViolation),
    ] {
        let request = node.request(GetReplicateCheckpointRequest { pchannel: Some(info) });
        let status = handler.get_replicate_checkpoint(request).await.expect_err("refused");
        Refusal::of(&status).expect("checkpoint", code, "");
    }
    Ok(())
}
