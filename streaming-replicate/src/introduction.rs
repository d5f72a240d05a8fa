//! Where shipping begins that never happened before: at the message that made the target follow the source. The source's
//! log says so itself.

use streaming_client::{Client, ConsumeError, ConsumeOptions, Delivery};
use streaming_proto::{common::ReplicateConfiguration, messages::AlterReplicateConfigMessageHeader};
use streaming_types::{DeliverFilter, DeliverPolicy, MessageId, MessageType, TimeTick};

/// A place in the source's log: reading from `id` on meets everything with a tick greater than `tick`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) id: MessageId,
    pub(crate) tick: TimeTick,
}

/// Whether `target` follows `source`.
pub(crate) fn follows(topology: &ReplicateConfiguration, source: &str, target: &str) -> bool {
    let edges = &topology.cross_cluster_topology;
    edges.iter().any(|edge| edge.source_cluster_id == source && edge.target_cluster_id == target)
}

/// Finds the last message that made `target` follow `source` from then on. Waits for it if there is none yet above the tick
/// at which the target left this source: one that follows again may know it before its source does.
pub(crate) async fn find(
    client: &Client,
    pchannel: &str,
    (source, target): (&str, &str),
    left: TimeTick,
) -> Result<Place, ConsumeError> {
    let end = end_of(client, pchannel).await?;
    let mut options = ConsumeOptions::new(pchannel, DeliverPolicy::All);
    options.filters.push(DeliverFilter::message_types([MessageType::AlterReplicateConfig]));
    options.time_ticks = true;
    let mut consumer = client.consume(options)?;
    let (mut found, mut followed) = (None, false);
    loop {
        let tick = match consumer.next().await? {
            Delivery::Message(message) => {
                let tick = message.time_tick().unwrap_or(TimeTick::ZERO);
                let header = message.header::<AlterReplicateConfigMessageHeader>().ok();
                if let Some(topology) = header.and_then(|header| header.replicate_configuration) {
                    let now = follows(&topology, source, target);
                    if now && !followed && tick > left {
                        found = message.last_confirmed().ok().map(|id| Place { id, tick });
                    }
                    followed = now;
                }
                tick
            }
            Delivery::Txn(_) => continue,
            Delivery::TimeTick { time_tick, .. } => time_tick,
        };
        if let Some(place) = found.filter(|_| tick >= end) {
            consumer.close().await;
            return Ok(place);
        }
    }
}

/// A tick that everything has reached which is in the log by now.
async fn end_of(client: &Client, pchannel: &str) -> Result<TimeTick, ConsumeError> {
    let mut options = ConsumeOptions::new(pchannel, DeliverPolicy::Latest);
    options.time_ticks = true;
    let mut consumer = client.consume(options)?;
    loop {
        consumer.next().await?;
        if let Some(tick) = consumer.progress() {
            consumer.close().await;
            return Ok(tick);
        }
    }
}
