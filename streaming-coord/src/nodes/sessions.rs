//! Which streaming nodes have a session in the metadata store.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::StreamExt;
use serde::Deserialize;
use woodpecker_base::{
    clock::Clock,
    metadata::{KeyValue, MetadataStore, Watch, WatchEvent},
};

use crate::pchannel::Node;

/// How long to wait after the store failed.
const RETRY: Duration = Duration::from_millis(500);

/// A node's session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeSession {
    pub(crate) node: Node,
    /// The node has announced that it is going away.
    pub(crate) stopping: bool,
}

/// The part of a session's JSON that matters here.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Value {
    #[serde(rename = "ServerID")]
    server_id: i64,
    address: String,
    #[serde(default)]
    stopping: bool,
    version: String,
}

/// The sessions of all streaming nodes, followed by a watch.
pub(crate) struct Sessions {
    store: Arc<dyn MetadataStore>,
    clock: Clock,
    prefix: String,
    watch: Option<Watch>,
    current: BTreeMap<String, NodeSession>,
}

impl Sessions {
    pub(crate) fn new(store: Arc<dyn MetadataStore>, metadata_root: &str, clock: Clock) -> Self {
        let prefix = format!("{metadata_root}/session/streamingnode-");
        Self { store, clock, prefix, watch: None, current: BTreeMap::new() }
    }

    /// Waits for the next change and returns all sessions by server id; the first call returns them as they are. A call
    /// may be dropped at any time without losing a change.
    pub(crate) async fn changed(&mut self) -> BTreeMap<i64, NodeSession> {
        loop {
            let Some(watch) = &mut self.watch else {
                match self.start().await {
                    Ok(()) => return self.by_id(),
                    Err(error) => {
                        tracing::warn!(%error, "the node sessions cannot be read, trying again");
                        self.clock.sleep(RETRY).await;
                        continue;
                    }
                }
            };
            match watch.next().await {
                Some(Ok(event)) => {
                    self.apply(event);
                    return self.by_id();
                }
                Some(Err(error)) => tracing::warn!(%error, "the node sessions cannot be watched for now"),
                None => self.watch = None,
            }
        }
    }

    async fn start(&mut self) -> Result<(), woodpecker_base::metadata::MetadataError> {
        let snapshot = self.store.list(&self.prefix).await?;
        self.watch = Some(self.store.watch(&self.prefix, snapshot.revision + 1).await?);
        self.replace(&snapshot.items);
        Ok(())
    }

    fn apply(&mut self, event: WatchEvent) {
        match event {
            WatchEvent::Put(item) => match session(&item) {
                Some(session) => drop(self.current.insert(item.key, session)),
                None => drop(self.current.remove(&item.key)),
            },
            WatchEvent::Delete { key, .. } => drop(self.current.remove(&key)),
            WatchEvent::Resync(snapshot) => self.replace(&snapshot.items),
        }
    }

    fn replace(&mut self, items: &[KeyValue]) {
        self.current = items.iter().filter_map(|item| Some((item.key.clone(), session(item)?))).collect();
    }

    fn by_id(&self) -> BTreeMap<i64, NodeSession> {
        self.current.values().map(|session| (session.node.server_id, session.clone())).collect()
    }
}

/// Reads a session; one that is damaged or of a release without streaming is not there.
fn session(item: &KeyValue) -> Option<NodeSession> {
    let value: Value = serde_json::from_slice(&item.value)
        .inspect_err(|error| tracing::warn!(key = item.key, %error, "a node session cannot be read"))
        .ok()?;
    let mut numbers = value.version.split(['.', '-', '+']).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else { return None };
    let node = Node { server_id: value.server_id, address: value.address };
    ((major, minor) >= (2, 6)).then_some(NodeSession { node, stopping: value.stopping })
}

#[cfg(test)]
mod tests {
    use woodpecker_base::metadata::{MemoryStore, Txn};

    use super::*;

    fn json(id: i64, version: &str, stopping: bool) -> String {
        format!(
            r#"{{"ServerID":{id},"ServerName":"streamingnode","Address":"h:{id}","Stopping":{stopping},"TriggerKill":true,
            "Version":"{version}","IndexEngineVersion":{{}},"ScalarIndexEngineVersion":{{}},"LeaseID":7587870000000001}}"#
        )
    }

    #[tokio::test]
    async fn follows_nodes_as_they_come_change_and_go() {
        let store = MemoryStore::new(Clock::system());
        let put = |id: i64, version: &'static str, stopping| {
            let store = store.clone();
            async move {
                let txn = Txn::new().put(format!("m/session/streamingnode-{id}"), json(id, version, stopping));
                store.commit(txn).await.unwrap();
            }
        };
        put(1, "2.6.2", false).await;
        put(2, "2.5.9", false).await;
        store.commit(Txn::new().put("m/session/streamingnode-3", "{").put("m/session/mixcoord", "{}")).await.unwrap();
        let mut sessions = Sessions::new(Arc::new(store.clone()), "m", Clock::system());
        assert_eq!(sessions.changed().await.into_keys().collect::<Vec<_>>(), [1]);
        put(4, "2.6.0-dev", false).await;
        assert_eq!(sessions.changed().await.into_keys().collect::<Vec<_>>(), [1, 4]);
        put(1, "2.6.2", true).await;
        assert!(sessions.changed().await[&1].stopping);
        store.commit(Txn::new().delete("m/session/streamingnode-1")).await.unwrap();
        assert_eq!(sessions.changed().await.into_keys().collect::<Vec<_>>(), [4]);
    }
}
