use std::collections::BTreeMap;

use futures::future::{join, join_all};

use super::{Replica, Subject};
use crate::metadata::{Revision, Txn, WatchEvent};

pub(super) async fn a_watch_from_the_past_sees_all_of_it(subject: &Subject, prefix: &str) {
    let (one, two) = (format!("{prefix}1"), format!("{prefix}2"));
    let first = subject.committed(Txn::new().put(&one, "a")).await;
    subject.committed(Txn::new().put(format!("{prefix}1"), "b").put(&two, "c")).await;
    subject.committed(Txn::new().put("elsewhere", "x")).await;
    let last = subject.committed(Txn::new().delete_prefix(prefix)).await;
    let mut watch = subject.watch(prefix, first).await;
    let mut told = Vec::new();
    for _ in 0..5 {
        told.push(match subject.next(&mut watch).await {
            WatchEvent::Put(item) => {
                let value = String::from_utf8_lossy(&item.value).into_owned();
                (item.key, Some(value), item.create_revision - first, item.mod_revision - first)
            }
            WatchEvent::Delete { key, revision } => (key, None, 0, revision - first),
            WatchEvent::Resync(snapshot) => panic!("history is still there: {snapshot:?}"),
        });
    }
    let put = |key: &String, value: &str, created, modified| (key.clone(), Some(value.to_owned()), created, modified);
    let expected = [
        put(&one, "a", 0, 0),
        put(&one, "b", 0, 1),
        put(&two, "c", 1, 1),
        (one.clone(), None, 0, last - first),
        (two.clone(), None, 0, last - first),
    ];
    assert_eq!(told, expected);
    subject.silent(&mut watch).await;
    let mut later = subject.watch(prefix, last).await;
    assert_eq!(subject.next(&mut later).await, WatchEvent::Delete { key: one, revision: last });
}

pub(super) async fn a_watch_has_no_gap_and_no_repeat_under_concurrent_writers(subject: &Subject, prefix: &str) {
    const WRITERS: usize = 6;
    const COMMITS: usize = 20;
    let start = subject.committed(Txn::new().put(format!("{prefix}start"), "")).await;
    let mut watch = subject.watch(prefix, start + 1).await;
    let write = |writer: usize| async move {
        let mut committed = Vec::new();
        for number in 0..COMMITS {
            let keys = [format!("{prefix}{writer}/a"), format!("{prefix}{writer}/b")];
            let txn = keys.iter().fold(Txn::new(), |txn, key| txn.put(key, number.to_string()));
            committed.push((subject.committed(txn).await, keys));
        }
        committed
    };
    let follow = async {
        let mut told: BTreeMap<Revision, Vec<String>> = BTreeMap::new();
        for _ in 0..WRITERS * COMMITS * 2 {
            let WatchEvent::Put(item) = subject.next(&mut watch).await else { panic!("nothing but puts") };
            let newest = told.last_key_value().map_or(0, |(revision, _)| *revision);
            assert!(item.mod_revision >= newest, "{} after {newest}", item.mod_revision);
            told.entry(item.mod_revision).or_default().push(item.key);
        }
        subject.silent(&mut watch).await;
        told
    };
    let (told, committed) = join(follow, join_all((0..WRITERS).map(write))).await;
    let committed: BTreeMap<_, _> = committed.into_iter().flatten().map(|(at, keys)| (at, keys.to_vec())).collect();
    assert_eq!(told, committed);
}

pub(super) async fn a_watch_behind_a_compaction_gets_the_whole_prefix(subject: &Subject, prefix: &str) {
    let first = subject.committed(Txn::new().put(format!("{prefix}gone"), "").put(format!("{prefix}a"), "1")).await;
    subject.committed(Txn::new().delete(format!("{prefix}gone"))).await;
    let last = subject.committed(Txn::new().put(format!("{prefix}a"), "2").put(format!("{prefix}b"), "3")).await;
    (subject.compact)(last).await;
    let mut watch = subject.watch(prefix, first).await;
    let WatchEvent::Resync(snapshot) = subject.next(&mut watch).await else { panic!("history was compacted") };
    assert!(snapshot.revision >= last);
    assert_eq!(snapshot.items, subject.store.list(prefix).await.expect("a list").items);
    let after = subject.committed(Txn::new().delete(format!("{prefix}a"))).await;
    let deleted = WatchEvent::Delete { key: format!("{prefix}a"), revision: after };
    assert_eq!(subject.next(&mut watch).await, deleted);
    subject.silent(&mut watch).await;
}

pub(super) async fn a_delete_in_the_compacted_revision_is_not_missed(subject: &Subject, prefix: &str) {
    subject.committed(Txn::new().put(format!("{prefix}a"), "1").put(format!("{prefix}b"), "2")).await;
    let seen = subject.store.list(prefix).await.expect("a list");
    let mut replica = Replica::default();
    replica.apply(WatchEvent::Resync(seen.clone()));
    let deleted = subject.committed(Txn::new().delete(format!("{prefix}a"))).await;
    (subject.compact)(deleted).await;
    let mut watch = subject.watch(prefix, seen.revision + 1).await;
    subject.committed(Txn::new().put(format!("{prefix}b"), "3")).await;
    replica.converge(subject, &mut watch, prefix).await;
}

pub(super) async fn a_compaction_does_not_disturb_a_watch_that_is_up_to_date(subject: &Subject, prefix: &str) {
    let key = &format!("{prefix}key");
    let mut last = subject.committed(Txn::new().put(key, "0")).await;
    let mut watch = subject.watch(prefix, last).await;
    for round in 1..4 {
        let WatchEvent::Put(item) = subject.next(&mut watch).await else { panic!("a put is a put") };
        assert_eq!(item.mod_revision, last);
        (subject.compact)(last).await;
        last = subject.committed(Txn::new().put(key, round.to_string())).await;
    }
}

pub(super) async fn a_watch_of_the_future_waits_for_it(subject: &Subject, prefix: &str) {
    let key = &format!("{prefix}key");
    let now = subject.committed(Txn::new().put(key, "now")).await;
    let mut watch = subject.watch(prefix, now + 3).await;
    subject.silent(&mut watch).await;
    for value in ["+1", "+2", "+3"] {
        subject.committed(Txn::new().put(key, value)).await;
    }
    let WatchEvent::Put(item) = subject.next(&mut watch).await else { panic!("a put is a put") };
    assert_eq!((item.mod_revision, item.value.as_ref()), (now + 3, &b"+3"[..]));
}
