//! Fencing: durable, complete, and the only way on for another epoch or another run.

use std::{sync::Arc, time::Duration};

use streaming_proto::logstore::{
    AppendRequest, Code, DescribeRequest, FenceRequest, FenceResponse, Replica, append_response::Outcome,
};
use tonic::Status;
use woodpecker_base::clock::Clock;

use super::{
    disk::ValveDisk,
    harness::{Running, Site, committed, frame, refusal, within},
};

pub async fn try_fence(running: &Running, replica: &Replica, epoch: u64) -> Result<FenceResponse, Status> {
    let request = FenceRequest { replica: Some(replica.clone()), epoch, end: None };
    within("a fence", running.client.clone().fence(request)).await.map(tonic::Response::into_inner)
}

async fn fence(running: &Running, replica: &Replica, epoch: u64) -> u64 {
    try_fence(running, replica, epoch).await.unwrap().durable
}

async fn refused(running: &Running, replica: &Replica, epoch: u64, from: u64) -> Code {
    let mut stream = running.stream().await;
    stream.send(replica, epoch, from, from + 1).await;
    stream.refusal().await.code()
}

#[tokio::test]
async fn a_fence_stops_older_epochs_for_ever() {
    let site = Site::default();
    let running = site.start().await;
    let replica = running.replica(1, 1);
    let mut stream = running.stream().await;
    stream.send(&replica, 3, 0, 5).await;
    stream.durable(&replica, 5).await;
    assert_eq!(fence(&running, &replica, 4).await, 5);
    assert_eq!(stream.refusal().await.code(), Code::Fenced);
    stream.send(&replica, 3, 5, 6).await;
    assert_eq!(stream.refusal().await.code(), Code::Fenced);
    assert_eq!(refused(&running, &replica, 3, 0).await, Code::Fenced, "what is held is not confirmed either");
    assert_eq!(fence(&running, &replica, 4).await, 5, "twice");
    assert_eq!(refusal(&try_fence(&running, &replica, 3).await.unwrap_err()).code(), Code::Fenced);
    running.stop().await;

    let running = site.start().await;
    assert_eq!(refused(&running, &replica, 3, 5).await, Code::Fenced);
    assert_eq!(refusal(&try_fence(&running, &replica, 3).await.unwrap_err()).code(), Code::Fenced);
    let described = DescribeRequest { replica: Some(replica.clone()) };
    let described = running.client.clone().describe(described).await.unwrap().into_inner();
    assert_eq!((described.durable, described.fenced, described.released), (5, 4, false));
    running.stop().await;
}

#[tokio::test]
async fn a_fence_counts_what_is_on_its_way_and_its_writer_hears_nothing_of_it() {
    let disk = ValveDisk::default();
    let running = Site::on(Arc::new(disk.clone())).start().await;
    let replica = running.replica(1, 1);
    let mut stream = running.stream().await;
    stream.send(&replica, 1, 0, 2).await;
    stream.durable(&replica, 2).await;
    disk.close();
    stream.send(&replica, 1, 2, 9).await;
    running.until_in_flight(1).await;
    let mut fencing = Box::pin(fence(&running, &replica, 2));
    assert!(Clock::system().timeout(Duration::from_millis(100), &mut fencing).await.is_err(), "answered too early");
    assert_eq!(stream.refusal().await.code(), Code::Fenced);
    disk.open();
    assert_eq!(fencing.await, 9);
    stream.frames = None;
    assert_eq!(stream.answer().await, None, "a fenced writer was told something");
    running.stop().await;
}

#[tokio::test]
async fn a_stale_writer_finds_an_empty_fenced_replica_closed_after_a_restart() {
    let site = Site::default();
    let running = site.start().await;
    let replica = running.replica(1, 1);
    assert_eq!(fence(&running, &replica, 7).await, 0);
    running.stop().await;
    let running = site.start().await;
    assert_eq!(refused(&running, &replica, 6, 0).await, Code::Fenced);
    assert_eq!(refused(&running, &replica, 8, 0).await, Code::NotContinued, "epoch 8 has not fenced it");
    running.fill(&replica, 7, 0, 5).await;
    running.stop().await;
}

#[tokio::test]
async fn after_a_restart_only_the_epoch_that_fenced_goes_on() {
    let site = Site::default();
    let running = site.start().await;
    let (replica, fresh) = (running.replica(1, 1), running.replica(1, 2));
    running.fill(&replica, 1, 0, 10).await;
    running.stop().await;

    let running = site.start().await;
    for (epoch, from) in [(1, 10), (1, 0), (2, 10)] {
        assert_eq!(refused(&running, &replica, epoch, from).await, Code::NotContinued, "epoch {epoch} at {from}");
    }
    running.fill(&fresh, 1, 0, 3).await;
    assert_eq!(fence(&running, &replica, 2).await, 10);
    running.fill(&replica, 2, 8, 15).await;
    running.stop().await;

    let running = site.start().await;
    assert_eq!(fence(&running, &replica, 3).await, 15);
    running.fill(&replica, 3, 15, 16).await;
    let read = super::read::read(&running, &replica, 0, 16).await;
    assert_eq!(read, (0..16).map(|number| super::harness::entry(&replica, number)).collect::<Vec<_>>());
    running.stop().await;
}

#[tokio::test]
async fn the_end_that_the_latest_recovery_found_is_kept() {
    let site = Site::default();
    let running = site.start().await;
    let replica = running.replica(1, 1);
    running.fill(&replica, 1, 0, 4).await;
    let close = |running: &Running, epoch, end| {
        let (request, mut client) =
            (FenceRequest { replica: Some(replica.clone()), epoch, end }, running.client.clone());
        async move {
            let answer = client.fence(request).await.unwrap().into_inner();
            (answer.end, answer.end_epoch)
        }
    };
    assert_eq!(close(&running, 2, None).await, (None, 0));
    assert_eq!(close(&running, 2, Some(3)).await, (Some(3), 2));
    assert_eq!(close(&running, 2, Some(9)).await, (Some(3), 2));
    running.stop().await;
    let running = site.start().await;
    assert_eq!(close(&running, 4, None).await, (Some(3), 2));
    assert_eq!(close(&running, 4, Some(0)).await, (Some(0), 4));
    running.stop().await;
}

#[tokio::test]
async fn a_fence_answers_what_was_known_to_be_acked() {
    let running = Site::default().start().await;
    let replica = running.replica(1, 1);
    let mut stream = running.stream().await;
    stream.send(&replica, 1, 0, 5).await;
    stream.put(committed(&replica, 1, 4)).await;
    stream.put(AppendRequest { committed: 2, ..frame(&replica, 1, 5, 6) }).await;
    stream.durable(&replica, 6).await;
    let fenced = try_fence(&running, &replica, 2).await.unwrap();
    assert_eq!((fenced.durable, fenced.committed), (6, 4), "what is acked never shrinks");
    running.stop().await;
}

/// A writer at full speed and takers that race it: nothing that was confirmed is beyond what a fence counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fence_cuts_cleanly_through_a_writer_at_full_speed() {
    let running = Site::default().start().await;
    for round in 1..=20 {
        let replica = running.replica(round, 1);
        let mut stream = running.stream().await;
        let frames = stream.frames.take().unwrap();
        let writing = {
            let replica = replica.clone();
            async move {
                for first in (0..2_000).step_by(2) {
                    if frames.send(frame(&replica, 1, first, first + 2)).await.is_err() {
                        return;
                    }
                }
            }
        };
        let taking = async {
            Clock::system().sleep(Duration::from_micros(200 * round)).await;
            let (one, two) = tokio::join!(fence(&running, &replica, 2), fence(&running, &replica, 2));
            assert_eq!(one, two, "takers of one epoch disagree");
            one
        };
        let hearing = async {
            let mut confirmed = 0;
            loop {
                let Some(answer) = stream.answer().await else { return confirmed };
                match answer.outcome {
                    Some(Outcome::Durable(next)) => confirmed = next,
                    _ => return confirmed,
                }
            }
        };
        let ((), tail, confirmed) = tokio::join!(writing, taking, hearing);
        assert!(confirmed <= tail, "confirmed {confirmed}, counted {tail}");
        assert_eq!(super::read::read(&running, &replica, 0, u64::MAX).await.len() as u64, tail);
    }
    running.stop().await;
}
