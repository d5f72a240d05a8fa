//! Where a verb looks for the cluster.

use clap::{ArgMatches, Args, Command, Error, FromArgMatches, parser::ValueSource};
use woodpecker_base::net::is_host_and_port;

use super::CLUSTER;

/// As it stands on the command line.
#[derive(Debug, Clone, Args)]
struct PlaceArgs {
    /// Address of the coordinator; one that is typed wins over `STREAMING_ETCD`.
    #[arg(long, help_heading = CLUSTER, env = "STREAMING_COORDINATOR", value_name = "HOST:PORT", default_value = "127.0.0.1:53100", value_parser = host_and_port)]
    coordinator: String,
    /// Finds the coordinator through etcd instead, also after it moved.
    #[arg(long, help_heading = CLUSTER, env = "STREAMING_ETCD", value_name = "ENDPOINTS", value_delimiter = ',')]
    etcd: Vec<String>,
}

/// What of it is meant: in a pod of the chart the environment names etcd, and who types an address means that one.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) coordinator: String,
    /// Empty if the address counts.
    pub(crate) etcd: Vec<String>,
}

impl FromArgMatches for Place {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let PlaceArgs { coordinator, etcd } = PlaceArgs::from_arg_matches(matches)?;
        let typed = |name| matches.value_source(name) == Some(ValueSource::CommandLine);
        let etcd = if typed("coordinator") && !typed("etcd") { Vec::new() } else { etcd };
        Ok(Self { coordinator, etcd })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Place {
    fn augment_args(command: Command) -> Command {
        PlaceArgs::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        PlaceArgs::augment_args_for_update(command)
    }
}

/// What is no address is told before anybody waits for it.
fn host_and_port(text: &str) -> Result<String, &'static str> {
    is_host_and_port(text).then(|| text.to_owned()).ok_or("expected HOST:PORT, without http://")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Verb {
        #[command(flatten)]
        place: Place,
    }

    #[test]
    fn etcd_counts_where_both_are_typed_and_an_address_where_it_alone_is() {
        let place = |words: &[&str]| Verb::parse_from([&["verb"], words].concat()).place;
        let found = place(&["--coordinator", "a:1", "--etcd", "b:2,c:3"]);
        assert_eq!((found.coordinator.as_str(), found.etcd), ("a:1", vec!["b:2".to_owned(), "c:3".to_owned()]));
        assert!(place(&["--coordinator", "a:1"]).etcd.is_empty());
    }
}
