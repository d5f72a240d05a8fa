use std::time::Duration;

use super::{PATIENCE, Subject};
use crate::metadata::{LeaseId, MetadataError, Txn, WatchEvent};

/// Short, and still far above what a busy machine delays.
const TTL: Duration = Duration::from_secs(2);

pub(super) async fn a_lease_kept_alive_holds_its_keys(subject: &Subject, prefix: &str) {
    let lease = subject.store.grant_lease(Duration::from_millis(1_500)).await.expect("a lease");
    let key = format!("{prefix}key");
    subject.committed(Txn::new().put_leased(&key, "", lease)).await;
    for _ in 0..8 {
        subject.clock.sleep(TTL / 4).await;
        let ttl = subject.store.keep_alive(lease).await.expect("a lease kept alive");
        assert_eq!(ttl, TTL, "rounded up to whole seconds");
    }
    assert_eq!(subject.get(&key).await.expect("a key kept alive").lease, Some(lease));
    subject.store.revoke_lease(lease).await.expect("a revocation");
}

pub(super) async fn an_expired_lease_takes_all_its_keys_at_once(subject: &Subject, prefix: &str) {
    let lease = subject.store.grant_lease(TTL).await.expect("a lease");
    let granted = subject.clock.now();
    let txn = Txn::new().put_leased(format!("{prefix}a"), "", lease).put(format!("{prefix}b"), "");
    let revision = subject.committed(txn.put_leased(format!("{prefix}c"), "", lease)).await;
    all_gone_at_once(subject, prefix, revision + 1).await;
    let lived = subject.clock.now() - granted;
    // Expiry may be looked for every half second, and a little early by a clock of another machine.
    assert!(lived >= TTL.mul_f64(0.9) && lived < TTL + PATIENCE / 2, "lived for {lived:?}");
    ended(subject, prefix, lease).await;
}

pub(super) async fn a_revoked_lease_takes_all_its_keys_at_once(subject: &Subject, prefix: &str) {
    let lease = subject.store.grant_lease(PATIENCE * 2).await.expect("a lease");
    let txn = Txn::new().put_leased(format!("{prefix}a"), "", lease).put(format!("{prefix}b"), "");
    let revision = subject.committed(txn.put_leased(format!("{prefix}c"), "", lease)).await;
    subject.store.revoke_lease(lease).await.expect("a revocation");
    assert_eq!(subject.keys(prefix).await, [format!("{prefix}b")]);
    all_gone_at_once(subject, prefix, revision + 1).await;
    ended(subject, prefix, lease).await;
    subject.store.revoke_lease(lease).await.expect("revoking what is gone is no error");
}

async fn all_gone_at_once(subject: &Subject, prefix: &str, from: i64) {
    let mut watch = subject.watch(prefix, from).await;
    let mut gone = Vec::new();
    for _ in 0..2 {
        let WatchEvent::Delete { key, revision } = subject.next(&mut watch).await else { panic!("deletes only") };
        gone.push((key, revision));
    }
    gone.sort();
    let [(first, at), (second, also_at)] = &gone[..] else { panic!("two keys had the lease") };
    assert_eq!(at, also_at, "both at one revision");
    assert_eq!([first, second], [&format!("{prefix}a"), &format!("{prefix}c")]);
    subject.silent(&mut watch).await;
}

async fn ended(subject: &Subject, prefix: &str, lease: LeaseId) {
    let kept = subject.store.keep_alive(lease).await;
    assert!(matches!(kept, Err(MetadataError::LeaseGone(gone)) if gone == lease), "{kept:?}");
    let put = subject.refused(Txn::new().put_leased(format!("{prefix}late"), "", lease)).await;
    assert!(matches!(put, MetadataError::LeaseGone(gone) if gone == lease), "{put:?}");
    assert!(!put.is_retryable() && !put.has_side_effects());
}

pub(super) async fn a_key_follows_the_lease_it_was_last_put_with(subject: &Subject, prefix: &str) {
    let grant = || async { subject.store.grant_lease(PATIENCE * 2).await.expect("a lease") };
    let (one, two) = (grant().await, grant().await);
    assert_ne!(one, two);
    let (kept, moved, freed) = (format!("{prefix}kept"), format!("{prefix}moved"), format!("{prefix}freed"));
    let all = [&kept, &moved, &freed].into_iter().fold(Txn::new(), |txn, key| txn.put_leased(key, "", one));
    subject.committed(all).await;
    subject.committed(Txn::new().put_leased(&kept, "", one).put_leased(&moved, "", two).put(&freed, "")).await;
    subject.store.revoke_lease(one).await.expect("a revocation");
    assert_eq!(subject.keys(prefix).await, [freed.clone(), moved]);
    subject.store.revoke_lease(two).await.expect("a revocation");
    assert_eq!(subject.keys(prefix).await, [freed]);
}
