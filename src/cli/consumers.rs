//! The command line of registered consumers.

use clap::{Args, Subcommand};

use super::ConnectArgs;

#[derive(Debug, Args)]
pub(crate) struct ConsumersArgs {
    #[command(subcommand)]
    pub(crate) verb: ConsumersVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConsumersVerb {
    /// Lists the consumers of a channel for which its log is kept, and how far each is behind.
    List {
        #[command(flatten)]
        connect: ConnectArgs,
        /// The channel; the first one if not given.
        channel: Option<String>,
        /// Prints JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Forgets a consumer that is gone for good: the log is kept for it no more, and writers do not wait for it. One that is
    /// alive registers again.
    Forget {
        #[command(flatten)]
        connect: ConnectArgs,
        /// Its name, as `list` prints it.
        name: String,
    },
}
