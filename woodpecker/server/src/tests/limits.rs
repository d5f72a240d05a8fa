//! Watermarks, quotas, fairness, decommissioning, namespaces.

use std::{sync::Arc, time::Duration};

use metrics::set_default_local_recorder;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use streaming_proto::logstore::{
    AppendRequest, Code, DecommissionRequest, DeleteNamespaceRequest, FenceRequest, ListRequest, ReleaseRequest, State,
};
use woodpecker_base::{clock::Clock, disk::Space};

use super::{
    disk::ValveDisk,
    harness::{Running, Site, entry, frame, within},
    read::read,
};
use crate::{Quota, Watermarks, settings::InFlight};

const GB: u64 = 1 << 30;

async fn refused(running: &Running, frame: AppendRequest) -> streaming_proto::logstore::Refusal {
    let mut stream = running.stream().await;
    stream.put(frame).await;
    stream.refusal().await
}

/// Waits until the gauge says that the store takes appends, or that it takes none.
async fn until_writable(page: &PrometheusHandle, writable: bool) {
    let line = format!("woodpecker_logstore_writable {}", u8::from(writable));
    let reached = async {
        while !page.render().lines().any(|shown| shown == line) {
            Clock::system().sleep(Duration::from_millis(2)).await;
        }
    };
    within(&line, reached).await;
}

// On one thread, so that the store's tasks have this test's recorder as well.
#[tokio::test]
async fn an_almost_full_disk_slows_appends_down_and_a_full_one_refuses_them() {
    let disk = ValveDisk::default();
    let mut site = Site::on(Arc::new(disk.clone()));
    site.settings.watermarks = Watermarks::default();
    site.settings.disk_interval = Duration::from_millis(5);
    disk.set_space(Space { total: 100 * GB, free: 50 * GB });
    let recorder = PrometheusBuilder::new().build_recorder();
    let page = recorder.handle();
    let _here = set_default_local_recorder(&recorder);
    let running = site.start().await;
    until_writable(&page, true).await;
    let (replica, other) = (running.replica(1, 1), running.replica(2, 1));
    running.fill(&replica, 1, 0, 5).await;
    let active = running.store.status().load;

    disk.set_space(Space { total: 100 * GB, free: 11 * GB });
    running.until_state(State::Slowed).await;
    assert!(running.store.status().load > active);
    let mut stream = running.stream().await;
    let slowed = async {
        for first in 5.. {
            stream.send(&replica, 1, first, first + 1).await;
            let answer = stream.answer().await.unwrap();
            if let Some(streaming_proto::logstore::append_response::Outcome::Refused(refusal)) = answer.outcome {
                return refusal;
            }
        }
        unreachable!()
    };
    let refusal = within("being slowed down", slowed).await;
    assert_eq!(refusal.code(), Code::SlowDown);
    assert!(refusal.retry_after_ms > 100, "{refusal:?}");

    let mut refusing = running.store.refusing();
    assert_eq!(*refusing.borrow_and_update(), None);
    disk.set_space(Space { total: 100 * GB, free: 5 * GB });
    running.until_state(State::ReadOnly).await;
    let full = refusing.wait_for(|why| why.is_some_and(|why| why.contains("the disk is full")));
    within("saying why", full).await.unwrap();
    let refusal = refused(&running, frame(&other, 1, 0, 1)).await;
    assert_eq!(refusal.code(), Code::DiskFull);
    assert!(refusal.retry_after_ms > 0);
    until_writable(&page, false).await;
    // What is held is confirmed, read and fenced; recovery may write what it must.
    running.fill(&replica, 1, 0, 5).await;
    let fence = FenceRequest { replica: Some(replica.clone()), epoch: 2, end: None };
    let held = running.client.clone().fence(fence).await.unwrap().into_inner().durable;
    running.fill(&replica, 2, held, held + 3).await;

    disk.set_space(Space { total: 100 * GB, free: 50 * GB });
    running.until_state(State::Active).await;
    within("saying that it is over", refusing.wait_for(Option::is_none)).await.unwrap();
    until_writable(&page, true).await;
    running.fill(&other, 1, 0, 5).await;
    running.stop().await;
}

#[tokio::test]
async fn a_store_whose_disk_was_full_takes_appends_again_when_there_is_room() {
    let roomy = Space { total: 100 * GB, free: 50 * GB };
    let disk = ValveDisk::default();
    let mut site = Site::on(Arc::new(disk.clone()));
    site.settings.watermarks = Watermarks::default();
    site.settings.disk_interval = Duration::from_millis(5);
    disk.set_space(roomy);
    let running = site.start().await;
    let replica = running.replica(1, 1);
    let mut stream = running.stream().await;
    stream.send(&replica, 1, 0, 3).await;
    stream.durable(&replica, 3).await;
    disk.fill_up();
    stream.send(&replica, 1, 3, 5).await;
    assert_eq!(stream.refusal().await.code(), Code::Failed);
    running.until_state(State::ReadOnly).await;
    let advised = async {
        while !running.store.failure().unwrap().contains("below its hard mark") {
            Clock::system().sleep(Duration::from_millis(2)).await;
        }
    };
    within("saying what ends it", advised).await;
    disk.make_room(roomy);
    running.until_state(State::Active).await;
    assert_eq!(running.store.failure(), None);
    // The same owner goes on, in another volume, and all of it is there, also after a restart.
    running.fill(&replica, 1, 3, 6).await;
    let all: Vec<_> = (0..6).map(|number| entry(&replica, number)).collect();
    assert_eq!(read(&running, &replica, 0, 6).await, all);
    // What was lost on its way is not kept.
    let kept: usize = all.iter().map(bytes::Bytes::len).sum();
    assert_eq!((running.store.status().bytes_held, running.store.namespaces()[0].bytes), (kept as u64, kept as u64));
    running.stop().await;
    let running = site.start().await;
    assert_eq!(read(&running, &replica, 0, 6).await, all);
    running.stop().await;
}

#[tokio::test]
async fn a_namespace_keeps_to_its_quota_and_the_others_do_not_feel_it() {
    let mut site = Site::default();
    site.settings.quotas.insert("slow".into(), Quota { bytes_per_second: 1_000, ..Quota::default() });
    site.settings.quotas.insert("small".into(), Quota { bytes_kept: 1_000, ..Quota::default() });
    site.settings.quotas.insert("few".into(), Quota { logs: 2, ..Quota::default() });
    let running = site.start().await;
    let large = |replica: &streaming_proto::logstore::Replica, first, bytes: usize| AppendRequest {
        entries: vec![vec![1; bytes].into()],
        ..frame(replica, 1, first, first)
    };
    let slow = running.replica_of("slow", 1, 1);
    let mut stream = running.stream().await;
    stream.put(large(&slow, 0, 1_500)).await;
    stream.put(large(&slow, 1, 100)).await;
    let refusal = stream.refusal().await;
    assert_eq!(refusal.code(), Code::Rate);
    assert!((100..=500).contains(&refusal.retry_after_ms), "{refusal:?}");
    Clock::system().sleep(Duration::from_millis(refusal.retry_after_ms + 1)).await;
    stream.put(large(&slow, 1, 100)).await;
    stream.durable(&slow, 2).await;

    let small = running.replica_of("small", 1, 1);
    let mut stream = running.stream().await;
    stream.put(large(&small, 0, 900)).await;
    stream.durable(&small, 1).await;
    assert_eq!(refused(&running, large(&small, 1, 200)).await.code(), Code::Quota);
    running.client.clone().release(ReleaseRequest { replica: Some(small) }).await.unwrap();
    let next = running.replica_of("small", 1, 2);
    let mut stream = running.stream().await;
    stream.put(large(&next, 0, 900)).await;
    stream.durable(&next, 1).await;

    for log in 1..=2 {
        running.fill(&running.replica_of("few", log, 1), 1, 0, 1).await;
    }
    running.fill(&running.replica_of("few", 2, 2), 1, 0, 1).await;
    assert_eq!(refused(&running, frame(&running.replica_of("few", 3, 1), 1, 0, 1)).await.code(), Code::Quota);
    running.fill(&running.replica(3, 1), 1, 0, 100).await;
    let names: Vec<_> = running.store.namespaces().into_iter().map(|one| (one.name, one.logs)).collect();
    assert_eq!(names, [("a".into(), 1), ("few".into(), 2), ("slow".into(), 1), ("small".into(), 1)]);
    running.stop().await;
}

#[tokio::test]
async fn an_append_that_is_put_off_pays_its_rate_once() {
    let disk = ValveDisk::default();
    let mut site = Site::on(Arc::new(disk.clone()));
    site.settings.in_flight = InFlight { stream: 16 << 10, namespace: 16 << 10, total: 24 << 10 };
    site.settings.quotas.insert("slow".into(), Quota { bytes_per_second: 20 << 10, ..Quota::default() });
    let running = site.start().await;
    disk.close();
    let [mut crowd, mut slow] = [running.stream().await, running.stream().await];
    let [held, put_off] = ["crowd", "slow"].map(|name| running.replica_of(name, 1, 1));
    let large = |replica| AppendRequest { entries: vec![vec![7; 16 << 10].into()], ..frame(replica, 1, 0, 0) };
    crowd.put(large(&held)).await;
    running.until_in_flight(16).await;
    for attempt in 0..10 {
        slow.put(large(&put_off)).await;
        assert_eq!(slow.refusal().await.code(), Code::SlowDown, "attempt {attempt}");
    }
    disk.open();
    crowd.durable(&held, 1).await;
    slow.put(large(&put_off)).await;
    slow.durable(&put_off, 1).await;
    running.stop().await;
}

#[tokio::test]
async fn a_namespace_a_little_over_its_rate_is_held_back_and_not_refused() {
    const RATE: usize = 1_000_000;
    let mut site = Site::default();
    site.settings.quotas.insert("slow".into(), Quota { bytes_per_second: RATE as u64, ..Quota::default() });
    let running = site.start().await;
    let slow = running.replica_of("slow", 1, 1);
    let mut stream = running.stream().await;
    let began = Clock::system().now();
    for (first, bytes) in (0..).zip([RATE].into_iter().chain([RATE / 20; 20])) {
        stream.put(AppendRequest { entries: vec![vec![1; bytes].into()], ..frame(&slow, 1, first, first) }).await;
    }
    stream.durable(&slow, 21).await;
    // A second's worth passes at once, and so does the last before its debt is paid.
    assert!(began.elapsed() > Duration::from_millis(900), "{:?}", began.elapsed());
    running.stop().await;
}

#[tokio::test]
async fn namespaces_never_meet_and_one_can_go() {
    let site = Site::default();
    let running = site.start().await;
    let (one, two) = (running.replica_of("one", 1, 1), running.replica_of("two", 1, 1));
    running.fill(&one, 5, 0, 5).await;
    running.fill(&two, 1, 0, 3).await;
    let fence = FenceRequest { replica: Some(one.clone()), epoch: 6, end: None };
    running.client.clone().fence(fence).await.unwrap();
    running.fill(&two, 1, 3, 4).await;
    let entries = read(&running, &two, 0, 9).await;
    assert_eq!(entries.last(), Some(&entry(&two, 3)));

    let list = |namespace: &str| {
        let request = ListRequest { store: running.store.id().to_owned(), namespace: namespace.to_owned() };
        let mut client = running.client.clone();
        async move {
            let mut pages = client.list(request).await.unwrap().into_inner();
            let mut held = Vec::new();
            while let Some(page) = pages.message().await.unwrap() {
                held.extend(page.replicas.into_iter().map(|held| (held.replica.unwrap(), held.durable)));
            }
            held
        }
    };
    assert_eq!(list("").await, [(one.clone(), 5), (two.clone(), 4)]);
    assert_eq!(list("two").await, [(two.clone(), 4)]);
    assert_eq!(list("three").await, []);

    let delete = DeleteNamespaceRequest { store: running.store.id().to_owned(), namespace: "one".into() };
    assert_eq!(running.client.clone().delete_namespace(delete.clone()).await.unwrap().into_inner().replicas, 1);
    assert_eq!(list("").await, [(two.clone(), 4)]);
    // What is said to be kept is what is kept, also by the next run.
    let kept: u64 = (0..4).map(|number| entry(&two, number).len() as u64).sum();
    let bytes = |running: &Running| running.store.namespaces().into_iter().find(|one| one.name == "two").unwrap().bytes;
    assert_eq!(bytes(&running), kept);
    running.stop().await;
    let running = site.start().await;
    assert_eq!(bytes(&running), kept);
    assert_eq!(refused(&running, frame(&one, 7, 0, 1)).await.code(), Code::Released);
    assert_eq!(running.client.clone().delete_namespace(delete).await.unwrap().into_inner().replicas, 0);
    assert_eq!(read(&running, &two, 0, 9).await.len(), 4);
    running.stop().await;
}

#[tokio::test]
async fn a_store_that_is_given_up_takes_nothing_new_and_says_when_it_may_go() {
    let site = Site::default();
    let running = site.start().await;
    let (open, fenced, new) = (running.replica(1, 1), running.replica(2, 1), running.replica(3, 1));
    let mut stream = running.stream().await;
    stream.send(&open, 1, 0, 5).await;
    stream.durable(&open, 5).await;
    let decommission = |cancel| DecommissionRequest { store: running.store.id().to_owned(), cancel };
    let status = running.client.clone().decommission(decommission(false)).await.unwrap().into_inner();
    assert_eq!((status.state(), status.safe_to_remove, status.replicas), (State::Decommissioning, false, 1));
    assert_eq!(refused(&running, frame(&new, 1, 0, 1)).await.code(), Code::Decommissioning);
    stream.send(&open, 1, 5, 9).await;
    stream.durable(&open, 9).await;
    // A segment that is being recovered is not new.
    let fence = FenceRequest { replica: Some(fenced.clone()), epoch: 2, end: None };
    running.client.clone().fence(fence).await.unwrap();
    running.fill(&fenced, 2, 0, 3).await;
    running.stop().await;

    let running = site.start().await;
    assert_eq!(running.store.status().state(), State::Decommissioning, "it was forgotten");
    for replica in [open, fenced] {
        assert!(!running.store.status().safe_to_remove);
        running.client.clone().release(ReleaseRequest { replica: Some(replica) }).await.unwrap();
    }
    let status = running.store.status();
    assert_eq!((status.state(), status.safe_to_remove), (State::Decommissioned, true));
    let status = running.store.decommission(true).await.unwrap();
    assert_eq!((status.state(), status.safe_to_remove), (State::Active, false));
    running.fill(&new, 1, 0, 1).await;
    running.stop().await;
}

#[tokio::test]
async fn of_giving_a_store_up_and_a_cancel_at_once_the_later_counts_for_ever() {
    let site = Site::default();
    let running = site.start().await;
    let (mut giving_up, mut cancel) =
        (Box::pin(running.store.decommission(false)), Box::pin(running.store.decommission(true)));
    assert!(futures::poll!(&mut giving_up).is_pending() && futures::poll!(&mut cancel).is_pending());
    let (cancelled, given_up) = futures::join!(cancel, giving_up);
    assert!(cancelled.is_ok() && given_up.is_ok());
    let said = running.store.status().state();
    running.stop().await;
    let running = site.start().await;
    assert_eq!((said, running.store.status().state()), (State::Active, State::Active));
    running.stop().await;
}

#[tokio::test]
async fn however_many_namespaces_are_noisy_the_next_one_finds_room() {
    let disk = ValveDisk::default();
    let mut site = Site::on(Arc::new(disk.clone()));
    site.settings.in_flight = InFlight { stream: 32 << 10, namespace: 32 << 10, total: 128 << 10 };
    let running = site.start().await;
    disk.close();
    let mut noisy = Vec::new();
    for (name, taken) in [("one", 32), ("two", 64), ("three", 96), ("four", 112)] {
        let (stream, replica) = (running.stream().await, running.replica_of(name, 1, 1));
        for first in 0..64 {
            let entries = vec![vec![7; 1 << 10].into()];
            stream.put(AppendRequest { entries, ..frame(&replica, 1, first, first) }).await;
        }
        running.until_in_flight(taken).await;
        noisy.push(stream);
    }
    // The fourth may not have all that is left.
    assert_eq!(noisy[3].refusal().await.code(), Code::SlowDown);
    assert_eq!(running.store.store.in_flight_units(), 112);
    let (mut stream, quiet) = (running.stream().await, running.replica_of("quiet", 1, 1));
    stream.send(&quiet, 1, 0, 3).await;
    running.until_in_flight(113).await;
    disk.open();
    stream.durable(&quiet, 3).await;
    drop(noisy);
    running.stop().await;
}

/// How long each of `count` appends of one entry took, in order of length.
async fn latencies(running: &Running, namespace: &str, count: u64) -> Vec<Duration> {
    let replica = running.replica_of(namespace, 1, 1);
    let clock = Clock::system();
    let mut stream = running.stream().await;
    let mut took = Vec::new();
    for first in 0..count {
        let start = clock.now();
        stream.send(&replica, 1, first, first + 1).await;
        stream.durable(&replica, first + 1).await;
        took.push(clock.now() - start);
    }
    took.sort_unstable();
    took
}

/// On a disk that takes 5 ms for a sync and 200 MB/s, so that the machine's own moods count little.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_noisy_namespace_holds_another_up_for_one_short_batch() {
    let disk = ValveDisk::default();
    disk.set_costs(Duration::from_millis(5), 200_000_000);
    let running = Site::on(Arc::new(disk)).start().await;
    let alone = latencies(&running, "quiet", 200).await;

    let noise = woodpecker_base::tasks::Tasks::new();
    let mut noisy = running.stream().await;
    let (frames, replica) = (noisy.frames.take().unwrap(), running.replica_of("noisy", 1, 1));
    noise.spawn_until_stopped(async move {
        let entry = bytes::Bytes::from(vec![7; 64 << 10]);
        for first in 0.. {
            let frame = AppendRequest { entries: vec![entry.clone()], ..frame(&replica, 1, first, first) };
            if frames.send(frame).await.is_err() {
                return;
            }
        }
    });
    noise.spawn_until_stopped(async move { while let Ok(Some(_)) = noisy.answers.message().await {} });
    running.until_in_flight(16 << 10).await;
    let crowded = latencies(&running, "calm", 200).await;
    assert!(running.store.store.in_flight_units() > 8 << 10, "there was no noise");
    let at = |sorted: &[Duration], percent: usize| sorted[sorted.len() * percent / 100];
    for (what, sorted) in [("alone", &alone), ("crowded", &crowded)] {
        println!("{what}: p50 {:?}, p99 {:?}", at(sorted, 50), at(sorted, 99));
    }
    noise.drain(&Clock::system(), Duration::from_secs(5)).await;
    // An entry waits for the batch before it, which is short: two syncs for one. What is left is for a busy machine; in
    // turn of arrival it would wait for all that the noisy one has in flight, thirty times as long.
    assert!(at(&crowded, 50) < 4 * at(&alone, 50));
    running.stop().await;
}
