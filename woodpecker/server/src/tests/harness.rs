//! A store on loopback and a client that speaks raw gRPC.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use streaming_proto::logstore::{
    AppendRequest, AppendResponse, Refusal, Replica, State, append_response::Outcome, log_store_client::LogStoreClient,
};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tonic::{Status, Streaming, transport::Channel};
use woodpecker_base::{
    clock::Clock,
    disk::{Disk, RealDisk},
    metadata::{MemoryStore, MetadataStore, RedbStore},
    net::Listener,
    random::Random,
    tasks::Tasks,
};

use crate::{LogStore, Mark, Parts, Settings, Watermarks};

/// Nothing here takes longer, unless it hangs.
pub const LIMIT: Duration = Duration::from_secs(30);

pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match Clock::system().timeout(LIMIT, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what} took longer than {LIMIT:?}"),
    }
}

/// A store's directory, and the registry it is found in.
pub struct Site {
    pub dir: TempDir,
    pub disk: Arc<dyn Disk>,
    pub registry: Arc<MemoryStore>,
    pub settings: Settings,
}

/// A running store.
pub struct Running {
    pub store: LogStore,
    pub client: LogStoreClient<Channel>,
    pub address: String,
    facts: Arc<RedbStore>,
    tasks: Tasks,
}

impl Default for Site {
    fn default() -> Self {
        Self::on(Arc::new(RealDisk))
    }
}

impl Site {
    pub fn on(disk: Arc<dyn Disk>) -> Self {
        // The machine that runs the tests may be almost full.
        let never = Mark { used: 1.0, free: 0 };
        let watermarks = Watermarks { soft: never, hard: never };
        let (quiet, session_ttl) = (Duration::from_millis(20), Duration::from_secs(2));
        Self {
            dir: tempfile::tempdir().unwrap(),
            disk,
            registry: Arc::new(MemoryStore::new(Clock::system())),
            settings: Settings { watermarks, quiet, session_ttl, ..Settings::default() },
        }
    }

    pub async fn facts(&self) -> Arc<RedbStore> {
        Arc::new(RedbStore::open(&self.dir.path().join("store.redb"), Clock::system()).await.unwrap())
    }

    pub fn parts(&self, facts: Arc<dyn MetadataStore>) -> Parts {
        Parts {
            path: self.dir.path().to_owned(),
            disk: self.disk.clone(),
            facts,
            clock: Clock::system(),
            random: Random::system(),
        }
    }

    pub async fn start(&self) -> Running {
        self.start_found_in(self.registry.clone()).await
    }

    pub async fn start_found_in(&self, registry: Arc<dyn MetadataStore>) -> Running {
        self.start_with(registry, |facts| facts).await
    }

    /// Facts are kept where `kept` says.
    pub async fn start_with(
        &self,
        registry: Arc<dyn MetadataStore>,
        kept: impl FnOnce(Arc<dyn MetadataStore>) -> Arc<dyn MetadataStore>,
    ) -> Running {
        let facts = self.facts().await;
        let store = LogStore::start(self.settings.clone(), self.parts(kept(facts.clone()))).await.unwrap();
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.address().to_owned();
        let tasks = Tasks::new();
        let (running, stop) = (store.clone(), tasks.token().clone());
        tasks.spawn(async move { running.run(listener, registry, stop).await });
        let client = LogStoreClient::connect(format!("http://{address}")).await.unwrap();
        let client = client.max_decoding_message_size(64 << 20).max_encoding_message_size(64 << 20);
        Running { store, client, address, facts, tasks }
    }
}

/// Closes the facts once nobody uses them any more.
pub async fn close(mut facts: Arc<RedbStore>) {
    let closed = async {
        loop {
            match Arc::try_unwrap(facts) {
                Ok(facts) => return facts.close().await,
                Err(shared) => facts = shared,
            }
            Clock::system().sleep(Duration::from_millis(1)).await;
        }
    };
    within("closing the facts", closed).await;
}

impl Running {
    /// Stops in good order and gives the directory free.
    pub async fn stop(self) {
        let Self { store, client, facts, tasks, .. } = self;
        drop(client);
        assert!(tasks.drain(&Clock::system(), LIMIT).await, "the store did not stop");
        drop(store);
        close(facts).await;
    }

    /// Waits until so many units are on their way to the disk.
    pub async fn until_in_flight(&self, units: usize) {
        let queued = async {
            while self.store.store.in_flight_units() < units {
                Clock::system().sleep(Duration::from_millis(1)).await;
            }
        };
        within("queueing", queued).await;
    }

    pub async fn until_state(&self, state: State) {
        let reached = async {
            while self.store.status().state() != state {
                Clock::system().sleep(Duration::from_millis(2)).await;
            }
        };
        within(state.as_str_name(), reached).await;
    }

    pub fn facts(&self) -> &RedbStore {
        &self.facts
    }

    pub fn replica(&self, log: u64, segment: u64) -> Replica {
        self.replica_of("a", log, segment)
    }

    pub fn replica_of(&self, namespace: &str, log: u64, segment: u64) -> Replica {
        Replica { store: self.store.id().to_owned(), namespace: namespace.to_owned(), log, segment }
    }

    pub async fn stream(&self) -> Stream {
        let (frames, sent) = mpsc::channel(1_024);
        let sent = tokio_stream::wrappers::ReceiverStream::new(sent);
        let answers = within("opening a stream", self.client.clone().append(sent)).await.unwrap().into_inner();
        Stream { frames: Some(frames), answers }
    }

    /// Appends entries `from..to` on a stream of their own and waits until they are durable.
    pub async fn fill(&self, replica: &Replica, epoch: u64, from: u64, to: u64) {
        let mut stream = self.stream().await;
        stream.send(replica, epoch, from, to).await;
        stream.durable(replica, to).await;
    }
}

/// An append stream.
pub struct Stream {
    pub frames: Option<mpsc::Sender<AppendRequest>>,
    pub answers: Streaming<AppendResponse>,
}

/// What entry `number` of a replica holds.
pub fn entry(replica: &Replica, number: u64) -> Bytes {
    format!("{}/{}/{}#{number}", replica.namespace, replica.log, replica.segment).into()
}

pub fn frame(replica: &Replica, epoch: u64, from: u64, to: u64) -> AppendRequest {
    let entries = (from..to).map(|number| entry(replica, number)).collect();
    AppendRequest { replica: Some(replica.clone()), epoch, first: from, entries, committed: 0 }
}

/// Only tells what is acked.
pub fn committed(replica: &Replica, epoch: u64, committed: u64) -> AppendRequest {
    AppendRequest { committed, ..frame(replica, epoch, 0, 0) }
}

impl Stream {
    pub async fn send(&self, replica: &Replica, epoch: u64, from: u64, to: u64) {
        self.put(frame(replica, epoch, from, to)).await;
    }

    pub async fn put(&self, frame: AppendRequest) {
        within("sending", self.frames.as_ref().expect("open").send(frame)).await.unwrap();
    }

    pub async fn answer(&mut self) -> Option<AppendResponse> {
        within("an answer", self.answers.message()).await.unwrap()
    }

    /// Waits until every entry below `next` is durable.
    pub async fn durable(&mut self, replica: &Replica, next: u64) {
        loop {
            let answer = self.answer().await.expect("the stream ended");
            match answer.outcome {
                Some(Outcome::Durable(durable)) => {
                    if answer.replica.as_ref() == Some(replica) && durable >= next {
                        return;
                    }
                }
                other => panic!("{other:?} while waiting for {next}"),
            }
        }
    }

    /// Waits for the next refusal.
    pub async fn refusal(&mut self) -> Refusal {
        loop {
            if let Some(Outcome::Refused(refusal)) = self.answer().await.expect("the stream ended").outcome {
                return refusal;
            }
        }
    }
}

/// The refusal that a status carries.
pub fn refusal(status: &Status) -> Refusal {
    prost::Message::decode(status.details()).unwrap()
}
