//! What an operator can change of the balance while the coordinator runs.

use std::{collections::BTreeSet, sync::Arc};

use serde::{Deserialize, Serialize};
use streaming_proto::streaming::{
    UpdateWalBalancePolicyRequest, UpdateWalBalancePolicyResponse, WalBalancePolicyConfig,
};
use streaming_types::StreamingError;
use tokio::sync::{Mutex, watch};

use crate::catalog::{Catalog, CatalogError, Record};

/// The only field of the configuration that can be updated.
const ALLOW_REBALANCE: &str = "config.allow_rebalance";

/// The policy now in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RuntimePolicy {
    /// Starts as configured, and does again after a restart.
    pub(crate) allow_rebalance: bool,
    /// Nodes that are given nothing and whose channels move away. Survives a restart.
    pub(crate) frozen: BTreeSet<i64>,
}

/// The stored part.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct FrozenNodes {
    frozen: BTreeSet<i64>,
}

/// Changes the policy, one change at a time.
#[derive(Debug)]
pub(crate) struct PolicyControl {
    catalog: Catalog,
    record: Mutex<Record>,
    current: watch::Sender<Arc<RuntimePolicy>>,
}

impl PolicyControl {
    /// Reads what was stored.
    pub(crate) async fn load(catalog: Catalog, allow_rebalance: bool) -> Result<Self, CatalogError> {
        let (record, FrozenNodes { frozen }) = catalog.json("frozen-nodes").await?;
        let current = watch::Sender::new(Arc::new(RuntimePolicy { allow_rebalance, frozen }));
        Ok(Self { catalog, record: Mutex::new(record), current })
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<RuntimePolicy>> {
        self.current.subscribe()
    }

    /// Applies a request and returns the policy as it is then; a request that changes nothing is a read.
    pub(crate) async fn update(
        &self,
        request: UpdateWalBalancePolicyRequest,
    ) -> Result<UpdateWalBalancePolicyResponse, StreamingError> {
        let mut record = self.record.lock().await;
        let before = self.current.borrow().clone();
        let after = apply(&before, request)?;
        // An answer says what the next leader will find.
        if after.frozen != before.frozen || !record.is_settled() {
            let stored = FrozenNodes { frozen: after.frozen.clone() };
            let outcome = self.catalog.store_json(&mut record, &stored).await;
            outcome.map_err(|error| StreamingError::inner(format!("frozen nodes cannot be stored: {error}")))?;
        }
        let response = UpdateWalBalancePolicyResponse {
            config: Some(WalBalancePolicyConfig { allow_rebalance: after.allow_rebalance }),
            freeze_node_ids: after.frozen.iter().copied().collect(),
        };
        self.current.send_replace(Arc::new(after));
        Ok(response)
    }
}

/// Without a mask the whole configuration is taken; with one, only what it names. Nodes are always taken; one that is
/// both frozen and defrozen is frozen no more.
fn apply(before: &RuntimePolicy, request: UpdateWalBalancePolicyRequest) -> Result<RuntimePolicy, StreamingError> {
    let mut after = before.clone();
    let paths = request.update_mask.map(|mask| mask.paths);
    if let Some(unknown) = paths.iter().flatten().find(|path| *path != ALLOW_REBALANCE) {
        return Err(StreamingError::invalid_argument(format!("unknown path {unknown:?} in update_mask")));
    }
    let selected = paths.is_none_or(|paths| !paths.is_empty());
    if let (true, Some(config)) = (selected, request.config) {
        after.allow_rebalance = config.allow_rebalance;
    }
    let nodes = request.nodes.unwrap_or_default();
    after.frozen.extend(nodes.freeze_node_ids);
    for id in nodes.defreeze_node_ids {
        after.frozen.remove(&id);
    }
    Ok(after)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use streaming_proto::streaming::WalBalancePolicyNodes;
    use woodpecker_base::{clock::Clock, metadata::MemoryStore, random::Random};

    use super::*;
    use crate::{
        catalog::tests::{catalog, reign},
        tests::loss::Loss,
    };

    fn request(allow: Option<bool>, mask: Option<&[&str]>, nodes: [&[i64]; 2]) -> UpdateWalBalancePolicyRequest {
        UpdateWalBalancePolicyRequest {
            config: allow.map(|allow_rebalance| WalBalancePolicyConfig { allow_rebalance }),
            nodes: Some(WalBalancePolicyNodes {
                freeze_node_ids: nodes[0].to_vec(),
                defreeze_node_ids: nodes[1].to_vec(),
            }),
            update_mask: mask
                .map(|paths| prost_types::FieldMask { paths: paths.iter().map(ToString::to_string).collect() }),
        }
    }

    fn policy() -> RuntimePolicy {
        RuntimePolicy { allow_rebalance: true, frozen: BTreeSet::from([1]) }
    }

    #[test]
    fn the_mask_selects_what_is_taken() {
        let allow = |request| apply(&policy(), request).map(|after| after.allow_rebalance);
        assert_eq!(allow(request(Some(false), None, [&[], &[]])), Ok(false));
        assert_eq!(allow(request(Some(false), Some(&[ALLOW_REBALANCE]), [&[], &[]])), Ok(false));
        assert_eq!(allow(request(Some(false), Some(&[]), [&[], &[]])), Ok(true));
        assert_eq!(allow(request(None, None, [&[], &[]])), Ok(true));
        assert!(allow(request(None, Some(&["config.other"]), [&[], &[]])).is_err());
    }

    #[test]
    fn freeze_and_defreeze_edit_the_list() {
        let frozen = |nodes| apply(&policy(), request(None, None, nodes)).unwrap().frozen;
        assert_eq!(frozen([&[2, 3], &[]]), BTreeSet::from([1, 2, 3]));
        assert_eq!(frozen([&[], &[1]]), BTreeSet::new());
    }

    #[tokio::test]
    async fn frozen_nodes_survive_a_restart() {
        let store = MemoryStore::new(Clock::system());
        let catalog = catalog(&store, reign(&store).await);
        let control = PolicyControl::load(catalog.clone(), true).await.unwrap();
        let response = control.update(request(Some(false), None, [&[5], &[]])).await.unwrap();
        assert_eq!(response.freeze_node_ids, [5]);
        let restarted = PolicyControl::load(catalog, true).await.unwrap();
        let policy = restarted.subscribe().borrow().clone();
        assert_eq!(*policy, RuntimePolicy { allow_rebalance: true, frozen: BTreeSet::from([5]) });
    }

    #[tokio::test]
    async fn what_the_policy_is_said_to_be_survives_a_restart_though_a_freeze_came_through_unseen() {
        let memory = MemoryStore::new(Clock::system());
        let (guard, store) = (reign(&memory).await, Loss::on(&memory));
        let edges = (Clock::system(), Random::seeded(1));
        let catalog = Catalog::new(store.clone(), "r", guard, edges, Duration::from_secs(1));
        let control = PolicyControl::load(catalog.clone(), true).await.unwrap();
        store.by.fail_though_written(|key, _| key.ends_with("/frozen-nodes"));
        control.update(request(None, None, [&[5], &[]])).await.unwrap_err();
        let told = control.update(request(None, None, [&[], &[]])).await.unwrap();
        assert_eq!(told.freeze_node_ids, [0_i64; 0]);
        let restarted = PolicyControl::load(catalog, true).await.unwrap();
        assert_eq!(restarted.subscribe().borrow().frozen, BTreeSet::new());
    }
}
