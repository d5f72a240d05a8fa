//! What reads of a segment take from the disk, and what a reader keeps of it.

use std::sync::Arc;

use bytes::Bytes;

use super::{One, ROOT, backend, key};
use crate::{
    backend::{Backend, SegmentReader},
    disk::{LocalBackend, LocalSettings},
};

/// Blocks of so many entries.
const BLOCK: usize = 3;
const BLOCKS: usize = 40;
const ENTRIES: u64 = (BLOCK * BLOCKS) as u64;
const ENTRY_BYTES: usize = 100 << 10;
/// Entries of one read, which no block ends with.
const CHUNK: u64 = 10;
/// Reads that are made at once.
const AT_ONCE: usize = 8;

async fn filled() -> One {
    let one = One::new(LocalSettings::default()).await;
    for block in 0..BLOCKS {
        one.writer.append(vec![Bytes::from(vec![7; ENTRY_BYTES]); BLOCK]).unwrap();
        one.owner.wait_acked(((block + 1) * BLOCK) as u64).await;
    }
    one
}

async fn reader(backend: &LocalBackend, one: &One) -> Arc<dyn SegmentReader> {
    backend.open(key(1), &one.placement(), Some(ENTRIES)).await.unwrap()
}

#[tokio::test]
async fn reads_that_come_in_any_order_take_each_block_from_the_disk_once() {
    let one = filled().await;
    let disk = one.disk.process();
    let other = backend(ROOT, LocalSettings::default(), Arc::new(disk.clone())).await;
    // Finds the blocks, which is not counted, and keeps the volume.
    let finder = reader(&other, &one).await;
    finder.read(0, 1).await.unwrap();
    let chunks: Vec<u64> = (0..ENTRIES).step_by(usize::try_from(CHUNK).unwrap()).collect();
    let stored = ENTRY_BYTES * BLOCK * BLOCKS;
    for backwards in [false, true] {
        let (reader, before) = (reader(&other, &one).await, disk.faults().read_bytes);
        for some in chunks.chunks(AT_ONCE) {
            let mut some = some.to_vec();
            if backwards {
                some.reverse();
            }
            for from in some {
                let mut next = from;
                while next < from + CHUNK {
                    let entries = reader.read_before(next, from + CHUNK, usize::MAX).await.unwrap();
                    assert!(entries.iter().all(|entry| entry.len() == ENTRY_BYTES));
                    next += entries.len() as u64;
                }
                assert_eq!(next, from + CHUNK);
            }
        }
        let read = disk.faults().read_bytes - before;
        // What lies between the blocks is read with them.
        assert!((stored..stored + stored / 20).contains(&read), "{read} of {stored} bytes, backwards {backwards}");
    }
}

#[tokio::test]
async fn a_reader_keeps_nothing_of_what_was_taken() {
    let one = filled().await;
    let other = backend(ROOT, LocalSettings::default(), Arc::new(one.disk.process())).await;
    let reader = reader(&other, &one).await;
    let mut next = 0;
    let mut last = None;
    while next < ENTRIES {
        let mut entries = reader.read(next, 1 << 20).await.unwrap();
        next += entries.len() as u64;
        last = entries.pop();
    }
    assert!(last.unwrap().is_unique(), "the reader has the last run still");
}
