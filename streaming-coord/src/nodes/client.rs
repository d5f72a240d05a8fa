//! Calls to one streaming node's manager service.

use std::time::Duration;

use streaming_proto::streaming::{
    PChannelInfo, StreamingCode, StreamingNodeManagerAssignRequest, StreamingNodeManagerCollectStatusRequest,
    StreamingNodeManagerRemoveRequest, StreamingNodeMetrics,
    streaming_node_manager_service_client::StreamingNodeManagerServiceClient,
};
use streaming_types::{
    StreamingError,
    metadata::{set_destination, wal_ended},
};
use tonic::{Request, Status, transport::Endpoint};
use woodpecker_base::{
    clock::Clock,
    net::{Connector, Dialed},
};

use crate::pchannel::Node;

/// Both sides of a node's connection accept messages of this many bytes.
const MAX_MESSAGE: usize = 256 << 20;

/// Why a node did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum NodeError {
    #[error("no answer from node {server_id} within {limit:?}")]
    TimedOut { server_id: i64, limit: Duration },
    #[error("node {server_id}: {error}")]
    Refused { server_id: i64, error: StreamingError },
}

impl NodeError {
    /// Whether the node has answered, for itself, that it is going away.
    pub(crate) fn is_shutdown(&self) -> bool {
        matches!(self, Self::Refused { error, .. } if error.code() == StreamingCode::OnShutdown)
    }

    /// Whether a Remove that ended so has reached what it wanted. A refusal by a server that was not meant (another
    /// process now has the address, or another cluster) says nothing about the node that was.
    fn is_done_for_remove(&self) -> bool {
        match self {
            Self::Refused { error, .. } => {
                let misrouted = error.cause().contains("node not match") || error.cause().contains("cross cluster");
                error.is_done_for_remove() && !misrouted
            }
            Self::TimedOut { .. } => false,
        }
    }
}

/// A lazily made, self-healing connection to one node process.
#[derive(Debug, Clone)]
pub(crate) struct ManagerClient {
    inner: StreamingNodeManagerServiceClient<Dialed>,
    cluster: String,
    server_id: i64,
    clock: Clock,
}

impl ManagerClient {
    pub(crate) fn new(
        node: &Node,
        cluster: &str,
        connector: &Connector,
        clock: Clock,
    ) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{}", node.address))?
            .connect_timeout(Duration::from_secs(3))
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(20))
            .keep_alive_while_idle(true);
        let inner = StreamingNodeManagerServiceClient::new(connector.dial(endpoint))
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        Ok(Self { inner, cluster: cluster.to_owned(), server_id: node.server_id, clock })
    }

    /// Has the node open a WAL; returns when it is ready to serve.
    pub(crate) async fn assign(&self, pchannel: PChannelInfo, limit: Duration) -> Result<(), NodeError> {
        let request = self.request(StreamingNodeManagerAssignRequest { pchannel: Some(pchannel) }, limit);
        self.within(limit, self.inner.clone().assign(request)).await.map(drop)
    }

    /// Has the node close a WAL, if it still has it open at that term. Says why it had ended by itself, if the node does.
    pub(crate) async fn remove(&self, pchannel: PChannelInfo, limit: Duration) -> Result<Option<String>, NodeError> {
        let request = self.request(StreamingNodeManagerRemoveRequest { pchannel: Some(pchannel) }, limit);
        match self.within(limit, self.inner.clone().remove(request)).await {
            Err(error) if error.is_done_for_remove() => Ok(None),
            done => done.map(|response| wal_ended(response.metadata())),
        }
    }

    /// Asks how the node's WALs are.
    pub(crate) async fn status(&self, limit: Duration) -> Result<StreamingNodeMetrics, NodeError> {
        let request = self.request(StreamingNodeManagerCollectStatusRequest {}, limit);
        let response = self.within(limit, self.inner.clone().collect_status(request)).await?;
        Ok(response.into_inner().metrics.unwrap_or_default())
    }

    fn request<T>(&self, message: T, limit: Duration) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(limit);
        set_destination(request.metadata_mut(), &self.cluster, Some(self.server_id));
        request
    }

    async fn within<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, Status>> + Send,
    ) -> Result<tonic::Response<T>, NodeError> {
        let server_id = self.server_id;
        match self.clock.timeout(limit, call).await {
            Err(_) => Err(NodeError::TimedOut { server_id, limit }),
            Ok(Ok(response)) => Ok(response),
            Ok(Err(status)) => {
                let error = match StreamingError::check_status(&status) {
                    Err(error) => error,
                    Ok(()) => StreamingError::unknown("the node failed without saying why"),
                };
                Err(NodeError::Refused { server_id, error })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(error: StreamingError) -> NodeError {
        NodeError::Refused { server_id: 1, error }
    }

    #[test]
    fn a_remove_that_is_beside_the_point_has_worked() {
        assert!(refused(StreamingError::expired_open("c", 2)).is_done_for_remove());
        assert!(refused(StreamingError::overtaken_term(3, 2)).is_done_for_remove());
    }

    #[test]
    fn a_refusal_by_another_process_is_no_removal() {
        let wrong = streaming_types::metadata::check_destination;
        let mut metadata = tonic::metadata::MetadataMap::new();
        set_destination(&mut metadata, "by-dev", Some(7));
        assert!(!refused(wrong(&metadata, "by-dev", 8).unwrap_err()).is_done_for_remove());
        assert!(!refused(wrong(&metadata, "other", 7).unwrap_err()).is_done_for_remove());
        let unreachable = StreamingError::unknown("tcp connect error");
        assert!(!refused(unreachable).is_done_for_remove());
        assert!(!NodeError::TimedOut { server_id: 1, limit: Duration::ZERO }.is_done_for_remove());
    }
}
