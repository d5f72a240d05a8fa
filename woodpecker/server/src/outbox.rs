//! What an append stream's client is to be told. However fast entries become durable, and however slowly the client
//! reads, there is at most one answer waiting for each replica of the stream.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use streaming_proto::logstore::{AppendResponse, Replica, append_response::Outcome};
use tokio::sync::Notify;

use crate::{lock, metrics, refusal::Refusal};

/// The answers of one stream.
#[derive(Debug, Default)]
pub struct Outbox {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Arc<Slot>>,
    /// The client sends no more: the stream ends when these have nothing left to wait for.
    closing: Option<Vec<Arc<Slot>>>,
}

/// One replica in one stream.
#[derive(Debug)]
pub struct Slot {
    replica: Replica,
    outbox: Arc<Outbox>,
    news: Mutex<News>,
}

#[derive(Debug, Default)]
struct News {
    /// Every entry below is durable.
    durable: u64,
    /// The stream sent entries up to here.
    sent: u64,
    /// Something of it is to be told.
    untold: bool,
    refused: Option<Refusal>,
    /// The stream's entries are not taken: nothing more is to come of them.
    ended: bool,
    queued: bool,
}

impl Outbox {
    pub fn slot(self: &Arc<Self>, replica: Replica) -> Arc<Slot> {
        Arc::new(Slot { replica, outbox: self.clone(), news: Mutex::default() })
    }

    /// The client sends no more; `slots` are all of the stream.
    pub fn close(&self, slots: Vec<Arc<Slot>>) {
        lock(&self.state).closing = Some(slots);
        self.wake.notify_one();
    }

    /// The next answer; `None` when there will be none any more.
    pub async fn next(&self) -> Option<AppendResponse> {
        loop {
            let ready = {
                let mut state = lock(&self.state);
                let ready = state.ready.pop_front();
                if ready.is_none()
                    && state.closing.as_ref().is_some_and(|slots| slots.iter().all(|slot| slot.is_settled()))
                {
                    return None;
                }
                ready
            };
            match ready {
                Some(slot) => {
                    if let Some(answer) = slot.answer() {
                        return Some(answer);
                    }
                }
                None => self.wake.notified().await,
            }
        }
    }
}

impl Slot {
    /// The stream sends entries up to `end`; an earlier refusal is over.
    pub fn sends(&self, end: u64) {
        let mut news = lock(&self.news);
        news.sent = news.sent.max(end);
        news.ended = false;
    }

    /// Every entry below `next` is durable.
    pub fn durable(self: &Arc<Self>, next: u64) {
        self.tell(|news| {
            news.durable = news.durable.max(next);
            news.untold = true;
        });
    }

    /// The stream's entries are not taken.
    pub fn refuse(self: &Arc<Self>, refusal: Refusal) {
        metrics::refused(refusal.code());
        self.tell(|news| {
            news.refused = Some(refusal);
            news.ended = true;
        });
    }

    fn tell(self: &Arc<Self>, what: impl FnOnce(&mut News)) {
        let queued = {
            let mut news = lock(&self.news);
            what(&mut news);
            std::mem::replace(&mut news.queued, true)
        };
        if !queued {
            lock(&self.outbox.state).ready.push_back(self.clone());
            self.outbox.wake.notify_one();
        }
    }

    /// Whether nothing is to come of what the stream sent.
    pub fn is_settled(&self) -> bool {
        let news = lock(&self.news);
        !news.queued && (news.ended || news.durable >= news.sent)
    }

    /// What is to be told; a refusal comes after what became durable before it.
    fn answer(self: &Arc<Self>) -> Option<AppendResponse> {
        let (outcome, more) = {
            let mut news = lock(&self.news);
            let outcome = if std::mem::take(&mut news.untold) {
                Some(Outcome::Durable(news.durable))
            } else {
                news.refused.take().map(|refusal| Outcome::Refused(refusal.to_wire()))
            };
            news.queued = news.refused.is_some();
            (outcome, news.queued)
        };
        if more {
            lock(&self.outbox.state).ready.push_back(self.clone());
        }
        outcome.map(|outcome| AppendResponse { replica: Some(self.replica.clone()), outcome: Some(outcome) })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn told(answer: Option<Option<AppendResponse>>) -> Option<Outcome> {
        answer.expect("nothing waits").and_then(|answer| answer.outcome)
    }

    #[test]
    fn one_answer_waits_however_much_becomes_durable() {
        let outbox = Arc::new(Outbox::default());
        let slot = outbox.slot(Replica::default());
        slot.sends(1_000);
        for next in 1..=1_000 {
            slot.durable(next);
        }
        assert_eq!(lock(&outbox.state).ready.len(), 1);
        assert_eq!(told(outbox.next().now_or_never()), Some(Outcome::Durable(1_000)));
        assert!(outbox.next().now_or_never().is_none());
    }

    #[test]
    fn what_was_durable_is_told_before_the_refusal() {
        let outbox = Arc::new(Outbox::default());
        let slot = outbox.slot(Replica::default());
        slot.sends(5);
        slot.refuse(Refusal::Released);
        slot.durable(3);
        assert_eq!(told(outbox.next().now_or_never()), Some(Outcome::Durable(3)));
        assert_eq!(told(outbox.next().now_or_never()), Some(Outcome::Refused(Refusal::Released.to_wire())));
        assert!(outbox.next().now_or_never().is_none());
    }

    #[test]
    fn a_stream_that_was_closed_ends_when_all_is_told() {
        let outbox = Arc::new(Outbox::default());
        let slots = [outbox.slot(Replica::default()), outbox.slot(Replica::default())];
        slots.iter().for_each(|slot| slot.sends(5));
        outbox.close(slots.to_vec());
        assert!(outbox.next().now_or_never().is_none(), "ended with entries on their way");
        slots[0].durable(5);
        slots[1].refuse(Refusal::Released);
        assert!(told(outbox.next().now_or_never()).is_some());
        assert!(told(outbox.next().now_or_never()).is_some());
        assert_eq!(told(outbox.next().now_or_never()), None);
    }
}
