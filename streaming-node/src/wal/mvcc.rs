//! The read points of one WAL: which tick a reader has to reach to have seen every message that was acked.
//!
//! For a vchannel that is the tick of its newest message, as long as readers were not given a tick above it. A message of a
//! transaction counts when it is committed. Nothing is asked of anybody; a read point that readers have no tick for yet
//! makes the WAL give them one at once.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use streaming_types::MessageType;
use tokio::sync::Notify;

use super::group::Append;

/// See the module.
#[derive(Debug, Default)]
pub struct Mvcc {
    state: Mutex<State>,
    wanted: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// A tick that every reader is given.
    told: u64,
    /// The newest tick of each vchannel, where it is above that.
    newer: BTreeMap<String, u64>,
    /// The newest tick of a message that concerns every vchannel.
    everywhere: u64,
}

impl Mvcc {
    /// Notes durable messages, before anyone is told that they are.
    pub fn appended(&self, appends: &[Box<Append>], pchannel: &str) {
        let mut state = self.lock();
        let mut last = None;
        // From the newest to the oldest: only the first one of each run says something.
        for append in appends.iter().rev() {
            let open = append.txn.is_some() && append.kind != MessageType::CommitTxn;
            let scope = append.scope(pchannel);
            if open || last == Some(scope) {
                continue;
            }
            last = Some(scope);
            state.note(scope, append.tick);
        }
    }

    /// Every reader is given this tick.
    pub fn told(&self, tick: u64) {
        let mut state = self.lock();
        state.told = state.told.max(tick);
        state.newer.retain(|_, newest| *newest > tick);
    }

    /// The read point of a vchannel, or of all.
    pub fn latest(&self, vchannel: Option<&str>) -> u64 {
        let state = self.lock();
        let newest = match vchannel {
            Some(vchannel) => state.newer.get(vchannel),
            None => state.newer.values().max(),
        };
        let newest = newest.copied().unwrap_or(0).max(state.everywhere);
        if newest > state.told {
            self.wanted.notify_one();
        }
        newest.max(state.told)
    }

    /// Resolves when a reader waits for a tick.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn note(&mut self, scope: Option<&str>, tick: u64) {
        let Some(vchannel) = scope else {
            self.everywhere = self.everywhere.max(tick);
            return;
        };
        match self.newer.get_mut(vchannel) {
            Some(newest) => *newest = tick.max(*newest),
            None => {
                self.newer.insert(vchannel.to_owned(), tick);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use streaming_proto::messages::{CommitTxnMessageHeader, DeleteMessageHeader};
    use streaming_types::{MessageBuilder, TxnContext};

    use super::*;
    use crate::wal::group::samples;

    fn at(tick: u64, vchannel: &str) -> Box<Append> {
        let mut append = samples::append(1, vchannel, false).0;
        append.tick = tick;
        append
    }

    #[test]
    fn newest_message_of_a_vchannel_counts_until_readers_have_a_tick_above_it() {
        let mvcc = Mvcc::default();
        mvcc.told(5);
        assert_eq!((mvcc.latest(Some("p_1v0")), mvcc.wanted().now_or_never()), (5, None), "nobody has to wait");
        mvcc.appended(&[at(6, "p_1v0"), at(7, "p_2v0"), at(8, "p_1v0")], "p");
        assert_eq!(mvcc.latest(Some("p_3v0")), 5, "nothing happened there");
        assert_eq!((mvcc.latest(Some("p_1v0")), mvcc.latest(Some("p_2v0")), mvcc.latest(None)), (8, 7, 8));
        assert_eq!(mvcc.wanted().now_or_never(), Some(()));
        mvcc.told(7);
        assert_eq!((mvcc.latest(Some("p_1v0")), mvcc.latest(Some("p_2v0")), mvcc.latest(Some("p_3v0"))), (8, 7, 7));
        mvcc.appended(&[at(9, "p")], "p");
        assert_eq!(mvcc.latest(Some("p_3v0")), 9, "it concerns every vchannel");
        mvcc.told(12);
        assert_eq!((mvcc.latest(Some("p_1v0")), mvcc.latest(Some("p_3v0"))), (12, 12));
    }

    #[test]
    fn messages_of_a_transaction_count_when_it_is_committed() {
        let mvcc = Mvcc::default();
        let txn = TxnContext::new(7, 1000);
        let body = MessageBuilder::new(&DeleteMessageHeader::default()).payload("x").vchannel("p_1v0").txn(txn);
        let mut body = samples::of(1, body.build().unwrap()).0;
        body.tick = 6;
        mvcc.appended(&[body], "p");
        assert_eq!(mvcc.latest(Some("p_1v0")), 0);
        let commit = MessageBuilder::new(&CommitTxnMessageHeader {}).vchannel("p_1v0").txn(txn);
        let mut commit = samples::of(1, commit.build().unwrap()).0;
        commit.tick = 7;
        mvcc.appended(&[commit], "p");
        assert_eq!(mvcc.latest(Some("p_1v0")), 7);
    }
}
