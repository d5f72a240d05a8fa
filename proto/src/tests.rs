//! Bytes written by hand, compared with what the generated code writes and reads.

use std::collections::BTreeMap;

use prost::Message;

use crate::{FILE_DESCRIPTOR_SET, Properties, common, messages, milvus, rootcoord, streaming::*};

/// `hex` may have spaces, and names of the parts below in braces.
#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "forty calls read better without a borrow")]
fn wire<M: Message + Default + PartialEq>(message: M, hex: &str) {
    let hex = [
        ("{pchannel}", PCHANNEL),
        ("{id}", ID),
        ("{message}", MESSAGE),
        ("{immutable}", IMMUTABLE),
        ("{error}", ERROR),
    ]
    .into_iter()
    .fold(hex.to_owned(), |hex, (name, part)| hex.replace(name, part))
    .replace("{id}", ID);
    let bytes: Vec<u8> = hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    let read = M::decode(bytes.as_slice());
    assert_eq!(hex_of(&message.encode_to_vec()), hex_of(&bytes));
    assert!(read.is_ok_and(|read| read == message), "reads as something else: {hex}");
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x} ")).collect()
}

const PCHANNEL: &str = "0a 01 70 10 01 18 01";
const ID: &str = "0a 01 69 10 04";
const MESSAGE: &str = "0a 01 78 12 06 0a 01 61 12 01 62";
const IMMUTABLE: &str = "0a 05 {id} 12 01 78 1a 06 0a 01 61 12 01 62";
const ERROR: &str = "08 02 12 01 63";

fn pchannel() -> Option<PChannelInfo> {
    Some(PChannelInfo { name: "p".to_owned(), term: 1, access_mode: PChannelAccessMode::PchannelAccessReadonly.into() })
}

fn id() -> Option<common::MessageId> {
    Some(common::MessageId { id: "i".to_owned(), wal_name: common::WalName::WoodPecker.into() })
}

fn properties() -> Properties {
    [("a", "b")].into_iter().collect()
}

fn message() -> Option<messages::Message> {
    Some(messages::Message { payload: "x".into(), properties: properties() })
}

fn immutable() -> Option<common::ImmutableMessage> {
    Some(common::ImmutableMessage { id: id(), payload: "x".into(), properties: properties(), ..Default::default() })
}

fn error() -> StreamingError {
    StreamingError { code: StreamingCode::ChannelFenced.into(), cause: "c".to_owned() }
}

#[test]
fn produce_stream() {
    use produce_request::Request;
    let produce = Request::Produce(ProduceMessageRequest { request_id: 7, message: message() });
    wire(ProduceRequest { request: Some(produce) }, "0a 0f 08 07 12 0b {message}");
    wire(ProduceRequest { request: Some(Request::Close(CloseProducerRequest {})) }, "12 00");
    wire(CreateProducerRequest { pchannel: pchannel() }, "0a 07 {pchannel}");

    use produce_response::Response;
    let response = |response| ProduceResponse { response: Some(response) };
    let create = CreateProducerResponse { wal_name: "w".to_owned(), producer_server_id: 3 };
    wire(response(Response::Create(create)), "0a 05 0a 01 77 10 03");
    let produced = |response| ProduceResponse {
        response: Some(Response::Produce(ProduceMessageResponse { request_id: 7, response: Some(response) })),
    };
    let result = ProduceMessageResponseResult {
        id: id(),
        timetick: 9,
        txn_context: Some(messages::TxnContext { txn_id: 1, keepalive_milliseconds: 2 }),
        extra: Some(prost_types::Any { type_url: "u".to_owned(), value: vec![0xff] }),
        last_confirmed_id: id(),
    };
    wire(
        produced(produce_message_response::Response::Result(result)),
        "12 22 08 07 12 1e 0a 05 {id} 10 09 1a 04 08 01 10 02 22 06 0a 01 75 12 01 ff 2a 05 {id}",
    );
    wire(produced(produce_message_response::Response::Error(error())), "12 09 08 07 1a 05 {error}");
    wire(response(Response::Close(CloseProducerResponse {})), "1a 00");
    let slowdown = ProduceRateLimitResponse { state: WalRateLimitState::Slowdown.into(), rate: 1 << 20 };
    wire(response(Response::RateLimit(slowdown)), "22 06 08 02 10 80 80 40");
}

#[test]
fn consume_requests() {
    use consume_request::Request;
    let request = |request| ConsumeRequest { request: Some(request) };
    let filter = |filter| DeliverFilter { filter: Some(filter) };
    let create = CreateVChannelConsumerRequest {
        vchannel: "v".to_owned(),
        deliver_policy: Some(DeliverPolicy { policy: id().map(deliver_policy::Policy::StartFrom) }),
        deliver_filters: vec![
            filter(deliver_filter::Filter::TimeTickGt(DeliverFilterTimeTickGt { time_tick: 5 })),
            filter(deliver_filter::Filter::TimeTickGte(DeliverFilterTimeTickGte { time_tick: 6 })),
            filter(deliver_filter::Filter::MessageType(DeliverFilterMessageType { message_types: vec![2, 3] })),
        ],
        ignore_pause_consumption: true,
    };
    wire(
        request(Request::CreateVchannelConsumer(create)),
        "0a 22 0a 01 76 12 07 1a 05 {id} 1a 04 0a 02 08 05 1a 04 12 02 08 06 1a 06 1a 04 0a 02 02 03 20 01",
    );
    let named = CreateVChannelConsumerRequest { vchannel: "v".to_owned(), ..CreateVChannelConsumerRequest::default() };
    let several = CreateVChannelConsumersRequest { create_vchannels: vec![named] };
    wire(request(Request::CreateVchannelConsumers(several)), "12 05 0a 03 0a 01 76");
    wire(request(Request::CloseVchannel(CloseVChannelConsumerRequest { consumer_id: 1 })), "1a 02 08 01");
    wire(request(Request::Close(CloseConsumerRequest {})), "22 00");
    wire(CreateConsumerRequest { pchannel: pchannel() }, "0a 07 {pchannel}");
}

#[test]
fn deliver_policies() {
    use deliver_policy::Policy;
    let policy = |policy| DeliverPolicy { policy: Some(policy) };
    wire(policy(Policy::All(())), "0a 00");
    wire(policy(Policy::Latest(())), "12 00");
    wire(DeliverPolicy { policy: id().map(Policy::StartFrom) }, "1a 05 {id}");
    wire(DeliverPolicy { policy: id().map(Policy::StartAfter) }, "22 05 {id}");
}

#[test]
fn consume_responses() {
    use consume_response::Response;
    let response = |response| ConsumeResponse { response: Some(response) };
    let create = CreateConsumerResponse { wal_name: "w".to_owned(), consumer_server_id: 3 };
    wire(response(Response::Create(create)), "0a 05 0a 01 77 10 03");
    let consume = ConsumeMessageReponse { consumer_id: 1, message: immutable() };
    wire(response(Response::Consume(consume)), "12 16 08 01 12 12 {immutable}");
    let created = |response| CreateVChannelConsumerResponse { response: Some(response) };
    let consumer = created(create_v_channel_consumer_response::Response::ConsumerId(1));
    wire(response(Response::CreateVchannel(consumer.clone())), "1a 02 08 01");
    let failed = created(create_v_channel_consumer_response::Response::Error(error()));
    wire(response(Response::CreateVchannel(failed)), "1a 07 12 05 {error}");
    let several = CreateVChannelConsumersResponse { create_vchannels: vec![consumer] };
    wire(response(Response::CreateVchannels(several)), "22 04 0a 02 08 01");
    wire(response(Response::CloseVchannel(CloseVChannelConsumerResponse { consumer_id: 1 })), "2a 02 08 01");
    wire(response(Response::Close(CloseConsumerResponse {})), "32 00");
}

#[test]
fn assignment_stream() {
    use assignment_discover_request::Command;
    let report = ReportAssignmentErrorRequest { pchannel: pchannel(), err: Some(error()) };
    let request = |command| AssignmentDiscoverRequest { command: Some(command) };
    wire(request(Command::ReportError(report)), "0a 10 0a 07 {pchannel} 12 05 {error}");
    wire(request(Command::Close(CloseAssignmentDiscoverRequest {})), "12 00");

    use assignment_discover_response::Response;
    let response = |response| AssignmentDiscoverResponse { response: Some(response) };
    let node = StreamingNodeInfo { server_id: 3, address: "a".to_owned() };
    let cluster = common::MilvusCluster {
        cluster_id: "c".to_owned(),
        connection_param: Some(common::ConnectionParam { uri: "u".to_owned(), token: "t".to_owned() }),
        pchannels: vec!["p".to_owned()],
    };
    let edge = common::CrossClusterTopology { source_cluster_id: "s".to_owned(), target_cluster_id: "t".to_owned() };
    let full = FullStreamingNodeAssignmentWithVersion {
        version: Some(VersionPair { global: 1, local: 2 }),
        assignments: vec![StreamingNodeAssignment { node: Some(node), channels: pchannel().into_iter().collect() }],
        cchannel: Some(CChannelAssignment { meta: Some(CChannelMeta { pchannel: "p".to_owned() }) }),
        replicate_configuration: Some(common::ReplicateConfiguration {
            clusters: vec![cluster],
            cross_cluster_topology: vec![edge],
        }),
        streaming_version: Some(StreamingVersion { version: 2 }),
    };
    wire(
        response(Response::FullAssignment(full)),
        "0a 3d 0a 04 08 01 10 02 12 10 0a 05 08 03 12 01 61 12 07 {pchannel} 1a 05 0a 03 0a 01 70 \
         22 18 0a 0e 0a 01 63 12 06 0a 01 75 12 01 74 1a 01 70 12 06 0a 01 73 12 01 74 2a 02 08 02",
    );
    wire(response(Response::Close(CloseAssignmentDiscoverResponse {})), "12 00");
}

#[test]
fn manager_calls() {
    wire(StreamingNodeManagerAssignRequest { pchannel: pchannel() }, "0a 07 {pchannel}");
    wire(StreamingNodeManagerRemoveRequest { pchannel: pchannel() }, "0a 07 {pchannel}");
    use streaming_node_wal_metrics::Metrics;
    let wal = |metrics| StreamingNodeWalMetrics { info: pchannel(), metrics: Some(metrics) };
    let rw = StreamingNodeRwwalMetrics { mvcc_time_tick: 8, recovery_time_tick: 9 };
    let wals = vec![wal(Metrics::Rw(rw)), wal(Metrics::Ro(StreamingNodeRowalMetrics {}))];
    wire(
        StreamingNodeManagerCollectStatusResponse { metrics: Some(StreamingNodeMetrics { wals }) },
        "0a 1e 0a 0f 0a 07 {pchannel} 12 04 08 08 10 09 0a 0b 0a 07 {pchannel} 1a 00",
    );
}

#[test]
fn broadcast_calls() {
    wire(BroadcastRequest { message: message() }, "0a 0b {message}");
    let result = ProduceMessageResponseResult { timetick: 9, ..ProduceMessageResponseResult::default() };
    wire(
        BroadcastResponse { results: BTreeMap::from([("v".to_owned(), result)]), broadcast_id: 5 },
        "0a 07 0a 01 76 12 02 10 09 10 05",
    );
    wire(
        BroadcastAckRequest { broadcast_id: 5, vchannel: "v".to_owned(), message: immutable() },
        "08 05 12 01 76 1a 12 {immutable}",
    );
}

#[test]
fn policy_and_checkpoint_calls() {
    wire(
        UpdateWalBalancePolicyRequest {
            config: Some(WalBalancePolicyConfig { allow_rebalance: true }),
            nodes: Some(WalBalancePolicyNodes { freeze_node_ids: vec![1], defreeze_node_ids: vec![2] }),
            update_mask: Some(prost_types::FieldMask { paths: vec!["m".to_owned()] }),
        },
        "0a 02 08 01 12 06 0a 01 01 12 01 02 1a 03 0a 01 6d",
    );
    wire(
        UpdateWalBalancePolicyResponse {
            config: Some(WalBalancePolicyConfig { allow_rebalance: true }),
            freeze_node_ids: vec![1],
        },
        "0a 02 08 01 12 01 01",
    );
    let checkpoint = common::ReplicateCheckpoint {
        cluster_id: "c".to_owned(),
        pchannel: "p".to_owned(),
        message_id: id(),
        time_tick: 9,
    };
    wire(GetReplicateCheckpointResponse { checkpoint: Some(checkpoint) }, "0a 0f 0a 01 63 12 01 70 1a 05 {id} 20 09");
}

#[test]
fn values_of_properties() {
    let key = messages::ResourceKey { domain: 3, key: "k".to_owned(), shared: true };
    wire(
        messages::BroadcastHeader {
            broadcast_id: 5,
            vchannels: vec!["v".to_owned()],
            resource_keys: vec![key],
            ack_sync_up: true,
        },
        "08 05 12 01 76 1a 07 08 03 12 01 6b 18 01 20 01",
    );
    wire(
        messages::ReplicateHeader {
            cluster_id: "c".to_owned(),
            message_id: id(),
            last_confirmed_message_id: id(),
            time_tick: 9,
            vchannel: "v".to_owned(),
        },
        "0a 01 63 12 05 {id} 1a 05 {id} 20 09 2a 01 76",
    );
    wire(
        messages::CipherHeader { ez_id: 1, collection_id: 2, safe_key: "k".into(), payload_bytes: 3 },
        "08 01 10 02 1a 01 6b 20 03",
    );
}

#[test]
fn component_states() {
    let pair = common::KeyValuePair { key: "k".to_owned(), value: "v".to_owned() };
    let healthy = milvus::ComponentInfo {
        node_id: 1,
        role: "r".to_owned(),
        state_code: common::StateCode::Healthy.into(),
        extra_info: vec![pair],
    };
    let status = common::Status {
        reason: "r".to_owned(),
        code: 5,
        retriable: true,
        detail: "d".to_owned(),
        ..common::Status::default()
    };
    wire(
        milvus::ComponentStates {
            state: Some(healthy),
            subcomponent_states: vec![milvus::ComponentInfo::default()],
            status: Some(status),
        },
        "0a 0f 08 01 12 01 72 18 01 22 06 0a 01 6b 12 01 76 12 00 1a 0a 12 01 72 18 05 20 01 2a 01 64",
    );
}

#[test]
fn timestamps_and_ids() {
    let base = common::MsgBase {
        msg_type: common::MsgType::RequestTso.into(),
        msg_id: 1,
        timestamp: 2,
        source_id: 3,
        target_id: 4,
        ..common::MsgBase::default()
    };
    wire(
        rootcoord::AllocTimestampRequest { base: Some(base), count: 5, block_timestamp: 6 },
        "0a 0b 08 b4 09 10 01 18 02 20 03 28 04 18 05 20 06",
    );
    wire(rootcoord::AllocTimestampResponse { status: None, timestamp: 1, count: 2 }, "10 01 18 02");
    wire(rootcoord::AllocIdRequest { base: None, count: 5 }, "10 05");
    wire(rootcoord::AllocIdResponse { status: None, id: 1, count: 2 }, "10 01 18 02");
}

/// Every method as `/package.Service/Method`, with `*` before the name of one whose both sides are streams.
fn methods() -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let mut methods = Vec::new();
    // What only we call is free in its form.
    for file in set.file.iter().filter(|file| file.package().starts_with("milvus.")) {
        for service in &file.service {
            for method in &service.method {
                assert_eq!(method.client_streaming(), method.server_streaming());
                let stream = if method.client_streaming() { "*" } else { "" };
                methods.push(format!("/{}.{}/{stream}{}", file.package(), service.name(), method.name()));
            }
        }
    }
    methods.sort();
    methods
}

#[test]
fn services_have_the_paths_that_peers_call() {
    let expected = [
        "/milvus.proto.data.DataCoord/AllocSegment",
        "/milvus.proto.data.DataCoord/DropVirtualChannel",
        "/milvus.proto.data.DataCoord/GetChannelRecoveryInfo",
        "/milvus.proto.data.DataCoord/SaveBinlogPaths",
        "/milvus.proto.data.DataCoord/UpdateChannelCheckpoint",
        "/milvus.proto.rootcoord.RootCoord/AllocID",
        "/milvus.proto.rootcoord.RootCoord/AllocTimestamp",
        "/milvus.proto.rootcoord.RootCoord/DescribeCollectionInternal",
        "/milvus.proto.rootcoord.RootCoord/GetComponentStates",
        "/milvus.proto.rootcoord.RootCoord/GetPChannelInfo",
        "/milvus.proto.streaming.StreamingCoordAssignmentService/*AssignmentDiscover",
        "/milvus.proto.streaming.StreamingCoordAssignmentService/UpdateReplicateConfiguration",
        "/milvus.proto.streaming.StreamingCoordAssignmentService/UpdateWALBalancePolicy",
        "/milvus.proto.streaming.StreamingCoordBroadcastService/Ack",
        "/milvus.proto.streaming.StreamingCoordBroadcastService/Broadcast",
        "/milvus.proto.streaming.StreamingNodeHandlerService/*Consume",
        "/milvus.proto.streaming.StreamingNodeHandlerService/*Produce",
        "/milvus.proto.streaming.StreamingNodeHandlerService/GetReplicateCheckpoint",
        "/milvus.proto.streaming.StreamingNodeManagerService/Assign",
        "/milvus.proto.streaming.StreamingNodeManagerService/CollectStatus",
        "/milvus.proto.streaming.StreamingNodeManagerService/Remove",
        "/milvus.proto.streaming.StreamingNodeStateService/GetComponentStates",
    ];
    assert_eq!(methods(), expected);
}

#[test]
fn codes_end_at_13_and_999() {
    for code in 0..=13 {
        assert_eq!(StreamingCode::try_from(code).map(i32::from), Ok(code));
    }
    assert_eq!(StreamingCode::try_from(999), Ok(StreamingCode::Unknown));
    for code in [14, 15, 16] {
        assert!(StreamingCode::try_from(code).is_err(), "{code} means different things to different peers");
    }
}

#[test]
fn submessages_that_are_not_looked_into_stay_whole() {
    let read = crate::msg::InsertRequest::decode([0x6a, 0x02, 0x08, 0x05].as_slice()).unwrap();
    assert_eq!(read.fields_data, [&[0x08, 0x05][..]]);
    assert_eq!(read.encode_to_vec(), [0x6a, 0x02, 0x08, 0x05]);
}
