//! Messages of one vchannel that consumers get together, or not at all.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::FutureExt;
use streaming_proto::messages::{BeginTxnMessageHeader, CommitTxnMessageHeader, RollbackTxnMessageHeader};
use streaming_types::{Message, MessageBuilder, StreamingCode, TxnContext, message::Header};

use super::{Append, AppendResult, Producer};
use crate::error::{AppendError, TxnError};

/// An open transaction. It expires when no message of it came for its keepalive; dropping it rolls it back.
#[derive(Debug)]
pub struct Transaction {
    producer: Producer,
    vchannel: String,
    context: TxnContext,
    /// Messages without an outcome.
    in_flight: VecDeque<Append>,
    /// Why it cannot be committed any more.
    failed: Option<TxnError>,
    ended: bool,
}

impl Producer {
    /// Begins a transaction on a vchannel of this producer's channel. `keepalive` is how long it lives without a new
    /// message; without one, the node decides (10 s).
    ///
    /// # Errors
    /// [`TxnError::InvalidKeepalive`], and those of an append.
    pub async fn begin(&self, vchannel: &str, keepalive: Option<Duration>) -> Result<Transaction, TxnError> {
        let keepalive_milliseconds = match keepalive.map(|keepalive| (keepalive, keepalive.as_millis())) {
            None => 0,
            Some((keepalive, 0)) => return Err(TxnError::InvalidKeepalive(keepalive)),
            Some((_, millis)) => i64::try_from(millis).unwrap_or(i64::MAX),
        };
        let begin = MessageBuilder::new(&BeginTxnMessageHeader { keepalive_milliseconds }).vchannel(vchannel);
        let begun = Some(self.append(built(begin)?).await?);
        let begun = Beginning { producer: self.clone(), vchannel: vchannel.to_owned(), begun }.await?;
        let context = begun.txn.ok_or_else(|| AppendError::Malformed("a begin without its transaction".to_owned()))?;
        Ok(Transaction::new(self.clone(), vchannel.to_owned(), context))
    }

    /// Appends messages of one vchannel as one transaction: consumers get all of them or none. A transaction that expires on
    /// the way is run again as a whole; the log never holds two that are committed.
    ///
    /// # Errors
    /// [`TxnError`] of the last run.
    pub async fn append_together(&self, vchannel: &str, messages: Vec<Message>) -> Result<AppendResult, TxnError> {
        let core = &self.shared.core;
        let deadline = core.clock.now() + core.settings.timeouts.append;
        let key = self.shared.keys.next(str::to_owned);
        let mut backoff = core.backoff();
        loop {
            match self.run(vchannel, messages.clone(), &key).await {
                Err(TxnError::Expired(_)) if core.clock.now() < deadline => backoff.wait().await,
                outcome => return outcome,
            }
        }
    }

    async fn run(&self, vchannel: &str, messages: Vec<Message>, key: &str) -> Result<AppendResult, TxnError> {
        let mut txn = self.begin(vchannel, None).await?;
        for message in messages {
            txn.append(message).await?;
        }
        txn.commit_as(Some(key)).await
    }
}

/// A begin that is on its way. Who gives it up would leave its transaction open for as long as that lives.
struct Beginning {
    producer: Producer,
    vchannel: String,
    begun: Option<Append>,
}

impl Future for Beginning {
    type Output = Result<AppendResult, AppendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(begun) = &mut self.begun else { return Poll::Pending };
        let outcome = ready!(Pin::new(begun).poll(cx));
        self.begun = None;
        Poll::Ready(outcome)
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        let Some(begun) = self.begun.take() else { return };
        let (producer, vchannel) = (self.producer.clone(), std::mem::take(&mut self.vchannel));
        self.producer.shared.core.spawn_until_stopped(async move {
            if let Some(context) = begun.await.ok().and_then(|begun| begun.txn) {
                drop(Transaction::new(producer, vchannel, context));
            }
        });
    }
}

impl Transaction {
    fn new(producer: Producer, vchannel: String, context: TxnContext) -> Self {
        Self { producer, vchannel, context, in_flight: VecDeque::new(), failed: None, ended: false }
    }

    /// The transaction's id, and its keepalive as the node gave it.
    #[must_use]
    pub fn context(&self) -> TxnContext {
        self.context
    }

    /// Adds an insert or a delete of the transaction's vchannel. Waits only for room among the unacknowledged appends of
    /// the channel; whether the message was appended shows at the commit, or at a later `append`.
    ///
    /// # Errors
    /// [`TxnError`]; the transaction cannot be committed any more, unless the error is [`TxnError::InvalidBody`].
    pub async fn append(&mut self, mut message: Message) -> Result<(), TxnError> {
        let properties = &mut message.properties;
        match properties.message_type() {
            Ok(kind) if kind.is_txn_body() => {}
            Ok(kind) => return Err(TxnError::InvalidBody(format!("{kind} is neither insert nor delete"))),
            Err(error) => return Err(TxnError::InvalidBody(error.to_string())),
        }
        if properties.vchannel() != Some(&self.vchannel) {
            return Err(TxnError::InvalidBody(format!("it is not for {}", self.vchannel)));
        }
        properties.set_txn(self.context);
        while let Some(first) = self.in_flight.front_mut()
            && let Some(outcome) = first.now_or_never()
        {
            self.in_flight.pop_front();
            self.note(outcome);
        }
        if self.failed.is_none() {
            match self.producer.append(message).await {
                Ok(append) => self.in_flight.push_back(append),
                Err(error) => self.failed = Some(error.into()),
            }
        }
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Makes the transaction visible, as soon as all its messages are appended. Its place in the log is that of the commit.
    ///
    /// # Errors
    /// [`TxnError`]: of one of its messages, then it is rolled back; or of the commit.
    pub async fn commit(self) -> Result<AppendResult, TxnError> {
        self.commit_as(None).await
    }

    async fn commit_as(mut self, key: Option<&str>) -> Result<AppendResult, TxnError> {
        self.settle().await;
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let mut commit = self.last(&CommitTxnMessageHeader {})?;
        key.into_iter().for_each(|key| commit.properties.set_idempotency_key(key));
        let committing = self.producer.append(commit).await?;
        // Given up before, it is rolled back.
        self.ended = true;
        Ok(committing.await?)
    }

    /// Gives the transaction up. One that has ended already is as good as rolled back.
    ///
    /// # Errors
    /// [`TxnError::Append`]; the transaction expires then.
    pub async fn rollback(mut self) -> Result<(), TxnError> {
        self.settle().await;
        let rollback = self.last(&RollbackTxnMessageHeader {})?;
        let rolling_back = self.producer.append(rollback).await?;
        self.ended = true;
        rolled_back(rolling_back.await)
    }

    /// Waits for the outcomes of all messages.
    async fn settle(&mut self) {
        // Kept in its place until then, so that giving up the wait loses nothing.
        while let Some(first) = self.in_flight.front_mut() {
            let outcome = first.await;
            self.in_flight.pop_front();
            self.note(outcome);
        }
    }

    fn note(&mut self, outcome: Result<AppendResult, AppendError>) {
        if let Err(error) = outcome {
            self.failed.get_or_insert_with(|| error.into());
        }
    }

    fn last<H: Header>(&self, header: &H) -> Result<Message, TxnError> {
        built(MessageBuilder::new(header).vchannel(&self.vchannel).txn(self.context))
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let Ok(rollback) = self.last(&RollbackTxnMessageHeader {}) else { return };
        let (producer, in_flight) = (self.producer.clone(), std::mem::take(&mut self.in_flight));
        self.producer.shared.core.spawn_until_stopped(async move {
            for append in in_flight {
                let _ = append.await;
            }
            // It expires otherwise.
            if let Ok(rolling_back) = producer.append(rollback).await {
                let _ = rolling_back.await;
            }
        });
    }
}

fn rolled_back(outcome: Result<AppendResult, AppendError>) -> Result<(), TxnError> {
    match outcome {
        Ok(_) => Ok(()),
        Err(AppendError::Refused(error)) if error.code() == StreamingCode::TransactionExpired => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn built(message: MessageBuilder) -> Result<Message, TxnError> {
    message.build().map_err(|error| TxnError::InvalidBody(error.to_string()))
}
