use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt, memory::InMemory};
use proptest::prelude::*;
use test_peers::{S3, s3::Op};
use woodpecker_base::{clock::Clock, random::Random};
use woodpecker_core::{
    ids::{LogId, SealId, SegmentKey},
    record::{Compression, Sealed, SealedRun},
};

use super::{store::path, *};
use crate::{
    backend::{SegmentReader, StoreError},
    object::store::{ObjectStoreSettings, Secret},
};

const KEY: SegmentKey = SegmentKey { log: LogId(7), segment: 3 };
const SEAL: SealId = SealId(0xabc);
const ALL: [Compression; 3] = [Compression::None, Compression::Lz4, Compression::Zstd];

fn sealed_store(store: Arc<dyn ObjectStore>) -> Arc<SealedStore> {
    let settings = SealedSettings { cache_bytes: 8 << 20, ..SealedSettings::default() };
    SealedStore::new(store, settings, Clock::system(), Random::seeded(1))
}

fn memory() -> (Arc<InMemory>, Arc<SealedStore>) {
    let store = Arc::new(InMemory::new());
    (store.clone(), sealed_store(store))
}

/// The entries in runs of at most so many bytes each.
fn runs(entries: &[Bytes], compression: Compression, run_bytes: usize) -> Vec<Run> {
    let source = Source { key: KEY, seal: SEAL, entries: entries.len() as u64, compression, times: (10, 20) };
    let mut runs = Vec::new();
    let mut builder = RunBuilder::new(source, 0);
    for entry in entries {
        if builder.gathered() >= run_bytes {
            let next = builder.next();
            runs.push(std::mem::replace(&mut builder, RunBuilder::new(source, next)).finish().unwrap());
        }
        builder.push(entry.clone()).unwrap();
    }
    runs.push(builder.finish().unwrap());
    runs
}

async fn seal(store: &SealedStore, entries: &[Bytes], compression: Compression, run_bytes: usize) -> Sealed {
    let mut stored = Vec::new();
    for run in runs(entries, compression, run_bytes) {
        stored.push(store.put(&run).await.unwrap());
    }
    Sealed { id: SEAL, runs: stored, sealed_ms: 1, freed: false }
}

async fn read_all(reader: &dyn SegmentReader, max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
    let mut entries = Vec::new();
    loop {
        let some = reader.read(entries.len() as u64, max_bytes).await?;
        if some.is_empty() {
            return Ok(entries);
        }
        entries.extend(some);
    }
}

fn compressible(count: usize, bytes: usize) -> Vec<Bytes> {
    let line = |number: usize| format!("{number:08} all work and no play makes a dull log ").repeat(bytes / 40 + 1);
    (0..count).map(|number| Bytes::from(line(number)).slice(..bytes)).collect()
}

fn random(count: usize, bytes: usize) -> Vec<Bytes> {
    let mut random = Random::seeded(5).fork();
    (0..count).map(|_| (0..bytes).map(|_| random.u8(..)).collect::<Vec<_>>().into()).collect()
}

#[tokio::test]
async fn what_was_sealed_is_read_back_whatever_the_compression_and_the_sizes() {
    let mut mixed = random(40, 10_000);
    mixed.extend(compressible(200, 4_000));
    mixed.extend([Bytes::new(), Bytes::from(vec![7; 3 << 20]), Bytes::new()]);
    mixed.extend(random(3, 700_000));
    for compression in ALL {
        let (_, store) = memory();
        let sealed = seal(&store, &mixed, compression, 1 << 20).await;
        assert!(sealed.runs.len() > 1, "{compression:?}: {} runs", sealed.runs.len());
        let reader = store.open(KEY, &sealed, mixed.len() as u64);
        for max_bytes in [0, 5_000, 512 << 10, 64 << 20] {
            assert!(read_all(&*reader, max_bytes).await.unwrap() == mixed, "{compression:?}, {max_bytes} at once");
        }
        for from in [0, 1, 41, 239, 240, 241, 242, 245] {
            let first = reader.read(from, 0).await.unwrap();
            assert_eq!(first, [mixed[usize::try_from(from).unwrap()].clone()], "{compression:?}, entry {from}");
        }
        assert_eq!(reader.tail().await.unwrap(), mixed.len() as u64);
    }
}

#[tokio::test]
async fn compression_pays_where_it_can_and_costs_nothing_where_it_cannot() {
    let (_, store) = memory();
    let (text, noise) = (compressible(500, 1_000), random(500, 1_000));
    for (compression, at_most) in [(Compression::Lz4, 100_000), (Compression::Zstd, 60_000)] {
        let sealed = seal(&store, &text, compression, 1 << 20).await;
        assert!(sealed.runs[0].bytes < at_most, "{compression:?}: {}", sealed.runs[0].bytes);
    }
    let plain = seal(&store, &noise, Compression::None, 1 << 20).await;
    for compression in [Compression::Lz4, Compression::Zstd] {
        let packed = seal(&store, &noise, compression, 1 << 20).await;
        assert!(packed.runs[0].bytes <= plain.runs[0].bytes, "{compression:?}");
    }
}

#[tokio::test]
async fn every_flipped_bit_and_every_cut_is_found_and_no_wrong_entry_is_read() {
    for compression in ALL {
        let entries = compressible(6, 60);
        let run = runs(&entries, compression, 1 << 20).remove(0);
        run.check(&run.bytes).unwrap();
        for cut in 0..run.bytes.len() {
            run.check(&run.bytes.slice(..cut)).unwrap_err();
        }
        for at in 0..run.bytes.len() {
            for bit in 0..8 {
                let mut damaged = run.bytes.to_vec();
                damaged[at] ^= 1 << bit;
                let damaged = Bytes::from(damaged);
                assert!(run.check(&damaged).is_err(), "{compression:?}: bit {bit} of byte {at}");
                let (objects, store) = memory();
                objects.put(&path(run.id), damaged.into()).await.unwrap();
                let whole = SealedRun { first: 0, bytes: run.bytes.len() as u64 };
                let sealed = Sealed { id: SEAL, runs: vec![whole], sealed_ms: 1, freed: false };
                match read_all(&*store.open(KEY, &sealed, 6), 1 << 20).await {
                    // A reader looks at no header.
                    Ok(read) => assert!(read == entries && at < 52, "{compression:?}: bit {bit} of byte {at}"),
                    Err(error) => assert_eq!(error.code(), "STORE_CORRUPT", "{error}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn an_object_that_is_shorter_longer_or_anothers_is_an_error() {
    let entries = compressible(6, 60);
    let run = runs(&entries, Compression::None, 1 << 20).remove(0);
    let whole = run.bytes.len() as u64;
    let read = async |object: Bytes, at: SegmentKey, bytes: u64, count: u64| {
        let (objects, store) = memory();
        let run = RunBuilder::new(
            Source { key: at, seal: SEAL, entries: 1, compression: Compression::None, times: (0, 0) },
            0,
        );
        let mut run = run;
        run.push(Bytes::new()).unwrap();
        objects.put(&path(run.finish().unwrap().id), object.into()).await.unwrap();
        let runs = vec![SealedRun { first: 0, bytes }];
        let sealed = Sealed { id: SEAL, runs, sealed_ms: 1, freed: false };
        read_all(&*store.open(at, &sealed, count), 1 << 20).await
    };
    assert_eq!(read(run.bytes.clone(), KEY, whole, 6).await.unwrap(), entries);
    for cut in [0, 1, 51, 52, 60, run.bytes.len() - 1] {
        read(run.bytes.slice(..cut), KEY, whole, 6).await.unwrap_err();
    }
    // The record says where it ends, and how many entries the segment has.
    read(run.bytes.clone(), KEY, whole - 1, 6).await.unwrap_err();
    read(run.bytes.clone(), KEY, whole, 7).await.unwrap_err();
    read(run.bytes.clone(), KEY, 3, 6).await.unwrap_err();
    read(run.bytes.clone(), SegmentKey { log: LogId(8), segment: 3 }, whole, 6).await.unwrap_err();
    let (_, store) = memory();
    let sealed = Sealed { id: SEAL, runs: vec![SealedRun { first: 0, bytes: whole }], sealed_ms: 1, freed: false };
    let gone = store.open(KEY, &sealed, 6).read(0, 1).await.unwrap_err();
    assert_eq!(gone.code(), "STORE_NOT_FOUND");
}

async fn s3() -> (S3, Arc<SealedStore>) {
    let s3 = S3::start("bucket").await.unwrap();
    let settings = ObjectStoreSettings {
        bucket: "bucket".to_owned(),
        endpoint: s3.endpoint(),
        region: S3::REGION.to_owned(),
        access_key: S3::ACCESS_KEY.to_owned(),
        secret_key: Secret(S3::SECRET_KEY.to_owned()),
        allow_http: true,
        ..ObjectStoreSettings::default()
    };
    let store = sealed_store(settings.open().unwrap());
    (s3, store)
}

#[tokio::test]
async fn a_store_that_gives_back_something_else_is_noticed_before_anything_is_freed() {
    let (objects, store) = memory();
    let run = runs(&random(10, 100), Compression::None, 1 << 20).remove(0);
    // Another run of the same size under the same name.
    let mut other = run.bytes.to_vec();
    other[100] ^= 1;
    store.put(&run).await.unwrap();
    objects.put(&path(run.id), other.into()).await.unwrap();
    assert!(run.check(&objects.get(&path(run.id)).await.unwrap().bytes().await.unwrap()).is_err());
    let source = Run { content: run.content ^ 1, ..run.clone() };
    assert_eq!(store.put(&source).await.unwrap_err().code(), "STORE_CORRUPT");
}

#[tokio::test]
async fn readers_of_the_same_entries_share_one_request() {
    let (s3, store) = s3().await;
    let entries = random(64, 16 << 10);
    let sealed = seal(&store, &entries, Compression::None, 64 << 20).await;
    s3.faults().delay(Op::Get, Duration::from_millis(20));
    let before = s3.counts().gets;
    let readers = (0..50).map(|_| async {
        let reader = store.open(KEY, &sealed, 64);
        assert!(read_all(&*reader, 512 << 10).await.unwrap() == entries);
    });
    futures::future::join_all(readers).await;
    let gets = s3.counts().gets - before;
    // The index, and 1 MiB of blocks in one or two groups.
    assert!(gets <= 3, "{gets} requests for fifty readers");
}

#[tokio::test]
async fn what_compressed_well_is_read_in_parts_that_stay_in_memory() {
    let (s3, store) = s3().await;
    // Four times the cache, and hardly anything when stored.
    let entries = compressible(128, 256 << 10);
    let sealed = seal(&store, &entries, Compression::Lz4, 64 << 20).await;
    let before = s3.counts().gets;
    assert!(read_all(&*store.open(KEY, &sealed, 128), 256 << 10).await.unwrap() == entries);
    let gets = s3.counts().gets - before;
    // The index, and 32 MiB in groups of 1 MiB, each asked for once though it is read in four steps.
    assert!(gets <= 40, "{gets} requests");
}

#[tokio::test]
async fn what_no_record_names_can_be_found_and_removed_and_foreign_objects_stay() {
    let (objects, store) = memory();
    let entries = random(30, 1_000);
    let sealed = seal(&store, &entries, Compression::Lz4, 10_000).await;
    for foreign in ["sealed/7/readme", "sealed/7/00000000000000000003/short/00000000000000000000", "other/1"] {
        objects.put(&foreign.into(), Bytes::from_static(b"x").into()).await.unwrap();
    }
    let found = store.list().await.unwrap();
    assert_eq!(found.len(), sealed.runs.len());
    assert!(found.iter().all(|left| left.key == KEY && left.seal == SEAL && left.stored_ms > 0));
    store.remove(found).await.unwrap();
    assert!(store.list().await.unwrap().is_empty());
    store.delete(KEY, &sealed).await.unwrap();
    objects.get(&"sealed/7/readme".into()).await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_entries_come_back(
        entries in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2_000), 1..60),
        compression in prop::sample::select(ALL.to_vec()),
        run_bytes in 1_usize..20_000,
        max_bytes in 0_usize..5_000,
    ) {
        let entries: Vec<Bytes> = entries.into_iter().map(Bytes::from).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let read = runtime.block_on(async {
            let (_, store) = memory();
            let sealed = seal(&store, &entries, compression, run_bytes).await;
            read_all(&*store.open(KEY, &sealed, entries.len() as u64), max_bytes).await
        });
        prop_assert_eq!(read.unwrap(), entries);
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(
        object in prop::collection::vec(any::<u8>(), 0..400),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let run = runs(&compressible(5, 50), Compression::Lz4, 1 << 20).remove(0);
        prop_assert!(run.check(&object.into()).is_err());
        let mut damaged = run.bytes.to_vec();
        for (at, byte) in damage {
            let at = at.index(damaged.len());
            damaged[at] = byte;
        }
        let damaged = Bytes::from(damaged);
        prop_assert_eq!(run.check(&damaged).is_ok(), damaged == run.bytes);
    }
}
