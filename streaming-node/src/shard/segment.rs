//! One growing segment, and when it has grown enough. Pure.

use std::time::Duration;

use streaming_proto::{messages::CreateSegmentMessageHeader, streaming::SegmentAssignmentMeta};
use woodpecker_base::clock::Instant;

use crate::settings::Segments as Limits;

/// See the module.
#[derive(Debug, Clone)]
pub struct Segment {
    pub id: i64,
    pub collection_id: i64,
    pub partition_id: i64,
    /// Tick of its `CreateSegment`; `None` while that is on its way.
    pub created_tick: Option<u64>,
    pub max_bytes: u64,
    /// 0 is no limit.
    pub max_rows: u64,
    pub bytes: u64,
    pub rows: u64,
    pub created: Instant,
    pub written: Instant,
}

/// Why a segment takes no more inserts; the name under which it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Capacity,
    Lifetime,
    Idle,
    Growth,
    Memory,
}

impl Policy {
    pub fn name(self) -> &'static str {
        match self {
            Self::Capacity => "capacity",
            Self::Lifetime => "lifetime",
            Self::Idle => "idle",
            Self::Growth => "growing_bytes_hwm",
            Self::Memory => "node_memory",
        }
    }
}

impl Segment {
    /// The segment that a `CreateSegment` with this header makes.
    pub fn created(header: &CreateSegmentMessageHeader, now: Instant) -> Self {
        Self {
            id: header.segment_id,
            collection_id: header.collection_id,
            partition_id: header.partition_id,
            created_tick: None,
            max_bytes: header.max_segment_size,
            max_rows: header.max_rows,
            bytes: 0,
            rows: 0,
            created: now,
            written: now,
        }
    }

    /// A segment that a former owner left. `now_s` is the same moment as `now`, in seconds since the Unix epoch.
    pub fn recovered(meta: &SegmentAssignmentMeta, now: Instant, now_s: u64) -> Self {
        let stat = meta.stat.unwrap_or_default();
        let ago = |seconds: i64| {
            let age = now_s.saturating_sub(u64::try_from(seconds).unwrap_or(0));
            now.checked_sub(Duration::from_secs(age)).unwrap_or(now)
        };
        Self {
            id: meta.segment_id,
            collection_id: meta.collection_id,
            partition_id: meta.partition_id,
            created_tick: Some(stat.create_segment_time_tick),
            max_bytes: stat.max_binary_size,
            max_rows: stat.max_rows,
            bytes: stat.modified_binary_size,
            rows: stat.modified_rows,
            created: ago(stat.create_timestamp),
            written: ago(stat.last_modified_timestamp),
        }
    }

    /// Whether so much more goes in. An empty segment takes what is not larger than a segment may be.
    pub fn fits(&self, bytes: u64, rows: u64) -> bool {
        let rows_fit = self.max_rows == 0 || self.rows.saturating_add(rows) <= self.max_rows;
        self.bytes.saturating_add(bytes) <= self.max_bytes && rows_fit
    }

    pub fn add(&mut self, bytes: u64, rows: u64, now: Instant) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.rows = self.rows.saturating_add(rows);
        self.written = now;
    }

    /// Why it is to be sealed now, if time alone says so.
    pub fn is_due(&self, limits: &Limits, now: Instant) -> Option<Policy> {
        let idle = now.duration_since(self.written) > limits.idle;
        if now.duration_since(self.created) > limits.lifetime {
            Some(Policy::Lifetime)
        } else if idle && self.bytes > limits.idle_bytes {
            Some(Policy::Idle)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use woodpecker_base::clock::Clock;

    use super::*;

    fn segment(now: Instant) -> Segment {
        let header = CreateSegmentMessageHeader { max_segment_size: 100, max_rows: 10, ..Default::default() };
        Segment::created(&header, now)
    }

    #[tokio::test]
    async fn bytes_and_rows_bound_a_segment() {
        let now = Clock::system().now();
        let mut segment = segment(now);
        assert!(segment.fits(100, 10) && !segment.fits(101, 1) && !segment.fits(1, 11));
        segment.add(60, 9, now);
        assert!(segment.fits(40, 1) && !segment.fits(41, 1) && !segment.fits(1, 2));
        segment.max_rows = 0;
        assert!(segment.fits(40, 1000), "rows are not limited");
    }

    #[tokio::test]
    async fn age_and_idleness_seal() {
        let limits = Limits::default();
        let now = Clock::system().now();
        let mut segment = segment(now);
        segment.max_bytes = u64::MAX;
        assert_eq!(segment.is_due(&limits, now + limits.lifetime), None);
        assert_eq!(segment.is_due(&limits, now + limits.lifetime + Duration::from_secs(1)), Some(Policy::Lifetime));
        let later = now + limits.idle + Duration::from_secs(1);
        assert_eq!(segment.is_due(&limits, later), None, "little is in it");
        segment.add(limits.idle_bytes + 1, 1, now);
        assert_eq!(segment.is_due(&limits, later), Some(Policy::Idle));
        segment.add(1, 1, later);
        assert_eq!(segment.is_due(&limits, later), None, "written just now");
    }

    #[tokio::test]
    async fn recovered_segment_is_as_old_as_it_was() {
        let now = Clock::system().now() + Duration::from_secs(1000);
        let stat = streaming_proto::streaming::SegmentAssignmentStat {
            create_timestamp: 100,
            last_modified_timestamp: 150,
            modified_rows: 3,
            modified_binary_size: 7,
            ..Default::default()
        };
        let meta = SegmentAssignmentMeta { stat: Some(stat), ..Default::default() };
        let segment = Segment::recovered(&meta, now, 160);
        assert_eq!(now - segment.created, Duration::from_secs(60));
        assert_eq!(now - segment.written, Duration::from_secs(10));
        assert_eq!((segment.rows, segment.bytes), (3, 7));
    }
}
