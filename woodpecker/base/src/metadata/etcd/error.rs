//! What etcd's errors mean to a caller.

use std::time::Duration;

use etcd_client::Error;
use tonic::{Code, Status};

use crate::metadata::{LeaseId, MetadataError};

/// Refused for good where etcd says that nothing was done; otherwise unavailable, and a write may have taken effect.
pub(super) fn metadata_error(error: &Error) -> MetadataError {
    let refused = match error {
        Error::GRpcStatus(status) => matches!(
            status.code(),
            Code::InvalidArgument
                | Code::PermissionDenied
                | Code::Unauthenticated
                | Code::FailedPrecondition
                | Code::Unimplemented
                | Code::OutOfRange
                | Code::NotFound
        ),
        Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => true,
        _ => false,
    };
    if refused { MetadataError::Invalid(text(error)) } else { MetadataError::Unavailable(text(error)) }
}

/// The same, for a call that names a lease.
pub(super) fn lease_error(error: &Error, lease: Option<LeaseId>) -> MetadataError {
    let gone = match error {
        Error::GRpcStatus(status) => status.code() == Code::NotFound && status.message().contains("lease not found"),
        Error::LeaseKeepAliveError(reason) => reason.contains("lease not found"),
        _ => false,
    };
    match lease {
        Some(lease) if gone => MetadataError::LeaseGone(lease),
        _ => metadata_error(error),
    }
}

/// The token was made under older users and rights; a new one will do.
pub(super) fn is_stale_auth(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status)
        if status.code() == Code::InvalidArgument && status.message().contains("revision of auth store is old"))
}

pub(super) fn is_compacted(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status)
        if status.code() == Code::OutOfRange && status.message().contains("compacted"))
}

/// The answer is larger than this client takes.
pub(super) fn is_too_large(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status)
        if status.code() == Code::OutOfRange && status.message().contains("message length too large"))
}

pub(super) fn timed_out(limit: Duration) -> Error {
    Error::GRpcStatus(Status::deadline_exceeded(format!("no answer within {limit:?}")))
}

/// The whole chain of causes: a transport error alone says nothing.
fn text(error: &Error) -> String {
    let mut text = match error {
        Error::GRpcStatus(status) => format!("{}: {}", status.code(), status.message()),
        other => other.to_string(),
    };
    let mut source = match error {
        Error::GRpcStatus(status) => std::error::Error::source(status),
        Error::TransportError(error) => std::error::Error::source(error),
        _ => None,
    };
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_etcd_refused_is_without_side_effects() {
        let status = |code, message: &str| Error::GRpcStatus(Status::new(code, message));
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Unknown, Code::Internal, Code::Cancelled] {
            let error = metadata_error(&status(code, "x"));
            assert!(error.is_retryable() && error.has_side_effects(), "{code:?}");
        }
        for code in [Code::InvalidArgument, Code::PermissionDenied, Code::Unauthenticated] {
            let error = metadata_error(&status(code, "x"));
            assert!(!error.is_retryable() && !error.has_side_effects(), "{code:?}");
        }
        let gone = status(Code::NotFound, "etcdserver: requested lease not found");
        assert!(matches!(lease_error(&gone, Some(LeaseId(7))), MetadataError::LeaseGone(LeaseId(7))));
    }
}
