//! The contract of [`MetadataStore`] as tests: every implementation runs all of them.

#![expect(clippy::expect_used, clippy::panic, reason = "a test suite fails by panicking")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, future::BoxFuture};

use super::{KeyValue, MetadataError, MetadataStore, Revision, Txn, TxnOutcome, Watch, WatchEvent};
use crate::clock::Clock;

mod leases;
mod transactions;
mod watches;

/// How long a case waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// The store under test.
pub struct Subject {
    pub store: Arc<dyn MetadataStore>,
    pub clock: Clock,
    /// Forgets history up to and including a revision.
    pub compact: Box<dyn Fn(Revision) -> BoxFuture<'static, ()> + Send + Sync>,
}

/// Runs every case, one after the other, each under a prefix of its own.
///
/// # Panics
/// The store breaks its contract.
pub async fn all(subject: &Subject) {
    transactions::a_read_sees_what_was_acknowledged(subject, "c01/").await;
    transactions::a_list_is_ordered_complete_and_keeps_to_its_prefix(subject, "c02/").await;
    transactions::every_compare_holds_exactly_when_it_should(subject, "c03/").await;
    transactions::a_transaction_applies_wholly_or_not_at_all(subject, "c04/").await;
    transactions::a_malformed_transaction_is_refused(subject, "c05/").await;
    transactions::one_of_many_racing_writers_wins(subject, "c06/").await;
    transactions::counters_lose_no_increment(subject, "c07/").await;
    watches::a_watch_from_the_past_sees_all_of_it(subject, "c08/").await;
    watches::a_watch_has_no_gap_and_no_repeat_under_concurrent_writers(subject, "c09/").await;
    watches::a_watch_behind_a_compaction_gets_the_whole_prefix(subject, "c10/").await;
    watches::a_delete_in_the_compacted_revision_is_not_missed(subject, "c11/").await;
    watches::a_compaction_does_not_disturb_a_watch_that_is_up_to_date(subject, "c12/").await;
    watches::a_watch_of_the_future_waits_for_it(subject, "c13/").await;
    leases::a_lease_kept_alive_holds_its_keys(subject, "c14/").await;
    leases::an_expired_lease_takes_all_its_keys_at_once(subject, "c15/").await;
    leases::a_revoked_lease_takes_all_its_keys_at_once(subject, "c16/").await;
    leases::a_key_follows_the_lease_it_was_last_put_with(subject, "c17/").await;
}

impl Subject {
    async fn committed(&self, txn: Txn) -> Revision {
        match self.store.commit(txn).await.expect("a commit") {
            TxnOutcome::Committed(revision) => revision,
            TxnOutcome::Conflict => panic!("an unexpected conflict"),
        }
    }

    async fn refused(&self, txn: Txn) -> MetadataError {
        self.store.commit(txn).await.expect_err("a refusal")
    }

    async fn get(&self, key: &str) -> Option<KeyValue> {
        self.store.get(key).await.expect("a read")
    }

    async fn keys(&self, prefix: &str) -> Vec<String> {
        self.store.list(prefix).await.expect("a list").items.into_iter().map(|item| item.key).collect()
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Watch {
        self.store.watch(prefix, from).await.expect("a watch")
    }

    async fn next(&self, watch: &mut Watch) -> WatchEvent {
        let next = self.clock.timeout(PATIENCE, watch.next()).await.expect("an event in time");
        next.expect("a watch does not end").expect("an event, not an error")
    }

    /// Nothing comes for a while.
    async fn silent(&self, watch: &mut Watch) {
        let next = self.clock.timeout(Duration::from_millis(200), watch.next()).await;
        assert!(next.is_err(), "an event too many: {next:?}");
    }
}

/// What a watcher knows.
#[derive(Debug, Default, PartialEq, Eq)]
struct Replica(BTreeMap<String, KeyValue>);

impl Replica {
    fn apply(&mut self, event: WatchEvent) {
        match event {
            WatchEvent::Put(item) => drop(self.0.insert(item.key.clone(), item)),
            WatchEvent::Delete { key, .. } => drop(self.0.remove(&key)),
            WatchEvent::Resync(snapshot) => {
                self.0 = snapshot.items.into_iter().map(|item| (item.key.clone(), item)).collect();
            }
        }
    }

    /// Follows the watch until this is what the store holds.
    async fn converge(&mut self, subject: &Subject, watch: &mut Watch, prefix: &str) {
        let expected = subject.store.list(prefix).await.expect("a list").items;
        while !self.0.values().eq(&expected) {
            self.apply(subject.next(watch).await);
        }
    }
}
