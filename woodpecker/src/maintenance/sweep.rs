//! Finding what no record names: objects of sealing attempts that were given up, volumes of processes that ended, and
//! replicas on log stores that were away when their segments were freed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::task::JoinHandle;
use woodpecker_core::{ids::SegmentKey, record::ClosedSegment};
use woodpecker_store::backend::{Backend, StoreError};

use super::{inventory::Inventory, millis, shift::Shift};
use crate::{LogError, client::Inner};

impl Shift {
    /// Removes leftovers. What fails is tried again at the next sweep.
    pub(super) async fn sweep(&mut self) {
        self.sweep_seals().await;
        self.done.swept += sweep_media(self.client.clone(), self.settings.sweep_grace).await;
    }

    /// As [`Shift::sweep`], but media are swept beside what else is done: what became free of object storage since the last
    /// time may be hundreds of thousands of objects.
    pub(super) async fn begin_sweep(&mut self) {
        self.sweep_seals().await;
        if self.sweeping.as_ref().is_none_or(JoinHandle::is_finished) {
            let sweeping = sweep_media(self.client.clone(), self.settings.sweep_grace);
            self.sweeping = Some(self.tasks.spawn_until_stopped(sweeping));
        }
    }

    async fn sweep_seals(&mut self) {
        match self.sweep_sealed().await {
            Ok(swept) => {
                self.done.swept += swept;
                note_swept(swept);
            }
            Err(error) => tracing::warn!(%error, "leftovers of sealing stay until the next sweep"),
        }
    }

    /// Objects are listed first and records read after: what is named by then is no leftover. What a deposed leader is
    /// still at cannot be named any more, and what this process is at is known.
    async fn sweep_sealed(&mut self) -> Result<u64, LogError> {
        let Ok(store) = self.client.sealed().cloned() else { return Ok(0) };
        let objects = store.list().await?;
        let records = records(&self.client).await?;
        let closed = records.closed.iter().map(|(key, (closed, _))| (*key, closed));
        let named: BTreeSet<_> = closed
            .chain(records.garbage.iter().map(|(key, closed)| (*key, closed)))
            .filter_map(|(key, closed)| Some((key, closed.sealed.as_ref()?.id)))
            .collect();
        // What is not closed was never sealed, but by records that are lost: nothing else knows of it.
        let growing: BTreeMap<_, _> = records.logs.values().map(|(log, _)| (log.id, log.growing_from())).collect();
        let is_closed = |key: SegmentKey| growing.get(&key.log).is_none_or(|from| key.segment < *from);
        let before = self.client.clock.wall_ms().saturating_sub(millis(self.settings.sweep_grace));
        let leftovers: Vec<_> = objects
            .into_iter()
            .filter(|object| {
                let is_named = named.contains(&(object.key, object.seal));
                object.stored_ms <= before && is_closed(object.key) && !is_named && !self.is_busy(object.key)
            })
            .collect();
        let count = leftovers.len() as u64;
        if count > 0 {
            tracing::info!(count, "removing leftovers of sealing");
            store.remove(leftovers).await?;
        }
        Ok(count)
    }
}

/// Frees all media of what no segment needs; how many files, objects and replicas went.
async fn sweep_media(client: Arc<Inner>, grace: Duration) -> u64 {
    let mut all = 0;
    for backend in client.backends() {
        match sweep_medium(&client, &**backend, grace).await {
            Ok(swept) => {
                all += swept;
                note_swept(swept);
            }
            Err(error) => {
                tracing::warn!(backend = backend.name(), %error, "what nobody needs stays until the next sweep")
            }
        }
    }
    all
}

/// Frees a medium of what no segment needs: it is surveyed first and records are read after.
async fn sweep_medium(client: &Inner, backend: &dyn Backend, grace: Duration) -> Result<u64, LogError> {
    let surveyed = backend.survey().await?;
    if surveyed.is_empty() {
        return Ok(0);
    }
    let records = records(client).await?;
    let logs = records.logs.values().map(|(log, _)| log).chain(records.deleting.values());
    let open = logs.flat_map(|log| log.open.iter().map(|open| (log.id, open)));
    let unfreed = |closed: &ClosedSegment| closed.sealed.as_ref().is_none_or(|sealed| !sealed.freed);
    let closed = records.closed.iter().map(|(key, (closed, _))| (key, closed)).chain(&records.garbage);
    let closed = closed.filter(|(_, closed)| unfreed(closed)).map(|(key, closed)| (key.log, &closed.opened));
    let live: Vec<_> = open
        .chain(closed)
        .filter(|(_, segment)| segment.backend == backend.name())
        .map(|(log, segment)| (SegmentKey { log, segment: segment.segment }, segment.placement.clone()))
        .collect();
    Ok(backend.reclaim(&surveyed, &live, grace).await?)
}

/// All records, read now. Without them everything looks like a leftover: they must all be there, and be those that the
/// objects belong to.
async fn records(client: &Inner) -> Result<Inventory, LogError> {
    let records = Inventory::read(&client.catalog, &client.catalog.everything().await?);
    if let Some(unread) = records.unread.first() {
        return Err(StoreError::Unavailable(format!("{unread} cannot be read").into()).into());
    }
    let mine = client.catalog.instance().await?;
    if records.instance.as_deref().map(str::as_bytes) != Some(&mine) {
        let what = "the metadata store".to_owned();
        return Err(StoreError::Foreign { what, detail: "it was emptied or replaced".to_owned() }.into());
    }
    if let Ok(store) = client.sealed() {
        store.claim(&String::from_utf8_lossy(&mine)).await?;
    }
    Ok(records)
}

fn note_swept(swept: u64) {
    metrics::counter!("woodpecker_swept_objects_total").increment(swept);
}
