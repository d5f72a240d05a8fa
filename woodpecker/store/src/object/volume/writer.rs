//! The task that writes a volume: a few PUTs in flight, acked in the order of their numbers.
//!
//! With nothing in flight it writes at once; otherwise it gathers, and starts one more PUT only when enough bytes are
//! together. So the number of PUTs follows time and bytes, not logs.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use woodpecker_base::clock::Instant;
use woodpecker_core::ids::SegmentKey;

use super::{Ack, Gathered, Volume};
use crate::{
    backend::{SegmentEnd, StoreError},
    format::{BatchHead, BatchId, BlockEntry, Header, Kind, encode_batch},
    object::{
        bucket::{Entries, Head, Put},
        sections::{FenceMark, Summary},
        view::{MAX_IN_FLIGHT, View},
    },
};

/// Writes until the volume is closed, fenced or failed.
pub async fn write(volume: &Arc<Volume>) {
    let clock = volume.view.bucket.clock.clone();
    let mut writer = Writer {
        volume: Arc::clone(volume),
        flights: BTreeMap::new(),
        puts: FuturesUnordered::new(),
        stored: 0,
        last: None,
    };
    loop {
        let paced = writer.start_puts();
        volume.answer_stops(writer.stored);
        if writer.flights.is_empty() && volume.is_closing() && volume.queued().is_none() {
            return;
        }
        let pace = async {
            match paced {
                Some(at) => clock.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some((seq, put)) = writer.puts.next() => writer.landed(seq, put).await,
            () = volume.work.notified() => {}
            () = pace => {}
        }
        if let Some(end) = writer.end() {
            for segment in volume.stop_all() {
                segment.tell(end.of(segment.key));
            }
            return;
        }
    }
}

struct Writer {
    volume: Arc<Volume>,
    /// By number: what is not acked yet.
    flights: BTreeMap<u64, Flight>,
    puts: FuturesUnordered<BoxFuture<'static, (u64, Put)>>,
    /// Every object below is stored and acked.
    stored: u64,
    /// The lowest object that was not stored, and why; nothing from there on is acked.
    last: Option<(u64, End)>,
}

struct Flight {
    stored: bool,
    acks: Vec<Ack>,
    /// For the readers in this process, once it is stored.
    written: Option<Written>,
}

struct Written {
    head: Head,
    blocks: Vec<(BlockEntry, Entries)>,
}

/// Why the volume ends.
#[derive(Debug, Clone)]
enum End {
    /// Fenced, for this segment if the fence can be read.
    Fenced(Option<SegmentKey>),
    Failed(StoreError),
}

impl End {
    fn of(&self, key: SegmentKey) -> SegmentEnd {
        match self {
            Self::Fenced(Some(fenced)) if *fenced == key => SegmentEnd::Fenced,
            Self::Fenced(_) => SegmentEnd::Displaced,
            Self::Failed(error) => SegmentEnd::Failed(error.clone()),
        }
    }
}

impl Writer {
    /// Starts what may start now. When the rate of PUTs is what it waits for, says until when.
    fn start_puts(&mut self) -> Option<Instant> {
        let bucket = Arc::clone(&self.volume.view.bucket);
        let most = usize::try_from(MAX_IN_FLIGHT).unwrap_or(1).min(bucket.settings.puts_in_flight.max(1));
        while self.last.is_none() && self.flights.len() < most {
            let queued = self.volume.queued()?;
            if !self.flights.is_empty() && queued < bucket.settings.flush_bytes {
                return None;
            }
            if let Err(at) = bucket.may_put() {
                return Some(at);
            }
            if let Some(gathered) = self.volume.gather(bucket.settings.batch_bytes) {
                self.start(gathered);
            }
        }
        None
    }

    fn start(&mut self, gathered: Gathered) {
        let Gathered { seq, blocks, summary, acks } = gathered;
        let bucket = Arc::clone(&self.volume.view.bucket);
        let (volume, writer, attempt) = (self.volume.id(), bucket.writer, bucket.random.u128());
        let id = BatchId { kind: Kind::Data, volume, seq, writer, attempt };
        let sections: Vec<_> = summary.iter().map(Summary::section).collect();
        let mut out = Vec::new();
        let index = match encode_batch(&mut out, id, &blocks, &sections) {
            Ok(index) => index,
            Err(error) => {
                self.last = Some((seq, End::Failed(StoreError::Failed(error.to_string().into()))));
                return;
            }
        };
        let bytes = Bytes::from(out);
        metrics::counter!("woodpecker_object_batches_total").increment(1);
        metrics::counter!("woodpecker_object_batch_bytes_total").increment(bytes.len() as u64);
        let body = bytes.clone();
        let put = async move { (seq, bucket.put(id, &body, bucket.settings.put_deadline).await) };
        self.puts.push(put.boxed());
        // Prepared here, because the time until the answer is free.
        self.flights.insert(seq, Flight { stored: false, acks, written: written(&bytes, &index) });
    }

    /// Takes note of one outcome, and acks what is stored without a gap.
    async fn landed(&mut self, seq: u64, put: Put) {
        let view = Arc::clone(&self.volume.view);
        let end = match put {
            Put::Stored => {
                if let Some(flight) = self.flights.get_mut(&seq) {
                    flight.stored = true;
                }
                return self.ack();
            }
            Put::Fenced => End::Fenced(fenced_segment(&view, seq).await),
            Put::Taken => {
                let what = format!("object {seq} of volume {} was written by another process", self.volume.id());
                End::Failed(StoreError::Failed(what.into()))
            }
            Put::Failed(error) => End::Failed(error),
        };
        if self.last.as_ref().is_none_or(|(last, _)| seq < *last) {
            self.last = Some((seq, end));
        }
    }

    fn ack(&mut self) {
        while let Some(entry) = self.flights.first_entry()
            && entry.get().stored
        {
            let (seq, flight) = entry.remove_entry();
            if let Some(Written { head, blocks }) = flight.written {
                self.volume.view.bucket.keep(head, blocks);
            }
            self.stored = seq + 1;
            self.volume.view.advance(self.stored);
            for ack in flight.acks {
                ack.segment.stored(seq, ack.first, ack.next);
            }
        }
    }

    /// The reason to end, once every object below the one that was not stored is.
    fn end(&self) -> Option<End> {
        let (seq, end) = self.last.as_ref()?;
        if self.stored < *seq {
            return None;
        }
        if matches!(end, End::Fenced(_)) {
            self.volume.view.fenced(*seq);
        }
        tracing::warn!(volume = %self.volume.id(), seq, ?end, "the volume takes no more appends");
        Some(end.clone())
    }
}

/// Which segment the fence in this place was set for.
async fn fenced_segment(view: &View, seq: u64) -> Option<SegmentKey> {
    match view.bucket.head(view.volume, seq).await {
        Ok(head) => head.and_then(|head| FenceMark::of(&head.batch)).map(|mark| mark.key),
        Err(error) => {
            tracing::warn!(%error, volume = %view.volume, seq, "a fence cannot be read");
            None
        }
    }
}

/// What is kept for readers. It shares memory with the object, most of which goes sooner, only where it is most of it.
fn written(bytes: &Bytes, index: &[BlockEntry]) -> Option<Written> {
    let head_bytes = usize::try_from(Header::decode(bytes).ok()?.head_len()).ok()?;
    let front = Bytes::copy_from_slice(bytes.get(..head_bytes)?);
    let head = Head::new(BatchHead::decode(&front).ok()?, front);
    let mut blocks = Vec::with_capacity(index.len());
    for block in index {
        let start = head_bytes + usize::try_from(block.offset).ok()?;
        let end = start + usize::try_from(block.length).ok()?;
        let stored = bytes.get(start..end)?;
        let stored =
            if 2 * stored.len() < bytes.len() { Bytes::copy_from_slice(stored) } else { bytes.slice(start..end) };
        blocks.push((*block, Entries::new(block.decode(&stored).ok()?)));
    }
    Some(Written { head, blocks })
}

#[cfg(test)]
mod tests {
    use woodpecker_core::ids::{LogId, VolumeId};

    use super::*;
    use crate::format::Block;

    #[test]
    fn what_is_kept_of_an_object_holds_no_more_memory_than_it_counts() {
        let id = BatchId { kind: Kind::Data, volume: VolumeId(1), seq: 0, writer: 2, attempt: 3 };
        let block = |log, bytes| {
            let key = SegmentKey { log: LogId(log), segment: 1 };
            Block { key, first: 0, entries: vec![Bytes::from(vec![7; bytes])] }
        };
        let summary = Summary(vec![(block(1, 0).key, 1)]);
        let mut out = Vec::new();
        let blocks = [block(1, 100), block(2, 100_000)];
        let index = encode_batch(&mut out, id, &blocks, &[summary.section()]).unwrap();
        let object = Bytes::from(out);
        let Written { head, blocks: mut kept } = written(&object, &index).unwrap();
        assert_eq!(Summary::entries_of(&head.batch, blocks[0].key), Some(1));
        let large = kept.pop().unwrap().1;
        assert!(!object.is_unique(), "most of it is not copied");
        assert_eq!(&*large.all, &blocks[1].entries);
        drop(large);
        assert!(object.is_unique());
        assert_eq!(&*kept[0].1.all, &blocks[0].entries);
    }
}
