//! What a topology may be: a star of clusters that have their pchannels in common, one by one.

use std::collections::BTreeSet;

use streaming_proto::common::{MilvusCluster, ReplicateConfiguration};
use tonic::codegen::http::Uri;

/// Whether a cluster follows another one.
pub(super) fn is_secondary(config: &ReplicateConfiguration, cluster: &str) -> bool {
    config.cross_cluster_topology.iter().any(|edge| edge.target_cluster_id == cluster)
}

/// Whether any cluster follows another one.
pub(super) fn has_followers(config: &ReplicateConfiguration) -> bool {
    !config.cross_cluster_topology.is_empty()
}

/// Whether a cluster is in the topology. Clients do not survive one that leaves their own cluster out.
pub(crate) fn is_listed(config: &ReplicateConfiguration, cluster: &str) -> bool {
    config.clusters.iter().any(|listed| listed.cluster_id == cluster)
}

/// Says which rule a topology breaks, for cluster `own` with its pchannels and the topology in force.
pub(super) fn validate(
    config: &ReplicateConfiguration,
    current: Option<&ReplicateConfiguration>,
    own: &str,
    pchannels: &[String],
) -> Result<(), String> {
    let clusters = &config.clusters;
    ensure(!clusters.is_empty(), || "no cluster is named".to_owned())?;
    for cluster in clusters {
        validate_cluster(cluster)?;
    }
    let ids: BTreeSet<_> = clusters.iter().map(|cluster| cluster.cluster_id.as_str()).collect();
    ensure(ids.len() == clusters.len(), || "a cluster_id is named twice".to_owned())?;
    let uris: BTreeSet<_> = clusters.iter().map(uri).collect();
    ensure(uris.len() == clusters.len(), || "a uri is named twice".to_owned())?;
    let counts: BTreeSet<_> = clusters.iter().map(|cluster| cluster.pchannels.len()).collect();
    ensure(counts.len() == 1, || "the clusters differ in the number of their pchannels".to_owned())?;

    let ours = clusters.iter().find(|cluster| cluster.cluster_id == own);
    let ours = ours.ok_or_else(|| format!("cluster {own}, which is asked, is not named"))?;
    let sets = (ours.pchannels.iter().collect::<BTreeSet<_>>(), pchannels.iter().collect::<BTreeSet<_>>());
    ensure(sets.0 == sets.1, || format!("cluster {own} has pchannels {}", pchannels.join(", ")))?;
    validate_edges(config, &ids)?;
    // Those that are added while nobody follows have been followed by nobody.
    let may_grow = current.is_some_and(|current| !has_followers(current));
    for known in current.map(|current| current.clusters.as_slice()).unwrap_or_default() {
        let now = clusters.iter().find(|cluster| cluster.cluster_id == known.cluster_id);
        let fits = now.is_none_or(|now| {
            now.pchannels.starts_with(&known.pchannels) && (may_grow || now.pchannels.len() == known.pchannels.len())
        });
        ensure(fits, || format!("cluster {}: its pchannels, and their order, cannot change", known.cluster_id))?;
    }
    Ok(())
}

/// Says why a cluster that `follows` another one, or does not, cannot be promoted by force to its place in `wanted`.
pub(super) fn validate_promotion(wanted: &ReplicateConfiguration, follows: bool, own: &str) -> Result<(), String> {
    ensure(follows, || format!("cluster {own} follows nobody, it needs no promotion"))?;
    ensure(!is_secondary(wanted, own), || format!("cluster {own} would follow another one, which is no promotion"))
}

fn validate_cluster(cluster: &MilvusCluster) -> Result<(), String> {
    let id = &cluster.cluster_id;
    let clean = !id.is_empty() && !id.contains(char::is_whitespace);
    ensure(clean, || format!("cluster_id {id:?} is empty, or has white space in it"))?;
    let parses = uri(cluster).parse::<Uri>().is_ok_and(|uri| uri.authority().is_some());
    ensure(parses, || format!("cluster {id}: connection_param.uri {:?} names no host", uri(cluster)))?;
    let named = !cluster.pchannels.is_empty() && cluster.pchannels.iter().all(|name| !name.is_empty());
    ensure(named, || format!("cluster {id}: no pchannels, or one without a name"))?;
    let distinct: BTreeSet<_> = cluster.pchannels.iter().collect();
    ensure(distinct.len() == cluster.pchannels.len(), || format!("cluster {id}: a pchannel is named twice"))
}

fn validate_edges(config: &ReplicateConfiguration, ids: &BTreeSet<&str>) -> Result<(), String> {
    let edges = &config.cross_cluster_topology;
    let Some(first) = edges.first() else { return Ok(()) };
    for edge in edges {
        for id in [&edge.source_cluster_id, &edge.target_cluster_id] {
            ensure(ids.contains(id.as_str()), || format!("an edge names cluster {id}, which is not there"))?;
        }
    }
    let targets: BTreeSet<_> = edges.iter().map(|edge| edge.target_cluster_id.as_str()).collect();
    let centre = first.source_cluster_id.as_str();
    let star = edges.iter().all(|edge| edge.source_cluster_id == centre)
        && !targets.contains(centre)
        && targets.len() == edges.len()
        && edges.len() == ids.len() - 1;
    ensure(star, || "the edges must lead from one cluster to each of the others, once".to_owned())
}

fn uri(cluster: &MilvusCluster) -> &str {
    cluster.connection_param.as_ref().map_or("", |connection| connection.uri.as_str())
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

#[cfg(test)]
mod tests {
    use streaming_proto::common::{ConnectionParam, CrossClusterTopology};

    use super::*;

    fn cluster(id: &str) -> MilvusCluster {
        MilvusCluster {
            cluster_id: id.to_owned(),
            connection_param: Some(ConnectionParam { uri: format!("http://{id}:53100"), token: String::new() }),
            pchannels: vec![format!("{id}_0"), format!("{id}_1")],
        }
    }

    fn star(edges: &[(&str, &str)]) -> ReplicateConfiguration {
        let edge = |(source, target): &(&str, &str)| CrossClusterTopology {
            source_cluster_id: (*source).to_owned(),
            target_cluster_id: (*target).to_owned(),
        };
        ReplicateConfiguration {
            clusters: vec![cluster("a"), cluster("b"), cluster("c")],
            cross_cluster_topology: edges.iter().map(edge).collect(),
        }
    }

    fn fault(change: impl FnOnce(&mut ReplicateConfiguration)) -> String {
        let mut config = star(&[("a", "b"), ("a", "c")]);
        change(&mut config);
        let pchannels = ["a_1".to_owned(), "a_0".to_owned()];
        validate(&config, Some(&star(&[])), "a", &pchannels).err().unwrap_or_default()
    }

    #[test]
    fn a_star_and_no_edges_at_all_are_topologies() {
        assert_eq!(fault(|_| {}), "");
        assert_eq!(fault(|config| config.cross_cluster_topology.clear()), "");
        assert_eq!(fault(|config| *config = star(&[("b", "a"), ("b", "c")])), "");
        // Where a cluster is may change, and a cluster may come and go.
        assert_eq!(fault(|config| config.clusters[1].connection_param.as_mut().unwrap().uri = "other:1".into()), "");
        let without = |config: &mut ReplicateConfiguration| {
            config.clusters.pop();
            config.cross_cluster_topology.pop();
        };
        assert_eq!(fault(without), "");
    }

    #[test]
    fn pchannels_are_added_at_the_end_while_nobody_follows() {
        let mut grown = star(&[("a", "b"), ("a", "c")]);
        for cluster in &mut grown.clusters {
            cluster.pchannels.push(format!("{}_2", cluster.cluster_id));
        }
        let pchannels = ["a_0", "a_1", "a_2"].map(str::to_owned);
        assert_eq!(validate(&grown, Some(&star(&[])), "a", &pchannels), Ok(()));
        let followed = validate(&grown, Some(&star(&[("a", "b"), ("a", "c")])), "a", &pchannels);
        assert!(followed.unwrap_err().contains("cluster a: its pchannels"));
        assert!(validate(&star(&[]), Some(&grown), "a", &pchannels[..2]).is_err(), "none is taken away");
    }

    #[test]
    fn the_rule_that_is_broken_is_named() {
        type Change = fn(&mut ReplicateConfiguration);
        let broken: &[(Change, &str)] = &[
            (|config| config.clusters.clear(), "no cluster"),
            (|config| config.clusters[1].cluster_id.clear(), "cluster_id \"\""),
            (|config| config.clusters[1].cluster_id = "b c".into(), "white space"),
            (|config| config.clusters[1].cluster_id = "a".into(), "cluster_id is named twice"),
            (|config| config.clusters[1].connection_param = None, "uri \"\""),
            (|config| config.clusters[1].connection_param.as_mut().unwrap().uri = "/b".into(), "names no host"),
            (|config| config.clusters[1].connection_param = config.clusters[0].connection_param.clone(), "a uri"),
            (|config| config.clusters[1].pchannels.clear(), "cluster b: no pchannels"),
            (|config| config.clusters[1].pchannels[0].clear(), "without a name"),
            (|config| config.clusters[1].pchannels[0] = "b_1".into(), "a pchannel is named twice"),
            (|config| config.clusters[1].pchannels.truncate(1), "differ in the number"),
            (|config| config.clusters[0].cluster_id = "d".into(), "cluster a, which is asked"),
            (|config| config.clusters[0].pchannels[0] = "a_9".into(), "has pchannels a_1, a_0"),
            (|config| config.clusters[1].pchannels.reverse(), "cluster b: its pchannels"),
            (|config| config.cross_cluster_topology[1].target_cluster_id = "d".into(), "names cluster d"),
            (|config| config.cross_cluster_topology[1].target_cluster_id = "b".into(), "the edges"),
            (|config| config.cross_cluster_topology[1].target_cluster_id = "a".into(), "the edges"),
            (|config| config.cross_cluster_topology[1].source_cluster_id = "b".into(), "the edges"),
            (|config| drop(config.cross_cluster_topology.pop()), "the edges"),
        ];
        for (change, named) in broken {
            let fault = fault(change);
            assert!(fault.contains(named), "{fault:?} does not say {named:?}");
        }
    }
}
