//! Consume: handshakes, where to start, what is delivered, closes.

use streaming_proto::{
    common::{ImmutableMessage, MessageId},
    streaming::{
        CloseConsumerRequest, CloseVChannelConsumerRequest, ConsumeRequest, ConsumeResponse,
        CreateVChannelConsumerRequest, CreateVChannelConsumersRequest, DeliverFilter, DeliverFilterMessageType,
        DeliverFilterTimeTickGt, DeliverFilterTimeTickGte, DeliverPolicy, StreamingCode, consume_request::Request,
        consume_response::Response, create_v_channel_consumer_response, deliver_filter::Filter, deliver_policy::Policy,
    },
};

use super::{
    raw::{Call, Refusal, Refused},
    server::{CONSUME, Node, READ_ONLY, READ_WRITE, Server, append, create_header, insert, pchannel},
};

const NAME: &str = "wire-consume_0";

/// The request for a consumer.
fn create(vchannel: &str, policy: Option<Policy>, filters: Vec<Option<Filter>>) -> CreateVChannelConsumerRequest {
    CreateVChannelConsumerRequest {
        vchannel: vchannel.to_owned(),
        deliver_policy: policy.map(|policy| DeliverPolicy { policy: Some(policy) }),
        deliver_filters: filters.into_iter().map(|filter| DeliverFilter { filter }).collect(),
        ..CreateVChannelConsumerRequest::default()
    }
}

fn request(request: Request) -> ConsumeRequest {
    ConsumeRequest { request: Some(request) }
}

/// A stream whose consumer exists.
async fn consumer(node: &Node, term: i64, asked: CreateVChannelConsumerRequest) -> Call<ConsumeResponse> {
    let mut call = node.consumer(NAME, term).await;
    call.send(&request(Request::CreateVchannelConsumer(asked))).await;
    let second = call.next().await.expect("a consumer").expect("no end").response;
    let Some(Response::CreateVchannel(created)) = second else { panic!("{second:?}") };
    assert_eq!(created.response, Some(create_v_channel_consumer_response::Response::ConsumerId(1)));
    call
}

/// The next message or tick, with all that clients resume from.
async fn delivered(call: &mut Call<ConsumeResponse>) -> ImmutableMessage {
    let response = call.next().await.expect("a message").expect("no end").response;
    let Some(Response::Consume(consumed)) = response else { panic!("{response:?}") };
    assert_eq!(consumed.consumer_id, 1);
    let message = consumed.message.expect("a message");
    assert!(message.properties.contains("_tt"), "{message:?}");
    assert!(message.properties.contains("_lc") != message.properties.contains("_lcs"), "{message:?}");
    assert_eq!(message.id.as_ref().map(|id| id.wal_name), Some(4), "{message:?}");
    message
}

fn is_tick(message: &ImmutableMessage) -> bool {
    message.properties.get("_t") == Some("1")
}

fn tick(message: &ImmutableMessage) -> u64 {
    u64::from_str_radix(message.properties.get("_tt").expect("a tick"), 36).expect("base 36")
}

/// The payloads of the next messages, without the ticks; ticks of messages rise on the way.
async fn payloads(call: &mut Call<ConsumeResponse>, count: usize) -> Vec<String> {
    let (mut found, mut last) = (Vec::new(), 0);
    while found.len() < count {
        let message = delivered(call).await;
        assert!(tick(&message) >= last, "{message:?} after {last}");
        last = tick(&message);
        if !is_tick(&message) {
            found.push(String::from_utf8(message.payload.to_vec()).expect("text"));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn every_handshake_is_created_or_refused_with_its_code_and_text() -> anyhow::Result<()> {
    use StreamingCode::{ChannelNotExist, InvaildArgument, UnmatchedChannelTerm};
    let Server { node, role: _role, .. } = &Server::start().await?;
    node.assign(Some(pchannel(NAME, 5, READ_ONLY))).await.expect("assigned");
    let required = "create consumer request is required";
    let of = |name, term| create_header(&pchannel(name, term, READ_WRITE));
    let good = of(NAME, 5);
    let cases: [(&str, &[&str], Refused<'_>); 9] = [
        ("no header", &[], Some((InvaildArgument, required))),
        ("no base64", &["?"], Some((InvaildArgument, required))),
        ("no request", &["CgE="], Some((InvaildArgument, required))),
        ("no pchannel", &[""], Some((InvaildArgument, "missing"))),
        ("no term", &[&of(NAME, 0)], Some((InvaildArgument, "terms begin at 1"))),
        ("an unknown channel", &[&of("nowhere", 5)], Some((ChannelNotExist, "nowhere not exist"))),
        (
            "an earlier term",
            &[&of(NAME, 4)],
            Some((UnmatchedChannelTerm, "at term 4 is expected, but current term is 5")),
        ),
        ("a later term", &[&of(NAME, 6)], Some((UnmatchedChannelTerm, "at term 6 is expected, but current term is 5"))),
        ("a good one, of a channel that is read only", &[&good], None),
    ];
    for (what, values, refused) in cases {
        let headers: Vec<_> = values.iter().map(|value| ("create-consumer", *value)).collect();
        let first = match Call::<ConsumeResponse>::open(&node.channel, CONSUME, &headers).await {
            Ok(mut call) => call.next().await,
            Err(refusal) => Err(refusal),
        };
        match (first, refused) {
            (Ok(Some(response)), None) => {
                let Some(Response::Create(create)) = response.response else { panic!("{what}") };
                assert_eq!((create.wal_name.as_str(), create.consumer_server_id), ("woodpecker", node.id), "{what}");
            }
            (Err(refusal), Some((code, cause))) => refusal.expect(what, code, cause),
            (first, _) => panic!("{what}: {first:?}"),
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_request_that_asks_for_nothing_readable_ends_the_stream() -> anyhow::Result<()> {
    use StreamingCode::{InvaildArgument, InvalidRequestSeq, Unknown};
    let Server { node, role: _role, .. } = &Server::start().await?;
    node.open(NAME, 1).await;
    let asked = |policy, filters| request(Request::CreateVchannelConsumer(create("", policy, filters)));
    let from = |id: &str, wal_name| Some(Policy::StartFrom(MessageId { id: id.into(), wal_name }));
    let several = CreateVChannelConsumersRequest { create_vchannels: vec![create("", Some(Policy::All(())), vec![])] };
    let cases = [
        ("several consumers", request(Request::CreateVchannelConsumers(several)), InvalidRequestSeq, "first request"),
        (
            "a close of a consumer",
            request(Request::CloseVchannel(CloseVChannelConsumerRequest { consumer_id: 1 })),
            InvalidRequestSeq,
            "first request",
        ),
        ("a close", request(Request::Close(CloseConsumerRequest {})), InvalidRequestSeq, "first request"),
        ("nothing", ConsumeRequest { request: None }, InvalidRequestSeq, "first request"),
        ("no policy", asked(None, vec![]), InvaildArgument, "deliver policy is not set"),
        ("no filter", asked(Some(Policy::All(())), vec![None]), InvaildArgument, "deliver filter is not set"),
        ("an id of another WAL", asked(from("", 1), vec![]), InvaildArgument, "log 1"),
        ("an id of no WAL", asked(from("CAMQEQ==", 0), vec![]), InvaildArgument, "log 0"),
        ("an id that is no base64", asked(from("?", 4), vec![]), InvaildArgument, "base64"),
        ("an id below zero", asked(from("CP///////////wE=", 4), vec![]), InvaildArgument, "segment"),
    ];
    for (what, first, code, cause) in cases {
        let mut call = node.consumer(NAME, 1).await;
        call.send(&first).await;
        call.next().await.expect_err(what).expect(what, code, cause);
    }
    let mut call = node.consumer(NAME, 1).await;
    call.send_bytes(&[0xff]).await;
    call.next().await.expect_err("no protobuf").expect("no protobuf", Unknown, "cannot be read");
    // Who leaves without having asked is not in the wrong.
    let mut call = node.consumer(NAME, 1).await;
    call.half_close();
    assert_eq!(call.next_bytes().await.expect("a close").as_deref(), Some(&[0x32, 0x00][..]));
    assert_eq!(call.next_bytes().await, Ok(None));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_policy_filter_and_vchannel_delivers_what_it_names() -> anyhow::Result<()> {
    let Server { node, role: _role, .. } = &Server::start().await?;
    node.open(NAME, 1).await;
    let mut producer = node.producer(NAME, 1).await;
    let mut placed = Vec::new();
    for payload in ["a", "b", "c"] {
        placed.push(append(&mut producer, insert(NAME, payload)).await.expect("appended"));
    }
    let mut other = insert(NAME, "d");
    other.properties.set("_vc", format!("{NAME}_2v0"));
    append(&mut producer, other).await.expect("appended");
    let b = placed[1].id.clone().expect("an id");
    let at = placed[1].timetick;
    let all = || Some(Policy::All(()));
    let gt = Filter::TimeTickGt(DeliverFilterTimeTickGt { time_tick: at });
    let gte = Filter::TimeTickGte(DeliverFilterTimeTickGte { time_tick: at });
    let types = |types: &[i32]| Filter::MessageType(DeliverFilterMessageType { message_types: types.to_vec() });
    let cases: [(&str, CreateVChannelConsumerRequest, &[&str]); 9] = [
        ("all", create("", all(), vec![]), &["a", "b", "c", "d"]),
        ("from a message", create("", Some(Policy::StartFrom(b.clone())), vec![]), &["b", "c", "d"]),
        ("after a message", create("", Some(Policy::StartAfter(b.clone())), vec![]), &["c", "d"]),
        ("above a tick", create("", all(), vec![Some(gt.clone())]), &["c", "d"]),
        ("from a tick on", create("", all(), vec![Some(gte)]), &["b", "c", "d"]),
        ("inserts", create("", all(), vec![Some(types(&[2]))]), &["a", "b", "c", "d"]),
        ("one vchannel", create(&format!("{NAME}_2v0"), all(), vec![]), &["d"]),
        (
            "filters are joined by and",
            create(&format!("{NAME}_1v0"), all(), vec![Some(gt), Some(types(&[2, 3]))]),
            &["c"],
        ),
        (
            "its own last-confirmed id",
            create("", Some(Policy::StartFrom(placed[1].last_confirmed_id.clone().expect("one"))), vec![]),
            &["b", "c", "d"],
        ),
    ];
    for (what, asked, expected) in cases {
        let mut call = consumer(node, 1, asked).await;
        assert_eq!(payloads(&mut call, expected.len()).await, expected, "{what}");
    }
    // A filter that lets nothing through but what the system says: ticks come all the same.
    let mut deaf = consumer(node, 1, create("", all(), vec![Some(types(&[3]))])).await;
    let mut latest = consumer(node, 1, create("", Some(Policy::Latest(())), vec![])).await;
    for _ in 0..5 {
        assert!(is_tick(&delivered(&mut deaf).await) && is_tick(&delivered(&mut latest).await));
    }
    append(&mut producer, insert(NAME, "e")).await.expect("appended");
    assert_eq!(payloads(&mut latest, 1).await, ["e"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_its_creation_only_the_end_of_the_requests_counts() -> anyhow::Result<()> {
    let Server { node, role: _role, .. } = &Server::start().await?;
    node.open(NAME, 1).await;
    let mut producer = node.producer(NAME, 1).await;
    let mut call = consumer(node, 1, create("", Some(Policy::All(())), vec![])).await;
    let second = create("elsewhere", Some(Policy::All(())), vec![]);
    let several = CreateVChannelConsumersRequest { create_vchannels: vec![second.clone()] };
    for skipped in [
        Request::CreateVchannelConsumer(second),
        Request::CreateVchannelConsumers(several),
        Request::CloseVchannel(CloseVChannelConsumerRequest { consumer_id: 1 }),
        Request::Close(CloseConsumerRequest {}),
    ] {
        call.send(&request(skipped)).await;
    }
    for skipped in [&[][..], &[0x7a, 0x00], &[0x22, 0x00]] {
        call.send_bytes(skipped).await;
    }
    append(&mut producer, insert(NAME, "still served")).await.expect("appended");
    assert_eq!(payloads(&mut call, 1).await, ["still served"]);
    call.half_close();
    assert_eq!(end(&mut call).await, Ok(()));
    Ok(())
}

/// Reads over what is still delivered, to the end: `close` and OK, or an error.
async fn end(call: &mut Call<ConsumeResponse>) -> Result<(), Refusal> {
    loop {
        match call.next().await?.expect("a close before the end").response {
            Some(Response::Consume(_)) => {}
            Some(Response::Close(_)) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(call.next().await, Ok(None));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wal_that_closes_ends_its_consumers_with_a_scanner_error() -> anyhow::Result<()> {
    let Server { node, role: _role, .. } = &Server::start().await?;
    node.open(NAME, 1).await;
    let mut unasked = node.consumer(NAME, 1).await;
    let mut reading = consumer(node, 1, create("", Some(Policy::All(())), vec![])).await;
    let mut broken = consumer(node, 1, create("", Some(Policy::All(())), vec![])).await;
    broken.send_bytes(&[0xff]).await;
    end(&mut broken).await.expect_err("no protobuf").expect("no protobuf", StreamingCode::Unknown, "cannot be read");
    node.remove(Some(pchannel(NAME, 1, READ_WRITE))).await.expect("removed");
    for (what, call) in [("unasked", &mut unasked), ("reading", &mut reading)] {
        end(call).await.expect_err(what).expect(what, StreamingCode::Inner, "scanner error: ");
    }
    Ok(())
}
