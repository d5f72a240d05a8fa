//! Checkpoints of those who consume a WAL for good, in the form in which they tell them to a data coordinator.
//!
//! Whoever reports one is registered from then on: the log is kept from its position on, and may go before it. It stays
//! registered until its vchannel is dropped, in the log or by the call of that name. One that was so far behind that it
//! reports after its vchannel was dropped in the log would never be forgotten, so it is not heard.

use streaming_proto::{
    common,
    data::{
        AllocSegmentRequest, AllocSegmentResponse, DropVirtualChannelRequest, DropVirtualChannelResponse,
        GetChannelRecoveryInfoRequest, GetChannelRecoveryInfoResponse, SaveBinlogPathsRequest,
        UpdateChannelCheckpointRequest, data_coord_server::DataCoord,
    },
    msg::MsgPosition,
};
use streaming_types::{MessageId, StreamingError, channel::to_physical};
use tonic::{Request, Response, Status};
use woodpecker::EntryId;

use super::Services;
use crate::{
    recovery::{catalog::CatalogError, state::Checkpoint},
    wal::Wal,
};

#[derive(Debug)]
pub struct Checkpoints {
    services: Services,
}

impl Checkpoints {
    pub fn new(services: Services) -> Self {
        Self { services }
    }

    async fn report(&self, channel: &str, position: &MsgPosition) -> Result<(), Status> {
        let id = MessageId::from_bytes(&position.msg_id);
        let (segment, entry) = id.map_err(|error| StreamingError::invalid_argument(error.to_string()))?.to_u64();
        let wal = self.services.wals.serving(to_physical(channel))?;
        let checkpoint = Checkpoint::at(EntryId { segment, entry }, position.timestamp);
        if wal.report(channel, checkpoint).await.map_err(|error| refused(&wal, &error))? {
            return Ok(());
        }
        Err(StreamingError::ignored_operation(format!("vchannel {channel} was dropped, nothing is kept for it")).into())
    }
}

/// Why nobody's position was written, or read.
pub fn refused(wal: &Wal, error: &CatalogError) -> Status {
    match error {
        CatalogError::Overtaken(_) => StreamingError::channel_fenced(wal.channel().name()).into(),
        CatalogError::Metadata(error) => StreamingError::inner(error.to_string()).into(),
    }
}

fn elsewhere<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("a streaming node takes checkpoints of channels, and nothing else of a data coordinator"))
}

#[tonic::async_trait]
impl DataCoord for Checkpoints {
    /// Each position counts for the channel it names; one that names none, for the channel of the request. All are heard
    /// before one that is refused is told of.
    async fn update_channel_checkpoint(
        &self,
        request: Request<UpdateChannelCheckpointRequest>,
    ) -> Result<Response<common::Status>, Status> {
        let request = request.into_inner();
        let mut told = Ok(());
        for position in request.position.iter().chain(&request.channel_checkpoints) {
            let named = if position.channel_name.is_empty() { &request.v_channel } else { &position.channel_name };
            told = told.and(self.report(named, position).await);
        }
        told.map(|()| Response::new(common::Status::default()))
    }

    async fn alloc_segment(&self, _: Request<AllocSegmentRequest>) -> Result<Response<AllocSegmentResponse>, Status> {
        elsewhere()
    }

    async fn get_channel_recovery_info(
        &self,
        _: Request<GetChannelRecoveryInfoRequest>,
    ) -> Result<Response<GetChannelRecoveryInfoResponse>, Status> {
        elsewhere()
    }

    async fn save_binlog_paths(&self, _: Request<SaveBinlogPathsRequest>) -> Result<Response<common::Status>, Status> {
        elsewhere()
    }

    /// Forgets who consumes a vchannel, known or not; the vchannel itself is dropped by a message.
    async fn drop_virtual_channel(
        &self,
        request: Request<DropVirtualChannelRequest>,
    ) -> Result<Response<DropVirtualChannelResponse>, Status> {
        let consumer = request.into_inner().channel_name;
        let wal = self.services.wals.serving(to_physical(&consumer))?;
        wal.forget(&consumer).await.map_err(|error| refused(&wal, &error))?;
        tracing::info!(consumer, "forgot a registered consumer");
        Ok(Response::new(DropVirtualChannelResponse { status: Some(common::Status::default()) }))
    }
}
