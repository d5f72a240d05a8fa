//! The calls that streaming nodes make to the root coordinator: timestamps, ids, component states. There are no
//! collections here, and asking for them says so.

use std::{sync::Arc, time::Duration};

use streaming_proto::{
    common,
    milvus::{
        ComponentInfo, ComponentStates, DescribeCollectionRequest, DescribeCollectionResponse,
        GetComponentStatesRequest,
    },
    rootcoord::{
        AllocIdRequest, AllocIdResponse, AllocTimestampRequest, AllocTimestampResponse, GetPChannelInfoRequest,
        GetPChannelInfoResponse, root_coord_server::RootCoord,
    },
};
use tonic::{Request, Response, Status};

use crate::{
    CHANNEL_TROUBLE, ChannelStatus,
    active::Active,
    allocator::{MAX_COUNT, physical_ms},
    shared::Shared,
};

const ROLE: &str = "mixcoord";

/// Codes of `common.Status` that peers know.
const NOT_READY: i32 = 1;
const INTERNAL: i32 = 5;
const COLLECTION_NOT_FOUND: i32 = 100;
const INVALID_PARAMETER: i32 = 1100;

/// The longest a call waits for a timestamp that it wants to be passed.
const MAX_BLOCK: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct RootCoordService {
    shared: Arc<Shared>,
}

impl RootCoordService {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    async fn active(&self) -> Result<Arc<Active>, common::Status> {
        self.shared.active().await.map_err(|error| refusal(NOT_READY, error.cause(), true))
    }

    async fn timestamp(&self, count: u32, block: u64) -> Result<u64, common::Status> {
        let active = self.active().await?;
        check_count(count)?;
        self.wait_past(block).await?;
        let first = active.timestamps.take(count).await;
        let first = first.map_err(|error| refusal(INTERNAL, &error.to_string(), true))?;
        if !active.is_sure_to_lead() {
            return Err(refusal(NOT_READY, "the leadership cannot be confirmed at present", true));
        }
        // The clock has passed it, but timestamps may stand still for a while.
        if first <= block { Err(refusal(INTERNAL, "timestamps are behind blockTimestamp", true)) } else { Ok(first) }
    }

    /// Waits until the wall clock is past a timestamp.
    async fn wait_past(&self, block: u64) -> Result<(), common::Status> {
        if block == 0 {
            return Ok(());
        }
        let wait = (physical_ms(block) + 1).saturating_sub(self.shared.clock.wall_ms());
        let wait = Duration::from_millis(wait);
        if wait > MAX_BLOCK {
            return Err(refusal(INVALID_PARAMETER, "blockTimestamp is too far in the future", false));
        }
        self.shared.clock.sleep(wait).await;
        Ok(())
    }

    async fn id(&self, count: u32) -> Result<i64, common::Status> {
        let active = self.active().await?;
        check_count(count)?;
        let first = active.ids.take(count).await;
        let first = first.map_err(|error| refusal(INTERNAL, &error.to_string(), true))?;
        i64::try_from(first).map_err(|_| refusal(INTERNAL, "all ids are used up", false))
    }
}

#[tonic::async_trait]
impl RootCoord for RootCoordService {
    async fn get_component_states(
        &self,
        _request: Request<GetComponentStatesRequest>,
    ) -> Result<Response<ComponentStates>, Status> {
        let state = self.shared.phase.borrow().state();
        let info = ComponentInfo {
            node_id: self.shared.server_id(),
            role: ROLE.into(),
            state_code: state.code(),
            ..ComponentInfo::default()
        };
        let states = ComponentStates { state: Some(info), status: Some(success()), ..ComponentStates::default() };
        Ok(Response::new(states))
    }

    async fn alloc_timestamp(
        &self,
        request: Request<AllocTimestampRequest>,
    ) -> Result<Response<AllocTimestampResponse>, Status> {
        let AllocTimestampRequest { count, block_timestamp, .. } = request.into_inner();
        Ok(Response::new(match self.timestamp(count, block_timestamp).await {
            Ok(timestamp) => AllocTimestampResponse { status: Some(success()), timestamp, count },
            Err(status) => AllocTimestampResponse { status: Some(status), ..AllocTimestampResponse::default() },
        }))
    }

    async fn alloc_id(&self, request: Request<AllocIdRequest>) -> Result<Response<AllocIdResponse>, Status> {
        let count = request.into_inner().count;
        Ok(Response::new(match self.id(count).await {
            Ok(id) => AllocIdResponse { status: Some(success()), id, count },
            Err(status) => AllocIdResponse { status: Some(status), ..AllocIdResponse::default() },
        }))
    }

    async fn get_p_channel_info(
        &self,
        request: Request<GetPChannelInfoRequest>,
    ) -> Result<Response<GetPChannelInfoResponse>, Status> {
        let name = request.into_inner().pchannel;
        let channels = self.shared.status.borrow().clone();
        let trouble = channels.iter().find(|channel| channel.name == name).and_then(ChannelStatus::trouble);
        let extra_info = trouble.map(|trouble| (CHANNEL_TROUBLE.to_owned(), trouble)).into_iter().collect();
        let status = Some(common::Status { extra_info, ..success() });
        Ok(Response::new(GetPChannelInfoResponse { status, collections: Vec::new() }))
    }

    async fn describe_collection_internal(
        &self,
        _request: Request<DescribeCollectionRequest>,
    ) -> Result<Response<DescribeCollectionResponse>, Status> {
        let status = Some(refusal(COLLECTION_NOT_FOUND, "collection not found: this cluster has none", false));
        Ok(Response::new(DescribeCollectionResponse { status, ..DescribeCollectionResponse::default() }))
    }
}

fn check_count(count: u32) -> Result<(), common::Status> {
    if (1..=MAX_COUNT).contains(&count) {
        return Ok(());
    }
    Err(refusal(INVALID_PARAMETER, &format!("count must be 1 to {MAX_COUNT}"), false))
}

fn success() -> common::Status {
    common::Status::default()
}

fn refusal(code: i32, reason: &str, retriable: bool) -> common::Status {
    common::Status {
        error_code: common::ErrorCode::UnexpectedError.into(),
        reason: reason.to_owned(),
        code,
        retriable,
        ..common::Status::default()
    }
}
