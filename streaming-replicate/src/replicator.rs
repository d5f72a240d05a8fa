//! Follows the topology: for every other cluster in it a client, for every pair of channels a task.

use std::{collections::BTreeMap, sync::Arc};

use streaming_client::{Client, Discovery, Edges};
use streaming_proto::common::{ConnectionParam, ReplicateConfiguration};
use woodpecker_base::{
    net::{Connector, Token},
    tasks::Tasks,
};

use crate::{Settings, channel::Channel, metrics::Metrics, rewrite::Names, settings::InvalidSetting};

/// Ships from one cluster to those that follow it.
#[derive(Debug)]
pub struct Replicator {
    source: Client,
    cluster: String,
    settings: Settings,
    edges: Edges,
    connectors: BTreeMap<String, Connector>,
}

/// What is done for one other cluster.
#[derive(Debug)]
struct Target {
    connection: ConnectionParam,
    names: Names,
    client: Client,
    tasks: Tasks,
}

impl Replicator {
    /// Ships what `source`, the cluster of this name, holds. Connections to other clusters are made with `connectors`, by
    /// their id; to one that is not there with `edges`. A token in the topology is shown to a cluster for which `connectors`
    /// has none.
    ///
    /// # Errors
    /// The first setting that is impossible.
    pub fn new(
        source: Client,
        cluster: impl Into<String>,
        settings: Settings,
        edges: Edges,
        connectors: BTreeMap<String, Connector>,
    ) -> Result<Self, InvalidSetting> {
        settings.validate()?;
        Ok(Self { source, cluster: cluster.into(), settings, edges, connectors })
    }

    /// Ships until `tasks` are stopped, whatever the topology becomes: without one, or while other clusters are the
    /// source, it waits.
    pub async fn run(self, tasks: &Tasks) {
        let mut targets = BTreeMap::new();
        let mut topology: Option<Arc<ReplicateConfiguration>> = None;
        loop {
            if let Some(topology) = &topology {
                self.adopt(topology, &mut targets, tasks);
            }
            let other = self.source.other_replicate_configuration(topology.as_deref());
            let Some(other) = tasks.token().run_until_cancelled(other).await else { break };
            topology = other;
        }
        for (_, target) in targets {
            target.tasks.stop();
            target.client.close().await;
        }
    }

    /// A cluster that left the topology, or has another source by now, may still lack what came before that, and says so
    /// itself when it is asked: its tasks go on.
    fn adopt(&self, topology: &ReplicateConfiguration, targets: &mut BTreeMap<String, Target>, tasks: &Tasks) {
        for cluster in topology.clusters.iter().filter(|cluster| cluster.cluster_id != self.cluster) {
            let id = &cluster.cluster_id;
            let connection = cluster.connection_param.clone().unwrap_or_default();
            let Some(names) = Names::new(topology, &self.cluster, id) else { continue };
            if targets.get(id).is_some_and(|target| target.connection == connection && target.names == names) {
                continue;
            }
            if let Some(former) = targets.remove(id) {
                former.tasks.stop();
            }
            let settings = streaming_client::Settings {
                cluster: id.clone(),
                ..streaming_client::Settings::new(Discovery::Address(address_of(&connection.uri)))
            };
            let edges = Edges { connector: self.connector(id, &connection.token), ..self.edges.clone() };
            let client = match Client::connect(settings, edges) {
                Ok(client) => client,
                Err(error) => {
                    tracing::error!(cluster = id, connection.uri, %error, "a cluster that cannot be reached");
                    continue;
                }
            };
            let target = Target { connection, names, client, tasks: tasks.branch() };
            for (source, counterpart) in target.names.pchannels() {
                let channel = self.channel(&target, id, (source, counterpart));
                target.tasks.spawn_until_stopped(channel.run());
            }
            targets.insert(id.clone(), target);
        }
    }

    fn connector(&self, id: &str, token: &str) -> Connector {
        let ours = || self.edges.connector.clone();
        match (self.connectors.get(id), Token::new(token)) {
            (Some(named), Ok(token)) => named.clone().or_token(token),
            (Some(named), Err(_)) => named.clone(),
            (None, Ok(token)) => ours().with_token(token),
            (None, Err(_)) => ours(),
        }
    }

    fn channel(&self, target: &Target, id: &str, (source, counterpart): (&str, &str)) -> Channel {
        Channel {
            source: self.source.clone(),
            target: target.client.clone(),
            names: target.names.clone(),
            source_cluster: self.cluster.clone(),
            target_cluster: id.to_owned(),
            source_channel: source.to_owned(),
            target_channel: counterpart.to_owned(),
            settings: self.settings.clone(),
            clock: self.edges.clock.clone(),
            random: self.edges.random.clone(),
            metrics: Metrics::new(source, counterpart),
        }
    }
}

/// `host:port` of a URI, which may be just that.
fn address_of(uri: &str) -> String {
    let address = uri.split_once("://").map_or(uri, |(_, address)| address);
    address.split('/').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_what_stands_between_scheme_and_path() {
        for uri in ["http://host:53100", "host:53100", "tcp://host:53100/", "http://host:53100/path"] {
            assert_eq!(address_of(uri), "host:53100");
        }
    }
}
