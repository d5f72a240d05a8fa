//! Who serves which channel: discovery, reports, and the balance policy.

use std::sync::Arc;

use futures::stream::BoxStream;
use streaming_proto::streaming::{
    AssignmentDiscoverRequest, AssignmentDiscoverResponse, UpdateReplicateConfigurationRequest,
    UpdateReplicateConfigurationResponse, UpdateWalBalancePolicyRequest, UpdateWalBalancePolicyResponse,
    streaming_coord_assignment_service_server::StreamingCoordAssignmentService,
};
use streaming_types::{StreamingError, metadata::asks_for_leader};
use tonic::{Request, Response, Status, Streaming};

use super::discover::Discover;
use crate::shared::Shared;

#[derive(Debug)]
pub(super) struct AssignmentService {
    shared: Arc<Shared>,
}

impl AssignmentService {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[tonic::async_trait]
impl StreamingCoordAssignmentService for AssignmentService {
    type AssignmentDiscoverStream = BoxStream<'static, Result<AssignmentDiscoverResponse, Status>>;

    async fn assignment_discover(
        &self,
        request: Request<Streaming<AssignmentDiscoverRequest>>,
    ) -> Result<Response<Self::AssignmentDiscoverStream>, Status> {
        let asks_for_leader = asks_for_leader(request.metadata());
        let discover = Discover::new(self.shared.clone(), request.into_inner(), asks_for_leader);
        Ok(Response::new(discover.into_stream()))
    }

    async fn update_wal_balance_policy(
        &self,
        request: Request<UpdateWalBalancePolicyRequest>,
    ) -> Result<Response<UpdateWalBalancePolicyResponse>, Status> {
        let active = self.shared.active().await?;
        Ok(Response::new(active.policy.update(request.into_inner()).await?))
    }

    async fn update_replicate_configuration(
        &self,
        request: Request<UpdateReplicateConfigurationRequest>,
    ) -> Result<Response<UpdateReplicateConfigurationResponse>, Status> {
        let active = self.shared.active().await?;
        let UpdateReplicateConfigurationRequest { configuration, force_promote } = request.into_inner();
        let wanted = configuration.ok_or_else(|| StreamingError::invalid_argument("no replicate configuration"))?;
        active.replication.update(wanted, force_promote, &active.ids).await?;
        Ok(Response::new(UpdateReplicateConfigurationResponse {}))
    }
}
