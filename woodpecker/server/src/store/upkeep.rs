//! What goes on beside the calls: looking at the disk, writing down what is known to be acked, and the end.

use std::sync::Arc;

use woodpecker_store::backend::Backend;

use super::Store;
use crate::{failure::Part, lock, replica::Replica, watermark::Pressure};

/// What an operator does about a volume that failed.
const ENDS_WITH_ROOM: &str = "appends are taken again when the disk is below its hard mark";
const ENDS_WITH_A_START: &str = "look at the disk, then start the store again";

impl Store {
    /// Looks at the disk from time to time, ends failures that can end, and tells others what has changed.
    pub async fn watch_disk(self: Arc<Self>) {
        let mut ticker = self.clock.ticker(self.settings.disk_interval);
        let failed = self.failure().clone();
        let mut failures = failed.subscribe();
        // One may have come before this task.
        failures.mark_changed();
        // Of a volume that failed: whether it did for want of room.
        let mut for_want_of_room = None;
        loop {
            tokio::select! {
                _ = ticker.tick() => {
                    self.gauge.look(&self.disk, &self.path).await;
                    if for_want_of_room == Some(true) && !self.has_no_room() {
                        for_want_of_room = None;
                        self.begin_anew().await;
                    }
                    if failed.is_of(Part::Facts) {
                        self.ledger.try_again();
                    }
                }
                Ok(()) = failures.changed() => {
                    self.gauge.look(&self.disk, &self.path).await;
                    if for_want_of_room.is_none() && failed.is_of(Part::Volume) {
                        // What there was no room for may be gone again by now.
                        let had_none = self.has_no_room() || self.backend.ran_full();
                        for_want_of_room = Some(had_none);
                        failed.advise(Part::Volume, if had_none { ENDS_WITH_ROOM } else { ENDS_WITH_A_START });
                    }
                }
            }
            self.advertise();
        }
    }

    /// Lets go of the volume that failed. Nobody tells of its failure after that.
    async fn begin_anew(&self) {
        let _nobody_opens = self.letting_go.write().await;
        self.backend.begin_anew().await;
        self.failure().clear(Part::Volume);
    }

    /// Whether appends find no room.
    pub(super) fn has_no_room(&self) -> bool {
        matches!(self.gauge.pressure(), Pressure::Hard | Pressure::Full)
    }

    /// Writes down what is known to be acked of replicas that have become quiet, so that after a restart of every store
    /// their readers need not wait for a writer. Of busy ones the next append tells, and each would cost a write.
    pub async fn write_committed(self: Arc<Self>) {
        loop {
            self.heard.notified().await;
            while !lock(&self.unwritten).is_empty() {
                self.clock.sleep(self.settings.quiet).await;
                self.write_quiet(self.clock.now() - self.settings.quiet);
            }
        }
    }

    /// Writes down what was heard before then. The ledger groups the writes; nobody waits for them.
    fn write_quiet(&self, before: woodpecker_base::clock::Instant) {
        let heard = std::mem::take(&mut *lock(&self.unwritten));
        let busy = heard.into_iter().filter(|replica: &Arc<Replica>| {
            replica.write_committed(before, |record| {
                let _unwaited = self.ledger.put_replica(replica.key, record);
            })
        });
        let busy: Vec<_> = busy.collect();
        lock(&self.unwritten).extend(busy);
    }

    /// Writes down everything and closes the volume: what is queued becomes durable first.
    pub async fn close(&self) {
        self.backend.close().await;
        self.write_quiet(self.clock.now());
    }
}
