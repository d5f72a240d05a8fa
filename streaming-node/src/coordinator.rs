//! The node's calls to the coordinator.

use std::{
    fmt::Display,
    future::Future,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use streaming_proto::{
    common,
    rootcoord::{AllocIdRequest, AllocTimestampRequest, root_coord_client::RootCoordClient},
    streaming::{BroadcastAckRequest, streaming_coord_broadcast_service_client::StreamingCoordBroadcastServiceClient},
};
use streaming_types::{ImmutableMessage, metadata::set_destination};
use tonic::{Request, transport::Endpoint};
use woodpecker_base::{
    metadata::MetadataStore,
    net::{Connector, Dialed},
    session::{SessionRecord, session_prefix},
};

use crate::{
    ids::{IdError, IdSource},
    recovery::acks::{AckError, BroadcastAcks},
    timestamps::{TimestampError, TimestampSource},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Timestamps, ids and acknowledgements of broadcasts at the active coordinator, which is found by its session in the
/// metadata store. When a call fails, the next one looks for it again.
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
    cluster: String,
    channel: Dialed,
}

impl Active {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        set_destination(request.metadata_mut(), &self.cluster, Some(self.server_id));
        request
    }
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

    async fn active(&self) -> Result<Active, String> {
        let known = self.active.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(active) = known {
            return Ok(active);
        }
        let found = self.metadata.get(&self.session).await.map_err(text)?;
        let session = found.ok_or_else(|| "no coordinator is active".to_owned())?;
        let session = SessionRecord::decode(&session.value).map_err(text)?;
        let endpoint = Endpoint::from_shared(format!("http://{}", session.address))
            .map_err(text)?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let channel = self.connector.dial(endpoint);
        let active = Active { server_id: session.server_id, cluster: self.cluster.clone(), channel };
        self.set_active(Some(active.clone()));
        Ok(active)
    }

    async fn call<T, F>(&self, call: impl FnOnce(Active) -> F + Send) -> Result<T, String>
    where
        F: Future<Output = Result<T, String>> + Send,
    {
        // A caller that gives up leaves the connection to be looked for again, like a call that failed.
        let mut forget = Forget { source: self, armed: true };
        let result = call(self.active().await?).await;
        forget.armed = result.is_err();
        result
    }
}

fn text(error: impl Display) -> String {
    error.to_string()
}

fn check(status: Option<common::Status>) -> Result<(), String> {
    match status {
        Some(status) if status.code != 0 => Err(format!("{} (code {})", status.reason, status.code)),
        _ => Ok(()),
    }
}

#[async_trait]
impl TimestampSource for RootCoord {
    async fn allocate(&self, count: u32) -> Result<Range<u64>, TimestampError> {
        let call = |active: Active| async move {
            let request = active.request(AllocTimestampRequest { count, ..AllocTimestampRequest::default() });
            let response = RootCoordClient::new(active.channel).alloc_timestamp(request).await;
            let response = response.map_err(text)?.into_inner();
            check(response.status)?;
            let first = response.timestamp;
            let end = first.checked_add(u64::from(response.count)).filter(|end| *end > first);
            Ok(first..end.ok_or_else(|| "the coordinator gave no timestamps".to_owned())?)
        };
        self.call(call).await.map_err(TimestampError)
    }
}

#[async_trait]
impl IdSource for RootCoord {
    async fn allocate_ids(&self, count: u32) -> Result<Range<i64>, IdError> {
        let call = |active: Active| async move {
            let request = active.request(AllocIdRequest { count, ..AllocIdRequest::default() });
            let response = RootCoordClient::new(active.channel).alloc_id(request).await.map_err(text)?.into_inner();
            check(response.status)?;
            let first = response.id;
            let end = first.checked_add(i64::from(response.count)).filter(|end| *end > first);
            Ok(first..end.ok_or_else(|| "the coordinator gave no ids".to_owned())?)
        };
        self.call(call).await.map_err(IdError)
    }
}

#[async_trait]
impl BroadcastAcks for RootCoord {
    async fn ack(&self, message: ImmutableMessage) -> Result<(), AckError> {
        let call = |active: Active| async move {
            let request = BroadcastAckRequest { message: Some(message.into()), ..BroadcastAckRequest::default() };
            let request = active.request(request);
            let acked = StreamingCoordBroadcastServiceClient::new(active.channel).ack(request).await;
            acked.map(drop).map_err(text)
        };
        self.call(call).await.map_err(AckError)
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
