//! What one stream of replicated messages lacks. Pure.
//!
//! Whoever ships sends one message after the other without waiting for answers. What a node refuses before it comes to the
//! WAL, the WAL does not miss: it would take those behind it, and count the refused one as taken.

use streaming_proto::messages::ReplicateHeader;
use streaming_types::{MessageId, StreamingError};

/// The first message of a source that was refused, if one was.
#[derive(Debug, Default)]
pub struct Gap(Option<Place>);

/// Places of one source are in its order: the parts of a transaction have the tick of its commit.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    cluster: String,
    tick: u64,
    id: MessageId,
}

impl Place {
    fn of(header: &ReplicateHeader) -> Option<Self> {
        let id = MessageId::from_proto(header.message_id.as_ref()).ok()?;
        Some(Self { cluster: header.cluster_id.clone(), tick: header.time_tick, id })
    }
}

impl Gap {
    /// A message was refused.
    pub fn refused(&mut self, header: &ReplicateHeader) {
        let Some(place) = Place::of(header) else { return };
        if self.0.as_ref().is_none_or(|first| first.cluster != place.cluster || place < *first) {
            self.0 = Some(place);
        }
    }

    /// Lets a message pass that is not behind the refused one; when that one comes again, there is no gap any more.
    ///
    /// # Errors
    /// INNER: the same message may pass later.
    pub fn pass(&mut self, header: &ReplicateHeader) -> Result<(), StreamingError> {
        let Some(first) = &self.0 else { return Ok(()) };
        let Some(place) = Place::of(header) else { return Ok(()) };
        if first.cluster == place.cluster {
            if place > *first {
                return Err(behind_a_gap());
            }
            if place == *first {
                self.0 = None;
            }
        }
        Ok(())
    }
}

/// The answer to a message behind one that was refused.
pub fn behind_a_gap() -> StreamingError {
    StreamingError::inner("a replicated message before this one was refused")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::samples::header;

    #[test]
    fn nothing_passes_what_was_refused_and_repeats_do() {
        let mut gap = Gap::default();
        assert!(gap.pass(&header(9, 90)).is_ok());
        gap.refused(&header(3, 30));
        gap.refused(&header(4, 40));
        assert!(gap.pass(&header(2, 20)).is_ok(), "who ships began before it");
        assert!(gap.pass(&header(4, 40)).is_err() && gap.pass(&header(5, 30)).is_err());
        assert!(gap.pass(&ReplicateHeader { cluster_id: "other".to_owned(), ..header(4, 40) }).is_ok());
        assert!(gap.pass(&header(3, 30)).is_ok() && gap.pass(&header(4, 40)).is_ok(), "it came");
        gap.refused(&header(8, 80));
        gap.refused(&header(7, 70));
        assert!(gap.pass(&header(8, 80)).is_err(), "the first one counts");
    }
}
