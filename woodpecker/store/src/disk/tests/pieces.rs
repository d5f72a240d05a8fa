//! Segments in pieces: one process begins them, a later one goes on in a volume of its own.

use std::sync::Arc;

use woodpecker_base::disk::Disk;

use super::{One, ROOT, backend, entry, key, small};
use crate::{
    backend::{Backend, StoreError},
    conformance::Owner,
    disk::{LocalBackend, LocalSettings, Piece},
};

async fn pieces(backend: &LocalBackend) -> Vec<Piece> {
    let volumes = backend.pieces().await.unwrap();
    volumes.into_iter().flat_map(|(_, pieces)| pieces.unwrap()).collect()
}

#[tokio::test]
async fn a_later_process_finds_a_piece_and_goes_on_behind_it() {
    let one = One::new(small()).await;
    one.append(0..7).await;
    one.append(7..10).await;
    let two = backend(ROOT, small(), Arc::new(one.disk.process())).await;
    let found = pieces(&two).await;
    let [piece] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((piece.key, piece.first, piece.end, piece.whole), (key(1), 0, 10, true));
    let bytes: usize = (0..10).map(|number| entry(key(1), number).len()).sum();
    assert_eq!(piece.bytes, bytes as u64, "the bytes of its entries");
    assert_eq!(piece.placement, one.placement());

    let owner = Owner::default();
    let writer = two.create_piece(key(1), Arc::new(owner.clone()), 10, 5).await.unwrap();
    assert_eq!(writer.append((10..15).map(|number| entry(key(1), number)).collect()).unwrap(), 10);
    owner.wait_acked(15).await;
    assert_eq!(pieces(&two).await, found, "one's own volume is left out");
    let reader = two.open(key(1), writer.placement(), None).await.unwrap();
    assert_eq!(reader.tail().await.unwrap(), 15);
    assert_eq!(reader.read(12, 0).await.unwrap(), [entry(key(1), 12)]);
    assert!(matches!(reader.read(3, 0).await, Err(StoreError::Corrupt { .. })), "it is in the other piece");

    let three = backend(ROOT, small(), Arc::new(one.disk.process())).await;
    let mut ends: Vec<_> = pieces(&three).await.iter().map(|piece| (piece.first, piece.end)).collect();
    ends.sort_unstable();
    assert_eq!(ends, [(0, 10), (10, 15)]);
    let second = writer.placement().clone();
    let reader = three.open(key(1), &second, Some(15)).await.unwrap();
    assert_eq!(reader.read(14, 0).await.unwrap(), [entry(key(1), 14)]);
    three.delete(key(1), &second).await.unwrap();
    assert_eq!(pieces(&three).await.iter().map(|piece| piece.end).collect::<Vec<_>>(), [10]);
}

#[tokio::test]
async fn what_was_found_stays_though_its_writer_never_synced_it() {
    let one = One::new(small()).await;
    one.append(0..5).await;
    let writes = one.disk.faults().writes;
    one.disk.faults().fail_write = Some((writes + 1, usize::MAX, None));
    one.writer.append(vec![entry(key(1), 5)]).unwrap();
    one.owner.wait_ended().await;
    let two = backend(ROOT, small(), Arc::new(one.disk.process())).await;
    let found = pieces(&two).await;
    assert_eq!(found[0].end, 6, "the batch is whole");
    one.disk.crash();
    let three = backend(ROOT, small(), Arc::new(one.disk.process())).await;
    assert_eq!(pieces(&three).await, found, "what was counted is gone");
}

#[tokio::test]
async fn a_piece_whose_file_was_lost_is_not_whole() {
    let one = One::new(LocalSettings { file_bytes: 16 << 10, ..small() }).await;
    for number in 0..20 {
        one.append(number..number + 1).await;
    }
    let volume = format!("{ROOT}/volumes/{}", one.placement());
    one.disk.remove_file(format!("{volume}/00000002.vol").as_ref()).unwrap();
    let two = backend(ROOT, small(), Arc::new(one.disk.process())).await;
    let found = pieces(&two).await;
    assert!(found.iter().all(|piece| !piece.whole) && found.len() == 1, "{found:?}");
}
