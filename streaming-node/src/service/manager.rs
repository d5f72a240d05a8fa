//! What the coordinator asks of a node.

use streaming_proto::streaming::{
    PChannelInfo, StreamingNodeManagerAssignRequest, StreamingNodeManagerAssignResponse,
    StreamingNodeManagerCollectStatusRequest, StreamingNodeManagerCollectStatusResponse,
    StreamingNodeManagerRemoveRequest, StreamingNodeManagerRemoveResponse, StreamingNodeMetrics,
    streaming_node_manager_service_server::StreamingNodeManagerService,
};
use streaming_types::{PChannel, StreamingError, metadata::set_wal_ended};
use tonic::{Request, Response, Status};

use super::Services;

#[derive(Debug)]
pub struct Manager {
    services: Services,
}

impl Manager {
    pub fn new(services: Services) -> Self {
        Self { services }
    }
}

fn pchannel(info: Option<&PChannelInfo>) -> Result<PChannel, StreamingError> {
    PChannel::from_proto(info).map_err(|error| StreamingError::invalid_argument(error.to_string()))
}

#[tonic::async_trait]
impl StreamingNodeManagerService for Manager {
    async fn assign(
        &self,
        request: Request<StreamingNodeManagerAssignRequest>,
    ) -> Result<Response<StreamingNodeManagerAssignResponse>, Status> {
        self.services.wals.assign(&pchannel(request.get_ref().pchannel.as_ref())?).await?;
        Ok(Response::new(StreamingNodeManagerAssignResponse {}))
    }

    async fn remove(
        &self,
        request: Request<StreamingNodeManagerRemoveRequest>,
    ) -> Result<Response<StreamingNodeManagerRemoveResponse>, Status> {
        let ended = self.services.wals.remove(&pchannel(request.get_ref().pchannel.as_ref())?).await?;
        let mut response = Response::new(StreamingNodeManagerRemoveResponse {});
        if let Some(why) = ended {
            set_wal_ended(response.metadata_mut(), &why);
        }
        Ok(response)
    }

    async fn collect_status(
        &self,
        _: Request<StreamingNodeManagerCollectStatusRequest>,
    ) -> Result<Response<StreamingNodeManagerCollectStatusResponse>, Status> {
        let metrics = StreamingNodeMetrics { wals: self.services.wals.metrics()? };
        Ok(Response::new(StreamingNodeManagerCollectStatusResponse { metrics: Some(metrics) }))
    }
}
