//! Input that no well-behaved client sends: each with its exact answer, and the stream lives on.

use streaming_proto::{
    messages::{Message, ReplicateHeader},
    streaming::{GetReplicateCheckpointRequest, ProduceMessageRequest, StreamingCode, produce_request},
};
use streaming_types::{DEFAULT_MAX_MESSAGE_BYTES, PChannel, TxnContext, metadata::set_destination};
use tonic::Request;

use super::harness::{PCHANNEL, TestNode, VCHANNEL, World, code, error, insert, ro, rw};
use super::parts::{begin, commit, rollback};

fn with(key: &str, value: &str) -> Message {
    let mut message = insert(VCHANNEL, "payload");
    message.properties.set(key, value);
    message
}

fn without(key: &str) -> Message {
    let mut message = insert(VCHANNEL, "payload");
    message.properties.remove(key);
    message
}

fn replicated() -> Message {
    let mut message: streaming_types::Message = insert(VCHANNEL, "payload").into();
    message.properties.set_replicate(&ReplicateHeader::default());
    message.into()
}

fn in_txn(message: Message) -> Message {
    let mut message: streaming_types::Message = message.into();
    message.properties.set_txn(TxnContext::new(7, 1000));
    message.into()
}

#[tokio::test]
async fn refused_messages_have_their_codes_and_leave_the_stream_usable() {
    let node = World::new().serving().await;
    let mut produce = node.producer(&rw(1)).await;
    let unknown = TxnContext::new(7, 1000);
    let unrecoverable = StreamingCode::Unrecoverable;
    let mut broadcast = without("_vc");
    broadcast.properties.set("_bh", "CAU=");
    let cases = [
        ("no version", without("_v"), unrecoverable),
        ("unknown version", with("_v", "9"), unrecoverable),
        ("another version", with("_v", "2"), unrecoverable),
        ("no type", without("_t"), unrecoverable),
        ("type 0", with("_t", "0"), unrecoverable),
        ("unknown type", with("_t", "4711"), unrecoverable),
        ("type that is no number", with("_t", "x"), unrecoverable),
        ("type of transactions in memory", with("_t", "999"), unrecoverable),
        ("time tick", with("_t", "1"), unrecoverable),
        ("flush", with("_t", "4"), unrecoverable),
        ("create segment", with("_t", "10"), unrecoverable),
        ("no header", without("_h"), unrecoverable),
        ("broken base64", with("_h", "?"), unrecoverable),
        ("header of something else", with("_h", "/////w=="), unrecoverable),
        ("no vchannel", without("_vc"), unrecoverable),
        ("vchannel of another pchannel", insert("by-dev-rootcoord-dml_1_1v0", "x"), unrecoverable),
        ("broadcast without vchannel", broadcast, unrecoverable),
        ("broken broadcast header", with("_bh", "?"), unrecoverable),
        ("broken barrier", with("_btt", "-"), unrecoverable),
        ("barrier in the far future", with("_btt", "3w5e11264sgsf"), unrecoverable),
        ("tick of a client", with("_tt", "1"), unrecoverable),
        ("term of a client", with("_wt", "1"), unrecoverable),
        ("last confirmed id of a client", with("_lc", "CAMQEQ=="), unrecoverable),
        ("last confirmed mark of a client", with("_lcs", ""), unrecoverable),
        ("memory mark of a client", with("_np", ""), unrecoverable),
        ("empty payload", insert(VCHANNEL, ""), unrecoverable),
        ("too large", insert(VCHANNEL, &"x".repeat(DEFAULT_MAX_MESSAGE_BYTES / 2)), unrecoverable),
        ("keepalive below 1 ms", begin(VCHANNEL, -1).into(), unrecoverable),
        ("keepalive of years", begin(VCHANNEL, i64::MAX).into(), unrecoverable),
        ("begin in a transaction", in_txn(begin(VCHANNEL, 0).into()), unrecoverable),
        ("import in a transaction", in_txn(with("_t", "11")), unrecoverable),
        ("body without begin", in_txn(insert(VCHANNEL, "x")), StreamingCode::TransactionExpired),
        ("commit of an unknown transaction", commit(VCHANNEL, unknown).into(), StreamingCode::TransactionExpired),
        ("rollback of an unknown transaction", rollback(VCHANNEL, unknown).into(), StreamingCode::TransactionExpired),
        (
            "commit without its transaction",
            {
                let mut message = commit(VCHANNEL, unknown);
                message.properties.remove("_tx");
                message.into()
            },
            unrecoverable,
        ),
        ("broken transaction", with("_tx", "?"), unrecoverable),
        ("empty idempotency key", with("_ik", ""), unrecoverable),
        ("endless idempotency key", with("_ik", &"k".repeat(257)), unrecoverable),
        ("piece of a message", with("_ci", "0"), unrecoverable),
        ("replicated", replicated(), StreamingCode::ReplicateViolation),
    ];
    for (what, message, expected) in cases {
        let error = produce.append(message).await.expect_err(what);
        assert_eq!(error.code(), expected, "{what}: {}", error.cause);
        assert!(!error.cause.is_empty(), "{what}");
    }
    let nothing = ProduceMessageRequest { request_id: 4711, message: None };
    produce.send_raw(Some(produce_request::Request::Produce(nothing))).await;
    let (request_id, result) = produce.answer().await;
    assert_eq!((request_id, result.unwrap_err().code()), (4711, unrecoverable));

    produce.append(with("_unknown", "passes")).await.unwrap();
}

async fn refused(node: &TestNode, header: Option<&str>) -> StreamingCode {
    let produce = |key: &'static str| {
        let mut request = Request::new(tokio_stream::empty());
        set_destination(request.metadata_mut(), "by-dev", Some(node.server_id));
        if let Some(header) = header {
            request.metadata_mut().insert(key, header.parse().unwrap());
        }
        request
    };
    let produced = node.handler().produce(produce("create-producer")).await.map(drop).unwrap_err();
    let mut request = Request::new(tokio_stream::empty());
    *request.metadata_mut() = produce("create-consumer").metadata().clone();
    let consumed = node.handler().consume(request).await.map(drop).unwrap_err();
    assert_eq!(code(&produced), code(&consumed));
    code(&produced)
}

#[tokio::test]
async fn streams_without_a_readable_pchannel_are_invalid() {
    let node = World::new().serving().await;
    for header in [None, Some("?"), Some("CgE="), Some(""), Some("CgA="), Some("CgIQAQ=="), Some("CgMKAXg=")] {
        assert_eq!(refused(&node, header).await, StreamingCode::InvaildArgument, "{header:?}");
    }
}

#[tokio::test]
async fn streams_for_what_is_not_served_are_told_so() {
    let node = World::new().serving().await;
    let other = PChannel::read_write("by-dev-rootcoord-dml_1", 1).unwrap();
    for (pchannel, expected) in [
        (other, StreamingCode::ChannelNotExist),
        (rw(2), StreamingCode::UnmatchedChannelTerm),
        (PChannel::read_write(PCHANNEL, i64::MAX).unwrap(), StreamingCode::UnmatchedChannelTerm),
    ] {
        assert_eq!(code(&node.produce(&pchannel).await.map(drop).unwrap_err()), expected);
        assert_eq!(code(&node.consume(&pchannel).await.map(drop).unwrap_err()), expected);
    }
    assert_eq!(
        error(&node.produce(&rw(2)).await.map(drop).unwrap_err()).cause(),
        format!("channel {PCHANNEL} at term 2 is expected, but current term is 1")
    );
    node.assign(&ro(3)).await.unwrap();
    assert_eq!(code(&node.produce(&ro(3)).await.map(drop).unwrap_err()), StreamingCode::InvaildArgument);
    assert_eq!(code(&node.produce(&rw(1)).await.map(drop).unwrap_err()), StreamingCode::UnmatchedChannelTerm);
}

#[tokio::test]
async fn calls_for_another_cluster_or_server_are_ignored() {
    let node = World::new().serving().await;
    let call = async |cluster: &str, server_id: Option<&str>| {
        let mut request = Request::new(GetReplicateCheckpointRequest { pchannel: Some(rw(1).to_proto()) });
        set_destination(request.metadata_mut(), cluster, None);
        if let Some(server_id) = server_id {
            request.metadata_mut().insert("serverid", server_id.parse().unwrap());
        }
        code(&node.handler().get_replicate_checkpoint(request).await.unwrap_err())
    };
    assert_eq!(call("other", Some("1")).await, StreamingCode::IgnoredOperation);
    assert_eq!(call("by-dev", Some("2")).await, StreamingCode::IgnoredOperation);
    for server_id in [None, Some("1"), Some("one"), Some("")] {
        assert_eq!(call("by-dev", server_id).await, StreamingCode::ReplicateViolation, "{server_id:?}");
    }
    assert_eq!(call("", None).await, StreamingCode::ReplicateViolation);
}

#[tokio::test]
async fn replicate_checkpoint_of_what_is_not_served_does_not_exist() {
    let node = World::new().serving().await;
    let ask = async |pchannel| {
        let request = node.request(GetReplicateCheckpointRequest { pchannel });
        code(&node.handler().get_replicate_checkpoint(request).await.unwrap_err())
    };
    let other = PChannel::read_write("by-dev-rootcoord-dml_1", 1).unwrap();
    assert_eq!(ask(Some(other.to_proto())).await, StreamingCode::ChannelNotExist);
    assert_eq!(ask(Some(rw(9).to_proto())).await, StreamingCode::UnmatchedChannelTerm);
    assert_eq!(ask(None).await, StreamingCode::InvaildArgument);
}
