//! Removing what no segment needs any more from volumes, whoever writes or wrote them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use woodpecker_core::ids::{Epoch, LogId, SegmentKey};

use super::{
    bucket::Head,
    fence,
    sections::{FenceMark, SUMMARY_EVERY},
    view::{KEPT, PARALLEL, View},
};
use crate::{
    backend::{StoreError, SurveyedVolume},
    format::Kind,
};

/// What one sweep reads of a volume at most.
const LOOKED_AT: u64 = 1 << 16;

/// What the last sweep left of a volume.
#[derive(Debug, Default)]
pub struct Swept {
    /// Who needed it: segments with the first object that each may need.
    live: BTreeMap<SegmentKey, u64>,
    /// What lies before was read, as far as it is needed.
    next: u64,
}

/// Looks at a volume as it is now; `None` when it holds nothing, or nothing but the fence that ended it.
pub async fn survey(view: &Arc<View>) -> Result<Option<SurveyedVolume>, StoreError> {
    let Some(lowest) = view.bucket.lowest(view.volume).await? else { return Ok(None) };
    // It was emptied: what may lie behind its fence does not exist.
    if view.bucket.head(view.volume, lowest).await?.is_some_and(|head| head.batch.header.id.kind == Kind::Fence) {
        return Ok(None);
    }
    view.refresh(0, Duration::ZERO).await?;
    let known = view.look_for_fence().await?;
    let Some(newest) = known.fence.or_else(|| known.end.checked_sub(1)) else { return Ok(None) };
    let written_ms = view.bucket.stored_ms(view.volume, newest).await?;
    Ok(Some(SurveyedVolume { volume: view.volume, end: known.limit(), ended: known.fence.is_some(), written_ms }))
}

/// Removes what no live segment needs; `live` are those in this volume, with the first object that each may need. The
/// fence stays for ever: by it a process that wakes up learns that the volume has ended. A volume that is idle and needed
/// by nobody is ended now, and emptied only after another survey: until then somebody may have recorded a segment in it.
///
/// Segments go one after the other, and what lies before the oldest of them goes unread. One that stays would hold all
/// behind it: up to where the segments begin that came since the last sweep, each object is read once and goes unless one
/// that stayed has a block there.
pub async fn reclaim(
    view: &Arc<View>,
    surveyed: &SurveyedVolume,
    live: BTreeMap<SegmentKey, u64>,
    idle: bool,
    before: Swept,
) -> Result<(u64, Swept), StoreError> {
    let settled = surveyed.end.saturating_sub(KEPT) / SUMMARY_EVERY * SUMMARY_EVERY;
    let below = match live.values().min() {
        Some(first) => settled.min(*first),
        None if surveyed.ended => surveyed.end,
        None if idle => {
            let nobody = FenceMark { key: SegmentKey { log: LogId(0), segment: 0 }, epoch: Epoch(0) };
            fence::end(view, 0, nobody).await?;
            return Ok((0, Swept::default()));
        }
        None => settled,
    };
    let mut removed = view.bucket.delete_below(view.volume, below).await?;
    let came = live.iter().filter(|(key, _)| !before.live.contains_key(key)).map(|(_, first)| *first).min();
    let went = before.live.iter().filter(|(key, _)| !live.contains_key(key)).map(|(_, first)| *first).min();
    let from = before.next.min(went.unwrap_or(u64::MAX)).max(below);
    let to = settled.min(came.unwrap_or(u64::MAX)).min(from.saturating_add(LOOKED_AT)).max(from);
    removed += remove_unneeded(view, from, to, &live).await?;
    Ok((removed, Swept { live, next: to }))
}

/// Removes those of the objects `from..to` that have blocks of no live segment.
async fn remove_unneeded(
    view: &Arc<View>,
    from: u64,
    to: u64,
    live: &BTreeMap<SegmentKey, u64>,
) -> Result<u64, StoreError> {
    let (mut seq, mut removed) = (from, 0);
    while seq < to {
        let end = to.min(seq + PARALLEL as u64);
        let is_unneeded = |Head { batch, .. }: &Head| {
            batch.header.id.kind == Kind::Data && batch.blocks.iter().all(|block| !live.contains_key(&block.key))
        };
        let heads = view.heads(seq, end).await?.into_iter();
        let unneeded: Vec<u64> =
            heads.filter_map(|(seq, head)| head.is_some_and(|head| is_unneeded(&head)).then_some(seq)).collect();
        removed += unneeded.len() as u64;
        if !unneeded.is_empty() {
            view.bucket.delete(view.volume, unneeded).await?;
        }
        seq = end;
    }
    Ok(removed)
}
