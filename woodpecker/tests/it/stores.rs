//! Logs on log stores that go and come back.

use std::time::Duration;

use bytes::Bytes;
use tokio::select;
use woodpecker::MaintenanceSettings;
use woodpecker_base::clock::Clock;
use woodpecker_server::Quota;

use crate::world::{World, append, append_all, eager, read_all, soon};

/// Replicas that no record names are released at the first sweep that finds them.
fn without_grace() -> MaintenanceSettings {
    MaintenanceSettings { sweep_grace: Duration::ZERO, ..eager() }
}

#[tokio::test]
async fn a_store_that_was_away_while_its_segments_were_sealed_gives_up_what_it_holds_of_them() {
    let world = World::stores(3, Quota::default()).await;
    let process = world.process().await;
    let [sealed, deleted, open] =
        [process.log("sealed").await, process.log("deleted").await, process.log("open").await];
    let mut writers = Vec::new();
    let mut written = Vec::new();
    for log in [&sealed, &deleted, &open] {
        let writer = log.open_writer().await.unwrap();
        written.push(append_all(&writer, log.name(), 20).await);
        writers.push(writer);
    }
    let (mut sites, registry) = world.sites().await;
    let complete = async {
        let held = |site: usize| (sites[site].store().status().replicas, sites[site].store().status().bytes_held);
        while held(0).0 < 3 || held(0) != held(1) || held(0) != held(2) {
            Clock::system().sleep(Duration::from_millis(1)).await;
        }
        // Confirmed a moment later. A segment that waits for a store to confirm ends with the store.
        Clock::system().sleep(Duration::from_millis(200)).await;
    };
    soon("all on all three", complete).await;
    sites[0].stop().await;
    soon("close", writers[0].close()).await.unwrap();
    soon("delete", process.client.delete_log("deleted")).await.unwrap();
    let done = process.maintain_with(without_grace()).await;
    assert!((done.sealed, done.freed, done.failed) == (1, 1, 0), "{done:?}");

    sites[0].start(registry).await;
    assert_eq!(sites[0].store().status().replicas, 3, "nobody told it");
    let patient = MaintenanceSettings { sweep_grace: Duration::from_secs(3600), ..eager() };
    assert_eq!(process.maintain_with(patient).await.swept, 0, "somebody may be about to name it");
    let mut swept = 0;
    let sweeping = async {
        // Who has just registered may be seen by the next sweep only.
        while swept < 2 {
            swept += process.maintain_with(without_grace()).await.swept;
        }
    };
    soon("a sweep", Box::pin(sweeping)).await;
    assert_eq!((swept, sites[0].store().status().replicas), (2, 1), "what a record names stays");
    written[2].extend(append_all(&writers[2], "on", 5).await);
    assert_eq!(read_all(&open).await, written[2]);
    soon("close", writers[2].close()).await.unwrap();
    process.maintain_with(without_grace()).await;
    for site in &*sites {
        let status = site.store().status();
        assert_eq!((status.replicas, status.bytes_held), (0, 0));
    }
    assert_eq!(read_all(&sealed).await, written[0]);
    assert_eq!(read_all(&open).await, written[2]);
}

#[tokio::test]
async fn a_store_that_is_given_up_is_left_by_logs_that_nobody_writes() {
    // Where a fourth takes its place, and where two are left.
    for stores in [4, 3] {
        let world = World::stores(stores, Quota::default()).await;
        let process = world.process().await;
        let log = process.log("log").await;
        let writer = log.open_writer().await.unwrap();
        let mut written = append_all(&writer, "entry", 5).await;
        let placement = log.describe().await.unwrap().segments[0].placement.clone();
        let (sites, _) = world.sites().await;
        let leaving = sites.iter().map(|site| site.store()).find(|store| placement.contains(store.id())).unwrap();
        leaving.decommission(false).await.unwrap();
        let empty = async {
            while !leaving.status().safe_to_remove {
                process.maintain().await;
            }
        };
        soon("nothing is left on it", Box::pin(empty)).await;
        written.push((append(&writer, "on").await, "on".to_owned()));
        let segments = log.describe().await.unwrap().segments;
        assert_eq!(segments.len(), 2, "it moved once: {segments:?}");
        assert!(!segments[1].placement.contains(leaving.id()), "{segments:?}");
        soon("close", writer.close()).await.unwrap();
        assert_eq!(read_all(&log).await, written);
        assert!(leaving.status().safe_to_remove);
    }
}

#[tokio::test]
async fn a_quota_that_open_segments_use_up_is_free_again_when_they_are_sealed() {
    let world = World::stores(3, Quota { bytes_kept: 20_000, ..Quota::default() }).await;
    let process = world.process().await;
    let log = process.log("log").await;
    let writer = log.open_writer().await.unwrap();
    let entry = Bytes::from(vec![7; 1_000]);
    for _ in 0..20 {
        soon("append", writer.append(vec![entry.clone()])).await.unwrap();
    }
    let more = async {
        for _ in 0..5 {
            writer.append(vec![entry.clone()]).await.unwrap();
        }
    };
    let sealing = async {
        loop {
            process.maintain().await;
        }
    };
    let sealed = async {
        select! {
            () = more => {}
            () = Box::pin(sealing) => {}
        }
    };
    // The stores ask for five seconds between attempts.
    Clock::system().timeout(Duration::from_secs(60), sealed).await.expect("there is room again");
    let segments = log.describe().await.unwrap().segments;
    assert_eq!(segments[0].entries, Some(20), "it ended where it was acked: {segments:?}");
    assert!(segments.len() <= 3, "no segment after the other: {segments:?}");
    soon("close", writer.close()).await.unwrap();
    let entries = read_all(&log).await;
    assert_eq!(entries.len(), 25);
}
