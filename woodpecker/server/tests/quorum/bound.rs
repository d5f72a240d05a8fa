//! Three log stores with nothing but gRPC and a sync in them: no store of this form can be faster.

use std::{path::Path, sync::mpsc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::try_join_all, stream, stream::BoxStream};
use streaming_proto::logstore::{
    AppendRequest, AppendResponse, DecommissionRequest, DeleteNamespaceRequest, DeleteNamespaceResponse,
    DescribeRequest, DescribeResponse, FenceRequest, FenceResponse, ListRequest, ListResponse, ReadRequest,
    ReadResponse, ReleaseRequest, ReleaseResponse, Replica, StatusRequest, StatusResponse,
    append_response::Outcome,
    log_store_client::LogStoreClient,
    log_store_server::{LogStore, LogStoreServer},
};
use tokio::sync::mpsc::{Sender, channel};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Endpoint, Server},
};
use woodpecker_base::{
    clock::Clock,
    disk::{Disk, RealDisk},
    net::{Listener, tcp_connector},
    tasks::Tasks,
};

use crate::figures::{ENTRY, prepared, write_and_sync};

type Answer<T> = Result<T, Status>;
type Answers<T> = BoxStream<'static, Answer<T>>;

/// Writes and syncs what comes, on a thread of its own, and answers.
struct Bare {
    writer: mpsc::Sender<(AppendRequest, Sender<Answer<AppendResponse>>)>,
    tasks: Tasks,
}

impl Bare {
    fn new(dir: &Path, number: usize, count: usize, tasks: Tasks) -> Self {
        let file = prepared(dir, number, count);
        let (writer, requests) = mpsc::channel::<(AppendRequest, Sender<_>)>();
        let write = async move {
            for (at, (request, answers)) in requests.into_iter().enumerate() {
                write_and_sync(&file, at);
                let outcome = Some(Outcome::Durable(request.first + 1));
                answers.try_send(Ok(AppendResponse { replica: request.replica, outcome })).unwrap();
            }
        };
        RealDisk.spawn_writer("bare", write.boxed());
        Self { writer, tasks }
    }
}

fn nothing<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("it only appends"))
}

#[tonic::async_trait]
impl LogStore for Bare {
    type AppendStream = Answers<AppendResponse>;
    type ReadStream = Answers<ReadResponse>;
    type ListStream = Answers<ListResponse>;

    async fn append(&self, request: Request<Streaming<AppendRequest>>) -> Result<Response<Self::AppendStream>, Status> {
        let (writer, mut requests) = (self.writer.clone(), request.into_inner());
        let (sender, answers) = channel(1);
        self.tasks.spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                writer.send((request, sender.clone())).unwrap();
            }
        });
        Ok(Response::new(ReceiverStream::new(answers).boxed()))
    }

    async fn read(&self, _: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        nothing()
    }

    async fn fence(&self, _: Request<FenceRequest>) -> Result<Response<FenceResponse>, Status> {
        nothing()
    }

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        nothing()
    }

    async fn release(&self, _: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        nothing()
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        Ok(Response::new(stream::empty().boxed()))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        nothing()
    }

    async fn decommission(&self, _: Request<DecommissionRequest>) -> Result<Response<StatusResponse>, Status> {
        nothing()
    }

    async fn delete_namespace(
        &self,
        _: Request<DeleteNamespaceRequest>,
    ) -> Result<Response<DeleteNamespaceResponse>, Status> {
        nothing()
    }
}

/// How long the second of three answers took, `count` times one after the other.
pub async fn bare_times(count: usize) -> Vec<Duration> {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::system());
    let (tasks, (done, mut answered)) = (Tasks::new(), channel(3));
    let mut stores = Vec::new();
    for number in 0..3 {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{}", listener.address())).unwrap();
        let service = LogStoreServer::new(Bare::new(dir.path(), number, count, tasks.clone()));
        tasks.spawn(Server::builder().add_service(service).serve_with_incoming(listener));
        let mut client = LogStoreClient::new(tcp_connector().dial(endpoint));
        let (requests, outbound) = channel(1);
        let done = done.clone();
        tasks.spawn(async move {
            let mut answers = client.append(ReceiverStream::new(outbound)).await.unwrap().into_inner();
            while let Ok(Some(_)) = answers.message().await {
                done.send(()).await.unwrap();
            }
        });
        stores.push(requests);
    }
    let (payload, mut times) = (Bytes::from(vec![7; ENTRY]), Vec::new());
    let replica = Replica { store: "store".into(), namespace: "instance".into(), log: 1, segment: 1 };
    for first in 0..count as u64 {
        let entries = vec![payload.clone()];
        let request = AppendRequest { replica: Some(replica.clone()), epoch: 1, first, entries, committed: first };
        let began = clock.now();
        try_join_all(stores.iter().map(|store| store.send(request.clone()))).await.unwrap();
        answered.recv().await.unwrap();
        answered.recv().await.unwrap();
        times.push(began.elapsed());
        answered.recv().await.unwrap();
    }
    tasks.stop();
    times
}
