//! The growing segments of a WAL as its messages made them.

use std::collections::{BTreeMap, BTreeSet};

use streaming_proto::{
    messages::{
        AlterCollectionMessageHeader, CreateSegmentMessageHeader, DropPartitionMessageHeader, FlushMessageHeader,
        InsertMessageHeader, ManualFlushMessageHeader, SchemaChangeMessageHeader,
    },
    streaming::{SegmentAssignmentMeta, SegmentAssignmentStat, SegmentAssignmentState},
};
use streaming_types::{MessageType, TimeTick};

use super::{catalog::Change, seen::Seen};

/// See the module.
#[derive(Debug, Default)]
pub struct Segments {
    growing: BTreeMap<i64, SegmentAssignmentMeta>,
    changed: BTreeSet<i64>,
}

impl Segments {
    pub fn new(growing: BTreeMap<i64, SegmentAssignmentMeta>) -> Self {
        Self { growing, changed: BTreeSet::new() }
    }

    pub fn iter(&self) -> impl Iterator<Item = &SegmentAssignmentMeta> {
        self.growing.values()
    }

    /// A segment that is sealed or of no more use.
    pub fn remove(&mut self, id: i64) {
        if self.growing.remove(&id).is_some() {
            self.changed.insert(id);
        }
    }

    pub fn remove_vchannel(&mut self, vchannel: &str) {
        self.remove_where(|segment| segment.vchannel == vchannel);
    }

    fn remove_where(&mut self, gone: impl Fn(&SegmentAssignmentMeta) -> bool) {
        let gone: Vec<i64> = self.growing.values().filter(|s| gone(s)).map(|s| s.segment_id).collect();
        gone.into_iter().for_each(|id| self.remove(id));
    }

    /// Takes a message of any kind that belongs to a vchannel.
    pub fn apply(&mut self, vchannel: &str, seen: &Seen<'_>) {
        let flushed = match seen.kind {
            MessageType::Insert => return self.insert(seen),
            MessageType::CreateSegment => return self.create(vchannel, seen),
            MessageType::DropPartition => {
                let Some(header) = seen.header::<DropPartitionMessageHeader>() else { return };
                let partition = header.partition_id;
                return self.remove_where(|segment| {
                    let older = seen.tick > segment.checkpoint_time_tick;
                    older && segment.vchannel == vchannel && segment.partition_id == partition
                });
            }
            MessageType::Flush => seen.header::<FlushMessageHeader>().map(|header| vec![header.segment_id]),
            MessageType::ManualFlush => seen.header::<ManualFlushMessageHeader>().map(|header| header.segment_ids),
            MessageType::SchemaChange => {
                seen.header::<SchemaChangeMessageHeader>().map(|header| header.flushed_segment_ids)
            }
            MessageType::AlterCollection => {
                seen.header::<AlterCollectionMessageHeader>().map(|header| header.flushed_segment_ids)
            }
            _ => return,
        };
        for id in flushed.unwrap_or_default() {
            if self.growing.get(&id).is_some_and(|segment| seen.tick > segment.checkpoint_time_tick) {
                self.remove(id);
            }
        }
    }

    fn create(&mut self, vchannel: &str, seen: &Seen<'_>) {
        let Some(header) = seen.header::<CreateSegmentMessageHeader>() else { return };
        if self.growing.contains_key(&header.segment_id) {
            return;
        }
        let created = seconds(seen.tick);
        let stat = SegmentAssignmentStat {
            max_binary_size: header.max_segment_size,
            max_rows: header.max_rows,
            create_timestamp: created,
            last_modified_timestamp: created,
            create_segment_time_tick: seen.tick,
            level: header.level,
            ..SegmentAssignmentStat::default()
        };
        let segment = SegmentAssignmentMeta {
            collection_id: header.collection_id,
            partition_id: header.partition_id,
            segment_id: header.segment_id,
            vchannel: vchannel.to_owned(),
            state: SegmentAssignmentState::Growing.into(),
            stat: Some(stat),
            storage_version: header.storage_version,
            checkpoint_time_tick: seen.tick,
        };
        self.growing.insert(header.segment_id, segment);
        self.changed.insert(header.segment_id);
    }

    fn insert(&mut self, seen: &Seen<'_>) {
        if self.growing.is_empty() {
            return;
        }
        let Some(header) = seen.header::<InsertMessageHeader>() else { return };
        for partition in header.partitions {
            let id = partition.segment_assignment.map_or(0, |assigned| assigned.segment_id);
            let Some(segment) = self.growing.get_mut(&id) else { continue };
            if seen.tick <= segment.checkpoint_time_tick {
                continue;
            }
            segment.checkpoint_time_tick = seen.tick;
            let stat = segment.stat.get_or_insert_default();
            stat.modified_rows = stat.modified_rows.saturating_add(partition.rows);
            stat.modified_binary_size = stat.modified_binary_size.saturating_add(partition.binary_size);
            stat.last_modified_timestamp = seconds(seen.tick);
            self.changed.insert(id);
        }
    }

    /// What has changed since the last call.
    pub fn take_changes(&mut self) -> Vec<Change> {
        let changed = std::mem::take(&mut self.changed).into_iter();
        changed
            .map(|id| self.growing.get(&id).map_or(Change::SegmentGone(id), |s| Change::Segment(s.clone())))
            .collect()
    }
}

fn seconds(tick: u64) -> i64 {
    i64::try_from(TimeTick(tick).physical_ms() / 1000).unwrap_or(i64::MAX)
}
