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
    pub _charge: OwnedSemaphorePermit,
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

#[cfg(test)]
pub mod samples {
    use streaming_proto::messages::{CreatePartitionMessageHeader, DeleteMessageHeader};
    use streaming_types::MessageBuilder;
    use tokio::sync::Semaphore;

    use super::*;

    /// A message that shares its vchannel, or needs it for itself.
    pub fn append(request_id: i64, vchannel: &str, exclusive: bool) -> (Append, mpsc::Receiver<Answer>) {
        let message = if exclusive {
            MessageBuilder::new(&CreatePartitionMessageHeader::default())
        } else {
            MessageBuilder::new(&DeleteMessageHeader::default())
        };
        let message = message.vchannel(vchannel).payload("payload").build().unwrap();
        let (sender, answers) = mpsc::channel(1);
        let append = Append {
            kind: message.properties.message_type().unwrap(),
            barrier: None,
            tick: 0,
            bytes: message.size(),
            _charge: Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap(),
            reply: Reply::new("p".into(), request_id, message.size(), sender),
            message,
        };
        (append, answers)
    }

    #[test]
    fn reply_that_is_dropped_says_that_the_wal_is_gone() {
        let (append, mut answers) = append(7, "p_1v0", false);
        drop(append);
        let answer = answers.try_recv().unwrap();
        assert_eq!((answer.request_id, answer.result), (7, Err(StreamingError::channel_fenced("p"))));
        assert!(answers.try_recv().is_err(), "one answer only");
    }
}
