//! Telling the coordinator that a broadcast arrived.

use async_trait::async_trait;
use streaming_types::ImmutableMessage;

/// Takes acknowledgements of broadcast messages that stand in a WAL. Acknowledging twice is no error.
#[async_trait]
pub trait BroadcastAcks: Send + Sync + std::fmt::Debug + 'static {
    /// Acknowledges one copy of a broadcast. The caller sets the deadline by dropping the future, and repeats a call
    /// that failed.
    ///
    /// # Errors
    /// [`AckError`]; the same call may succeed later.
    async fn ack(&self, message: ImmutableMessage) -> Result<(), AckError>;
}

/// The coordinator did not take an acknowledgement.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the coordinator did not take the acknowledgement of a broadcast: {0}")]
pub struct AckError(pub String);

impl AckError {
    /// A stable code for documentation and programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        "BROADCAST_NOT_ACKED"
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        true
    }

    /// Whether the coordinator may have taken it all the same.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        true
    }
}
