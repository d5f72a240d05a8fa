//! Taking a segment over: stop its writer for good, and find out how many entries it holds.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use woodpecker_core::ids::{Epoch, SegmentKey};

use super::{
    bucket::Put,
    sections::FenceMark,
    view::{FENCES_AT_ONCE, View},
};
use crate::{
    backend::StoreError,
    format::{BatchId, Kind, encode_batch},
};

/// How often a taker looks again when the writer was faster.
const ROUNDS: usize = 8;
/// How long one fence may take to be stored.
const DEADLINE: Duration = Duration::from_secs(10);

/// Puts a fence into the first missing place of the volume, unless there is one already, and counts the segment's
/// entries before it. The writer acks in order, so it can ack nothing beyond.
pub async fn fence(view: &Arc<View>, key: SegmentKey, from_batch: u64, epoch: Epoch) -> Result<u64, StoreError> {
    let at = end(view, from_batch, FenceMark { key, epoch }).await?;
    view.entries_below(key, from_batch, at).await
}

/// Ends the volume for good, and says where.
pub async fn end(view: &Arc<View>, from_batch: u64, mark: FenceMark) -> Result<u64, StoreError> {
    let mut width = 1;
    for _ in 0..ROUNDS {
        view.refresh(from_batch, Duration::ZERO).await?;
        let known = view.look_for_fence().await?;
        let at = match known.fence.filter(|fence| *fence <= known.end) {
            Some(fence) => Some(fence),
            None => {
                let first = known.end.max(from_batch);
                let set = set(view, first, width, mark).await?;
                if set.is_none() && first == known.end {
                    // Not only a listing says what is there: one of a shared file system may be old.
                    view.advance(first + width);
                }
                set
            }
        };
        if let Some(at) = at {
            view.fenced(at);
            return Ok(at);
        }
        // A writer at full speed took the place. It cannot take more places at once than this.
        width = FENCES_AT_ONCE;
    }
    Err(StoreError::Unavailable(format!("volume {}: its writer was faster {ROUNDS} times", view.volume).into()))
}

/// Sets fences from `first` on, side by side; the lowest that stands is where the volume ends. `None` when data is in
/// all of these places.
async fn set(view: &Arc<View>, first: u64, width: u64, mark: FenceMark) -> Result<Option<u64>, StoreError> {
    let bucket = &view.bucket;
    let fences = (first..first + width).map(|seq| async move {
        let (volume, writer, attempt) = (view.volume, bucket.writer, bucket.random.u128());
        let id = BatchId { kind: Kind::Fence, volume, seq, writer, attempt };
        let mut out = Vec::new();
        match encode_batch(&mut out, id, &[], &[mark.section()]) {
            Ok(_) => bucket.put(id, &Bytes::from(out), DEADLINE).await,
            Err(error) => Put::Failed(StoreError::Failed(error.to_string().into())),
        }
    });
    for (seq, put) in (first..).zip(join_all(fences).await) {
        match put {
            Put::Stored | Put::Fenced => {
                tracing::info!(volume = %view.volume, seq, segment = %mark.key, epoch = %mark.epoch, "fenced");
                return Ok(Some(seq));
            }
            Put::Taken => {}
            Put::Failed(error) => return Err(StoreError::Unavailable(error.to_string().into())),
        }
    }
    Ok(None)
}
