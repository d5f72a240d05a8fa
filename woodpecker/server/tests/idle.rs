//! What thousands of logs that nobody writes any more cost a log store. A test binary of its own: it measures its process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use streaming_proto::logstore::{
    AppendRequest, AppendResponse, Replica, append_response::Outcome, log_store_client::LogStoreClient,
};
use test_peers::usage::{busy, memory};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};
use woodpecker_base::{
    clock::Clock,
    disk::RealDisk,
    metadata::{MemoryStore, RedbStore},
    net::Listener,
    random::Random,
    tasks::Tasks,
};
use woodpecker_server::{LogStore, Mark, Parts, Settings, Watermarks};

const LOGS: u64 = 10_000;
/// Opened before the first measurement, so that what the process needs once is there.
const FIRST: u64 = 1_000;
/// Until a replica counts as quiet and what is known to be acked of it is written down.
const QUIET: Duration = Duration::from_millis(200);
const WINDOW: Duration = Duration::from_secs(3);

async fn start(directory: &tempfile::TempDir) -> (LogStore, LogStoreClient<Channel>, Tasks) {
    let facts = RedbStore::open(&directory.path().join("store.redb"), Clock::system()).await.unwrap();
    // The machine that runs the tests may be almost full.
    let never = Mark { used: 1.0, free: 0 };
    let watermarks = Watermarks { soft: never, hard: never };
    let parts = Parts {
        path: directory.path().to_owned(),
        disk: Arc::new(RealDisk),
        facts: Arc::new(facts),
        clock: Clock::system(),
        random: Random::system(),
    };
    let store = LogStore::start(Settings { watermarks, quiet: QUIET, ..Settings::default() }, parts).await.unwrap();
    let listener = Listener::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let client = format!("http://{}", listener.address());
    let (tasks, running) = (Tasks::new(), store.clone());
    let (registry, stop) = (Arc::new(MemoryStore::new(Clock::system())), tasks.token().clone());
    tasks.spawn(async move { running.run(listener, registry, stop).await });
    (store, LogStoreClient::connect(client).await.unwrap(), tasks)
}

/// A stream that stays open.
type Stream = (mpsc::Sender<AppendRequest>, Streaming<AppendResponse>);

/// Appends an entry to each log, says that it is acked, and waits until it is written down.
async fn append(store: &LogStore, client: &mut LogStoreClient<Channel>, logs: Range<u64>) -> Stream {
    let (frames, sent) = mpsc::channel(64);
    let mut answers = client.append(ReceiverStream::new(sent)).await.unwrap().into_inner();
    let sending = async {
        for log in logs.clone() {
            let name = Replica { store: store.id().to_owned(), namespace: "instance".to_owned(), log, segment: 1 };
            let entries = vec![Bytes::from_static(b"entry")];
            let frame = AppendRequest { replica: Some(name), epoch: 1, first: 0, entries, committed: 1 };
            frames.send(frame).await.unwrap();
        }
    };
    let hearing = async {
        for _ in logs.clone() {
            let answer = answers.message().await.unwrap().unwrap();
            assert_eq!(answer.outcome, Some(Outcome::Durable(1)));
        }
    };
    tokio::join!(sending, hearing);
    Clock::system().sleep(5 * QUIET).await;
    (frames, answers)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_logs_cost_a_store_little_memory_and_no_time() {
    let directory = tempfile::tempdir().unwrap();
    let (store, mut client, tasks) = start(&directory).await;
    let _first = append(&store, &mut client, 0..FIRST).await;
    let before = memory();
    let _rest = append(&store, &mut client, FIRST..FIRST + LOGS).await;
    let each = memory().saturating_sub(before) / LOGS;

    let busy_before = busy();
    Clock::system().sleep(WINDOW).await;
    let busy = busy() - busy_before;
    println!("{each} bytes a log, {busy:?} busy in {WINDOW:?}");
    assert!(each <= 3_500, "{each} bytes a log");
    assert!(busy < WINDOW / 100, "{busy:?} busy in {WINDOW:?}");
    tasks.stop();
}
