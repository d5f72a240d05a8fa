//! The command line of how channels are spread over nodes.

use clap::{Args, Subcommand};

use super::ListArgs;

#[derive(Debug, Args)]
pub(crate) struct BalanceArgs {
    #[command(subcommand)]
    pub(crate) verb: BalanceVerb,
}

/// Each prints what is in force then.
#[derive(Debug, Subcommand)]
pub(crate) enum BalanceVerb {
    /// Shows whether channels are moved, and which nodes are frozen.
    Show(ListArgs),
    /// Moves all channels away from nodes and gives them none, until they are unfrozen.
    Freeze(NodesArgs),
    /// Lets nodes have channels again.
    Unfreeze(NodesArgs),
    /// Moves no channel for the sake of balance until it is resumed, or another coordinator leads; those without a node go to
    /// one all the same.
    Suspend(ListArgs),
    /// Moves channels for the sake of balance again.
    Resume(ListArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NodesArgs {
    /// Ids of nodes, as `streaming nodes` lists them.
    #[arg(required = true, value_name = "NODE")]
    pub(crate) nodes: Vec<i64>,
    #[command(flatten)]
    pub(crate) cluster: ListArgs,
}
