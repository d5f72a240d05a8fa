//! One error type an operation; each answers `code()`, `is_retryable()`, `has_side_effects()`.

use woodpecker_base::metadata::MetadataError;
use woodpecker_core::ids::EntryId;
use woodpecker_store::backend::StoreError;

/// Creating, opening, listing, truncating or deleting a log failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    #[error("log {0:?} does not exist")]
    NotFound(String),
    #[error("log {0:?} exists already")]
    Exists(String),
    #[error("log name {0:?} is empty, too long, or has characters other than letters, digits and ._-")]
    BadName(String),
    #[error("the record of {what} in the metadata store cannot be read: {detail}")]
    BadRecord { what: String, detail: String },
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Opening a log for writing failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenWriterError {
    /// Another writer opened the log in the meantime and has a later epoch.
    #[error("another writer took the log while this one was opening it")]
    Preempted,
    #[error(transparent)]
    Log(#[from] LogError),
}

/// An append failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// Another writer owns the log. This writer never acks again; the entries may or may not be in the log.
    #[error("fenced: another writer owns the log")]
    Fenced,
    #[error("{bytes} bytes in one append, at most {limit} fit")]
    TooLarge { bytes: usize, limit: usize },
    /// Much more than the in-flight limit is queued already: the caller did not wait in [`crate::Writer::reserve`].
    #[error("{bytes} bytes are queued already")]
    Overloaded { bytes: usize },
    #[error("the writer is closed")]
    Closed,
    /// The medium failed for good; open a new writer. The entries may or may not be in the log.
    #[error("the log's storage failed: {0}")]
    Failed(StoreError),
}

/// A read failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The position was truncated away; reading may go on at `earliest`.
    #[error("position is before the earliest entry {earliest}")]
    PositionLost { earliest: EntryId },
    #[error("the log was deleted")]
    Deleted,
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

macro_rules! answers {
    ($error:ty { $($pattern:pat => ($code:expr, $retryable:expr, $side_effects:expr)),+ $(,)? }) => {
        #[allow(unused_variables, reason = "a pattern's binding is used by some of the three answers")]
        impl $error {
            /// A stable code for documentation and programs.
            #[must_use]
            pub fn code(&self) -> &'static str {
                match self { $($pattern => $code),+ }
            }

            /// Whether the same call may succeed later.
            #[must_use]
            pub fn is_retryable(&self) -> bool {
                match self { $($pattern => $retryable),+ }
            }

            /// Whether what was asked may still have happened.
            #[must_use]
            pub fn has_side_effects(&self) -> bool {
                match self { $($pattern => $side_effects),+ }
            }
        }
    };
}

answers!(LogError {
    Self::NotFound(_) => ("LOG_NOT_FOUND", false, false),
    Self::Exists(_) => ("LOG_EXISTS", false, false),
    Self::BadName(_) => ("LOG_BAD_NAME", false, false),
    Self::BadRecord { .. } => ("LOG_BAD_RECORD", false, false),
    Self::Metadata(e) => (e.code(), e.is_retryable(), e.has_side_effects()),
    Self::Store(e) => (e.code(), e.is_retryable(), e.has_side_effects()),
});

answers!(OpenWriterError {
    Self::Preempted => ("LOG_PREEMPTED", true, true),
    Self::Log(e) => (e.code(), e.is_retryable(), e.has_side_effects()),
});

answers!(AppendError {
    Self::Fenced => ("LOG_FENCED", false, true),
    Self::TooLarge { .. } => ("LOG_TOO_LARGE", false, false),
    Self::Overloaded { .. } => ("LOG_OVERLOADED", true, false),
    Self::Closed => ("LOG_CLOSED", false, false),
    Self::Failed(e) => (e.code(), false, true),
});

impl From<LogError> for ReadError {
    fn from(error: LogError) -> Self {
        match error {
            LogError::NotFound(_) | LogError::Exists(_) | LogError::BadName(_) => Self::Deleted,
            LogError::BadRecord { what, detail } => Self::Store(StoreError::Corrupt { what, detail }),
            LogError::Metadata(error) => Self::Metadata(error),
            LogError::Store(error) => Self::Store(error),
        }
    }
}

answers!(ReadError {
    Self::PositionLost { .. } => ("LOG_POSITION_LOST", false, false),
    Self::Deleted => ("LOG_DELETED", false, false),
    Self::Metadata(e) => (e.code(), e.is_retryable(), false),
    Self::Store(e) => (e.code(), e.is_retryable(), false),
});
