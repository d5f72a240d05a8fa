//! What it costs: latency against the PUT's own, PUTs against logs, requests against objects.

use std::time::Duration;

use object_store::{ObjectStoreExt, path::Path};

use super::*;

const PUT: Duration = Duration::from_millis(50);

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_writer_waits_hardly_longer_than_a_put() {
    let shared = Shared::s3(|s3| s3.faults().delay(Op::Put, PUT)).await;
    let (backend, _tasks) = shared.backend();
    let log = Log::create(&backend, 1).await;
    let clock = Clock::system();
    let mut seen = Vec::new();
    for round in 0..3 {
        let (mut puts, mut acks) = (Vec::new(), Vec::new());
        for number in 0..15 {
            let start = clock.now();
            shared.store.put(&Path::from(format!("bare/{round}/{number}")), vec![7; 1024].into()).await.unwrap();
            puts.push(start.elapsed());
            let start = clock.now();
            log.write(vec![7; 1024]).await;
            acks.push(start.elapsed());
        }
        let (put, ack) = (median(puts), median(acks));
        if ack <= put + Duration::from_millis(15) {
            return;
        }
        seen.push((put, ack));
    }
    panic!("PUT and ack medians: {seen:?}");
}

/// PUTs per second while so many logs are written, each with one append in flight.
async fn puts_per_second(logs: u64) -> f64 {
    let shared = Shared::s3(|s3| s3.faults().delay(Op::Put, PUT)).await;
    let (backend, _tasks) = shared.backend();
    let clock = Clock::system();
    let mut segments = Vec::new();
    for log in 0..logs {
        segments.push(Log::create(&backend, log).await);
    }
    let start = clock.now();
    let until = start + Duration::from_millis(1500);
    let writing = segments.iter().map(|log| async {
        while clock.now() < until {
            log.write(vec![7; 200]).await;
        }
    });
    futures::future::join_all(writing).await;
    let written: u64 = segments.iter().map(|log| log.owner.acked_now()).sum();
    assert!(written >= logs, "{written} entries in {logs} logs");
    f64::from(u32::try_from(shared.peer().counts().puts).unwrap()) / start.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn puts_follow_time_and_not_the_number_of_logs() {
    let one = puts_per_second(1).await;
    let thousand = puts_per_second(1000).await;
    assert!(thousand <= one * 1.3, "{one} PUTs/s with one log, {thousand} with a thousand");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_bytes_go_in_several_puts_at_once_and_are_bounded() {
    let shared = Shared::s3(|s3| s3.faults().delay(Op::Put, PUT)).await.with(|settings| {
        settings.flush_bytes = 64 << 10;
        settings.batch_bytes = 128 << 10;
    });
    let (backend, _tasks) = shared.backend();
    let log = Log::create(&backend, 1).await;
    for _ in 0..256 {
        log.append(vec![7; 16 << 10]);
    }
    log.owner.wait_acked(256).await;
    let counts = shared.peer().counts();
    assert_eq!(counts.puts_at_once, 4, "{counts:?}");
    assert!((32..=45).contains(&counts.puts), "{counts:?}");
}

#[tokio::test]
async fn what_waits_to_be_put_is_bounded_and_one_append_alone_may_be_larger() {
    let shared = Shared::memory().with(|settings| settings.queued_bytes = 1_000);
    let (backend, _tasks) = shared.backend();
    let log = Log::create(&backend, 1).await;
    log.append(vec![7; 2_000]);
    // On one thread nothing is taken from the queue before the test waits.
    let refused = log.writer.append(vec![Bytes::from(vec![7; 10])]);
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    log.owner.wait_acked(1).await;
}

#[tokio::test]
async fn the_rate_of_puts_is_capped() {
    let shared = Shared::memory().with(|settings| settings.puts_per_second = 20);
    let (backend, _tasks) = shared.backend();
    let log = Log::create(&backend, 1).await;
    let clock = Clock::system();
    let start = clock.now();
    for _ in 0..40 {
        log.write("x").await;
    }
    // A second's worth at once, the other twenty at their rate.
    let took = start.elapsed();
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn taking_over_reads_few_objects_of_many() {
    let shared = Shared::s3(|_| ()).await.with(|settings| settings.puts_per_second = 100_000);
    let (old, _tasks) = shared.backend();
    let (busy, idle) = (Log::create(&old, 1).await, Log::create(&old, 2).await);
    idle.write("once").await;
    for _ in 0..2500 {
        busy.write("again and again").await;
    }
    let (new, _tasks) = shared.backend();
    let s3 = shared.peer();
    for op in Op::ALL {
        s3.faults().delay(op, PUT);
    }
    let clock = Clock::system();
    for (log, tail) in [(&busy, 2500), (&idle, 1)] {
        let (before, start) = (s3.counts(), clock.now());
        assert_eq!(new.fence(log.key, log.placement(), Epoch(2)).await.unwrap(), tail);
        let (after, took) = (s3.counts(), start.elapsed());
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert!(after.gets - before.gets <= 110, "{before:?} {after:?}");
        assert!(after.lists - before.lists <= 30, "{before:?} {after:?}");
        assert!(after.puts - before.puts <= 1, "{before:?} {after:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_beside_the_writer_make_no_request() {
    let shared = Shared::s3(|_| ()).await;
    let (backend, _tasks) = shared.backend();
    let log = Log::create(&backend, 1).await;
    let reader = log.reader(&backend, None).await;
    for number in 0..50 {
        log.append(format!("entry {number}"));
        reader.readable(number).await;
        assert_eq!(reader.read(number, 100).await.unwrap(), [format!("entry {number}")]);
    }
    assert_eq!(reader.tail().await.unwrap(), 50);
    let counts = shared.peer().counts();
    assert_eq!((counts.gets, counts.lists, counts.heads), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_readers_of_another_process_share_one_slow_poll() {
    let shared = Shared::s3(|_| ()).await;
    let (writing, _tasks) = shared.backend();
    let (reading, _tasks) = shared.backend();
    let mut readers = Vec::new();
    for log in 0..50 {
        let log = Log::create(&writing, log).await;
        log.write("x").await;
        readers.push(log.reader(&reading, None).await);
    }
    let waiting = futures::future::join_all(readers.iter().map(|reader| reader.readable(1)));
    let clock = Clock::system();
    assert!(clock.timeout(Duration::from_secs(4), waiting).await.is_err());
    let counts = shared.peer().counts();
    // Quick at first, then once a second.
    assert!(counts.lists <= 25, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn catching_up_reads_in_parallel_and_skips_what_it_does_not_need() {
    let shared = Shared::s3(|_| ()).await.with(|settings| settings.puts_per_second = 100_000);
    let (writing, _tasks) = shared.backend();
    let log = Log::create(&writing, 1).await;
    for number in 0..600_u32 {
        log.write(number.to_le_bytes().to_vec()).await;
    }
    let s3 = shared.peer();
    s3.faults().delay(Op::Get, Duration::from_millis(20));
    s3.faults().delay(Op::List, Duration::from_millis(20));
    let clock = Clock::system();

    let (reading, _tasks) = shared.backend();
    let start = clock.now();
    let all = read_from(&log.reader(&reading, Some(600)).await, 0, 64).await;
    let expected: Vec<Bytes> = (0..600_u32).map(|number| number.to_le_bytes().to_vec().into()).collect();
    assert_eq!(all, expected);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(6), "{took:?}, one by one it is 12 s");

    let (reading, _tasks) = shared.backend();
    let before = s3.counts().gets;
    assert_eq!(read_from(&log.reader(&reading, Some(430)).await, 420, 64).await, &expected[420..430]);
    let gets = s3.counts().gets - before;
    assert!(gets <= 100, "{gets} GETs for ten entries in the middle");
}
