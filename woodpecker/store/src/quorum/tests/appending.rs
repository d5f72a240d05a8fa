//! Stores that are slow, silent, full or gone under a writer.

use streaming_proto::logstore::Code;
use woodpecker_base::clock::Instant;

use super::*;
use crate::{
    backend::SegmentEnd,
    disk::LocalSettings,
    quorum::{locked, refusal::Refusal},
};

fn now() -> Instant {
    Clock::system().now()
}

/// Processor time of this thread so far.
fn thread_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split_whitespace().next().unwrap().parse().unwrap())
}

/// Everything runs on this thread, so that its time is all that is spent.
#[tokio::test]
async fn a_log_that_fell_quiet_costs_no_processor_time() {
    let world = World::new(3).await;
    let (backend, _tasks) = world.backend(|_| ());
    let opened = Open::create(&backend, 1).await;
    // Fast enough that later entries carry what was to be told of earlier ones.
    opened.fill(0, 20).await;
    let clock = Clock::system();
    clock.sleep(Duration::from_millis(100)).await;
    let before = thread_time();
    clock.sleep(Duration::from_millis(500)).await;
    let spent = thread_time() - before;
    assert!(spent < Duration::from_millis(50), "{spent:?} of 500 ms");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_elsewhere_knows_of_an_entry_as_soon_as_it_is_acked() {
    let world = World::new(3).await;
    let ((backend, _tasks), (elsewhere, _)) = (world.backend(|_| ()), world.backend(|_| ()));
    let opened = Open::create(&backend, 1).await;
    let reader = elsewhere.open(opened.key, &opened.placement(), None).await.unwrap();
    for number in 0..20 {
        opened.fill(number, number + 1).await;
        assert_eq!(reader.tail().await.unwrap(), number + 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acked_can_be_read_here_after_the_segment_ended() {
    let world = World::new(3).await;
    let (backend, _tasks) = world.backend(|_| ());
    let opened = Open::create(&backend, 1).await;
    let reader = backend.open(opened.key, &opened.placement(), None).await.unwrap();
    opened.fill(0, 10).await;
    // It ends before any store is told of the last ack.
    for replica in 0..3 {
        let refusal = Refusal::new(Code::NotContinued, "restarted");
        world.replica(&opened.placement(), replica).fault(|faults| faults.refuse = Some(refusal));
    }
    opened.writer.append(vec![entry(10)]).unwrap();
    assert!(matches!(opened.owner.wait_ended().await, SegmentEnd::Displaced));
    assert_eq!(reader.tail().await.unwrap(), 10);
    assert_eq!(reader.read(9, 1 << 20).await.unwrap(), [entry(9)]);
}

/// Everything runs on this thread, so that what is appended in one go is sent together.
#[tokio::test]
async fn a_message_is_no_longer_than_a_batch_that_instances_share() {
    let world = World::new(3).await;
    let (backend, _tasks) = world.backend(|_| ());
    let opened = Open::create(&backend, 1).await;
    let bytes = Bytes::from(vec![7; 16 << 10]);
    for _ in 0..100 {
        opened.writer.append(vec![bytes.clone()]).unwrap();
    }
    opened.owner.wait_acked(100).await;
    let largest = world.replica(&opened.placement(), 0).largest();
    assert!(largest > bytes.len(), "appends were not put together");
    assert!(largest <= LocalSettings::default().shared_batch_bytes, "{largest} bytes in one message");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_replica_delays_no_ack() {
    let world = World::new(3).await;
    let (backend, _tasks) = world.backend(|_| ());
    let opened = Open::create(&backend, 1).await;
    opened.fill(0, 5).await;
    let slow = Duration::from_millis(300);
    world.replica(&opened.placement(), 0).fault(|faults| faults.slow = slow);
    let began = now();
    opened.fill(5, 30).await;
    let took = began.elapsed();
    assert!(took < 25 * slow, "25 appends took {took:?} beside a store that takes {slow:?} for each");
    // It is not given up: it confirms, if late.
    assert!(opened.writer.append(vec![entry(30)]).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_replica_ends_its_segment_once_and_gets_no_other() {
    let world = World::new(4).await;
    let (backend, _tasks) = world.backend(|_| ());
    let opened = Open::create(&backend, 1).await;
    opened.fill(0, 5).await;
    let silent = world.replica(&opened.placement(), 2);
    silent.fault(|faults| faults.silent = true);
    let began = now();
    // Acked by the other two all along.
    opened.fill(5, 10).await;
    let end = opened.owner.wait_ended().await;
    assert!(matches!(end, SegmentEnd::Displaced), "{end:?}");
    let took = began.elapsed();
    // Its connection is alive, and nothing else would give it up.
    assert!(took < Duration::from_secs(5), "given up after {took:?}");
    for log in 2..12 {
        let next = Open::create(&backend, log).await;
        assert!(!next.replicas().contains(&silent.id), "the store that just failed was chosen again");
        assert_eq!(next.replicas().len(), 3);
        next.fill(0, 2).await;
    }
    read_all(&backend, opened.key, &opened.placement(), 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_two_stores_go_on_and_a_third_is_taken_in_when_it_comes() {
    let world = World::new(3).await;
    let (backend, _tasks) = world.backend(|settings| settings.mending = Duration::from_millis(100));
    let opened = Open::create(&backend, 1).await;
    opened.fill(0, 3).await;
    let dead = world.replica(&opened.placement(), 0);
    dead.kill();
    opened.fill(3, 6).await;
    assert!(matches!(opened.owner.wait_ended().await, SegmentEnd::Displaced));
    let two = Open::create(&backend, 2).await;
    assert!(two.replicas().len() == 2 && !two.replicas().contains(&dead.id), "{:?}", two.replicas());
    two.fill(0, 3).await;
    // Both must have what is acked.
    for id in two.replicas() {
        world.store(id).wait("a replica that acked", || world.store(id).held(two.key).entries.len() == 3).await;
    }
    world.add(9).await;
    assert!(matches!(two.owner.wait_ended().await, SegmentEnd::Displaced));
    assert_eq!(Open::create(&backend, 3).await.replicas().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_is_made_again_and_the_segment_goes_on() {
    let world = World::new(3).await;
    let (backend, _tasks) = world.backend(|_| ());
    let opened = Open::create(&backend, 1).await;
    for round in 0..5 {
        opened.fill(round * 4, round * 4 + 4).await;
        world.replica(&opened.placement(), 1).fault(|faults| faults.broken += 1);
    }
    opened.fill(20, 24).await;
    for replica in 0..3 {
        let store = world.replica(&opened.placement(), replica);
        store.wait("all entries", || store.held(opened.key).entries.len() == 24).await;
        let expected: Vec<Bytes> = (0..24).map(entry).collect();
        assert_eq!(store.held(opened.key).entries, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_that_ask_to_slow_down_are_asked_again_and_nothing_rolls() {
    let world = World::new(3).await;
    // However long it lasts: a segment ends only for what is kept.
    let (backend, _tasks) = world.backend(|settings| settings.quota_patience = Duration::from_millis(500));
    let opened = Open::create(&backend, 1).await;
    opened.fill(0, 2).await;
    let refuse = |code: Option<Code>| {
        let retry_after = Duration::from_millis(100);
        let refusal = code.map(|code| Refusal { code, reason: "not so fast".to_owned(), retry_after });
        for replica in 0..3 {
            world.replica(&opened.placement(), replica).fault(|faults| faults.refuse.clone_from(&refusal));
        }
    };
    let mut acked = 2;
    for code in [Code::SlowDown, Code::Rate] {
        refuse(Some(code));
        for number in acked..acked + 18 {
            opened.writer.append(vec![entry(number)]).unwrap();
        }
        Clock::system().sleep(Duration::from_millis(1_500)).await;
        assert_eq!(opened.owner.acked_now(), acked, "{code:?}");
        refuse(None);
        acked += 18;
        opened.owner.wait_acked(acked).await;
    }
    opened.fill(acked, acked + 2).await;
    read_all(&backend, opened.key, &opened.placement(), acked + 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_that_a_quota_holds_up_ends_where_it_was_acked_and_an_empty_one_waits() {
    let world = World::new(3).await;
    let (backend, _tasks) = world.backend(|settings| settings.quota_patience = Duration::from_millis(500));
    let (opened, empty) = (Open::create(&backend, 1).await, Open::create(&backend, 2).await);
    opened.fill(0, 2).await;
    for replica in 0..3 {
        let store = world.replica(&opened.placement(), replica);
        store.wait("both entries", || store.held(opened.key).entries.len() == 2).await;
    }
    let used_up =
        Refusal { code: Code::Quota, reason: "bytes kept".to_owned(), retry_after: Duration::from_millis(50) };
    let refuse = |refusal: Option<&Refusal>| {
        for replica in 0..3 {
            let store = world.replica(&opened.placement(), replica);
            store.fault(|faults| faults.refuse = refusal.cloned());
        }
    };
    refuse(Some(&used_up));
    let began = now();
    opened.writer.append(vec![entry(2)]).unwrap();
    empty.writer.append(vec![entry(0)]).unwrap();
    assert!(matches!(opened.owner.wait_ended().await, SegmentEnd::Displaced));
    assert_eq!(opened.owner.acked_now(), 2);
    assert!(began.elapsed() >= Duration::from_millis(500), "it was given time: {:?}", began.elapsed());
    // Nothing of it is kept anywhere: it costs no quota, and goes on when there is room.
    Clock::system().sleep(Duration::from_millis(700)).await;
    refuse(None);
    empty.owner.wait_acked(1).await;
    assert_eq!(Open::create(&backend, 3).await.replicas().len(), 3, "no store is to blame");
    for replica in 0..3 {
        assert_eq!(
            world.replica(&opened.placement(), replica).held(opened.key).entries.len(),
            2,
            "the rest is not sent"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_moves_the_log_and_full_disks_everywhere_stop_it_with_a_reason() {
    let world = World::new(4).await;
    let (backend, _tasks) = world.backend(|_| ());
    let opened = Open::create(&backend, 1).await;
    let full = Refusal { code: Code::DiskFull, reason: "no space".to_owned(), retry_after: Duration::from_secs(30) };
    let first = world.replica(&opened.placement(), 0);
    first.fault(|faults| faults.refuse = Some(full.clone()));
    opened.writer.append(vec![entry(0)]).unwrap();
    assert!(matches!(opened.owner.wait_ended().await, SegmentEnd::Displaced));
    let next = Open::create(&backend, 2).await;
    assert!(!next.replicas().contains(&first.id));
    for id in next.replicas() {
        world.store(id).fault(|faults| faults.refuse = Some(full.clone()));
    }
    next.writer.append(vec![entry(0)]).unwrap();
    assert!(matches!(next.owner.wait_ended().await, SegmentEnd::Displaced));
    // All three have refused as soon as the last of the answers is here.
    let refused = async {
        loop {
            match backend.create(key(3), Epoch(1), Arc::new(Owner::default())).await {
                Err(StoreError::Unavailable(why)) if why.contains("0 take new segments") => return,
                Ok(_) | Err(StoreError::Unavailable(_)) => Clock::system().sleep(Duration::from_millis(5)).await,
                Err(other) => panic!("{other}"),
            }
        }
    };
    Clock::system().timeout(LIMIT, refused).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_behind_by_all_its_queue_is_given_up() {
    let world = World::new(3).await;
    let (backend, _tasks) = world.backend(|settings| {
        settings.queue_bytes = 1 << 20;
        settings.silence = Duration::from_secs(30);
    });
    let opened = Open::create(&backend, 1).await;
    world.replica(&opened.placement(), 1).fault(|faults| faults.silent = true);
    let large = Bytes::from(vec![7; 200 << 10]);
    let mut appended = 0;
    let refused = loop {
        match opened.writer.append(vec![large.clone()]) {
            Ok(number) => opened.owner.wait_acked(number + 1).await,
            Err(error) => break error,
        }
        appended += 1;
    };
    assert!(matches!(refused, StoreError::Ended), "{refused}");
    assert!(matches!(opened.owner.wait_ended().await, SegmentEnd::Displaced));
    assert_eq!(appended, 5, "the bound is in bytes");
    assert_eq!(opened.owner.acked_now(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_that_are_all_full_refuse_an_append_without_a_number() {
    let world = World::new(3).await;
    let (backend, _tasks) = world.backend(|settings| {
        settings.queue_bytes = 1 << 20;
        settings.silence = Duration::from_secs(30);
    });
    let opened = Open::create(&backend, 1).await;
    for replica in 0..3 {
        world.replica(&opened.placement(), replica).fault(|faults| faults.silent = true);
    }
    let half = Bytes::from(vec![7; 500 << 10]);
    assert_eq!(opened.writer.append(vec![half.clone()]).unwrap(), 0);
    assert_eq!(opened.writer.append(vec![half.clone()]).unwrap(), 1);
    assert!(matches!(opened.writer.append(vec![half.clone()]), Err(StoreError::Unavailable(_))));
    for replica in 0..3 {
        world.replica(&opened.placement(), replica).fault(|faults| faults.silent = false);
    }
    opened.owner.wait_acked(2).await;
    let drained = async {
        let peers: Vec<_> = locked(&backend.state).peers.values().cloned().collect();
        while peers.iter().any(|peer| peer.queued() > 0) {
            Clock::system().sleep(Duration::from_millis(1)).await;
        }
    };
    Clock::system().timeout(LIMIT, drained).await.unwrap();
    assert_eq!(opened.writer.append(vec![half]).unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_does_not_answer_is_not_chosen() {
    let world = World::new(4).await;
    let silent = world.store(StoreId(2));
    silent.fault(|faults| faults.silent = true);
    let (backend, _tasks) = world.backend(|_| ());
    for log in 1..6 {
        let opened = Open::create(&backend, log).await;
        assert!(!opened.replicas().contains(&silent.id));
        opened.fill(0, 1).await;
    }
}

/// Connections to it are made by its machine, and nobody reads from them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_takes_connections_and_never_answers_is_not_chosen() {
    let world = World::new(3).await;
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    world.register(StoreId(4), deaf.local_addr().unwrap().to_string()).await;
    let (backend, _tasks) = world.backend(|_| ());
    let began = now();
    for log in 1..6 {
        let opened = Open::create(&backend, log).await;
        assert!(!opened.replicas().contains(&StoreId(4)));
        opened.fill(0, 1).await;
    }
    assert!(began.elapsed() < Duration::from_secs(10), "five segments took {:?}", began.elapsed());
}
