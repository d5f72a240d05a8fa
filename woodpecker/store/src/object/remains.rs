//! Removing what is left of segments in volumes that other processes write or wrote.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use woodpecker_core::ids::SegmentKey;

use super::{
    sections::{SUMMARY_EVERY, Summary},
    view::{KEPT, PARALLEL, View},
};
use crate::{backend::StoreError, format::Kind};

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
