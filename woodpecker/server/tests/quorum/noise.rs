//! What a noisy instance costs a quiet one on the same log stores. Run alone on a quiet machine; it writes a few GB:
//! `cargo test --release -p woodpecker-server --test quorum noise -- --ignored --nocapture`.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use woodpecker_base::{clock::Clock, tasks::Tasks};
use woodpecker_server::Quota;
use woodpecker_store::quorum::QuorumBackend;

use crate::{
    figures::percentile,
    world::{Open, World},
};

/// The quiet one: a writer, a small entry, a pause.
const QUIET_ENTRY: usize = 1 << 10;
const QUIET_APPENDS: u64 = 2_000;
const QUIET_PAUSE: Duration = Duration::from_millis(2);
/// The noisy one: many writers of large entries, without a pause.
const NOISY_WRITERS: u64 = 16;
const NOISY_ENTRY: usize = 256 << 10;
const NOISY_IN_FLIGHT: u64 = 8;
/// The noisy one that has a quota, and what it may write to each store.
const LIMITED: &str = "limited";
const QUOTA: u64 = 32 << 20;
/// How much longer the quiet one's p99 may be beside one that has a quota. Beside one that has none they
/// share a machine that is used up, and a quiet one waits for its turns: that is only shown.
const MOST: f64 = 2.0;
/// Until what the noisy one still had on its way is written.
const SETTLES: Duration = Duration::from_secs(2);

/// How long each of the quiet one's appends took.
async fn quiet_times(open: &Open, from: u64) -> Vec<Duration> {
    let clock = Clock::system();
    let payload = Bytes::from(vec![7; QUIET_ENTRY]);
    let mut times = Vec::new();
    for number in from..from + QUIET_APPENDS {
        let began = clock.now();
        open.writer.append(vec![payload.clone()]).unwrap();
        open.owner.wait_acked(number + 1).await;
        times.push(began.elapsed());
        clock.sleep(QUIET_PAUSE).await;
    }
    times
}

/// Appends to one log after the other: a segment that ends under the load is not the end of the noise.
async fn make_noise(backend: Arc<QuorumBackend>, logs: Arc<AtomicU64>, acked: Arc<AtomicU64>) {
    let (clock, payload) = (Clock::system(), Bytes::from(vec![7; NOISY_ENTRY]));
    loop {
        let open = Open::create(&backend, logs.fetch_add(1, Ordering::Relaxed)).await;
        let (mut sent, mut known) = (0, 0);
        loop {
            let now = open.owner.acked_now();
            acked.fetch_add(now - known, Ordering::Relaxed);
            known = now;
            if sent - known >= NOISY_IN_FLIGHT {
                clock.sleep(Duration::from_millis(1)).await;
            } else if open.writer.append(vec![payload.clone()]).is_ok() {
                sent += 1;
            } else {
                break;
            }
        }
    }
}

/// The quiet one's times beside an instance that is noisy.
async fn beside(world: &World, noisy: &str, open: &Open, from: u64) -> Vec<Duration> {
    let (clock, noise) = (Clock::system(), Tasks::new());
    let (backend, backend_tasks) = world.backend_of(noisy);
    let (logs, acked) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicU64::new(0)));
    for _ in 0..NOISY_WRITERS {
        noise.spawn_until_stopped(make_noise(backend.clone(), logs.clone(), acked.clone()));
    }
    // Past the second's worth that a quota lets through at once.
    clock.sleep(Duration::from_secs(2)).await;
    let (began, before) = (clock.now(), acked.load(Ordering::Relaxed));
    let times = quiet_times(open, from).await;
    let entries = acked.load(Ordering::Relaxed) - before;
    assert!(entries > 0, "there was no noise");
    let megabytes = (entries * NOISY_ENTRY as u64) as f64 / f64::from(1 << 20);
    let segments = logs.load(Ordering::Relaxed) - 1;
    let rate = megabytes / began.elapsed().as_secs_f64();
    println!("{noisy}: {rate:.0} MiB/s acked in {segments} segments of {NOISY_WRITERS} writers");
    noise.stop();
    backend_tasks.stop();
    times
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures: it needs a quiet machine"]
async fn a_noisy_instance_at_its_rate_at_most_doubles_the_p99_of_a_quiet_one() {
    let quota = Quota { bytes_per_second: QUOTA, ..Quota::default() };
    let world = World::with_quotas(3, &BTreeMap::from([(LIMITED.to_owned(), quota)])).await;
    let (backend, _tasks) = world.backend_of("quiet");
    let open = Open::create(&backend, 1).await;
    let p99 = |what: &str, mut times: Vec<Duration>| {
        let (p50, p99) = (percentile(&mut times, 500), percentile(&mut times, 990));
        println!("{what}: p50 {p50:?}, p99 {p99:?}");
        p99.as_secs_f64()
    };
    p99("warming up", quiet_times(&open, 0).await);
    let mut before = p99("alone", quiet_times(&open, QUIET_APPENDS).await);
    for (round, noisy) in (1..).zip([LIMITED, "unlimited"]) {
        let from = 2 * round * QUIET_APPENDS;
        let beside = p99(&format!("beside {noisy}"), beside(&world, noisy, &open, from).await);
        Clock::system().sleep(SETTLES).await;
        let after = p99("alone again", quiet_times(&open, from + QUIET_APPENDS).await);
        // The worse of before and after, so that the machine's own moods are not the noisy one's.
        let ratio = beside / before.max(after);
        println!("beside {noisy}: p99 ratio {ratio:.2}");
        assert!(noisy != LIMITED || ratio <= MOST, "beside {noisy} the p99 is {ratio:.2} times as long");
        before = after;
    }
}
