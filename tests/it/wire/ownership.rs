//! How streams end when their channel goes to another process, or their process goes away.

use std::time::Duration;

use streaming_proto::streaming::{
    AssignmentDiscoverResponse, ConsumeRequest, ConsumeResponse, CreateVChannelConsumerRequest, DeliverPolicy,
    ProduceResponse, StreamingCode, StreamingNodeManagerAssignRequest, assignment_discover_response, consume_request,
    consume_response, deliver_policy::Policy,
};

use super::{
    raw::{Call, Refusal},
    server::{
        DISCOVER, Node, PRODUCE, READ_WRITE, Said, Server, append, create_header, dial, insert, pchannel, produce, said,
    },
};
use crate::cluster::{Backend, Cluster};

const NAME: &str = "wire-owned_0";

/// A node of a cluster. Its id is not known here, and need not be.
async fn node(cluster: &Cluster, index: usize) -> anyhow::Result<Node> {
    Ok(Node { channel: dial(cluster.nodes[index].address("node")).await?, id: -1 })
}

/// Opens the channel without naming the server, whose id we do not know.
async fn open(node: &Node, term: i64) -> anyhow::Result<()> {
    let pchannel = Some(pchannel(NAME, term, READ_WRITE));
    node.manager().assign(StreamingNodeManagerAssignRequest { pchannel }).await?;
    Ok(())
}

async fn an_owner_that_was_replaced_takes_nothing_more_and_says_so(backend: Backend) -> anyhow::Result<()> {
    let cluster = Cluster::start(backend, 2).await?;
    let (old, new) = (node(&cluster, 0).await?, node(&cluster, 1).await?);
    open(&old, 1).await?;
    let mut at_old = old.producer(NAME, 1).await;
    append(&mut at_old, insert(NAME, "before")).await.expect("appended");
    // The old owner is not told: only the fence of the log stops it, on an append if it has not met it before.
    open(&new, 2).await?;
    at_old.send(&produce(2, Some(insert(NAME, "too late")))).await;
    match said(&mut at_old).await {
        Said::Answer(2, Err(error)) => {
            assert_eq!(error.code(), StreamingCode::ChannelFenced, "{}", error.cause);
            assert_eq!(error.cause, format!("{NAME} fenced"));
            assert!(matches!(said(&mut at_old).await, Said::Close));
        }
        Said::Close => {}
        other => panic!("{other:?}"),
    }
    let Said::End(Err(refusal)) = said(&mut at_old).await else { panic!("no error") };
    refusal.expect("the end of the stream", StreamingCode::Unknown, "closed");
    // The WAL is gone there; at the new owner everything that was acknowledged is.
    let header = create_header(&pchannel(NAME, 1, READ_WRITE));
    let headers = [("create-producer", header.as_str())];
    let again = Call::<ProduceResponse>::open(&old.channel, PRODUCE, &headers).await;
    again.err().expect("refused").expect("the old owner", StreamingCode::ChannelNotExist, "not exist");
    append(&mut new.producer(NAME, 2).await, insert(NAME, "after")).await.expect("appended");
    let mut reader = reader(&new, NAME, 2).await;
    assert_eq!([payload(&mut reader).await, payload(&mut reader).await], ["before", "after"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_was_replaced_takes_nothing_more_and_says_so_on_a_local_disk() -> anyhow::Result<()> {
    an_owner_that_was_replaced_takes_nothing_more_and_says_so(Backend::Local).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_was_replaced_takes_nothing_more_and_says_so_on_object_storage() -> anyhow::Result<()> {
    an_owner_that_was_replaced_takes_nothing_more_and_says_so(Backend::Object).await
}

/// A consumer of everything.
async fn reader(node: &Node, name: &str, term: i64) -> Call<ConsumeResponse> {
    let mut call = node.consumer(name, term).await;
    let deliver_policy = Some(DeliverPolicy { policy: Some(Policy::All(())) });
    let create = CreateVChannelConsumerRequest { deliver_policy, ..CreateVChannelConsumerRequest::default() };
    let request = Some(consume_request::Request::CreateVchannelConsumer(create));
    call.send(&ConsumeRequest { request }).await;
    let created = call.next().await.expect("created").expect("no end").response;
    assert!(matches!(created, Some(consume_response::Response::CreateVchannel(_))), "{created:?}");
    call
}

/// The payload of the next message that is no tick.
async fn payload(call: &mut Call<ConsumeResponse>) -> String {
    loop {
        let response = call.next().await.expect("a message").expect("no end").response;
        let Some(consume_response::Response::Consume(consumed)) = response else { panic!("{response:?}") };
        let message = consumed.message.expect("a message");
        if message.properties.get("_t") != Some("1") {
            return String::from_utf8(message.payload.to_vec()).expect("text");
        }
    }
}

/// How a stream ends, without what is still delivered before.
async fn end<R: prost::Message + Default>(call: &mut Call<R>) -> Result<(), Refusal> {
    while call.next().await?.is_some() {}
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_told_to_stop_ends_every_stream_by_its_rule() -> anyhow::Result<()> {
    let mut server = Server::start().await?;
    server.node.open(NAME, 1).await;
    let mut producer = server.node.producer(NAME, 1).await;
    append(&mut producer, insert(NAME, "x")).await.expect("appended");
    let mut consumer = reader(&server.node, NAME, 1).await;
    let mut discover = Call::<AssignmentDiscoverResponse>::open(&server.coord, DISCOVER, &[]).await.expect("opened");
    let first = discover.next().await.expect("an assignment").and_then(|response| response.response);
    assert!(matches!(first, Some(assignment_discover_response::Response::FullAssignment(_))));

    server.role.signal("TERM")?;
    assert!(matches!(said(&mut producer).await, Said::Close));
    let Said::End(Err(refusal)) = said(&mut producer).await else { panic!("no error") };
    refusal.expect("Produce", StreamingCode::Unknown, "closed");
    end(&mut consumer).await.expect_err("Consume").expect("Consume", StreamingCode::Inner, "scanner error: ");
    end(&mut discover).await.expect_err("AssignmentDiscover").expect(
        "AssignmentDiscover",
        StreamingCode::OnShutdown,
        "stopping",
    );
    drop((producer, consumer, discover));
    assert!(server.role.wait(Duration::from_secs(30))?.success(), "{}", server.role.log());
    Ok(())
}
