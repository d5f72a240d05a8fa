//! Turns the messages of a stream into deliveries: a transaction comes as begin, bodies and commit in a row.

use streaming_types::{
    ImmutableMessage, MessageId, MessageType, TimeTick, message::Version, properties::PropertyError,
};

use super::{Delivery, Txn};

/// A delivery, and where one stands after it.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) delivery: Delivery,
    pub(super) time_tick: TimeTick,
    pub(super) last_confirmed: MessageId,
    /// Bytes that were read for it.
    pub(super) size: usize,
    /// Of version 0: others may have the same time tick.
    pub(super) legacy: bool,
}

/// A stream that cannot be read on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The server broke the protocol; another stream may be better.
    Malformed(String),
    /// The transaction exceeds this limit, and would on any stream.
    TooLarge(usize),
}

#[derive(Debug)]
pub(super) struct Assembly {
    limit: usize,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    id: i64,
    begin: ImmutableMessage,
    bodies: Vec<ImmutableMessage>,
    size: usize,
}

impl Assembly {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, open: None }
    }

    /// Forgets a transaction that has begun: the next stream sends it from its begin.
    pub(super) fn reset(&mut self) {
        self.open = None;
    }

    /// `None` for the parts of a transaction before its commit.
    pub(super) fn accept(&mut self, message: ImmutableMessage) -> Result<Option<Whole>, Fault> {
        let id = message.id;
        self.place(message).map_err(|fault| match fault {
            Fault::Malformed(cause) => Fault::Malformed(format!("message {id}: {cause}")),
            Fault::TooLarge(limit) => Fault::TooLarge(limit),
        })
    }

    fn place(&mut self, message: ImmutableMessage) -> Result<Option<Whole>, Fault> {
        let time_tick = message.time_tick()?;
        let last_confirmed = message.last_confirmed()?;
        let legacy = message.properties.version()? == Version::V0;
        // A type of a later release is a message like any other.
        let message_type = message.properties.message_type().ok();
        let txn = message.properties.txn()?;
        let mut size = held(&message);
        let delivery = match (message_type, txn) {
            (Some(MessageType::BeginTxn), Some(txn)) => {
                self.refuse_open()?;
                self.open = Some(Open { id: txn.txn_id, begin: message, bodies: Vec::new(), size });
                return Ok(None);
            }
            (Some(MessageType::CommitTxn), Some(txn)) => {
                let Open { begin, bodies, size: before, .. } = self.take_open(txn.txn_id)?;
                size = size.saturating_add(before);
                Delivery::Txn(Txn { begin, bodies, commit: message })
            }
            (Some(kind @ (MessageType::BeginTxn | MessageType::CommitTxn)), None) => {
                return Err(Fault::Malformed(format!("{kind} without its transaction")));
            }
            (Some(MessageType::RollbackTxn), _) => {
                return Err(Fault::Malformed("a rollback, which is never delivered".to_owned()));
            }
            (_, Some(txn)) => {
                let mut open = self.take_open(txn.txn_id)?;
                open.size = open.size.saturating_add(size);
                if open.size > self.limit {
                    return Err(Fault::TooLarge(self.limit));
                }
                open.bodies.push(message);
                self.open = Some(open);
                return Ok(None);
            }
            (Some(MessageType::TimeTick), None) => {
                self.refuse_open()?;
                Delivery::TimeTick { time_tick, last_confirmed }
            }
            (_, None) => {
                self.refuse_open()?;
                Delivery::Message(message)
            }
        };
        Ok(Some(Whole { delivery, time_tick, last_confirmed, size, legacy }))
    }

    fn refuse_open(&self) -> Result<(), Fault> {
        match &self.open {
            Some(open) => Err(Fault::Malformed(format!("it interrupts transaction {}", open.id))),
            None => Ok(()),
        }
    }

    fn take_open(&mut self, id: i64) -> Result<Open, Fault> {
        match self.open.take() {
            Some(open) if open.id == id => Ok(open),
            _ => Err(Fault::Malformed(format!("transaction {id} was not begun"))),
        }
    }
}

/// What a message takes here. Its producer's estimate, which a ciphertext carries, bounds nothing.
fn held(message: &ImmutableMessage) -> usize {
    message.payload.len().saturating_add(message.properties.size())
}

impl From<PropertyError> for Fault {
    fn from(error: PropertyError) -> Self {
        Self::Malformed(error.to_string())
    }
}

#[cfg(test)]
mod tests;
