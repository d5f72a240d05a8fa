//! The open transactions of one WAL, from their begin to their end, by tick alone: whoever reads the log comes to the same
//! state. Pure.
//!
//! A transaction lives on one vchannel. It expires its keepalive after its newest message; a message that needs the
//! vchannel for itself ends it. Until it has ended, a reader that wants everything from now on must start before its begin.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use streaming_types::{MessageType, StreamingError, TimeTick, TxnContext};
use woodpecker::EntryId;

use super::{
    group::scope,
    record::{BadRecord, Stored},
};

/// Transactions open at a time. Each makes every reader that starts read further back.
const MAX_OPEN: usize = 10_000;
/// Bytes of one transaction; consumers put no larger one together.
const MAX_BYTES: usize = 128 << 20;
/// Bytes of all open transactions: what every reader holds back.
const MAX_OPEN_BYTES: usize = 512 << 20;
/// Ended transactions that are remembered, to tell one that was committed from one that never was.
const MAX_ENDED: usize = 4096;

/// See the module.
#[derive(Debug)]
pub struct Sessions {
    live: BTreeMap<i64, Session>,
    anchors: BTreeSet<(EntryId, i64)>,
    deadlines: BTreeSet<(TimeTick, i64)>,
    bytes: usize,
    ended: BTreeMap<i64, End>,
    ended_order: VecDeque<i64>,
    /// An entry that is durable; what begins now lies behind it.
    durable: EntryId,
}

#[derive(Debug)]
struct Session {
    context: TxnContext,
    vchannel: Box<str>,
    /// The tick of its newest message.
    newest: TimeTick,
    /// An entry at or before its begin.
    anchor: EntryId,
    bytes: usize,
}

impl Session {
    fn deadline(&self) -> Option<TimeTick> {
        self.context.expires_at(self.newest)
    }
}

/// How a transaction ended that reached its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Committed,
    RolledBack,
}

impl End {
    /// The end that a message is.
    pub fn of(kind: MessageType) -> Option<Self> {
        match kind {
            MessageType::CommitTxn => Some(Self::Committed),
            MessageType::RollbackTxn => Some(Self::RolledBack),
            _ => None,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Committed => "TxnCommitted",
            Self::RolledBack => "TxnRollbacked",
        })
    }
}

impl Sessions {
    /// No transactions, in a log whose entries all come after `durable`.
    pub fn new(durable: EntryId) -> Self {
        Self {
            live: BTreeMap::new(),
            anchors: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            bytes: 0,
            ended: BTreeMap::new(),
            ended_order: VecDeque::new(),
            durable,
        }
    }

    /// Everything up to `entry` is durable.
    pub fn reached(&mut self, entry: EntryId) {
        self.durable = self.durable.max(entry);
    }

    /// Where a reader has to start that wants everything from the next message on, if that is not the message itself.
    pub fn confirmed(&self) -> Option<EntryId> {
        self.anchors.first().map(|(anchor, _)| *anchor)
    }

    /// Transactions that are open.
    pub fn open(&self) -> usize {
        self.live.len()
    }

    /// Whether a transaction is open.
    pub fn is_open(&self, id: i64) -> bool {
        self.live.contains_key(&id)
    }

    /// The transactions that are open on a vchannel.
    pub fn open_on(&self, vchannel: &str) -> Vec<i64> {
        self.live.iter().filter(|(_, session)| *session.vchannel == *vchannel).map(|(id, _)| *id).collect()
    }

    /// Opens the transaction whose begin has this tick.
    pub fn begin(&mut self, context: TxnContext, vchannel: &str, tick: TimeTick) -> Result<(), StreamingError> {
        if self.live.len() >= MAX_OPEN {
            return Err(StreamingError::unrecoverable(format!("{MAX_OPEN} transactions are open already")));
        }
        self.insert(context, vchannel, tick, self.durable);
        Ok(())
    }

    /// Adds a message to a transaction.
    pub fn body(&mut self, id: i64, vchannel: &str, bytes: usize, tick: TimeTick) -> Result<(), StreamingError> {
        let all = self.bytes;
        let session = self.find("AddNewMessage", id, vchannel, tick)?;
        // One that does not expire is another cluster's: it was not too large there, without what replication adds.
        let limited = session.deadline().is_some();
        if limited && session.bytes.saturating_add(bytes) > MAX_BYTES {
            return Err(StreamingError::unrecoverable(format!("transaction {id} exceeds {MAX_BYTES} bytes")));
        }
        if limited && all.saturating_add(bytes) > MAX_OPEN_BYTES {
            return Err(StreamingError::unrecoverable(format!("open transactions exceed {MAX_OPEN_BYTES} bytes")));
        }
        self.add(id, bytes, tick);
        Ok(())
    }

    /// Ends a transaction.
    pub fn end(&mut self, id: i64, vchannel: &str, end: End, tick: TimeTick) -> Result<(), StreamingError> {
        let operation = match end {
            End::Committed => "RequestCommitAndWait",
            End::RolledBack => "RequestRollback",
        };
        self.find(operation, id, vchannel, tick)?;
        self.finish(id, end);
        Ok(())
    }

    /// Ends the transactions of a vchannel, or all.
    pub fn fail(&mut self, scope: Option<&str>) {
        let failed = self.live.iter().filter(|(_, session)| scope.is_none_or(|scope| *session.vchannel == *scope));
        for id in failed.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.remove(id);
        }
    }

    /// Ends what has expired when everything up to `tick` is known.
    pub fn expire(&mut self, tick: TimeTick) {
        while let Some((_, id)) = self.deadlines.first().copied().filter(|(deadline, _)| *deadline <= tick) {
            self.remove(id);
        }
    }

    /// Takes a message of the log, which was checked when it was appended.
    pub fn observe(&mut self, message: &Stored, pchannel: &str) -> Result<(), BadRecord> {
        let tick = TimeTick(message.tick);
        let properties = &message.message.properties;
        let txn = properties.txn().map_err(|error| BadRecord::Property { id: message.id, error })?;
        let vchannel = properties.vchannel();
        if message.kind.is_exclusive() {
            self.fail(scope(message.kind, vchannel, pchannel));
        }
        if let Some(context) = txn {
            match (message.kind, End::of(message.kind)) {
                (MessageType::BeginTxn, _) => self.insert(context, vchannel.unwrap_or_default(), tick, message.id),
                (_, Some(end)) => self.finish(context.txn_id, end),
                _ => self.add(context.txn_id, message.bytes, tick),
            }
        }
        self.expire(tick);
        self.reached(message.id);
        Ok(())
    }

    fn find(&self, operation: &str, id: i64, vchannel: &str, tick: TimeTick) -> Result<&Session, StreamingError> {
        let session = match (self.live.get(&id), self.ended.get(&id)) {
            (Some(session), _) => session,
            (None, Some(end)) => return Err(StreamingError::invalid_transaction_state(operation, "TxnInFlight", end)),
            (None, None) => {
                return Err(StreamingError::transaction_expired(format!(
                    "transaction {id} is unknown, or has expired"
                )));
            }
        };
        if session.deadline().is_some_and(|deadline| deadline <= tick) {
            return Err(StreamingError::transaction_expired(format!("transaction {id} has expired")));
        }
        if *session.vchannel != *vchannel {
            let cause = format!("transaction {id} is one of {}, not of {vchannel}", session.vchannel);
            return Err(StreamingError::unrecoverable(cause));
        }
        Ok(session)
    }

    fn insert(&mut self, context: TxnContext, vchannel: &str, newest: TimeTick, anchor: EntryId) {
        let id = context.txn_id;
        self.remove(id);
        let session = Session { context, vchannel: vchannel.into(), newest, anchor, bytes: 0 };
        self.anchors.insert((anchor, id));
        self.deadlines.extend(session.deadline().map(|deadline| (deadline, id)));
        self.live.insert(id, session);
    }

    fn add(&mut self, id: i64, bytes: usize, tick: TimeTick) {
        let Some(session) = self.live.get_mut(&id) else { return };
        if let Some(deadline) = session.deadline() {
            self.deadlines.remove(&(deadline, id));
        }
        session.newest = tick;
        session.bytes += bytes;
        self.bytes += bytes;
        self.deadlines.extend(session.deadline().map(|deadline| (deadline, id)));
    }

    fn finish(&mut self, id: i64, end: End) {
        self.remove(id);
        if self.ended.insert(id, end).is_none() {
            self.ended_order.push_back(id);
        }
        if self.ended_order.len() > MAX_ENDED
            && let Some(oldest) = self.ended_order.pop_front()
        {
            self.ended.remove(&oldest);
        }
    }

    fn remove(&mut self, id: i64) {
        let Some(session) = self.live.remove(&id) else { return };
        self.anchors.remove(&(session.anchor, id));
        if let Some(deadline) = session.deadline() {
            self.deadlines.remove(&(deadline, id));
        }
        self.bytes -= session.bytes;
    }
}

/// The sessions, shared between the layer that changes them and the task that owns the stack.
#[derive(Debug, Clone)]
pub struct SharedSessions(Arc<Mutex<Sessions>>);

impl SharedSessions {
    pub fn new(sessions: Sessions) -> Self {
        Self(Arc::new(Mutex::new(sessions)))
    }

    pub fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has expired by a tick ends; says where a reader has to start that wants what follows.
    pub fn at(&self, tick: u64) -> Option<EntryId> {
        let mut sessions = self.lock();
        sessions.expire(TimeTick(tick));
        sessions.confirmed()
    }
}

#[cfg(test)]
mod tests {
    use streaming_types::StreamingCode;

    use super::*;

    const V: &str = "p_1v0";

    fn at(ms: u64) -> TimeTick {
        TimeTick::new(ms, 0)
    }

    fn entry(entry: u64) -> EntryId {
        EntryId { segment: 1, entry }
    }

    fn code(result: Result<(), StreamingError>) -> Option<StreamingCode> {
        result.err().map(|error| error.code())
    }

    /// Transactions 1 at entry 5, 2 at entry 7 on another vchannel, both for 100 ms.
    fn two() -> Sessions {
        let mut sessions = Sessions::new(entry(5));
        sessions.begin(TxnContext::new(1, 100), V, at(1000)).unwrap();
        sessions.reached(entry(7));
        sessions.begin(TxnContext::new(2, 100), "p_2v0", at(1010)).unwrap();
        sessions
    }

    #[test]
    fn bodies_keep_a_transaction_alive_and_an_expired_one_stays_expired() {
        let mut sessions = two();
        sessions.body(1, V, 10, at(1090)).unwrap();
        sessions.body(1, V, 10, at(1189)).unwrap();
        assert_eq!(code(sessions.body(1, V, 10, at(1289))), Some(StreamingCode::TransactionExpired));
        sessions.expire(at(1289));
        assert_eq!(sessions.open(), 0);
        assert_eq!(code(sessions.end(1, V, End::Committed, at(1290))), Some(StreamingCode::TransactionExpired));
        assert_eq!(sessions.bytes, 0);
    }

    #[test]
    fn infinite_transactions_do_not_expire() {
        let mut sessions = Sessions::new(entry(0));
        sessions.begin(TxnContext::infinite(9), V, at(1)).unwrap();
        sessions.expire(TimeTick(u64::MAX));
        assert_eq!(code(sessions.end(9, V, End::Committed, TimeTick(u64::MAX))), None);
    }

    #[test]
    fn resume_position_is_before_the_oldest_open_transaction() {
        let mut sessions = two();
        assert_eq!(sessions.confirmed(), Some(entry(5)));
        sessions.end(1, V, End::Committed, at(1020)).unwrap();
        assert_eq!(sessions.confirmed(), Some(entry(7)));
        sessions.end(2, "p_2v0", End::RolledBack, at(1020)).unwrap();
        assert_eq!(sessions.confirmed(), None);
    }

    #[test]
    fn second_end_is_an_invalid_state_and_an_unknown_transaction_is_expired() {
        let mut sessions = two();
        sessions.end(1, V, End::Committed, at(1020)).unwrap();
        for end in [End::Committed, End::RolledBack] {
            let error = sessions.end(1, V, end, at(1021)).unwrap_err();
            assert_eq!(error.code(), StreamingCode::InvalidTransactionState);
            assert!(error.cause().ends_with("expect TxnInFlight, current TxnCommitted"), "{error}");
        }
        assert_eq!(code(sessions.body(1, V, 1, at(1021))), Some(StreamingCode::InvalidTransactionState));
        assert_eq!(code(sessions.body(3, V, 1, at(1021))), Some(StreamingCode::TransactionExpired));
        assert_eq!(code(sessions.body(2, V, 1, at(1021))), Some(StreamingCode::Unrecoverable), "another vchannel");
    }

    #[test]
    fn exclusive_message_ends_the_transactions_of_its_scope() {
        let mut sessions = two();
        sessions.fail(Some(V));
        assert_eq!(sessions.open(), 1);
        assert_eq!(code(sessions.body(1, V, 1, at(1020))), Some(StreamingCode::TransactionExpired));
        sessions.fail(None);
        assert_eq!(sessions.open(), 0);
    }

    #[test]
    fn limits_are_refused_for_good() {
        let mut sessions = Sessions::new(entry(0));
        sessions.begin(TxnContext::new(0, 100), V, at(1)).unwrap();
        assert_eq!(code(sessions.body(0, V, MAX_BYTES + 1, at(2))), Some(StreamingCode::Unrecoverable));
        let mut follower = Sessions::new(entry(0));
        follower.begin(TxnContext::infinite(0), V, at(1)).unwrap();
        assert_eq!(code(follower.body(0, V, MAX_BYTES + 1, at(2))), None, "its source took it");
        for id in 1..i64::try_from(MAX_OPEN).unwrap() {
            sessions.begin(TxnContext::new(id, 100), V, at(1)).unwrap();
        }
        assert_eq!(code(sessions.begin(TxnContext::new(-1, 100), V, at(1))), Some(StreamingCode::Unrecoverable));
        let all = 0..MAX_OPEN_BYTES / MAX_BYTES;
        for id in all {
            sessions.body(i64::try_from(id).unwrap(), V, MAX_BYTES, at(2)).unwrap();
        }
        assert_eq!(code(sessions.body(9, V, 1, at(2))), Some(StreamingCode::Unrecoverable));
        for id in 0..10_000 {
            sessions.finish(id, End::Committed);
        }
        assert_eq!((sessions.bytes, sessions.ended.len(), sessions.ended_order.len()), (0, MAX_ENDED, MAX_ENDED));
    }
}
