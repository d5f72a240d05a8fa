//! What a WAL's messages amount to: vchannels, segments, and how far all of it is done.
//!
//! Pure, and the same for a replayed message and for one that was appended just now. Applying a message twice is the
//! same as once: each component knows the tick up to which it is current.

use std::collections::{BTreeMap, BTreeSet};

use streaming_proto::{common, streaming::WalCheckpoint};
use streaming_types::{MessageId, MessageType};
use woodpecker::EntryId;

use super::{
    catalog::{Change, Changes, Persisted},
    key_span::KeySpan,
    seen::Seen,
    segments::Segments,
};

pub use super::vchannel::{LARGEST_SCHEMA, Schema, VChannel, schema_in};
use crate::replication::Replication;

/// The value that says that a checkpoint is one of this protocol.
const MAGIC: i64 = 1;

/// A point in a WAL: reading from entry `id` on meets everything that is not done, and what is at or before `tick` is.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    pub id: EntryId,
    pub tick: u64,
    pub replicate_config: Option<common::ReplicateConfiguration>,
    pub replicate_checkpoint: Option<common::ReplicateCheckpoint>,
    pub replicate_left: Vec<common::ReplicateCheckpoint>,
}

impl Default for Checkpoint {
    /// Before everything.
    fn default() -> Self {
        Self::at(EntryId { segment: 0, entry: 0 }, 0)
    }
}

impl Checkpoint {
    pub fn at(id: EntryId, tick: u64) -> Self {
        Self { id, tick, replicate_config: None, replicate_checkpoint: None, replicate_left: Vec::new() }
    }

    pub fn to_proto(&self) -> WalCheckpoint {
        let id = MessageId::from_u64(self.id.segment, self.id.entry);
        WalCheckpoint {
            message_id: id.map(MessageId::to_proto),
            time_tick: self.tick,
            recovery_magic: MAGIC,
            replicate_config: self.replicate_config.clone(),
            replicate_checkpoint: self.replicate_checkpoint.clone(),
            replicate_left: self.replicate_left.clone(),
        }
    }

    pub fn from_proto(proto: &WalCheckpoint) -> Option<Self> {
        let (segment, entry) = MessageId::from_proto(proto.message_id.as_ref()).ok()?.to_u64();
        Some(Self {
            id: EntryId { segment, entry },
            tick: proto.time_tick,
            replicate_config: proto.replicate_config.clone(),
            replicate_checkpoint: proto.replicate_checkpoint.clone(),
            replicate_left: proto.replicate_left.clone(),
        })
    }
}

/// See the module.
#[derive(Debug)]
pub struct State {
    /// The last message that was met, and from where to read to meet what may follow.
    observed: Checkpoint,
    /// Where the metadata was current when this owner began.
    loaded: u64,
    vchannels: BTreeMap<String, VChannel>,
    segments: Segments,
    replication: Replication,
    /// Where the WAL was at the source that it was promoted without.
    salvaged: Option<common::ReplicateCheckpoint>,
    /// Messages that someone else is not done with, by tick, each with the checkpoint before it.
    held: BTreeMap<u64, Checkpoint>,
    /// Each with the tick from which on its schemas are not written.
    changed_vchannels: BTreeMap<String, u64>,
    /// Vchannels that are gone, and where their drops stand in the log, as long as they do.
    dropped: BTreeMap<String, EntryId>,
    /// Those of them that are not written yet, and those that were and are to be forgotten.
    newly_dropped: BTreeMap<String, EntryId>,
    undropped: BTreeSet<String>,
    /// Where the former owner's newest idempotency keys begin, if it said so, and where ours do.
    keys_from: Option<EntryId>,
    keys: KeySpan,
}

impl State {
    /// The state that a former owner of a cluster's pchannel left. Keys are looked for in the last `key_span` bytes of a log.
    pub fn recovered(persisted: Persisted, cluster: &str, pchannel: &str, key_span: u64) -> Self {
        let orphans = persisted.orphans();
        let Persisted { checkpoint, keys_from, mut vchannels, dropped, segments } = persisted;
        for vchannel in vchannels.values_mut() {
            vchannel.schemas.sort_by_key(|schema| schema.tick);
        }
        let observed = checkpoint.unwrap_or_default();
        let mut segments = Segments::new(segments);
        for id in orphans {
            tracing::warn!(segment = id, "forgot a growing segment whose vchannel is gone");
            segments.remove(id);
        }
        let config = observed.replicate_config.clone();
        let (checkpoint, left) = (observed.replicate_checkpoint.as_ref(), observed.replicate_left.clone());
        let replication = Replication::recovered(cluster, pchannel, config, checkpoint, left);
        Self {
            loaded: observed.tick,
            observed,
            vchannels,
            segments,
            replication,
            salvaged: None,
            held: BTreeMap::new(),
            changed_vchannels: BTreeMap::new(),
            dropped,
            newly_dropped: BTreeMap::new(),
            undropped: BTreeSet::new(),
            keys_from,
            keys: KeySpan::new(key_span),
        }
    }

    /// Takes the next message of the log. A message of a broadcast holds the checkpoint back until it is
    /// [released](Self::release).
    pub fn apply(&mut self, seen: &Seen<'_>) {
        self.keys.add(seen.id, seen.bytes);
        if seen.tick > self.observed.tick {
            if seen.is_broadcast() {
                self.held.insert(seen.tick, self.checkpointed());
            }
            self.observed.tick = seen.tick;
        }
        let known = seen.tick <= self.loaded;
        let promotes = seen.kind == MessageType::AlterReplicateConfig && !seen.is_replicated() && !known;
        // What was kept and is not written yet outlives a change of a cluster that follows nobody.
        if promotes && let Some(left) = self.replication.checkpoint().filter(|left| left.message_id.is_some()) {
            self.salvaged = Some(left);
        }
        seen.apply_to(&mut self.replication, known);
        // What is below the checkpoint is read for transactions and keys only, which are no business of this state.
        if seen.tick > self.loaded && !seen.is_control() {
            self.change(seen);
        }
        self.observed.id = seen.last_confirmed();
    }

    fn change(&mut self, seen: &Seen<'_>) {
        if matches!(seen.kind, MessageType::TimeTick | MessageType::Delete) {
            return;
        }
        let Some(name) = seen.vchannel() else { return };
        let Some(vchannel) = self.vchannels.get_mut(name) else { return self.create(name, seen) };
        // A message from before the collection is of another one, which had its name.
        if seen.tick <= vchannel.created_tick() {
            return;
        }
        self.segments.apply(name, seen);
        if vchannel.apply(seen) {
            self.changed_vchannels.entry(name.to_owned()).or_insert(seen.tick);
        }
        if vchannel.is_dropped() {
            self.vchannels.remove(name);
            self.segments.remove_vchannel(name);
            self.changed_vchannels.remove(name);
            self.dropped.insert(name.to_owned(), seen.id);
            self.newly_dropped.insert(name.to_owned(), seen.id);
            self.undropped.remove(name);
        }
    }

    fn create(&mut self, name: &str, seen: &Seen<'_>) {
        if seen.kind != MessageType::CreateCollection {
            return;
        }
        match VChannel::created(seen) {
            Some(vchannel) => {
                self.dropped.remove(name);
                self.vchannels.insert(name.to_owned(), vchannel);
                self.changed_vchannels.insert(name.to_owned(), seen.tick);
            }
            None => tracing::error!(vchannel = name, id = %seen.id, "left out a collection that cannot be read"),
        }
    }

    /// Somebody is done with the message at `tick`.
    pub fn release(&mut self, tick: u64) {
        self.held.remove(&tick);
    }

    /// The log was given up up to `end`. Whom it kept for a dropped vchannel, it keeps no more.
    pub fn truncated(&mut self, end: EntryId) {
        let forgotten = self.dropped.extract_if(.., |_, dropped| *dropped <= end).map(|(name, _)| name);
        self.undropped.extend(forgotten);
    }

    /// The tick of the last message that was met.
    pub fn observed_tick(&self) -> u64 {
        self.observed.tick
    }

    /// The role of the WAL, as of the last message that was met.
    pub fn replication(&self) -> &Replication {
        &self.replication
    }

    /// The checkpoint that goes with the last message that was met.
    fn checkpointed(&self) -> Checkpoint {
        Checkpoint {
            replicate_config: self.replication.config().cloned(),
            replicate_checkpoint: self.replication.checkpoint(),
            replicate_left: self.replication.left().to_vec(),
            ..self.observed
        }
    }

    /// How far everything is done: by the node, and by whom it told.
    pub fn checkpoint(&self) -> &Checkpoint {
        self.held.first_key_value().map_or(&self.observed, |(_, before)| before)
    }

    /// Where the next owner has to begin to read, beside the checkpoint.
    pub fn replay_from(&self) -> EntryId {
        self.keys_from.map_or(self.observed.id, |keys_from| keys_from.min(self.observed.id))
    }

    pub fn vchannels(&self) -> &BTreeMap<String, VChannel> {
        &self.vchannels
    }

    /// Vchannels that were dropped in the log as it stands, and where.
    #[cfg(test)]
    pub fn dropped(&self) -> &BTreeMap<String, EntryId> {
        &self.dropped
    }

    pub fn segments(&self) -> &Segments {
        &self.segments
    }

    /// What has changed since the last call, with the checkpoint that goes with it.
    pub fn take_changes(&mut self) -> Changes {
        let gone = std::mem::take(&mut self.newly_dropped).into_iter().map(|(name, at)| Change::VChannelGone(name, at));
        let forgotten = std::mem::take(&mut self.undropped).into_iter().map(Change::DropGone);
        let changed = std::mem::take(&mut self.changed_vchannels).into_iter();
        let changed = changed.filter_map(|(name, unwritten)| {
            let mut vchannel = self.vchannels.get(&name)?.clone();
            vchannel.schemas.retain(|schema| schema.tick >= unwritten);
            Some(Change::VChannel(name, vchannel))
        });
        let salvaged = self.salvaged.take().map(Change::Salvage);
        let vchannels = gone.chain(forgotten).chain(changed);
        let components = vchannels.chain(self.segments.take_changes()).chain(salvaged).collect();
        let held = self.held.first_key_value().map(|(_, before)| before.clone());
        let checkpoint = held.unwrap_or_else(|| self.checkpointed());
        Changes { components, checkpoint, keys_from: self.keys.start() }
    }
}
