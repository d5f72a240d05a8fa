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
    /// At which the target left this source; 0 if it never followed it.
    left: TimeTick,
    /// The last place that was met before that, or at it.
    before: Option<Place>,
    /// The last message behind it that made the target follow.
    begun: Option<Place>,
    followed: bool,
}

impl<'a> Search<'a> {
    fn new(source: &'a str, target: &'a str, left: TimeTick) -> Self {
        Self { source, target, left, before: None, begun: None, followed: false }
    }

    /// Everything up to this place has been met.
    fn reach(&mut self, at: Place) {
        if at.tick <= self.left {
            self.before = Some(at);
        }
        // Who left there followed until then, though the log may not hold any more since when.
        if at.tick < self.left {
            self.followed = true;
        }
    }

    /// Takes a change of the topology at its place.
    fn take(&mut self, topology: &ReplicateConfiguration, at: Place) {
        self.reach(at);
        let now = follows(topology, self.source, self.target);
        if now && !self.followed && at.tick > self.left {
            self.begun = Some(at);
        }
        self.followed = now;
    }

    /// Where shipping begins, by what the log says up to now.
    fn place(&self) -> Option<Place> {
        // Promoted without its source, which does not know, and taken back: it lacks what came since.
        let unbroken = self.before.filter(|_| self.followed).map(|before| Place { tick: self.left, ..before });
        self.begun.or(unbroken)
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
    let (begin, end) = (begin_of(client, pchannel).await?, end_of(client, pchannel).await?);
    let mut options = ConsumeOptions::new(pchannel, DeliverPolicy::All);
    options.filters.push(DeliverFilter::message_types([MessageType::AlterReplicateConfig]));
    options.time_ticks = true;
    let mut consumer = client.consume(options)?;
    let mut search = Search::new(source, target, left);
    // Of what else is there before the target left the search may meet nothing: an idle log has no ticks.
    search.reach(begin);
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
            Delivery::TimeTick { time_tick, last_confirmed } => {
                search.reach(Place { id: last_confirmed, tick: time_tick });
                time_tick
            }
        };
        if let Some(place) = search.place().filter(|_| tick >= end) {
            consumer.close().await;
            return Ok(place);
        }
    }
}

/// The first place that the log still holds.
async fn begin_of(client: &Client, pchannel: &str) -> Result<Place, ConsumeError> {
    let mut options = ConsumeOptions::new(pchannel, DeliverPolicy::All);
    options.time_ticks = true;
    let mut consumer = client.consume(options)?;
    let (id, tick) = match consumer.next().await? {
        Delivery::Message(message) => (message.id, message.time_tick().ok()),
        Delivery::Txn(txn) => (txn.begin.id, txn.commit.time_tick().ok()),
        Delivery::TimeTick { time_tick, last_confirmed } => (last_confirmed, Some(time_tick)),
    };
    consumer.close().await;
    Ok(Place { id, tick: tick.unwrap_or(TimeTick(u64::MAX)) })
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

    /// Where shipping begins, by whether the target follows from each tick on, or by a tick that says nothing of it.
    fn found(left: u64, log: &[(u64, Option<bool>)]) -> Option<Place> {
        let edge = CrossClusterTopology { source_cluster_id: "a".into(), target_cluster_id: "b".into() };
        let mut search = Search::new("a", "b", TimeTick(left));
        for (tick, follows) in log {
            let Some(follows) = follows else {
                search.reach(place(*tick));
                continue;
            };
            let cross_cluster_topology = if *follows { vec![edge.clone()] } else { vec![] };
            let topology = ReplicateConfiguration { cross_cluster_topology, ..Default::default() };
            search.take(&topology, place(*tick));
        }
        search.place()
    }

    const TICK: Option<bool> = None;
    const FOLLOWS: Option<bool> = Some(true);
    const LEFT: Option<bool> = Some(false);

    #[test]
    fn shipping_begins_at_the_last_message_that_made_the_target_follow() {
        assert_eq!(found(0, &[]), None);
        assert_eq!(found(0, &[(5, TICK), (10, FOLLOWS), (20, FOLLOWS), (30, TICK)]), Some(place(10)));
        let again = [(10, FOLLOWS), (40, TICK), (50, LEFT), (50, TICK), (60, FOLLOWS), (70, FOLLOWS)];
        assert_eq!(found(50, &again), Some(place(60)));
        assert_eq!(found(50, &[(55, TICK), (60, FOLLOWS)]), Some(place(60)), "the log holds nothing of before");
    }

    #[test]
    fn one_that_left_is_not_shipped_to_before_its_source_knows_that_it_follows_again() {
        assert_eq!(found(50, &[(10, FOLLOWS), (50, LEFT)]), None);
        assert_eq!(found(50, &[(40, TICK), (50, LEFT), (55, TICK), (60, LEFT)]), None);
        assert_eq!(found(50, &[(55, TICK)]), None, "the log holds nothing of before");
    }

    #[test]
    fn one_that_left_unknown_to_its_source_is_shipped_what_came_since() {
        let from = |tick| Some(Place { tick: TimeTick(30), ..place(tick) });
        assert_eq!(found(30, &[(10, FOLLOWS)]), from(10));
        assert_eq!(found(30, &[(10, FOLLOWS), (20, FOLLOWS), (35, TICK), (40, FOLLOWS)]), from(20));
    }

    #[test]
    fn one_that_left_unknown_to_its_source_is_shipped_what_came_since_though_the_log_begins_later_than_it_followed() {
        let from = |tick| Some(Place { tick: TimeTick(30), ..place(tick) });
        assert_eq!(found(30, &[(20, TICK), (29, TICK), (31, TICK)]), from(29));
        assert_eq!(found(30, &[(20, TICK), (40, FOLLOWS)]), from(20), "not only what came behind another change");
    }
}
