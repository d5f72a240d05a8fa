use bytes::Bytes;
use futures::future::join_all;

use super::Subject;
use crate::metadata::{Compare, LeaseId, MetadataError, Txn, TxnOutcome};

pub(super) async fn a_read_sees_what_was_acknowledged(subject: &Subject, prefix: &str) {
    let key = format!("{prefix}key");
    assert_eq!(subject.get(&key).await, None);
    let mut last = 0;
    let mut created = 0;
    for value in [&b"\x00\xff binary"[..], b"", b"third"] {
        let revision = subject.committed(Txn::new().put(&key, value)).await;
        assert!(revision > last, "revisions only grow");
        last = revision;
        created = if created == 0 { revision } else { created };
        let item = subject.get(&key).await.expect("the key just written");
        assert_eq!((item.value.as_ref(), item.create_revision, item.mod_revision), (value, created, revision));
        assert_eq!((item.key.as_str(), item.lease), (key.as_str(), None));
    }
    subject.committed(Txn::new().delete(&key)).await;
    assert_eq!(subject.get(&key).await, None);
    let again = subject.committed(Txn::new().put(&key, "again")).await;
    assert_eq!(subject.get(&key).await.expect("the key again").create_revision, again);
}

pub(super) async fn a_list_is_ordered_complete_and_keeps_to_its_prefix(subject: &Subject, prefix: &str) {
    // More than any page, and neighbours of the prefix on both sides.
    let names: Vec<_> = (0..1_300).map(|number| format!("{prefix}in/{number:05}")).collect();
    for chunk in names.chunks(Txn::MAX_OPERATIONS) {
        subject.committed(chunk.iter().fold(Txn::new(), |txn, name| txn.put(name, name.clone()))).await;
    }
    let neighbours = Txn::new().put(format!("{prefix}in"), "").put(format!("{prefix}in0"), "");
    let revision = subject.committed(neighbours).await;
    let snapshot = subject.store.list(&format!("{prefix}in/")).await.expect("a list");
    assert_eq!(snapshot.revision, revision);
    assert!(snapshot.items.iter().map(|item| &item.key).eq(&names), "a list that is not what was written");
    assert!(snapshot.items.iter().all(|item| item.value == item.key.as_bytes()));
    assert_eq!(subject.keys(prefix).await.len(), names.len() + 2);
    assert!(subject.keys("").await.len() >= names.len() + 2, "the empty prefix is everything");
    let dropped = subject.committed(Txn::new().delete_prefix(format!("{prefix}in/"))).await;
    assert_eq!(dropped, revision + 1);
    assert_eq!(subject.keys(prefix).await, [format!("{prefix}in"), format!("{prefix}in0")]);
}

pub(super) async fn every_compare_holds_exactly_when_it_should(subject: &Subject, prefix: &str) {
    let (there, missing) = (format!("{prefix}there"), format!("{prefix}missing"));
    let created = subject.committed(Txn::new().put(&there, "old")).await;
    let modified = subject.committed(Txn::new().put(&there, "new")).await;
    let value = |key: &str, value: &'static str| Compare::Value(key.to_owned(), Bytes::from_static(value.as_bytes()));
    let cases = [
        (Compare::Present(there.clone()), true),
        (Compare::Present(missing.clone()), false),
        (Compare::Absent(there.clone()), false),
        (Compare::Absent(missing.clone()), true),
        (Compare::ModRevision(there.clone(), modified), true),
        (Compare::ModRevision(there.clone(), created), false),
        (Compare::ModRevision(missing.clone(), modified), false),
        (Compare::ModRevision(missing.clone(), 0), false),
        (Compare::CreateRevision(there.clone(), created), true),
        (Compare::CreateRevision(there.clone(), modified), false),
        (Compare::CreateRevision(missing.clone(), 0), false),
        (value(&there, "new"), true),
        (value(&there, "old"), false),
        (value(&missing, ""), false),
    ];
    for (number, (compare, holds)) in cases.into_iter().enumerate() {
        let mark = format!("{prefix}mark/{number}");
        // Also without writes: then it is a question only.
        let asked = subject.store.commit(Txn::new().when(compare.clone())).await.expect("a question");
        let written = subject.store.commit(Txn::new().when(compare.clone()).put(&mark, "")).await.expect("a commit");
        for outcome in [asked, written] {
            assert_eq!(matches!(outcome, TxnOutcome::Committed(_)), holds, "{compare:?}");
        }
        assert_eq!(subject.get(&mark).await.is_some(), holds, "{compare:?}");
    }
    let mixed = Txn::new().when(Compare::Present(there)).when(Compare::Present(missing)).put(format!("{prefix}no"), "");
    assert_eq!(subject.store.commit(mixed).await.expect("a commit"), TxnOutcome::Conflict);
}

pub(super) async fn a_transaction_applies_wholly_or_not_at_all(subject: &Subject, prefix: &str) {
    let names: Vec<_> = (0..Txn::MAX_OPERATIONS).map(|number| format!("{prefix}{number:03}")).collect();
    let put_all = names.iter().fold(Txn::new(), |txn, name| txn.put(name, "one"));
    let blocked = put_all.clone().when(Compare::Present(format!("{prefix}gate")));
    assert_eq!(subject.store.commit(blocked).await.expect("a commit"), TxnOutcome::Conflict);
    assert_eq!(subject.keys(prefix).await.len(), 0);
    let revision = subject.committed(put_all).await;
    let snapshot = subject.store.list(prefix).await.expect("a list");
    assert_eq!(snapshot.items.len(), names.len());
    assert!(snapshot.items.iter().all(|item| item.mod_revision == revision && item.create_revision == revision));
    let mixed = Txn::new().delete(&names[0]).put(&names[1], "two").delete(format!("{prefix}never"));
    assert_eq!(subject.committed(mixed).await, revision + 1);
    let nothing = Txn::new().delete(format!("{prefix}never"));
    assert_eq!(subject.committed(nothing).await, revision + 1, "what changes nothing takes no revision");
    let leased = Txn::new().put(&names[2], "three").put_leased(format!("{prefix}leased"), "", LeaseId(i64::MAX));
    assert!(matches!(subject.refused(leased).await, MetadataError::LeaseGone(LeaseId(i64::MAX))));
    assert_eq!(subject.get(&names[2]).await.expect("untouched").value, "one");
}

pub(super) async fn a_malformed_transaction_is_refused(subject: &Subject, prefix: &str) {
    let key = format!("{prefix}key");
    let too_many = (0..=Txn::MAX_OPERATIONS).fold(Txn::new(), |txn, number| txn.put(format!("{key}{number}"), ""));
    let compares = (0..=Txn::MAX_OPERATIONS).fold(Txn::new(), |txn, _| txn.when(Compare::Absent(key.clone())));
    let malformed = [
        too_many,
        compares.put(&key, ""),
        Txn::new().put(&key, "1").put(&key, "2"),
        Txn::new().put(&key, "1").delete(&key),
        Txn::new().put(&key, "1").delete_prefix(prefix),
        Txn::new().delete_prefix(&key).delete_prefix(prefix),
        Txn::new().put("", "1"),
        Txn::new().delete(""),
    ];
    for txn in malformed {
        let error = subject.refused(txn).await;
        assert!(matches!(error, MetadataError::Invalid(_)), "{error:?}");
        assert!(!error.is_retryable() && !error.has_side_effects());
    }
    assert_eq!(subject.keys(prefix).await.len(), 0);
}

pub(super) async fn one_of_many_racing_writers_wins(subject: &Subject, prefix: &str) {
    for round in 0..8 {
        let key = format!("{prefix}{round}");
        let create = |writer: usize| {
            let txn = Txn::new().when(Compare::Absent(key.clone())).put(&key, writer.to_string());
            async move { (writer, subject.store.commit(txn).await.expect("a commit")) }
        };
        let outcomes = join_all((0..16).map(create)).await;
        let winners: Vec<_> =
            outcomes.iter().filter(|(_, outcome)| matches!(outcome, TxnOutcome::Committed(_))).collect();
        let [(writer, TxnOutcome::Committed(revision))] = winners[..] else { panic!("winners: {winners:?}") };
        let item = subject.get(&key).await.expect("what the winner wrote");
        assert_eq!((item.value, item.create_revision), (Bytes::from(writer.to_string()), *revision));
    }
}

pub(super) async fn counters_lose_no_increment(subject: &Subject, prefix: &str) {
    let key = &format!("{prefix}counter");
    subject.committed(Txn::new().put(key, "0")).await;
    let increment_often = |_| async move {
        let mut done = 0;
        while done < 10 {
            let item = subject.get(key).await.expect("the counter");
            let count: u32 = String::from_utf8_lossy(&item.value).parse().expect("a number");
            let same = Compare::ModRevision(key.clone(), item.mod_revision);
            let txn = Txn::new().when(same).put(key, (count + 1).to_string());
            if let TxnOutcome::Committed(_) = subject.store.commit(txn).await.expect("a commit") {
                done += 1;
            }
        }
    };
    join_all((0..6).map(increment_often)).await;
    assert_eq!(subject.get(key).await.expect("the counter").value, "60");
}
