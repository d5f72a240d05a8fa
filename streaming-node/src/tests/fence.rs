//! Two nodes that both believe they own a WAL.

use std::time::Duration;

use streaming_proto::streaming::{StreamingCode, consume_response::Response::Consume, produce_response::Response};
use streaming_types::{DeliverPolicy, ImmutableMessage, TimeTick};
use woodpecker_base::metadata::MetadataStore;

use super::harness::{VCHANNEL, World, code, eventually, insert, rw};
use crate::Settings;

#[tokio::test]
async fn older_owner_is_fenced_in_band_and_its_term_is_over() {
    let world = World::new();
    let (old, new) = (world.serving().await, world.node(2).await);
    let mut produce = old.producer(&rw(1)).await;
    produce.append(insert(VCHANNEL, "kept")).await.unwrap();
    new.assign(&rw(2)).await.unwrap();

    produce.send(insert(VCHANNEL, "refused")).await;
    loop {
        match produce.next().await {
            Some(Ok(Response::Produce(answer))) => {
                let Some(streaming_proto::streaming::produce_message_response::Response::Error(error)) =
                    answer.response
                else {
                    panic!("an append of the old owner was acked")
                };
                assert_eq!(error.code(), StreamingCode::ChannelFenced);
            }
            Some(Ok(Response::Close(_))) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(code(&produce.next().await.unwrap().unwrap_err()), StreamingCode::Unknown);
    assert_eq!(code(&old.produce(&rw(1)).await.map(drop).unwrap_err()), StreamingCode::ChannelNotExist);
    assert_eq!(old.assign(&rw(1)).await.unwrap_err().code(), StreamingCode::IgnoredOperation);
    assert!(old.status().await.is_empty());

    new.producer(&rw(2)).await.append(insert(VCHANNEL, "new")).await.unwrap();
    let mut consume = new.consumer(&rw(2), DeliverPolicy::All, &[]).await;
    assert_eq!(consume.payloads(2).await, ["kept", "new"]);
}

#[tokio::test]
async fn idle_owner_whose_lease_ran_out_unheard_tells_nobody_how_far_its_log_has_got() {
    let mut world = World::new();
    let settings = Settings { session_ttl: Duration::from_secs(2), ..Settings::default() };
    let old = world.node_with(1, settings).await;
    old.assign(&rw(1)).await.unwrap();
    let mut consume = old.consumer(&rw(1), DeliverPolicy::Latest, &[]).await;
    consume.any().await;
    old.node.local().latest_time_tick(&rw(1), VCHANNEL).unwrap();

    let cut = world.metadata.clone();
    world.metadata = cut.connect();
    cut.set_reachable(false);
    let session = "by-dev/meta/session/streamingnode-1";
    let gone = async || world.metadata.get(session).await.unwrap().is_none().then_some(());
    eventually(&world, "the end of the session", gone).await;
    let new = world.node(2).await;
    new.assign(&rw(2)).await.unwrap();
    let acked = new.producer(&rw(2)).await.append(insert(VCHANNEL, "not on the old one")).await.unwrap();

    let refused = old.node.local().latest_time_tick(&rw(1), VCHANNEL).unwrap_err();
    assert_eq!(refused.code(), StreamingCode::ChannelNotExist);
    while let Some(Ok(Consume(told))) = consume.next().await {
        let told = ImmutableMessage::try_from(told.message.unwrap()).unwrap().time_tick().unwrap();
        assert!(told < TimeTick(acked.timetick), "a reader that goes on from there misses what was acked");
    }
    assert!(old.status().await.is_empty(), "the log said that it is someone else's");
}

#[tokio::test]
async fn race_of_two_owners_keeps_every_ack_once_and_in_order() {
    let world = World::new();
    let nodes = [world.node(1).await, world.node(2).await];
    let mut acked = Vec::new();
    for term in 1..=8_i64 {
        let owner = &nodes[usize::try_from(term % 2).unwrap()];
        let next = &nodes[usize::try_from((term + 1) % 2).unwrap()];
        owner.assign(&rw(term)).await.unwrap();
        let mut produce = owner.producer(&rw(term)).await;
        let writing = async {
            let mut acked = Vec::new();
            for n in 0.. {
                let payload = format!("{term}/{n}");
                match produce.append(insert(VCHANNEL, &payload)).await {
                    Ok(result) => acked.push((result.timetick, payload)),
                    Err(error) => {
                        assert_eq!(error.code(), StreamingCode::ChannelFenced);
                        return acked;
                    }
                }
            }
            acked
        };
        let (written, assigned) = futures::join!(writing, async {
            world.clock.sleep(Duration::from_millis(30)).await;
            next.assign(&rw(term + 1)).await
        });
        assigned.unwrap();
        acked.extend(written);
    }
    let last = &nodes[1];
    let mut consume = last.consumer(&rw(9), DeliverPolicy::All, &[]).await;
    let end = last.producer(&rw(9)).await.append(insert(VCHANNEL, "end")).await.unwrap();
    let mut read = Vec::new();
    loop {
        let message = consume.message().await;
        let tick = message.time_tick().unwrap();
        if tick == TimeTick(end.timetick) {
            break;
        }
        read.push((tick.0, super::harness::text(&message)));
    }
    assert!(read.is_sorted_by(|a, b| a.0 < b.0));
    let missing: Vec<_> = acked.iter().filter(|message| !read.contains(message)).collect();
    assert!(missing.is_empty() && !acked.is_empty(), "{missing:?}");
}
