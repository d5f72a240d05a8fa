//! Seals what has grown enough and says so in the log.
//!
//! A sealed segment takes no more inserts, so its `Flush` may go as soon as no transaction is open that may hold an insert
//! into it: those of its vchannel that were open when it was sealed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use streaming_proto::messages::{FlushMessageBody, FlushMessageHeader};
use streaming_types::{Message, MessageBuilder, MessageType, message::BuildError};
use tokio_util::sync::CancellationToken;
use woodpecker_base::clock::{Clock, Instant};

use super::{
    growth::Growth,
    layer::Shards,
    segment::Policy,
    table::{Sealed, Table},
};
use crate::{
    flow::Memory,
    metrics,
    settings::Segments as Limits,
    wal::{
        Appends,
        sessions::{Sessions, SharedSessions},
    },
};

const INTERVAL: Duration = Duration::from_secs(1);
/// Segments are not sealed for the node's memory more often than this: it takes a while until it helps.
const MEMORY_PAUSE: Duration = Duration::from_secs(30);

/// See the module.
pub struct Sealer {
    pub shards: Shards,
    pub growth: Arc<Growth>,
    pub memory: Memory,
    pub sessions: SharedSessions,
    pub appends: Appends,
    pub limits: Limits,
    pub clock: Clock,
}

impl Sealer {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut due = self.clock.ticker(INTERVAL);
        let mut waits: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
        while stop.run_until_cancelled(due.tick()).await.is_some() {
            let now = self.clock.now();
            self.shards.lock().seal_due(&self.limits, now);
            if self.growth.looks(now, INTERVAL / 2) {
                self.relieve(now);
            }
            let ready = ready(&self.sessions.lock(), &mut self.shards.lock(), &mut waits);
            for sealed in ready {
                match flush(&sealed) {
                    Ok(message) => {
                        metrics::sealed(sealed.policy.name());
                        let _ = stop
                            .run_until_cancelled(self.appends.clone().append_own(MessageType::Flush, message))
                            .await;
                    }
                    Err(error) => tracing::error!(segment = sealed.segment.id, %error, "no flush could be made"),
                }
            }
        }
    }

    /// Seals for the sake of the whole node.
    fn relieve(&self, now: Instant) {
        let Some(usage) = self.memory.usage() else { return };
        let share = |percent: u64| usage.total / 100 * percent;
        if self.growth.bytes() > share(self.limits.growing_high_percent) {
            self.growth.seal_down_to(share(self.limits.growing_low_percent), Policy::Growth);
        }
        if usage.percent() > self.limits.memory_percent && self.growth.relieves(now, MEMORY_PAUSE) {
            self.growth.seal_down_to(share(self.limits.growing_low_percent), Policy::Memory);
        }
    }
}

/// The sealed segments that nothing holds any more. They stay in the table until their `Flush` comes to it: a message that
/// passes that one may end them first.
fn ready(sessions: &Sessions, table: &mut Table, waits: &mut BTreeMap<i64, Vec<i64>>) -> Vec<Sealed> {
    let sealed = table.sealed();
    waits.retain(|id, _| sealed.iter().any(|sealed| sealed.segment.id == *id));
    let mut ready = Vec::new();
    for sealed in sealed.iter_mut().filter(|sealed| !sealed.flushing) {
        let open = waits.entry(sealed.segment.id).or_insert_with(|| sessions.open_on(&sealed.vchannel));
        open.retain(|txn| sessions.is_open(*txn));
        if open.is_empty() {
            sealed.flushing = true;
            ready.push(sealed.clone());
        }
    }
    ready
}

fn flush(sealed: &Sealed) -> Result<Message, BuildError> {
    let header = FlushMessageHeader {
        collection_id: sealed.segment.collection_id,
        partition_id: sealed.segment.partition_id,
        segment_id: sealed.segment.id,
    };
    MessageBuilder::new(&header).vchannel(&sealed.vchannel).body(&FlushMessageBody {}).build()
}

#[cfg(test)]
mod tests {
    use streaming_proto::messages::CreateSegmentMessageHeader;
    use streaming_types::{TimeTick, TxnContext};
    use woodpecker::EntryId;

    use super::*;
    use crate::shard::segment::Segment;

    const V: &str = "p_1v0";

    #[tokio::test]
    async fn sealed_segment_is_flushed_once_when_no_transaction_holds_it_and_can_be_ended_until_then() {
        let mut table = Table::default();
        table.create(V, 1, [10]);
        for segment_id in [7, 8] {
            let header = CreateSegmentMessageHeader { segment_id, ..Default::default() };
            table.grow(V, Segment::created(&header, Clock::system().now()));
            table.created(V, segment_id, 5);
            table.seal(segment_id, Policy::Idle);
        }
        let mut sessions = Sessions::new(EntryId { segment: 1, entry: 0 });
        sessions.begin(TxnContext::infinite(1), V, TimeTick(6)).unwrap();
        let mut waits = BTreeMap::new();
        assert!(ready(&sessions, &mut table, &mut waits).is_empty(), "the transaction may hold an insert");
        sessions.fail(None);
        let ids = |sealed: Vec<Sealed>| sealed.iter().map(|sealed| sealed.segment.id).collect::<Vec<_>>();
        assert_eq!(ids(ready(&sessions, &mut table, &mut waits)), [7, 8]);
        assert!(ready(&sessions, &mut table, &mut waits).is_empty(), "they are on their way");
        assert!(table.flush(7));
        assert_eq!(table.fence(V, 1, 10), [8], "its flush has no place yet");
        assert!(!table.flush(8), "it comes too late");
    }
}
