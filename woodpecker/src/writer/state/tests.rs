use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use woodpecker_base::clock::Clock;
use woodpecker_core::{
    ids::{LogId, Placement, VolumeId},
    record::LogRecord,
};

use super::*;

const AGE: Duration = Duration::from_secs(60);

/// Takes what it is given as long as there is room, and acks nothing by itself.
#[derive(Debug)]
struct Segment {
    placement: Placement,
    entries: Mutex<Vec<Bytes>>,
    room: AtomicUsize,
}

impl SegmentWriter for Segment {
    fn placement(&self) -> &Placement {
        &self.placement
    }

    fn append(&self, entries: Vec<Bytes>) -> Result<u64, StoreError> {
        let mut held = self.entries.lock().unwrap();
        if held.len() + entries.len() > self.room.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable("the queue is full".into()));
        }
        let first = held.len() as u64;
        held.extend(entries);
        Ok(first)
    }
}

impl Segment {
    fn count(&self) -> usize {
        self.entries.lock().unwrap().len()
    }
}

struct Bench {
    state: State,
    after: After,
    appends: Vec<Append>,
}

impl Bench {
    fn new() -> Self {
        let limits = Limits { in_flight: 1 << 20, append_bytes: 1 << 20, segment_bytes: 100, segment_age: AGE };
        let found = (LogRecord::new(LogId(1), "log"), 1);
        let state = State::new(limits, found, Clock::system());
        Self { state, after: After::default(), appends: Vec::new() }
    }

    /// What settling does about [`Work::Open`]: these ends are recorded, and the segment with them.
    fn open(&mut self, segment: u64, ends: &[End]) -> Arc<Segment> {
        let placement = Placement::Volume { volume: VolumeId(1), from_batch: 0 };
        let handle = Arc::new(Segment {
            placement: placement.clone(),
            entries: Mutex::default(),
            room: AtomicUsize::new(usize::MAX),
        });
        let open = OpenSegment { segment, backend: "memory".to_owned(), placement, created_ms: 0 };
        let found = self.state.found();
        self.state.opened(found, ends, open, handle.clone(), &mut self.after);
        handle
    }

    fn append(&mut self, bytes: usize) {
        let append = self.state.append(vec![Bytes::from(vec![0; bytes])], &mut self.after);
        self.appends.push(append);
    }
}

fn end(segment: u64, entries: u64, bytes: u64) -> End {
    End { segment, entries, bytes: Some(bytes) }
}

#[tokio::test]
async fn what_was_not_acked_goes_to_no_other_segment_before_the_end_of_its_own_is_recorded() {
    let mut bench = Bench::new();
    let first = bench.open(1, &[]);
    for _ in 0..3 {
        bench.append(60);
    }
    assert_eq!(bench.state.work(), Work::Open(vec![]), "it is large enough");
    let second = bench.open(2, &[]);
    bench.append(60);
    bench.state.acked(1, 1, &mut bench.after);
    assert_eq!((first.count(), second.count()), (3, 0), "the next one waits until all of the first is acked");

    bench.state.segment_ended(1, SegmentEnd::Displaced, &mut bench.after);
    assert_eq!(second.count(), 0, "two entries may still be found in the first, and would be in the log twice");
    let ends = vec![end(1, 1, 60), end(2, 0, 0)];
    assert_eq!(bench.state.work(), Work::Open(ends.clone()));
    let third = bench.open(3, &ends);
    assert_eq!(third.count(), 3);
    bench.state.acked(3, 3, &mut bench.after);
    for (append, (segment, entry)) in bench.appends.into_iter().zip([(1, 0), (3, 0), (3, 1), (3, 2)]) {
        assert_eq!(append.await.unwrap().first, EntryId { segment, entry });
    }
}

#[tokio::test]
async fn a_segment_that_was_being_opened_when_the_one_before_was_displaced_waits_for_its_end_to_be_recorded() {
    let mut bench = Bench::new();
    bench.open(1, &[]);
    for _ in 0..3 {
        bench.append(60);
    }
    assert_eq!(bench.state.work(), Work::Open(vec![]));
    bench.state.acked(1, 1, &mut bench.after);
    bench.state.segment_ended(1, SegmentEnd::Displaced, &mut bench.after);
    let second = bench.open(2, &[]);
    bench.append(1);
    assert_eq!(second.count(), 0, "two entries may still be found in the first, and would be in the log twice");
    assert_eq!(bench.state.work(), Work::Close(vec![end(1, 1, 60)]));
    let found = bench.state.found();
    bench.state.recorded(found, &[end(1, 1, 60)], &mut bench.after);
    assert_eq!(second.count(), 3);
    assert_eq!(bench.state.work(), Work::Nothing, "no other segment was asked for meanwhile");
    bench.state.acked(2, 3, &mut bench.after);
    for (append, (segment, entry)) in bench.appends.into_iter().zip([(1, 0), (2, 0), (2, 1), (2, 2)]) {
        assert_eq!(append.await.unwrap().first, EntryId { segment, entry });
    }
}

#[tokio::test]
async fn a_writer_told_to_close_while_its_chain_stops_changing_is_closed() {
    let mut bench = Bench::new();
    bench.open(1, &[]);
    bench.append(100);
    assert!(std::mem::take(&mut bench.after.settle), "it is full");
    bench.state.close(&mut bench.after);
    bench.state.acked(1, 1, &mut bench.after);
    assert!(!bench.after.settle, "that is under way");
    bench.state.stop_settling(&mut bench.after);
    assert!(bench.after.settle);
    assert_eq!(bench.state.work(), Work::GiveUp(vec![end(1, 1, 100)]));
}

#[tokio::test]
async fn what_the_medium_has_no_room_for_keeps_its_place() {
    let mut bench = Bench::new();
    let segment = bench.open(1, &[]);
    segment.room.store(1, Ordering::Relaxed);
    for bytes in 1..=3 {
        bench.append(bytes);
    }
    assert!(bench.after.again.take().is_some());
    segment.room.store(2, Ordering::Relaxed);
    bench.append(4);
    assert_eq!(bench.after.again, None, "that is under way");
    bench.state.hand_on_again(&mut bench.after);
    assert_eq!(segment.count(), 2);
    assert!(bench.after.again.is_some());
    bench.state.acked(1, 2, &mut bench.after);
    segment.room.store(4, Ordering::Relaxed);
    bench.state.hand_on_again(&mut bench.after);
    bench.state.acked(1, 4, &mut bench.after);
    assert!(segment.entries.lock().unwrap().iter().map(Bytes::len).eq(1..=4), "a later one went first");
    for (append, entry) in bench.appends.into_iter().zip(0..) {
        assert_eq!(append.await.unwrap().first, EntryId { segment: 1, entry });
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_falls_quiet_rolls_once_and_an_empty_segment_only_to_move_elsewhere() {
    let mut bench = Bench::new();
    bench.open(1, &[]);
    assert_eq!(bench.state.work(), Work::Nothing);
    Clock::system().sleep(AGE).await;
    assert!(!bench.state.tend(false, &mut bench.after), "nothing is in it");
    bench.append(1);
    assert_eq!(bench.state.work(), Work::Open(vec![]), "the append found it old");
    bench.open(2, &[]);
    bench.state.acked(1, 1, &mut bench.after);
    assert_eq!(bench.state.work(), Work::Close(vec![end(1, 1, 1)]));
    let found = bench.state.found();
    bench.state.recorded(found, &[end(1, 1, 1)], &mut bench.after);
    assert_eq!(bench.state.work(), Work::Nothing);

    bench.append(1);
    bench.state.acked(2, 1, &mut bench.after);
    assert!(!bench.state.tend(false, &mut bench.after), "it is young");
    Clock::system().sleep(AGE).await;
    assert!(bench.state.tend(false, &mut bench.after));
    assert_eq!(bench.state.work(), Work::Open(vec![]));
    bench.open(3, &[]);
    assert_eq!(bench.state.work(), Work::Close(vec![end(2, 1, 1)]));
    let found = bench.state.found();
    bench.state.recorded(found, &[end(2, 1, 1)], &mut bench.after);
    assert_eq!(bench.state.work(), Work::Nothing);
    Clock::system().sleep(10 * AGE).await;
    assert!(!bench.state.tend(false, &mut bench.after), "it stays empty, and open");

    assert!(bench.state.tend(true, &mut bench.after));
    assert!(bench.state.tend(true, &mut bench.after), "that is under way, and not begun again");
    assert_eq!(bench.state.work(), Work::Open(vec![]));
    bench.open(4, &[]);
    assert_eq!(bench.state.work(), Work::Close(vec![end(3, 0, 0)]));
}
