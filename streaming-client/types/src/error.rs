//! Errors of the streaming protocol, and how they travel in a gRPC status.

use std::fmt::Display;

use prost::Message;
use prost_types::Any;
use streaming_proto::streaming::{self as pb, StreamingCode};
use tonic::{Code, Status};

const TYPE_URL: &str = "type.googleapis.com/milvus.proto.streaming.StreamingError";
const MESSAGE_NAME: &str = "milvus.proto.streaming.StreamingError";

/// What a streaming service answers when it does not do what it was asked. The code is never OK.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {cause}", code.as_str_name())]
pub struct StreamingError {
    code: StreamingCode,
    cause: String,
}

/// `google.rpc.Status`, which holds the details of a gRPC status.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// One constructor for each code and, where peers know a text by heart, for each text.
impl StreamingError {
    fn new(code: StreamingCode, cause: impl Into<String>) -> Self {
        Self { code, cause: cause.into() }
    }

    /// The node has no such pchannel open.
    #[must_use]
    pub fn channel_not_exist(channel: &str) -> Self {
        Self::new(StreamingCode::ChannelNotExist, format!("{channel} not exist"))
    }

    /// A newer owner has taken the pchannel over.
    #[must_use]
    pub fn channel_fenced(channel: &str) -> Self {
        Self::new(StreamingCode::ChannelFenced, format!("{channel} fenced"))
    }

    #[must_use]
    pub fn on_shutdown(cause: impl Into<String>) -> Self {
        Self::new(StreamingCode::OnShutdown, cause)
    }

    /// The node is going away and opens no more pchannels.
    #[must_use]
    pub fn manager_closed() -> Self {
        Self::on_shutdown("wal manager is closed")
    }

    /// A request came out of order in its stream.
    #[must_use]
    pub fn invalid_request_seq(cause: impl Into<String>) -> Self {
        Self::new(StreamingCode::InvalidRequestSeq, cause)
    }

    /// The pchannel is open at term `current`; the request asked for `expected`.
    #[must_use]
    pub fn unmatched_channel_term(channel: &str, expected: i64, current: i64) -> Self {
        Self::new(
            StreamingCode::UnmatchedChannelTerm,
            format!("channel {channel} at term {expected} is expected, but current term is {current}"),
        )
    }

    /// A waiting Assign or Remove for term `actual` was overtaken by one for `expected`.
    #[must_use]
    pub fn overtaken_term(expected: i64, actual: i64) -> Self {
        Self::new(
            StreamingCode::UnmatchedChannelTerm,
            format!("request term is expired, expected: {expected}, actual: {actual}"),
        )
    }

    #[must_use]
    pub fn ignored_operation(cause: impl Into<String>) -> Self {
        Self::new(StreamingCode::IgnoredOperation, cause)
    }

    /// An Assign for a term that is not ahead of what the node was last asked for.
    #[must_use]
    pub fn expired_open(channel: &str, term: i64) -> Self {
        Self::ignored_operation(format!(
            "channel {channel} with expired term {term}, cannot change expected state for open"
        ))
    }

    #[must_use]
    pub fn inner(cause: impl Into<String>) -> Self {
        Self::new(StreamingCode::Inner, cause)
    }

    #[must_use]
    pub fn invalid_argument(cause: impl Into<String>) -> Self {
        Self::new(StreamingCode::InvaildArgument, cause)
    }

    #[must_use]
    pub fn transaction_expired(cause: impl Into<String>) -> Self {
        Self::new(StreamingCode::TransactionExpired, cause)
    }

    /// `operation` needs the transaction in state `expected`.
    #[must_use]
    pub fn invalid_transaction_state(operation: &str, expected: impl Display, current: impl Display) -> Self {
        Self::new(
            StreamingCode::InvalidTransactionState,
            format!("invalid transaction state for operation {operation}, expect {expected}, current {current}"),
        )
    }

    /// The same request fails again however often it is sent.
    #[must_use]
    pub fn unrecoverable(cause: impl Into<String>) -> Self {
        Self::new(StreamingCode::Unrecoverable, cause)
    }

    #[must_use]
    pub fn resource_acquired(cause: impl Into<String>) -> Self {
        Self::new(StreamingCode::ResourceAcquired, cause)
    }

    #[must_use]
    pub fn replicate_violation(cause: impl Into<String>) -> Self {
        Self::new(StreamingCode::ReplicateViolation, cause)
    }

    /// What came on a stream is no message of its kind.
    #[must_use]
    pub fn unreadable_request() -> Self {
        Self::unknown("a request cannot be read")
    }

    /// Any error that is not one of the protocol.
    #[must_use]
    pub fn unknown(cause: impl Into<String>) -> Self {
        Self::new(StreamingCode::Unknown, cause)
    }
}

/// What a client does about it.
impl StreamingError {
    #[must_use]
    pub fn code(&self) -> StreamingCode {
        self.code
    }

    #[must_use]
    pub fn cause(&self) -> &str {
        &self.cause
    }

    /// The pchannel is not served there: report it and wait for a newer assignment.
    #[must_use]
    pub fn is_wrong_node(&self) -> bool {
        matches!(self.code, StreamingCode::ChannelNotExist | StreamingCode::UnmatchedChannelTerm)
    }

    /// The producer is of no more use; a new one must be made.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        matches!(self.code, StreamingCode::ChannelFenced | StreamingCode::OnShutdown)
    }

    #[must_use]
    pub fn is_ignored(&self) -> bool {
        self.code == StreamingCode::IgnoredOperation
    }

    /// A Remove that ends so has reached what it wanted. An Assign has not.
    #[must_use]
    pub fn is_done_for_remove(&self) -> bool {
        matches!(self.code, StreamingCode::IgnoredOperation | StreamingCode::UnmatchedChannelTerm)
    }

    /// The user must hear of it; sending again is of no use.
    #[must_use]
    pub fn is_unrecoverable(&self) -> bool {
        matches!(
            self.code,
            StreamingCode::Unrecoverable
                | StreamingCode::ReplicateViolation
                | StreamingCode::TransactionExpired
                | StreamingCode::InvalidTransactionState
        )
    }

    #[must_use]
    pub fn is_resource_acquired(&self) -> bool {
        self.code == StreamingCode::ResourceAcquired
    }

    /// Whether the same request may succeed later, or elsewhere.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        !self.is_unrecoverable() && !self.is_ignored() && self.code != StreamingCode::InvaildArgument
    }

    /// Whether what was asked for may have been done nevertheless.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        matches!(self.code, StreamingCode::ChannelFenced | StreamingCode::Inner | StreamingCode::Unknown)
    }
}

/// The wire.
impl StreamingError {
    #[must_use]
    pub fn to_proto(&self) -> pb::StreamingError {
        pb::StreamingError { code: self.code.into(), cause: self.cause.clone() }
    }

    /// Reads an error from the wire. Code OK is success; a code that is unknown here becomes UNKNOWN.
    pub fn check(error: &pb::StreamingError) -> Result<(), Self> {
        match StreamingCode::try_from(error.code) {
            Ok(StreamingCode::Ok) => Ok(()),
            Ok(code) => Err(Self::new(code, error.cause.clone())),
            Err(_) => Err(Self::unknown(format!("streaming code {}: {}", error.code, error.cause))),
        }
    }

    /// Reads the status that a streaming service answered with: the first detail that is a streaming error counts.
    /// Without one it is UNKNOWN with the text of the status, and a status that is OK, or carries code OK, is success.
    pub fn check_status(status: &Status) -> Result<(), Self> {
        let details = RpcStatus::decode(status.details()).map(|status| status.details).unwrap_or_default();
        let error = details
            .iter()
            .filter(|detail| detail.type_url.rsplit('/').next() == Some(MESSAGE_NAME))
            .find_map(|detail| pb::StreamingError::decode(detail.value.as_slice()).ok());
        match error {
            Some(error) => Self::check(&error),
            None if status.code() == Code::Ok => Ok(()),
            None => Err(Self::unknown(format!("{:?}: {}", status.code(), status.message()))),
        }
    }

    /// The gRPC code that goes with the code of this error. Never UNAVAILABLE, which channels retry by themselves.
    #[must_use]
    pub fn grpc_code(&self) -> Code {
        match self.code {
            StreamingCode::Inner => Code::Internal,
            StreamingCode::InvaildArgument => Code::InvalidArgument,
            StreamingCode::Unknown => Code::Unknown,
            _ => Code::FailedPrecondition,
        }
    }
}

impl From<StreamingError> for Status {
    /// The text of the status is empty; the error is its one detail.
    fn from(error: StreamingError) -> Self {
        let code = error.grpc_code();
        let detail = Any { type_url: TYPE_URL.to_owned(), value: error.to_proto().encode_to_vec() };
        let details = RpcStatus { code: code.into(), message: String::new(), details: vec![detail] };
        Self::with_details(code, "", details.encode_to_vec().into())
    }
}

#[cfg(test)]
mod tests;
