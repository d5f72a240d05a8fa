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

/// What the source's log says of who follows whom.
#[derive(Debug)]
struct Search<'a> {
    source: &'a str,
    target: &'a str,
    /// At which the target left this source.
    left: TimeTick,
    /// The last message that made the target follow.
    begun: Option<Place>,
    followed: bool,
}

impl Search<'_> {
    /// Takes a change of the topology at its place.
    fn take(&mut self, topology: &ReplicateConfiguration, at: Place) {
        let now = follows(topology, self.source, self.target);
        if now && !self.followed {
            self.begun = Some(at);
        }
        self.followed = now;
    }

    /// Where shipping begins, by what the log says up to now.
    fn place(&self) -> Option<Place> {
        match self.begun {
            Some(begun) if begun.tick > self.left => Some(begun),
            // Promoted without its source, which does not know, and taken back: it lacks what came since.
            Some(begun) if self.followed => Some(Place { id: begun.id, tick: self.left }),
            _ => None,
        }
    }
}

/// Finds the last message that made `target` follow `source` from then on. Waits for it if the log says that it does not, at
/// and behind the tick at which the target left this source: one that follows again may know it before its source does.
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
    let mut search = Search { source, target, left, begun: None, followed: false };
    loop {
        let tick = match consumer.next().await? {
            Delivery::Message(message) => {
                let tick = message.time_tick().unwrap_or(TimeTick::ZERO);
                let header = message.header::<AlterReplicateConfigMessageHeader>().ok();
                let topology = header.and_then(|header| header.replicate_configuration);
                if let (Some(topology), Ok(id)) = (topology, message.last_confirmed()) {
                    search.take(&topology, Place { id, tick });
                }
                tick
            }
            Delivery::Txn(_) => continue,
            Delivery::TimeTick { time_tick, .. } => time_tick,
        };
        if let Some(place) = search.place().filter(|_| tick >= end) {
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

#[cfg(test)]
mod tests {
    use streaming_proto::common::CrossClusterTopology;

    use super::*;

    fn place(tick: u64) -> Place {
        Place { id: MessageId::new(1, i64::try_from(tick).unwrap()), tick: TimeTick(tick) }
    }

    /// Where shipping begins, by whether the target follows from each tick on.
    fn found(left: u64, changes: &[(u64, bool)]) -> Option<Place> {
        let edge = CrossClusterTopology { source_cluster_id: "a".into(), target_cluster_id: "b".into() };
        let mut search = Search { source: "a", target: "b", left: TimeTick(left), begun: None, followed: false };
        for (tick, follows) in changes {
            let cross_cluster_topology = if *follows { vec![edge.clone()] } else { vec![] };
            let topology = ReplicateConfiguration { cross_cluster_topology, ..Default::default() };
            search.take(&topology, place(*tick));
        }
        search.place()
    }

    #[test]
    fn shipping_begins_at_the_last_message_that_made_the_target_follow() {
        assert_eq!(found(0, &[]), None);
        assert_eq!(found(0, &[(10, true), (20, true)]), Some(place(10)));
        assert_eq!(found(50, &[(10, true), (50, false), (60, true), (70, true)]), Some(place(60)));
    }

    #[test]
    fn one_that_left_is_not_shipped_to_before_its_source_knows_that_it_follows_again() {
        assert_eq!(found(50, &[(10, true), (50, false)]), None);
        assert_eq!(found(50, &[(10, true), (50, false), (60, false)]), None);
    }

    #[test]
    fn one_that_left_unknown_to_its_source_is_shipped_what_came_since() {
        assert_eq!(found(30, &[(10, true)]), Some(Place { tick: TimeTick(30), ..place(10) }));
        assert_eq!(found(30, &[(10, true), (20, true), (40, true)]), Some(Place { tick: TimeTick(30), ..place(10) }));
    }
}
