//! The gRPC services of the coordinator.

mod assignment;
mod broadcast;
mod discover;
mod root_coord;

use std::sync::Arc;

use streaming_proto::{
    rootcoord::root_coord_server::{self as root_server, RootCoordServer},
    streaming::{
        streaming_coord_assignment_service_server::{self as assignment_server, StreamingCoordAssignmentServiceServer},
        streaming_coord_broadcast_service_server::{self as broadcast_server, StreamingCoordBroadcastServiceServer},
    },
};
use tonic::{
    Request, Status,
    service::{RoutesBuilder, interceptor::InterceptedService},
};

use self::{assignment::AssignmentService, broadcast::BroadcastService, root_coord::RootCoordService};
use crate::shared::Shared;

/// Largest request and response, as peers are set.
const MAX_REQUEST: usize = 256 << 20;
const MAX_RESPONSE: usize = 512 << 20;

/// The names of all services of a coordinator.
pub(crate) const SERVICES: [&str; 3] =
    [assignment_server::SERVICE_NAME, broadcast_server::SERVICE_NAME, root_server::SERVICE_NAME];

/// Adds the coordinator's services. Each checks by itself what its calls are meant for, so that services of other
/// roles may stand beside them on one port.
pub(crate) fn register(shared: &Arc<Shared>, routes: &mut RoutesBuilder) {
    let assignment = StreamingCoordAssignmentServiceServer::new(AssignmentService::new(shared.clone()))
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(MAX_RESPONSE);
    let broadcast = StreamingCoordBroadcastServiceServer::new(BroadcastService::new(shared.clone()))
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(MAX_RESPONSE);
    let root_coord = RootCoordServer::new(RootCoordService::new(shared.clone()))
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(MAX_RESPONSE);
    routes
        .add_service(InterceptedService::new(assignment, Admission::streaming(shared)))
        .add_service(InterceptedService::new(broadcast, Admission::streaming(shared)))
        .add_service(InterceptedService::new(root_coord, Admission::plain(shared)));
}

/// Refuses calls that are meant for another cluster or server.
#[derive(Debug, Clone)]
struct Admission {
    shared: Arc<Shared>,
    /// Whether the caller understands streaming errors; if not, it is told in words.
    streaming: bool,
}

impl Admission {
    fn streaming(shared: &Arc<Shared>) -> Self {
        Self { shared: shared.clone(), streaming: true }
    }

    fn plain(shared: &Arc<Shared>) -> Self {
        Self { shared: shared.clone(), streaming: false }
    }
}

impl tonic::service::Interceptor for Admission {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        match self.shared.check(request.metadata()) {
            Ok(()) => Ok(request),
            Err(error) if self.streaming => Err(error.into()),
            Err(error) => Err(Status::failed_precondition(error.cause())),
        }
    }
}
