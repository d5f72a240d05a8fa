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
    backend::{Placement, SegmentEnd, SegmentOwner, SegmentWriter, StoreError, SurveyedVolume},
    format::Block,
};

mod writer;

/// Segments that nobody writes here any more and that are remembered at least, the latest ones. Other processes delete
/// segments too, and do not tell.
const CLOSED: usize = 16_384;

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
    /// The segments that were created here, as far as they were not deleted here or forgotten.
    records: BTreeMap<SegmentKey, Record>,
    /// Of objects below, what they hold may have been forgotten.
    unsure: u64,
    /// So many of them are looked through.
    sweep_at: usize,
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

    fn is_live(&self) -> bool {
        self.segments.iter().any(|segment| segment.strong_count() > 0)
    }
}

impl State {
    /// Forgets the oldest segments that nobody writes here any more, when that may be half of what is here.
    fn sweep(&mut self) {
        if self.records.len() < self.sweep_at.max(2 * CLOSED) {
            return;
        }
        let closed = self.records.iter().filter(|(_, record)| !record.is_live());
        let mut closed: Vec<_> = closed.map(|(key, record)| (record.span.map(|(_, last)| last), *key)).collect();
        closed.sort_unstable();
        let forgotten = closed.len().saturating_sub(CLOSED);
        for (last, key) in closed.into_iter().take(forgotten) {
            self.records.remove(&key);
            self.unsure = self.unsure.max(last.map_or(0, |last| last + 1));
        }
        self.sweep_at = 2 * self.records.len();
    }
}

/// Where a segment stands that was stopped.
#[derive(Debug, PartialEq, Eq)]
pub enum Stopped {
    /// It has so many entries.
    At(u64),
    /// It was forgotten: nobody appends to it any more, and all of it is stored.
    Forgotten,
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
        state.sweep();
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
    pub async fn stop(&self, key: SegmentKey) -> Option<Stopped> {
        let (done, stopped) = oneshot::channel();
        let segments = {
            let mut state = self.state();
            if state.phase == Phase::Ended {
                return None;
            }
            let Some(record) = state.records.get(&key) else { return Some(Stopped::Forgotten) };
            let segments = record.live();
            let tell = segments.iter().filter(|segment| segment.stop()).cloned().collect();
            let seq = state.next_seq;
            state.stops.push(Stop { key, seq, tell, done });
            segments
        };
        drop(segments);
        self.work.notify_one();
        stopped.await.ok().map(Stopped::At)
    }

    /// Forgets a segment and says which objects nobody needs now. The newest ones stay: by them a taker knows the end. So do
    /// those that may hold something that was forgotten, for the sweep.
    pub fn delete(&self, key: SegmentKey) -> Vec<u64> {
        let limit = self.view.known().limit().saturating_sub(KEPT) / SUMMARY_EVERY * SUMMARY_EVERY;
        let mut state = self.state();
        let Some(record) = state.records.remove(&key) else { return Vec::new() };
        let mut needed: Vec<_> = state.records.values().filter_map(|record| record.span).collect();
        let unsure = state.unsure;
        drop(state);
        let Some((first, last)) = record.span else { return Vec::new() };
        let end = limit.min(last + 1);
        needed.sort_unstable();
        let (mut unneeded, mut next) = (Vec::new(), first.max(unsure));
        for (first, last) in needed {
            unneeded.extend(next..first.min(end));
            next = next.max(last + 1);
        }
        unneeded.extend(next..end);
        unneeded
    }

    /// As it is now, when it holds anything. It is being written, so it is not idle.
    pub fn survey(&self) -> Option<SurveyedVolume> {
        let end = self.view.known().end;
        let surveyed = SurveyedVolume { volume: self.id(), end, ended: false, written_ms: u64::MAX };
        (end > 0).then_some(surveyed)
    }

    /// Whether this process writes nothing to it any more.
    pub fn is_ended(&self) -> bool {
        self.state().phase == Phase::Ended
    }

    /// Whether nothing in the volume is needed through this process any more. What it still remembers of segments may be
    /// what others deleted: that is for the sweep.
    pub fn is_spent(&self) -> bool {
        let state = self.state();
        state.phase == Phase::Ended && !state.records.values().any(Record::is_live)
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
            let open = state.records.iter().filter(|(_, record)| record.is_live());
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

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use woodpecker_base::{clock::Clock, random::Random};
    use woodpecker_core::ids::{Epoch, LogId};

    use super::*;
    use crate::{
        backend::Backend,
        conformance::Owner,
        object::{ObjectBackend, ObjectSettings},
    };

    #[tokio::test]
    async fn what_others_delete_is_forgotten_and_can_still_be_fenced() {
        let (clock, random) = (Clock::system(), Random::seeded(1));
        let store = Arc::new(InMemory::new());
        let backend = ObjectBackend::new(store, ObjectSettings::default(), clock, random, Tasks::new());
        let create = async |log| {
            let (key, owner) = (SegmentKey { log: LogId(log), segment: 1 }, Owner::default());
            let writer = backend.create(key, Epoch(1), Arc::new(owner.clone())).await.unwrap();
            (key, owner, writer)
        };
        let (old, owner, writer) = create(1).await;
        writer.append(vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")]).unwrap();
        owner.wait_acked(2).await;
        let placement = writer.placement().clone();
        drop(writer);
        let (_, open, writing) = create(2).await;
        for log in 3..(3 + 4 * CLOSED as u64) {
            create(log).await;
        }
        let volume = backend.state().current.clone().unwrap();
        let known = volume.state().records.len();
        assert!((CLOSED..3 * CLOSED).contains(&known), "{known}");
        assert!(volume.segment(SegmentKey { log: LogId(2), segment: 1 }).is_some(), "it is written");
        assert_eq!(volume.stop(SegmentKey { log: LogId(3), segment: 1 }).await, Some(Stopped::Forgotten));
        // Those that hold something are the last to go.
        volume.state().records.remove(&old);
        assert_eq!(backend.fence(old, &placement, Epoch(2)).await.unwrap(), 2);
        // And nobody else in the volume feels it.
        writing.append(vec![Bytes::from_static(b"on")]).unwrap();
        open.wait_acked(1).await;
    }

    #[tokio::test]
    async fn what_was_forgotten_is_not_deleted_with_what_was_written_around_it() {
        let (clock, random) = (Clock::system(), Random::seeded(1));
        let settings = ObjectSettings { puts_per_second: 100_000, ..ObjectSettings::default() };
        let backend = ObjectBackend::new(Arc::new(InMemory::new()), settings, clock, random, Tasks::new());
        let create = async |log| {
            let (key, owner) = (SegmentKey { log: LogId(log), segment: 1 }, Owner::default());
            (key, owner.clone(), backend.create(key, Epoch(1), Arc::new(owner)).await.unwrap())
        };
        let write = async |owner: &Owner, writer: &dyn SegmentWriter| {
            let number = writer.append(vec![Bytes::from_static(b"entry")]).unwrap();
            owner.wait_acked(number + 1).await;
        };
        let (around, its_owner, around_it) = create(1).await;
        write(&its_owner, &*around_it).await;
        let (old, owner, writer) = create(2).await;
        write(&owner, &*writer).await;
        let placement = writer.placement().clone();
        drop(writer);
        // So many later ones that the old one is forgotten.
        let mut later = Vec::new();
        for log in 3..2 * CLOSED as u64 {
            let (_, owner, writer) = create(log).await;
            writer.append(vec![Bytes::from_static(b"later")]).unwrap();
            later.push((owner, writer));
        }
        for (owner, _) in &later {
            owner.wait_acked(1).await;
        }
        drop(later);
        for log in [0, u64::MAX] {
            create(log).await;
        }
        let volume = backend.state().current.clone().unwrap();
        assert!(!volume.state().records.contains_key(&old));
        for _ in 0..3 * KEPT {
            write(&its_owner, &*around_it).await;
        }
        let unneeded = volume.delete(around);
        assert!(unneeded.len() > 100, "{unneeded:?}");
        assert!(!unneeded.contains(&1), "{unneeded:?}");
        let reader = backend.open(old, &placement, Some(1)).await.unwrap();
        assert_eq!(reader.read(0, 100).await.unwrap(), ["entry"]);
    }
}
