//! Damage, positions, and what deleting leaves.

use futures::TryStreamExt;
use object_store::{ObjectStoreExt, path::Path};

use super::*;

async fn objects(store: &Arc<dyn ObjectStore>) -> Vec<Path> {
    store.list(None).map_ok(|meta| meta.location).try_collect().await.unwrap()
}

#[tokio::test]
async fn damaged_objects_are_errors_and_never_other_bytes() {
    let shared = Shared::memory();
    let (backend, _tasks) = shared.backend();
    let log = Log::create(&backend, 1).await;
    log.write("the first entry").await;
    log.write("the second entry").await;
    let path = objects(&shared.store).await.remove(0);
    let good = shared.store.get(&path).await.unwrap().bytes().await.unwrap();
    let mut damaged: Vec<Vec<u8>> = (0..good.len()).map(|length| good[..length].to_vec()).collect();
    for bit in 0..good.len() * 8 {
        let mut bytes = good.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        damaged.push(bytes);
    }
    for (case, bytes) in damaged.into_iter().enumerate() {
        shared.store.put(&path, bytes.into()).await.unwrap();
        let (fresh, _tasks) = shared.backend();
        match log.reader(&fresh, Some(2)).await.read(0, 1000).await {
            Err(StoreError::Corrupt { .. }) => {}
            other => panic!("case {case}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_damaged_tail_is_not_trusted_by_a_fence() {
    let shared = Shared::memory();
    let (backend, _tasks) = shared.backend();
    let log = Log::create(&backend, 1).await;
    log.write("entry").await;
    let path = objects(&shared.store).await.remove(0);
    shared.store.put(&path, "garbage".into()).await.unwrap();
    let (fresh, _tasks) = shared.backend();
    let fence = fresh.fence(log.key, log.placement(), Epoch(2)).await;
    assert!(matches!(fence, Err(StoreError::Corrupt { .. })), "{fence:?}");
}

#[tokio::test]
async fn a_reader_goes_back_and_forth() {
    let shared = Shared::memory().with(|settings| settings.puts_per_second = 100_000);
    let (writing, _tasks) = shared.backend();
    let log = Log::create(&writing, 1).await;
    for number in 0..300_u32 {
        log.write(number.to_le_bytes().to_vec()).await;
    }
    let (reading, _tasks) = shared.backend();
    for backend in [&writing, &reading] {
        let reader = log.reader(backend, None).await;
        for from in [299, 0, 150, 149, 298, 7, 299, 31, 32, 33, 64] {
            let entries = reader.read(from, 12).await.unwrap();
            assert_eq!(entries.len() as u64, 3.min(300 - from));
            assert_eq!(entries[0], u32::try_from(from).unwrap().to_le_bytes().to_vec());
        }
    }
}

#[tokio::test]
async fn objects_go_when_no_segment_needs_them_and_the_end_stays_known() {
    let shared = Shared::memory().with(|settings| settings.puts_per_second = 100_000);
    let (backend, _tasks) = shared.backend();
    let (short, long) = (Log::create(&backend, 1).await, Log::create(&backend, 2).await);
    for number in 0..100 {
        short.write(format!("short {number}")).await;
    }
    for number in 0..200 {
        long.write(format!("long {number}")).await;
    }
    backend.delete(short.key, short.placement()).await.unwrap();
    let left = objects(&shared.store).await;
    assert_eq!(left.len(), 200, "{left:?}");

    let (other, _tasks) = shared.backend();
    let expected: Vec<Bytes> = (0..200).map(|number| format!("long {number}").into()).collect();
    assert_eq!(read_from(&long.reader(&other, None).await, 0, 500).await, expected);
    assert_eq!(other.fence(long.key, long.placement(), Epoch(2)).await.unwrap(), 200);
    long.append("after the fence");
    assert!(matches!(long.owner.wait_ended().await, SegmentEnd::Fenced));

    backend.delete(long.key, long.placement()).await.unwrap();
    let left = objects(&shared.store).await;
    assert!((1..=160).contains(&left.len()), "{}", left.len());
    assert!(left.last().unwrap().as_ref().ends_with("300"), "the fence stays: {left:?}");
}

#[tokio::test]
async fn a_fence_lands_before_the_writer_wherever_collecting_stopped() {
    let shared = Shared::memory().with(|settings| settings.puts_per_second = 100_000);
    for objects in 190..=225 {
        let (old, _tasks) = shared.backend();
        let (short, long) = (Log::create(&old, 1).await, Log::create(&old, 2).await);
        for _ in 1..objects {
            short.write("x").await;
        }
        long.write("y").await;
        old.delete(short.key, short.placement()).await.unwrap();
        let (new, _tasks) = shared.backend();
        assert_eq!(new.fence(long.key, long.placement(), Epoch(2)).await.unwrap(), 1);
        long.append("after the fence");
        let end = long.owner.wait_ended().await;
        assert!(matches!(end, SegmentEnd::Fenced), "{objects} objects: {end:?}");
    }
}

#[tokio::test]
async fn a_dead_process_s_objects_go_when_their_segments_are_deleted() {
    let shared = Shared::memory().with(|settings| settings.puts_per_second = 100_000);
    let (dead, tasks) = shared.backend();
    let (one, two) = (Log::create(&dead, 1).await, Log::create(&dead, 2).await);
    for number in 0..250 {
        one.append(format!("one {number}"));
        two.write(format!("two {number}")).await;
    }
    tasks.stop();
    let before = objects(&shared.store).await.len();
    let (heir, _tasks) = shared.backend();
    let tails = [
        heir.fence(one.key, one.placement(), Epoch(2)).await.unwrap(),
        heir.fence(two.key, two.placement(), Epoch(2)).await.unwrap(),
    ];
    assert_eq!(tails, [250, 250]);
    heir.delete(one.key, one.placement()).await.unwrap();
    let named = [(two.key, two.placement().clone())];
    for live in [&named[..], &[]] {
        let kept = read_from(&two.reader(&heir, Some(250)).await, 0, 500).await;
        let expected: Vec<Bytes> = (0..250).map(|number| format!("two {number}").into()).collect();
        assert_eq!(kept, expected);
        let surveyed = heir.survey().await.unwrap();
        heir.reclaim(&surveyed, live, Duration::ZERO).await.unwrap();
    }
    heir.delete(two.key, two.placement()).await.unwrap();
    heir.delete(two.key, two.placement()).await.unwrap();
    let left = objects(&shared.store).await.len();
    assert!(left == 1 && left < before, "{left} of {before} are left");
}

#[tokio::test]
async fn a_position_that_is_gone_is_an_error() {
    let shared = Shared::memory().with(|settings| settings.puts_per_second = 100_000);
    let (backend, _tasks) = shared.backend();
    let (log, other) = (Log::create(&backend, 1).await, Log::create(&backend, 2).await);
    for number in 0..200 {
        log.write(format!("entry {number}")).await;
    }
    other.write("x").await;
    backend.delete(log.key, log.placement()).await.unwrap();
    let (fresh, _tasks) = shared.backend();
    let gone = log.reader(&fresh, Some(200)).await.read(0, 100).await;
    assert!(matches!(gone, Err(StoreError::NotFound { .. })), "{gone:?}");
}
