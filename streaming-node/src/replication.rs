//! What a WAL is in a replication topology, and how far it has followed its source. Pure, and the same for a replayed
//! message and for one that is being appended.
//!
//! The topology comes in `AlterReplicateConfig` messages of the WAL itself, so the role changes at one place of the log. On
//! a primary clients append. A secondary holds what its source holds, in the source's order: a message is taken if its tick
//! at the source is greater than that of all before it, and a transaction as a whole, under its source's id.

mod gap;

use std::{cmp::Ordering, sync::Arc};

use streaming_proto::{
    common::{MilvusCluster, ReplicateCheckpoint, ReplicateConfiguration},
    messages::ReplicateHeader,
};
use streaming_types::{MessageId, MessageType, StreamingError};

pub use self::gap::{Gap, behind_a_gap};
use crate::wal::sessions::End;

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Replication {
    /// The cluster of this WAL, and its pchannel.
    cluster: Arc<str>,
    pchannel: Arc<str>,
    config: Option<Arc<ReplicateConfiguration>>,
    /// What a secondary follows.
    source: Option<Source>,
    /// How far it was at the sources that it does not follow any more, also those that are out of the topology. What is not
    /// above that is never taken again: who ships may not know yet that it follows for the second time, and begin where it did
    /// the first time.
    left: Vec<ReplicateCheckpoint>,
}

#[derive(Debug, Clone)]
struct Source {
    cluster: String,
    pchannel: String,
    /// The source's place of the last message that was taken.
    reached: Option<Reached>,
    /// The tick there when it was left before, 0 if it never was.
    left: u64,
    txn: Option<OpenTxn>,
}

/// From `confirmed` on the source's log holds every message whose tick is greater than `tick`.
#[derive(Debug, Clone, Copy)]
struct Reached {
    confirmed: MessageId,
    tick: u64,
}

/// The transaction that the source is sending.
#[derive(Debug, Clone, Copy)]
struct OpenTxn {
    id: i64,
    /// The source's id of its newest body.
    newest: Option<MessageId>,
}

/// A message, as far as it matters here.
#[derive(Debug, Clone)]
pub struct Fact<'a> {
    pub kind: MessageType,
    /// Of a replicated message.
    pub header: Option<&'a ReplicateHeader>,
    pub txn_id: Option<i64>,
    /// The topology that a message brings.
    pub config: Option<ReplicateConfiguration>,
    /// Whether it does so without the source, which is lost.
    pub by_force: bool,
}

/// What a message does to its source's transaction.
enum Part {
    None,
    Begin(i64),
    Body(i64),
    End(i64),
}

impl Fact<'_> {
    fn part(&self) -> Part {
        match (self.txn_id, self.kind) {
            (None, _) => Part::None,
            (Some(id), MessageType::BeginTxn) => Part::Begin(id),
            (Some(id), kind) if End::of(kind).is_some() => Part::End(id),
            (Some(id), _) => Part::Body(id),
        }
    }
}

impl Replication {
    /// A WAL outside of any topology: a primary.
    pub fn new(cluster: &str, pchannel: &str) -> Self {
        Self { cluster: cluster.into(), pchannel: pchannel.into(), config: None, source: None, left: Vec::new() }
    }

    /// As it was when `config`, `checkpoint` and `left` were kept.
    pub fn recovered(
        cluster: &str,
        pchannel: &str,
        config: Option<ReplicateConfiguration>,
        checkpoint: Option<&ReplicateCheckpoint>,
        left: Vec<ReplicateCheckpoint>,
    ) -> Self {
        let mut replication = Self { left, ..Self::new(cluster, pchannel) };
        replication.source = config.as_ref().and_then(|config| replication.source(config));
        replication.config = config.map(Arc::new);
        if let (Some(source), Some(checkpoint)) = (&mut replication.source, checkpoint)
            && source.cluster == checkpoint.cluster_id
        {
            let confirmed = MessageId::from_proto(checkpoint.message_id.as_ref()).ok();
            source.reached = confirmed.map(|confirmed| Reached { confirmed, tick: checkpoint.time_tick });
        }
        replication
    }

    /// The topology, if there ever was one.
    pub fn config(&self) -> Option<&ReplicateConfiguration> {
        self.config.as_deref()
    }

    /// Where at its source a secondary is; `None` on a primary. Before the first message it has no id, and the tick at which
    /// it left this source before, or none.
    pub fn checkpoint(&self) -> Option<ReplicateCheckpoint> {
        self.source.as_ref().map(Source::checkpoint)
    }

    /// Where it was at each source that it does not follow any more.
    pub fn left(&self) -> &[ReplicateCheckpoint] {
        &self.left
    }

    /// The clusters that follow this one.
    pub fn targets(&self) -> impl Iterator<Item = &str> {
        let edges = self.config.iter().flat_map(|config| &config.cross_cluster_topology);
        edges.filter(|edge| *edge.source_cluster_id == *self.cluster).map(|edge| edge.target_cluster_id.as_str())
    }

    /// Whether every message that comes from a client may pass without a look.
    pub fn is_primary(&self) -> bool {
        self.source.is_none()
    }

    /// Whether the message may be appended.
    ///
    /// # Errors
    /// REPLICATE_VIOLATION if it is not for a WAL of this role, or breaks its source's order (a promotion by force is for a
    /// secondary, and ends its being one); IGNORED_OPERATION if it was taken before, or is one that every cluster writes for
    /// itself; UNRECOVERABLE if its header cannot be read.
    pub fn judge(&self, fact: &Fact<'_>) -> Result<(), StreamingError> {
        let violation = |cause: String| Err(StreamingError::replicate_violation(format!("{}: {cause}", self.pchannel)));
        let Some(source) = &self.source else {
            return match fact.header {
                Some(_) => violation("is primary, it takes no replicated messages".to_owned()),
                None => Ok(()),
            };
        };
        let Some(header) = fact.header else {
            if fact.kind.is_self_controlled() {
                return Ok(());
            }
            let follows = |config| self.source(config).is_some();
            if fact.by_force && fact.config.as_ref().is_some_and(|config| !follows(config)) {
                return Ok(());
            }
            if fact.config.as_ref().is_some_and(|config| self.config() == Some(config)) {
                return Err(StreamingError::ignored_operation("the topology is in force already"));
            }
            return violation(format!("is secondary, it takes messages from cluster {} only", source.cluster));
        };
        if fact.kind.is_self_controlled() {
            let cause = format!("messages of type {} are written by each cluster for itself", fact.kind);
            return Err(StreamingError::ignored_operation(cause));
        }
        if header.cluster_id != source.cluster {
            let cause = format!("follows cluster {}, not {}", source.cluster, header.cluster_id);
            return violation(cause);
        }
        let unreadable = |error| StreamingError::unrecoverable(format!("property _rh: {error}"));
        let id = MessageId::from_proto(header.message_id.as_ref()).map_err(unreadable)?;
        MessageId::from_proto(header.last_confirmed_message_id.as_ref()).map_err(unreadable)?;
        source.judge(header.time_tick, id, &fact.part()).map_err(|refusal| match refusal {
            Refusal::Repeat => StreamingError::ignored_operation(format!(
                "message {id} of cluster {} at {} was taken before",
                source.cluster, header.time_tick
            )),
            Refusal::Disorder(cause) => StreamingError::replicate_violation(format!("{}: {cause}", self.pchannel)),
        })
    }

    /// Takes a message that is appended, or stands in the log. `known` says that what was recovered is from after it: it
    /// then counts for the transaction that may be open only.
    pub fn apply(&mut self, fact: &Fact<'_>, known: bool) {
        if let (Some(source), Some(header)) = (&mut self.source, fact.header)
            && header.cluster_id == source.cluster
        {
            source.apply(header, &fact.part(), known);
        }
        if let Some(config) = &fact.config {
            self.alter(config, known);
        }
    }

    fn alter(&mut self, config: &ReplicateConfiguration, known: bool) {
        if known {
            // It ended every transaction, whatever else it did then.
            if let Some(source) = &mut self.source {
                source.txn = None;
            }
            return;
        }
        let before = self.source.take();
        self.source = self.source(config);
        match (&mut self.source, before) {
            (Some(source), Some(before)) if source.is_at(&before.cluster, &before.pchannel) => {
                source.reached = before.reached;
            }
            (_, Some(before)) => {
                self.left.retain(|left| !before.is_at(&left.cluster_id, &left.pchannel));
                self.left.push(before.checkpoint());
            }
            (_, None) => {}
        }
        self.config = Some(Arc::new(config.clone()));
    }

    /// Whom the WAL follows by a topology: pchannels with the same place in their clusters' lists belong together. A cluster
    /// that is not in the topology, or the target of nobody, is a primary.
    fn source(&self, config: &ReplicateConfiguration) -> Option<Source> {
        let named = |id: &str| config.clusters.iter().find(|known| known.cluster_id == id);
        let edge = config.cross_cluster_topology.iter().find(|edge| *edge.target_cluster_id == *self.cluster)?;
        let (ours, theirs): (&MilvusCluster, &MilvusCluster) = (named(&self.cluster)?, named(&edge.source_cluster_id)?);
        let index = ours.pchannels.iter().position(|name| *name == *self.pchannel)?;
        let mut source = Source {
            cluster: theirs.cluster_id.clone(),
            pchannel: theirs.pchannels.get(index)?.clone(),
            reached: None,
            left: 0,
            txn: None,
        };
        let before = self.left.iter().find(|left| source.is_at(&left.cluster_id, &left.pchannel));
        source.left = before.map_or(0, |left| left.time_tick);
        Some(source)
    }
}

/// Why a replicated message is not taken.
enum Refusal {
    Repeat,
    Disorder(String),
}

impl Source {
    fn is_at(&self, cluster: &str, pchannel: &str) -> bool {
        (&*self.cluster, &*self.pchannel) == (cluster, pchannel)
    }

    fn checkpoint(&self) -> ReplicateCheckpoint {
        ReplicateCheckpoint {
            cluster_id: self.cluster.clone(),
            pchannel: self.pchannel.clone(),
            message_id: self.reached.map(|reached| reached.confirmed.to_proto()),
            time_tick: self.reached.map_or(self.left, |reached| reached.tick),
        }
    }

    /// A body has the tick of its commit, so what is not greater than the last tick is a repeat, whatever it is.
    fn judge(&self, tick: u64, id: MessageId, part: &Part) -> Result<(), Refusal> {
        let reached = self.reached.map_or(self.left, |reached| reached.tick);
        if reached > 0 && tick <= reached {
            return Err(Refusal::Repeat);
        }
        let disorder = |txn: i64| match self.txn {
            Some(open) => Err(Refusal::Disorder(format!("transaction {txn} came amid transaction {}", open.id))),
            None => Err(Refusal::Disorder(format!("transaction {txn} came without its begin"))),
        };
        match (part, self.txn) {
            (Part::None | Part::Begin(_), None) => Ok(()),
            (Part::None, Some(open)) => {
                Err(Refusal::Disorder(format!("a message came amid transaction {}, of which it is no part", open.id)))
            }
            (Part::Begin(txn), Some(open)) if *txn == open.id => Err(Refusal::Repeat),
            (Part::Body(txn), Some(open)) if *txn == open.id => match Some(id).cmp(&open.newest) {
                Ordering::Greater => Ok(()),
                Ordering::Equal | Ordering::Less => Err(Refusal::Repeat),
            },
            (Part::End(txn), Some(open)) if *txn == open.id => Ok(()),
            (Part::Begin(txn) | Part::Body(txn) | Part::End(txn), _) => disorder(*txn),
        }
    }

    fn apply(&mut self, header: &ReplicateHeader, part: &Part, known: bool) {
        let id = |id| MessageId::from_proto(id).ok();
        match part {
            Part::Begin(txn) => self.txn = Some(OpenTxn { id: *txn, newest: None }),
            Part::Body(_) => {
                if let Some(open) = &mut self.txn {
                    open.newest = open.newest.max(id(header.message_id.as_ref()));
                }
            }
            Part::None | Part::End(_) => {
                self.txn = None;
                if let (false, Some(confirmed)) = (known, id(header.last_confirmed_message_id.as_ref())) {
                    self.reached = Some(Reached { confirmed, tick: header.time_tick });
                }
            }
        }
    }
}

#[cfg(test)]
pub mod samples {
    use streaming_proto::common::CrossClusterTopology;

    use super::*;

    /// Clusters `a` and `b` (pchannels `<cluster>-p_0` and `_1`), the edges from and to what is named.
    pub fn topology(edges: &[(&str, &str)]) -> ReplicateConfiguration {
        let cluster = |id: &str| MilvusCluster {
            cluster_id: id.to_owned(),
            connection_param: None,
            pchannels: vec![format!("{id}-p_0"), format!("{id}-p_1")],
        };
        let edge = |(source, target): &(&str, &str)| CrossClusterTopology {
            source_cluster_id: (*source).to_owned(),
            target_cluster_id: (*target).to_owned(),
        };
        ReplicateConfiguration {
            clusters: vec![cluster("a"), cluster("b"), cluster("c")],
            cross_cluster_topology: edges.iter().map(edge).collect(),
        }
    }

    /// The header of cluster `a`'s message at entry `entry`.
    pub fn header(entry: i64, tick: u64) -> ReplicateHeader {
        ReplicateHeader {
            cluster_id: "a".to_owned(),
            message_id: Some(MessageId::new(1, entry).to_proto()),
            last_confirmed_message_id: Some(MessageId::new(1, entry).to_proto()),
            time_tick: tick,
            vchannel: "a-p_1_1v0".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
