//! Who this node is to its peers.

use std::sync::atomic::{AtomicI32, AtomicI64, Ordering};

use streaming_proto::common::StateCode;
use streaming_types::{StreamingError, metadata::check_destination};
use tonic::{Status, metadata::MetadataMap};

/// The cluster, the server id, which changes when the node registers anew, and the state of the component.
#[derive(Debug)]
pub struct Identity {
    cluster: String,
    server_id: AtomicI64,
    state: AtomicI32,
}

impl Identity {
    pub fn new(cluster: String, server_id: i64) -> Self {
        let state = AtomicI32::new(StateCode::Initializing.into());
        Self { cluster, server_id: AtomicI64::new(server_id), state }
    }

    pub fn server_id(&self) -> i64 {
        self.server_id.load(Ordering::Acquire)
    }

    pub fn set_server_id(&self, server_id: i64) {
        self.server_id.store(server_id, Ordering::Release);
    }

    pub fn state(&self) -> i32 {
        self.state.load(Ordering::Acquire)
    }

    pub fn set_state(&self, state: StateCode) {
        self.state.store(state.into(), Ordering::Release);
    }

    /// Refuses a call that is meant for another cluster or another server.
    pub fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        check_destination(metadata, &self.cluster, self.server_id()).map_err(StreamingError::into)
    }
}
