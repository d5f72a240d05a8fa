//! What a command says when it fails: the error, its code, and what the page of error codes advises.

use std::{error::Error, fmt::Write as _};

/// Every code has a row there; the last column says what to do.
const CODES: &str = include_str!("../docs/operate/errors.md");

/// The lines to print.
pub(crate) fn told(error: &anyhow::Error) -> String {
    let Some(code) = error.chain().find_map(code) else { return format!("error: {error:#}") };
    let mut text = format!("error[{code}]: {error:#}");
    if let Some(advice) = advice(code) {
        let _ = write!(text, "\n  {}", advice.replace('`', ""));
    }
    text
}

fn advice(code: &str) -> Option<&'static str> {
    let begins = format!("| `{code}` |");
    let row = CODES.lines().find(|line| line.starts_with(&begins))?;
    row.trim_end_matches(" |").rsplit(" | ").next()
}

/// The code of an error that has one.
fn code(error: &(dyn Error + 'static)) -> Option<&'static str> {
    fn of<E: Error + 'static>(error: &(dyn Error + 'static), code: fn(&E) -> &'static str) -> Option<&'static str> {
        error.downcast_ref().map(code)
    }
    of(error, streaming_client::AppendError::code)
        .or_else(|| of(error, streaming_client::ConsumeError::code))
        .or_else(|| of(error, streaming_client::NotReady::code))
        .or_else(|| of(error, streaming_client::InvalidSetting::code))
        .or_else(|| of(error, streaming_client::ReadPointError::code))
        .or_else(|| of(error, streaming_coord::CoordinatorError::code))
        .or_else(|| of(error, streaming_node::StartError::code))
        .or_else(|| of(error, woodpecker::AppendError::code))
        .or_else(|| of(error, woodpecker::LogError::code))
        .or_else(|| of(error, woodpecker::OpenWriterError::code))
        .or_else(|| of(error, woodpecker::ReadError::code))
        .or_else(|| of(error, woodpecker_server::StartError::code))
        .or_else(|| of(error, woodpecker_store::backend::StoreError::code))
        .or_else(|| of(error, woodpecker_store::object::store::StoreOpenError::code))
        .or_else(|| of(error, woodpecker_base::metadata::MetadataError::code))
        .or_else(|| of(error, woodpecker_base::session::SessionError::code))
        .or_else(|| of(error, woodpecker_base::net::TlsError::code))
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;
    use woodpecker::LogError;

    use super::*;

    #[test]
    fn an_error_with_a_code_is_told_with_it_and_with_what_to_do() {
        let error = anyhow::Error::from(LogError::NotFound("a".into())).context("cannot show it");
        let text = told(&error);
        assert!(text.starts_with("error[LOG_NOT_FOUND]: cannot show it: log \"a\" does not exist\n"), "{text}");
        assert!(text.ends_with("streaming log list shows those that do"), "{text}");
        assert_eq!(told(&anyhow!("no code")), "error: no code");
    }
}
