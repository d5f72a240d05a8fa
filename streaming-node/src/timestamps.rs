//! Where timestamps come from.

use std::ops::Range;

use async_trait::async_trait;

/// Gives out the cluster's timestamps: hybrid, 64 bits, milliseconds since the Unix epoch above 18 logical bits.
///
/// A coordinator's root service is one ([`crate::RootCoord`]); a process that holds the allocator itself, and a test,
/// plug in their own.
#[async_trait]
pub trait TimestampSource: Send + Sync + std::fmt::Debug + 'static {
    /// Consecutive timestamps, at least one and about `count` of them, each greater than every timestamp given to
    /// anyone before this call. The caller sets the deadline by dropping the future.
    ///
    /// # Errors
    /// [`TimestampError`]; the same call may succeed later.
    async fn allocate(&self, count: u32) -> Result<Range<u64>, TimestampError>;
}

/// No timestamps could be had now.
#[derive(Debug, Clone, thiserror::Error)]
#[error("no timestamps from the coordinator: {0}")]
pub struct TimestampError(pub String);

impl TimestampError {
    /// A stable code for documentation and programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        "TIMESTAMPS_UNAVAILABLE"
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        true
    }

    /// Whether what was asked may still have happened: timestamps that nobody received are never used.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        false
    }
}
