//! Crashes, damage and failures of the disk: a clean prefix or an error, never wrong data.

use std::{io::ErrorKind, sync::Arc, time::Duration};

use woodpecker_base::clock::Clock;
use woodpecker_core::ids::Epoch;

use super::{FaultyDisk, One, ROOT, backend, entry, key, read_all, small};
use crate::{
    backend::{Backend, Placement, SegmentEnd, StoreError},
    conformance::Owner,
    disk::{LocalBackend, LocalSettings},
};

/// What fencing and reading the segment gives to a process that comes new: the entries, each checked, or an error.
async fn recovered(disk: &FaultyDisk, placement: &Placement) -> Result<u64, StoreError> {
    let backend = backend(ROOT, small(), Arc::new(disk.process())).await;
    let tail = backend.fence(key(1), placement, Epoch(2)).await?;
    assert_eq!(backend.fence(key(1), placement, Epoch(3)).await?, tail);
    read_all(&backend, key(1), placement, Some(tail)).await?;
    Ok(tail)
}

/// Three batches of three entries each, and the process that wrote them is dead.
async fn three_batches() -> (FaultyDisk, Placement) {
    let one = One::new(small()).await;
    for batch in 0..3 {
        one.append(batch * 3..batch * 3 + 3).await;
    }
    one.disk.crash();
    (one.disk.clone(), one.placement())
}

#[tokio::test]
async fn a_crash_at_any_byte_of_a_write_keeps_what_was_acked() {
    // Behind its own bytes the batch is padded with the zeros that are there anyway.
    for keep in (0..400).chain([4_095, 4_096]) {
        let one = One::new(small()).await;
        one.append(0..3).await;
        one.disk.faults().fail_write = Some((2, keep, None));
        one.writer.append((3..6).map(|number| entry(key(1), number)).collect()).unwrap();
        assert!(matches!(one.owner.wait_ended().await, SegmentEnd::Failed(_)));
        assert_eq!(one.owner.acked_now(), 3);
        let tail = recovered(&one.disk, &one.placement()).await.unwrap();
        assert!(tail == 3 || tail == 6, "cut at {keep}: tail {tail}");
    }
}

#[tokio::test]
async fn what_was_not_synced_is_lost_with_the_machine_and_nothing_else() {
    let one = One::new(small()).await;
    one.append(0..3).await;
    one.disk.faults().fail_write = Some((2, 4_096, None));
    one.writer.append(vec![entry(key(1), 3)]).unwrap();
    one.owner.wait_ended().await;
    one.disk.crash();
    assert_eq!(recovered(&one.disk, &one.placement()).await.unwrap(), 3);
}

#[tokio::test]
async fn a_file_cut_at_any_byte_gives_a_clean_prefix_or_an_error() {
    let (disk, placement) = three_batches().await;
    let (whole, marks) = (disk.bytes("00000000.vol"), disk.bytes("marks"));
    let mut seen = std::collections::BTreeSet::new();
    // Every byte of the header and the batches, some of the padding.
    for cut in (0..4 * 4_096 + 1).rev().filter(|cut| cut % 4_096 < 400 || cut % 101 == 0) {
        disk.set_bytes("00000000.vol", whole[..cut].to_vec());
        disk.set_bytes("marks", marks.clone());
        match recovered(&disk, &placement).await {
            Ok(tail) => assert!(seen.insert(tail) || tail % 3 == 0, "cut at {cut}: tail {tail}"),
            Err(error) => assert!(matches!(error, StoreError::Corrupt { .. }), "cut at {cut}: {error}"),
        }
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 3, 6, 9]);
}

#[tokio::test]
async fn a_flipped_bit_gives_a_clean_prefix_or_an_error() {
    let (disk, placement) = three_batches().await;
    let (whole, marks) = (disk.bytes("00000000.vol"), disk.bytes("marks"));
    for batch in 0..3 {
        let mut errors = 0;
        let start = (batch + 1) * 4_096;
        let used = whole[start..start + 4_096].iter().rposition(|byte| *byte != 0).unwrap() + 1;
        for bit in 0..used * 8 {
            let mut bytes = whole.clone();
            bytes[start + bit / 8] ^= 1 << (bit % 8);
            disk.set_bytes("00000000.vol", bytes);
            disk.set_bytes("marks", marks.clone());
            match recovered(&disk, &placement).await {
                // The last batch is not to be told from one that a crash cut off.
                Ok(tail) => assert_eq!((batch, tail), (2, 6), "bit {bit} of batch {batch}"),
                Err(StoreError::Corrupt { what, .. }) => {
                    errors += 1;
                    assert!(what.contains("00000000.vol at byte"), "{what}");
                }
                Err(error) => panic!("bit {bit} of batch {batch}: {error}"),
            }
        }
        assert!(batch == 2 || errors == used * 8, "{errors} of {} bits of batch {batch} found", used * 8);
    }
}

#[tokio::test]
async fn damage_in_front_of_whole_batches_names_file_and_place() {
    let (disk, placement) = three_batches().await;
    let mut bytes = disk.bytes("00000000.vol");
    bytes[2 * 4_096..3 * 4_096].fill(0);
    disk.set_bytes("00000000.vol", bytes);
    let error = recovered(&disk, &placement).await.unwrap_err();
    let StoreError::Corrupt { what, detail } = &error else { panic!("{error}") };
    assert!(what.ends_with("00000000.vol at byte 8192"), "{what}");
    assert!(detail.contains("a later one of the volume is whole"), "{detail}");
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn damage_at_the_end_of_a_full_file_is_not_taken_for_a_crash() {
    let one = One::new(LocalSettings { file_bytes: 12 << 10, ..small() }).await;
    for number in 0..5 {
        one.append(number..number + 1).await;
    }
    one.disk.crash();
    let mut bytes = one.disk.bytes("00000000.vol");
    bytes[2 * 4_096 + 20] ^= 1;
    one.disk.set_bytes("00000000.vol", bytes);
    one.disk.set_bytes("00000000.idx", Vec::new());
    let error = recovered(&one.disk, &one.placement()).await.unwrap_err();
    assert!(error.to_string().contains("out of its turn"), "{error}");
}

#[tokio::test]
async fn a_lost_sidecar_costs_a_scan_and_nothing_else() {
    let one = One::new(LocalSettings { file_bytes: 12 << 10, ..small() }).await;
    for number in 0..6 {
        one.append(number..number + 1).await;
    }
    one.disk.crash();
    one.disk.set_bytes("00000000.idx", b"garbage".to_vec());
    one.disk.set_bytes("00000001.idx", Vec::new());
    assert_eq!(recovered(&one.disk, &one.placement()).await.unwrap(), 6);
}

#[tokio::test]
async fn a_file_of_another_kind_or_a_newer_version_is_named() {
    let (disk, placement) = three_batches().await;
    let whole = disk.bytes("00000000.vol");
    disk.set_bytes("00000000.vol", b"#!/bin/sh\necho hello, this is no volume\n".to_vec());
    let error = recovered(&disk, &placement).await.unwrap_err();
    assert!(error.to_string().contains("not a volume file"), "{error}");

    let mut newer = whole.clone();
    newer[4] = 2;
    let crc = crate::format::checksum([&newer[..32]]);
    newer[32..36].copy_from_slice(&crc.to_le_bytes());
    disk.set_bytes("00000000.vol", newer);
    let error = recovered(&disk, &placement).await.unwrap_err();
    assert!(error.to_string().contains("format version 2"), "{error}");

    let mut other = whole;
    other[8] ^= 1;
    let crc = crate::format::checksum([&other[..32]]);
    other[32..36].copy_from_slice(&crc.to_le_bytes());
    disk.set_bytes("00000000.vol", other);
    let error = recovered(&disk, &placement).await.unwrap_err();
    assert!(error.to_string().contains("another volume"), "{error}");
}

/// Breaks the disk, sees the volume stop, and checks that what was acked is still read and the rest is not.
async fn stops(break_it: impl FnOnce(&FaultyDisk), reason: &str) {
    let one = One::new(small()).await;
    let other = one.create(2).await;
    one.append(0..10).await;
    break_it(&one.disk);
    one.writer.append(vec![entry(key(1), 10); 1]).unwrap();
    for owner in [&one.owner, &other.1] {
        match owner.wait_ended().await {
            SegmentEnd::Failed(StoreError::Failed(why)) => assert!(why.contains(reason), "{why}"),
            end => panic!("ended as {end:?}"),
        }
    }
    assert_eq!(one.owner.acked_now(), 10);
    assert!(matches!(one.writer.append(vec![entry(key(1), 11)]), Err(StoreError::Ended)));
    let refused = one.backend.create(key(3), Epoch(1), Arc::new(Owner::default())).await;
    assert!(matches!(refused, Err(StoreError::Failed(_))), "{refused:?}");
    for end in [None, Some(10)] {
        assert_eq!(read_all(&one.backend, key(1), &one.placement(), end).await.unwrap(), 10);
    }
    *one.disk.faults() = Default::default();
    let next = backend(ROOT, small(), Arc::new(one.disk.process())).await;
    assert_eq!(next.fence(key(1), &one.placement(), Epoch(2)).await.unwrap(), 10);
    assert_eq!(read_all(&next, key(1), &one.placement(), None).await.unwrap(), 10);

    // A new volume is tried after a while.
    Clock::system().sleep(Duration::from_secs(11)).await;
    let (writer, owner) = one.create(4).await;
    writer.append(vec![entry(key(4), 0)]).unwrap();
    owner.wait_acked(1).await;
    assert_ne!(writer.placement().to_string(), one.placement().to_string());
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_stops_the_volume() {
    stops(|disk| disk.faults().fail_sync = Some(2), "I/O error").await;
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_stops_the_volume() {
    stops(|disk| disk.faults().fail_write = Some((2, 0, Some(ErrorKind::StorageFull))), "").await;
}

#[tokio::test(start_paused = true)]
async fn a_short_write_stops_the_volume() {
    stops(|disk| disk.faults().fail_write = Some((2, 100, Some(ErrorKind::WriteZero))), "").await;
}

#[tokio::test]
async fn no_room_for_the_first_file_stops_the_volume() {
    let one = One::new(small()).await;
    one.disk.faults().fail_preallocate = true;
    one.writer.append(vec![entry(key(1), 0)]).unwrap();
    assert!(matches!(one.owner.wait_ended().await, SegmentEnd::Failed(_)));
    assert_eq!(one.owner.acked_now(), 0);
}

#[tokio::test]
async fn a_file_that_found_no_room_ahead_of_time_is_made_when_it_is_needed() {
    let one = One::new(small()).await;
    let mut acked = 0;
    let mut append = async |batches| {
        for _ in 0..batches {
            one.writer.append(vec![vec![7; 100 << 10].into()]).unwrap();
            acked += 1;
            one.owner.wait_acked(acked).await;
        }
    };
    // Two batches fill a file.
    append(2).await;
    one.disk.faults().fail_preallocate = true;
    append(1).await;
    let third = || one.disk.names().iter().any(|name| name.ends_with("00000002.vol"));
    assert!(!third(), "what there was of it is given back");
    one.disk.faults().fail_preallocate = false;
    append(2).await;
    assert!(third());
}

#[tokio::test]
async fn a_foreign_directory_is_refused() {
    let disk = FaultyDisk::default();
    drop(backend(ROOT, small(), Arc::new(disk.clone())).await);
    for (content, message) in [("woodpecker-volumes 2\n", "woodpecker-volumes 2"), ("[core]\n", "[core]"), ("", "\"\"")]
    {
        disk.set_bytes("format", content.as_bytes().to_vec());
        let again = LocalBackend::open(
            ROOT,
            small(),
            Arc::new(disk.clone()),
            Clock::system(),
            woodpecker_base::random::Random::seeded(1),
        );
        let error = again.await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }));
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[tokio::test]
async fn a_volume_that_vanished_is_not_an_empty_one() {
    let one = One::new(small()).await;
    one.append(0..3).await;
    let elsewhere = FaultyDisk::default();
    let other = backend(ROOT, small(), Arc::new(elsewhere)).await;
    let fenced = other.fence(key(1), &one.placement(), Epoch(2)).await;
    assert!(matches!(fenced, Err(StoreError::NotFound { .. })), "{fenced:?}");
    other.delete(key(1), &one.placement()).await.unwrap();
}
