//! The node's calls to the coordinator.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use streaming_proto::rootcoord::{AllocTimestampRequest, root_coord_client::RootCoordClient};
use streaming_types::metadata::set_destination;
use tonic::{
    Request,
    transport::{Channel, Endpoint},
};
use woodpecker_base::{
    metadata::MetadataStore,
    net::Connector,
    session::{SessionRecord, session_prefix},
};

use crate::timestamps::{TimestampError, TimestampSource};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Timestamps from the active coordinator, which is found by its session in the metadata store. When a call fails, the
/// next one looks for it again.
#[derive(Debug)]
pub struct RootCoord {
    metadata: Arc<dyn MetadataStore>,
    session: String,
    cluster: String,
    connector: Connector,
    active: Mutex<Option<Active>>,
}

/// A connection to the coordinator that was active last.
#[derive(Debug, Clone)]
struct Active {
    server_id: i64,
    client: RootCoordClient<Channel>,
}

impl RootCoord {
    /// Looks for the coordinator of `cluster` under `<metadata_root>/session/mixcoord`.
    pub fn new(metadata: Arc<dyn MetadataStore>, metadata_root: &str, cluster: &str, connector: Connector) -> Self {
        Self {
            metadata,
            session: format!("{}mixcoord", session_prefix(metadata_root)),
            cluster: cluster.to_owned(),
            connector,
            active: Mutex::new(None),
        }
    }

    fn set_active(&self, active: Option<Active>) {
        *self.active.lock().unwrap_or_else(PoisonError::into_inner) = active;
    }

    async fn active(&self) -> Result<Active, TimestampError> {
        let known = self.active.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(active) = known {
            return Ok(active);
        }
        let found = self.metadata.get(&self.session).await.map_err(failed)?;
        let session = found.ok_or_else(|| TimestampError("no coordinator is active".to_owned()))?;
        let session = SessionRecord::decode(&session.value).map_err(failed)?;
        let endpoint = Endpoint::from_shared(format!("http://{}", session.address))
            .map_err(failed)?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let channel = endpoint.connect_with_connector_lazy(self.connector.clone());
        let active = Active { server_id: session.server_id, client: RootCoordClient::new(channel) };
        self.set_active(Some(active.clone()));
        Ok(active)
    }

    async fn call(&self, count: u32) -> Result<Range<u64>, TimestampError> {
        let mut active = self.active().await?;
        let mut request = Request::new(AllocTimestampRequest { count, ..AllocTimestampRequest::default() });
        set_destination(request.metadata_mut(), &self.cluster, Some(active.server_id));
        let response = active.client.alloc_timestamp(request).await.map_err(failed)?.into_inner();
        if let Some(status) = response.status.filter(|status| status.code != 0) {
            return Err(TimestampError(format!("{} (code {})", status.reason, status.code)));
        }
        let first = response.timestamp;
        let end = first.checked_add(u64::from(response.count)).filter(|end| *end > first);
        Ok(first..end.ok_or_else(|| TimestampError("the coordinator gave no timestamps".to_owned()))?)
    }
}

fn failed(error: impl std::fmt::Display) -> TimestampError {
    TimestampError(error.to_string())
}

#[async_trait]
impl TimestampSource for RootCoord {
    async fn allocate(&self, count: u32) -> Result<Range<u64>, TimestampError> {
        // A caller that gives up leaves the connection to be looked for again, like a call that failed.
        let mut forget = Forget { source: self, armed: true };
        let result = self.call(count).await;
        forget.armed = result.is_err();
        result
    }
}

struct Forget<'a> {
    source: &'a RootCoord,
    armed: bool,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.source.set_active(None);
        }
    }
}
