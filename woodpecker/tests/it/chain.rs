//! Segments under load: rolling, order, bounds.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream::FuturesOrdered};
use woodpecker::{EntryId, Position};
use woodpecker_base::clock::Clock;

use crate::{
    on_every_medium,
    world::{World, append, payload, quiet, read, read_all, soon},
};

on_every_medium!(
    rolling_under_load_keeps_order_and_loses_nothing,
    a_segment_with_something_in_it_rolls_at_its_age,
    an_append_is_never_split,
    what_is_in_flight_is_bounded,
    many_logs_share_a_process,
    names_are_checked,
);

async fn rolling_under_load_keeps_order_and_loses_nothing(mut world: World) {
    world.segment_bytes = 2_000;
    // Less than all of it, so that what comes next meets a full segment.
    world.in_flight_bytes = 4_000;
    let (process, other) = (world.process().await, world.process().await);
    let log = process.log("log").await;
    let writer = log.open_writer().await.unwrap();
    let mut local = log.reader(Position::Earliest);
    let mut remote = other.log("log").await.reader(Position::Earliest);
    let writing = async {
        let mut appends = FuturesOrdered::new();
        let mut written = Vec::new();
        for number in 0..5_000 {
            writer.reserve().await;
            appends.push_back(writer.append(vec![payload(&number.to_string())]));
        }
        while let Some(appended) = soon("append", appends.next()).await {
            written.push((appended.unwrap().first, written.len().to_string()));
        }
        written
    };
    let (mut written, seen_here, seen_there) = tokio::join!(writing, read(&mut local, 5_000), read(&mut remote, 5_000));
    assert_eq!(seen_here, written);
    assert_eq!(seen_there, written);
    // Appends wait for no roll, so on a slow machine it may take a few more until it has rolled so often.
    while written.last().is_some_and(|(id, _)| id.segment < 4) {
        let number = written.len().to_string();
        written.push((append(&writer, &number).await, number));
    }
    soon("close", writer.close()).await.unwrap();
    let segments = log.describe().await.unwrap().segments;
    assert_eq!(segments.iter().map(|s| s.entries.unwrap()).sum::<u64>(), written.len() as u64);
    assert_eq!(segments.iter().map(|s| s.bytes.unwrap()).sum::<u64>(), bytes(&written));
    assert_eq!(read_all(&log).await, written);
}

fn bytes(written: &[(EntryId, String)]) -> u64 {
    written.iter().map(|(_, payload)| payload.len() as u64).sum()
}

async fn a_segment_with_something_in_it_rolls_at_its_age(mut world: World) {
    world.segment_age = Duration::from_millis(50);
    let process = world.process().await;
    let log = process.log("log").await;
    let writer = log.open_writer().await.unwrap();
    Clock::system().sleep(Duration::from_millis(60)).await;
    assert_eq!(append(&writer, "an empty segment is not rolled").await.segment, 1);
    Clock::system().sleep(Duration::from_millis(60)).await;
    let rolled = async { while append(&writer, "x").await.segment == 1 {} };
    soon("roll", rolled).await;
}

async fn an_append_is_never_split(mut world: World) {
    world.segment_bytes = 50;
    let process = world.process().await;
    let log = process.log("log").await;
    let writer = log.open_writer().await.unwrap();
    let mut appends = FuturesOrdered::new();
    for _ in 0..200 {
        appends.push_back(writer.append((0..7).map(|n| payload(&n.to_string())).collect()));
        tokio::task::yield_now().await;
    }
    let mut segments = Vec::new();
    while let Some(appended) = soon("append", appends.next()).await {
        let appended = appended.unwrap();
        assert_eq!(appended.count, 7);
        segments.push(appended.first.segment);
    }
    // Appends wait for no roll, so on a slow machine it may take a few more until there was one.
    while segments.last() == segments.first() {
        let seven = writer.append((0..7).map(|n| payload(&n.to_string())).collect());
        segments.push(soon("append", seven).await.unwrap().first.segment);
    }
    assert!(segments.is_sorted());
    let entries = read(&mut log.reader(Position::Earliest), 7 * segments.len()).await;
    for seven in entries.chunks(7) {
        assert!(seven.iter().all(|(id, _)| id.segment == seven[0].0.segment));
        assert!(seven.iter().map(|(_, text)| text.as_str()).eq(["0", "1", "2", "3", "4", "5", "6"]));
    }
    let nothing = soon("an empty append", writer.append(Vec::new())).await.unwrap();
    assert_eq!(nothing.count, 0);
}

async fn what_is_in_flight_is_bounded(mut world: World) {
    world.in_flight_bytes = 1_000;
    let process = world.process().await;
    let writer = process.log("log").await.open_writer().await.unwrap();
    soon("room", writer.reserve()).await;
    let appends: Vec<_> = (0..20).map(|_| writer.append(vec![Bytes::from(vec![0; 900])])).collect();
    // Nothing was awaited yet, so nothing can have been acked on this thread.
    let refused = writer.append(vec![payload("too much")]).await.unwrap_err();
    assert_eq!((refused.code(), refused.is_retryable(), refused.has_side_effects()), ("LOG_OVERLOADED", true, false));
    soon("room", writer.reserve()).await;
    let mut acked = 0;
    for append in appends {
        acked += usize::from(soon("append", append).await.is_ok());
    }
    assert!((8..20).contains(&acked), "{acked}");
    let huge = writer.append(vec![Bytes::from(vec![0; 128 << 20])]).await.unwrap_err();
    assert_eq!(huge.code(), "LOG_TOO_LARGE");
    append(&writer, "none of this was final").await;
}

async fn many_logs_share_a_process(world: World) {
    let process = world.process().await;
    let mut writers = Vec::new();
    for number in 0..200 {
        writers.push(process.log(&format!("log-{number:03}")).await.open_writer().await.unwrap());
    }
    for round in 0..3 {
        let appends: Vec<_> =
            writers.iter().enumerate().map(|(n, w)| w.append(vec![payload(&format!("{n}-{round}"))])).collect();
        for append in appends {
            soon("append", append).await.unwrap();
        }
    }
    for number in [0, 99, 199] {
        let log = process.log(&format!("log-{number:03}")).await;
        let mut reader = log.reader(Position::Earliest);
        let texts: Vec<String> = read(&mut reader, 3).await.into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts, (0..3).map(|round| format!("{number}-{round}")).collect::<Vec<_>>());
        assert!(quiet(reader.next()).await);
    }
}

async fn names_are_checked(world: World) {
    let process = world.process().await;
    for bad in ["", "a/b", "a b", "ä", &"x".repeat(256)] {
        assert_eq!(process.client.create_log(bad).await.unwrap_err().code(), "LOG_BAD_NAME", "{bad:?}");
        assert_eq!(process.client.open_log(bad).await.unwrap_err().code(), "LOG_NOT_FOUND", "{bad:?}");
    }
    process.log("by-dev-rootcoord-dml_0.v1").await;
}
