//! Verbs about logs and what lies under them.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use bytesize::ByteSize;
use clap::{Args, Subcommand, ValueEnum};
use woodpecker::Compression;

use super::ConfigurationArgs;
use crate::config::{StorageType, duration};

#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    #[command(flatten)]
    pub(crate) configuration: ConfigurationArgs,
    #[command(subcommand)]
    pub(crate) verb: LogVerb,
    /// Prints JSON instead of a table.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LogVerb {
    /// Creates a log.
    Create {
        /// The log.
        name: String,
        #[command(flatten)]
        wanted: WantedArgs,
    },
    /// Lists the logs.
    List {
        /// Only those whose name starts so.
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Shows one log and its segments.
    Describe {
        /// The log.
        name: String,
        /// Shows as well where to start to meet all that was appended since then: `2026-01-31T08:30:00Z`.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
        at: Option<SystemTime>,
    },
    /// Gives up everything up to and including an entry.
    Truncate {
        /// The log.
        name: String,
        /// The last one that goes, as SEGMENT:ENTRY.
        entry: String,
    },
    /// Deletes a log and what it holds.
    Delete {
        /// The log.
        name: String,
        /// Does not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Changes where a log's next segments go, how they are compressed, and how long they are kept.
    Alter {
        /// The log.
        name: String,
        #[command(flatten)]
        wanted: WantedArgs,
    },
    /// Reads all of a log, and checks every checksum and that nothing is missing.
    Verify {
        /// The log.
        name: String,
    },
}

/// What is wanted of a log; what is not given stays as it is.
#[derive(Debug, Args)]
pub(crate) struct WantedArgs {
    /// Medium of the segments to come.
    #[arg(long, value_name = "NAME")]
    pub(crate) backend: Option<BackendArg>,
    /// How sealed segments are compressed.
    #[arg(long, value_name = "HOW")]
    pub(crate) compression: Option<CompressionArg>,
    /// Truncates what was closed longer ago; `none` keeps it.
    #[arg(long, value_name = "DURATION", value_parser = duration_or_none)]
    pub(crate) retention: Option<Limit<Duration>>,
    /// Truncates the oldest segments beyond this much; `none` keeps them.
    #[arg(long, value_name = "SIZE", value_parser = size_or_none)]
    pub(crate) retention_bytes: Option<Limit<ByteSize>>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum BackendArg {
    /// Each writer's own.
    Default,
    /// The local disk.
    Local,
    /// Object storage.
    Object,
    /// Log stores.
    Quorum,
}

impl From<BackendArg> for Option<StorageType> {
    fn from(backend: BackendArg) -> Self {
        match backend {
            BackendArg::Default => None,
            BackendArg::Local => Some(StorageType::Local),
            BackendArg::Object => Some(StorageType::Object),
            BackendArg::Quorum => Some(StorageType::Quorum),
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum CompressionArg {
    None,
    Lz4,
    Zstd,
}

impl From<CompressionArg> for Compression {
    fn from(compression: CompressionArg) -> Self {
        match compression {
            CompressionArg::None => Self::None,
            CompressionArg::Lz4 => Self::Lz4,
            CompressionArg::Zstd => Self::Zstd,
        }
    }
}

/// A limit, or that there is to be none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit<T>(pub(crate) Option<T>);

fn duration_or_none(text: &str) -> Result<Limit<Duration>, String> {
    match text {
        "none" => Ok(Limit(None)),
        text => duration(text).map(|limit| Limit(Some(limit))),
    }
}

fn size_or_none(text: &str) -> Result<Limit<ByteSize>, String> {
    match text {
        "none" => Ok(Limit(None)),
        text => text.parse().map(|limit| Limit(Some(limit))),
    }
}

#[derive(Debug, Args)]
pub(crate) struct VolumeArgs {
    #[command(subcommand)]
    pub(crate) verb: VolumeVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeVerb {
    /// Shows what a data file, marks or an object of a volume, or a sealed run holds, and whether its checksums hold.
    Dump {
        /// The file, or an object that was downloaded.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Prints JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) configuration: ConfigurationArgs,
    /// Prints JSON instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}
