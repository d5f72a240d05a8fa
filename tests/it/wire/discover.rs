//! AssignmentDiscover: what is pushed, what is reported, how it ends.

use std::{collections::BTreeMap, time::Duration};

use streaming_proto::streaming::{
    AssignmentDiscoverRequest, AssignmentDiscoverResponse, CloseAssignmentDiscoverRequest,
    FullStreamingNodeAssignmentWithVersion, ReportAssignmentErrorRequest, StreamingCode, StreamingError, VersionPair,
    assignment_discover_request::Command, assignment_discover_response::Response,
};

use super::{
    raw::Call,
    server::{CHANNELS, DISCOVER, READ_WRITE, Server, dial, pchannel, standalone},
};

const NAME: &str = "by-dev-rootcoord-dml_0";
const QUIET: Duration = Duration::from_millis(500);

type Discover = Call<AssignmentDiscoverResponse>;

async fn open(server: &Server) -> Discover {
    Discover::open(&server.coord, DISCOVER, &[("cluster", "by-dev")]).await.expect("a stream")
}

/// The next assignment, held against everything that clients would not survive the lack of.
async fn pushed(call: &mut Discover) -> FullStreamingNodeAssignmentWithVersion {
    let response = call.next().await.expect("an assignment").expect("no end").response;
    let Some(Response::FullAssignment(full)) = response else { panic!("{response:?}") };
    assert!(full.version.is_some() && full.replicate_configuration.is_none(), "{full:?}");
    let control = full.cchannel.as_ref().and_then(|control| control.meta.as_ref());
    assert_eq!(control.map(|meta| meta.pchannel.as_str()), Some(NAME));
    let mut nodes: Vec<_> = full.assignments.iter().flat_map(|entry| &entry.node).map(|node| node.server_id).collect();
    nodes.dedup();
    assert!(!nodes.is_empty() && nodes.len() == full.assignments.len(), "each node once: {full:?}");
    for entry in &full.assignments {
        let node = entry.node.as_ref().expect("a node");
        assert!(node.server_id > 0 && node.address.contains(':'), "{node:?}");
        for channel in &entry.channels {
            assert!(!channel.name.is_empty() && channel.term >= 2 && channel.access_mode == READ_WRITE, "{channel:?}");
        }
    }
    full
}

fn version(full: &FullStreamingNodeAssignmentWithVersion) -> VersionPair {
    full.version.expect("a version")
}

fn terms(full: &FullStreamingNodeAssignmentWithVersion) -> BTreeMap<String, i64> {
    let channels = full.assignments.iter().flat_map(|entry| &entry.channels);
    channels.map(|channel| (channel.name.clone(), channel.term)).collect()
}

/// Reads until every channel is served.
async fn until_served(call: &mut Discover) -> FullStreamingNodeAssignmentWithVersion {
    loop {
        let full = pushed(call).await;
        if terms(&full).len() == CHANNELS {
            return full;
        }
    }
}

async fn report(call: &Discover, name: &str, term: i64) {
    let err = Some(StreamingError { code: StreamingCode::ChannelNotExist.into(), cause: "not there".into() });
    let report = ReportAssignmentErrorRequest { pchannel: Some(pchannel(name, term, READ_WRITE)), err };
    call.send(&AssignmentDiscoverRequest { command: Some(Command::ReportError(report)) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_full_assignment_comes_at_once_and_nothing_without_a_change() -> anyhow::Result<()> {
    let server = Server::start().await?;
    let mut call = open(&server).await;
    let full = until_served(&mut call).await;
    assert_eq!(version(&full).global, server.coord_id);
    let [only] = &full.assignments[..] else { panic!("one node, once: {full:?}") };
    assert_eq!(only.node.as_ref().map(|node| node.server_id), Some(server.node.id));
    assert!(call.is_silent(QUIET).await);
    let mut late = open(&server).await;
    assert_eq!(pushed(&mut late).await, full, "who comes later is told the same at once");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_counts_if_it_names_the_present_term() -> anyhow::Result<()> {
    let server = Server::start().await?;
    let mut call = open(&server).await;
    let before = until_served(&mut call).await;
    let term = terms(&before)[NAME];
    // None of these is about the present term of a channel: no reply, no change.
    report(&call, NAME, term - 1).await;
    report(&call, NAME, term + 1).await;
    report(&call, "nowhere", term).await;
    report(&call, "", 0).await;
    let nothing = ReportAssignmentErrorRequest::default();
    call.send(&AssignmentDiscoverRequest { command: Some(Command::ReportError(nothing)) }).await;
    assert!(call.is_silent(QUIET).await);

    let mut call = open(&server).await;
    assert_eq!(pushed(&mut call).await, before);
    report(&call, NAME, term).await;
    let mut last = version(&before);
    loop {
        let full = pushed(&mut call).await;
        let now = version(&full);
        assert!(now.global == last.global && now.local > last.local, "{now:?} after {last:?}");
        last = now;
        // On its way it is absent; when it is back, it is under a new term. The other channel stays.
        assert_eq!(terms(&full).get("by-dev-rootcoord-dml_1"), terms(&before).get("by-dev-rootcoord-dml_1"));
        if let Some(new) = terms(&full).get(NAME) {
            assert_eq!(*new, term + 1);
            return Ok(());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_when_the_client_ends_it_and_not_before() -> anyhow::Result<()> {
    let server = Server::start().await?;
    until_served(&mut open(&server).await).await;
    for (what, with_close) in [("close and half-close", true), ("half-close", false)] {
        let mut call = open(&server).await;
        pushed(&mut call).await;
        // Nothing, an arm of a later version: skipped.
        call.send_bytes(&[]).await;
        call.send_bytes(&[0x7a, 0x00]).await;
        if with_close {
            // In the two forms in which it is sent.
            call.send(&AssignmentDiscoverRequest { command: Some(Command::Close(CloseAssignmentDiscoverRequest {})) })
                .await;
            call.send_bytes(&[0x12, 0x00]).await;
        }
        assert!(call.is_silent(QUIET).await, "{what}: a close by itself does nothing");
        let mut call = open(&server).await;
        pushed(&mut call).await;
        if with_close {
            call.send_bytes(&[0x12, 0x00]).await;
        }
        call.half_close();
        assert_eq!(call.next_bytes().await.expect(what).as_deref(), Some(&[0x12, 0x00][..]), "{what}");
        assert_eq!(call.next_bytes().await, Ok(None), "{what}");
    }
    let mut call = open(&server).await;
    pushed(&mut call).await;
    call.send_bytes(&[0xff]).await;
    call.next().await.expect_err("no protobuf").expect("no protobuf", StreamingCode::Unknown, "cannot be read");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_coordinator_counts_for_more_than_the_last() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let mut last = VersionPair { global: 0, local: 0 };
    for _ in 0..3 {
        let mut role = standalone(directory.path())?;
        let coord = dial(role.address("coordinator")).await?;
        let mut call = Discover::open(&coord, DISCOVER, &[]).await.expect("a stream");
        let now = version(&pushed(&mut call).await);
        assert!(now.global > last.global && now.local >= 0, "{now:?} after {last:?}");
        last = now;
        role.kill()?;
    }
    Ok(())
}
