//! Who this node is to its peers.

use std::sync::atomic::{AtomicI64, Ordering};

use streaming_types::{StreamingError, metadata::check_destination};
use tonic::{Status, metadata::MetadataMap};
use woodpecker_base::health::HealthReporter;

/// The cluster, the server id, which changes when the node registers anew, and how the node is.
#[derive(Debug)]
pub struct Identity {
    cluster: String,
    server_id: AtomicI64,
    pub health: HealthReporter,
}

impl Identity {
    pub fn new(cluster: String, server_id: i64, health: HealthReporter) -> Self {
        Self { cluster, server_id: AtomicI64::new(server_id), health }
    }

    pub fn server_id(&self) -> i64 {
        self.server_id.load(Ordering::Acquire)
    }

    pub fn set_server_id(&self, server_id: i64) {
        self.server_id.store(server_id, Ordering::Release);
    }

    /// Refuses a call that is meant for another cluster or another server.
    pub fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        check_destination(metadata, &self.cluster, self.server_id()).map_err(StreamingError::into)
    }
}
