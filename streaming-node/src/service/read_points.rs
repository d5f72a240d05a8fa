//! Read points for clients in other processes.

use streaming_proto::node::{LatestRequest, LatestResponse, read_points_server};
use streaming_types::{LocalNode, PChannel, StreamingError, channel::to_physical};
use tonic::{Request, Response, Status};

use super::Services;

#[derive(Debug)]
pub struct ReadPoints {
    services: Services,
}

impl ReadPoints {
    pub fn new(services: Services) -> Self {
        Self { services }
    }
}

#[tonic::async_trait]
impl read_points_server::ReadPoints for ReadPoints {
    async fn latest(&self, request: Request<LatestRequest>) -> Result<Response<LatestResponse>, Status> {
        let LatestRequest { vchannel, term } = request.into_inner();
        let channel = PChannel::read_write(to_physical(&vchannel), term)
            .map_err(|error| StreamingError::invalid_argument(error.to_string()))?;
        let tick = self.services.latest_time_tick(&channel, &vchannel)?;
        Ok(Response::new(LatestResponse { time_tick: tick.into() }))
    }
}
