//! Which cluster follows which: shown and changed.

use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use streaming_proto::common::{ConnectionParam, CrossClusterTopology, MilvusCluster, ReplicateConfiguration};
use streaming_types::{MessageId, TimeTick};

use super::connect::{Cluster, connect};
use crate::{
    cli::{TopologyArgs, TopologyVerb},
    print::say,
};

/// A topology as people write it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Topology {
    clusters: Vec<Member>,
    #[serde(default)]
    edges: Vec<Edge>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Member {
    id: String,
    uri: String,
    channels: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Edge {
    from: String,
    to: String,
}

impl Topology {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_saphyr::from_str(&text).with_context(|| format!("{} is no topology", path.display()))
    }

    fn from_wire(wire: &ReplicateConfiguration) -> Self {
        let member = |cluster: &MilvusCluster| Member {
            id: cluster.cluster_id.clone(),
            uri: cluster.connection_param.as_ref().map(|connection| connection.uri.clone()).unwrap_or_default(),
            channels: cluster.pchannels.clone(),
        };
        let edge = |edge: &CrossClusterTopology| Edge {
            from: edge.source_cluster_id.clone(),
            to: edge.target_cluster_id.clone(),
        };
        Self {
            clusters: wire.clusters.iter().map(member).collect(),
            edges: wire.cross_cluster_topology.iter().map(edge).collect(),
        }
    }

    fn into_wire(self) -> ReplicateConfiguration {
        let cluster = |Member { id, uri, channels }| MilvusCluster {
            cluster_id: id,
            connection_param: Some(ConnectionParam { uri, token: String::new() }),
            pchannels: channels,
        };
        let edge = |Edge { from, to }| CrossClusterTopology { source_cluster_id: from, target_cluster_id: to };
        ReplicateConfiguration {
            clusters: self.clusters.into_iter().map(cluster).collect(),
            cross_cluster_topology: self.edges.into_iter().map(edge).collect(),
        }
    }
}

/// Shows or changes the topology.
///
/// # Errors
/// The cluster is not there, the file is no topology, or breaks a rule.
pub(crate) async fn topology(arguments: TopologyArgs) -> anyhow::Result<()> {
    match arguments.verb {
        TopologyVerb::Show { connect: arguments } => show(&connect(&arguments).await?).await,
        TopologyVerb::Apply { connect: arguments, force_promote, file } => {
            let mut wanted = Topology::read(&file)?.into_wire();
            let Cluster { client, .. } = connect(&arguments).await?;
            keep_tokens(&mut wanted, client.replicate_configuration().as_deref());
            if force_promote {
                client.force_promote(wanted, arguments.timeout).await?;
            } else {
                client.update_replicate_configuration(wanted, arguments.timeout).await?;
            }
            say!("in force in cluster {}", arguments.cluster);
            Ok(())
        }
    }
}

/// A file has no tokens: those that are in force stay, each for where it was meant.
fn keep_tokens(wanted: &mut ReplicateConfiguration, now: Option<&ReplicateConfiguration>) {
    let now = now.map_or(&[][..], |now| &now.clusters);
    for cluster in &mut wanted.clusters {
        let Some(connection) = &mut cluster.connection_param else { continue };
        let known = now.iter().filter(|known| known.cluster_id == cluster.cluster_id);
        let mut known = known.filter_map(|known| known.connection_param.as_ref());
        if let Some(same) = known.find(|known| known.uri == connection.uri) {
            connection.token.clone_from(&same.token);
        }
    }
}

async fn show(cluster: &Cluster) -> anyhow::Result<()> {
    match cluster.client.replicate_configuration() {
        Some(topology) => say!("{}", serde_saphyr::to_string(&Topology::from_wire(&topology))?.trim_end()),
        None => say!("# no topology: the cluster is by itself"),
    }
    for channel in cluster.client.channels() {
        let name = channel.pchannel.name();
        match cluster.client.replicate_checkpoint(name).await {
            Ok(None) => say!("# {name}: primary"),
            Ok(Some(checkpoint)) => {
                let at = match MessageId::from_proto(checkpoint.message_id.as_ref()) {
                    Ok(id) => format!("{id} at {}", TimeTick(checkpoint.time_tick)),
                    Err(_) => "the beginning".to_owned(),
                };
                say!(
                    "# {name}: secondary of {} in {}, which it has up to {at}",
                    checkpoint.pchannel,
                    checkpoint.cluster_id
                );
            }
            Err(error) => say!("# {name}: {error}"),
        }
    }
    Ok(())
}
