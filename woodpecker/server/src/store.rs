//! The store: every replica it holds, and what each call does to them.

mod admin;
mod open;
mod remove;
mod status;
mod upkeep;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use streaming_proto::logstore as proto;
use tokio::sync::{Notify, RwLock, Semaphore, watch};
use woodpecker_base::{clock::Clock, disk::Disk};
use woodpecker_core::ids::{Placement, StoreId, VolumeId};
use woodpecker_store::{
    backend::{Backend, SegmentReader, StoreError},
    disk::LocalBackend,
};

pub use self::{
    admin::NamespaceStatus,
    open::{Opened, Parts, StartError},
    status::Advertised,
};
use crate::{
    failure::{self, Failure},
    ledger::Ledger,
    lock,
    namespace::Namespaces,
    refusal::Refusal,
    released::Released,
    replica::{Append, Common, Description, Need, Owner, Part, Replica, ReplicaKey, Room},
    settings::{Settings, units},
    watermark::Gauge,
};

/// How long a client waits when the store has too much on its way to the disk.
const CROWDED_PAUSE: Duration = Duration::from_millis(50);

/// One log store on one disk.
#[derive(Debug)]
pub struct Store {
    pub identity: StoreId,
    /// The identity as calls name it: 32 lower-case hex digits.
    pub id: String,
    pub settings: Arc<Settings>,
    pub clock: Clock,
    pub namespaces: Namespaces,
    path: PathBuf,
    disk: Arc<dyn Disk>,
    backend: LocalBackend,
    /// Pieces are begun, and their failures noted, by any number of calls, and a failed volume let go of by itself.
    letting_go: RwLock<()>,
    ledger: Arc<Ledger>,
    replicas: Mutex<BTreeMap<ReplicaKey, Arc<Replica>>>,
    /// By namespace and log.
    released: Mutex<BTreeMap<(u32, u64), Released>>,
    /// Volumes that are known to be written down.
    volumes: Mutex<BTreeSet<VolumeId>>,
    gauge: Arc<Gauge>,
    common: Common,
    in_flight: Arc<Semaphore>,
    decommissioning: AtomicBool,
    /// Held while it is decided whether the store is given up.
    deciding: tokio::sync::Mutex<()>,
    /// Why a replica of which nothing is found may still have held something.
    doubt: Option<Arc<str>>,
    /// Replicas of which newer positions are known to be acked than are written down.
    unwritten: Mutex<VecDeque<Arc<Replica>>>,
    heard: Notify,
    advertised: watch::Sender<Advertised>,
}

impl Store {
    /// Refuses a call that is meant for another store: one that stood at this address, or had this disk.
    pub fn check_identity(&self, asked: &str) -> Result<(), Refusal> {
        if asked == self.id {
            return Ok(());
        }
        Err(Refusal::WrongStore { asked: asked.to_owned(), here: self.id.clone() })
    }

    /// A replica that is known; `None` if nothing was ever heard of it.
    ///
    /// # Errors
    /// Another store is meant; [`Refusal::Released`]; [`Refusal::Corrupt`] when it is not sure that there was nothing.
    pub fn find(&self, name: &proto::Replica) -> Result<Option<Arc<Replica>>, Refusal> {
        self.check_identity(&name.store)?;
        let Some(namespace) = self.namespaces.find(&name.namespace)? else {
            return self.doubt.clone().map_or(Ok(None), |doubt| Err(Refusal::Corrupt(doubt)));
        };
        let key = replica_key(namespace.number, name)?;
        let known = lock(&self.replicas).get(&key).cloned();
        match (known, &self.doubt) {
            (Some(replica), _) => Ok(Some(replica)),
            (None, _) if self.is_released(key) => Err(Refusal::Released),
            (None, Some(doubt)) => Err(Refusal::Corrupt(doubt.clone())),
            (None, None) => Ok(None),
        }
    }

    /// A replica, made if nothing was ever heard of it.
    ///
    /// # Errors
    /// As [`Store::find`], except that doubt is left to the caller; the ledger's.
    pub async fn replica(&self, name: &proto::Replica) -> Result<Arc<Replica>, Refusal> {
        self.check_identity(&name.store)?;
        let namespace = self.namespaces.get(&name.namespace, &self.ledger).await?;
        let key = replica_key(namespace.number, name)?;
        let mut replicas = lock(&self.replicas);
        if let Some(known) = replicas.get(&key) {
            return Ok(known.clone());
        }
        if self.is_released(key) {
            return Err(Refusal::Released);
        }
        let replica = Arc::new(Replica::new(key, namespace, self.common.clone()));
        replicas.insert(key, replica.clone());
        Ok(replica)
    }

    /// Forgets a replica of which nothing was ever heard but that somebody waited for it, once nobody does.
    pub fn forget_blank(&self, replica: &Arc<Replica>) {
        if replica.is_blank() {
            let mut replicas = lock(&self.replicas);
            // One in the map and one here; under the lock there will be no more.
            if Arc::strong_count(replica) <= 2 && replica.is_blank() {
                replicas.remove(&replica.key);
            }
        }
    }

    fn is_released(&self, key: ReplicaKey) -> bool {
        lock(&self.released).get(&(key.namespace, key.log)).is_some_and(|released| released.contains(key.segment))
    }

    /// Makes room for an append, waiting for what `stream` and the namespace have on their way; and opens the replica.
    ///
    /// # Errors
    /// Why the append is not taken now, or not at all.
    pub async fn admit(
        &self,
        replica: &Arc<Replica>,
        append: &Append,
        need: Need,
        stream: &Arc<Semaphore>,
    ) -> Result<Option<Room>, Refusal> {
        let Need::Store { begins, recovery, .. } = need else { return Ok(None) };
        let bytes = append.bytes();
        if bytes > self.backend.max_append_bytes() as u64 {
            return Err(Refusal::Invalid("the entries are larger than one append takes"));
        }
        if !recovery {
            if begins && self.is_decommissioning() {
                return Err(Refusal::Decommissioning);
            }
            replica.namespace.admit(bytes, replica.key.log, begins)?;
            replica.namespace.keep_pace(&self.clock).await?;
        }
        let units =
            self.settings.in_flight.units().map(|most| units(bytes).min(u32::try_from(most).unwrap_or(u32::MAX)));
        let since = self.clock.now();
        let closed = |_| Refusal::Unavailable("the store is stopping".into());
        let of_stream = stream.clone().acquire_many_owned(units[0]).await.map_err(closed)?;
        let of_namespace = replica.namespace.in_flight.clone().acquire_many_owned(units[1]).await.map_err(closed)?;
        let crowded = || Refusal::SlowDown { reason: "too much is on its way to the disk", retry_after: CROWDED_PAUSE };
        // A namespace has no more on its way than it leaves to the others: however many are noisy, the next one finds as
        // much as each of them has.
        if self.in_flight_units_of(&replica.namespace) > self.in_flight.available_permits() {
            return Err(crowded());
        }
        let of_all = self.in_flight.clone().try_acquire_many_owned(units[2]).map_err(|_| crowded())?;
        // Last of what may put it off: from here on its bytes count.
        self.gauge.admit(bytes, recovery)?;
        self.open(replica).await?;
        Ok(Some(Room { permits: [of_stream, of_namespace, of_all], since }))
    }

    /// Begins the replica's part in the volume that is being written, if it has none.
    async fn open(&self, replica: &Arc<Replica>) -> Result<(), Refusal> {
        let Some(key) = replica.key.on_disk().filter(|_| replica.unopened().is_some()) else { return Ok(()) };
        let _one_at_a_time = replica.opening.lock().await;
        let Some(first) = replica.unopened() else { return Ok(()) };
        if let Some(reason) = self.common.failure.reason() {
            return Err(Refusal::Failed(reason));
        }
        let owner = Arc::new(Owner(Arc::downgrade(replica)));
        let writer = {
            let _stays = self.letting_go.read().await;
            self.backend.create_piece(key, owner, first, replica.key.namespace).await.inspect_err(|error| {
                if let StoreError::Failed(reason) = error {
                    self.common.failure.set(failure::Part::Volume, reason);
                }
            })?
        };
        if let Placement::Volume { volume, .. } = *writer.placement()
            && !lock(&self.volumes).contains(&volume)
        {
            // From now on the store does not start without this volume.
            self.ledger.settled(self.ledger.put_volume(volume)).await?;
            lock(&self.volumes).insert(volume);
        }
        replica.open(writer)
    }

    /// Takes note of what a writer says is acked.
    pub fn heard(&self, replica: &Arc<Replica>, epoch: u64, committed: u64) {
        if replica.heard(epoch, committed) {
            lock(&self.unwritten).push_back(replica.clone());
            self.heard.notify_one();
        }
    }

    /// Refuses every append of an epoch below, durably.
    ///
    /// # Errors
    /// As [`Replica::fence`] and [`Store::find`].
    pub async fn fence(&self, name: &proto::Replica, epoch: u64, end: Option<u64>) -> Result<Description, Refusal> {
        if epoch == 0 {
            return Err(Refusal::Invalid("epochs begin at 1"));
        }
        let replica = match self.find(name)? {
            Some(known) => known,
            None => self.replica(name).await?,
        };
        replica.fence(epoch, end, &self.ledger).await
    }

    /// What a replica holds; of one that was never heard of, nothing.
    ///
    /// # Errors
    /// As [`Store::find`] and [`Replica::describe`].
    pub fn describe(&self, name: &proto::Replica) -> Result<Description, Refusal> {
        match self.find(name)? {
            Some(replica) => replica.describe(),
            None => Ok(Description::default()),
        }
    }

    /// A reader of one part of a replica.
    ///
    /// # Errors
    /// The volume cannot be read.
    pub async fn reader(&self, replica: &Replica, part: &Part) -> Result<Arc<dyn SegmentReader>, Refusal> {
        let key = replica.key.on_disk().ok_or(Refusal::Invalid("a log number this large"))?;
        Ok(self.backend.open(key, &part.placement, part.end).await?)
    }

    async fn delete_part(&self, key: ReplicaKey, placement: &Placement) -> Result<(), Refusal> {
        match key.on_disk() {
            Some(key) => Ok(self.backend.delete(key, placement).await?),
            None => Ok(()),
        }
    }

    /// The first failure of the store's disk.
    pub fn failure(&self) -> &Arc<Failure> {
        &self.common.failure
    }
}

fn replica_key(namespace: u32, name: &proto::Replica) -> Result<ReplicaKey, Refusal> {
    let key = ReplicaKey { namespace, log: name.log, segment: name.segment };
    match key.on_disk() {
        Some(_) => Ok(key),
        None => Err(Refusal::Invalid("a log number this large")),
    }
}
