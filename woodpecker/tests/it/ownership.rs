//! Who may write: two processes that both believe they own a log, owners that vanish, neighbours that are fenced.

use futures::{StreamExt, future::join_all, stream::FuturesOrdered};
use woodpecker::{AppendError, EntryId, Position};

use crate::{
    on_every_medium,
    world::{World, append, append_all, payload, read, read_all, soon},
};

on_every_medium!(
    the_older_of_two_writers_is_fenced,
    a_writer_is_fenced_within_its_own_process,
    openers_that_race_leave_one_writer,
    a_killed_owner_leaves_every_acked_entry,
    an_owner_with_much_in_flight_is_cut_off_cleanly,
    a_dropped_writer_still_answers,
    a_clean_close_leaves_nothing_open,
    a_neighbour_of_a_fenced_log_goes_on,
);

async fn the_older_of_two_writers_is_fenced(world: World) {
    let (old, new) = (world.process().await, world.process().await);
    let older = old.log("log").await.open_writer().await.unwrap();
    let mut written = append_all(&older, "older", 10).await;
    let newer = new.log("log").await.open_writer().await.unwrap();
    assert!(newer.epoch() > older.epoch());
    let error = soon("fence", older.append(vec![payload("lost")])).await.unwrap_err();
    assert!(matches!(error, AppendError::Fenced), "{error}");
    assert!(matches!(soon("ended", older.ended()).await, AppendError::Fenced));
    assert!(matches!(older.append(vec![payload("lost")]).await, Err(AppendError::Fenced)), "for ever");
    assert!(matches!(older.close().await, Err(AppendError::Fenced)));
    written.extend(append_all(&newer, "newer", 10).await);
    assert_eq!(read_all(&new.log("log").await).await, written);
    assert_eq!(read_all(&old.log("log").await).await, written);
}

async fn a_writer_is_fenced_within_its_own_process(world: World) {
    let process = world.process().await;
    let log = process.log("log").await;
    let older = log.open_writer().await.unwrap();
    let first = append(&older, "first").await;
    let newer = log.open_writer().await.unwrap();
    assert!(matches!(soon("fence", older.append(vec![payload("lost")])).await, Err(AppendError::Fenced)));
    let second = append(&newer, "second").await;
    assert_eq!(read_all(&log).await, [(first, "first".to_owned()), (second, "second".to_owned())]);
}

async fn openers_that_race_leave_one_writer(world: World) {
    let processes = [world.process().await, world.process().await, world.process().await];
    let mut acked = Vec::new();
    for round in 0..5 {
        let logs = [processes[0].log("log").await, processes[1].log("log").await, processes[2].log("log").await];
        let [one, two, three] = &logs;
        let (one, two, three) = tokio::join!(one.open_writer(), two.open_writer(), three.open_writer());
        let mut writers: Vec<_> = [one, two, three].into_iter().filter_map(Result::ok).collect();
        assert!(!writers.is_empty(), "somebody wins");
        writers.sort_by_key(woodpecker::Writer::epoch);
        for (number, writer) in writers.iter().enumerate() {
            let text = format!("{round}-{number}");
            match soon("append", writer.append(vec![payload(&text)])).await {
                Ok(appended) => acked.push((appended.first, text)),
                Err(error) => assert!(matches!(error, AppendError::Fenced), "{error}"),
            }
        }
        assert!(acked.last().unwrap().1.ends_with(&format!("-{}", writers.len() - 1)), "the last one can write");
    }
    assert_eq!(read_all(&processes[0].log("log").await).await, acked);
}

async fn a_killed_owner_leaves_every_acked_entry(world: World) {
    let mut written = Vec::new();
    for life in 0..4 {
        let process = world.process().await;
        let log = process.log("log").await;
        let writer = log.open_writer().await.unwrap();
        assert_eq!(read_all(&log).await, written, "life {life}");
        written.extend(append_all(&writer, &format!("life-{life}"), 15).await);
        if life % 2 == 0 { process.kill() } else { drop((writer, process)) }
    }
}

async fn an_owner_with_much_in_flight_is_cut_off_cleanly(world: World) {
    let (old, new) = (world.process().await, world.process().await);
    let older = old.log("log").await.open_writer().await.unwrap();
    let log = new.log("log").await;
    let mut appends: FuturesOrdered<_> =
        (0..5_000).map(|number| older.append(vec![payload(&number.to_string())])).collect();
    let (acked, newer) = tokio::join!(
        async {
            let mut acked = Vec::new();
            let mut failed = false;
            while let Some(appended) = appends.next().await {
                match appended {
                    Ok(appended) => {
                        assert!(!failed, "acks are a prefix");
                        acked.push(appended.first);
                    }
                    Err(_) => failed = true,
                }
            }
            acked
        },
        log.open_writer(),
    );
    let newer = newer.unwrap();
    append(&newer, "newer").await;
    let mut read = read_all(&log).await;
    assert_eq!(read.pop().unwrap().1, "newer");
    assert!(read.len() >= acked.len());
    let ids: Vec<EntryId> = read.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids[..acked.len()], acked);
    let numbers: Vec<String> = (0..read.len()).map(|number| number.to_string()).collect();
    assert_eq!(read.into_iter().map(|(_, text)| text).collect::<Vec<_>>(), numbers, "a prefix of what was appended");
}

async fn a_dropped_writer_still_answers(mut world: World) {
    world.segment_bytes = 500;
    let process = world.process().await;
    let log = process.log("log").await;
    let mut written = Vec::new();
    for life in 0..3 {
        let writer = log.open_writer().await.unwrap();
        let texts: Vec<String> = (0..300).map(|number| format!("{life}-{number}")).collect();
        let appends: Vec<_> = texts.iter().map(|text| writer.append(vec![payload(text)])).collect();
        drop(writer);
        for (append, text) in appends.into_iter().zip(texts) {
            written.push((soon("append", append).await.unwrap().first, text));
        }
    }
    assert_eq!(read_all(&log).await, written);
}

async fn a_clean_close_leaves_nothing_open(world: World) {
    let process = world.process().await;
    let log = process.log("log").await;
    let writer = log.open_writer().await.unwrap();
    let appends: Vec<_> = (0..100).map(|_| writer.append(vec![payload("x")])).collect();
    soon("close", writer.close()).await.unwrap();
    soon("close again", writer.close()).await.unwrap();
    for append in appends {
        append.await.unwrap();
    }
    let described = log.describe().await.unwrap();
    assert_eq!(described.segments.iter().map(|s| s.entries).collect::<Vec<_>>(), [Some(100)]);
    assert_eq!(described.segments[0].bytes, Some(100));
    let other = world.process().await;
    let writer = other.log("log").await.open_writer().await.unwrap();
    let next = append(&writer, "y").await;
    assert_eq!(next, EntryId { segment: 2, entry: 0 });
}

async fn a_neighbour_of_a_fenced_log_goes_on(world: World) {
    let (old, new) = (world.process().await, world.process().await);
    let taken = old.log("taken").await.open_writer().await.unwrap();
    let neighbour = old.log("neighbour").await.open_writer().await.unwrap();
    append(&taken, "mine").await;
    let mut reader = new.log("neighbour").await.reader(Position::Earliest);
    let mut local = old.log("neighbour").await.reader(Position::Earliest);
    let mut appends = FuturesOrdered::new();
    let mut taker = None;
    for number in 0..2_000 {
        appends.push_back(neighbour.append(vec![payload(&number.to_string())]));
        if number % 100 == 99 {
            // What is queued now is in flight when the volume is fenced.
            if number == 999 {
                taker = Some(new.log("taken").await.open_writer().await.unwrap());
                let lost = soon("fence", taken.append(vec![payload("lost")])).await;
                assert!(matches!(lost, Err(AppendError::Fenced)), "{lost:?}");
            }
            tokio::task::yield_now().await;
        }
    }
    let mut written = Vec::new();
    while let Some(appended) = soon("neighbour's append", appends.next()).await {
        written.push((appended.unwrap().first, written.len().to_string()));
    }
    append(&taker.unwrap(), "theirs").await;
    assert_eq!(read(&mut local, 2_000).await, written);
    assert_eq!(read(&mut reader, 2_000).await, written);
}

/// Whoever starts first makes the instance's identity and the counters of ids: of many that do so at once, one does.
#[tokio::test]
async fn processes_that_start_first_at_once_are_of_one_instance() {
    for _ in 0..20 {
        let world = World::memory().await;
        let processes = join_all((0..8).map(|_| world.process())).await;
        let instances = join_all(processes.iter().map(|process| process.client.instance())).await;
        let instances: Vec<_> = instances.into_iter().map(Result::unwrap).collect();
        assert!(instances.iter().all(|instance| *instance == instances[0]), "{instances:?}");
        let names: Vec<_> = (0..8).map(|number| format!("log-{number}")).collect();
        let written = join_all(processes.iter().zip(&names).map(|(process, name)| async move {
            let log = process.client.create_log(name).await.unwrap();
            let writer = log.open_writer().await.unwrap();
            append_all(&writer, name, 3).await
        }))
        .await;
        for (name, written) in names.iter().zip(&written) {
            assert_eq!(&read_all(&processes[0].log(name).await).await, written);
        }
    }
}
