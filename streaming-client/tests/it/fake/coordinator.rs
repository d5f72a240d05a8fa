//! A coordinator that says what a test makes it say.

use std::sync::{Arc, Mutex};

use futures::stream::BoxStream;
use streaming_proto::streaming::{
    AssignmentDiscoverRequest, AssignmentDiscoverResponse, CChannelAssignment, CChannelMeta,
    CloseAssignmentDiscoverResponse, FullStreamingNodeAssignmentWithVersion, StreamingNodeAssignment,
    StreamingNodeInfo, UpdateReplicateConfigurationRequest, UpdateReplicateConfigurationResponse,
    UpdateWalBalancePolicyRequest, UpdateWalBalancePolicyResponse, VersionPair,
    assignment_discover_request::Command,
    assignment_discover_response::Response as Arm,
    streaming_coord_assignment_service_server::{
        StreamingCoordAssignmentService, StreamingCoordAssignmentServiceServer,
    },
};
use streaming_types::{
    PChannel, StreamingError,
    metadata::{asks_for_leader, set_leader},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};
use woodpecker_base::{net::Listener, tasks::Tasks};

use super::{Node, Process, lock};

pub struct Coordinator {
    pub address: String,
    pub state: Arc<State>,
    pub process: Process,
}

pub struct State {
    id: i64,
    tasks: Tasks,
    assignment: watch::Sender<FullStreamingNodeAssignmentWithVersion>,
    /// A change ends every open stream.
    ended: watch::Sender<u64>,
    /// Ends every stream right after its first push.
    pub hang_up: Mutex<bool>,
    /// Where another coordinator leads: then this one stands by.
    pub leader: Mutex<Option<String>>,
    pub log: Mutex<Seen>,
}

#[derive(Default)]
pub struct Seen {
    pub opened: usize,
    /// `cluster` and `serverid` of each stream.
    pub metadata: Vec<(Option<String>, Option<String>)>,
    pub reports: Vec<(String, i64, i32)>,
    pub closed: usize,
    pub half_closed: usize,
}

impl Coordinator {
    pub async fn start(id: i64) -> Self {
        Self::start_on(id, Server::builder()).await
    }

    /// With the server set up so.
    pub async fn start_on(id: i64, mut server: Server) -> Self {
        let process = Process::start();
        let (address_out, address) = tokio::sync::oneshot::channel();
        let state = Arc::new(State {
            id,
            tasks: Tasks::new(),
            assignment: watch::channel(FullStreamingNodeAssignmentWithVersion::default()).0,
            ended: watch::channel(0).0,
            hang_up: Mutex::default(),
            leader: Mutex::default(),
            log: Mutex::default(),
        });
        let service = StreamingCoordAssignmentServiceServer::new(Service(state.clone()));
        process.spawn(async move {
            let listener = Listener::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
            address_out.send(listener.address().to_owned()).unwrap();
            server.add_service(service).serve_with_incoming(listener).await.unwrap();
        });
        Self { address: address.await.unwrap(), state, process }
    }

    /// Says this from now on, with the next version.
    pub fn assign(&self, nodes: &[(&Node, &[PChannel])]) {
        let entries = nodes.iter().map(|(node, channels)| (node.id, node.address.clone(), channels.to_vec())).collect();
        let local = self.state.assignment.borrow().version.map_or(0, |version| version.local + 1);
        self.push(self.state.id, local, entries);
    }

    /// Says this, whatever the version is.
    pub fn push(&self, global: i64, local: i64, nodes: Vec<(i64, String, Vec<PChannel>)>) {
        let assignments = nodes.into_iter().map(|(server_id, address, channels)| StreamingNodeAssignment {
            node: Some(StreamingNodeInfo { server_id, address }),
            channels: channels.iter().map(PChannel::to_proto).collect(),
        });
        self.state.assignment.send_replace(FullStreamingNodeAssignmentWithVersion {
            version: Some(VersionPair { global, local }),
            assignments: assignments.collect(),
            cchannel: Some(CChannelAssignment { meta: Some(CChannelMeta { pchannel: super::CHANNEL.into() }) }),
            ..Default::default()
        });
    }

    /// Ends the open streams.
    pub fn end_streams(&self) {
        self.state.ended.send_modify(|count| *count += 1);
    }

    pub fn seen<T>(&self, read: impl FnOnce(&Seen) -> T) -> T {
        read(&lock(&self.state.log))
    }
}

struct Service(Arc<State>);

#[tonic::async_trait]
impl StreamingCoordAssignmentService for Service {
    type AssignmentDiscoverStream = BoxStream<'static, Result<AssignmentDiscoverResponse, Status>>;

    async fn assignment_discover(
        &self,
        request: Request<Streaming<AssignmentDiscoverRequest>>,
    ) -> Result<Response<Self::AssignmentDiscoverStream>, Status> {
        let state = self.0.clone();
        let text = |key| request.metadata().get(key).map(|value| value.to_str().unwrap().to_owned());
        {
            let mut log = lock(&state.log);
            log.opened += 1;
            log.metadata.push((text("cluster"), text("serverid")));
        }
        if let Some(leader) = lock(&state.leader).clone()
            && asks_for_leader(request.metadata())
        {
            let mut status = Status::from(StreamingError::on_shutdown("another coordinator is active"));
            set_leader(status.metadata_mut(), &leader);
            return Err(status);
        }
        let (responses, out) = mpsc::channel(16);
        self.0.tasks.spawn(serve(state, request.into_inner(), responses));
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }

    async fn update_replicate_configuration(
        &self,
        _: Request<UpdateReplicateConfigurationRequest>,
    ) -> Result<Response<UpdateReplicateConfigurationResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn update_wal_balance_policy(
        &self,
        _: Request<UpdateWalBalancePolicyRequest>,
    ) -> Result<Response<UpdateWalBalancePolicyResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }
}

async fn serve(
    state: Arc<State>,
    mut requests: Streaming<AssignmentDiscoverRequest>,
    responses: mpsc::Sender<Result<AssignmentDiscoverResponse, Status>>,
) {
    let mut assignment = state.assignment.subscribe();
    let mut ended = state.ended.subscribe();
    assignment.mark_changed();
    loop {
        tokio::select! {
            _ = assignment.changed() => {
                let full = assignment.borrow_and_update().clone();
                if full.version.is_some() {
                    let push = AssignmentDiscoverResponse { response: Some(Arm::FullAssignment(full)) };
                    let _ = responses.send(Ok(push)).await;
                }
                if *lock(&state.hang_up) {
                    return;
                }
            }
            _ = ended.changed() => return,
            request = requests.message() => match request {
                Ok(Some(request)) => match request.command {
                    Some(Command::ReportError(report)) => {
                        let (pchannel, error) = (report.pchannel.unwrap(), report.err.unwrap());
                        lock(&state.log).reports.push((pchannel.name, pchannel.term, error.code));
                    }
                    Some(Command::Close(_)) => lock(&state.log).closed += 1,
                    None => {}
                },
                Ok(None) => {
                    lock(&state.log).half_closed += 1;
                    let close = AssignmentDiscoverResponse { response: Some(Arm::Close(CloseAssignmentDiscoverResponse {})) };
                    let _ = responses.send(Ok(close)).await;
                    return;
                }
                Err(_) => return,
            },
        }
    }
}
