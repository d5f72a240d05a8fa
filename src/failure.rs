//! What a command says when it fails: the error, its code, and what the page of error codes advises.

use std::{error::Error, fmt::Write as _};

use streaming_types::StreamingError;

/// Every code has a row there; the last column says what to do.
const CODES: &str = include_str!("../docs/operate/errors.md");

/// How the names of the codes on the wire begin, there.
const WIRE: &str = "STREAMING_CODE_";

/// The lines to print.
pub(crate) fn told(error: &anyhow::Error) -> String {
    let Some(code) = error.chain().find_map(code) else { return format!("error: {error:#}") };
    let said = format!("{error:#}");
    let mut text = format!("error[{code}]: {said}");
    let inner = on_the_wire(&said).filter(|inner| *inner != code);
    for to_do in [Some(code), inner].into_iter().flatten().filter_map(advice) {
        let _ = write!(text, "\n  {}", to_do.replace('`', ""));
    }
    text
}

/// The code of what a server said, which knows more than who heard it; but for the one that says nothing.
fn on_the_wire(said: &str) -> Option<&str> {
    let (_, rest) = said.split_once(WIRE)?;
    rest.split(|c: char| !c.is_ascii_uppercase() && c != '_').next().filter(|code| *code != "UNKNOWN")
}

fn advice(code: &str) -> Option<&'static str> {
    let begins = format!("| `{code}` |");
    let row = CODES.lines().find(|line| line.starts_with(&begins))?;
    row.strip_suffix(" |")?.rsplit(" | ").next()
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
        .or_else(|| of(error, streaming_client::ConsumersError::code))
        .or_else(|| of(error, streaming_client::ReplicateError::code))
        .or_else(|| of(error, |error: &StreamingError| error.code().as_str_name().trim_start_matches(WIRE)))
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
        let refused = StreamingError::unrecoverable("the role read may not do this");
        let text = told(&anyhow::Error::from(refused.clone()));
        assert!(text.starts_with("error[UNRECOVERABLE]: ") && text.contains("security.md#tokens"), "{text}");
        let text = told(&anyhow::Error::from(streaming_client::ReplicateError::from(refused)));
        assert!(text.starts_with("error[REPLICATE_REFUSED]: ") && text.contains("security.md#tokens"), "{text}");
        let other = StreamingError::ignored_operation("expected cluster a");
        let cause = format!("no channel is assigned: {other}");
        let not_ready = streaming_client::NotReady { after: std::time::Duration::from_secs(1), cause };
        let text = told(&not_ready.into());
        assert!(text.contains("\n  is it running") && text.contains("chanNamePrefix.cluster"), "{text}");
    }

    #[test]
    fn for_every_code_there_is_something_to_do() {
        let codes = CODES.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(code, _)| code);
        let codes: Vec<_> = codes.filter(|code| *code == code.to_uppercase()).collect();
        assert!(codes.len() > 80, "{}", codes.len());
        for code in codes {
            let advice = advice(code).unwrap_or_default();
            assert!(!["", "no", "yes"].contains(&advice), "{code}: {advice:?}");
        }
    }
}
