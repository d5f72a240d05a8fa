//! Releasing replicas that no record names: their stores were away when their segments were freed or deleted.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, future::join_all, stream};
use streaming_proto::logstore::{ListRequest, ListResponse, ReleaseRequest};
use tonic::Status;
use woodpecker_core::ids::{LogId, Placement, SegmentKey, StoreId};

use crate::backend::{Named, Surveyed};

use super::{
    LISTED, QuorumBackend, locked,
    peer::{Class, Peer, first},
};

/// Releases on their way at a time.
const AT_ONCE: usize = 16;

impl QuorumBackend {
    /// What the registered stores hold of this instance. One that does not answer is looked at by a later survey.
    pub(super) async fn list_replicas(&self) -> Vec<Surveyed> {
        self.context.directory.listed(LISTED).await;
        let peers = self.peers_of(&self.context.directory.registered());
        let lists = join_all(peers.iter().map(|peer| self.list_one(peer))).await;
        let mut held = Vec::new();
        for (peer, list) in peers.iter().zip(lists) {
            match list {
                Ok(keys) => held.extend(keys.into_iter().map(|key| Surveyed::Replica(peer.id, key))),
                Err(status) => tracing::warn!(store = %peer.id, %status, "a log store does not say what it holds"),
            }
        }
        held
    }

    async fn list_one(&self, peer: &Peer) -> Result<Vec<SegmentKey>, Status> {
        let limit = self.context.settings.request_timeout;
        let replica = peer.replica(SegmentKey { log: LogId(0), segment: 0 });
        let request = ListRequest { store: replica.store, namespace: replica.namespace };
        let mut client = peer.client(Class::Read)?;
        let mut pages = peer.answer(limit, client.list(request)).await?;
        let mut keys = Vec::new();
        while let Some(ListResponse { replicas }) = first(&self.context.clock, limit, &mut pages).await? {
            let names = replicas.into_iter().filter_map(|held| held.replica);
            keys.extend(names.map(|name| SegmentKey { log: LogId(name.log), segment: name.segment }));
        }
        Ok(keys)
    }

    /// Releases what was found and is not live, once that has been so for `grace`; how many replicas were.
    pub(super) async fn release_nameless(&self, surveyed: &[Surveyed], live: &[Named], grace: Duration) -> u64 {
        let named: BTreeSet<(StoreId, SegmentKey)> = live
            .iter()
            .filter_map(|(key, placement)| match placement {
                Placement::Replicas(set) => Some(set.stores().iter().map(|store| (*store, *key))),
                Placement::Volume { .. } => None,
            })
            .flatten()
            .collect();
        let now = self.context.clock.now();
        let due: Vec<(StoreId, SegmentKey)> = {
            let mut state = locked(&self.state);
            let before = std::mem::take(&mut state.nameless);
            let found = surveyed.iter().filter_map(|found| match found {
                Surveyed::Replica(store, key) => Some((*store, *key)),
                Surveyed::Volume(_) => None,
            });
            let nameless = found.filter(|replica| !named.contains(replica));
            let since: BTreeMap<_, _> =
                nameless.map(|replica| (replica, before.get(&replica).copied().unwrap_or(now))).collect();
            let due = since.iter().filter(|(_, since)| now.duration_since(**since) >= grace);
            let due = due.map(|(replica, _)| *replica).collect();
            state.nameless = since;
            due
        };
        let releases = due.into_iter().map(|(store, key)| async move {
            let [peer] = &*self.peers_of(&[store]) else { return 0 };
            match self.release(peer, key).await {
                Ok(()) => {
                    tracing::info!(%store, segment = %key, "released a replica that no record names");
                    1
                }
                Err(status) => {
                    tracing::warn!(%store, segment = %key, %status, "a replica that no record names stays for now");
                    0
                }
            }
        });
        stream::iter(releases).buffer_unordered(AT_ONCE).fold(0, |sum, released| async move { sum + released }).await
    }

    /// Tells a store that a replica is needed no more.
    pub(super) async fn release(&self, peer: &Arc<Peer>, key: SegmentKey) -> Result<(), Status> {
        let mut client = peer.client(Class::Append)?;
        let request = ReleaseRequest { replica: Some(peer.replica(key)) };
        peer.answer(self.context.settings.request_timeout, client.release(request)).await.map(drop)
    }
}
