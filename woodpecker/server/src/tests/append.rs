//! Appending: who may, what is confirmed, how it is bounded.

use std::{sync::Arc, time::Duration};

use streaming_proto::logstore::{AppendRequest, Code, DescribeRequest, Replica, append_response::Outcome};
use tonic::Code as Status;
use woodpecker_base::clock::Clock;

use super::{
    disk::ValveDisk,
    harness::{Running, Site, committed, frame, within},
};
use crate::settings::InFlight;

async fn durable(running: &Running, replica: &Replica) -> u64 {
    let request = DescribeRequest { replica: Some(replica.clone()) };
    running.client.clone().describe(request).await.unwrap().into_inner().durable
}

#[tokio::test]
async fn entries_of_many_segments_become_durable_on_one_stream() {
    let running = Site::default().start().await;
    let mut stream = running.stream().await;
    let replicas: Vec<_> = (1..=20).map(|log| running.replica(log, 1)).collect();
    for round in 0..10 {
        for replica in &replicas {
            stream.send(replica, 1, round * 3, round * 3 + 3).await;
        }
    }
    let mut missing = replicas.clone();
    while !missing.is_empty() {
        let answer = stream.answer().await.unwrap();
        let Some(Outcome::Durable(next)) = answer.outcome else { panic!("{answer:?}") };
        assert!(next <= 30);
        missing.retain(|replica| next < 30 || Some(replica) != answer.replica.as_ref());
    }
    for replica in &replicas {
        assert_eq!(durable(&running, replica).await, 30);
    }
    running.stop().await;
}

#[tokio::test]
async fn what_is_held_is_confirmed_and_not_stored_again() {
    let running = Site::default().start().await;
    let replica = running.replica(1, 1);
    let mut first = running.stream().await;
    first.send(&replica, 1, 0, 5).await;
    first.durable(&replica, 5).await;
    for (from, to, holds) in [(0, 5, 5), (3, 5, 5), (2, 8, 8), (0, 9, 9)] {
        first.send(&replica, 1, from, to).await;
        first.durable(&replica, holds).await;
        let mut second = running.stream().await;
        second.send(&replica, 1, from, to).await;
        second.durable(&replica, holds).await;
        assert_eq!(durable(&running, &replica).await, holds);
    }
    running.stop().await;
}

#[tokio::test]
async fn a_resend_of_what_is_on_its_way_is_confirmed_too() {
    let disk = ValveDisk::default();
    let running = Site::on(Arc::new(disk.clone())).start().await;
    let replica = running.replica(1, 1);
    disk.close();
    let (mut one, mut two) = (running.stream().await, running.stream().await);
    one.send(&replica, 1, 0, 4).await;
    one.send(&replica, 1, 0, 4).await;
    two.send(&replica, 1, 0, 4).await;
    two.send(&replica, 1, 2, 4).await;
    let early = Clock::system().timeout(Duration::from_millis(100), two.answers.message()).await;
    assert!(early.is_err(), "confirmed before it was durable: {early:?}");
    disk.open();
    one.durable(&replica, 4).await;
    two.durable(&replica, 4).await;
    running.stop().await;
}

#[tokio::test]
async fn a_gap_is_refused_and_what_was_behind_it_passed_over() {
    let running = Site::default().start().await;
    let replica = running.replica(1, 1);
    let mut stream = running.stream().await;
    stream.send(&replica, 1, 0, 5).await;
    stream.durable(&replica, 5).await;
    stream.send(&replica, 1, 7, 9).await;
    stream.send(&replica, 1, 9, 12).await;
    stream.put(committed(&replica, 1, 5)).await;
    stream.send(&replica, 1, 12, 13).await;
    let refusal = stream.refusal().await;
    assert_eq!(refusal.code(), Code::Gap);
    assert!(refusal.reason.contains("next entry here is 5"), "{}", refusal.reason);
    // Below the refused one: another attempt. No more refusals came before its confirmation.
    stream.send(&replica, 1, 5, 10).await;
    stream.durable(&replica, 10).await;
    running.stop().await;
}

#[tokio::test]
async fn another_store_is_refused_and_does_not_stand_in_the_way() {
    let running = Site::default().start().await;
    let replica = running.replica(1, 1);
    let wrong = Replica { store: "0".repeat(32), ..replica.clone() };
    let mut stream = running.stream().await;
    stream.send(&wrong, 1, 0, 5).await;
    let answer = stream.answer().await.unwrap();
    assert_eq!(answer.replica, Some(wrong));
    let Some(Outcome::Refused(refusal)) = answer.outcome else { panic!("{answer:?}") };
    assert_eq!(refusal.code(), Code::WrongStore);
    stream.send(&replica, 1, 0, 5).await;
    stream.durable(&replica, 5).await;
    running.stop().await;
}

#[tokio::test]
async fn only_the_epoch_that_began_a_replica_goes_on_without_a_fence() {
    let running = Site::default().start().await;
    let replica = running.replica(1, 1);
    let mut stream = running.stream().await;
    stream.send(&replica, 5, 0, 2).await;
    stream.durable(&replica, 2).await;
    for (epoch, code) in [(4, Code::Fenced), (6, Code::NotContinued)] {
        let mut other = running.stream().await;
        other.send(&replica, epoch, 2, 3).await;
        assert_eq!(other.refusal().await.code(), code, "epoch {epoch}");
        other.send(&replica, epoch, 0, 2).await;
        assert_eq!(other.refusal().await.code(), code, "what is held is not confirmed to epoch {epoch}");
    }
    stream.send(&replica, 5, 2, 3).await;
    stream.durable(&replica, 3).await;
    running.stop().await;
}

#[tokio::test]
async fn what_makes_no_sense_ends_the_stream_and_nothing_else() {
    let running = Site::default().start().await;
    let replica = running.replica(1, 1);
    let frames = [
        AppendRequest { replica: None, ..frame(&replica, 1, 0, 1) },
        frame(&replica, 0, 0, 1),
        AppendRequest { first: u64::MAX, ..frame(&replica, 1, 0, 2) },
        frame(&Replica { log: u64::MAX, ..replica.clone() }, 1, 0, 1),
        frame(&Replica { namespace: String::new(), ..replica.clone() }, 1, 0, 1),
        frame(&Replica { namespace: "white space".into(), ..replica.clone() }, 1, 0, 1),
    ];
    for bad in frames {
        let mut stream = running.stream().await;
        stream.put(bad.clone()).await;
        let status = within("the end", stream.answers.message()).await.unwrap_err();
        assert_eq!(status.code(), Status::InvalidArgument, "{bad:?}");
    }
    running.fill(&replica, 1, 0, 3).await;
    running.stop().await;
}

#[tokio::test]
async fn a_stream_that_was_closed_ends_when_all_of_it_is_durable() {
    let running = Site::default().start().await;
    let replica = running.replica(1, 1);
    let mut stream = running.stream().await;
    stream.send(&replica, 1, 0, 1_000).await;
    stream.frames = None;
    let mut told = 0;
    while let Some(answer) = stream.answer().await {
        let Some(Outcome::Durable(next)) = answer.outcome else { panic!("{answer:?}") };
        told = next;
    }
    assert_eq!(told, 1_000);
    running.stop().await;
}

#[tokio::test]
async fn a_stream_has_no_more_in_flight_than_it_may() {
    let disk = ValveDisk::default();
    let mut site = Site::on(Arc::new(disk.clone()));
    site.settings.in_flight = InFlight { stream: 64 << 10, namespace: 128 << 10, total: 1 << 20 };
    let running = site.start().await;
    let replica = running.replica(1, 1);
    disk.close();
    let mut stream = running.stream().await;
    let large = |first| AppendRequest { entries: vec![vec![7; 8 << 10].into()], ..frame(&replica, 1, first, first) };
    for first in 0..100 {
        stream.put(large(first)).await;
    }
    running.until_in_flight(64).await;
    Clock::system().sleep(Duration::from_millis(50)).await;
    assert_eq!(running.store.store.in_flight_units(), 64, "of 800 that were sent");
    disk.open();
    stream.durable(&replica, 100).await;
    running.stop().await;
}

#[tokio::test]
async fn beyond_what_all_may_have_in_flight_appends_are_put_off() {
    let disk = ValveDisk::default();
    let mut site = Site::on(Arc::new(disk.clone()));
    site.settings.in_flight = InFlight { stream: 16 << 10, namespace: 16 << 10, total: 24 << 10 };
    let running = site.start().await;
    disk.close();
    let mut streams = Vec::new();
    for (namespace, log) in [("a", 1), ("b", 2)] {
        let replica = running.replica_of(namespace, log, 1);
        let stream = running.stream().await;
        let entries = vec![vec![7; 16 << 10].into()];
        stream.put(AppendRequest { entries, ..frame(&replica, 1, 0, 0) }).await;
        if log == 1 {
            running.until_in_flight(1).await;
        }
        streams.push((stream, replica));
    }
    let refusal = streams[1].0.refusal().await;
    assert_eq!(refusal.code(), Code::SlowDown);
    assert!(refusal.retry_after_ms > 0);
    disk.open();
    let (first, held) = &mut streams[0];
    first.durable(held, 1).await;
    let (stream, replica) = &mut streams[1];
    stream.send(replica, 1, 0, 3).await;
    stream.durable(replica, 3).await;
    running.stop().await;
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_taken_and_reads_and_fences_go_on() {
    let disk = ValveDisk::default();
    let running = Site::on(Arc::new(disk.clone())).start().await;
    let (replica, other) = (running.replica(1, 1), running.replica(2, 1));
    let mut stream = running.stream().await;
    stream.send(&replica, 1, 0, 3).await;
    stream.durable(&replica, 3).await;
    disk.break_down();
    stream.send(&replica, 1, 3, 5).await;
    assert_eq!(stream.refusal().await.code(), Code::Failed);
    for replica in [&replica, &other] {
        let mut stream = running.stream().await;
        stream.send(replica, 1, if replica.log == 1 { 3 } else { 0 }, 6).await;
        assert_eq!(stream.refusal().await.code(), Code::Failed);
    }
    // What is held is confirmed all the same.
    stream.send(&replica, 1, 0, 3).await;
    stream.durable(&replica, 3).await;
    let fence = streaming_proto::logstore::FenceRequest { replica: Some(replica.clone()), epoch: 2, end: None };
    let fenced = within("a fence", running.client.clone().fence(fence)).await.unwrap().into_inner();
    assert_eq!(fenced.durable, 3);
    let status = running.store.status();
    assert_eq!(status.state(), streaming_proto::logstore::State::ReadOnly);
    let advised = async {
        while !running.store.failure().unwrap().contains("start the store again") {
            Clock::system().sleep(Duration::from_millis(2)).await;
        }
    };
    within("saying what ends it", advised).await;
    running.stop().await;
}
