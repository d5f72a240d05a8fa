//! What travels down the append stack: messages in arrival order, answered when the group comes back.

use std::sync::Arc;

use bytes::Bytes;
use streaming_proto::messages::ReplicateHeader;
use streaming_types::{Message, MessageId, MessageType, StreamingError, TimeTick, TxnContext, message::Produced};
use tokio::sync::mpsc;
use tracing::Span;
use woodpecker::{AppendError, EntryId};
use woodpecker_base::clock::Instant;

use super::{allowance::Charge, record::message_id, window::Key};

/// One message to append, and who wants to know. It stays in its box: it is large, and goes through many hands.
#[derive(Debug)]
pub struct Append {
    pub message: Message,
    pub kind: MessageType,
    /// The transaction it belongs to; the txn layer gives a begin its own.
    pub txn: Option<TxnContext>,
    /// Where a replicated message comes from.
    pub replicate: Option<Box<ReplicateHeader>>,
    /// Its number among those that came by replication, or change it. Given by the replicate layer.
    pub replica: Option<u64>,
    /// What it is known by if it comes again. Given by the idempotency layer.
    pub key: Option<Key>,
    /// The tick must be greater than this. A replicated message has none: its barrier is a tick of its source.
    pub barrier: Option<TimeTick>,
    /// Given by the time tick layer, 0 before.
    pub tick: u64,
    /// Given by the txn layer: where a reader has to start that wants everything from here on. `None` is the message itself.
    pub confirmed: Option<EntryId>,
    /// Payload and properties as they came.
    pub bytes: usize,
    /// The message as the log has it. Given by the log writer.
    pub record: Bytes,
    /// The message's room in flight.
    pub _charge: Option<Charge>,
    /// Segments that the message ends, if its producer wants to know. Given by the shard layer.
    pub flushed: Option<Vec<i64>>,
    /// Known when the log has the message, or a layer has settled it without.
    pub outcome: Option<Result<Placed, StreamingError>>,
    pub reply: Reply,
}

impl Append {
    /// A message that passed all checks and was charged to the WAL's budget.
    pub fn new(message: Message, produced: &Produced, charge: Charge, reply: Reply) -> Box<Self> {
        Box::new(Self {
            kind: produced.message_type,
            txn: produced.txn,
            replicate: produced.replicate.clone().map(Box::new),
            replica: None,
            key: None,
            barrier: produced.barrier.filter(|_| produced.replicate.is_none()),
            tick: 0,
            confirmed: None,
            bytes: message.payload.len() + message.properties.size(),
            record: Bytes::new(),
            _charge: Some(charge),
            flushed: None,
            outcome: None,
            reply,
            message,
        })
    }

    /// A message of the node's own.
    pub fn own(kind: MessageType, message: Message, charge: Option<Charge>) -> Box<Self> {
        Box::new(Self {
            kind,
            txn: None,
            replicate: None,
            replica: None,
            key: None,
            barrier: None,
            tick: 0,
            confirmed: None,
            bytes: message.payload.len() + message.properties.size(),
            record: Bytes::new(),
            _charge: charge,
            flushed: None,
            outcome: None,
            reply: Reply::nobody(),
            message,
        })
    }

    pub fn vchannel(&self) -> Option<&str> {
        self.message.properties.vchannel()
    }

    pub fn is_exclusive(&self) -> bool {
        self.kind.is_exclusive()
    }

    /// See [`scope`].
    pub fn scope(&self, pchannel: &str) -> Option<&str> {
        scope(self.kind, self.vchannel(), pchannel)
    }

    /// Tells the producer. Without an outcome it hears that the WAL is gone.
    pub fn answer(mut self) {
        if let Some(outcome) = self.outcome {
            self.reply.answer(outcome, self.flushed);
        }
    }
}

/// The vchannel whose messages a message is ordered with; `None`, for a message without one, with the pchannel's name in its
/// place, or that changes the role of the WAL, is the whole WAL.
pub fn scope<'a>(kind: MessageType, vchannel: Option<&'a str>, pchannel: &str) -> Option<&'a str> {
    vchannel.filter(|vchannel| *vchannel != pchannel && kind != MessageType::AlterReplicateConfig)
}

/// Where a message went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    pub id: MessageId,
    pub tick: u64,
    pub last_confirmed: MessageId,
    pub txn: Option<TxnContext>,
}

impl Placed {
    /// Where `append` is when its entry is `id`; `None` if that does not fit the wire.
    pub fn new(append: &Append, id: EntryId) -> Option<Self> {
        let confirmed = message_id(append.confirmed.unwrap_or(id))?;
        Some(Self { id: message_id(id)?, tick: append.tick, last_confirmed: confirmed, txn: append.txn })
    }
}

/// One request of a stream, which comes back with its answer.
#[derive(Debug)]
pub struct Asked {
    pub request_id: i64,
    /// Bytes of its message.
    pub bytes: usize,
    pub at: Instant,
    /// Of the append, where the message belongs to a trace.
    pub span: Span,
}

/// The answer to one request of a stream.
#[derive(Debug)]
pub struct Answer {
    pub asked: Asked,
    pub result: Result<Placed, StreamingError>,
    /// See [`Append::flushed`].
    pub flushed: Option<Vec<i64>>,
}

/// The way back to a producer. It answers exactly once: when it is dropped unused, it says that the WAL is gone.
#[derive(Debug)]
pub struct Reply {
    pchannel: Arc<str>,
    /// The channel has room for every request of the stream that is in flight.
    back: Option<(Asked, mpsc::Sender<Answer>)>,
}

impl Reply {
    pub fn new(pchannel: Arc<str>, asked: Asked, answers: mpsc::Sender<Answer>) -> Self {
        Self { pchannel, back: Some((asked, answers)) }
    }

    /// Nobody wants to know.
    pub fn nobody() -> Self {
        Self { pchannel: "".into(), back: None }
    }

    pub fn send(mut self, result: Result<Placed, StreamingError>) {
        self.answer(result, None);
    }

    fn answer(&mut self, result: Result<Placed, StreamingError>, flushed: Option<Vec<i64>>) {
        if let Some((asked, answers)) = self.back.take() {
            // A producer that hung up wants no answer.
            let _ = answers.try_send(Answer { asked, result, flushed });
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.back.is_some() {
            self.answer(Err(StreamingError::channel_fenced(&self.pchannel)), None);
        }
    }
}

/// The tick after the messages of a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Closing {
    pub tick: u64,
    /// Whether it is written to the log behind the messages, or told to readers in memory only.
    pub persisted: bool,
    /// As of an [`Append`]. Given by the txn layer.
    pub confirmed: Option<EntryId>,
}

/// Messages that are appended together. An empty group is a tick.
#[derive(Debug, Default)]
pub struct Group {
    pub appends: Vec<Box<Append>>,
    /// Messages that a layer settled without the log: they were refused, or appended before.
    pub settled: Vec<Box<Append>>,
    /// Given by the time tick layer; `None` in a group that did not get there.
    pub closing: Option<Closing>,
    /// The closing tick and its place, if it is persisted. Given by the log writer.
    pub tick: Option<(EntryId, Message)>,
    /// The last entry of the group, `None` if it needed none. Given by the log writer.
    pub written: Option<Result<EntryId, AppendError>>,
}

impl Group {
    /// Takes messages out for which `settle` knows an outcome.
    pub fn settle(&mut self, mut settle: impl FnMut(&mut Append) -> Option<Result<Placed, StreamingError>>) {
        let mut any = false;
        for append in &mut self.appends {
            append.outcome = settle(append);
            any |= append.outcome.is_some();
        }
        if any {
            self.settled.extend(self.appends.extract_if(.., |append| append.outcome.is_some()));
        }
    }
}

#[cfg(test)]
pub mod samples {
    use streaming_proto::messages::{CreatePartitionMessageHeader, DeleteMessageHeader};
    use streaming_types::{MessageBuilder, message::check_produced};
    use woodpecker_base::clock::Clock;

    use super::*;
    use crate::wal::allowance::Allowance;

    /// A message of pchannel `p` that shares its vchannel, or needs it for itself.
    pub fn append(request_id: i64, vchannel: &str, exclusive: bool) -> (Box<Append>, mpsc::Receiver<Answer>) {
        let message = if exclusive {
            MessageBuilder::new(&CreatePartitionMessageHeader::default())
        } else {
            MessageBuilder::new(&DeleteMessageHeader::default())
        };
        of(request_id, message.vchannel(vchannel).payload("payload").build().unwrap())
    }

    /// A message of pchannel `p`.
    pub fn of(request_id: i64, message: Message) -> (Box<Append>, mpsc::Receiver<Answer>) {
        let (sender, answers) = mpsc::channel(1);
        let produced = check_produced(&message, "p", usize::MAX).unwrap();
        let charge = Allowance::new(2).of_wal(1, 1).try_charge(1).unwrap();
        let reply = Reply::new("p".into(), asked(request_id, message.size()), sender);
        (Append::new(message, &produced, charge, reply), answers)
    }

    /// A request of now.
    pub fn asked(request_id: i64, bytes: usize) -> Asked {
        Asked { request_id, bytes, at: Clock::system().now(), span: Span::none() }
    }

    #[test]
    fn reply_that_is_dropped_says_that_the_wal_is_gone() {
        let (append, mut answers) = append(7, "p_1v0", false);
        drop(append);
        let answer = answers.try_recv().unwrap();
        assert_eq!((answer.asked.request_id, answer.result), (7, Err(StreamingError::channel_fenced("p"))));
        assert!(answers.try_recv().is_err(), "one answer only");
    }
}
