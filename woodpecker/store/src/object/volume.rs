//! A volume that this process writes: what is queued for it, and what it holds. One task writes it ([`writer`]),
//! whatever the number of segments.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot, watch};
use woodpecker_base::tasks::Tasks;
use woodpecker_core::ids::{SegmentKey, VolumeId};

use super::{
    bucket::Bucket,
    sections::{SUMMARY_EVERY, Summary},
    segment::{Segment, Writer},
    view::{KEPT, View},
};
use crate::{
    backend::{Placement, SegmentEnd, SegmentOwner, SegmentWriter, StoreError},
    format::Block,
};

mod writer;

/// Entries queued by one call.
#[derive(Debug)]
pub struct Append {
    pub segment: Arc<Segment>,
    pub first: u64,
    pub entries: Vec<Bytes>,
    pub bytes: usize,
}

#[derive(Debug)]
pub struct Volume {
    pub view: Arc<View>,
    /// Never held while an owner is called or may be dropped: owners append under locks of their own.
    state: Mutex<State>,
    /// Something was queued, stopped or closed.
    work: Notify,
    /// Turns true when the writer task has ended.
    ended: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    appends: VecDeque<Append>,
    /// Of what is queued.
    bytes: usize,
    /// Number of the next object.
    next_seq: u64,
    phase: Phase,
    /// Every segment that was created here and not deleted.
    records: BTreeMap<SegmentKey, Record>,
    stops: Vec<Stop>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// Takes no appends and ends when nothing is queued.
    Closing,
    /// Takes none, writes none.
    Ended,
}

/// What is kept of a segment for takers in this process and for collecting objects.
#[derive(Debug, Default)]
struct Record {
    /// Of one owner, and of others that are about to find out that they are not it. Only the owner's takes appends.
    segments: Vec<Weak<Segment>>,
    /// First and last object with a block of it.
    span: Option<(u64, u64)>,
    /// Entries put into objects so far, stored or under way.
    sent: u64,
}

impl Record {
    fn live(&self) -> Vec<Arc<Segment>> {
        self.segments.iter().filter_map(Weak::upgrade).collect()
    }
}

/// Somebody waits until every object below `seq` is stored, to know the end of a segment that was stopped.
#[derive(Debug)]
struct Stop {
    key: SegmentKey,
    seq: u64,
    /// The segment, as far as its owners must still be told.
    tell: Vec<Arc<Segment>>,
    done: oneshot::Sender<u64>,
}

/// The blocks of one object to be, and whom to tell.
struct Gathered {
    seq: u64,
    blocks: Vec<Block>,
    summary: Option<Summary>,
    acks: Vec<Ack>,
}

struct Ack {
    segment: Arc<Segment>,
    first: u64,
    next: u64,
}

impl Volume {
    /// Starts a volume. Nothing is stored until something is appended.
    pub fn start(bucket: &Arc<Bucket>, tasks: &Tasks) -> Arc<Self> {
        let id = VolumeId(bucket.random.u128());
        let volume = Arc::new(Self {
            view: View::new(Arc::clone(bucket), id, true),
            state: Mutex::default(),
            work: Notify::new(),
            ended: watch::Sender::new(false),
        });
        let guard = EndGuard(Arc::clone(&volume));
        tasks.spawn_until_stopped(async move {
            writer::write(&guard.0).await;
        });
        volume
    }

    pub fn id(&self) -> VolumeId {
        self.view.volume
    }

    /// Starts a segment; `None` when the volume takes no appends any more.
    pub fn create(self: &Arc<Self>, key: SegmentKey, owner: Arc<dyn SegmentOwner>) -> Option<Arc<dyn SegmentWriter>> {
        let segment = Arc::new(Segment::new(key, owner));
        let mut state = self.state();
        if state.phase != Phase::Open {
            return None;
        }
        let placement = Placement::Volume { volume: self.id(), from_batch: state.next_seq };
        let record = state.records.entry(key).or_default();
        record.segments.retain(|segment| segment.strong_count() > 0);
        record.segments.push(Arc::downgrade(&segment));
        drop(state);
        Some(Arc::new(Writer { segment, volume: Arc::clone(self), placement }))
    }

    /// Queues entries for the next object.
    pub fn queue(&self, append: Append) -> Result<(), StoreError> {
        let mut state = self.state();
        if state.phase != Phase::Open {
            return Err(StoreError::Ended);
        }
        // One that is larger than the queue goes alone, or it would wait for ever.
        if state.bytes > 0 && state.bytes + append.bytes > self.view.bucket.settings.queued_bytes {
            return Err(StoreError::Unavailable("the volume's queue is full".into()));
        }
        state.bytes += append.bytes;
        state.appends.push_back(append);
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// The segment, while somebody can append to it or something of it is under way, and as far as that is known here.
    pub fn segment(&self, key: SegmentKey) -> Option<Arc<Segment>> {
        let live = self.state().records.get(&key)?.live();
        let several = live.len() > 1;
        // Of several the one that took appends is the owner's, which nobody can tell before.
        live.into_iter().max_by_key(|segment| segment.appended()).filter(|owners| !several || owners.appended() > 0)
    }

    /// Stops a segment of this volume without a fence, since nobody else may write here: waits for what is under way and
    /// says how many entries the segment has. `None` when the volume ended; then the objects decide.
    pub async fn stop(&self, key: SegmentKey) -> Result<Option<u64>, StoreError> {
        let (done, stopped) = oneshot::channel();
        let segments = {
            let mut state = self.state();
            if state.phase == Phase::Ended {
                return Ok(None);
            }
            let Some(record) = state.records.get(&key) else {
                return Err(StoreError::NotFound { what: format!("segment {key}") });
            };
            let segments = record.live();
            let tell = segments.iter().filter(|segment| segment.stop()).cloned().collect();
            let seq = state.next_seq;
            state.stops.push(Stop { key, seq, tell, done });
            segments
        };
        drop(segments);
        self.work.notify_one();
        Ok(stopped.await.ok())
    }

    /// Forgets a segment and says which objects nobody needs now. The newest ones stay: by them a taker knows the end.
    pub fn delete(&self, key: SegmentKey) -> Vec<u64> {
        let limit = self.view.known().limit().saturating_sub(KEPT) / SUMMARY_EVERY * SUMMARY_EVERY;
        let mut state = self.state();
        let Some(record) = state.records.remove(&key) else { return Vec::new() };
        let needed: Vec<_> = state.records.values().filter_map(|record| record.span).collect();
        drop(state);
        let Some((first, last)) = record.span else { return Vec::new() };
        let needed = |seq: u64| needed.iter().any(|(first, last)| (*first..=*last).contains(&seq));
        (first..=last).take_while(|seq| *seq < limit).filter(|seq| !needed(*seq)).collect()
    }

    /// Whether this process writes nothing to it any more.
    pub fn is_ended(&self) -> bool {
        self.state().phase == Phase::Ended
    }

    /// Whether nothing in the volume is needed through this process any more.
    pub fn is_spent(&self) -> bool {
        let state = self.state();
        state.phase == Phase::Ended && state.records.is_empty()
    }

    /// Takes no more appends, and waits until what is queued is stored or failed.
    pub async fn close(&self) {
        {
            let mut state = self.state();
            if state.phase == Phase::Open {
                state.phase = Phase::Closing;
            }
        }
        self.work.notify_one();
        let mut ended = self.ended.subscribe();
        // An error means that the sender is gone, and with it the volume.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Takes what goes into the next object: in the order it was queued, up to so many bytes, one block a segment.
    fn gather(&self, max_bytes: usize) -> Option<Gathered> {
        let mut state = self.state();
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(append) =
            state.appends.pop_front_if(|append| taken.is_empty() || bytes + append.bytes <= max_bytes)
        {
            state.bytes -= append.bytes;
            bytes += append.bytes;
            taken.push(append);
        }
        let mut blocks = BTreeMap::<SegmentKey, (Block, Arc<Segment>)>::new();
        let mut dropped = Vec::new();
        for append in taken {
            if append.segment.is_stopped() {
                dropped.push(append);
                continue;
            }
            let Append { segment, first, entries, .. } = append;
            let key = segment.key;
            let (block, _) = blocks.entry(key).or_insert_with(|| (Block { key, first, entries: Vec::new() }, segment));
            block.entries.extend(entries);
        }
        if blocks.is_empty() {
            drop(state);
            return None;
        }
        let seq = state.next_seq;
        state.next_seq += 1;
        let mut gathered = Gathered { seq, blocks: Vec::new(), summary: None, acks: Vec::new() };
        for (block, segment) in blocks.into_values() {
            let next = block.first + block.entries.len() as u64;
            if let Some(record) = state.records.get_mut(&block.key) {
                record.sent = next;
                record.span = Some((record.span.map_or(seq, |span| span.0), seq));
            }
            gathered.acks.push(Ack { segment, first: block.first, next });
            gathered.blocks.push(block);
        }
        if seq.is_multiple_of(SUMMARY_EVERY) {
            let is_open = |record: &Record| record.segments.iter().any(|segment| segment.strong_count() > 0);
            let open = state.records.iter().filter(|(_, record)| is_open(record));
            gathered.summary = Some(Summary(open.map(|(key, record)| (*key, record.sent)).collect()));
        }
        drop(state);
        Some(gathered)
    }

    /// Bytes queued, or `None` when nothing is.
    fn queued(&self) -> Option<usize> {
        let state = self.state();
        (!state.appends.is_empty()).then_some(state.bytes)
    }

    fn is_closing(&self) -> bool {
        self.state().phase != Phase::Open
    }

    /// Answers those who stopped a segment, as far as objects below `stored` are concerned.
    fn answer_stops(&self, stored: u64) {
        let mut due = Vec::new();
        {
            let mut state = self.state();
            let mut at = 0;
            while let Some(stop) = state.stops.get(at) {
                if stop.seq > stored {
                    at += 1;
                    continue;
                }
                let stop = state.stops.swap_remove(at);
                let sent = state.records.get(&stop.key).map(|record| record.sent);
                due.push((stop, sent));
            }
        }
        for (stop, sent) in due {
            for segment in stop.tell {
                segment.tell(SegmentEnd::Fenced);
            }
            // A segment deleted meanwhile gets no answer, and who asked may have given up.
            if let Some(sent) = sent {
                let _ = stop.done.send(sent);
            }
        }
    }

    /// Takes no more appends and writes nothing that is queued. Gives back who must be told.
    fn stop_all(&self) -> Vec<Arc<Segment>> {
        let (dropped, stops, segments) = {
            let mut state = self.state();
            state.phase = Phase::Ended;
            state.bytes = 0;
            let segments: Vec<_> = state.records.values().flat_map(Record::live).collect();
            (std::mem::take(&mut state.appends), std::mem::take(&mut state.stops), segments)
        };
        drop(dropped);
        let mut untold: Vec<_> = segments.into_iter().filter(|segment| segment.stop()).collect();
        untold.extend(stops.into_iter().flat_map(|stop| stop.tell));
        untold
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Marks the volume as ended when its task is gone, also when that was dropped in the middle.
struct EndGuard(Arc<Volume>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        drop(self.0.stop_all());
        self.0.view.writer_ended();
        self.0.ended.send_replace(true);
    }
}
