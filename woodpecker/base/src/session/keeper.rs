//! Keeps a lease alive and tells apart: alive, out of sight, lost.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use tokio::sync::watch;

use super::SessionState;
use crate::{
    clock::{Clock, Instant},
    metadata::{LeaseId, MetadataError, MetadataStore, Revision, WatchEvent},
    tasks::Tasks,
};

/// A lost connection is tried again soon: the lease runs.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(200);

/// Renews the lease three times in its time to live.
pub(super) fn spawn(
    tasks: &Tasks,
    store: Arc<dyn MetadataStore>,
    clock: Clock,
    lease: LeaseId,
    ttl: Duration,
    state: Arc<watch::Sender<SessionState>>,
    valid_until: watch::Sender<Instant>,
) {
    tasks.spawn_until_stopped(async move {
        let mut pause = ttl / 3;
        loop {
            clock.sleep(pause).await;
            let asked = clock.now();
            let renewed = clock.timeout(ttl / 3, store.keep_alive(lease)).await;
            let unreachable = match renewed {
                Ok(Ok(granted)) => {
                    valid_until.send_replace(asked + granted);
                    pause = ttl / 3;
                    advance(&state, SessionState::Alive);
                    continue;
                }
                Ok(Err(MetadataError::LeaseGone(_))) => return advance(&state, SessionState::Lost),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".to_owned(),
            };
            if *state.borrow() == SessionState::Alive {
                tracing::warn!(error = unreachable, "the metadata store is out of sight; the session may live on");
                advance(&state, SessionState::Unreachable { since: asked });
            }
            pause = UNREACHABLE_PAUSE.min(ttl / 3);
        }
    });
}

/// Reports the session lost when `key` is deleted or put under another lease.
pub(super) fn watch_key(
    tasks: &Tasks,
    store: Arc<dyn MetadataStore>,
    key: String,
    created: Revision,
    lease: LeaseId,
    state: Arc<watch::Sender<SessionState>>,
) {
    tasks.spawn_until_stopped(async move {
        let Ok(mut events) = store.watch(&key, created + 1).await else {
            // The keeper sees the same store: it reports what matters.
            return;
        };
        while let Some(event) = events.next().await {
            let lost = match event {
                Ok(WatchEvent::Put(item)) => item.key == key && item.lease != Some(lease),
                Ok(WatchEvent::Delete { key: deleted, .. }) => deleted == key,
                Ok(WatchEvent::Resync(snapshot)) => {
                    !snapshot.items.iter().any(|item| item.key == key && item.lease == Some(lease))
                }
                Err(_) => false,
            };
            if lost {
                tracing::warn!(key, "the session's key is gone");
                return advance(&state, SessionState::Lost);
            }
        }
    });
}

/// Lost is final.
fn advance(state: &watch::Sender<SessionState>, to: SessionState) {
    state.send_if_modified(|now| {
        let changes = *now != SessionState::Lost && *now != to;
        if changes {
            *now = to;
        }
        changes
    });
}
