//! What every [`Backend`] must do, as tests that run on any of them: [`conformance_tests!`](crate::conformance_tests).

#![allow(clippy::expect_used, clippy::panic, clippy::missing_panics_doc, reason = "a test suite fails by panicking")]

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use woodpecker_base::clock::Clock;

use crate::backend::{Backend, SegmentEnd, StoreError};

mod segment;

pub use segment::Owner;
use segment::{Open, entry, expect, fence, open, read_out, tail, within};

/// A medium under test: where processes come and go.
#[async_trait]
pub trait Medium: Send + Sync + fmt::Debug {
    /// A backend of its own on the medium, as another process would have it.
    async fn process(&self) -> Arc<dyn Backend>;

    /// Ends a process at once, as a crash does: nothing it had queued is written any more, what it had not made
    /// durable may be lost, its backend is used no more.
    async fn kill(&self, process: Arc<dyn Backend>);
}

/// One `#[tokio::test]` for each rule, on a fresh medium each.
#[macro_export]
macro_rules! conformance_tests {
    ($medium:expr) => {
        $crate::conformance_tests!(@ $medium =>
            entries_are_numbered_in_call_order_without_a_gap,
            an_ack_means_readable_by_another_process,
            acks_only_grow_and_reach_every_append,
            entries_too_large_for_a_block_are_refused,
            a_read_returns_at_least_one_entry_and_fits_the_limit,
            a_read_at_the_tail_is_empty,
            readable_wakes_when_the_entry_is_durable,
            a_closed_segment_ends_where_its_record_says,
            many_segments_interleave_without_mixing,
            a_segment_without_appends_is_like_any_other,
            others_that_create_a_segment_in_vain_leave_its_owner_alone,
            a_fence_stops_the_writer_and_keeps_what_was_acked,
            a_fence_of_an_empty_segment_gives_zero_and_stops_its_writer,
            fencing_twice_gives_the_same_tail,
            fences_that_race_agree,
            a_fence_cuts_cleanly_through_a_writer_at_full_speed,
            a_fenced_segment_leaves_the_others_whole,
            what_was_acked_survives_a_crash,
            deleting_twice_is_no_error_and_spares_the_others,
            closing_drains_what_is_queued,
        );
    };
    (@ $medium:expr => $($name:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                $crate::conformance::$name(&$medium).await;
            }
        )*
    };
}

pub async fn entries_are_numbered_in_call_order_without_a_gap(medium: &dyn Medium) {
    let backend = medium.process().await;
    let opened = Open::create(&backend, 7).await;
    let mut next = 0;
    for count in [1, 3, 1, 100, 2] {
        let entries = (next..next + count).map(|number| entry(opened.key, number)).collect();
        assert_eq!(opened.writer.append(entries).expect("append"), next);
        next += count;
    }
    assert_eq!(opened.writer.append(Vec::new()).expect("append"), next, "nothing appended takes no number");
    opened.owner.wait_acked(next).await;
    let reader = open(&backend, opened.key, opened.placement(), None).await;
    expect(&reader, opened.key, 0, next).await;
    assert_eq!(opened.owner.acked_now(), next);
}

pub async fn an_ack_means_readable_by_another_process(medium: &dyn Medium) {
    let (writing, reading) = (medium.process().await, medium.process().await);
    let opened = Open::create(&writing, 1).await;
    for round in 0..5 {
        opened.fill(round * 10, (round + 1) * 10).await;
        let reader = open(&reading, opened.key, opened.placement(), None).await;
        expect(&reader, opened.key, 0, (round + 1) * 10).await;
        assert_eq!(tail(&reader).await, (round + 1) * 10);
    }
    let reader = open(&reading, opened.key, opened.placement(), None).await;
    expect(&reader, opened.key, 33, 50).await;
}

pub async fn acks_only_grow_and_reach_every_append(medium: &dyn Medium) {
    let backend = medium.process().await;
    let opened = Open::create(&backend, 1).await;
    // The owner asserts the order of what it is told.
    opened.fill(0, 2_000).await;
    assert_eq!(opened.owner.acked_now(), 2_000);
}

pub async fn entries_too_large_for_a_block_are_refused(medium: &dyn Medium) {
    let backend = medium.process().await;
    let opened = Open::create(&backend, 1).await;
    let limit = backend.max_append_bytes();
    let half = Bytes::from(vec![1; limit / 2 + 1]);
    match opened.writer.append(vec![half.clone(), half]) {
        Err(StoreError::TooLarge { bytes, limit: said }) => assert_eq!((bytes, said), (limit / 2 * 2 + 2, limit)),
        other => panic!("expected TooLarge, got {other:?}"),
    }
    opened.fill(0, 3).await;
    let largest = Bytes::from(vec![2; limit]);
    assert_eq!(opened.writer.append(vec![largest.clone()]).expect("the limit itself fits"), 3);
    opened.owner.wait_acked(4).await;
    let reader = open(&backend, opened.key, opened.placement(), None).await;
    assert_eq!(reader.read(3, 10).await.expect("read"), [largest]);
}

pub async fn a_read_returns_at_least_one_entry_and_fits_the_limit(medium: &dyn Medium) {
    let (writing, reading) = (medium.process().await, medium.process().await);
    let opened = Open::create(&writing, 1).await;
    opened.fill(0, 300).await;
    for backend in [&writing, &reading] {
        let reader = open(backend, opened.key, opened.placement(), Some(300)).await;
        assert_eq!(reader.read_before(17, 19, 100_000).await.expect("read").len(), 2);
        assert!(reader.read_before(17, 17, 100_000).await.expect("read").is_empty());
        assert_eq!(reader.read_before(299, 1_000, 100_000).await.expect("read").len(), 1);
        for from in [0, 1, 17, 298, 299] {
            for max_bytes in [0, 1, 150, 1_000, 100_000] {
                let entries = reader.read(from, max_bytes).await.expect("read");
                assert!(!entries.is_empty(), "read({from}, {max_bytes}) is empty");
                let bytes: usize = entries.iter().map(Bytes::len).sum();
                assert!(entries.len() == 1 || bytes <= max_bytes, "read({from}, {max_bytes}) gave {bytes} bytes");
                for (number, bytes) in (from..).zip(&entries) {
                    assert_eq!(*bytes, entry(opened.key, number));
                }
            }
        }
    }
}

pub async fn a_read_at_the_tail_is_empty(medium: &dyn Medium) {
    let (writing, reading) = (medium.process().await, medium.process().await);
    let opened = Open::create(&writing, 1).await;
    for backend in [&writing, &reading] {
        let reader = open(backend, opened.key, opened.placement(), None).await;
        assert!(reader.read(0, 100).await.expect("read").is_empty());
        assert!(reader.read(1_000, 100).await.expect("read").is_empty());
    }
    opened.fill(0, 5).await;
    for backend in [&writing, &reading] {
        let reader = open(backend, opened.key, opened.placement(), None).await;
        expect(&reader, opened.key, 0, 5).await;
        assert!(reader.read(5, 100).await.expect("read").is_empty());
        assert!(reader.read(u64::MAX, 100).await.expect("read").is_empty());
    }
}

pub async fn readable_wakes_when_the_entry_is_durable(medium: &dyn Medium) {
    let (writing, reading) = (medium.process().await, medium.process().await);
    let opened = Open::create(&writing, 1).await;
    for (round, backend) in [&writing, &reading, &writing].into_iter().enumerate() {
        let next = round as u64;
        let reader = open(backend, opened.key, opened.placement(), None).await;
        let mut readable = reader.readable(next);
        let early = Clock::system().timeout(Duration::from_millis(50), &mut readable).await;
        assert!(early.is_err(), "entry {next} was said to be readable before it was appended");
        let append = async {
            opened.fill(next, next + 1).await;
        };
        within("append and wake", futures::future::join(append, readable)).await;
        expect(&reader, opened.key, 0, next + 1).await;
    }
}

pub async fn a_closed_segment_ends_where_its_record_says(medium: &dyn Medium) {
    let (writing, reading) = (medium.process().await, medium.process().await);
    let opened = Open::create(&writing, 1).await;
    opened.fill(0, 40).await;
    for backend in [&writing, &reading] {
        for end in [0, 1, 25, 40] {
            let reader = open(backend, opened.key, opened.placement(), Some(end)).await;
            assert_eq!(read_out(&reader, opened.key).await, end);
            assert!(reader.read(end, 100).await.expect("read").is_empty());
            assert!(reader.read(end + 1, 100).await.expect("read").is_empty());
            assert_eq!(tail(&reader).await, end);
        }
    }
}

pub async fn many_segments_interleave_without_mixing(medium: &dyn Medium) {
    let (writing, reading) = (medium.process().await, medium.process().await);
    let mut segments = Vec::new();
    for log in 0..50 {
        segments.push(Open::create(&writing, log).await);
    }
    for round in 0..40 {
        for opened in &segments {
            let number = opened.writer.append(vec![entry(opened.key, round)]).expect("append");
            assert_eq!(number, round);
        }
        if round % 10 == 0 {
            segments[0].owner.wait_acked(round + 1).await;
        }
    }
    for opened in &segments {
        opened.owner.wait_acked(40).await;
    }
    for opened in &segments {
        for backend in [&writing, &reading] {
            let reader = open(backend, opened.key, opened.placement(), Some(40)).await;
            assert_eq!(read_out(&reader, opened.key).await, 40);
        }
    }
}

pub async fn a_segment_without_appends_is_like_any_other(medium: &dyn Medium) {
    let (creating, other) = (medium.process().await, medium.process().await);
    let first = Open::create(&creating, 1).await;
    let second = Open::create(&creating, 1).await;
    for backend in [&creating, &other] {
        for end in [None, Some(0)] {
            let reader = open(backend, first.key, first.placement(), end).await;
            assert_eq!(tail(&reader).await, 0);
            assert!(reader.read(0, 100).await.expect("read").is_empty());
        }
    }
    second.fill(0, 5).await;
    let unused = Open::create(&creating, 2).await;
    medium.kill(creating).await;
    assert_eq!(fence(&other, second.key, second.placement()).await, 5);
    assert_eq!(fence(&other, unused.key, unused.placement()).await, 0);
    let reader = open(&other, unused.key, unused.placement(), Some(0)).await;
    assert_eq!(read_out(&reader, unused.key).await, 0);
    within("delete", other.delete(unused.key, unused.placement())).await.expect("delete");
}

/// Of those who create a segment one becomes its owner, not always the last; in one process, too.
pub async fn others_that_create_a_segment_in_vain_leave_its_owner_alone(medium: &dyn Medium) {
    let process = medium.process().await;
    for (log, filled_before) in [(1, 0), (2, 3)] {
        let owner = Open::create(&process, log).await;
        owner.fill(0, filled_before).await;
        let kept = [Open::create(&process, log).await, Open::create(&process, log).await];
        drop(Open::create(&process, log).await);
        let reader = open(&process, owner.key, owner.placement(), None).await;
        let waiting = reader.readable(4);
        let filling = owner.fill(filled_before, 5);
        within("what is appended to be there", async { tokio::join!(waiting, filling) }).await;
        assert_eq!(tail(&reader).await, 5);
        assert_eq!(fence(&process, owner.key, owner.placement()).await, 5);
        wait_fenced(&owner).await;
        drop(kept);
    }
}

/// Appends after a fence until the writer is told of it: backends may look for a fence only when they write.
async fn wait_fenced(opened: &Open) {
    let mut told = opened.owner.told.subscribe();
    within("the writer to meet the fence", async {
        loop {
            let next = match opened.writer.append(vec![Bytes::from_static(b"after the fence")]) {
                Ok(number) => number,
                Err(StoreError::Ended) => break,
                Err(other) => panic!("append after a fence: {other}"),
            };
            let acked = told.wait_for(|told| told.acked > next || told.end.is_some()).await.expect("own").acked;
            assert!(acked <= next, "acked({acked}) after the fence");
        }
    })
    .await;
    let end = opened.owner.wait_ended().await;
    assert!(matches!(end, SegmentEnd::Fenced), "the fenced segment ended as {end:?}");
    let after = opened.writer.append(vec![Bytes::from_static(b"after the end")]);
    assert!(matches!(after, Err(StoreError::Ended)), "append after the end: {after:?}");
}

pub async fn a_fence_stops_the_writer_and_keeps_what_was_acked(medium: &dyn Medium) {
    let (old, new) = (medium.process().await, medium.process().await);
    let opened = Open::create(&old, 1).await;
    opened.fill(0, 30).await;
    let tail = fence(&new, opened.key, opened.placement()).await;
    assert_eq!(tail, 30);
    wait_fenced(&opened).await;
    assert_eq!(opened.owner.acked_now(), 30);
    for backend in [&old, &new] {
        let reader = open(backend, opened.key, opened.placement(), Some(tail)).await;
        assert_eq!(read_out(&reader, opened.key).await, 30);
    }
    // What the old writer stored after the fence does not exist, for a reader that knows no end either.
    let reader = open(&new, opened.key, opened.placement(), None).await;
    assert_eq!(read_out(&reader, opened.key).await, 30);
}

pub async fn a_fence_of_an_empty_segment_gives_zero_and_stops_its_writer(medium: &dyn Medium) {
    let (old, new) = (medium.process().await, medium.process().await);
    let opened = Open::create(&old, 1).await;
    assert_eq!(fence(&new, opened.key, opened.placement()).await, 0);
    wait_fenced(&opened).await;
    assert_eq!(opened.owner.acked_now(), 0);
    assert_eq!(fence(&new, opened.key, opened.placement()).await, 0);
}

pub async fn fencing_twice_gives_the_same_tail(medium: &dyn Medium) {
    let (old, new) = (medium.process().await, medium.process().await);
    let opened = Open::create(&old, 1).await;
    opened.fill(0, 10).await;
    let tail = fence(&new, opened.key, opened.placement()).await;
    // What the old writer stores now is beyond the tail for ever.
    wait_fenced(&opened).await;
    assert_eq!(fence(&new, opened.key, opened.placement()).await, tail);
    assert_eq!(fence(&old, opened.key, opened.placement()).await, tail);
    let third = medium.process().await;
    assert_eq!(fence(&third, opened.key, opened.placement()).await, tail);
}

pub async fn fences_that_race_agree(medium: &dyn Medium) {
    let old = medium.process().await;
    let takers = [medium.process().await, medium.process().await, medium.process().await];
    for log in 0..10 {
        let opened = Open::create(&old, log).await;
        let appending = append_until_ended(&opened);
        let fencing = futures::future::join_all(takers.iter().map(|taker| async {
            opened.owner.wait_acked(20).await;
            fence(taker, opened.key, opened.placement()).await
        }));
        let (_, tails) = futures::future::join(appending, fencing).await;
        assert!(tails.windows(2).all(|pair| pair[0] == pair[1]), "fences disagree: {tails:?}");
        assert!(opened.owner.acked_now() <= tails[0]);
    }
}

/// Appends as fast as it can, with at most 64 entries in flight, until the segment ends. Says how many were appended.
async fn append_until_ended(opened: &Open) -> u64 {
    let mut told = opened.owner.told.subscribe();
    let mut next = 0;
    loop {
        match opened.writer.append(vec![entry(opened.key, next)]) {
            Ok(number) => assert_eq!(number, next),
            Err(StoreError::Ended) => return next,
            Err(other) => panic!("append: {other}"),
        }
        next += 1;
        let waited = told.wait_for(|told| told.acked + 64 > next || told.end.is_some());
        drop(within("room to append", waited).await.expect("own sender"));
        tokio::task::yield_now().await;
    }
}

pub async fn a_fence_cuts_cleanly_through_a_writer_at_full_speed(medium: &dyn Medium) {
    let (old, new) = (medium.process().await, medium.process().await);
    for log in 0..60 {
        let opened = Open::create(&old, log).await;
        let race = async {
            opened.owner.wait_acked(log % 20 * 3 + 1).await;
            fence(&new, opened.key, opened.placement()).await
        };
        let (appended, tail) = futures::future::join(append_until_ended(&opened), race).await;
        let acked = opened.owner.acked_now();
        assert!(acked <= tail && tail <= appended, "acked {acked}, tail {tail}, appended {appended}");
        let end = opened.owner.wait_ended().await;
        assert!(matches!(end, SegmentEnd::Fenced), "the fenced segment ended as {end:?}");
        for backend in [&old, &new] {
            let reader = open(backend, opened.key, opened.placement(), Some(tail)).await;
            assert_eq!(read_out(&reader, opened.key).await, tail);
        }
        let unclosed = open(&new, opened.key, opened.placement(), None).await;
        assert_eq!(read_out(&unclosed, opened.key).await, tail);
    }
}

pub async fn a_fenced_segment_leaves_the_others_whole(medium: &dyn Medium) {
    let (old, new) = (medium.process().await, medium.process().await);
    let fenced = Open::create(&old, 1).await;
    let other = Open::create(&old, 2).await;
    fenced.fill(0, 10).await;
    other.fill(0, 10).await;
    assert_eq!(fence(&new, fenced.key, fenced.placement()).await, 10);
    let mut next = 10;
    // Either the other segment goes on, or it is displaced: then it holds what was acked and nothing else.
    while next < 20 && other.writer.append(vec![entry(other.key, next)]).is_ok() {
        next += 1;
    }
    let mut told = other.owner.told.subscribe();
    let told = within("an outcome", told.wait_for(|told| told.acked >= 20 || told.end.is_some())).await;
    let told = told.expect("own sender").clone();
    match told.end {
        None => assert_eq!(told.acked, 20),
        Some(SegmentEnd::Displaced) => {}
        Some(end) => panic!("the other segment ended as {end:?}"),
    }
    let reader = open(&new, other.key, other.placement(), None).await;
    expect(&reader, other.key, 0, told.acked).await;
    if told.end.is_some() {
        assert_eq!(read_out(&reader, other.key).await, told.acked, "an entry appeared that was displaced");
    }
}

pub async fn what_was_acked_survives_a_crash(medium: &dyn Medium) {
    let mut segments = Vec::new();
    for log in 0..3 {
        let process = medium.process().await;
        let opened = Open::create(&process, log).await;
        opened.fill(0, 50).await;
        for number in 50..60 {
            opened.writer.append(vec![entry(opened.key, number)]).expect("append");
        }
        medium.kill(process).await;
        segments.push(opened);
    }
    let process = medium.process().await;
    for opened in &segments {
        let tail = fence(&process, opened.key, opened.placement()).await;
        let acked = opened.owner.acked_now();
        assert!((50..=60).contains(&tail) && acked <= tail, "acked {acked}, tail {tail}");
        let reader = open(&process, opened.key, opened.placement(), Some(tail)).await;
        assert_eq!(read_out(&reader, opened.key).await, tail);
        assert_eq!(fence(&process, opened.key, opened.placement()).await, tail);
    }
    Open::create(&process, 9).await.fill(0, 5).await;
}

pub async fn deleting_twice_is_no_error_and_spares_the_others(medium: &dyn Medium) {
    let (writing, other) = (medium.process().await, medium.process().await);
    let gone = Open::create(&writing, 1).await;
    let kept = Open::create(&writing, 2).await;
    for round in 0..5 {
        gone.fill(round * 10, (round + 1) * 10).await;
        kept.fill(round * 10, (round + 1) * 10).await;
    }
    for backend in [&other, &writing, &other] {
        within("delete", backend.delete(gone.key, gone.placement())).await.expect("delete");
    }
    kept.fill(50, 60).await;
    for backend in [&writing, &other] {
        let reader = open(backend, kept.key, kept.placement(), None).await;
        expect(&reader, kept.key, 0, 60).await;
    }
    assert_eq!(fence(&other, kept.key, kept.placement()).await, 60);
}

pub async fn closing_drains_what_is_queued(medium: &dyn Medium) {
    let backend = medium.process().await;
    let opened = Open::create(&backend, 1).await;
    for number in 0..200 {
        opened.writer.append(vec![entry(opened.key, number)]).expect("append");
    }
    within("close", backend.close()).await;
    assert_eq!(opened.owner.acked_now(), 200);
    assert!(matches!(opened.writer.append(vec![Bytes::from_static(b"late")]), Err(StoreError::Ended)));
    within("closing again", backend.close()).await;
    let next = medium.process().await;
    assert_eq!(fence(&next, opened.key, opened.placement()).await, 200);
    let reader = open(&next, opened.key, opened.placement(), Some(200)).await;
    assert_eq!(read_out(&reader, opened.key).await, 200);
}
