//! What clients ask of a node.

use futures::stream::BoxStream;
use streaming_proto::streaming::{
    ConsumeRequest, ConsumeResponse, GetReplicateCheckpointRequest, GetReplicateCheckpointResponse, ProduceRequest,
    ProduceResponse, streaming_node_handler_service_server::StreamingNodeHandlerService,
};
use streaming_types::{PChannel, StreamingError, metadata};
use tonic::{Request, Response, Status, Streaming};

use super::{Services, consume, produce};

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
    type ProduceStream = BoxStream<'static, Result<ProduceResponse, Status>>;
    type ConsumeStream = BoxStream<'static, Result<ConsumeResponse, Status>>;

    async fn get_replicate_checkpoint(
        &self,
        request: Request<GetReplicateCheckpointRequest>,
    ) -> Result<Response<GetReplicateCheckpointResponse>, Status> {
        let pchannel = PChannel::from_proto(request.get_ref().pchannel.as_ref())
            .map_err(|error| StreamingError::invalid_argument(error.to_string()))?;
        let wal = self.services.wals.find(&pchannel)?;
        let cause = format!("{} is primary, it replicates from nowhere", wal.channel().name());
        Err(StreamingError::replicate_violation(cause).into())
    }

    async fn produce(
        &self,
        request: Request<Streaming<ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStream>, Status> {
        let wal = self.services.wals.find(&metadata::create_producer(request.metadata())?)?;
        let stream = produce::serve(&wal, &self.services, request.into_inner())?;
        Ok(Response::new(stream))
    }

    async fn consume(
        &self,
        request: Request<Streaming<ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        let wal = self.services.wals.find(&metadata::create_consumer(request.metadata())?)?;
        let node = self.services.identity.server_id();
        Ok(Response::new(consume::serve(wal, node, request.into_inner())))
    }
}
