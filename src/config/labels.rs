//! Labels of a node's session, as the protocol's other components are given them.

use std::collections::BTreeMap;

/// `MILVUS_SERVER_LABEL_<NAME>` is a label of every role, `MILVUS_SERVER_LABEL_<ROLE>_<NAME>` of that role alone.
const PREFIX: &str = "MILVUS_SERVER_LABEL_";
/// Roles as variables have them.
const NODES: [&str; 2] = ["streamingnode", "sn"];
const OTHERS: [&str; 7] = ["mixcoord", "coord", "querynode", "qn", "datanode", "dn", "proxy"];

/// The labels that the environment gives to a node; its own win over those of every role.
pub(super) fn of_node(environment: &[(String, String)]) -> BTreeMap<String, String> {
    let (mut labels, mut own) = (BTreeMap::new(), BTreeMap::new());
    for (variable, value) in environment {
        let Some(name) = variable.strip_prefix(PREFIX).filter(|name| !name.is_empty()) else { continue };
        let (role, rest) = name.split_once('_').unwrap_or((name, ""));
        let role = role.to_lowercase();
        if NODES.contains(&role.as_str()) {
            own.insert(rest.to_owned(), value.clone());
        } else if !OTHERS.contains(&role.as_str()) {
            labels.insert(name.to_owned(), value.clone());
        }
    }
    own.remove("");
    labels.extend(own);
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_of_the_role_wins_over_one_of_all_and_those_of_others_do_not_count() {
        let environment = [
            ("MILVUS_SERVER_LABEL_RESOURCE_GROUP", "all"),
            ("MILVUS_SERVER_LABEL_SN_RESOURCE_GROUP", "nodes"),
            ("MILVUS_SERVER_LABEL_QN_RESOURCE_GROUP", "query"),
            ("MILVUS_SERVER_LABEL_streamingnode_rack", "7"),
            ("MILVUS_SERVER_LABEL_zone", "a"),
            ("MILVUS_SERVER_LABEL_SN", "no name"),
            ("MILVUS_SERVER_LABEL_", "no name"),
            ("ZONE", "b"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let labels = of_node(&environment);
        let labels: Vec<_> = labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(labels, [("RESOURCE_GROUP", "nodes"), ("rack", "7"), ("zone", "a")]);
    }
}
