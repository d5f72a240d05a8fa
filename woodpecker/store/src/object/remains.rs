//! Removing what is left of segments in volumes that other processes write or wrote.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use woodpecker_core::ids::{Epoch, LogId, SegmentKey};

use super::{
    fence,
    sections::{FenceMark, SUMMARY_EVERY, Summary},
    view::{KEPT, PARALLEL, View},
};
use crate::{
    backend::{StoreError, SurveyedVolume},
    format::Kind,
};

/// Looks at a volume as it is now; `None` when it holds nothing, or nothing but the fence that ended it.
pub async fn survey(view: &Arc<View>) -> Result<Option<SurveyedVolume>, StoreError> {
    view.refresh(0, Duration::ZERO).await?;
    let known = view.look_for_fence().await?;
    let Some(newest) = known.fence.or_else(|| known.end.checked_sub(1)) else { return Ok(None) };
    if let Some(fence) = known.fence
        && !view.bucket.any_below(view.volume, fence).await?
    {
        return Ok(None);
    }
    let written_ms = view.bucket.stored_ms(view.volume, newest).await?;
    Ok(Some(SurveyedVolume { volume: view.volume, end: known.limit(), ended: known.fence.is_some(), written_ms }))
}

/// Removes what no live segment needs; `live_from` is the first object that one may need. The fence stays for ever: by it
/// a process that wakes up learns that the volume has ended. A volume that is idle and needed by nobody is ended
/// now, and emptied only after another survey: until then somebody may have recorded a segment in it.
pub async fn reclaim(
    view: &Arc<View>,
    surveyed: &SurveyedVolume,
    live_from: Option<u64>,
    idle: bool,
) -> Result<u64, StoreError> {
    let settled = surveyed.end.saturating_sub(KEPT) / SUMMARY_EVERY * SUMMARY_EVERY;
    let below = match live_from {
        Some(live) => live.min(settled),
        None if surveyed.ended => surveyed.end,
        None if idle => {
            let nobody = FenceMark { key: SegmentKey { log: LogId(0), segment: 0 }, epoch: Epoch(0) };
            fence::end(view, 0, nobody).await?;
            return Ok(0);
        }
        None => settled,
    };
    view.bucket.delete_below(view.volume, below).await
}

/// Removes the objects that hold blocks of `deleted` segments only, as far as `key` reaches. The newest objects stay: by
/// them a taker knows the end of the volume.
pub async fn collect(
    view: &Arc<View>,
    key: SegmentKey,
    from_batch: u64,
    deleted: &BTreeSet<SegmentKey>,
) -> Result<(), StoreError> {
    view.refresh(from_batch, Duration::ZERO).await?;
    let known = view.look_for_fence().await?;
    let limit = known.limit().saturating_sub(KEPT) / SUMMARY_EVERY * SUMMARY_EVERY;
    let mut seq = from_batch;
    while seq < limit {
        let to = limit.min(seq + PARALLEL as u64);
        let mut unneeded = Vec::new();
        let mut passed = false;
        for (seq, head) in view.heads(seq, to).await? {
            let Some(head) = head.filter(|head| head.batch.header.id.kind == Kind::Data) else { continue };
            if head.batch.blocks.iter().all(|block| deleted.contains(&block.key)) {
                unneeded.push(seq);
            }
            // A summary names every open segment: from one that lacks it on, the segment was closed.
            let names_all = seq > from_batch && seq.is_multiple_of(SUMMARY_EVERY);
            passed |= names_all && Summary::entries_of(&head.batch, key).is_none();
        }
        if !unneeded.is_empty() {
            view.bucket.delete(view.volume, unneeded).await?;
        }
        if passed {
            return Ok(());
        }
        seq = to;
    }
    Ok(())
}
