//! Whether what was appended comes back as it was sent.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hasher},
    time::Duration,
};

use anyhow::{bail, ensure};
use streaming_client::{AppendResult, ConsumeError, ConsumeOptions, Consumer, Delivery};
use streaming_types::{DeliverFilter, DeliverPolicy, ImmutableMessage, MessageId, MessageType};

use super::Cluster;

/// What was acked and has not come back: where it is, and a digest of it, because a file need not fit into memory.
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    from: Option<MessageId>,
    digests: BTreeMap<MessageId, u64>,
}

impl Outstanding {
    pub(crate) fn add(&mut self, acked: &AppendResult, digest: u64) {
        self.from.get_or_insert_with(|| acked.last_confirmed_id.unwrap_or(acked.id));
        self.digests.insert(acked.id, digest);
    }

    /// Reads the channel until all is there.
    ///
    /// # Errors
    /// Something came back as something else; or nothing of it came for `patience`.
    pub(crate) async fn read(&mut self, cluster: &Cluster, channel: &str, patience: Duration) -> anyhow::Result<()> {
        let Some(from) = self.from else { return Ok(()) };
        let mut options = ConsumeOptions::new(channel.to_owned(), DeliverPolicy::StartFrom(from));
        options.filters = vec![DeliverFilter::message_types([MessageType::Insert])];
        let mut consumer = cluster.client.consume(options)?;
        while let Some((first, _)) = self.digests.first_key_value() {
            let (first, missing) = (*first, self.digests.len());
            let Ok(outcome) = cluster.clock.timeout(patience, self.next(&mut consumer)).await else {
                bail!(
                    "{missing} acknowledged messages, {first} the first, did not come back from {channel} within {patience:?}"
                );
            };
            outcome?;
        }
        Ok(())
    }

    /// The next one of them.
    async fn next(&mut self, consumer: &mut Consumer) -> anyhow::Result<()> {
        loop {
            match consumer.next().await {
                Ok(Delivery::Message(message)) if self.has_come(&message)? => return Ok(()),
                Ok(_) => {}
                Err(error @ ConsumeError::Stalled { .. }) => tracing::warn!(%error, "waiting for the channel"),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether it is one of them, which is not waited for any more then.
    fn has_come(&mut self, message: &ImmutableMessage) -> anyhow::Result<bool> {
        let Some(wanted) = self.digests.remove(&message.id) else { return Ok(false) };
        ensure!(digest(&message.payload) == wanted, "{} came back as something else than was appended", message.id);
        Ok(true)
    }
}

pub(crate) fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use streaming_types::{Properties, TimeTick};

    use super::*;

    fn acked(entry: i64, last_confirmed: Option<i64>) -> AppendResult {
        let id = |entry| MessageId { segment: 1, entry };
        AppendResult {
            id: id(entry),
            time_tick: TimeTick(1),
            last_confirmed_id: last_confirmed.map(id),
            txn: None,
            extra: None,
        }
    }

    fn message(entry: i64, payload: &'static [u8]) -> ImmutableMessage {
        let id = MessageId { segment: 1, entry };
        ImmutableMessage { id, payload: payload.into(), properties: Properties::default() }
    }

    #[test]
    fn only_what_was_appended_counts_and_only_as_it_was() {
        let mut outstanding = Outstanding::default();
        outstanding.add(&acked(7, Some(5)), digest(b"one"));
        outstanding.add(&acked(9, Some(7)), digest(b"two"));
        assert_eq!(outstanding.from, Some(MessageId { segment: 1, entry: 5 }));
        assert!(!outstanding.has_come(&message(5, b"one")).unwrap(), "somebody else's");
        assert!(outstanding.has_come(&message(7, b"one")).unwrap());
        assert!(!outstanding.has_come(&message(7, b"one")).unwrap(), "again");
        let error = outstanding.has_come(&message(9, b"other")).unwrap_err().to_string();
        assert!(error.contains("1:9"), "{error}");
    }
}
