//! Truncation by retention, and taking segments that nobody needs out of their logs.

use woodpecker_base::metadata::Revision;
use woodpecker_core::{
    garbage::{retention, unneeded},
    opening::CommitOutcome,
    record::{ClosedSegment, LogRecord},
};

use super::{millis, shift::Shift};
use crate::LogError;

/// Segments that leave their log in one transaction, within the store's limit.
const AT_ONCE: usize = 50;

impl Shift {
    /// Moves truncation points to where retention wants them, and takes out what nobody needs. Says whether anything
    /// was done. One log that cannot be changed keeps no other waiting.
    pub(super) async fn collect(&mut self) -> bool {
        let mut done = false;
        let logs: Vec<(LogRecord, Revision)> = self.inventory.logs.values().cloned().collect();
        for (log, revision) in logs {
            match self.collect_log(log, revision).await {
                Ok(some) => done |= some,
                Err(error) => tracing::warn!(%error, "a log's garbage waits"),
            }
        }
        done
    }

    async fn collect_log(&mut self, log: LogRecord, revision: Revision) -> Result<bool, LogError> {
        let log = self.retain(log, revision).await?;
        if log.truncated.is_none() {
            return Ok(false);
        }
        let (now, keep) = (self.client.clock.wall_ms(), self.keep_ms());
        let closed: Vec<(ClosedSegment, Revision)> = self.inventory.closed_of(log.id).cloned().collect();
        let records = || closed.iter().map(|(closed, _)| closed);
        if unneeded(&log, records(), [], keep, now).is_empty() {
            return Ok(false);
        }
        let catalog = self.client.catalog.clone();
        let (holds, generation) = catalog.holds(log.id).await?;
        let count = unneeded(&log, records(), holds, keep, now).len();
        let gone = closed.get(..count).unwrap_or_default();
        for some in gone.chunks(AT_ONCE) {
            let outcome = catalog.discard(log.id, some, generation, &self.guard).await?;
            if !matches!(outcome, CommitOutcome::Committed(_)) {
                // The watch, or the next look, tells what came of it.
                return Ok(true);
            }
            for (closed, _) in some {
                self.inventory.discard(log.id, closed);
            }
        }
        Ok(!gone.is_empty())
    }

    /// The log's record, truncated as its retention wants.
    async fn retain(&mut self, log: LogRecord, revision: Revision) -> Result<LogRecord, LogError> {
        if log.settings.retention_ms.is_none() && log.settings.retention_bytes.is_none() {
            return Ok(log);
        }
        let closed: Vec<ClosedSegment> = self.inventory.closed_of(log.id).map(|(closed, _)| closed.clone()).collect();
        let wanted = retention(&log, &closed, self.client.clock.wall_ms());
        let Some(change) = wanted.and_then(|up_to| log.truncate(up_to)) else { return Ok(log) };
        match self.client.catalog.commit_guarded(revision, &change, &self.guard).await? {
            CommitOutcome::Committed(revision) => {
                tracing::info!(log = log.name, truncated = ?change.log.truncated, "truncated by retention");
                self.inventory.logs.insert(log.name, (change.log.clone(), revision));
                Ok(change.log)
            }
            CommitOutcome::Conflict | CommitOutcome::Unknown => Ok(log),
        }
    }

    /// How long truncated data is kept: not at all when space runs out.
    fn keep_ms(&self) -> u64 {
        if (self.pressed)() { 0 } else { millis(self.settings.keep_truncated) }
    }
}
