//! Whether log stores run out of room, as their records say.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use woodpecker_base::{
    backoff::Backoff,
    metadata::{KeyValue, MetadataError, MetadataStore, WatchEvent},
    tasks::Tasks,
};
use woodpecker_store::quorum::store_record::{self, StoreRecord, StoreState};

use super::Machine;

const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The log stores that slow their writers down or take no more from them, by the keys of their records.
#[derive(Debug, Clone, Default)]
pub(super) struct Pressed(Arc<Mutex<BTreeSet<String>>>);

impl Pressed {
    /// Follows the records under `prefix`, in `tasks`. The last view stands while the metadata store is away.
    pub(super) fn follow(metadata: &Arc<dyn MetadataStore>, prefix: &str, machine: &Machine, tasks: &Tasks) -> Self {
        let (pressed, keys, metadata) = (Self::default(), store_record::keys(prefix), metadata.clone());
        let mut pauses = Backoff::new(machine.clock.clone(), &machine.random, PAUSES.0, PAUSES.1);
        let following = pressed.clone();
        tasks.spawn_until_stopped(async move {
            loop {
                if let Err(error) = following.watch(&*metadata, &keys).await {
                    tracing::warn!(%error, "whether log stores run out of room is not known for now");
                }
                pauses.wait().await;
            }
        });
        pressed
    }

    /// Whether there is one.
    pub(super) fn any(&self) -> bool {
        !self.keys().is_empty()
    }

    fn keys(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn watch(&self, metadata: &dyn MetadataStore, keys: &str) -> Result<(), MetadataError> {
        let snapshot = metadata.list(keys).await?;
        let mut watch = metadata.watch(keys, snapshot.revision + 1).await?;
        self.apply(WatchEvent::Resync(snapshot));
        while let Some(event) = watch.next().await {
            self.apply(event?);
        }
        Ok(())
    }

    fn apply(&self, event: WatchEvent) {
        let mut keys = self.keys();
        match event {
            WatchEvent::Put(item) if is_pressed(&item) => drop(keys.insert(item.key)),
            WatchEvent::Put(KeyValue { key, .. }) | WatchEvent::Delete { key, .. } => drop(keys.remove(&key)),
            WatchEvent::Resync(snapshot) => {
                *keys = snapshot.items.into_iter().filter(is_pressed).map(|item| item.key).collect();
            }
        }
    }
}

fn is_pressed(item: &KeyValue) -> bool {
    let record = StoreRecord::decode(&item.value);
    record.is_ok_and(|record| matches!(record.state, StoreState::Slowed | StoreState::ReadOnly))
}
