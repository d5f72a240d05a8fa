//! A log in memory, shared by the nodes that own it one after the other.

use std::sync::Mutex;

use streaming_proto::messages::{BeginTxnMessageHeader, CommitTxnMessageHeader};
use streaming_types::{
    ImmutableMessage, Message, MessageId, MessageType, TimeTick, TxnContext, message::time_tick_message,
    properties::key,
};
use tokio::sync::watch;

use super::lock;

pub struct Wal {
    messages: Mutex<Vec<ImmutableMessage>>,
    length: watch::Sender<usize>,
}

impl Default for Wal {
    fn default() -> Self {
        Self { messages: Mutex::default(), length: watch::channel(0).0 }
    }
}

impl Wal {
    /// Appends: id and time tick count up together, and the last confirmed id lags two messages behind, so that who starts
    /// there meets messages that he has seen.
    pub fn append(&self, mut message: Message) -> ImmutableMessage {
        let mut messages = lock(&self.messages);
        let entry = i64::try_from(messages.len()).unwrap();
        message.properties.set_time_tick(TimeTick(100 + u64::try_from(entry).unwrap() * 10));
        message.properties.set_last_confirmed(MessageId::new(1, (entry - 2).max(0)));
        if let Ok(begin) = message.header::<BeginTxnMessageHeader>()
            && !message.properties.contains(key::TXN)
        {
            let keepalive = begin.keepalive_milliseconds;
            message.properties.set_txn(TxnContext::new(entry, if keepalive == 0 { 10_000 } else { keepalive }));
        }
        let message = message.into_immutable(MessageId::new(1, entry));
        messages.push(message.clone());
        self.length.send_replace(messages.len());
        message
    }

    /// A time tick that is in the log.
    pub fn tick(&self) {
        self.append(time_tick_message(TimeTick::ZERO, 10));
    }

    /// A committed transaction, as a node delivers it: bodies carry tick and last confirmed id of the commit.
    pub fn txn(&self, id: i64, bodies: Vec<Message>) {
        let txn = TxnContext::new(id, 10_000);
        let part = |mut message: Message| {
            message.properties.set_txn(txn);
            message
        };
        let begin = streaming_types::MessageBuilder::new(&BeginTxnMessageHeader::default()).vchannel(super::VCHANNEL);
        let commit =
            streaming_types::MessageBuilder::new(&CommitTxnMessageHeader {}).vchannel(super::VCHANNEL).txn(txn);
        self.append(part(begin.build().unwrap()));
        let first = lock(&self.messages).len();
        for body in bodies {
            self.append(part(body));
        }
        let commit = self.append(commit.build().unwrap());
        let (tick, confirmed) = (commit.time_tick().unwrap(), commit.last_confirmed().unwrap());
        let mut messages = lock(&self.messages);
        let last = messages.len() - 1;
        for body in &mut messages[first..last] {
            streaming_types::txn::place_body_at_commit(body, tick, confirmed);
        }
    }

    /// Changes what is in the log, to make it wrong.
    pub fn corrupt(&self, index: usize, change: impl FnOnce(&mut ImmutableMessage)) {
        change(&mut lock(&self.messages)[index]);
    }

    pub fn len(&self) -> usize {
        lock(&self.messages).len()
    }

    pub fn get(&self, index: usize) -> Option<ImmutableMessage> {
        lock(&self.messages).get(index).cloned()
    }

    /// The commit of the transaction that the message at `index` is a part of, if the transaction begins at `first` or later.
    /// What belongs to none, for a test made it so, decides for itself.
    pub fn commit_of(&self, index: usize, first: usize) -> Option<ImmutableMessage> {
        let messages = lock(&self.messages);
        let is = |message: &ImmutableMessage, wanted| message.properties.message_type() == Ok(wanted);
        let begin = messages[..=index].iter().rposition(|message| is(message, MessageType::BeginTxn));
        let commit = messages[index..].iter().find(|message| is(message, MessageType::CommitTxn));
        match (begin, commit) {
            (Some(begin), Some(commit)) => (begin >= first).then(|| commit.clone()),
            _ => Some(messages[index].clone()),
        }
    }

    pub fn payloads(&self) -> Vec<String> {
        let messages = lock(&self.messages);
        messages.iter().map(|message| String::from_utf8(message.payload.to_vec()).unwrap()).collect()
    }

    /// Payloads without those that came before.
    pub fn first_copies(&self) -> Vec<String> {
        let mut seen = std::collections::BTreeSet::new();
        self.payloads().into_iter().filter(|payload| seen.insert(payload.clone())).collect()
    }

    /// Every message, with its type.
    pub fn typed(&self) -> Vec<(MessageType, ImmutableMessage)> {
        let messages = lock(&self.messages);
        messages.iter().map(|message| (message.properties.message_type().unwrap(), message.clone())).collect()
    }

    pub fn watch(&self) -> watch::Receiver<usize> {
        self.length.subscribe()
    }
}
