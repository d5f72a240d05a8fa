//! Broadcasts of the source that this cluster may not have whole: what a promotion without the source has to complete.
//!
//! A node acknowledges every copy before its checkpoint passes it, so every copy that arrived is told of, sooner or later, and
//! what is told is stored before it is answered. A broadcast that is whole leaves its key: a node that dies tells of its copy
//! again, which alone would look like one that lacks the others.

use std::collections::BTreeMap;

use prost::Message as _;
use streaming_proto::streaming::{AckedCheckpoint, BroadcastTask, BroadcastTaskState};
use streaming_types::{
    ImmutableMessage, Message, MessageType,
    channel::to_physical,
    properties::{SET_BY_NODE, key},
};
use tokio::sync::Mutex;

use super::copies::{Copies, place};
use crate::catalog::{Catalog, CatalogError, Record};

/// Followed by the source's cluster, whose ids are its own, a slash and the id.
const PREFIX: &str = "replicated-broadcast/";
/// So many whole ones of a cluster are remembered. For one to be forgotten too early, as many have to become whole between
/// two checkpoints of a channel whose node is dead.
const REMEMBERED: usize = 4096;
/// What a metadata store surely takes. The log must not wait for ever for a larger one to be stored.
const LARGEST: usize = 1 << 20;
/// So many bytes of broadcasts may a channel be ahead of the others, on which they are still missing: all of them stand in the
/// metadata store, which has no room for what a channel that is not shipped would add up to in days.
const AHEAD: usize = 64 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Broadcasts {
    catalog: Catalog,
    ahead: usize,
    kept: Mutex<BTreeMap<BroadcastId, Kept>>,
}

/// By rising id, which is the order in which a source made those that depend on each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BroadcastId {
    source: String,
    id: u64,
}

#[derive(Debug)]
struct Kept {
    record: Record,
    /// `None` if it is whole.
    incomplete: Option<Copies>,
}

impl BroadcastId {
    fn parse(name: &str) -> Option<Self> {
        let (source, id) = name.rsplit_once('/')?;
        Some(Self { source: source.to_owned(), id: id.parse().ok()? })
    }

    fn key(&self) -> String {
        format!("{PREFIX}{}/{}", self.source, self.id)
    }

    /// By it a copy that was appended before is known.
    fn idempotency_key(&self) -> String {
        self.key().replace('/', "-")
    }
}

impl Broadcasts {
    pub(super) async fn load(catalog: Catalog) -> Result<Self, CatalogError> {
        let mut kept = BTreeMap::new();
        for (name, record, stored) in catalog.messages::<BroadcastTask>(PREFIX).await? {
            let Some(id) = BroadcastId::parse(&name) else { continue };
            kept.insert(id, Kept { record, incomplete: Copies::from_stored(stored) });
        }
        Ok(Self { catalog, ahead: AHEAD, kept: Mutex::new(kept) })
    }

    /// Whether a copy may be taken by now. The channel that is furthest behind is never kept waiting, since the copies that the
    /// others wait for come from there.
    pub(super) async fn has_room(&self, message: &ImmutableMessage) -> bool {
        let Some((id, _)) = copies_of(message) else { return true };
        let Some(pchannel) = message.properties.vchannel().map(to_physical) else { return true };
        let kept = self.kept.lock().await;
        let incomplete = kept.values().filter_map(|kept| kept.incomplete.as_ref());
        let ahead: usize = incomplete.filter(|copies| copies.stand_in(pchannel)).map(Copies::bytes).sum();
        ahead < self.ahead || kept.contains_key(&id)
    }

    /// A copy of something that the source broadcast stands in a log; whatever else a message is, it is none of these.
    ///
    /// # Errors
    /// It could not be stored.
    pub(super) async fn arrived(&self, message: &ImmutableMessage) -> Result<(), CatalogError> {
        let Some((id, copies)) = copies_of(message) else { return Ok(()) };
        let (Some(vchannel), Some(at)) = (message.properties.vchannel(), place(message)) else { return Ok(()) };
        let mut kept = self.kept.lock().await;
        if !kept.contains_key(&id) {
            let is_alone = copies.missing().iter().all(|missing| missing == vchannel);
            let bytes = copies.to_stored(BroadcastTaskState::Replicated).encoded_len();
            if bytes > LARGEST {
                tracing::error!(
                    source = id.source,
                    broadcast = id.id,
                    bytes,
                    "a promotion could not complete it: too large"
                );
            }
            if is_alone || bytes > LARGEST {
                return Ok(());
            }
            kept.insert(id.clone(), Kept { record: self.catalog.fresh(&id.key()), incomplete: Some(copies) });
        }
        self.note(&mut kept, &id, vchannel, &at).await
    }

    /// One that lacks copies, the oldest of its source.
    pub(super) async fn next_incomplete(&self) -> Option<(BroadcastId, Copies)> {
        let kept = self.kept.lock().await;
        kept.iter().find_map(|(id, kept)| Some((id.clone(), kept.incomplete.clone()?)))
    }

    /// A copy of our own stands in a log, or nothing will ever make it stand there.
    ///
    /// # Errors
    /// It could not be stored.
    pub(super) async fn settle(
        &self,
        id: &BroadcastId,
        vchannel: &str,
        at: &AckedCheckpoint,
    ) -> Result<(), CatalogError> {
        self.note(&mut *self.kept.lock().await, id, vchannel, at).await
    }

    async fn note(
        &self,
        all: &mut BTreeMap<BroadcastId, Kept>,
        id: &BroadcastId,
        vchannel: &str,
        at: &AckedCheckpoint,
    ) -> Result<(), CatalogError> {
        let Some(kept) = all.get_mut(id) else { return Ok(()) };
        let Some(mut copies) = kept.incomplete.clone().filter(|copies| copies.lacks(vchannel)) else { return Ok(()) };
        copies.note(vchannel, at);
        let is_whole = copies.missing().is_empty();
        let stored = if is_whole {
            BroadcastTask { state: BroadcastTaskState::Tombstone.into(), ..BroadcastTask::default() }
        } else {
            copies.to_stored(BroadcastTaskState::Replicated)
        };
        self.catalog.store_message(&mut kept.record, &stored).await?;
        kept.incomplete = (!is_whole).then_some(copies);
        if is_whole { self.forget_oldest(all, &id.source).await } else { Ok(()) }
    }

    async fn forget_oldest(&self, all: &mut BTreeMap<BroadcastId, Kept>, source: &str) -> Result<(), CatalogError> {
        let whole = |(id, kept): &(&BroadcastId, &Kept)| id.source == source && kept.incomplete.is_none();
        if all.iter().filter(whole).count() <= REMEMBERED {
            return Ok(());
        }
        let Some(oldest) = all.iter().find(whole).map(|(id, _)| id.clone()) else { return Ok(()) };
        if let Some(forgotten) = all.get(&oldest) {
            self.catalog.remove(&forgotten.record).await?;
            all.remove(&oldest);
        }
        Ok(())
    }
}

/// The broadcast that a message is a copy of, as this cluster would append it. The topology is no concern of this.
fn copies_of(message: &ImmutableMessage) -> Option<(BroadcastId, Copies)> {
    let mut properties = message.properties.clone();
    let (source, broadcast) = (properties.replicate().ok()??.cluster_id, properties.broadcast().ok()??);
    if properties.message_type() == Ok(MessageType::AlterReplicateConfig) {
        return None;
    }
    let id = BroadcastId { source, id: broadcast.broadcast_id };
    for key in SET_BY_NODE.into_iter().chain([key::REPLICATE, key::VCHANNEL]) {
        properties.remove(key);
    }
    properties.set_idempotency_key(id.idempotency_key());
    let message = Message { payload: message.payload.clone(), properties };
    Some((id, Copies::new(message, broadcast)))
}

#[cfg(test)]
mod tests {
    use streaming_proto::messages::{BroadcastHeader, CreatePartitionMessageHeader, ReplicateHeader};
    use streaming_types::{MessageBuilder, MessageId, TimeTick};
    use woodpecker_base::{clock::Clock, metadata::MemoryStore};

    use super::*;
    use crate::catalog::tests::{catalog, reign};

    const V: [&str; 2] = ["by-dev-rootcoord-dml_0_7v0", "by-dev-rootcoord-dml_1_7v1"];

    /// The copy of a broadcast that stands in the log of a vchannel.
    fn copy(broadcast_id: u64, vchannel: &str) -> ImmutableMessage {
        let header = CreatePartitionMessageHeader { collection_id: 7, partition_id: 1 };
        let mut message = MessageBuilder::new(&header).vchannel(vchannel).payload(vec![0; 1_000]).build().unwrap();
        let vchannels = V.map(str::to_owned).into();
        message.properties.set_broadcast(&BroadcastHeader { broadcast_id, vchannels, ..Default::default() });
        message.properties.set_replicate(&ReplicateHeader { cluster_id: "far".into(), ..Default::default() });
        message.properties.set_time_tick(TimeTick(10));
        message.properties.set_last_confirmed_is_self();
        message.into_immutable(MessageId::new(1, 7))
    }

    #[tokio::test]
    async fn a_channel_that_is_far_ahead_waits_for_the_others_and_they_do_not_wait_for_it() {
        let store = MemoryStore::new(Clock::system());
        let catalog = catalog(&store, reign(&store).await);
        let broadcasts = Broadcasts { ahead: 10_000, ..Broadcasts::load(catalog).await.unwrap() };
        let mut told = 0;
        while broadcasts.has_room(&copy(told, V[0])).await {
            broadcasts.arrived(&copy(told, V[0])).await.unwrap();
            told += 1;
        }
        assert!((5..=10).contains(&told), "{told} of 1,000 bytes and more");
        assert!(broadcasts.has_room(&copy(0, V[0])).await, "it is told of again");
        for id in [0, told] {
            assert!(broadcasts.has_room(&copy(id, V[1])).await);
            broadcasts.arrived(&copy(id, V[1])).await.unwrap();
        }
        assert!(broadcasts.has_room(&copy(told + 1, V[0])).await, "one of them is whole");
    }
}
