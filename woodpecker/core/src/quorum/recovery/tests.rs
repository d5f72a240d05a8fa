use proptest::prelude::*;

use super::*;
use crate::ids::StoreId;

fn set(replicas: usize, ack: usize) -> ReplicaSet {
    ReplicaSet::new((0..replicas).map(|id| StoreId(id as u128)).collect(), ack).unwrap()
}

fn held(durable: u64) -> Held {
    Held { durable, committed: 0, end: None }
}

/// The end that these counts lead to; `None` is a replica that does not answer.
fn end(ack: usize, counts: &[Option<u64>]) -> Result<u64, Undecided> {
    let mut recovery = Recovery::new(&set(counts.len(), ack), Epoch(2), None);
    for (replica, count) in counts.iter().enumerate() {
        if let Some(count) = count {
            recovery.on_fenced(replica, held(*count));
        }
    }
    assert_eq!(recovery.is_answered(), recovery.decide().is_ok());
    recovery.decide()
}

fn rotations(counts: &[Option<u64>]) -> impl Iterator<Item = Vec<Option<u64>>> {
    (0..counts.len()).map(|by| {
        let mut rotated = counts.to_vec();
        rotated.rotate_left(by);
        rotated
    })
}

#[test]
fn the_silent_replica_may_hold_what_the_shorter_answer_lacks() {
    for counts in rotations(&[Some(4), Some(6), None]) {
        assert_eq!(end(2, &counts), Ok(6), "{counts:?}");
    }
    for counts in rotations(&[Some(4), Some(5), Some(6), None, None]) {
        assert_eq!(end(3, &counts), Ok(6), "{counts:?}");
    }
    for counts in rotations(&[Some(4), Some(5), Some(6), Some(6), None]) {
        assert_eq!(end(3, &counts), Ok(6), "{counts:?}");
    }
}

#[test]
fn with_all_answers_the_end_is_what_ack_replicas_hold() {
    for counts in rotations(&[Some(4), Some(6), Some(9)]) {
        assert_eq!(end(2, &counts), Ok(6), "{counts:?}");
    }
    for counts in rotations(&[Some(1), Some(2), Some(3), Some(4), Some(5)]) {
        assert_eq!(end(3, &counts), Ok(3), "{counts:?}");
    }
    assert_eq!(end(2, &[Some(3), Some(7)]), Ok(3));
    assert_eq!(end(2, &[None, Some(7)]), Ok(7), "a set of two: what was acked is on both");
}

#[test]
fn an_entry_that_one_replica_of_three_holds_does_not_wedge_the_log() {
    for counts in rotations(&[Some(1), Some(0), Some(0)]) {
        assert_eq!(end(2, &counts), Ok(0), "{counts:?}");
    }
    // With one silent it may be acked; and then it is copied.
    for counts in rotations(&[Some(1), Some(0), None]) {
        let mut recovery = Recovery::new(&set(3, 2), Epoch(2), None);
        for (replica, count) in counts.iter().enumerate() {
            if let Some(count) = count {
                recovery.on_fenced(replica, held(*count));
            }
        }
        assert_eq!(recovery.decide(), Ok(1));
        assert_eq!(recovery.closing(), None, "closed while one replica alone holds the last entry");
        let empty = counts.iter().position(|count| *count == Some(0)).unwrap();
        assert_eq!(recovery.missing(), [Missing { replica: empty, from: 0, end: 1 }]);
        recovery.on_copied(empty, 1);
        assert_eq!(recovery.closing().map(|(replicas, end)| (replicas.len(), end)), Some((2, 1)));
    }
}

#[test]
fn a_set_in_which_all_must_ack_is_closed_without_one_that_is_gone_for_good() {
    let answered = |replicas, ack, counts: &[Option<u64>]| {
        let mut recovery = Recovery::new(&set(replicas, ack), Epoch(2), None);
        for (replica, count) in counts.iter().enumerate() {
            if let Some(count) = count {
                recovery.on_fenced(replica, held(*count));
            }
        }
        recovery.decide().unwrap();
        recovery
    };
    let left = answered(2, 2, &[None, Some(7)]);
    assert_eq!(left.closing(), None, "there is nobody to copy to");
    assert_eq!(left.end_without(|_| false), None, "it may come back");
    assert_eq!(left.end_without(|replica| replica == 0), Some(7));
    let both = answered(2, 2, &[Some(3), Some(7)]);
    assert_eq!(both.end_without(|_| true), None, "nobody is gone: both are told");
    // Of three, one that is gone may have acked with one that is not heard of.
    assert_eq!(answered(3, 2, &[None, Some(4), Some(6)]).end_without(|_| true), None);
}

#[test]
fn too_few_answers_wait() {
    let waits = |ack, counts: &[Option<u64>]| {
        let needed = counts.len() - ack + 1;
        let answered = counts.iter().flatten().count();
        assert_eq!(end(ack, counts), Err(Undecided::TooFew { answered, needed, replicas: counts.len() }));
    };
    waits(2, &[Some(4), None, None]);
    waits(3, &[Some(4), Some(4), None, None, None]);
    waits(3, &[None, None, None, None, None]);
}

#[test]
fn an_answer_that_comes_twice_or_late_changes_nothing() {
    let mut recovery = Recovery::new(&set(3, 2), Epoch(2), None);
    recovery.on_fenced(0, held(4));
    recovery.on_fenced(0, held(4));
    assert!(!recovery.is_answered());
    recovery.on_fenced(1, held(6));
    assert_eq!(recovery.decide(), Ok(6));
    recovery.on_fenced(2, held(9));
    assert_eq!(recovery.decide(), Ok(6));
    assert_eq!(recovery.missing(), [Missing { replica: 0, from: 4, end: 6 }]);
}

#[test]
fn the_same_taker_comes_to_the_same_end_when_others_answer() {
    let mut again = Recovery::new(&set(3, 2), Epoch(2), Some(6));
    again.on_fenced(1, held(6));
    again.on_fenced(2, held(9));
    assert_eq!(again.decide(), Ok(6));
}

#[test]
fn the_holder_of_the_last_entry_may_die_after_the_close() {
    let mut recovery = Recovery::new(&set(3, 2), Epoch(2), None);
    recovery.on_fenced(0, held(4));
    recovery.on_fenced(1, held(6));
    assert_eq!(recovery.decide(), Ok(6));
    recovery.on_copied(0, 6);
    let told = Told { epoch: Epoch(2), end: 6 };
    recovery.on_closed(0, told);
    assert_eq!(recovery.closed(), None, "closed by one replica");
    recovery.on_closed(1, told);
    assert_eq!(recovery.closed(), Some(6));
    // Replica 1 is dead, and the one that was silent comes back with an entry that nobody acked.
    let mut next = Recovery::new(&set(3, 2), Epoch(3), None);
    next.on_fenced(0, Held { durable: 6, committed: 0, end: Some(told) });
    next.on_fenced(2, held(7));
    assert_eq!(next.decide(), Ok(6));
}

#[test]
fn the_end_of_the_latest_taker_is_taken_over() {
    let mut recovery = Recovery::new(&set(3, 2), Epoch(5), None);
    recovery.on_fenced(0, Held { durable: 8, committed: 0, end: Some(Told { epoch: Epoch(4), end: 8 }) });
    recovery.on_fenced(1, Held { durable: 9, committed: 0, end: Some(Told { epoch: Epoch(3), end: 9 }) });
    assert_eq!(recovery.decide(), Ok(8));
}

#[test]
fn acked_entries_that_nobody_brings_are_missed_and_not_cut_off() {
    let mut recovery = Recovery::new(&set(3, 2), Epoch(2), None);
    recovery.on_fenced(0, Held { durable: 4, committed: 6, end: None });
    recovery.on_fenced(1, held(4));
    assert_eq!(recovery.decide(), Err(Undecided::Lost { acked: 6, held: 4 }));
    // The third has them.
    recovery.on_fenced(2, held(6));
    assert_eq!(recovery.decide(), Ok(6));
}

#[test]
fn copies_go_to_the_fullest_first_and_come_from_those_that_have_more() {
    let mut recovery = Recovery::new(&set(5, 3), Epoch(2), None);
    for (replica, count) in [(0, 1), (2, 7), (4, 3)] {
        recovery.on_fenced(replica, held(count));
    }
    assert_eq!(recovery.decide(), Ok(7));
    let order: Vec<usize> = recovery.missing().iter().map(|missing| missing.replica).collect();
    assert_eq!(order, [4, 0]);
    assert_eq!(recovery.holders(1).collect::<Vec<_>>(), [2, 4]);
    recovery.on_copied(4, 7);
    assert_eq!(recovery.holders(6).collect::<Vec<_>>(), [2, 4]);
    assert_eq!(recovery.closing(), None);
    recovery.on_copied(0, 7);
    assert_eq!(recovery.closing(), Some((vec![0, 2, 4], 7)));
}

proptest! {
    /// Whatever is acked, whoever holds it, whoever answers: the end is not below.
    #[test]
    fn the_end_is_never_below_what_was_acked(
        (five, counts) in any::<bool>().prop_flat_map(|five| {
            let replicas = if five { 5 } else { 3 };
            (Just(five), prop::collection::vec((0_u64..20, any::<bool>()), replicas))
        }),
    ) {
        let ack = if five { 3 } else { 2 };
        let mut descending: Vec<u64> = counts.iter().map(|(count, _)| *count).collect();
        descending.sort_unstable_by(|a, b| b.cmp(a));
        let answers: Vec<Option<u64>> = counts.iter().map(|(count, answers)| answers.then_some(*count)).collect();
        let answered = answers.iter().flatten().count();
        match end(ack, &answers) {
            Ok(end) => prop_assert!(end >= descending[ack - 1], "{answers:?} of {counts:?} end at {end}"),
            Err(_) => prop_assert!(answered < counts.len() - ack + 1),
        }
    }
}
