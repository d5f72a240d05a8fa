//! A streaming node and its clients in one process.

use std::fmt;

use futures::stream::BoxStream;
use streaming_proto::streaming::{ConsumeRequest, ConsumeResponse, ProduceRequest, ProduceResponse};
use tonic::Status;

use crate::{PChannel, StreamingError, TimeTick};

/// What comes from the other side of a stream.
pub type Stream<T> = BoxStream<'static, Result<T, Status>>;

/// A streaming node that clients in its own process use without gRPC: nothing is encoded, and no connection is between
/// them. Streams say the same, in the same order and with the same errors, as those of the node's gRPC service. They are
/// driven by who reads them: a stream whose answers are not asked for takes no requests either, and dropping it is hanging
/// up.
pub trait LocalNode: fmt::Debug + Send + Sync {
    /// Whether calls of `cluster` for the server of this id are meant for this node.
    fn is(&self, cluster: &str, server_id: i64) -> bool;

    /// Opens a Produce stream. `requests` ends where gRPC would half-close.
    ///
    /// # Errors
    /// Those with which the node ends such a call before it has begun.
    fn produce(&self, channel: &PChannel, requests: Stream<ProduceRequest>) -> Result<Stream<ProduceResponse>, Status>;

    /// Opens a Consume stream. `requests` ends where gRPC would half-close.
    ///
    /// # Errors
    /// Those with which the node ends such a call before it has begun.
    fn consume(&self, channel: &PChannel, requests: Stream<ConsumeRequest>) -> Result<Stream<ConsumeResponse>, Status>;

    /// The tick that a reader of the vchannel has to reach to have seen every message that was acked before this call.
    /// Waits for nothing.
    ///
    /// # Errors
    /// CHANNEL_NOT_EXIST or UNMATCHED_CHANNEL_TERM when this node does not append to `channel` at that term, ON_SHUTDOWN.
    fn latest_time_tick(&self, channel: &PChannel, vchannel: &str) -> Result<TimeTick, StreamingError>;
}
