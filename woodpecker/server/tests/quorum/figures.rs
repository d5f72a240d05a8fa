//! What an ack costs beside a sync of the same disk. Run alone on a quiet machine:
//! `cargo test --release -p woodpecker-server --test quorum figures -- --ignored --nocapture`.

use std::{fs::File, io::Write, sync::Arc, time::Duration};

use bytes::Bytes;
use woodpecker_base::clock::{Clock, Instant};

use crate::world::{Open, World, within};

const ENTRY: usize = 1 << 10;

fn percentile(times: &mut [Duration], of_thousand: usize) -> Duration {
    times.sort_unstable();
    times[times.len() * of_thousand / 1_000]
}

fn sync_times(count: usize) -> Vec<Duration> {
    let dir = tempfile::tempdir().unwrap();
    let mut file = File::create(dir.path().join("probe")).unwrap();
    file.write_all(&vec![0; count * 4096]).unwrap();
    file.sync_all().unwrap();
    let clock = Clock::system();
    let mut sync = |at: usize| {
        let began = clock.now();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 4096], at as u64 * 4096).unwrap();
        file.sync_data().unwrap();
        began.elapsed()
    };
    (0..count).map(&mut sync).collect()
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
    let mut syncs = sync_times(500);
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
    println!("one writer: ack p50 {ack:?}, p99 {:?}, {one_rate:.0}/s", percentile(&mut one, 990));
    println!(
        "64 in flight: ack p50 {:?}, p99 {:?}, {many_rate:.0}/s",
        percentile(&mut many, 500),
        percentile(&mut many, 990)
    );
    println!("ack / fdatasync {:.2}, 64 / 1 {:.1}", ack.as_secs_f64() / sync.as_secs_f64(), many_rate / one_rate);
    drop(Arc::clone(&backend));
    within("close", woodpecker_store::backend::Backend::close(&*backend)).await;
}
