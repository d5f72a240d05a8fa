//! A cluster whose servers follow a script.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use streaming_client::{Client, Discovery, Edges, Settings};
use streaming_proto::messages::InsertMessageHeader;
use streaming_types::{Message, MessageBuilder, PChannel};
use woodpecker_base::{clock::Clock, net, random::Random};

pub mod coordinator;
pub mod node;
pub mod wal;

pub use coordinator::Coordinator;
pub use node::{Node, OnOpen, OnProduce};
pub use wal::Wal;

pub const CHANNEL: &str = "by-dev-rootcoord-dml_0";
pub const VCHANNEL: &str = "by-dev-rootcoord-dml_0_1v0";
pub const SOON: Duration = Duration::from_secs(20);

/// Locks, also after a test thread panicked.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A runtime of its own for each server, so that dropping it is the death of a process.
pub struct Process {
    runtime: Option<tokio::runtime::Runtime>,
}

impl Process {
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { runtime: Some(runtime) }
    }

    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.as_ref().unwrap().spawn(task);
    }

    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A coordinator, one node that owns `CHANNEL` at term 1, and the log behind it.
pub struct Cluster {
    pub coordinator: Coordinator,
    pub node: Node,
    pub wal: Arc<Wal>,
}

impl Cluster {
    pub async fn start() -> Self {
        let wal = Arc::new(Wal::default());
        let coordinator = Coordinator::start(1).await;
        let node = Node::start(10, wal.clone()).await;
        coordinator.assign(&[(&node, &[channel(1)])]);
        Self { coordinator, node, wal }
    }

    pub fn client(&self) -> Client {
        self.client_with(|_| {})
    }

    pub fn client_with(&self, change: impl FnOnce(&mut Settings)) -> Client {
        connect(Discovery::Address(self.coordinator.address.clone()), change)
    }
}

pub fn connect(discovery: Discovery, change: impl FnOnce(&mut Settings)) -> Client {
    let mut settings = Settings::new(discovery);
    settings.timeouts.backoff_min = Duration::from_millis(20);
    settings.timeouts.backoff_max = Duration::from_millis(400);
    settings.timeouts.drain = Duration::from_millis(500);
    settings.timeouts.close = Duration::from_secs(5);
    change(&mut settings);
    let edges = Edges { connector: net::tcp_connector(), clock: Clock::system(), random: Random::seeded(7) };
    Client::connect(settings, edges).unwrap()
}

pub fn channel(term: i64) -> PChannel {
    PChannel::read_write(CHANNEL, term).unwrap()
}

pub fn message(payload: impl Into<bytes::Bytes>) -> Message {
    MessageBuilder::new(&InsertMessageHeader::default()).vchannel(VCHANNEL).payload(payload).build().unwrap()
}

pub fn text(number: usize) -> String {
    format!("message {number}")
}

/// The future's output, which a working client has long before the limit.
pub async fn soon<F: Future>(future: F) -> F::Output {
    Clock::system().timeout(SOON, future).await.expect("in time")
}

/// Waits until something holds.
pub async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let clock = Clock::system();
    let end = clock.now() + SOON;
    while !holds() {
        assert!(clock.now() < end, "never: {what}");
        clock.sleep(Duration::from_millis(5)).await;
    }
}
