//! What a write-ahead log on the engine is accepted by: several logs and terms, concurrent writers, readers from
//! everywhere.

use std::sync::Arc;

use futures::future::join_all;
use woodpecker::{Entry, EntryId, Log, Position};

use crate::{
    on_every_medium,
    world::{Process, World, append_all, payload, quiet, read, read_all, soon},
};

const LOGS: usize = 3;
const TERMS: usize = 3;
const WRITERS: usize = 5;
const MESSAGES: usize = 20;

on_every_medium!(logs_live_through_terms_with_concurrent_writers_and_readers);

async fn logs_live_through_terms_with_concurrent_writers_and_readers(world: World) {
    let process = world.process().await;
    join_all((0..LOGS).map(|log| live(&process, format!("pchannel-{log}")))).await;
    assert_eq!(process.client.list_logs("pchannel-").await.unwrap().len(), LOGS);
    assert_eq!(process.client.list_logs("pchannel-1").await.unwrap(), ["pchannel-1"]);
    soon("close", process.client.close()).await;
}

async fn live(process: &Process, name: String) {
    let log = process.log(&name).await;
    let mut all = Vec::new();
    for term in 1..=TERMS {
        let writer = Arc::new(log.open_writer().await.unwrap());
        let mut readers = [log.reader(Position::Earliest), log.reader(Position::Earliest)];
        let total = all.len() + WRITERS * MESSAGES;
        let appends = join_all((0..WRITERS).map(|number| {
            let writer = writer.clone();
            async move { append_all(&writer, &format!("{term}-{number}"), MESSAGES).await }
        }));
        let [one, two] = &mut readers;
        let (written, seen_by_one, seen_by_two) = tokio::join!(appends, read(one, total), read(two, total));
        for of_one_writer in &written {
            assert!(of_one_writer.is_sorted(), "an append after another has a larger id");
        }
        all.extend(written.into_iter().flatten());
        all.sort();
        assert_eq!(seen_by_one, all);
        assert_eq!(seen_by_two, all);
        positions(&log, &all).await;
        openings(&log).await;
        soon("close", writer.close()).await.unwrap();
        assert_eq!(writer.append(vec![payload("late")]).await.unwrap_err().code(), "LOG_CLOSED");
        // Reading needs no writer.
        assert_eq!(read_all(&log).await, all);
    }
    truncation(&log, &all).await;
}

async fn positions(log: &Log, all: &[(EntryId, String)]) {
    let middle = all.len() / 2;
    let (id, _) = all[middle];
    assert_eq!(read(&mut log.reader(Position::At(id)), all.len() - middle).await, all[middle..], "inclusive");
    let after = read(&mut log.reader(Position::After(id)), all.len() - middle - 1).await;
    assert_eq!(after, all[middle + 1..], "exclusive");
    let mut latest = log.reader(Position::Latest);
    assert!(quiet(latest.next()).await, "nobody writes");
}

/// Readers that come and go leave nothing behind and disturb nobody.
async fn openings(log: &Log) {
    for _ in 0..10 {
        let mut reader = log.reader(Position::Earliest);
        let first: Vec<Entry> = soon("first", reader.next()).await.unwrap();
        assert!(!first.is_empty());
        drop(log.reader(Position::Latest));
    }
}

async fn truncation(log: &Log, all: &[(EntryId, String)]) {
    let (last, _) = *all.last().unwrap();
    log.truncate(last).await.unwrap();
    assert_eq!(log.last_entry().await.unwrap(), None);
    let lost = log.reader(Position::At(last)).next().await.unwrap_err();
    assert_eq!(lost.code(), "LOG_POSITION_LOST");
    let writer = log.open_writer().await.unwrap();
    let written = append_all(&writer, "after", 10).await;
    assert!(written[0].0 > last, "ids never return");
    assert_eq!(read(&mut log.reader(Position::Earliest), 10).await, written);
    assert_eq!(read(&mut log.reader(Position::After(last)), 10).await, written);
    soon("close", writer.close()).await.unwrap();
}
