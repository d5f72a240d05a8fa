//! What an ack costs beside a sync of the same disk. Run alone on a quiet machine:
//! `cargo test --release -p woodpecker-server --test quorum figures -- --ignored --nocapture`.

use std::{
    fs::File,
    io::Write,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, mpsc},
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt;
use woodpecker_base::{
    clock::{Clock, Instant},
    disk::{Disk, RealDisk},
};

use crate::{
    bound::bare_times,
    world::{Open, World, within},
};

pub const ENTRY: usize = 1 << 10;
const PAGE: usize = 4096;

pub fn percentile(times: &mut [Duration], of_thousand: usize) -> Duration {
    times.sort_unstable();
    times[times.len() * of_thousand / 1_000]
}

/// A file of zeros that were written before, as the stores have it.
pub fn prepared(dir: &Path, number: usize, count: usize) -> File {
    let mut file = File::create(dir.join(number.to_string())).unwrap();
    file.write_all(&vec![0; count * PAGE]).unwrap();
    file.sync_all().unwrap();
    file
}

pub fn write_and_sync(file: &File, at: usize) {
    file.write_all_at(&[1; PAGE], (at * PAGE) as u64).unwrap();
    file.sync_data().unwrap();
}

fn sync_times(count: usize) -> Vec<Duration> {
    let dir = tempfile::tempdir().unwrap();
    let (file, clock) = (prepared(dir.path(), 0, count), Clock::system());
    let sync = |at: usize| {
        let began = clock.now();
        write_and_sync(&file, at);
        began.elapsed()
    };
    (0..count).map(sync).collect()
}

/// How long the second of three writes takes that are made at once, each to a file of its own on the same disk: what
/// three stores on one machine can do at best.
fn second_of_three_times(count: usize) -> Vec<Duration> {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let (done, synced) = mpsc::channel();
    let writers: Vec<_> = (0..3)
        .map(|number| {
            let (file, done) = (prepared(dir.path(), number, count), done.clone());
            let (go, turns) = mpsc::channel::<usize>();
            let write = async move {
                for at in turns {
                    write_and_sync(&file, at);
                    done.send(()).unwrap();
                }
            };
            RealDisk.spawn_writer("probe", write.boxed());
            go
        })
        .collect();
    let turn = |at: usize| {
        let began = clock.now();
        writers.iter().for_each(|go| go.send(at).unwrap());
        synced.recv().unwrap();
        synced.recv().unwrap();
        let took = began.elapsed();
        synced.recv().unwrap();
        took
    };
    (0..count).map(turn).collect()
}

/// How long each of `count` appends took, with so many in flight.
async fn append_times(open: &Open, from: u64, count: u64, in_flight: u64) -> (Vec<Duration>, Duration) {
    let clock = Clock::system();
    let payload = Bytes::from(vec![7; ENTRY]);
    let began = clock.now();
    let (mut sent, mut times) = (Vec::<Instant>::new(), Vec::new());
    for number in 0..count {
        if number >= in_flight {
            open.owner.wait_acked(from + number - in_flight + 1).await;
        }
        let acked = open.owner.acked_now().saturating_sub(from);
        while (times.len() as u64) < acked.min(number) {
            times.push(sent[times.len()].elapsed());
        }
        sent.push(clock.now());
        open.writer.append(vec![payload.clone()]).unwrap();
    }
    open.owner.wait_acked(from + count).await;
    while (times.len() as u64) < count {
        times.push(sent[times.len()].elapsed());
    }
    (times, began.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures: it needs a quiet machine"]
async fn an_ack_costs_about_a_sync_and_sixty_four_writers_share_it() {
    let (mut syncs, mut seconds) = (sync_times(500), second_of_three_times(500));
    let mut bare = bare_times(500).await;
    let world = World::new(3).await;
    let (backend, _tasks) = world.backend();
    let open = Open::create(&backend, 1).await;
    append_times(&open, 0, 100, 1).await;
    let (mut one, took_one) = append_times(&open, 100, 500, 1).await;
    let (mut many, took_many) = append_times(&open, 600, 32_000, 64).await;
    let sync = percentile(&mut syncs, 500);
    let ack = percentile(&mut one, 500);
    let rate = |count: f64, took: Duration| count / took.as_secs_f64();
    let (one_rate, many_rate) = (rate(500.0, took_one), rate(32_000.0, took_many));
    println!("fdatasync p50 {sync:?}, p99 {:?}", percentile(&mut syncs, 990));
    let second = percentile(&mut seconds, 500);
    println!("the second of three at once: p50 {second:?}, p99 {:?}", percentile(&mut seconds, 990));
    let bare = percentile(&mut bare, 500);
    println!("three stores with nothing in them: p50 {bare:?}");
    println!("one writer: ack p50 {ack:?}, p99 {:?}, {one_rate:.0}/s", percentile(&mut one, 990));
    println!(
        "64 in flight: ack p50 {:?}, p99 {:?}, {many_rate:.0}/s",
        percentile(&mut many, 500),
        percentile(&mut many, 990)
    );
    let ratio = |to: Duration| ack.as_secs_f64() / to.as_secs_f64();
    println!(
        "ack / fdatasync {:.2}, ack / the second of three {:.2}, ack / nothing {:.2}, 64 / 1 {:.1}",
        ratio(sync),
        ratio(second),
        ratio(bare),
        many_rate / one_rate
    );
    drop(Arc::clone(&backend));
    within("close", woodpecker_store::backend::Backend::close(&*backend)).await;
}
