//! Where ids come from.

use std::ops::Range;

use async_trait::async_trait;

/// Gives out ids that are unique in the cluster: of segments, of transactions.
#[async_trait]
pub trait IdSource: Send + Sync + std::fmt::Debug + 'static {
    /// Consecutive ids, at least one and about `count` of them, which nobody else gets. The caller sets the deadline by
    /// dropping the future; ids given to nobody are lost, which costs nothing.
    ///
    /// # Errors
    /// [`IdError`]; the same call may succeed later.
    async fn allocate_ids(&self, count: u32) -> Result<Range<i64>, IdError>;
}

/// No ids could be had now.
#[derive(Debug, Clone, thiserror::Error)]
#[error("no ids from the coordinator: {0}")]
pub struct IdError(pub String);

impl IdError {
    /// A stable code for documentation and programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        "IDS_UNAVAILABLE"
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        true
    }

    /// Whether what was asked may still have happened: ids that nobody received are never used.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        false
    }
}
