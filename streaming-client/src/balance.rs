//! What an operator changes of how channels are spread over nodes.

use std::time::Duration;

use streaming_proto::streaming::{
    UpdateWalBalancePolicyRequest, UpdateWalBalancePolicyResponse,
    streaming_coord_assignment_service_client::StreamingCoordAssignmentServiceClient,
};
use streaming_types::StreamingError;
use tonic::Request;

use crate::{
    client::Client,
    connections::{Class, status_error},
};

impl Client {
    /// Changes how the coordinator spreads channels, and says what is in force then. A request that changes nothing only
    /// asks; saying the same again changes nothing.
    ///
    /// # Errors
    /// No coordinator did it within `limit`, or it is refused.
    pub async fn update_balance_policy(
        &self,
        request: UpdateWalBalancePolicyRequest,
        limit: Duration,
    ) -> Result<UpdateWalBalancePolicyResponse, StreamingError> {
        let core = self.core();
        let unknown = || StreamingError::unknown("no coordinator is known");
        let coordinator = core.assignments.link().server.ok_or_else(unknown)?;
        let connection = core.connections.channel(&coordinator, Class::Control)?;
        let mut request = Request::new(request);
        request.set_timeout(limit);
        core.connections.address_call(&coordinator, request.metadata_mut());
        let mut client = StreamingCoordAssignmentServiceClient::new(connection);
        match core.clock.timeout(limit, client.update_wal_balance_policy(request)).await {
            Ok(answered) => answered.map(tonic::Response::into_inner).map_err(|status| status_error(&status)),
            Err(_) => Err(StreamingError::unknown(format!("no answer within {limit:?}"))),
        }
    }
}
