//! What the writer of a segment knows of its replicas.

/// Entries issued, confirmed by each replica, and acked: one segment's, in order.
///
/// An entry is acked as soon as `ack` replicas have it and all before it, whichever they are: the others delay nobody.
/// The first replica that fails ends the segment, once, because from then on fewer replicas than promised would have
/// what is appended; its writer goes on in another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Appending {
    ack: usize,
    /// By replica: every entry below is durable there.
    durable: Vec<u64>,
    issued: u64,
    acked: u64,
    ended: bool,
}

impl Appending {
    /// An empty segment on so many replicas, of which `ack` make an entry durable.
    #[must_use]
    pub fn new(replicas: usize, ack: usize) -> Self {
        Self { ack, durable: vec![0; replicas], issued: 0, acked: 0, ended: false }
    }

    /// Every entry below was handed to the replicas.
    #[must_use]
    pub fn issued(&self) -> u64 {
        self.issued
    }

    /// Every entry below is acked.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// Whether the segment takes and acks nothing more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Gives `count` entries their numbers; the first, or `None` after the end.
    pub fn issue(&mut self, count: u64) -> Option<u64> {
        if self.ended {
            return None;
        }
        let first = self.issued;
        self.issued = first.checked_add(count)?;
        Some(first)
    }

    /// A replica said that it has every entry below `durable`. The new count of acked entries, if it grew.
    pub fn on_durable(&mut self, replica: usize, durable: u64) -> Option<u64> {
        let said = self.durable.get_mut(replica)?;
        // Nobody can have what was never sent.
        *said = (*said).max(durable.min(self.issued));
        if self.ended {
            return None;
        }
        let have = |count: u64| self.durable.iter().filter(|durable| **durable >= count).count();
        let acked = self.durable.iter().copied().filter(|count| have(*count) >= self.ack).max()?;
        if acked <= self.acked {
            return None;
        }
        self.acked = acked;
        Some(acked)
    }

    /// The segment is to take and ack nothing more. Whether this is the first time.
    pub fn end(&mut self) -> bool {
        !std::mem::replace(&mut self.ended, true)
    }

    /// How far behind what is acked a replica is, in entries.
    #[must_use]
    pub fn behind(&self, replica: usize) -> u64 {
        self.durable.get(replica).map_or(0, |durable| self.acked.saturating_sub(*durable))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_slowest_replica_delays_no_ack() {
        let mut appending = Appending::new(3, 2);
        assert_eq!(appending.issue(5), Some(0));
        assert_eq!(appending.on_durable(0, 5), None);
        assert_eq!(appending.on_durable(1, 3), Some(3));
        assert_eq!(appending.on_durable(1, 5), Some(5));
        assert_eq!((appending.behind(2), appending.behind(0)), (5, 0));
        assert_eq!(appending.on_durable(2, 5), None);
        assert_eq!(appending.issue(1), Some(5));
        assert_eq!(appending.on_durable(2, 6), None);
        assert_eq!(appending.on_durable(0, 6), Some(6));
    }

    #[test]
    fn acks_of_five_replicas_wait_for_three() {
        let mut appending = Appending::new(5, 3);
        appending.issue(9);
        assert_eq!([(4, 9), (2, 7)].map(|(replica, durable)| appending.on_durable(replica, durable)), [None, None]);
        assert_eq!(appending.on_durable(0, 4), Some(4));
        assert_eq!(appending.on_durable(1, 8), Some(7));
    }

    #[test]
    fn a_segment_ends_once_however_many_replicas_fail() {
        let mut appending = Appending::new(3, 2);
        appending.issue(2);
        appending.on_durable(0, 2);
        assert!(appending.end());
        assert!(!appending.end());
        assert_eq!(appending.issue(1), None);
        assert_eq!(appending.on_durable(1, 2), None, "acked after the end");
        assert_eq!(appending.acked(), 0);
    }

    #[test]
    fn what_was_never_sent_is_not_acked() {
        let mut appending = Appending::new(2, 2);
        appending.issue(1);
        assert_eq!(appending.on_durable(0, u64::MAX), None);
        assert_eq!(appending.on_durable(7, 1), None, "no such replica");
        assert_eq!(appending.on_durable(1, u64::MAX), Some(1));
    }

    proptest! {
        #[test]
        fn acked_is_what_ack_replicas_have_and_only_grows(
            events in prop::collection::vec((0_usize..5, 0_u64..50), 1..100),
        ) {
            let mut appending = Appending::new(5, 3);
            appending.issue(40);
            let mut said = [0; 5];
            let mut last = 0;
            for (replica, durable) in events {
                let now = appending.on_durable(replica, durable);
                said[replica] = said[replica].max(durable.min(40));
                let have = |count: u64| said.iter().filter(|said| **said >= count).count();
                let acked = appending.acked();
                prop_assert!(have(acked) >= 3 && (acked == 40 || have(acked + 1) < 3));
                prop_assert_eq!(now, (acked > last).then_some(acked));
                last = acked;
            }
        }
    }
}
