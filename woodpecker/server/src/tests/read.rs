//! Reading: what is pushed, where it ends, and that it is what was appended or an error.

use std::time::Duration;

use bytes::Bytes;
use streaming_proto::logstore::{AppendRequest, Code, ReadRequest, ReadResponse, ReleaseRequest, Replica};
use tonic::Streaming;
use woodpecker_base::{clock::Clock, metadata::MetadataStore};

use super::harness::{Running, Site, committed, entry, frame, refusal, within};

pub fn request(replica: &Replica, from: u64, end: u64, follow: bool) -> ReadRequest {
    ReadRequest { replica: Some(replica.clone()), from, end, follow, max_bytes: 0 }
}

pub async fn open(running: &Running, request: ReadRequest) -> Streaming<ReadResponse> {
    within("opening a read", running.client.clone().read(request)).await.unwrap().into_inner()
}

/// All that a replica holds of `from..end`, in order.
pub async fn read(running: &Running, replica: &Replica, from: u64, end: u64) -> Vec<Bytes> {
    let mut answers = open(running, request(replica, from, end, false)).await;
    let mut entries = Vec::new();
    while let Some(answer) = within("an answer", answers.message()).await.unwrap() {
        assert_eq!(answer.first, from + entries.len() as u64, "a gap");
        entries.extend(answer.entries);
    }
    entries
}

fn entries(replica: &Replica, from: u64, to: u64) -> Vec<Bytes> {
    (from..to).map(|number| entry(replica, number)).collect()
}

/// Reads on until `to`.
pub async fn expect(answers: &mut Streaming<ReadResponse>, replica: &Replica, from: u64, to: u64) {
    let mut next = from;
    while next < to {
        let answer = within("an answer", answers.message()).await.unwrap().expect("the end");
        assert_eq!(answer.first, next);
        assert_eq!(answer.entries, entries(replica, next, next + answer.entries.len() as u64));
        next += answer.entries.len() as u64;
    }
    assert_eq!(next, to);
}

#[tokio::test]
async fn followers_are_pushed_what_is_acked_and_no_more() {
    let running = Site::default().start().await;
    let replica = running.replica(1, 1);
    let mut stream = running.stream().await;
    stream.send(&replica, 1, 0, 10).await;
    stream.durable(&replica, 10).await;
    let mut answers = open(&running, request(&replica, 0, 0, true)).await;
    let early = Clock::system().timeout(Duration::from_millis(50), answers.message()).await;
    assert!(early.is_err(), "what nobody said is acked was sent: {early:?}");
    stream.put(committed(&replica, 1, 4)).await;
    expect(&mut answers, &replica, 0, 4).await;
    stream.put(AppendRequest { committed: 11, ..frame(&replica, 1, 10, 12) }).await;
    expect(&mut answers, &replica, 4, 11).await;
    // Acked elsewhere before it is durable here: sent when it is.
    stream.put(committed(&replica, 1, 20)).await;
    expect(&mut answers, &replica, 11, 12).await;
    stream.send(&replica, 1, 12, 30).await;
    expect(&mut answers, &replica, 12, 20).await;
    running.stop().await;
}

#[tokio::test]
async fn with_an_end_all_that_is_durable_is_sent() {
    let running = Site::default().start().await;
    let replica = running.replica(1, 1);
    running.fill(&replica, 1, 0, 10).await;
    for (from, end, to) in [(0, 10, 10), (3, 7, 7), (0, 100, 10), (10, 20, 10), (50, 60, 50)] {
        assert_eq!(read(&running, &replica, from, end).await, entries(&replica, from, to.max(from)), "{from}..{end}");
    }
    assert!(read(&running, &replica, 0, 0).await.is_empty(), "nothing is known to be acked");
    assert!(read(&running, &running.replica(9, 9), 0, 5).await.is_empty());
    let mut follower = open(&running, request(&replica, 8, 14, true)).await;
    expect(&mut follower, &replica, 8, 10).await;
    let stream = running.stream().await;
    stream.send(&replica, 1, 10, 30).await;
    expect(&mut follower, &replica, 10, 14).await;
    assert_eq!(within("the end", follower.message()).await.unwrap(), None);
    running.stop().await;
}

#[tokio::test]
async fn an_answer_is_as_large_as_the_caller_said() {
    let running = Site::default().start().await;
    let replica = running.replica(1, 1);
    running.fill(&replica, 1, 0, 100).await;
    let small = ReadRequest { max_bytes: 30, ..request(&replica, 0, 100, false) };
    let mut answers = open(&running, small).await;
    while let Some(answer) = within("an answer", answers.message()).await.unwrap() {
        let bytes: usize = answer.entries.iter().map(Bytes::len).sum();
        assert!(answer.entries.len() == 1 || bytes <= 30, "{bytes} bytes");
    }
    running.stop().await;
}

/// Every store restarts, nobody writes: what was acked is there, pushed to who follows.
#[tokio::test]
async fn the_tail_of_an_idle_log_is_readable_after_a_restart() {
    let site = Site::default();
    let running = site.start().await;
    let replica = running.replica(1, 1);
    let mut stream = running.stream().await;
    stream.send(&replica, 1, 0, 5).await;
    stream.durable(&replica, 5).await;
    stream.put(committed(&replica, 1, 5)).await;
    let written = async {
        loop {
            let facts = running.facts().list("replica/").await.unwrap();
            let text: Vec<_> =
                facts.items.iter().map(|item| String::from_utf8_lossy(&item.value).into_owned()).collect();
            if text.iter().any(|text| text.contains("\"committed\":5")) {
                return;
            }
            Clock::system().sleep(Duration::from_millis(5)).await;
        }
    };
    within("writing down what is acked", written).await;
    // As a crash leaves it: nothing more is written after this.
    running.stop().await;
    let running = site.start().await;
    let mut answers = open(&running, request(&replica, 0, 0, true)).await;
    expect(&mut answers, &replica, 0, 5).await;
    running.stop().await;
}

#[tokio::test]
async fn a_reader_of_a_released_replica_is_told_so() {
    let running = Site::default().start().await;
    let replica = running.replica(1, 1);
    running.fill(&replica, 1, 0, 5).await;
    let mut follower = open(&running, request(&replica, 0, 0, true)).await;
    let release = ReleaseRequest { replica: Some(replica.clone()) };
    running.client.clone().release(release).await.unwrap();
    let status = within("the end", follower.message()).await.unwrap_err();
    assert_eq!(refusal(&status).code(), Code::Released);
    let status = running.client.clone().read(request(&replica, 0, 5, false)).await.unwrap_err();
    assert_eq!(refusal(&status).code(), Code::Released);
    running.stop().await;
}

#[tokio::test]
async fn a_flipped_bit_is_an_error_and_never_other_bytes() {
    let site = Site::default();
    let running = site.start().await;
    let replica = running.replica(1, 1);
    running.fill(&replica, 1, 0, 5).await;
    running.fill(&replica, 1, 5, 10).await;
    running.stop().await;
    super::restart::damage(site.dir.path(), b"a/1/1#3", |bytes| bytes[6] ^= 1);
    let running = site.start().await;
    let mut answers = open(&running, request(&replica, 0, 10, false)).await;
    let status = within("an answer", answers.message()).await.unwrap_err();
    assert_eq!((status.code(), refusal(&status).code()), (tonic::Code::DataLoss, Code::Corrupt));
    assert_eq!(read(&running, &replica, 5, 10).await, entries(&replica, 5, 10), "the other block is whole");
    running.stop().await;
}

#[tokio::test]
async fn who_follows_before_the_first_entry_waits_for_it_and_leaves_nothing_behind() {
    let running = Site::default().start().await;
    let replica = running.replica(1, 1);
    let mut follower = open(&running, request(&replica, 0, 3, true)).await;
    let early = Clock::system().timeout(Duration::from_millis(50), follower.message()).await;
    assert!(early.is_err(), "{early:?}");
    let other = open(&running, request(&running.replica(7, 7), 0, 0, true)).await;
    assert_eq!(running.store.store.known(), 2);
    running.fill(&replica, 1, 0, 3).await;
    expect(&mut follower, &replica, 0, 3).await;
    drop(other);
    let forgotten = async {
        while running.store.store.known() > 1 {
            Clock::system().sleep(Duration::from_millis(5)).await;
        }
    };
    within("forgetting", forgotten).await;
    running.stop().await;
}

/// Ten thousand of them cost memory and nothing else.
#[tokio::test]
async fn a_follower_at_the_tail_wakes_for_its_own_replica_only() {
    let running = Site::default().start().await;
    let (busy, idle) = (running.replica(1, 1), running.replica(2, 1));
    running.fill(&idle, 1, 0, 1).await;
    let mut follower = open(&running, request(&idle, 0, 0, true)).await;
    let mut stream = running.stream().await;
    for first in 0..50 {
        stream.put(AppendRequest { committed: first, ..frame(&busy, 1, first, first + 1) }).await;
    }
    stream.durable(&busy, 50).await;
    stream.put(committed(&idle, 1, 1)).await;
    expect(&mut follower, &idle, 0, 1).await;
    running.stop().await;
}
