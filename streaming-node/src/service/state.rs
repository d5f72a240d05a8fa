//! The component state of the node.

use std::sync::Arc;

use streaming_proto::{
    common::Status as CommonStatus,
    milvus::{ComponentInfo, ComponentStates, GetComponentStatesRequest},
    streaming::streaming_node_state_service_server::StreamingNodeStateService,
};
use tonic::{Request, Response, Status};

use crate::identity::Identity;

/// The role under which nodes register and report.
pub const ROLE: &str = "streamingnode";

#[derive(Debug)]
pub struct States {
    identity: Arc<Identity>,
}

impl States {
    pub fn new(identity: Arc<Identity>) -> Self {
        Self { identity }
    }
}

#[tonic::async_trait]
impl StreamingNodeStateService for States {
    async fn get_component_states(
        &self,
        _: Request<GetComponentStatesRequest>,
    ) -> Result<Response<ComponentStates>, Status> {
        let info = ComponentInfo {
            node_id: self.identity.server_id(),
            role: ROLE.to_owned(),
            state_code: self.identity.health.now().state.code(),
            ..ComponentInfo::default()
        };
        let states = ComponentStates {
            state: Some(info),
            subcomponent_states: Vec::new(),
            status: Some(CommonStatus::default()),
        };
        Ok(Response::new(states))
    }
}
