//! What clients of the same process ask of a node: its streams without gRPC.

use streaming_proto::streaming::{ConsumeRequest, ConsumeResponse, ProduceRequest, ProduceResponse};
use streaming_types::{LocalNode, PChannel, StreamingError, TimeTick, local::Stream};
use tonic::Status;

use super::{Services, consume, produce};

impl LocalNode for Services {
    fn is(&self, cluster: &str, server_id: i64) -> bool {
        self.settings.cluster == cluster && self.identity.server_id() == server_id
    }

    fn produce(&self, channel: &PChannel, requests: Stream<ProduceRequest>) -> Result<Stream<ProduceResponse>, Status> {
        let wal = self.wals.find(channel)?;
        produce::serve(&wal, self, requests)
    }

    fn consume(&self, channel: &PChannel, requests: Stream<ConsumeRequest>) -> Result<Stream<ConsumeResponse>, Status> {
        Ok(consume::serve(self.wals.find(channel)?, self.identity.server_id(), requests))
    }

    fn latest_time_tick(&self, channel: &PChannel, vchannel: &str) -> Result<TimeTick, StreamingError> {
        let wal = self.wals.find(channel)?;
        let tick = wal.read_point(vchannel).ok_or_else(|| StreamingError::channel_not_exist(channel.name()))?;
        Ok(TimeTick(tick))
    }
}
