//! Puts transactions together for one reader: nothing of them before their commit, then begin, bodies and commit in a row,
//! the bodies at the place of the commit. What is rolled back, or expires, is never seen. Pure.
//!
//! Bodies are held as far as the node has room; of a transaction that finds none only the frame is known at its commit, and
//! the bodies are to be read from the log once more.

use std::{collections::BTreeMap, sync::Arc};

use streaming_types::{MessageType, TimeTick, TxnContext, properties::key, txn::place_body_at_commit};

use super::{
    allowance::{Allowance, Room},
    group::scope,
    record::Stored,
};

/// The open transactions that a reader has met.
#[derive(Debug)]
pub struct Delivery {
    open: BTreeMap<i64, Open>,
    allowance: Allowance,
}

#[derive(Debug)]
struct Open {
    context: TxnContext,
    /// The tick of the newest message.
    newest: TimeTick,
    begin: Arc<Stored>,
    /// `None` once there was no room for one.
    bodies: Option<Vec<(Arc<Stored>, Room)>>,
}

/// A transaction that was committed, without its bodies.
#[derive(Debug)]
pub struct Scattered {
    pub txn_id: i64,
    pub begin: Arc<Stored>,
    pub commit: Arc<Stored>,
}

/// What a message makes visible.
#[derive(Debug)]
pub enum Visible {
    Nothing,
    /// The message itself.
    Message(Arc<Stored>),
    /// A whole transaction, its commit last.
    Txn(Vec<Arc<Stored>>),
    /// One whose bodies have to be read again.
    Scattered(Scattered),
}

impl Delivery {
    pub fn new(allowance: Allowance) -> Self {
        Self { open: BTreeMap::new(), allowance }
    }

    /// Takes the next message in tick order; `pchannel` is the name of its log.
    pub fn accept(&mut self, message: Arc<Stored>, pchannel: &str) -> Visible {
        if message.kind == MessageType::TimeTick {
            self.expire(TimeTick(message.tick));
            return Visible::Message(message);
        }
        self.end(&message, pchannel);
        let properties = &message.message.properties;
        if !properties.contains(key::TXN) {
            return Visible::Message(message);
        }
        // The node wrote the property itself, or checked it.
        let Ok(Some(context)) = properties.txn() else { return Visible::Nothing };
        match message.kind {
            MessageType::BeginTxn => {
                let open = Open { context, newest: TimeTick(message.tick), begin: message, bodies: Some(Vec::new()) };
                self.open.insert(context.txn_id, open);
                Visible::Nothing
            }
            MessageType::CommitTxn => {
                // Who started behind the begin gets nothing of it.
                self.open.remove(&context.txn_id).map_or(Visible::Nothing, |open| open.commit(message))
            }
            MessageType::RollbackTxn => {
                self.open.remove(&context.txn_id);
                Visible::Nothing
            }
            _ => {
                if let Some(open) = self.open.get_mut(&context.txn_id) {
                    open.newest = TimeTick(message.tick);
                    let room = open.bodies.as_ref().and_then(|_| self.allowance.hold(&message));
                    match (&mut open.bodies, room) {
                        (Some(bodies), Some(room)) => bodies.push((message, room)),
                        (bodies, _) => *bodies = None,
                    }
                }
                Visible::Nothing
            }
        }
    }

    /// Drops what a message ends, whether or not anyone is given it.
    pub fn end(&mut self, message: &Stored, pchannel: &str) {
        if message.kind.is_exclusive() && !self.open.is_empty() {
            let scope = scope(message.kind, message.message.properties.vchannel(), pchannel);
            let survives =
                |open: &Open| scope.is_some_and(|scope| open.begin.message.properties.vchannel() != Some(scope));
            self.open.retain(|_, open| survives(open));
        }
    }

    /// Drops what has expired when everything up to `tick` is known.
    pub fn expire(&mut self, tick: TimeTick) {
        if !self.open.is_empty() {
            self.open.retain(|_, open| open.context.expires_at(open.newest).is_none_or(|deadline| deadline > tick));
        }
    }
}

impl Open {
    fn commit(self, commit: Arc<Stored>) -> Visible {
        let Some(bodies) = self.bodies else {
            return Visible::Scattered(Scattered { txn_id: self.context.txn_id, begin: self.begin, commit });
        };
        let mut whole = Vec::with_capacity(bodies.len() + 2);
        whole.push(self.begin);
        whole.extend(bodies.into_iter().map(|(body, room)| placed(&body, &commit, Some(room))));
        whole.push(commit);
        Visible::Txn(whole)
    }
}

/// A body at the place of its commit, with the room it takes.
pub fn placed(body: &Stored, commit: &Stored, room: Option<Room>) -> Arc<Stored> {
    let mut message = body.message.clone();
    if let Ok(confirmed) = commit.message.last_confirmed() {
        place_body_at_commit(&mut message, TimeTick(commit.tick), confirmed);
    }
    Arc::new(body.moved(commit.tick, message, room))
}

#[cfg(test)]
mod tests {
    use streaming_proto::messages::{
        BeginTxnMessageHeader, CommitTxnMessageHeader, CreatePartitionMessageHeader, DeleteMessageHeader,
        RollbackTxnMessageHeader,
    };
    use streaming_types::{MessageBuilder, MessageId, message::Header};
    use woodpecker::EntryId;

    use super::*;
    use crate::wal::record;

    const V: &str = "p_1v0";

    fn ms(ms: u64) -> u64 {
        TimeTick::new(ms, 0).0
    }

    fn at<H: Header>(entry: u64, header: &H, txn: Option<TxnContext>, vchannel: &str) -> Arc<Stored> {
        let builder = MessageBuilder::new(header).payload("x").vchannel(vchannel);
        let mut message = match txn {
            Some(txn) if H::TYPE != MessageType::BeginTxn => builder.txn(txn).build().unwrap(),
            _ => builder.build().unwrap(),
        };
        txn.into_iter().for_each(|txn| message.properties.set_txn(txn));
        message.properties.set_time_tick(TimeTick(ms(entry)));
        record::set_confirmed(&mut message.properties, txn.map(|_| EntryId { segment: 1, entry: 1 }));
        Arc::new(Stored::new(EntryId { segment: 1, entry }, message).unwrap())
    }

    fn begin(entry: u64, txn: TxnContext) -> Arc<Stored> {
        at(entry, &BeginTxnMessageHeader::default(), Some(txn), V)
    }

    fn body(entry: u64, txn: TxnContext) -> Arc<Stored> {
        at(entry, &DeleteMessageHeader::default(), Some(txn), V)
    }

    fn commit(entry: u64, txn: TxnContext) -> Arc<Stored> {
        at(entry, &CommitTxnMessageHeader {}, Some(txn), V)
    }

    fn run(messages: impl IntoIterator<Item = Arc<Stored>>) -> Vec<Vec<(u64, u64)>> {
        let mut delivery = Delivery::new(Allowance::new(1 << 20));
        let mut out = Vec::new();
        for message in messages {
            match delivery.accept(message, "p") {
                Visible::Nothing => {}
                Visible::Message(message) => out.push(vec![(message.id.entry, message.tick)]),
                Visible::Txn(whole) => {
                    assert!(whole.iter().all(|part| part.message.time_tick().unwrap().0 == part.tick));
                    out.push(whole.iter().map(|part| (part.id.entry, part.tick)).collect());
                }
                Visible::Scattered(_) => panic!("there is room"),
            }
        }
        out
    }

    const A: TxnContext = TxnContext { txn_id: 1, keepalive_ms: 10 };
    const B: TxnContext = TxnContext { txn_id: 2, keepalive_ms: -1 };

    #[test]
    fn transactions_come_as_a_whole_at_their_commit() {
        let plain = at(3, &DeleteMessageHeader::default(), None, V);
        let out = run([begin(1, A), begin(2, B), plain, body(4, A), body(5, B), commit(6, A), commit(7, B)]);
        let whole_a = vec![(1, ms(1)), (4, ms(6)), (6, ms(6))];
        let whole_b = vec![(2, ms(2)), (5, ms(7)), (7, ms(7))];
        assert_eq!(out, [vec![(3, ms(3))], whole_a, whole_b]);
    }

    #[test]
    fn bodies_take_tick_and_last_confirmed_id_of_the_commit() {
        let mut delivery = Delivery::new(Allowance::new(1 << 20));
        delivery.accept(begin(2, A), "p");
        delivery.accept(body(3, A), "p");
        let Visible::Txn(whole) = delivery.accept(commit(4, A), "p") else { panic!("no transaction") };
        assert_eq!(whole[1].message.time_tick(), Ok(TimeTick(ms(4))));
        assert_eq!(whole[1].message.last_confirmed(), Ok(MessageId::new(1, 1)));
        assert_eq!(whole[1].message.id, MessageId::new(1, 3), "its id stays");
    }

    #[test]
    fn rolled_back_orphaned_and_expired_transactions_are_not_seen() {
        let rollback = at(3, &RollbackTxnMessageHeader {}, Some(A), V);
        assert!(run([begin(1, A), body(2, A), rollback, commit(4, A)]).is_empty());
        assert!(run([body(2, A), commit(3, A)]).is_empty());
        let tick =
            |entry| Arc::new(Stored::new(EntryId { segment: 1, entry }, record::tick(ms(entry), None, 1)).unwrap());
        assert_eq!(run([begin(1, A), body(5, A), tick(15), commit(16, A)]).len(), 1, "only the tick");
        assert_eq!(run([begin(1, A), body(5, A), tick(14), commit(14, A)]).len(), 2, "still alive");
        assert_eq!(run([begin(1, B), tick(1_000_000), commit(1_000_001, B)]).len(), 2, "never expires");
    }

    #[test]
    fn exclusive_message_drops_the_transactions_of_its_vchannel() {
        let exclusive = |vchannel| at(3, &CreatePartitionMessageHeader::default(), None, vchannel);
        for (vchannel, survives) in [(V, false), ("p_2v0", true), ("p", false)] {
            let out = run([begin(1, A), exclusive(vchannel), commit(4, A)]);
            assert_eq!(out.len() == 2, survives, "{vchannel}");
        }
    }

    #[test]
    fn transaction_without_room_keeps_its_frame_and_gives_back_what_it_held() {
        let bytes = body(2, A).bytes;
        let allowance = Allowance::new(2 * (bytes + bytes / 2));
        let mut delivery = Delivery::new(allowance.clone());
        for message in [begin(1, A), body(2, A)] {
            delivery.accept(message, "p");
        }
        assert_eq!(allowance.left_to_hold(), bytes / 2);
        delivery.accept(body(3, A), "p");
        assert_eq!(allowance.left_to_hold(), bytes + bytes / 2, "what is not whole helps nobody");
        delivery.accept(body(4, A), "p");
        let Visible::Scattered(txn) = delivery.accept(commit(5, A), "p") else { panic!("no room") };
        assert_eq!((txn.txn_id, txn.begin.id.entry, txn.commit.id.entry), (1, 1, 5));
    }

    #[test]
    fn committed_transaction_gives_its_room_back_when_every_reader_let_go_of_it_whoever_keeps_the_messages() {
        let allowance = Allowance::new(1 << 20);
        let all = allowance.left_to_hold();
        let mut readers = [Delivery::new(allowance.clone()), Delivery::new(allowance.clone())];
        let kept = [begin(1, A), body(2, A), commit(3, A)];
        let mut accept =
            |message: &Arc<Stored>| readers.each_mut().map(|reader| reader.accept(Arc::clone(message), "p"));
        kept[..2].iter().for_each(|message| drop(accept(message)));
        let [one, two] = accept(&kept[2]);
        assert!(matches!((&one, &two), (Visible::Txn(_), Visible::Txn(_))));
        assert_eq!(allowance.left_to_hold(), all - kept[1].bytes, "charged once, on its way to both");
        drop(one);
        assert_eq!(allowance.left_to_hold(), all - kept[1].bytes, "one has it yet");
        drop(two);
        assert_eq!(allowance.left_to_hold(), all);
    }
}
