//! The command line.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};

use crate::config::{Config, Sources, duration, load};

mod balance;
mod consumers;
mod log;
mod place;
mod topology;

pub(crate) use self::{
    balance::{BalanceArgs, BalanceVerb, NodesArgs},
    consumers::{ConsumersArgs, ConsumersVerb},
    log::{DoctorArgs, LogArgs, LogVerb, VolumeArgs, VolumeVerb, WantedArgs},
    place::Place,
    topology::{TopologyArgs, TopologyVerb},
};

/// Headings of what many verbs have in common: what is a verb's own stands before it.
const CLUSTER: &str = "Cluster";
const CREDENTIALS: &str = "Credentials";
const ETCD: &str = "Credentials for etcd";

/// Write-ahead logs and streams for a vector database: append, durable log, ordered read.
#[derive(Debug, Parser)]
#[command(name = "streaming", version, about, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Coordinator, one node and the log engine in one process.
    Standalone(ServerArgs),
    /// The coordinator: finds nodes, assigns channels to them.
    Coord(ServerArgs),
    /// A node: serves produce and consume on the channels assigned to it.
    Node(ServerArgs),
    /// A log store: keeps replicas of logs on its disk, for logs on the quorum backend.
    Logstore(ServerArgs),
    /// Ships the logs of a cluster to the clusters that follow it.
    Replicate(ServerArgs),
    /// Appends the lines of a file, or of standard input, to a channel.
    Produce(ProduceArgs),
    /// Reads a channel in order.
    Consume(ConsumeArgs),
    /// Lists the channels and who serves them.
    Channels(ListArgs),
    /// Lists the live nodes.
    Nodes(ListArgs),
    /// Shows one channel.
    Describe(DescribeArgs),
    /// Shows and changes how channels are spread over nodes.
    Balance(BalanceArgs),
    /// Shows for which consumers logs are kept, and forgets those that are gone.
    Consumers(ConsumersArgs),
    /// Shows and changes which cluster follows which.
    Topology(TopologyArgs),
    /// Creates, lists, shows, truncates, changes, verifies and deletes logs.
    Log(LogArgs),
    /// Shows what lies on a medium.
    Volume(VolumeArgs),
    /// Examines whether disk, metadata store, object store and clock keep their promises.
    Doctor(DoctorArgs),
    /// Measures append, read and the medium under them, side by side.
    Bench(BenchArgs),
    /// Shows how the roles of a cluster are.
    Health(HealthArgs),
    /// Tells what can be set, and what would be used.
    Config(ConfigArgs),
}

/// How a role is started.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    pub(crate) configuration: ConfigurationArgs,
    /// Prints the configuration as it would be used, without secrets, and exits.
    #[arg(long)]
    pub(crate) dump_config: bool,
}

/// Where configuration comes from.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigurationArgs {
    /// YAML file with configuration; of several, each says what it changes of those before it.
    #[arg(long, global = true, env = "STREAMING_CONFIG", value_name = "FILE", value_delimiter = ',')]
    pub(crate) config: Vec<PathBuf>,
    /// Sets one key, for example --set rootCoord.port=0; may be given many times.
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// The data directory; the same as --set woodpecker.storage.rootPath=DIR.
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
}

impl ConfigurationArgs {
    /// The configuration from all its sources.
    ///
    /// # Errors
    /// A source cannot be read, a key is unknown, a value impossible.
    pub(crate) fn load(&self) -> anyhow::Result<Config> {
        let mut assignments = self.set.clone();
        if let Some(data) = &self.data {
            assignments.push(format!("woodpecker.storage.rootPath={}", data.display()));
        }
        // What is no text is not meant for us.
        let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
        let environment = std::env::vars_os().filter_map(text).collect();
        load(&Sources { files: self.config.clone(), environment, assignments })
    }
}

/// How a client finds the cluster.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConnectArgs {
    #[command(flatten)]
    pub(crate) place: Place,
    /// Root of the metadata keys in etcd.
    #[arg(long, help_heading = CLUSTER, env = "STREAMING_META_ROOT", value_name = "PATH", default_value = "by-dev/meta")]
    pub(crate) meta_root: String,
    /// Name of the cluster; a server of another cluster refuses the call.
    #[arg(long, help_heading = CLUSTER, env = "STREAMING_CLUSTER", value_name = "NAME", default_value = "by-dev")]
    pub(crate) cluster: String,
    /// How long to wait for the cluster before giving up.
    #[arg(long, help_heading = CLUSTER, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) credentials: CredentialArgs,
    #[command(flatten)]
    pub(crate) etcd_credentials: EtcdCredentialArgs,
}

/// What a client shows to the cluster, and whom it trusts.
#[derive(Debug, Clone, Args)]
pub(crate) struct CredentialArgs {
    /// File with the token to show.
    #[arg(long, help_heading = CREDENTIALS, env = "STREAMING_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Speaks TLS, and trusts the authorities in this file.
    #[arg(long, help_heading = CREDENTIALS, env = "STREAMING_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// The certificate to show.
    #[arg(long, help_heading = CREDENTIALS, env = "STREAMING_CERT", value_name = "FILE", requires_all = ["key", "ca"])]
    pub(crate) cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, help_heading = CREDENTIALS, env = "STREAMING_KEY", value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
    /// The name in the servers' certificates, if it is not the host that is dialled.
    #[arg(long, help_heading = CREDENTIALS, env = "STREAMING_SERVER_NAME", value_name = "NAME", requires = "ca")]
    pub(crate) server_name: Option<String>,
}

/// The same towards etcd.
#[derive(Debug, Clone, Args)]
pub(crate) struct EtcdCredentialArgs {
    /// The user.
    #[arg(long, help_heading = ETCD, env = "STREAMING_ETCD_USER", value_name = "NAME", requires = "etcd_password_file")]
    pub(crate) etcd_user: Option<String>,
    /// File with the user's password.
    #[arg(long, help_heading = ETCD, env = "STREAMING_ETCD_PASSWORD_FILE", value_name = "FILE", requires = "etcd_user")]
    pub(crate) etcd_password_file: Option<PathBuf>,
    /// Speaks TLS with etcd, and trusts the authorities in this file.
    #[arg(long, help_heading = ETCD, env = "STREAMING_ETCD_CA", value_name = "FILE")]
    pub(crate) etcd_ca: Option<PathBuf>,
    /// The certificate to show.
    #[arg(long, help_heading = ETCD, env = "STREAMING_ETCD_CERT", value_name = "FILE", requires_all = ["etcd_key", "etcd_ca"])]
    pub(crate) etcd_cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, help_heading = ETCD, env = "STREAMING_ETCD_KEY", value_name = "FILE", requires = "etcd_cert")]
    pub(crate) etcd_key: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct HealthArgs {
    /// Address of an admin port, with http:// or https://; may be given many times.
    #[arg(
        long,
        env = "STREAMING_ADMIN",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:9091"
    )]
    pub(crate) admin: Vec<String>,
    /// How long to wait for each answer.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Prints JSON instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) credentials: CredentialArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub(crate) verb: ConfigVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Prints the JSON schema of a configuration file.
    Schema,
    /// Prints every key with its type, default and meaning, as Markdown.
    Reference,
    /// Prints the configuration as it would be used, without secrets.
    Dump(ConfigurationArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ProduceArgs {
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
    /// The channel; the first one if not given.
    pub(crate) channel: Option<String>,
    /// File to read; standard input if not given.
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// A line longer than this becomes several messages.
    #[arg(long, value_name = "SIZE", default_value = "1MiB")]
    pub(crate) max_record: ByteSize,
    /// Reads back what was appended, and fails if it does not come as it was sent.
    #[arg(long)]
    pub(crate) read_back: bool,
    /// Prints the outcome as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ConsumeArgs {
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
    /// The channel; the first one if not given.
    pub(crate) channel: Option<String>,
    /// Where to start: earliest, latest, or the id of a message (SEGMENT:ENTRY, that one included).
    #[arg(long, value_name = "POSITION", default_value = "earliest")]
    pub(crate) from: String,
    /// Stops after this many messages.
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// Stops when nothing came for this long and all that the owner of the channel had by then was read; fails if it says
    /// nothing for --timeout.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) until_idle: Option<Duration>,
    /// Writes to a file instead of standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// One JSON object a message; payloads that are not UTF-8 in base64.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
    /// Prints JSON instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DescribeArgs {
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
    /// The channel.
    pub(crate) channel: String,
    /// Prints JSON instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) configuration: ConfigurationArgs,
    /// Bytes of one entry in the throughput measurements.
    #[arg(long, value_name = "SIZE", default_value = "64KiB")]
    pub(crate) entry: ByteSize,
    /// Bytes written in each throughput measurement.
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    pub(crate) volume: ByteSize,
    /// Operations in each latency measurement.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) operations: usize,
    /// Logs written at once when the cost of many is compared with that of one.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) logs: usize,
    /// Bytes of log that a process which was killed has after its checkpoint; 0B measures no restart.
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub(crate) restart: ByteSize,
    /// Address and channel: for the process that `bench` starts by itself, whose subscribers follow the channel.
    #[arg(long, value_names = ["ADDRESS", "CHANNEL"], num_args = 2, hide = true)]
    pub(crate) subscribe: Vec<String>,
    /// Prints JSON instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use clap::{Arg, Command as Verb, CommandFactory};

    use super::*;

    fn under(heading: &str) -> &'static [&'static str] {
        match heading {
            CLUSTER => &["coordinator", "etcd", "meta_root", "cluster", "timeout"],
            CREDENTIALS => &["token_file", "ca", "cert", "key", "server_name"],
            ETCD => &["etcd_user", "etcd_password_file", "etcd_ca", "etcd_cert", "etcd_key"],
            _ => &[],
        }
    }

    fn each_argument(verb: &Verb, look: &mut impl FnMut(&Verb, &Arg)) {
        verb.get_arguments().for_each(|argument| look(verb, argument));
        verb.get_subcommands().for_each(|inner| each_argument(inner, look));
    }

    #[test]
    fn help_says_what_every_argument_is_and_a_verbs_own_stand_under_no_heading() {
        let mut seen = 0;
        each_argument(&Cli::command(), &mut |verb, argument| {
            let (verb, name, heading) = (verb.get_name(), argument.get_id().as_str(), argument.get_help_heading());
            assert!(argument.is_hide_set() || argument.get_help().is_some(), "{verb} {name} is not explained");
            assert!(heading.is_none_or(|heading| under(heading).contains(&name)), "{verb} {name} under {heading:?}");
            seen += usize::from(heading.is_some());
        });
        assert!(seen > 100, "{seen}");
    }

    #[test]
    fn no_wait_is_taken_whose_end_no_clock_could_tell() {
        let longest = "500000000000years";
        for verb in [&["channels", "--timeout"][..], &["health", "--timeout"], &["consume", "--until-idle"]] {
            let error = Cli::try_parse_from([&["streaming"], verb, &[longest]].concat()).unwrap_err().to_string();
            assert!(error.contains("longer than"), "{error}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_before_anybody_waits_for_it() {
        let with = |address| Cli::try_parse_from(["streaming", "channels", "--coordinator", address]);
        assert!(with("coord:53100").is_ok());
        let error = with("http://coord:53100").unwrap_err().to_string();
        assert!(error.contains("expected HOST:PORT"), "{error}");
    }
}
