//! Giving up the part of a log that nobody needs: what lies before the checkpoint, before every registered consumer, and
//! before the newest idempotency keys.
//!
//! A consumer registers by saying from where on it needs the log, under the name of the vchannel it reads, or of the
//! pchannel when it reads all of it. As long as a vchannel has no such consumer, somebody may come who needs everything,
//! and nothing is given up. The same goes for a cluster that follows this one; what one said that does so no more is
//! forgotten. A consumer goes with its vchannel, or when it is dropped by name: one that is gone for good would hold back
//! the log for ever.

use std::collections::BTreeMap;

use streaming_types::channel::is_replica_consumer;
use woodpecker::{EntryId, Log, LogError};

use super::catalog::{Catalog, CatalogError, Changes};
use crate::metrics;

/// Why a log was not truncated; nothing depends on it.
#[derive(Debug, thiserror::Error)]
pub enum TruncateError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Log(#[from] LogError),
}

/// What is known of a log behind its truncation.
#[derive(Debug, Default)]
pub struct Truncated {
    /// The tick of the registered consumer that is furthest behind.
    pub slowest: Option<u64>,
    /// The log was given up to here at least.
    pub end: Option<EntryId>,
}

/// Truncates `log` as far as everyone is done with it, if that frees a segment.
pub async fn truncate(
    log: &Log,
    catalog: &Catalog,
    changes: &Changes,
    vchannels: Vec<String>,
    replicas: &[String],
) -> Result<Truncated, TruncateError> {
    let mut consumers = catalog.consumers().await?;
    consumers.retain(|name, _| !is_replica_consumer(name) || replicas.contains(name));
    let slowest = consumers.values().map(|position| position.tick).min();
    let positions: BTreeMap<String, EntryId> =
        consumers.into_iter().map(|(name, position)| (name, position.id)).collect();
    let unchanged = Truncated { slowest, end: None };
    if !replicas.iter().all(|replica| positions.contains_key(replica)) {
        return Ok(unchanged);
    }
    let own = changes.keys_from.map_or(changes.checkpoint.id, |keys_from| keys_from.min(changes.checkpoint.id));
    let Some(needed) = needed_from(log.name(), own, &vchannels, &positions) else { return Ok(unchanged) };
    // Space comes back a segment at a time.
    let Some(segment) = needed.segment.checked_sub(1).filter(|segment| *segment > 0) else { return Ok(unchanged) };
    let end = EntryId { segment, entry: u64::MAX };
    log.truncate(end).await?;
    metrics::truncated(log.name(), segment);
    Ok(Truncated { slowest, end: Some(end) })
}

/// The first entry that somebody needs, the next owner from `own` on; `None` when that cannot be known.
fn needed_from(
    pchannel: &str,
    own: EntryId,
    vchannels: &[String],
    consumers: &BTreeMap<String, EntryId>,
) -> Option<EntryId> {
    let slowest = consumers.values().min()?;
    let covered = |vchannel: &String| consumers.contains_key(vchannel) || consumers.contains_key(pchannel);
    vchannels.iter().all(covered).then(|| own.min(*slowest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(entry: u64) -> EntryId {
        EntryId { segment: 4, entry }
    }

    fn needed(checkpoint: u64, vchannels: &[&str], consumers: &[(&str, u64)]) -> Option<u64> {
        let vchannels: Vec<String> = vchannels.iter().map(|name| (*name).to_owned()).collect();
        let consumers = consumers.iter().map(|(name, entry)| ((*name).to_owned(), at(*entry))).collect();
        needed_from("p_0", at(checkpoint), &vchannels, &consumers).map(|id| id.entry)
    }

    #[test]
    fn nothing_goes_while_someone_may_come_who_needs_it() {
        assert_eq!(needed(9, &[], &[]), None, "nobody said what it needs");
        assert_eq!(needed(9, &["p_0_1v0", "p_0_2v0"], &[("p_0_1v0", 5)]), None, "one vchannel has no consumer");
    }

    #[test]
    fn slowest_one_decides() {
        assert_eq!(needed(9, &["p_0_1v0", "p_0_2v0"], &[("p_0_1v0", 5), ("p_0_2v0", 7)]), Some(5));
        assert_eq!(needed(3, &["p_0_1v0"], &[("p_0_1v0", 5)]), Some(3));
        assert_eq!(needed(9, &["p_0_1v0"], &[("p_0", 8)]), Some(8), "who reads the whole WAL covers its vchannels");
        assert_eq!(needed(9, &[], &[("p_0", 8)]), Some(8), "a WAL without collections");
    }
}
