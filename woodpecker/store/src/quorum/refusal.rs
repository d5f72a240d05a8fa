//! What a log store answers instead of doing what was asked.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use streaming_proto::logstore::{self, Code};
use tonic::Status;

use crate::backend::StoreError;

/// A log store's refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason} ({code:?})")]
pub struct Refusal {
    pub code: Code,
    pub reason: String,
    /// Not before this long; zero for never or at once, as the code says.
    pub retry_after: Duration,
}

impl Refusal {
    /// A refusal that says nothing of when to try again.
    #[must_use]
    pub fn new(code: Code, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), retry_after: Duration::ZERO }
    }

    /// The refusal in an append's answer.
    #[must_use]
    pub fn from_wire(refusal: logstore::Refusal) -> Self {
        let (code, retry_after) = (refusal.code(), Duration::from_millis(refusal.retry_after_ms));
        Self { code, reason: refusal.reason, retry_after }
    }

    /// As it stands in an append's answer.
    #[must_use]
    pub fn to_wire(&self) -> logstore::Refusal {
        let retry_after_ms = u64::try_from(self.retry_after.as_millis()).unwrap_or(u64::MAX);
        logstore::Refusal { code: self.code.into(), reason: self.reason.clone(), retry_after_ms }
    }

    /// The refusal that a call's status carries; `None` when the status is the transport's.
    #[must_use]
    pub fn from_status(status: &Status) -> Option<Self> {
        let details = Some(status.details()).filter(|details| !details.is_empty())?;
        logstore::Refusal::decode(details).ok().map(Self::from_wire)
    }

    /// The status that a refused call ends with.
    #[must_use]
    pub fn to_status(&self) -> Status {
        let code = match self.code {
            Code::WrongStore | Code::Released => tonic::Code::NotFound,
            Code::SlowDown | Code::DiskFull | Code::Rate | Code::Quota => tonic::Code::ResourceExhausted,
            Code::Corrupt => tonic::Code::DataLoss,
            Code::Failed => tonic::Code::Unavailable,
            Code::Unspecified | Code::Fenced | Code::Gap | Code::NotContinued | Code::Decommissioning => {
                tonic::Code::FailedPrecondition
            }
        };
        Status::with_details(code, self.reason.clone(), Bytes::from(self.to_wire().encode_to_vec()))
    }

    /// Whether the store takes the same later: its writer keeps what it has and waits. A reason that only later releases
    /// know is one, if it says how long.
    #[must_use]
    pub fn is_slowing(&self) -> bool {
        let unknown = self.code == Code::Unspecified && !self.retry_after.is_zero();
        unknown || matches!(self.code, Code::SlowDown | Code::Rate | Code::Quota)
    }

    /// Whether what the instance keeps has to become less before the store takes the same.
    #[must_use]
    pub fn is_for_what_is_kept(&self) -> bool {
        self.code == Code::Quota
    }

    /// Whether the store itself takes no segments for now, and not only this segment's entries.
    #[must_use]
    pub fn is_of_store(&self) -> bool {
        matches!(self.code, Code::WrongStore | Code::DiskFull | Code::Decommissioning | Code::Failed)
    }
}

/// What a failed call to one store means for who asked; `what` names the segment.
pub(super) fn store_error(status: &Status, what: &str) -> StoreError {
    match Refusal::from_status(status) {
        Some(refusal) => match refusal.code {
            Code::Released => StoreError::NotFound { what: what.to_owned() },
            Code::Fenced => StoreError::Fenced { what: what.to_owned() },
            Code::Corrupt => StoreError::Corrupt { what: what.to_owned(), detail: refusal.reason },
            _ => StoreError::Unavailable(refusal.to_string().into()),
        },
        None => StoreError::Unavailable(format!("{}: {}", status.code(), status.message()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_survives_the_way_as_an_answer_and_as_a_status() {
        for code in (0..=12).map(|code| Code::try_from(code).unwrap()) {
            let refusal = Refusal { code, reason: "because".to_owned(), retry_after: Duration::from_millis(20) };
            assert_eq!(Refusal::from_wire(refusal.to_wire()), refusal);
            let status = refusal.to_status();
            assert_eq!(Refusal::from_status(&status), Some(refusal));
            assert_ne!(status.code(), tonic::Code::Ok);
        }
        assert_eq!(Refusal::from_status(&Status::unavailable("connection reset")), None);
    }

    #[test]
    fn a_reason_of_a_later_release_is_waited_for_if_it_says_how_long() {
        let unknown = |retry_after_ms| logstore::Refusal { code: 1_000, reason: "new".to_owned(), retry_after_ms };
        assert!(Refusal::from_wire(unknown(20)).is_slowing());
        assert!(!Refusal::from_wire(unknown(0)).is_slowing());
    }

    #[test]
    fn what_is_released_is_gone_and_what_is_broken_says_so() {
        let error = |code| store_error(&Refusal::new(code, "r").to_status(), "segment 1/2");
        assert!(matches!(error(Code::Released), StoreError::NotFound { .. }));
        assert!(matches!(error(Code::Corrupt), StoreError::Corrupt { .. }));
        assert!(!error(Code::Fenced).is_retryable(), "it stays fenced");
        for code in [Code::WrongStore, Code::Failed, Code::DiskFull] {
            assert!(error(code).is_retryable(), "another replica may do it: {code:?}");
        }
        assert!(store_error(&Status::deadline_exceeded("slow"), "segment 1/2").is_retryable());
    }
}
