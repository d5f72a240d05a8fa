use std::{
    fs::OpenOptions,
    io,
    ops::Bound,
    os::unix::fs::MetadataExt,
    sync::atomic::{AtomicBool, Ordering},
};

use futures::future::ready;
use redb::{BackendError, Builder, StorageBackend, backends::FileBackend};

use super::*;
use crate::metadata::{
    Compare, WatchEvent,
    conformance::{self, Subject},
};

#[tokio::test]
async fn the_contract_holds() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let store = Arc::new(RedbStore::open(&dir.path().join("store.redb"), clock.clone()).await.unwrap());
    let compacted = store.clone();
    let compact = Box::new(move |revision| {
        compacted.compact(revision);
        ready(()).boxed()
    });
    conformance::all(&Subject { store, clock, compact }).await;
}

#[tokio::test]
async fn keys_and_revisions_survive_and_leases_of_the_dead_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta/store.redb");
    let store = RedbStore::open(&path, Clock::system()).await.unwrap();
    let lease = store.grant_lease(Duration::from_secs(3600)).await.unwrap();
    let txn = Txn::new().put("a", "1").put("b", "2").put_leased("c", "3", lease);
    assert_eq!(store.commit(txn).await.unwrap(), TxnOutcome::Committed(2));
    assert_eq!(store.commit(Txn::new().delete("b")).await.unwrap(), TxnOutcome::Committed(3));
    let Snapshot { items: before, .. } = store.list("").await.unwrap();
    store.close().await;

    let store = RedbStore::open(&path, Clock::system()).await.unwrap();
    let left = Snapshot { revision: 4, items: before.into_iter().filter(|item| item.key != "c").collect() };
    assert_eq!(left.items.len(), 1);
    assert_eq!(store.list("").await.unwrap(), left);
    let mut watch = store.watch("", 1).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap(), WatchEvent::Resync(left));
    let next = store.grant_lease(Duration::from_secs(60)).await.unwrap();
    assert!(next > lease, "a lease id came back");
    let txn = Txn::new().when(Compare::ModRevision("a".to_owned(), 2)).put("a", "4");
    assert_eq!(store.commit(txn).await.unwrap(), TxnOutcome::Committed(5));
    store.close().await;
    assert!(matches!(watch.next().await, Some(Ok(WatchEvent::Put(_)))));
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn a_second_opener_is_told_who_may_use_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = RedbStore::open(&path, Clock::system()).await.unwrap();
    let error = RedbStore::open(&path, Clock::system()).await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("in use by another process"), "{error}");
    store.close().await;
    RedbStore::open(&path, Clock::system()).await.unwrap();
}

#[tokio::test]
async fn a_damaged_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    std::fs::write(&path, "this is no database".repeat(500)).unwrap();
    let error = RedbStore::open(&path, Clock::system()).await.unwrap_err();
    assert!(error.to_string().contains("store.redb"), "{error}");
}

/// A file whose syncs fail while the switch is on.
#[derive(Debug)]
struct Flaky {
    file: FileBackend,
    failing: Arc<AtomicBool>,
}

impl StorageBackend for Flaky {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.failing.load(Ordering::Relaxed) {
            return Err(io::Error::other("the sync failed"));
        }
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }
}

#[tokio::test]
async fn after_a_failed_sync_the_file_is_written_anew_and_the_store_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let failing = Arc::new(AtomicBool::new(false));
    let switch = failing.clone();
    let create: Create = Box::new(move |path| {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        Builder::new().create_with_backend(Flaky { file: FileBackend::new(file)?, failing: switch.clone() })
    });
    let store = RedbStore::open_with(&path, Clock::system(), create).await.unwrap();
    let lease = store.grant_lease(Duration::from_secs(3600)).await.unwrap();
    store.commit(Txn::new().put("kept", "1").put_leased("leased", "2", lease)).await.unwrap();
    let mut watch = store.watch("", 3).await.unwrap();
    let inode = || std::fs::metadata(&path).unwrap().ino();
    let failed = inode();

    failing.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        let error = store.commit(Txn::new().put("unknown", "3")).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        assert_eq!(store.list("").await.unwrap().items.len(), 2, "reads go on");
    }
    failing.store(false, Ordering::Relaxed);
    // An attempt to mend it failed too, so the next one waits a little.
    let mended = async {
        while store.commit(Txn::new().put("after", "4")).await.is_err() {
            Clock::system().sleep(Duration::from_millis(20)).await;
        }
    };
    Clock::system().timeout(Duration::from_secs(10), mended).await.expect("it goes on");
    assert_ne!(inode(), failed, "what a failed sync left is not used again");
    assert!(matches!(watch.next().await, Some(Ok(WatchEvent::Put(item))) if item.key == "after"));
    store.keep_alive(lease).await.unwrap();
    assert!(store.grant_lease(Duration::from_secs(60)).await.unwrap() > lease);
    let before = store.list("").await.unwrap();
    assert_eq!(before.items.iter().map(|item| item.key.as_str()).collect::<Vec<_>>(), ["after", "kept", "leased"]);
    store.close().await;

    // The lease's owner is gone with the process; the rest is there.
    let store = RedbStore::open(&path, Clock::system()).await.unwrap();
    let left: Vec<_> = before.items.into_iter().filter(|item| item.key != "leased").collect();
    assert_eq!(store.list("").await.unwrap().items, left);
}
