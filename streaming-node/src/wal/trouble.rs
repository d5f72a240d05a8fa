//! Why a WAL is not there, as operators are told: in the log, by the coordinator, and as a label of a metric.

use std::fmt;

use super::{appender::Ended, open::OpenError};

/// How a disk without room says so: the kernel, of the disk and of a quota, and a log store at its hard mark.
const FULL: [&str; 3] = ["No space left on device", "Disk quota exceeded", "the disk is full"];
/// What is said when too many of them take nothing.
const LOG_STORES: &str = "log stores";
/// Longest text, in bytes: it travels in headers, of which peers take few.
const LONGEST: usize = 1 << 10;

/// What went wrong with a WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    code: &'static str,
    text: String,
}

impl Trouble {
    fn new(code: &'static str, text: &str) -> Self {
        let end = text.floor_char_boundary(LONGEST);
        // One line: it is shown among others.
        let line = text.get(..end).unwrap_or_default().replace(['\r', '\n'], " ");
        if FULL.iter().any(|full| text.contains(full)) {
            let text = format!("{line}; make room on that disk: it goes on by itself then");
            return Self { code: "WAL_DISK_FULL", text };
        }
        let asks = if text.contains(LOG_STORES) { "; /readyz of each log store says why" } else { "" };
        Self { code, text: line + asks }
    }

    /// A stable code for documentation and programs.
    pub fn code(&self) -> &'static str {
        self.code
    }
}

impl From<&OpenError> for Trouble {
    fn from(error: &OpenError) -> Self {
        Self::new(error.code(), &error.to_string())
    }
}

impl Ended {
    /// What went wrong, unless it was told to end.
    pub fn trouble(&self) -> Option<Trouble> {
        let code = match self {
            Self::Closed => return None,
            Self::Log(error) => error.code(),
            Self::Stuck(_) => "WAL_STUCK",
        };
        Some(Trouble::new(code, &self.to_string()))
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.text)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use woodpecker::{AppendError, LogError, OpenWriterError};
    use woodpecker_store::backend::StoreError;

    use super::*;

    fn failed(why: &str) -> StoreError {
        StoreError::Failed(why.into())
    }

    #[test]
    fn a_full_disk_has_a_code_of_its_own_and_says_what_to_do() {
        let kernel = std::io::Error::from_raw_os_error(28).to_string();
        let open = OpenError::from(OpenWriterError::Log(LogError::Store(failed(&kernel))));
        let end = Ended::from(AppendError::Failed(failed(&std::io::Error::from_raw_os_error(122).to_string())));
        for trouble in [Trouble::from(&open), end.trouble().unwrap()] {
            assert_eq!(trouble.code(), "WAL_DISK_FULL");
            assert!(trouble.to_string().contains("make room"), "{trouble}");
        }
    }

    #[test]
    fn other_trouble_keeps_its_code_and_an_end_that_was_wanted_is_none() {
        let ended = Ended::from(AppendError::Failed(failed("Input/output error (os error 5)")));
        assert_eq!(ended.trouble().unwrap().code(), "STORE_FAILED");
        let few = StoreError::Unavailable("3 log stores are wanted and 1 take new segments".into());
        let text = Trouble::from(&OpenError::from(LogError::Store(few))).to_string();
        assert!(
            text.starts_with("STORE_UNAVAILABLE: ") && text.ends_with("/readyz of each log store says why"),
            "{text}"
        );
        assert_eq!(Ended::Stuck(Duration::from_secs(60)).trouble().unwrap().code(), "WAL_STUCK");
        assert_eq!(Ended::Closed.trouble(), None);
    }

    #[test]
    fn a_text_is_one_line_of_bounded_length() {
        let long = format!("a\nb\r\n{}", "\u{fc}".repeat(LONGEST));
        let text = Trouble::from(&OpenError::from(LogError::NotFound(long))).to_string();
        assert!(text.len() <= LONGEST + 30 && !text.contains('\n'), "{text}");
    }
}
