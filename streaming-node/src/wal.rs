//! One write-ahead log on this node: a pchannel, opened at a term.
//!
//! ```text
//! producers ─ inbox ─ appender ─ idempotency ─ lock ─ replicate ─ shard ─ time tick ─ txn ─ log writer ─ the log
//!                         └─ publisher ─ write-ahead buffer ─ scanners ────────────────┘
//! ```

pub mod allowance;
pub mod appender;
pub mod buffer;
pub mod chunk;
mod delivery;
mod gather;
pub mod group;
mod idempotency;
mod lock;
mod log_writer;
mod mvcc;
pub mod open;
mod publisher;
mod readers;
pub mod record;
mod reorder;
mod replicate;
pub mod scanner;
pub mod sessions;
mod ticks;
mod time_tick;
pub mod trouble;
pub mod txn;
pub mod window;

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use streaming_proto::{common::ReplicateCheckpoint, streaming as pb};
use streaming_types::{Message, MessageType, PChannel};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use woodpecker_base::tasks::Tasks;

pub use self::record::{BadRecord, Stored};
use self::{
    allowance::{Charge, InFlight},
    group::Append,
    mvcc::Mvcc,
    replicate::SharedReplication,
    scanner::{ScanEdges, ScanOptions, Scanner},
    trouble::Trouble,
};
use crate::{
    flow::{Limit, Limiter},
    recovery::{
        catalog::{Catalog, CatalogError},
        keeper::Progress,
        state::Checkpoint,
    },
    tenure::Tenure,
};

/// What clients are told the kind of log is; it names the codec of message ids.
pub const WAL_NAME: &str = "woodpecker";

/// An open WAL.
#[derive(Debug)]
pub struct Wal {
    channel: PChannel,
    scan: ScanEdges,
    /// What a WAL has that this node appends to.
    live: Option<Live>,
}

#[derive(Debug)]
struct Live {
    appends: Appends,
    close_timeout: Duration,
    catalog: Catalog,
    progress: Arc<Progress>,
    mvcc: Arc<Mvcc>,
    replication: SharedReplication,
    tenure: Tenure,
    tasks: Tasks,
    trouble: Arc<OnceLock<Trouble>>,
}

/// The appending side of a WAL.
#[derive(Debug, Clone)]
pub struct Appends {
    inbox: mpsc::Sender<Box<Append>>,
    in_flight: InFlight,
    limiter: Limiter,
}

impl Wal {
    /// What is open, at which term.
    pub fn channel(&self) -> &PChannel {
        &self.channel
    }

    /// Cancelled when the WAL takes no more appends and feeds no more readers, whatever the reason.
    pub fn ended(&self) -> &CancellationToken {
        &self.scan.ended
    }

    /// Why it ended, if it did by itself.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.live.as_ref()?.trouble.get()
    }

    /// The way to append, unless the WAL is open for reading only.
    pub fn appends(&self) -> Option<Appends> {
        self.live.as_ref().map(|live| live.appends.clone())
    }

    /// Reads the WAL for one consumer.
    pub fn scanner(&self, options: ScanOptions) -> Scanner {
        Scanner::new(self.scan.clone(), options)
    }

    /// The tick that a reader of the channel has to reach to have seen everything of it that was acked before this call: of a
    /// vchannel, or of all of them for the WAL's own name. `None` when the WAL has ended, may be someone else's by now, or
    /// this node does not append to it: then nobody here knows. Waits for nothing.
    pub fn read_point(&self, channel: &str) -> Option<u64> {
        let live = self.live.as_ref().filter(|live| !self.scan.ended.is_cancelled() && live.tenure.is_sure())?;
        Some(live.mvcc.latest(Some(channel).filter(|channel| *channel != self.channel.name())))
    }

    /// How far a secondary is at its source; `None` on a primary, and where this node does not append.
    pub fn replicate_checkpoint(&self) -> Option<ReplicateCheckpoint> {
        self.live.as_ref()?.replication.checkpoint()
    }

    /// How far it is, for the coordinator. Waits for nothing.
    pub fn metrics(&self) -> pb::StreamingNodeWalMetrics {
        use pb::streaming_node_wal_metrics::Metrics;
        let metrics = match (&self.scan.buffer, &self.live) {
            (Some(buffer), Some(live)) => {
                let newest = buffer.watermark();
                let recovery_time_tick = live.progress.tick(newest);
                Metrics::Rw(pb::StreamingNodeRwwalMetrics { mvcc_time_tick: newest.tick, recovery_time_tick })
            }
            _ => Metrics::Ro(pb::StreamingNodeRowalMetrics {}),
        };
        pb::StreamingNodeWalMetrics { info: Some(self.channel.to_proto()), metrics: Some(metrics) }
    }

    /// Notes that `consumer` needs nothing before `position` any more; the first report registers it. `false` if it is a
    /// vchannel that was dropped: nothing is noted.
    ///
    /// # Errors
    /// [`CatalogError::Overtaken`] if this node does not own the WAL; the metadata store's.
    pub async fn report(&self, consumer: &str, position: Checkpoint) -> Result<bool, CatalogError> {
        let live = self.owned()?;
        let noted = live.catalog.report(consumer, position).await?;
        if noted {
            live.progress.consumers_moved();
        }
        Ok(noted)
    }

    /// Keeps nothing for `consumer` any more, until it reports again.
    ///
    /// # Errors
    /// As of [`Self::report`].
    pub async fn forget(&self, consumer: &str) -> Result<(), CatalogError> {
        let live = self.owned()?;
        live.catalog.forget(consumer).await?;
        live.progress.consumers_moved();
        Ok(())
    }

    /// The registered consumers, and the tick of the last message that the owner has taken in.
    ///
    /// # Errors
    /// As of [`Self::report`].
    pub async fn consumers(&self) -> Result<(BTreeMap<String, Checkpoint>, u64), CatalogError> {
        let live = self.owned()?;
        Ok((live.catalog.consumers().await?, live.progress.met()))
    }

    fn owned(&self) -> Result<&Live, CatalogError> {
        self.live.as_ref().ok_or_else(|| CatalogError::Overtaken(String::new()))
    }

    /// Stops appends, answers what is in flight and gives the log up; takes no longer than the setting allows, whatever
    /// storage does.
    pub async fn close(&self) {
        self.scan.ended.cancel();
        if let Some(live) = &self.live {
            // Each of its tasks bounds its own end.
            if !live.tasks.drain(&self.scan.clock, live.close_timeout).await {
                tracing::warn!(pchannel = self.channel.name(), "closing took too long, the next owner fences the log");
            }
        }
        if let Some(buffer) = &self.scan.buffer {
            buffer.clear();
        }
    }
}

impl Appends {
    /// Room for a message: its part of the rate, if its kind is limited, and room in flight.
    pub fn try_admit(&self, kind: MessageType, bytes: usize) -> Option<Charge> {
        let charge = self.try_charge(bytes)?;
        (!Limiter::concerns(kind) || self.limiter.try_pass(bytes)).then_some(charge)
    }

    /// Waits for room for a message.
    pub async fn admit(self, kind: MessageType, bytes: usize) -> Option<Charge> {
        if Limiter::concerns(kind) {
            self.limiter.pass(bytes).await;
        }
        self.charge(bytes).await
    }

    /// How fast producers may be, and every change of it.
    pub fn limits(&self) -> watch::Receiver<Limit> {
        self.limiter.subscribe()
    }

    /// Appends a message of the node's own.
    pub async fn append_own(self, kind: MessageType, message: Message) {
        let bytes = message.payload.len() + message.properties.size();
        if let Some(charge) = self.clone().charge(bytes).await {
            self.submit(Append::own(kind, message, Some(charge)));
        }
    }

    /// Room in flight for a message of so many bytes, if there is some now.
    pub fn try_charge(&self, bytes: usize) -> Option<Charge> {
        self.in_flight.try_charge(bytes)
    }

    /// Waits for room in flight.
    pub async fn charge(self, bytes: usize) -> Option<Charge> {
        self.in_flight.charge(bytes).await
    }

    /// Hands a message over. Its reply comes whatever happens.
    pub fn submit(&self, append: Box<Append>) {
        // A closed inbox means that the WAL has ended, which is what dropping the message answers.
        let _ = self.inbox.try_send(append);
    }
}
