//! `streaming balance`: how channels are spread over nodes, and what an operator changes of it.

use serde::Serialize;
use streaming_proto::streaming::{
    UpdateWalBalancePolicyRequest, UpdateWalBalancePolicyResponse, WalBalancePolicyConfig, WalBalancePolicyNodes,
};

use super::{connect, list::table, print_json};
use crate::{
    cli::{BalanceVerb, NodesArgs},
    print::say,
};

/// What is in force.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    allow_rebalance: bool,
    frozen_nodes: Vec<i64>,
}

impl From<UpdateWalBalancePolicyResponse> for Policy {
    fn from(told: UpdateWalBalancePolicyResponse) -> Self {
        let allow_rebalance = told.config.is_some_and(|config| config.allow_rebalance);
        Self { allow_rebalance, frozen_nodes: told.freeze_node_ids }
    }
}

/// Shows or changes it, and prints what is in force then.
///
/// # Errors
/// The cluster does not answer, or has no node that is to be frozen.
pub(crate) async fn balance(verb: BalanceVerb) -> anyhow::Result<()> {
    let (arguments, request) = match verb {
        BalanceVerb::Show(arguments) => (arguments, UpdateWalBalancePolicyRequest::default()),
        BalanceVerb::Suspend(arguments) => (arguments, rebalance(false)),
        BalanceVerb::Resume(arguments) => (arguments, rebalance(true)),
        BalanceVerb::Freeze(NodesArgs { nodes, cluster }) => (cluster, frozen(nodes, Vec::new())),
        BalanceVerb::Unfreeze(NodesArgs { nodes, cluster }) => (cluster, frozen(Vec::new(), nodes)),
    };
    let client = connect(&arguments.connect).await?.client;
    let known: Vec<_> = client.nodes().iter().map(|node| node.server_id).collect();
    for node in request.nodes.iter().flat_map(|nodes| &nodes.freeze_node_ids) {
        anyhow::ensure!(known.contains(node), "there is no node {node}; `streaming nodes` lists those that are");
    }
    let answered = client.update_balance_policy(request, arguments.connect.timeout).await;
    client.close().await;
    let policy = Policy::from(answered?);
    if arguments.json {
        return print_json(&policy);
    }
    let frozen: Vec<_> = policy.frozen_nodes.iter().map(ToString::to_string).collect();
    let mut table = table(["KEY", "VALUE"]);
    table.add_row(["rebalance", if policy.allow_rebalance { "on" } else { "suspended" }]);
    table.add_row(["frozen nodes", &frozen.join(", ")]);
    say!("{table}");
    Ok(())
}

fn rebalance(allow_rebalance: bool) -> UpdateWalBalancePolicyRequest {
    UpdateWalBalancePolicyRequest { config: Some(WalBalancePolicyConfig { allow_rebalance }), ..Default::default() }
}

fn frozen(freeze_node_ids: Vec<i64>, defreeze_node_ids: Vec<i64>) -> UpdateWalBalancePolicyRequest {
    let nodes = WalBalancePolicyNodes { freeze_node_ids, defreeze_node_ids };
    UpdateWalBalancePolicyRequest { nodes: Some(nodes), ..Default::default() }
}
