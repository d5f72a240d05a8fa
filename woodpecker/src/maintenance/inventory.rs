//! The records of all logs, as read once and watched since.

use std::collections::{BTreeMap, BTreeSet};

use woodpecker_base::metadata::{KeyValue, Revision, Snapshot, WatchEvent};
use woodpecker_core::{
    ids::{LogId, SegmentKey},
    record::{ClosedSegment, LogRecord},
};

use crate::{
    LogError,
    catalog::{About, Catalog, Found, decode_log, decode_segment},
};

#[derive(Debug, Default)]
pub(super) struct Inventory {
    pub logs: BTreeMap<String, Found>,
    pub closed: BTreeMap<SegmentKey, (ClosedSegment, Revision)>,
    pub garbage: BTreeMap<SegmentKey, ClosedSegment>,
    pub deleting: BTreeMap<LogId, LogRecord>,
    /// Keys whose records cannot be read: what they name is not known, so nothing may be called a leftover.
    pub unread: BTreeSet<String>,
    /// Which data belongs to these records.
    pub instance: Option<String>,
}

impl Inventory {
    pub fn read(catalog: &Catalog, snapshot: &Snapshot) -> Self {
        let mut inventory = Self::default();
        for item in &snapshot.items {
            if item.key == catalog.instance_key() {
                inventory.instance = Some(String::from_utf8_lossy(&item.value).into_owned());
            }
            inventory.put(catalog, item);
        }
        inventory
    }

    pub fn apply(&mut self, catalog: &Catalog, event: WatchEvent) {
        match event {
            WatchEvent::Put(item) => self.put(catalog, &item),
            WatchEvent::Delete { key, .. } => self.remove(catalog, &key),
            WatchEvent::Resync(snapshot) => *self = Self::read(catalog, &snapshot),
        }
    }

    fn put(&mut self, catalog: &Catalog, item: &KeyValue) {
        let Some(about) = catalog.about(&item.key) else { return };
        self.unread.remove(&item.key);
        if let Err(error) = self.try_put(about, item) {
            tracing::warn!(%error, "maintenance leaves alone what it cannot read");
            self.unread.insert(item.key.clone());
        }
    }

    fn try_put(&mut self, about: About, item: &KeyValue) -> Result<(), LogError> {
        match about {
            About::Log(name) => {
                self.logs.insert(name, decode_log(item)?);
            }
            About::Closed(key) => self.put_closed(key, decode_segment(item)?, item.mod_revision),
            About::Garbage(key) => {
                self.garbage.insert(key, decode_segment(item)?);
            }
            About::Deleting(log) => {
                self.deleting.insert(log, decode_log(item)?.0);
            }
        }
        Ok(())
    }

    /// Takes a closed segment's record as written by oneself. What is not there was discarded meanwhile.
    pub fn update_closed(&mut self, key: SegmentKey, closed: ClosedSegment, revision: Revision) {
        if self.closed.contains_key(&key) {
            self.put_closed(key, closed, revision);
        }
    }

    /// As read; an older one changes nothing.
    fn put_closed(&mut self, key: SegmentKey, closed: ClosedSegment, revision: Revision) {
        if self.closed.get(&key).is_none_or(|(_, known)| *known < revision) {
            self.closed.insert(key, (closed, revision));
        }
    }

    fn remove(&mut self, catalog: &Catalog, key: &str) {
        self.unread.remove(key);
        match catalog.about(key) {
            Some(About::Log(name)) => {
                self.logs.remove(&name);
            }
            Some(About::Closed(key)) => {
                self.closed.remove(&key);
            }
            Some(About::Garbage(key)) => {
                self.garbage.remove(&key);
            }
            Some(About::Deleting(log)) => {
                self.deleting.remove(&log);
            }
            None => {}
        }
    }

    /// A segment left its log.
    pub fn discard(&mut self, log: LogId, closed: &ClosedSegment) {
        let key = SegmentKey { log, segment: closed.segment() };
        self.closed.remove(&key);
        self.garbage.insert(key, closed.clone());
    }

    /// The closed segments of a log, ascending, with their revisions.
    pub fn closed_of(&self, log: LogId) -> impl Iterator<Item = &(ClosedSegment, Revision)> {
        let (first, last) = (SegmentKey { log, segment: 0 }, SegmentKey { log, segment: u64::MAX });
        self.closed.range(first..=last).map(|(_, found)| found)
    }
}

#[cfg(test)]
mod tests {
    use woodpecker_core::{ids::Placement, ids::VolumeId, record::OpenSegment};

    use super::*;

    #[test]
    fn what_was_discarded_does_not_come_back_with_a_late_answer() {
        let placement = Placement::Volume { volume: VolumeId(1), from_batch: 0 };
        let opened = OpenSegment { segment: 1, backend: "memory".to_owned(), placement, created_ms: 0 };
        let closed = ClosedSegment { opened, entries: 1, bytes: Some(1), closed_ms: 0, sealed: None };
        let (log, mut inventory) = (LogId(1), Inventory::default());
        let key = SegmentKey { log, segment: 1 };
        inventory.put_closed(key, closed.clone(), 9);
        inventory.update_closed(key, closed.clone(), 10);
        assert_eq!(inventory.closed_of(log).next().map(|(_, revision)| *revision), Some(10));
        inventory.discard(log, &closed);
        inventory.update_closed(key, closed, 10);
        assert_eq!(inventory.closed_of(log).next(), None);
    }
}
