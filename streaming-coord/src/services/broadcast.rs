//! Broadcast across channels. There is none in this release but that of the replication topology, which the coordinator
//! makes itself; what nodes say of it, and of broadcasts of a cluster that this one follows, is kept.

use std::sync::Arc;

use streaming_proto::streaming::{
    BroadcastAckRequest, BroadcastAckResponse, BroadcastRequest, BroadcastResponse,
    streaming_coord_broadcast_service_server::StreamingCoordBroadcastService,
};
use streaming_types::StreamingError;
use tonic::{Request, Response, Status};

use crate::shared::Shared;

#[derive(Debug)]
pub(super) struct BroadcastService {
    shared: Arc<Shared>,
}

impl BroadcastService {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[tonic::async_trait]
impl StreamingCoordBroadcastService for BroadcastService {
    async fn broadcast(&self, _request: Request<BroadcastRequest>) -> Result<Response<BroadcastResponse>, Status> {
        Err(StreamingError::unrecoverable("broadcast is not supported by this release").into())
    }

    /// An ack of an unknown broadcast succeeds: nodes repeat one until it does.
    async fn ack(&self, request: Request<BroadcastAckRequest>) -> Result<Response<BroadcastAckResponse>, Status> {
        let active = self.shared.active().await?;
        if let Some(message) = &request.get_ref().message {
            active.replication.ack(message).await?;
        }
        Ok(Response::new(BroadcastAckResponse {}))
    }
}
