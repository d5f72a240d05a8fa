//! The gRPC services of a node: thin, each method decodes, asks and encodes.

mod checkpoints;
mod consume;
mod consumers;
mod handler;
mod local;
mod manager;
mod on_the_way;
mod produce;
mod read_points;
mod state;

use std::sync::Arc;

use streaming_proto::streaming::{
    streaming_node_handler_service_server::{self as handler_server, StreamingNodeHandlerServiceServer},
    streaming_node_manager_service_server::{self as manager_server, StreamingNodeManagerServiceServer},
    streaming_node_state_service_server::{self as state_server, StreamingNodeStateServiceServer},
};
use streaming_proto::{
    data::data_coord_server::DataCoordServer,
    node::{
        consumers_server::{self, ConsumersServer},
        read_points_server::{self, ReadPointsServer},
    },
};
use tonic::{
    Request, Status,
    codec::CompressionEncoding,
    service::{Interceptor, Routes, interceptor::InterceptedService},
};

use woodpecker_base::clock::Clock;

pub use self::state::ROLE;
use self::{
    checkpoints::Checkpoints, consumers::Consumers, handler::Handler, manager::Manager, read_points::ReadPoints,
    state::States,
};
use crate::{
    identity::Identity,
    settings::{MAX_GRPC_BYTES, Settings},
    wals::Wals,
};

/// The names of all services of a node.
pub const SERVICES: [&str; 5] = [
    consumers_server::SERVICE_NAME,
    handler_server::SERVICE_NAME,
    manager_server::SERVICE_NAME,
    read_points_server::SERVICE_NAME,
    state_server::SERVICE_NAME,
];

/// What the services share.
#[derive(Debug, Clone)]
pub struct Services {
    pub settings: Arc<Settings>,
    pub identity: Arc<Identity>,
    pub wals: Arc<Wals>,
    pub clock: Clock,
}

/// Lets through only calls that are meant for this cluster and this server.
#[derive(Debug, Clone)]
struct Destination(Arc<Identity>);

impl Interceptor for Destination {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        self.0.check(request.metadata())?;
        Ok(request)
    }
}

impl Services {
    /// All services of the node.
    pub fn routes(&self) -> Routes {
        let here = Destination(Arc::clone(&self.identity));
        let handler = StreamingNodeHandlerServiceServer::new(Handler::new(self.clone()))
            .max_decoding_message_size(MAX_GRPC_BYTES)
            .max_encoding_message_size(MAX_GRPC_BYTES)
            .accept_compressed(CompressionEncoding::Zstd)
            .accept_compressed(CompressionEncoding::Gzip);
        let manager = StreamingNodeManagerServiceServer::new(Manager::new(self.clone()));
        let state = StreamingNodeStateServiceServer::new(States::new(Arc::clone(&self.identity)));
        let mut routes = Routes::default();
        routes = routes.add_service(InterceptedService::new(handler, here.clone()));
        routes = routes.add_service(InterceptedService::new(manager, here.clone()));
        let checkpoints = DataCoordServer::new(Checkpoints::new(self.clone()));
        routes = routes.add_service(InterceptedService::new(checkpoints, here.clone()));
        let consumers = ConsumersServer::new(Consumers::new(self.clone()));
        routes = routes.add_service(InterceptedService::new(consumers, here.clone()));
        let read_points = ReadPointsServer::new(ReadPoints::new(self.clone()));
        routes = routes.add_service(InterceptedService::new(read_points, here.clone()));
        routes.add_service(InterceptedService::new(state, here))
    }
}
