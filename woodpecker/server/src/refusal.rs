//! What a log store answers instead of doing what was asked.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message;
use streaming_proto::logstore::{self as proto, Code};
use tonic::Status;
use woodpecker_store::backend::StoreError;

/// Why a call was refused; `docs/logstore.md` says what to do about each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("epoch {epoch} has lost the segment to epoch {by}")]
    Fenced { epoch: u64, by: u64 },
    #[error("this is store {here}, not {asked}")]
    WrongStore { asked: String, here: String },
    #[error("the next entry here is {next}, not {first}")]
    Gap { first: u64, next: u64 },
    #[error("epoch {epoch} did not begin the replica in this run of the store, and did not fence it")]
    NotContinued { epoch: u64 },
    #[error("{reason}")]
    SlowDown { reason: &'static str, retry_after: Duration },
    #[error("the disk is full: {free} bytes are left")]
    DiskFull { free: u64, retry_after: Duration },
    #[error("the store is being given up")]
    Decommissioning,
    #[error("the store takes no more appends: {0}")]
    Failed(Arc<str>),
    #[error("the namespace appends more in a second than it may")]
    Rate { retry_after: Duration },
    #[error("the namespace is over its quota of {what}")]
    Quota { what: &'static str, retry_after: Duration },
    #[error("{0}")]
    Corrupt(Arc<str>),
    #[error("the replica was released")]
    Released,
    #[error("{0}")]
    Invalid(&'static str),
    #[error("{0}")]
    Unavailable(Arc<str>),
}

impl Refusal {
    /// The code on the wire; a request that makes no sense, and a disk that does not answer, have none.
    #[must_use]
    pub fn wire_code(&self) -> Code {
        match self {
            Self::Fenced { .. } => Code::Fenced,
            Self::WrongStore { .. } => Code::WrongStore,
            Self::Gap { .. } => Code::Gap,
            Self::NotContinued { .. } => Code::NotContinued,
            Self::SlowDown { .. } => Code::SlowDown,
            Self::DiskFull { .. } => Code::DiskFull,
            Self::Decommissioning => Code::Decommissioning,
            Self::Failed(_) => Code::Failed,
            Self::Rate { .. } => Code::Rate,
            Self::Quota { .. } => Code::Quota,
            Self::Corrupt(_) => Code::Corrupt,
            Self::Released => Code::Released,
            Self::Invalid(_) | Self::Unavailable(_) => Code::Unspecified,
        }
    }

    /// A stable code for documentation and programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "LOGSTORE_INVALID",
            Self::Unavailable(_) => "LOGSTORE_UNAVAILABLE",
            Self::Fenced { .. } => "LOGSTORE_FENCED",
            Self::WrongStore { .. } => "LOGSTORE_WRONG_STORE",
            Self::Gap { .. } => "LOGSTORE_GAP",
            Self::NotContinued { .. } => "LOGSTORE_NOT_CONTINUED",
            Self::SlowDown { .. } => "LOGSTORE_SLOW_DOWN",
            Self::DiskFull { .. } => "LOGSTORE_DISK_FULL",
            Self::Decommissioning => "LOGSTORE_DECOMMISSIONING",
            Self::Failed(_) => "LOGSTORE_FAILED",
            Self::Rate { .. } => "LOGSTORE_RATE",
            Self::Quota { .. } => "LOGSTORE_QUOTA",
            Self::Corrupt(_) => "LOGSTORE_CORRUPT",
            Self::Released => "LOGSTORE_RELEASED",
        }
    }

    /// Whether the same call may succeed later. What a namespace keeps does not become less by waiting: its quota is final
    /// until something is sealed, truncated or deleted.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::SlowDown { .. } | Self::DiskFull { .. } | Self::Rate { .. } | Self::Gap { .. } | Self::Unavailable(_)
        )
    }

    /// Whether what was asked may still have happened.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Unavailable(_))
    }

    /// How long to wait before another attempt; zero where waiting does not help.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::SlowDown { retry_after, .. }
            | Self::DiskFull { retry_after, .. }
            | Self::Rate { retry_after }
            | Self::Quota { retry_after, .. } => *retry_after,
            _ => Duration::ZERO,
        }
    }

    /// As an append's answer carries it.
    #[must_use]
    pub fn to_wire(&self) -> proto::Refusal {
        let retry_after_ms = u64::try_from(self.retry_after().as_millis()).unwrap_or(u64::MAX);
        proto::Refusal { code: self.wire_code().into(), reason: self.to_string(), retry_after_ms }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::Invalid(_) => return Self::invalid_argument(refusal.to_string()),
            Refusal::Unavailable(_) => return Self::unavailable(refusal.to_string()),
            Refusal::Failed(_) => tonic::Code::Unavailable,
            Refusal::SlowDown { .. } | Refusal::DiskFull { .. } | Refusal::Rate { .. } | Refusal::Quota { .. } => {
                tonic::Code::ResourceExhausted
            }
            Refusal::Corrupt(_) => tonic::Code::DataLoss,
            Refusal::Released => tonic::Code::NotFound,
            Refusal::Gap { .. } => tonic::Code::OutOfRange,
            Refusal::Fenced { .. }
            | Refusal::WrongStore { .. }
            | Refusal::NotContinued { .. }
            | Refusal::Decommissioning => tonic::Code::FailedPrecondition,
        };
        Self::with_details(code, refusal.to_string(), Bytes::from(refusal.to_wire().encode_to_vec()))
    }
}

/// What an error of the volume means to a caller that did nothing wrong.
impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match error {
            // A data file that is gone held what the replica said it holds.
            StoreError::Corrupt { .. } | StoreError::NotFound { .. } => Self::Corrupt(error.to_string().into()),
            StoreError::TooLarge { .. } => Self::Invalid("the entries are larger than one append takes"),
            StoreError::Ended | StoreError::Fenced { .. } | StoreError::Failed(_) | StoreError::Foreign { .. } => {
                Self::Failed(error.to_string().into())
            }
            StoreError::Unavailable(_) => Self::Unavailable(error.to_string().into()),
        }
    }
}
