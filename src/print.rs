//! What verbs print. Whoever reads it may stop before the end, as `head` does.

use std::{
    fmt,
    io::{self, Write as _},
};

/// Nobody reads what is printed any more. It ends the verb, and is no failure.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads what is printed")]
pub(crate) struct Unread;

/// Prints a line, as `println!` does, in a function that returns an error.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::print::line(format_args!($($text)*))?
    };
}
pub(crate) use say;

pub(crate) fn line(text: fmt::Arguments<'_>) -> anyhow::Result<()> {
    printed(writeln!(io::stdout().lock(), "{text}"))
}

/// Tells a reader that went away from what is wrong with the output.
pub(crate) fn printed(written: io::Result<()>) -> anyhow::Result<()> {
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Unread.into(),
        _ => anyhow::Error::from(error).context("cannot write the output"),
    })
}
