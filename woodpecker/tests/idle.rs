//! What thousands of logs cost a process that does nothing with them. A test binary of its own: it measures its process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream};
use test_peers::{
    Etcd,
    usage::{busy, memory},
};
use woodpecker::{Client, Position, Reader, Settings, Writer};
use woodpecker_base::{
    clock::Clock,
    disk::RealDisk,
    metadata::{EtcdSettings, EtcdStore},
    random::Random,
    tasks::Tasks,
};
use woodpecker_store::{
    backend::Backend,
    disk::{LocalBackend, LocalSettings},
};

/// A quarter of ten thousand: what each costs is what counts, and creating them is what takes the time.
const LOGS: u64 = 2_500;
/// Opened before the first measurement, so that what the process needs once is there.
const FIRST: u64 = 200;
const AT_ONCE: usize = 256;
const WINDOW: Duration = Duration::from_secs(3);

/// What the process holds.
#[derive(Debug)]
struct Held {
    memory: u64,
    tasks: usize,
    threads: usize,
    files: usize,
}

impl Held {
    fn now() -> Self {
        Self {
            memory: memory(),
            tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
            threads: fs::read_dir("/proc/self/task").unwrap().count(),
            files: fs::read_dir("/proc/self/fd").unwrap().count(),
        }
    }
}

async fn client(root: &Path, etcd: &Etcd) -> Client {
    let (clock, random, tasks) = (Clock::system(), Random::system(), Tasks::new());
    let metadata = EtcdSettings::new([etcd.endpoint()]);
    let metadata = EtcdStore::connect(metadata, clock.clone(), random.clone()).await.unwrap();
    let settings = LocalSettings::default();
    let disk = Arc::new(RealDisk);
    let local = LocalBackend::open(root.join("logs"), settings, disk, clock.clone(), random.clone()).await.unwrap();
    let backends = BTreeMap::from([("local".to_owned(), Arc::new(local) as Arc<dyn Backend>)]);
    let settings = Settings {
        metadata_prefix: "test/woodpecker".to_owned(),
        backend: "local".to_owned(),
        segment_bytes: 256 << 20,
        segment_age: Duration::from_secs(600),
        in_flight_bytes: 64 << 20,
        read_ahead_bytes: Settings::READ_AHEAD_BYTES,
    };
    Client::new(settings, Arc::new(metadata), backends, clock, random, tasks)
}

/// Opens logs, each with a writer that has written an entry and a reader that has read it.
async fn open(client: &Client, numbers: std::ops::Range<u64>) -> Vec<(Writer, Reader)> {
    stream::iter(numbers)
        .map(|number| async move {
            let log = client.open_or_create_log(&format!("log-{number}")).await.unwrap();
            let writer = log.open_writer().await.unwrap();
            writer.append(vec![Bytes::from_static(b"entry")]).await.unwrap();
            let mut reader = log.reader(Position::Earliest);
            assert_eq!(reader.next().await.unwrap().len(), 1);
            (writer, reader)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await
}

#[tokio::test]
async fn idle_logs_cost_no_task_thread_or_file_little_memory_and_no_time() {
    let (dir, etcd) = (tempfile::tempdir().unwrap(), Etcd::start().await);
    let client = client(dir.path(), &etcd).await;
    let mut logs = open(&client, 0..FIRST).await;
    let before = Held::now();
    logs.extend(open(&client, FIRST..FIRST + LOGS).await);
    let after = Held::now();

    let busy_before = busy();
    Clock::system().sleep(WINDOW).await;
    let busy = busy() - busy_before;

    let each = after.memory.saturating_sub(before.memory) / LOGS;
    println!("{each} bytes a log, {busy:?} busy in {WINDOW:?}; {before:?} {after:?}");
    assert!(after.tasks <= before.tasks + 2, "tasks: {before:?} {after:?}");
    assert!(after.threads <= before.threads + 8, "threads: {before:?} {after:?}");
    assert!(after.files <= before.files + 8, "files: {before:?} {after:?}");
    assert!(each <= 4 << 10, "{each} bytes a log");
    assert!(busy < WINDOW / 100, "{busy:?} busy in {WINDOW:?}");

    // Every one of them is still good for an append.
    for (writer, reader) in logs.iter_mut().step_by(997) {
        writer.append(vec![Bytes::from_static(b"another")]).await.unwrap();
        assert_eq!(reader.next().await.unwrap()[0].payload, "another");
    }
    client.close().await;
}
