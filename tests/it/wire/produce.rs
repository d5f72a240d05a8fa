//! Produce: handshakes, requests, closes.

use streaming_proto::streaming::{ProduceResponse, StreamingCode, produce_response};

use super::{
    raw::{Call, Refused},
    server::{PRODUCE, READ_ONLY, READ_WRITE, Said, Server, append, create_header, insert, pchannel, produce, said},
};

const NAME: &str = "wire-produce_0";

#[tokio::test(flavor = "multi_thread")]
async fn every_handshake_is_created_or_refused_with_its_code_and_text() -> anyhow::Result<()> {
    use StreamingCode::{ChannelNotExist, InvaildArgument, UnmatchedChannelTerm};
    let Server { node, role: _role, .. } = &Server::start().await?;
    node.open(NAME, 5).await;
    let required = "create producer request is required";
    let of = |name, term, mode| create_header(&pchannel(name, term, mode));
    let good = of(NAME, 5, READ_WRITE);
    let cases: [(&str, Vec<String>, Refused<'_>); 17] = [
        ("no header", vec![], Some((InvaildArgument, required))),
        ("no base64", vec!["?".into()], Some((InvaildArgument, required))),
        ("no padding", vec![good.trim_end_matches('=').into()], Some((InvaildArgument, required))),
        ("no request", vec!["CgE=".into()], Some((InvaildArgument, required))),
        ("no pchannel", vec![String::new()], Some((InvaildArgument, "missing"))),
        ("no name", vec![of("", 5, READ_WRITE)], Some((InvaildArgument, "no name"))),
        ("no term", vec![of(NAME, 0, READ_WRITE)], Some((InvaildArgument, "terms begin at 1"))),
        ("a negative term", vec![of(NAME, -5, READ_WRITE)], Some((InvaildArgument, "terms begin at 1"))),
        ("an unheard-of access mode", vec![of(NAME, 5, 7)], Some((InvaildArgument, "access mode"))),
        ("an unknown channel", vec![of("nowhere", 5, READ_WRITE)], Some((ChannelNotExist, "nowhere not exist"))),
        (
            "an earlier term",
            vec![of(NAME, 4, READ_WRITE)],
            Some((UnmatchedChannelTerm, "channel wire-produce_0 at term 4 is expected, but current term is 5")),
        ),
        (
            "a later term",
            vec![of(NAME, 6, READ_WRITE)],
            Some((UnmatchedChannelTerm, "channel wire-produce_0 at term 6 is expected, but current term is 5")),
        ),
        ("the largest term", vec![of(NAME, i64::MAX, READ_WRITE)], Some((UnmatchedChannelTerm, "current term is 5"))),
        ("a good one", vec![good.clone()], None),
        ("the access mode is not compared", vec![of(NAME, 5, READ_ONLY)], None),
        ("the first of two counts", vec![good.clone(), "?".into()], None),
        ("the first of two counts, also a bad one", vec!["?".into(), good], Some((InvaildArgument, required))),
    ];
    for (what, values, refused) in cases {
        let headers: Vec<_> = values.iter().map(|value| ("create-producer", value.as_str())).collect();
        // A stream that is refused says nothing before: the first response of a good one is `create`.
        let first = match Call::<ProduceResponse>::open(&node.channel, PRODUCE, &headers).await {
            Ok(mut call) => call.next().await,
            Err(refusal) => Err(refusal),
        };
        match (first, refused) {
            (Ok(Some(response)), None) => {
                let Some(produce_response::Response::Create(create)) = response.response else { panic!("{what}") };
                assert_eq!((create.wal_name.as_str(), create.producer_server_id), ("woodpecker", node.id), "{what}");
            }
            (Err(refusal), Some((code, cause))) => refusal.expect(what, code, cause),
            (first, _) => panic!("{what}: {first:?}"),
        }
    }
    node.assign(Some(pchannel(NAME, 6, READ_ONLY))).await.expect("assigned");
    let header = of(NAME, 6, READ_WRITE);
    let refusal = Call::<ProduceResponse>::open(&node.channel, PRODUCE, &[("create-producer", &header)]).await;
    refusal.err().expect("refused").expect("open for reading only", InvaildArgument, "reading only");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_answered_once_with_all_that_clients_rely_on() -> anyhow::Result<()> {
    let Server { node, role: _role, .. } = &Server::start().await?;
    node.open(NAME, 1).await;
    let mut call = node.producer(NAME, 1).await;
    // Ids are the client's business: they may repeat and need not rise.
    let ids = [7, 7, 0, -1, i64::MAX, i64::MIN, 1];
    for id in ids {
        call.send(&produce(id, Some(insert(NAME, "x")))).await;
    }
    let (mut answered, mut ticks) = (Vec::new(), Vec::new());
    for _ in ids {
        let Said::Answer(id, Ok(result)) = said(&mut call).await else { panic!("no result") };
        answered.push(id);
        ticks.push(result.timetick);
        let (placed, confirmed) = (result.id.expect("an id"), result.last_confirmed_id.expect("a last-confirmed id"));
        assert_eq!((placed.wal_name, confirmed.wal_name), (4, 4), "Woodpecker's codec");
        assert!(!placed.id.is_empty() && !confirmed.id.is_empty());
        assert_eq!((result.txn_context, result.extra), (None, None));
    }
    let (mut sent, mut unique) = (ids.to_vec(), ticks.clone());
    sent.sort_unstable();
    answered.sort_unstable();
    assert_eq!(answered, sent);
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), ticks.len(), "ticks are unique: {ticks:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_skipped_and_what_cannot_be_read_ends_the_stream() -> anyhow::Result<()> {
    let Server { node, role: _role, .. } = &Server::start().await?;
    node.open(NAME, 1).await;
    let mut call = node.producer(NAME, 1).await;
    // Nothing at all, an arm of a later version, and a close, which does nothing by itself.
    for skipped in [&[][..], &[0x7a, 0x00], &[0x12, 0x00]] {
        call.send_bytes(skipped).await;
    }
    append(&mut call, insert(NAME, "still served")).await.expect("appended");
    call.send(&produce(1, Some(insert(NAME, "answered before the end")))).await;
    call.send_bytes(&[0xff]).await;
    assert!(matches!(said(&mut call).await, Said::Answer(1, Ok(_))));
    let Said::End(Err(refusal)) = said(&mut call).await else { panic!("no error") };
    refusal.expect("no protobuf", StreamingCode::Unknown, "cannot be read");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_close_brings_every_answer_then_close_then_ok() -> anyhow::Result<()> {
    let Server { node, role: _role, .. } = &Server::start().await?;
    node.open(NAME, 1).await;
    for (what, with_close, messages) in
        [("close and half-close", true, 100), ("half-close", false, 100), ("nothing in flight", true, 0)]
    {
        let mut call = node.producer(NAME, 1).await;
        for id in 0..messages {
            call.send(&produce(id, Some(insert(NAME, "x")))).await;
        }
        if with_close {
            call.send_bytes(&[0x12, 0x00]).await;
        }
        call.half_close();
        for answer in 0..messages {
            assert!(matches!(said(&mut call).await, Said::Answer(_, Ok(_))), "{what}: {answer}");
        }
        assert_eq!(call.next_bytes().await.expect(what).as_deref(), Some(&[0x1a, 0x00][..]), "{what}");
        assert_eq!(call.next_bytes().await, Ok(None), "{what}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wal_that_closes_answers_what_is_in_flight_closes_and_ends_with_an_error() -> anyhow::Result<()> {
    let Server { node, role: _role, .. } = &Server::start().await?;
    for (term, what) in [(1, "removed"), (2, "taken over by a later term")] {
        let name = &format!("wire-closing_{term}");
        node.open(name, 1).await;
        let mut call = node.producer(name, 1).await;
        append(&mut call, insert(name, "first")).await.expect("appended");
        for id in 0..100 {
            call.send(&produce(id, Some(insert(name, "x")))).await;
        }
        let info = Some(pchannel(name, term, READ_WRITE));
        if term == 1 {
            node.remove(info).await.expect(what)
        } else {
            node.assign(info).await.expect(what)
        }
        let mut answers = 0;
        let end = loop {
            match said(&mut call).await {
                // What came too late is told so, in words that send the client elsewhere.
                Said::Answer(_, Err(error)) => assert_eq!(error.code(), StreamingCode::ChannelFenced, "{what}"),
                Said::Answer(_, Ok(_)) => answers += 1,
                end => break end,
            }
        };
        assert!(answers <= 100 && matches!(end, Said::Close), "{what}: {answers}, {end:?}");
        let Said::End(Err(refusal)) = said(&mut call).await else { panic!("{what}: no error") };
        refusal.expect(what, StreamingCode::Unknown, "closed");
    }
    Ok(())
}
