//! What of a log nobody needs any more.
//!
//! Only closed segments are ever unneeded: an open one may still have to be fenced, wherever the truncation point is.

use crate::{
    ids::EntryId,
    record::{ClosedSegment, LogRecord},
};

/// The closed segments, ascending, whose data and records may go: truncated as a whole, closed for at least `keep_ms`,
/// and before every position that a registered reader holds. From the oldest one on, without a hole.
pub fn unneeded<'a>(
    log: &LogRecord,
    closed: impl IntoIterator<Item = &'a ClosedSegment>,
    holds: impl IntoIterator<Item = EntryId>,
    keep_ms: u64,
    now_ms: u64,
) -> Vec<u64> {
    let Some(truncated) = log.truncated else { return Vec::new() };
    let held = holds.into_iter().map(|hold| hold.segment).min().unwrap_or(u64::MAX);
    let goes = |closed: &&ClosedSegment| {
        closed.is_below(truncated)
            && closed.segment() < held
            && now_ms.saturating_sub(closed.closed_ms) >= keep_ms
            && log.open.iter().all(|open| open.segment != closed.segment())
    };
    closed.into_iter().take_while(goes).map(ClosedSegment::segment).collect()
}

/// Where the log's retention wants it truncated, if that is further than it is: whole closed segments, oldest first.
/// A segment whose bytes are not known, as it was fenced and is not sealed, counts with the bytes that an entry of the others
/// has on average.
#[must_use]
pub fn retention(log: &LogRecord, closed: &[ClosedSegment], now_ms: u64) -> Option<EntryId> {
    let settings = &log.settings;
    let known = || closed.iter().filter_map(|closed| Some((closed.known_bytes()?, closed.entries)));
    let (bytes, entries) = known().fold((0, 0), |(bytes, entries), known| (bytes + known.0, entries + known.1));
    let guess = |count: u64| u128::from(bytes) * u128::from(count) / u128::from(entries.max(1));
    let bytes_of = |closed: &ClosedSegment| {
        closed.known_bytes().unwrap_or_else(|| u64::try_from(guess(closed.entries)).unwrap_or(u64::MAX))
    };
    let mut kept = closed.iter().map(bytes_of).fold(0, u64::saturating_add);
    let mut goes = None;
    for segment in closed {
        let expired = settings.retention_ms.is_some_and(|ms| now_ms.saturating_sub(segment.closed_ms) > ms);
        let too_much = settings.retention_bytes.is_some_and(|bytes| kept > bytes);
        if !expired && !too_much {
            break;
        }
        kept = kept.saturating_sub(bytes_of(segment));
        goes = Some(EntryId { segment: segment.segment(), entry: segment.entries.saturating_sub(1) });
    }
    goes.filter(|up_to| !log.is_truncated(*up_to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{LogId, Placement, VolumeId},
        record::{LogSettings, OpenSegment},
    };

    fn open(segment: u64) -> OpenSegment {
        let placement = Placement::Volume { volume: VolumeId(1), from_batch: 0 };
        OpenSegment { segment, backend: "local".into(), placement, created_ms: 0 }
    }

    /// Segments of ten entries and a hundred bytes, closed at a thousand times their number.
    fn closed(segments: std::ops::RangeInclusive<u64>) -> Vec<ClosedSegment> {
        let one = |segment| ClosedSegment {
            opened: open(segment),
            entries: 10,
            bytes: Some(100),
            closed_ms: 1_000 * segment,
            sealed: None,
        };
        segments.map(one).collect()
    }

    fn log(truncated: Option<(u64, u64)>) -> LogRecord {
        let mut log = LogRecord::new(LogId(1), "a");
        log.truncated = truncated.map(|(segment, entry)| EntryId { segment, entry });
        log
    }

    #[test]
    fn what_is_not_truncated_is_needed() {
        let closed = closed(1..=5);
        assert!(unneeded(&log(None), &closed, [], 0, u64::MAX).is_empty());
        assert_eq!(unneeded(&log(Some((3, 8))), &closed, [], 0, u64::MAX), [1, 2]);
        assert_eq!(unneeded(&log(Some((3, 9))), &closed, [], 0, u64::MAX), [1, 2, 3]);
    }

    #[test]
    fn a_reader_holds_its_segment_and_all_after() {
        let (closed, log) = (closed(1..=5), log(Some((5, 9))));
        let hold = |segment, entry| EntryId { segment, entry };
        assert_eq!(unneeded(&log, &closed, [hold(4, 0), hold(3, 9)], 0, u64::MAX), [1, 2]);
        assert_eq!(unneeded(&log, &closed, [hold(9, 0)], 0, u64::MAX), [1, 2, 3, 4, 5]);
        assert!(unneeded(&log, &closed, [hold(1, 5)], 0, u64::MAX).is_empty());
    }

    #[test]
    fn what_was_closed_lately_is_kept_and_no_hole_is_made() {
        let (mut closed, log) = (closed(1..=5), log(Some((5, 9))));
        assert_eq!(unneeded(&log, &closed, [], 500, 3_500), [1, 2, 3]);
        closed[1].closed_ms = 9_000;
        assert_eq!(unneeded(&log, &closed, [], 500, 3_500), [1]);
    }

    #[test]
    fn a_segment_that_may_have_to_be_fenced_is_needed() {
        let mut log = log(Some((5, 9)));
        log.open = vec![open(2)];
        assert_eq!(unneeded(&log, &closed(1..=5), [], 0, u64::MAX), [1]);
    }

    #[test]
    fn retention_is_by_time_and_by_bytes_and_only_goes_forward() {
        let closed = closed(1..=5);
        let wanted = |retention_ms, retention_bytes, truncated| {
            let settings = LogSettings { retention_ms, retention_bytes, ..LogSettings::default() };
            retention(&LogRecord { settings, ..log(truncated) }, &closed, 6_000).map(|id| (id.segment, id.entry))
        };
        assert_eq!(wanted(None, None, None), None);
        assert_eq!(wanted(Some(3_000), None, None), Some((2, 9)));
        assert_eq!(wanted(None, Some(250), None), Some((3, 9)));
        assert_eq!(wanted(Some(3_000), Some(250), None), Some((3, 9)));
        assert_eq!(wanted(None, Some(500), None), None);
        assert_eq!(wanted(None, Some(250), Some((3, 9))), None);
        assert_eq!(wanted(None, Some(0), Some((1, 0))), Some((5, 9)));
    }

    #[test]
    fn a_segment_that_was_fenced_counts_by_its_entries() {
        let mut closed = closed(1..=5);
        (closed[3].bytes, closed[3].entries, closed[1].bytes) = (None, 30, None);
        let settings = LogSettings { retention_bytes: Some(500), ..LogSettings::default() };
        let wanted = |closed: &[ClosedSegment]| {
            retention(&LogRecord { settings: settings.clone(), ..log(None) }, closed, 6_000).map(|id| id.segment)
        };
        // A hundred bytes each, but three hundred in the fourth.
        assert_eq!(wanted(&closed), Some(2));
        closed.iter_mut().for_each(|closed| closed.bytes = None);
        assert_eq!(wanted(&closed), None, "of no segment anything is known");
    }
}
