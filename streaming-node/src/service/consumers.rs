//! Who holds a log back, for operators.

use streaming_proto::node::{ListConsumersRequest, ListConsumersResponse, RegisteredConsumer, consumers_server};
use tonic::{Request, Response, Status};

use super::{Services, checkpoints::refused};

#[derive(Debug)]
pub struct Consumers {
    services: Services,
}

impl Consumers {
    pub fn new(services: Services) -> Self {
        Self { services }
    }
}

#[tonic::async_trait]
impl consumers_server::Consumers for Consumers {
    async fn list(&self, request: Request<ListConsumersRequest>) -> Result<Response<ListConsumersResponse>, Status> {
        let wal = self.services.wals.serving(&request.into_inner().pchannel)?;
        let (positions, time_tick) = wal.consumers().await.map_err(|error| refused(&wal, &error))?;
        let consumers = positions.into_iter().map(|(name, position)| RegisteredConsumer {
            name,
            segment: position.id.segment,
            entry: position.id.entry,
            time_tick: position.tick,
        });
        Ok(Response::new(ListConsumersResponse { consumers: consumers.collect(), time_tick }))
    }
}
