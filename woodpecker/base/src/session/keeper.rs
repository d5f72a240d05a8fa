//! Keeps a lease alive and tells apart: alive, out of sight, lost.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;

use super::{SessionState, Shared, lock};
use crate::{
    backoff::Backoff,
    metadata::{KeyValue, MetadataError, Revision, WatchEvent},
};

/// Renews the lease three times in its time to live, and more often while the store does not answer: the lease runs.
/// Only the store's word that the lease is gone ends it, time alone does not.
pub(super) async fn keep(shared: Arc<Shared>, mut ttl: Duration, mut pauses: Backoff) {
    let clock = shared.clock.clone();
    loop {
        let asked = clock.now();
        let unreachable = match clock.timeout(ttl / 2, shared.store.keep_alive(shared.lease)).await {
            Ok(Ok(granted)) => {
                ttl = granted;
                *lock(&shared.valid_until) = asked + ttl;
                shared.advance(SessionState::Alive);
                pauses.reset();
                clock.sleep_until(asked + ttl / 3).await;
                continue;
            }
            Ok(Err(MetadataError::LeaseGone(_))) => return shared.advance(SessionState::Lost),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        if *shared.state.borrow() == SessionState::Alive {
            tracing::warn!(error = unreachable, "the metadata store is out of sight; the session may live on");
            shared.advance(SessionState::Unreachable { since: asked });
        }
        pauses.wait().await;
    }
}

/// Reports the session lost when `key` is deleted or put under another lease. Whether the store can be seen is the
/// keeper's to say.
pub(super) async fn watch_key(shared: Arc<Shared>, key: String, created: Revision, mut pauses: Backoff) {
    let mut events = loop {
        match shared.store.watch(&key, created + 1).await {
            Ok(events) => break events,
            Err(error) => tracing::debug!(key, %error, "the session's key cannot be watched yet"),
        }
        pauses.wait().await;
    };
    let ours = |item: &KeyValue| item.key == key && item.lease == Some(shared.lease);
    while let Some(event) = events.next().await {
        let lost = match event {
            Ok(WatchEvent::Put(item)) => item.key == key && !ours(&item),
            Ok(WatchEvent::Delete { key: deleted, .. }) => deleted == key,
            Ok(WatchEvent::Resync(snapshot)) => !snapshot.items.iter().any(ours),
            Err(_) => false,
        };
        if lost {
            tracing::warn!(key, "the session's key is gone");
            return shared.advance(SessionState::Lost);
        }
    }
}
