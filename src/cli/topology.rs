//! The command line of the replication topology.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::ConnectArgs;

#[derive(Debug, Args)]
pub(crate) struct TopologyArgs {
    #[command(subcommand)]
    pub(crate) verb: TopologyVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TopologyVerb {
    /// Prints the topology that the cluster is in, in the form that `apply` reads, and how far its channels are.
    Show {
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Makes a topology the cluster's, and waits until it is in force there. Apply the same to every cluster in it.
    Apply {
        #[command(flatten)]
        connect: ConnectArgs,
        /// Promotes a cluster whose source is lost: it follows nobody from then on, and what the source had not shipped is
        /// lost. In the file it follows nobody.
        #[arg(long)]
        force_promote: bool,
        /// YAML or JSON file with `clusters` and `edges`.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}
