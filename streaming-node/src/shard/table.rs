//! The vchannels of a WAL with their partitions and growing segments, as of the last message that went to the log. Pure.

use std::collections::{BTreeMap, BTreeSet};

use streaming_types::StreamingError;
use woodpecker_base::clock::Instant;

use super::segment::{Policy, Segment};
use crate::{recovery::state::State, settings::Segments as Limits};

/// See the module.
#[derive(Debug, Default)]
pub struct Table {
    vchannels: BTreeMap<String, Shard>,
    /// Whether a collection has lived here since the WAL was opened.
    managed: bool,
    /// Segments that take no more inserts, until their `Flush` has its place.
    sealed: Vec<Sealed>,
}

#[derive(Debug, Default)]
struct Shard {
    collection_id: i64,
    partitions: BTreeSet<i64>,
    /// At most one a partition takes inserts; others may be left by a former owner.
    growing: Vec<Segment>,
}

/// A segment that is to be flushed.
#[derive(Debug, Clone)]
pub struct Sealed {
    pub vchannel: String,
    pub segment: Segment,
    pub policy: Policy,
    /// Whether its `Flush` is on its way.
    pub flushing: bool,
}

impl Sealed {
    fn new(vchannel: &str, segment: Segment, policy: Policy) -> Self {
        Self { vchannel: vchannel.to_owned(), segment, policy, flushing: false }
    }
}

/// Where an insert goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Segment(i64),
    /// No segment has room: a new one is needed first.
    Needed,
}

/// An insert, as far as segments are concerned.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub partition_id: i64,
    pub bytes: u64,
    pub rows: u64,
}

impl Table {
    /// What a former owner left.
    pub fn recovered(state: &State, now: Instant, now_s: u64) -> Self {
        let mut table = Self { managed: !state.vchannels().is_empty(), ..Self::default() };
        for (name, vchannel) in state.vchannels() {
            table.create(name, vchannel.collection_id, vchannel.partitions.iter().copied());
        }
        for meta in state.segments().iter() {
            if let Some(shard) = table.vchannels.get_mut(&meta.vchannel) {
                shard.growing.push(Segment::recovered(meta, now, now_s));
            }
        }
        table
    }

    /// Whether inserts are checked and assigned.
    pub fn is_managed(&self) -> bool {
        self.managed
    }

    /// A collection. Creating what exists changes nothing.
    pub fn create(&mut self, vchannel: &str, collection_id: i64, partitions: impl IntoIterator<Item = i64>) {
        self.managed = true;
        self.vchannels.entry(vchannel.to_owned()).or_insert_with(|| Shard {
            collection_id,
            partitions: partitions.into_iter().collect(),
            growing: Vec::new(),
        });
    }

    /// Drops a collection; its segments go with it. Dropping what is not there changes nothing.
    pub fn drop_collection(&mut self, vchannel: &str) {
        self.vchannels.remove(vchannel);
        self.sealed.retain(|sealed| sealed.vchannel != vchannel);
    }

    pub fn create_partition(&mut self, vchannel: &str, partition_id: i64) {
        if let Some(shard) = self.vchannels.get_mut(vchannel) {
            shard.partitions.insert(partition_id);
        }
    }

    pub fn drop_partition(&mut self, vchannel: &str, partition_id: i64) {
        if let Some(shard) = self.vchannels.get_mut(vchannel) {
            shard.partitions.remove(&partition_id);
            shard.growing.retain(|segment| segment.partition_id != partition_id);
        }
        self.sealed.retain(|sealed| sealed.vchannel != vchannel || sealed.segment.partition_id != partition_id);
    }

    /// Whether a collection lives on a vchannel.
    ///
    /// # Errors
    /// UNRECOVERABLE: sending it again does not help.
    pub fn check(&self, vchannel: &str, collection_id: i64) -> Result<(), StreamingError> {
        match self.vchannels.get(vchannel) {
            Some(shard) if shard.collection_id == collection_id => Ok(()),
            _ => Err(StreamingError::unrecoverable(format!("collection {collection_id} not found on {vchannel}"))),
        }
    }

    /// Finds room for an insert and takes it. A segment in which it does not fit is sealed, unless it is empty.
    ///
    /// # Errors
    /// UNRECOVERABLE for an unknown collection or partition, and for what no segment can hold.
    pub fn assign(
        &mut self,
        vchannel: &str,
        collection_id: i64,
        load: Load,
        limits: &Limits,
        now: Instant,
    ) -> Result<Room, StreamingError> {
        self.check(vchannel, collection_id)?;
        let Some(shard) = self.vchannels.get_mut(vchannel) else { return Ok(Room::Needed) };
        if !shard.partitions.contains(&load.partition_id) {
            let cause =
                format!("partition {} of collection {collection_id} not found on {vchannel}", load.partition_id);
            return Err(StreamingError::unrecoverable(cause));
        }
        if load.bytes > limits.smallest_bytes() {
            let cause = format!("an insert of {} bytes is larger than a segment may be", load.bytes);
            return Err(StreamingError::unrecoverable(cause));
        }
        let mut index = 0;
        while let Some(segment) = shard.growing.get_mut(index) {
            if segment.partition_id != load.partition_id {
                index += 1;
            } else if segment.fits(load.bytes, load.rows) {
                segment.add(load.bytes, load.rows, now);
                return Ok(Room::Segment(segment.id));
            } else {
                let segment = shard.growing.remove(index);
                self.sealed.push(Sealed::new(vchannel, segment, Policy::Capacity));
            }
        }
        Ok(Room::Needed)
    }

    /// A segment that is about to be created.
    pub fn grow(&mut self, vchannel: &str, segment: Segment) {
        if let Some(shard) = self.vchannels.get_mut(vchannel) {
            shard.growing.push(segment);
        }
    }

    /// The `CreateSegment` of a segment is in the log, at this tick. The segment may be sealed by then.
    pub fn created(&mut self, vchannel: &str, id: i64, tick: u64) {
        let growing = self.vchannels.get_mut(vchannel).into_iter().flat_map(|shard| &mut shard.growing);
        let mut all = growing.chain(self.sealed.iter_mut().map(|sealed| &mut sealed.segment));
        if let Some(segment) = all.find(|segment| segment.id == id) {
            segment.created_tick = Some(tick);
        }
    }

    /// Ends the growing segments of a vchannel that were created before `tick`, and returns their ids. The message that
    /// asks for it says so to everyone; no `Flush` follows. Segments whose `Flush` has no place yet are among them.
    pub fn fence(&mut self, vchannel: &str, collection_id: i64, tick: u64) -> Vec<i64> {
        let before = |segment: &Segment| segment.created_tick.is_some_and(|created| created < tick);
        let mut fenced = Vec::new();
        if let Some(shard) = self.vchannels.get_mut(vchannel).filter(|shard| shard.collection_id == collection_id) {
            fenced.extend(shard.growing.extract_if(.., |segment| before(segment)).map(|segment| segment.id));
        }
        let here = |sealed: &mut Sealed| sealed.vchannel == vchannel && before(&sealed.segment);
        fenced.extend(self.sealed.extract_if(.., here).map(|sealed| sealed.segment.id));
        fenced
    }

    /// The `Flush` of a segment is about to get its place; `false` if another message has ended the segment.
    pub fn flush(&mut self, id: i64) -> bool {
        self.sealed.extract_if(.., |sealed| sealed.segment.id == id).next().is_some()
    }

    /// Seals what has become too old or idle.
    pub fn seal_due(&mut self, limits: &Limits, now: Instant) {
        for (name, shard) in &mut self.vchannels {
            let mut index = 0;
            while let Some(segment) = shard.growing.get(index) {
                match segment.is_due(limits, now) {
                    Some(policy) => {
                        let segment = shard.growing.remove(index);
                        self.sealed.push(Sealed::new(name, segment, policy));
                    }
                    None => index += 1,
                }
            }
        }
    }

    /// Seals one segment, if it grows here.
    pub fn seal(&mut self, id: i64, policy: Policy) {
        for (name, shard) in &mut self.vchannels {
            if let Some(index) = shard.growing.iter().position(|segment| segment.id == id) {
                let segment = shard.growing.remove(index);
                self.sealed.push(Sealed::new(name, segment, policy));
                return;
            }
        }
    }

    /// What grows here: ids and bytes.
    pub fn growing(&self) -> impl Iterator<Item = (i64, u64)> {
        let segments = self.vchannels.values().flat_map(|shard| &shard.growing);
        segments.map(|segment| (segment.id, segment.bytes))
    }

    /// The sealed segments, for whoever flushes them.
    pub fn sealed(&mut self) -> &mut Vec<Sealed> {
        &mut self.sealed
    }
}

#[cfg(test)]
mod tests {
    use streaming_proto::messages::CreateSegmentMessageHeader;
    use woodpecker_base::clock::Clock;

    use super::*;

    const V: &str = "p_1v0";

    #[tokio::test]
    async fn segment_that_is_sealed_before_the_log_has_it_is_fenced_like_others() {
        let mut table = Table::default();
        table.create(V, 1, [10]);
        let header = CreateSegmentMessageHeader { segment_id: 7, ..Default::default() };
        table.grow(V, Segment::created(&header, Clock::system().now()));
        table.seal(7, Policy::Capacity);
        assert_eq!(table.fence(V, 1, 10), [] as [i64; 0], "nobody knows its tick yet");
        table.created(V, 7, 5);
        assert_eq!(table.fence(V, 1, 5), [] as [i64; 0], "it is not older than that");
        assert_eq!(table.fence(V, 1, 10), [7]);
    }
}
