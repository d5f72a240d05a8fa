//! The gRPC service: each call is a few lines around the [`Store`].

mod append;
mod read;

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt, stream};
use streaming_proto::logstore::{
    AppendRequest, AppendResponse, DecommissionRequest, DeleteNamespaceRequest, DeleteNamespaceResponse,
    DescribeRequest, DescribeResponse, FenceRequest, FenceResponse, ListRequest, ListResponse, ReadRequest,
    ReadResponse, ReleaseRequest, ReleaseResponse, Replica as Name, StatusRequest, StatusResponse,
    log_store_server::LogStore,
};
use tonic::{Request, Response, Status, Streaming};
use woodpecker_base::tasks::Tasks;

use self::{append::AppendStream, read::ReadStream};
use crate::{metrics, outbox::Outbox, refusal::Refusal, store::Store};

/// The store behind gRPC.
#[derive(Debug, Clone)]
pub struct Service {
    pub store: Arc<Store>,
    /// Streams run in these.
    pub tasks: Tasks,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A refusal on its way to the caller is counted.
fn refused(refusal: Refusal) -> Status {
    metrics::refused(refusal.code());
    refusal.into()
}

fn named(replica: Option<Name>) -> Result<Name, Status> {
    replica.ok_or_else(|| Status::invalid_argument("no replica is named"))
}

#[tonic::async_trait]
impl LogStore for Service {
    type AppendStream = Answers<AppendResponse>;
    type ReadStream = Answers<ReadResponse>;
    type ListStream = Answers<ListResponse>;

    async fn append(&self, request: Request<Streaming<AppendRequest>>) -> Result<Response<Self::AppendStream>, Status> {
        let outbox = Arc::new(Outbox::default());
        let reading = AppendStream::new(self.store.clone(), outbox.clone());
        // Ends with the stream, with the store, or with the answers: when nobody takes those, nothing is read any more.
        let tasks = self.tasks.child();
        let ended = tasks.spawn_until_stopped(reading.run(request.into_inner()));
        let stop = tasks.token().clone().drop_guard();
        let answers = stream::unfold(Some((outbox, ended, stop)), |open| async move {
            let (outbox, mut ended, stop) = open?;
            tokio::select! {
                biased;
                answer = outbox.next() => Some((Ok(answer?), Some((outbox, ended, stop)))),
                over = &mut ended => Some((Err(append::why(over)), None)),
            }
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let name = named(request.replica.clone())?;
        let replica = match self.store.find(&name).map_err(refused)? {
            // Who follows waits for the first entry.
            None if request.follow => Some(self.store.replica(&name).await.map_err(refused)?),
            known => known,
        };
        let reading = ReadStream::new(self.store.clone(), replica, &request);
        let token = self.tasks.token().clone();
        let answers = stream::unfold(Some(reading), move |reading| {
            let token = token.clone();
            async move {
                let mut reading = reading?;
                let read = token.run_until_cancelled(reading.next()).await;
                match read.unwrap_or_else(|| Err(Refusal::Unavailable("the store is stopping".into()))) {
                    Ok(Some(answer)) => Some((Ok(answer), Some(reading))),
                    Ok(None) => None,
                    Err(refusal) => Some((Err(refused(refusal)), None)),
                }
            }
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn fence(&self, request: Request<FenceRequest>) -> Result<Response<FenceResponse>, Status> {
        let FenceRequest { replica, epoch, end } = request.into_inner();
        let held = self.store.fence(&named(replica)?, epoch, end).await.map_err(refused)?;
        Ok(Response::new(FenceResponse {
            durable: held.durable,
            committed: held.committed,
            end: held.end.map(|end| end.entries),
            end_epoch: held.end.map_or(0, |end| end.epoch),
        }))
    }

    async fn describe(&self, request: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        let name = named(request.into_inner().replica)?;
        let answer = match self.store.describe(&name) {
            Ok(held) => DescribeResponse {
                durable: held.durable,
                committed: held.committed,
                fenced: held.fenced,
                released: false,
            },
            Err(Refusal::Released) => DescribeResponse { released: true, ..DescribeResponse::default() },
            Err(refusal) => return Err(refused(refusal)),
        };
        Ok(Response::new(answer))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        self.store.release(&named(request.into_inner().replica)?).await.map_err(refused)?;
        Ok(Response::new(ReleaseResponse {}))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let ListRequest { store: asked, namespace } = request.into_inner();
        self.store.check_identity(&asked).map_err(refused)?;
        let number = match namespace.as_str() {
            "" => None,
            name => match self.store.namespaces.find(name) {
                Ok(Some(namespace)) => Some(namespace.number),
                Ok(None) | Err(Refusal::Released) => return Ok(Response::new(stream::empty().boxed())),
                Err(refusal) => return Err(refused(refusal)),
            },
        };
        let store = self.store.clone();
        let pages = stream::unfold(None, move |after| {
            let (replicas, last) = store.list(number, after);
            async move { last.map(|last| (Ok(ListResponse { replicas }), Some(last))) }
        });
        Ok(Response::new(pages.boxed()))
    }

    async fn status(&self, _request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(self.store.status()))
    }

    async fn decommission(&self, request: Request<DecommissionRequest>) -> Result<Response<StatusResponse>, Status> {
        let DecommissionRequest { store: asked, cancel } = request.into_inner();
        self.store.check_identity(&asked).map_err(refused)?;
        Ok(Response::new(self.store.decommission(cancel).await.map_err(refused)?))
    }

    async fn delete_namespace(
        &self,
        request: Request<DeleteNamespaceRequest>,
    ) -> Result<Response<DeleteNamespaceResponse>, Status> {
        let DeleteNamespaceRequest { store: asked, namespace } = request.into_inner();
        self.store.check_identity(&asked).map_err(refused)?;
        let replicas = self.store.delete_namespace(&namespace).await.map_err(refused)?;
        Ok(Response::new(DeleteNamespaceResponse { replicas }))
    }
}
