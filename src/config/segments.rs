//! When segments that grow have grown enough: keys of Milvus' data coordinator and flush, in the node's own terms.

use std::time::Duration;

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use streaming_node::Segments;

use super::{
    rate_limit::{percent, share},
    units,
};

/// What of a data coordinator's keys concerns us.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct DataCoord {
    /// One growing segment.
    pub(crate) segment: Segment,
}

/// One growing segment.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Segment {
    /// Bytes of one segment.
    #[schemars(with = "units::SizeText")]
    pub(crate) max_size: ByteSize,
    /// Share of that at which a segment is sealed.
    pub(crate) seal_proportion: f64,
    /// How much smaller a segment may be made at random, so that not all are sealed at a time.
    pub(crate) seal_proportion_jitter: f64,
    /// A segment is sealed at this age.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) max_life: Duration,
    /// A segment to which nothing was written for so long is sealed, if there is enough in it.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "units::DurationText")]
    pub(crate) max_idle_time: Duration,
    /// How much is enough.
    #[schemars(with = "units::SizeText")]
    pub(crate) min_size_from_idle_to_sealed: ByteSize,
    /// The form in which those who consume segments store them.
    pub(crate) storage_version: i64,
}

impl Default for Segment {
    fn default() -> Self {
        let node = Segments::default();
        Self {
            max_size: ByteSize(node.max_bytes),
            seal_proportion: share(node.seal_percent),
            seal_proportion_jitter: share(node.jitter_percent),
            max_life: node.lifetime,
            max_idle_time: node.idle,
            min_size_from_idle_to_sealed: ByteSize(node.idle_bytes),
            storage_version: node.storage_version,
        }
    }
}

/// All segments that grow on a node, as shares of its memory.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Flush {
    /// The largest segments are sealed when so much of the memory is in use.
    pub(crate) memory_threshold: f64,
    /// They are sealed too when all that grow take more than this.
    pub(crate) growing_segment_bytes_hwm_threshold: f64,
    /// Sealing stops when those that grow take no more than this.
    pub(crate) growing_segment_bytes_lwm_threshold: f64,
}

impl Default for Flush {
    fn default() -> Self {
        let node = Segments::default();
        Self {
            memory_threshold: share(node.memory_percent),
            growing_segment_bytes_hwm_threshold: share(node.growing_high_percent),
            growing_segment_bytes_lwm_threshold: share(node.growing_low_percent),
        }
    }
}

/// In the node's terms.
pub(crate) fn segments(segment: &Segment, flush: &Flush) -> Segments {
    Segments {
        max_bytes: segment.max_size.as_u64(),
        seal_percent: percent(segment.seal_proportion),
        jitter_percent: percent(segment.seal_proportion_jitter),
        lifetime: segment.max_life,
        idle: segment.max_idle_time,
        idle_bytes: segment.min_size_from_idle_to_sealed.as_u64(),
        growing_high_percent: percent(flush.growing_segment_bytes_hwm_threshold),
        growing_low_percent: percent(flush.growing_segment_bytes_lwm_threshold),
        memory_percent: percent(flush.memory_threshold),
        storage_version: segment.storage_version,
    }
}
