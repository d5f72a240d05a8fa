//! Transactions, as far as messages carry them.

use std::time::Duration;

use streaming_proto::messages;

use crate::{ImmutableMessage, MessageId, TimeTick};

/// Keepalive of a transaction whose begin asks for none.
pub const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(10);

/// How peers write a keepalive that never ends.
const INFINITE_KEEPALIVE_MS: i64 = -1000;

/// Which transaction a message belongs to, and how long that lives without a new message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TxnContext {
    /// Unique in its pchannel: the tick of its begin.
    pub txn_id: i64,
    /// Negative when the transaction never expires.
    pub keepalive_ms: i64,
}

impl TxnContext {
    /// A transaction that expires `keepalive_ms` after its newest message.
    #[must_use]
    pub fn new(txn_id: i64, keepalive_ms: i64) -> Self {
        Self { txn_id, keepalive_ms }
    }

    /// A transaction that never expires.
    #[must_use]
    pub fn infinite(txn_id: i64) -> Self {
        Self { txn_id, keepalive_ms: INFINITE_KEEPALIVE_MS }
    }

    /// `None` when the transaction never expires.
    #[must_use]
    pub fn keepalive(self) -> Option<Duration> {
        u64::try_from(self.keepalive_ms).ok().map(Duration::from_millis)
    }

    /// The tick from which on the transaction is expired, when `newest` is the tick of its newest message.
    #[must_use]
    pub fn expires_at(self, newest: TimeTick) -> Option<TimeTick> {
        u64::try_from(self.keepalive_ms).ok().map(|ms| newest.saturating_add_ms(ms))
    }

    #[must_use]
    pub fn to_proto(self) -> messages::TxnContext {
        messages::TxnContext { txn_id: self.txn_id, keepalive_milliseconds: self.keepalive_ms }
    }
}

impl From<&messages::TxnContext> for TxnContext {
    fn from(txn: &messages::TxnContext) -> Self {
        Self { txn_id: txn.txn_id, keepalive_ms: txn.keepalive_milliseconds }
    }
}

/// Gives a message of a committed transaction the place of the commit, which is how consumers get it.
pub fn place_body_at_commit(body: &mut ImmutableMessage, time_tick: TimeTick, last_confirmed: MessageId) {
    body.properties.set_time_tick(time_tick);
    body.properties.set_last_confirmed(last_confirmed);
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{Properties, properties::key};

    #[test]
    fn transaction_expires_its_keepalive_after_its_newest_message() {
        let txn = TxnContext::new(7, 10_000);
        assert_eq!(txn.keepalive(), Some(DEFAULT_KEEPALIVE));
        assert_eq!(txn.expires_at(TimeTick::new(5, 3)), Some(TimeTick::new(10_005, 3)));
        assert_eq!(TxnContext::new(7, i64::MAX).expires_at(TimeTick::new(5, 3)), Some(TimeTick(u64::MAX)));
    }

    #[test]
    fn infinite_transaction_never_expires() {
        for txn in [TxnContext::infinite(7), TxnContext::new(7, -1), TxnContext::new(7, i64::MIN)] {
            assert_eq!((txn.keepalive(), txn.expires_at(TimeTick(u64::MAX))), (None, None));
        }
    }

    #[test]
    fn body_takes_tick_and_last_confirmed_id_of_its_commit() {
        let mut properties = Properties::default();
        properties.set_time_tick(TimeTick(5));
        properties.set_last_confirmed_is_self();
        let mut body = ImmutableMessage { id: MessageId::new(1, 2), payload: Bytes::new(), properties };
        place_body_at_commit(&mut body, TimeTick(9), MessageId::new(1, 1));
        assert_eq!(body.time_tick(), Ok(TimeTick(9)));
        assert_eq!(body.last_confirmed(), Ok(MessageId::new(1, 1)));
        assert!(!body.properties.contains(key::LAST_CONFIRMED_IS_SELF));
    }
}
