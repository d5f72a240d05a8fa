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

/// See the module.
#[derive(Debug)]
pub(super) struct Broadcasts {
    catalog: Catalog,
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
        Ok(Self { catalog, kept: Mutex::new(kept) })
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
