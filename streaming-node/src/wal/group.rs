//! What travels down the append stack: messages in arrival order, answered when the group comes back.

use std::sync::Arc;

use streaming_types::{Message, MessageId, MessageType, StreamingError, TimeTick};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use woodpecker::{AppendError, Appended};

/// One message to append, and who wants to know.
#[derive(Debug)]
pub struct Append {
    pub message: Message,
    pub kind: MessageType,
    /// The tick must be greater than this.
    pub barrier: Option<TimeTick>,
    /// Given by the time tick layer, 0 before.
    pub tick: u64,
    /// Payload and properties as they came.
    pub bytes: usize,
    /// The message's share of the WAL's budget, given back when it is dropped.
    pub charge: OwnedSemaphorePermit,
    pub reply: Reply,
}

impl Append {
    pub fn vchannel(&self) -> Option<&str> {
        self.message.properties.vchannel()
    }

    pub fn is_exclusive(&self) -> bool {
        self.kind.is_exclusive()
    }
}

/// Where a message went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    pub id: MessageId,
    pub tick: u64,
}

/// The answer to one request of a stream.
#[derive(Debug)]
pub struct Answer {
    pub request_id: i64,
    /// Bytes of the message that is answered.
    pub bytes: usize,
    pub result: Result<Placed, StreamingError>,
}

/// The way back to a producer. It answers exactly once: when it is dropped unused, it says that the WAL is gone.
#[derive(Debug)]
pub struct Reply {
    pchannel: Arc<str>,
    request_id: i64,
    bytes: usize,
    /// Has room for every request of the stream that is in flight.
    answers: Option<mpsc::Sender<Answer>>,
}

impl Reply {
    pub fn new(pchannel: Arc<str>, request_id: i64, bytes: usize, answers: mpsc::Sender<Answer>) -> Self {
        Self { pchannel, request_id, bytes, answers: Some(answers) }
    }

    pub fn send(mut self, result: Result<Placed, StreamingError>) {
        self.answer(result);
    }

    fn answer(&mut self, result: Result<Placed, StreamingError>) {
        if let Some(answers) = self.answers.take() {
            // A producer that hung up wants no answer.
            let _ = answers.try_send(Answer { request_id: self.request_id, bytes: self.bytes, result });
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.answer(Err(StreamingError::channel_fenced(&self.pchannel)));
    }
}

/// The tick after the messages of a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Closing {
    pub tick: u64,
    /// Whether it is written to the log behind the messages, or told to readers in memory only.
    pub persisted: bool,
}

/// Messages that are appended together. An empty group is a tick.
#[derive(Debug, Default)]
pub struct Group {
    pub appends: Vec<Append>,
    /// Given by the time tick layer.
    pub closing: Closing,
    /// The closing tick as a message, if it is persisted. Given by the log writer.
    pub tick: Option<Message>,
    /// What the log made of it; `None` until then.
    pub written: Option<Result<Appended, AppendError>>,
}
