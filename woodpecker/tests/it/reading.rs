//! Readers at the tail, behind it, across segments and owners, and where nothing is left to read.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use woodpecker::{Entry, EntryId, Position, ReadError};
use woodpecker_base::{
    clock::Clock,
    metadata::{Call, Interference, MetadataError},
};

use crate::{
    on_every_medium,
    world::{World, append, append_all, payload, quiet, read, soon, text},
};

on_every_medium!(
    a_reader_follows_owners_and_rolls_in_other_processes,
    a_reader_waits_for_a_log_that_nobody_writes,
    a_dropped_read_loses_nothing,
    a_reader_far_behind_catches_up,
    positions_between_entries_find_the_next,
    a_truncated_position_is_an_error,
    a_time_leads_to_the_segment_that_was_open_then,
    a_deleted_log_is_an_error,
);

async fn a_reader_follows_owners_and_rolls_in_other_processes(mut world: World) {
    world.segment_bytes = 100;
    let reading = world.process().await;
    let log = reading.log("log").await;
    let mut reader = log.reader(Position::Earliest);
    let mut latest = log.reader(Position::Latest);
    assert!(quiet(latest.next()).await);
    for owner in 0..3 {
        let process = world.process().await;
        let writer = process.log("log").await.open_writer().await.unwrap();
        let written = append_all(&writer, &format!("owner-{owner}"), 50).await;
        assert_eq!(read(&mut reader, 50).await, written);
        assert_eq!(read(&mut latest, 50).await, written);
        if owner == 1 {
            writer.close().await.unwrap();
        }
    }
    let segments = log.describe().await.unwrap().segments;
    assert!(segments.len() > 10, "it rolled: {}", segments.len());
    assert!(segments.iter().map(|s| s.segment).eq(1..=segments.len() as u64), "numbered from 1 without a gap");
}

async fn a_reader_waits_for_a_log_that_nobody_writes(world: World) {
    let (one, two) = (world.process().await, world.process().await);
    let log = one.log("log").await;
    let mut readers = [Position::Earliest, Position::Latest].map(|position| log.reader(position));
    for reader in &mut readers {
        assert!(quiet(reader.next()).await);
    }
    assert_eq!(log.last_entry().await.unwrap(), None);
    let writer = two.log("log").await.open_writer().await.unwrap();
    let id = append(&writer, "first").await;
    assert_eq!(id, EntryId { segment: 1, entry: 0 });
    for reader in &mut readers {
        assert_eq!(read(reader, 1).await, [(id, "first".to_owned())]);
    }
    assert_eq!(log.last_entry().await.unwrap(), Some(id));
}

async fn a_dropped_read_loses_nothing(mut world: World) {
    world.segment_bytes = 300;
    let process = world.process().await;
    let log = process.log("log").await;
    let writer = log.open_writer().await.unwrap();
    let mut reader = log.reader(Position::Earliest);
    let mut seen = Vec::new();
    let mut written = Vec::new();
    let clock = Clock::system();
    for number in 0..200 {
        written.push((append(&writer, &number.to_string()).await, number.to_string()));
        for _ in 0..3 {
            if let Ok(entries) = clock.timeout(Duration::from_micros(number), reader.next()).await {
                seen.extend(entries.unwrap().iter().map(text));
            }
        }
    }
    let rest = written.len() - seen.len();
    seen.extend(read(&mut reader, rest).await);
    assert_eq!(seen, written);
}

async fn a_reader_far_behind_catches_up(mut world: World) {
    world.segment_bytes = 4 << 20;
    let process = world.process().await;
    let log = process.log("log").await;
    let writer = log.open_writer().await.unwrap();
    // From much smaller to much larger than what is read at once, and none at all.
    let sizes = [100, 0, 70_000, 10, 1 << 20, 3_000].into_iter().cycle().take(120);
    let mut written = Vec::new();
    let mut appends = Vec::new();
    for (number, size) in sizes.enumerate() {
        writer.reserve().await;
        let body = Bytes::from(vec![u8::try_from(number).unwrap(); size]);
        appends.push(writer.append(vec![body.clone(), payload("second")]));
        written.push(body);
    }
    let mut ids = Vec::new();
    for append in appends {
        let appended = soon("append", append).await.unwrap();
        assert_eq!(appended.count, 2);
        ids.push(appended.first);
    }
    let other = world.process().await;
    for log in [log, other.log("log").await] {
        let mut reader = log.reader(Position::Earliest);
        let mut entries: Vec<Entry> = Vec::new();
        while entries.len() < 2 * written.len() {
            entries.extend(soon("catch up", reader.next()).await.unwrap());
        }
        for (pair, (id, body)) in entries.chunks(2).zip(ids.iter().zip(&written)) {
            assert_eq!((pair[0].id, &pair[0].payload), (*id, body));
            assert_eq!(pair[1].id, EntryId { segment: id.segment, entry: id.entry + 1 });
        }
    }
}

async fn positions_between_entries_find_the_next(world: World) {
    let process = world.process().await;
    let log = process.log("log").await;
    for _ in 0..2 {
        let writer = log.open_writer().await.unwrap();
        append_all(&writer, "x", 3).await;
        writer.close().await.unwrap();
    }
    // A segment that holds nothing.
    log.open_writer().await.unwrap().close().await.unwrap();
    let beyond_first = EntryId { segment: 1, entry: 77 };
    for position in [Position::At(beyond_first), Position::After(beyond_first)] {
        let found = read(&mut log.reader(position), 3).await;
        assert_eq!(found[0].0, EntryId { segment: 2, entry: 0 });
    }
    let start = EntryId { segment: 0, entry: 0 };
    assert_eq!(read(&mut log.reader(Position::At(start)), 6).await[0].0, EntryId { segment: 1, entry: 0 });
    let mut ahead = log.reader(Position::At(EntryId { segment: 4, entry: 1 }));
    assert!(quiet(ahead.next()).await);
    let writer = log.open_writer().await.unwrap();
    append(&writer, "before").await;
    assert!(quiet(ahead.next()).await);
    let id = append(&writer, "there").await;
    assert_eq!(read(&mut ahead, 1).await, [(id, "there".to_owned())]);
}

async fn a_time_leads_to_the_segment_that_was_open_then(world: World) {
    let process = world.process().await;
    let (log, clock) = (process.log("log").await, Clock::system());
    let beginning = clock.wall_ms();
    assert_eq!(log.position_at(0).await.unwrap(), EntryId { segment: 1, entry: 0 }, "a log without segments");
    let mut times = Vec::new();
    for owner in 0..3 {
        let writer = log.open_writer().await.unwrap();
        let written = append_all(&writer, &format!("owner-{owner}"), 5).await;
        clock.sleep(Duration::from_millis(20)).await;
        times.push((clock.wall_ms(), written[0].0.segment));
        append(&writer, "after").await;
        clock.sleep(Duration::from_millis(20)).await;
        soon("close", writer.close()).await.unwrap();
        clock.sleep(Duration::from_millis(20)).await;
    }
    for (wall, segment) in &times {
        assert_eq!(log.position_at(*wall).await.unwrap(), EntryId { segment: *segment, entry: 0 });
    }
    assert_eq!(log.position_at(beginning).await.unwrap(), EntryId { segment: times[0].1, entry: 0 });
    let next = EntryId { segment: times[2].1 + 1, entry: 0 };
    assert_eq!(log.position_at(clock.wall_ms()).await.unwrap(), next, "what is to come");
    // What is truncated is no place to start at.
    let up_to = EntryId { segment: times[1].1, entry: 2 };
    log.truncate(up_to).await.unwrap();
    assert_eq!(log.position_at(beginning).await.unwrap(), EntryId { entry: 3, ..up_to });
    // Of an open segment, its beginning: entries carry no time.
    let writer = log.open_writer().await.unwrap();
    append(&writer, "last").await;
    assert_eq!(log.position_at(clock.wall_ms()).await.unwrap().entry, 0);
}

async fn a_truncated_position_is_an_error(mut world: World) {
    world.segment_bytes = 100;
    let (process, other) = (world.process().await, world.process().await);
    let log = process.log("log").await;
    let writer = log.open_writer().await.unwrap();
    let written = append_all(&writer, "entry", 100).await;
    let mut slow = other.log("log").await.reader(Position::Earliest);
    let first = soon("first", slow.next()).await.unwrap();
    assert!(first.len() < 50);
    let before = log.describe().await.unwrap().segments.len();
    let (up_to, _) = written[60];
    log.truncate(up_to).await.unwrap();
    log.truncate(written[10].0).await.unwrap();
    process.maintain().await;
    let described = log.describe().await.unwrap();
    assert_eq!(described.truncated, Some(up_to));
    assert!(described.segments.len() < before && described.segments.len() > 1, "only what lies wholly below is gone");
    assert_eq!(read(&mut log.reader(Position::Earliest), 39).await, written[61..]);
    assert_eq!(read(&mut log.reader(Position::After(up_to)), 39).await, written[61..]);
    let lost = log.reader(Position::At(written[5].0)).next().await.unwrap_err();
    let earliest = EntryId { segment: up_to.segment, entry: up_to.entry + 1 };
    assert!(matches!(lost, ReadError::PositionLost { earliest: at } if at == earliest), "{lost}");
    // A reader that was on its way meets what is still there or an error, never a gap.
    let mut expected = written[first.len()..].iter();
    while expected.len() > 0 {
        match soon("slow", slow.next()).await {
            Ok(entries) => entries.iter().for_each(|entry| assert_eq!(&text(entry), expected.next().unwrap())),
            Err(error) => {
                assert!(matches!(error, ReadError::PositionLost { earliest: at } if at == earliest), "{error}");
                break;
            }
        }
    }
    // The owner notices nothing.
    append(&writer, "on").await;
    // What does not exist yet cannot be truncated.
    log.truncate(EntryId { segment: 1_000, entry: 0 }).await.unwrap();
    let id = append(&writer, "alive").await;
    assert_eq!(read(&mut log.reader(Position::Earliest), 1).await, [(id, "alive".to_owned())]);
}

async fn a_deleted_log_is_an_error(world: World) {
    let (process, other) = (world.process().await, world.process().await);
    let log = process.log("log").await;
    let writer = log.open_writer().await.unwrap();
    append(&writer, "x").await;
    let mut readers = [log.reader(Position::Latest), other.log("log").await.reader(Position::Latest)];
    for reader in &mut readers {
        assert!(quiet(reader.next()).await);
    }
    other.client.delete_log("log").await.unwrap();
    for reader in &mut readers {
        let error = soon("deletion", reader.next()).await.unwrap_err();
        assert!(matches!(error, ReadError::Deleted), "{error}");
    }
    assert_eq!(soon("fence", writer.append(vec![payload("late")])).await.unwrap_err().code(), "LOG_FENCED");
    assert_eq!(process.client.open_log("log").await.unwrap_err().code(), "LOG_NOT_FOUND");
    assert_eq!(log.describe().await.unwrap_err().code(), "LOG_NOT_FOUND");
    assert_eq!(other.client.delete_log("log").await.unwrap_err().code(), "LOG_NOT_FOUND");
    let again = process.client.create_log("log").await.unwrap();
    assert_eq!(process.client.create_log("log").await.unwrap_err().code(), "LOG_EXISTS");
    assert_eq!(again.describe().await.unwrap().id, 2, "an id never returns");
    assert_eq!(again.last_entry().await.unwrap(), None);
    let writer = again.open_writer().await.unwrap();
    let id = append(&writer, "new").await;
    assert_eq!(read(&mut other.log("log").await.reader(Position::Earliest), 1).await, [(id, "new".to_owned())]);
}

/// Refuses so often to be watched.
#[derive(Debug)]
struct Refusing(AtomicUsize);

#[async_trait]
impl Interference for Refusing {
    async fn before(&self, call: Call) -> Result<(), MetadataError> {
        let one_less = |left: usize| left.checked_sub(1);
        if call == Call::Watch && self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less).is_ok() {
            return Err(MetadataError::Invalid("permission denied".to_owned()));
        }
        Ok(())
    }
}

#[tokio::test]
async fn who_may_not_watch_the_logs_at_first_follows_them_when_it_may() {
    let world = World::memory().await;
    let (reading, store) = world.process_behind(Refusing(AtomicUsize::new(2))).await;
    let mut reader = reading.log("log").await.reader(Position::Earliest);
    assert!(quiet(reader.next()).await);
    let writer = world.process().await.log("log").await.open_writer().await.unwrap();
    let id = append(&writer, "first").await;
    assert_eq!(read(&mut reader, 1).await, [(id, "first".to_owned())]);
    assert_eq!(store.by.0.load(Ordering::Acquire), 0);
}
