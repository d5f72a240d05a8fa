//! What clients ask of a node.

use futures::StreamExt;
use streaming_proto::streaming::{
    ConsumeRequest, ConsumeResponse, GetReplicateCheckpointRequest, GetReplicateCheckpointResponse, ProduceRequest,
    ProduceResponse, streaming_node_handler_service_server::StreamingNodeHandlerService,
};
use streaming_types::{LocalNode, PChannel, StreamingError, local::Stream, metadata};
use tonic::{Request, Response, Status, Streaming};

use super::Services;

#[derive(Debug)]
pub struct Handler {
    services: Services,
}

impl Handler {
    pub fn new(services: Services) -> Self {
        Self { services }
    }
}

#[tonic::async_trait]
impl StreamingNodeHandlerService for Handler {
    type ProduceStream = Stream<ProduceResponse>;
    type ConsumeStream = Stream<ConsumeResponse>;

    async fn get_replicate_checkpoint(
        &self,
        request: Request<GetReplicateCheckpointRequest>,
    ) -> Result<Response<GetReplicateCheckpointResponse>, Status> {
        let pchannel = PChannel::from_proto(request.get_ref().pchannel.as_ref())
            .map_err(|error| StreamingError::invalid_argument(error.to_string()))?;
        let wal = self.services.wals.find(&pchannel)?;
        let checkpoint = wal.replicate_checkpoint().ok_or_else(|| {
            let cause = format!("{} is primary, it replicates from nowhere", wal.channel().name());
            StreamingError::replicate_violation(cause)
        })?;
        Ok(Response::new(GetReplicateCheckpointResponse { checkpoint: Some(checkpoint) }))
    }

    async fn produce(
        &self,
        request: Request<Streaming<ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStream>, Status> {
        let channel = metadata::create_producer(request.metadata())?;
        Ok(Response::new(self.services.produce(&channel, request.into_inner().boxed())?))
    }

    async fn consume(
        &self,
        request: Request<Streaming<ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        let channel = metadata::create_consumer(request.metadata())?;
        Ok(Response::new(self.services.consume(&channel, request.into_inner().boxed())?))
    }
}
