//! A log store in memory behind real gRPC, with switches for what goes wrong.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use streaming_proto::logstore::{
    AppendRequest, AppendResponse, Code, DecommissionRequest, DeleteNamespaceRequest, DeleteNamespaceResponse,
    DescribeRequest, DescribeResponse, FenceRequest, FenceResponse, ListRequest, ListResponse, ReadRequest,
    ReadResponse, ReleaseRequest, ReleaseResponse, Replica, State, StatusRequest, StatusResponse,
    append_response::Outcome,
    log_store_server::{LogStore, LogStoreServer},
};
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};
use woodpecker_base::{clock::Clock, net::Listener, tasks::Tasks};
use woodpecker_core::ids::{SegmentKey, StoreId};

use crate::quorum::refusal::Refusal;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What goes wrong.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    /// It takes everything and says nothing, as a process that was stopped.
    pub silent: bool,
    /// Between an append and its confirmation.
    pub slow: Duration,
    /// Appends are refused so.
    pub refuse: Option<Refusal>,
    /// Readers are told that the store goes.
    pub mute: bool,
    /// Reads find a checksum that does not hold.
    pub corrupt: bool,
    /// Streams of appends break when this changes.
    pub broken: u64,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    pub entries: Vec<Bytes>,
    pub committed: u64,
    pub fenced: u64,
    pub end: Option<(u64, u64)>,
    pub owner: u64,
    pub released: bool,
}

#[derive(Debug)]
pub(super) struct FakeStore {
    pub id: StoreId,
    /// Under this name it answers.
    name: Mutex<String>,
    held: Mutex<BTreeMap<SegmentKey, Held>>,
    /// Entry bytes of the largest message.
    largest: AtomicUsize,
    /// Reads that were asked for.
    reads: AtomicUsize,
    faults: watch::Sender<Faults>,
    changed: watch::Sender<()>,
    tasks: Tasks,
    clock: Clock,
}

fn key(replica: Option<&Replica>) -> SegmentKey {
    let replica = replica.expect("every request names its replica");
    SegmentKey { log: woodpecker_core::ids::LogId(replica.log), segment: replica.segment }
}

impl FakeStore {
    /// A store on loopback, and its address.
    pub async fn start(id: u128) -> (Arc<Self>, String) {
        let store = Arc::new(Self {
            id: StoreId(id),
            name: Mutex::new(StoreId(id).to_string()),
            held: Mutex::default(),
            largest: AtomicUsize::new(0),
            reads: AtomicUsize::new(0),
            faults: watch::Sender::default(),
            changed: watch::Sender::default(),
            tasks: Tasks::new(),
            clock: Clock::system(),
        });
        let listener = Listener::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.address().to_owned();
        let service = LogStoreServer::new(Handler(store.clone()))
            .max_decoding_message_size(64 << 20)
            .max_encoding_message_size(64 << 20);
        let served = Server::builder().add_service(service).serve_with_incoming(listener);
        store.tasks.spawn_until_stopped(served);
        (store, address)
    }

    /// Ends it, and every connection, as a crash does.
    pub fn kill(&self) {
        self.fault(|faults| faults.broken += 1);
        self.tasks.stop();
    }

    pub fn fault(&self, change: impl FnOnce(&mut Faults)) {
        self.faults.send_modify(change);
    }

    /// Another disk is under it now.
    pub fn lose_disk(&self) {
        self.lock().clear();
        *self.name.lock().unwrap() = StoreId(!self.id.0).to_string();
    }

    pub fn lock(&self) -> MutexGuard<'_, BTreeMap<SegmentKey, Held>> {
        self.held.lock().unwrap()
    }

    pub fn held(&self, key: SegmentKey) -> Held {
        self.lock().get(&key).cloned().unwrap_or_default()
    }

    /// Entry bytes of the largest message so far.
    pub fn largest(&self) -> usize {
        self.largest.load(Ordering::Relaxed)
    }

    /// How many reads were asked for so far.
    pub fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }

    pub async fn wait(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let mut changed = self.changed.subscribe();
        let waited = async {
            while !holds() {
                changed.changed().await.unwrap();
            }
        };
        assert!(self.clock.timeout(Duration::from_secs(10), waited).await.is_ok(), "waited in vain for {what}");
    }

    async fn gate(&self) {
        let _ = self.faults.subscribe().wait_for(|faults| !faults.silent).await;
    }

    fn check(&self, replica: Option<&Replica>) -> Result<SegmentKey, Refusal> {
        let name = self.name.lock().unwrap().clone();
        match replica {
            Some(replica) if replica.store == name => Ok(key(Some(replica))),
            _ => Err(Refusal::new(Code::WrongStore, format!("this is {name}"))),
        }
    }

    /// How a frame comes out.
    fn append(&self, request: &AppendRequest) -> Result<u64, Refusal> {
        let key = self.check(request.replica.as_ref())?;
        self.largest.fetch_max(request.entries.iter().map(Bytes::len).sum(), Ordering::Relaxed);
        if let Some(refusal) = self.faults.borrow().refuse.clone() {
            return Err(refusal);
        }
        let mut all = self.lock();
        let held = all.entry(key).or_default();
        if held.released {
            return Err(Refusal::new(Code::Released, "released"));
        }
        if request.epoch < held.fenced {
            return Err(Refusal::new(Code::Fenced, format!("fenced at {}", held.fenced)));
        }
        if request.epoch != held.fenced && !held.entries.is_empty() && request.epoch != held.owner {
            return Err(Refusal::new(Code::NotContinued, "begun by another"));
        }
        held.owner = request.epoch;
        let durable = held.entries.len() as u64;
        if request.first > durable && !request.entries.is_empty() {
            return Err(Refusal::new(Code::Gap, format!("holds {durable}, got {}", request.first)));
        }
        let known = usize::try_from(durable.saturating_sub(request.first)).unwrap();
        held.entries.extend(request.entries.iter().skip(known).cloned());
        held.committed = held.committed.max(request.committed);
        let durable = held.entries.len() as u64;
        drop(all);
        self.changed.send_replace(());
        Ok(durable)
    }

    async fn answer_appends(
        self: Arc<Self>,
        mut requests: Streaming<AppendRequest>,
        answers: tokio::sync::mpsc::Sender<Result<AppendResponse, Status>>,
    ) {
        let broken = self.faults.borrow().broken;
        let mut faults = self.faults.subscribe();
        // By segment: frames are passed over until one begins at or below the refused one.
        let mut refused: BTreeMap<SegmentKey, u64> = BTreeMap::new();
        loop {
            let request = tokio::select! {
                request = requests.message() => request,
                _ = faults.wait_for(|faults| faults.broken != broken) => Err(Status::unavailable("broken")),
            };
            let Ok(Some(request)) = request else {
                let _ = answers.send(Err(Status::unavailable("broken"))).await;
                return;
            };
            let at = key(request.replica.as_ref());
            if refused.get(&at).is_some_and(|first| request.first > *first) {
                continue;
            }
            refused.remove(&at);
            let slow = self.faults.borrow().slow;
            self.clock.sleep(slow).await;
            self.gate().await;
            let outcome = match self.append(&request) {
                Ok(_) if request.entries.is_empty() => continue,
                Ok(durable) => Outcome::Durable(durable),
                Err(refusal) => {
                    refused.insert(at, request.first);
                    Outcome::Refused(refusal.to_wire())
                }
            };
            let answer = AppendResponse { replica: request.replica, outcome: Some(outcome) };
            if answers.send(Ok(answer)).await.is_err() {
                return;
            }
        }
    }

    /// The next answer to a read, when there is one; `None` at the end.
    async fn next_read(&self, request: &ReadRequest, from: u64) -> Option<Result<ReadResponse, Status>> {
        let key = key(request.replica.as_ref());
        let (mut changed, mut faults) = (self.changed.subscribe(), self.faults.subscribe());
        loop {
            self.gate().await;
            if self.faults.borrow().mute {
                return Some(Err(Status::unavailable("going")));
            }
            if self.faults.borrow().corrupt {
                return Some(Err(Refusal::new(Code::Corrupt, "a checksum").to_status()));
            }
            let held = self.held(key);
            if held.released {
                return Some(Err(Refusal::new(Code::Released, "released").to_status()));
            }
            let limit = if request.end == 0 { held.committed } else { request.end };
            let (mut entries, mut bytes) = (Vec::new(), 0);
            for entry in held.entries.iter().take(usize::try_from(limit).unwrap()).skip(usize::try_from(from).unwrap())
            {
                bytes += entry.len() as u64;
                if !entries.is_empty() && bytes > request.max_bytes {
                    break;
                }
                entries.push(entry.clone());
            }
            if !entries.is_empty() {
                return Some(Ok(ReadResponse { first: from, entries, committed: held.committed }));
            }
            if !request.follow || (request.end > 0 && from >= request.end) {
                return None;
            }
            tokio::select! {
                _ = changed.changed() => {}
                _ = faults.changed() => {}
            }
        }
    }
}

struct Handler(Arc<FakeStore>);

#[tonic::async_trait]
impl LogStore for Handler {
    type AppendStream = Answers<AppendResponse>;
    type ReadStream = Answers<ReadResponse>;
    type ListStream = Answers<ListResponse>;

    async fn append(&self, request: Request<Streaming<AppendRequest>>) -> Result<Response<Self::AppendStream>, Status> {
        let (answers, stream) = tokio::sync::mpsc::channel(64);
        self.0.tasks.spawn_until_stopped(self.0.clone().answer_appends(request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(stream).boxed()))
    }

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        self.0.reads.fetch_add(1, Ordering::Relaxed);
        self.0.gate().await;
        let request = request.into_inner();
        self.0.check(request.replica.as_ref()).map_err(|refusal| refusal.to_status())?;
        let (store, from) = (self.0.clone(), request.from);
        let answers = stream::unfold((store, request, Some(from)), |(store, request, from)| async move {
            let answer = store.next_read(&request, from?).await?;
            let next = answer.as_ref().ok().map(|answer| answer.first + answer.entries.len() as u64);
            Some((answer, (store, request, next)))
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn fence(&self, request: Request<FenceRequest>) -> Result<Response<FenceResponse>, Status> {
        self.0.gate().await;
        let request = request.into_inner();
        let key = self.0.check(request.replica.as_ref()).map_err(|refusal| refusal.to_status())?;
        let mut all = self.0.lock();
        let held = all.entry(key).or_default();
        if held.released {
            return Err(Refusal::new(Code::Released, "released").to_status());
        }
        if request.epoch < held.fenced {
            return Err(Refusal::new(Code::Fenced, format!("fenced at {}", held.fenced)).to_status());
        }
        held.fenced = request.epoch;
        if let Some(end) = request.end
            && held.end.is_none_or(|(epoch, _)| epoch < request.epoch)
        {
            held.end = Some((request.epoch, end));
            held.committed = held.committed.max(end);
        }
        let (end_epoch, end) = held.end.unzip();
        let durable = held.entries.len() as u64;
        let answer =
            FenceResponse { durable, committed: held.committed, end, end_epoch: end_epoch.unwrap_or_default() };
        drop(all);
        self.0.changed.send_replace(());
        Ok(Response::new(answer))
    }

    async fn describe(&self, request: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        self.0.gate().await;
        let key = self.0.check(request.get_ref().replica.as_ref()).map_err(|refusal| refusal.to_status())?;
        let Held { entries, committed, fenced, released, .. } = self.0.held(key);
        let durable = entries.len() as u64;
        Ok(Response::new(DescribeResponse { durable, committed, fenced, released }))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        self.0.gate().await;
        let key = self.0.check(request.get_ref().replica.as_ref()).map_err(|refusal| refusal.to_status())?;
        *self.0.lock().entry(key).or_default() = Held { released: true, ..Held::default() };
        self.0.changed.send_replace(());
        Ok(Response::new(ReleaseResponse {}))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        Err(Status::unimplemented("no client of this crate lists"))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.0.gate().await;
        let store = self.0.name.lock().unwrap().clone();
        Ok(Response::new(StatusResponse { store, state: State::Active.into(), ..StatusResponse::default() }))
    }

    async fn decommission(&self, _: Request<DecommissionRequest>) -> Result<Response<StatusResponse>, Status> {
        Err(Status::unimplemented("no client of this crate decommissions"))
    }

    async fn delete_namespace(
        &self,
        _: Request<DeleteNamespaceRequest>,
    ) -> Result<Response<DeleteNamespaceResponse>, Status> {
        Err(Status::unimplemented("no client of this crate deletes namespaces"))
    }
}
