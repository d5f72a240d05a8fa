//! Why an operation of the client failed. Each error says by which code it is documented, whether the same call may
//! succeed later, and whether the failed call may have taken effect.

use std::time::Duration;

use streaming_types::{StreamingCode, StreamingError, message::InvalidMessage};

/// Why an append failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The encoded message is larger than [`Limits::max_message`](crate::Limits::max_message); nothing was sent.
    #[error("message of {size} bytes is larger than the limit of {limit} bytes")]
    TooLarge { size: usize, limit: usize },
    /// The message cannot be appended by a client, or not through this producer; nothing was sent.
    #[error("message cannot be appended: {0}")]
    InvalidMessage(InvalidMessage),
    /// The server refused the message for good (UNRECOVERABLE, INVAILD_ARGUMENT, REPLICATE_VIOLATION, TRANSACTION_EXPIRED,
    /// INVALID_TRANSACTION_STATE).
    #[error("refused by the server: {0}")]
    Refused(StreamingError),
    /// The server had already done it, or it is not its business (IGNORED_OPERATION).
    #[error("ignored by the server: {0}")]
    Ignored(StreamingError),
    /// In strict order: the append failed, and a later one was acknowledged, or may be in the log, before it could be retried.
    #[error("a later append may be in the log already: retrying would break the order")]
    Overtaken,
    /// No acknowledgement within [`Timeouts::append`](crate::Timeouts::append).
    #[error("not acknowledged after {after:?}: {cause}")]
    Timeout { after: Duration, sent: bool, cause: String },
    /// The acknowledgement came but cannot be read.
    #[error("unreadable acknowledgement: {0}")]
    Malformed(String),
    /// The client was closed before the append was acknowledged.
    #[error("client closed")]
    Closed { sent: bool },
}

impl AppendError {
    /// A stable code for documentation and programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "APPEND_TOO_LARGE",
            Self::InvalidMessage(_) => "APPEND_INVALID_MESSAGE",
            Self::Refused(_) => "APPEND_REFUSED",
            Self::Ignored(_) => "APPEND_IGNORED",
            Self::Overtaken => "APPEND_OVERTAKEN",
            Self::Timeout { .. } => "APPEND_TIMEOUT",
            Self::Malformed(_) => "APPEND_MALFORMED",
            Self::Closed { .. } => "APPEND_CLOSED",
        }
    }

    /// Whether the same append may succeed later. The client has already retried what can be retried in time.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::Overtaken)
    }

    /// Whether the message may be in the log all the same; appending it again may then store it twice.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        match self {
            Self::Timeout { sent, .. } | Self::Closed { sent } => *sent,
            Self::Overtaken | Self::Malformed(_) => true,
            Self::TooLarge { .. } | Self::InvalidMessage(_) | Self::Refused(_) | Self::Ignored(_) => false,
        }
    }
}

/// Why a transaction failed. Unless the error is of its commit and [`TxnError::has_side_effects`], nothing of the transaction
/// is ever seen by a consumer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TxnError {
    /// The transaction expired, or was ended by a change of its collection. Running it again, from its begin, may succeed.
    #[error("the transaction has ended: {0}")]
    Expired(StreamingError),
    /// The message cannot be a part of the transaction; nothing was sent.
    #[error("not a message of this transaction: {0}")]
    InvalidBody(String),
    /// A keepalive shorter than a millisecond; nothing was sent.
    #[error("keepalive of {0:?} is shorter than a millisecond")]
    InvalidKeepalive(Duration),
    /// One of its messages could not be appended.
    #[error(transparent)]
    Append(AppendError),
}

impl From<AppendError> for TxnError {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Refused(refusal) if refusal.code() == StreamingCode::TransactionExpired => {
                Self::Expired(refusal)
            }
            error => Self::Append(error),
        }
    }
}

impl TxnError {
    /// A stable code for documentation and programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Expired(_) => "TXN_EXPIRED",
            Self::InvalidBody(_) => "TXN_INVALID_BODY",
            Self::InvalidKeepalive(_) => "TXN_INVALID_KEEPALIVE",
            Self::Append(error) => error.code(),
        }
    }

    /// Whether the whole transaction, run again, may succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Expired(_) => true,
            Self::InvalidBody(_) | Self::InvalidKeepalive(_) => false,
            Self::Append(error) => error.is_retryable(),
        }
    }

    /// Whether the failed call may have taken effect: for a commit, whether the transaction may be committed.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        match self {
            Self::Expired(_) | Self::InvalidBody(_) | Self::InvalidKeepalive(_) => false,
            Self::Append(error) => error.has_side_effects(),
        }
    }
}

/// Why a consumer gave up, or for now has nothing to give.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConsumeError {
    /// The request cannot be right; nothing was sent.
    #[error("cannot consume: {0}")]
    InvalidRequest(String),
    /// The server refused for good (UNRECOVERABLE, INVAILD_ARGUMENT).
    #[error("refused by the server: {0}")]
    Refused(StreamingError),
    /// For [`Timeouts::stall`](crate::Timeouts::stall) there was no working stream. Calling `next` again goes on trying,
    /// from the same position.
    #[error("no working stream for {after:?}: {cause}")]
    Stalled { after: Duration, cause: String },
    /// A transaction is larger than [`Limits::max_txn`](crate::Limits::max_txn).
    #[error("transaction of more than {limit} bytes")]
    TxnTooLarge { limit: usize },
    /// The client was closed.
    #[error("client closed")]
    Closed,
}

impl ConsumeError {
    /// A stable code for documentation and programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidRequest(_) => "CONSUME_INVALID_REQUEST",
            Self::Refused(_) => "CONSUME_REFUSED",
            Self::Stalled { .. } => "CONSUME_STALLED",
            Self::TxnTooLarge { .. } => "CONSUME_TXN_TOO_LARGE",
            Self::Closed => "CONSUME_CLOSED",
        }
    }

    /// Whether calling `next` again may succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Stalled { .. })
    }

    /// Whether the failed call may have taken effect: never, reading changes nothing.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        false
    }
}

/// Why there is no read point.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadPointError {
    /// The request cannot be right; nothing was sent.
    #[error("no read point: {0}")]
    InvalidRequest(String),
    /// The server refused for good.
    #[error("refused by the server: {0}")]
    Refused(StreamingError),
    /// No owner of the channel answered for [`Timeouts::stall`](crate::Timeouts::stall).
    #[error("no owner answered for {after:?}: {cause}")]
    Unavailable { after: Duration, cause: String },
    /// The client was closed.
    #[error("client closed")]
    Closed,
}

impl ReadPointError {
    /// A stable code for documentation and programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidRequest(_) => "READ_POINT_INVALID_REQUEST",
            Self::Refused(_) => "READ_POINT_REFUSED",
            Self::Unavailable { .. } => "READ_POINT_UNAVAILABLE",
            Self::Closed => "READ_POINT_CLOSED",
        }
    }

    /// Whether asking again may succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// Whether the failed call may have taken effect: never, asking changes nothing.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        false
    }
}

/// The deadline passed before the cluster was as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not ready after {after:?}: {cause}")]
pub struct NotReady {
    pub after: Duration,
    /// What was still missing, and the last failure seen.
    pub cause: String,
}

impl NotReady {
    /// A stable code for documentation and programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        "CLIENT_NOT_READY"
    }

    /// Whether the same call may succeed later: always.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        true
    }

    /// Whether the failed call may have taken effect: never.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        false
    }
}
