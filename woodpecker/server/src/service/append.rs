//! The reading side of an append stream.

use std::{collections::BTreeMap, future::pending, sync::Arc};

use streaming_proto::logstore::{AppendRequest, Replica as Name};
use tokio::{sync::Semaphore, task::JoinError};
use tonic::{Status, Streaming};

use crate::{
    outbox::{Outbox, Slot},
    refusal::Refusal,
    replica::{Append, Replica},
    store::Store,
};

/// One stream: takes frames in order, as long as there is room for what they carry.
#[derive(Debug)]
pub struct AppendStream {
    store: Arc<Store>,
    outbox: Arc<Outbox>,
    in_flight: Arc<Semaphore>,
    /// By namespace, log and segment.
    open: BTreeMap<(String, u64, u64), Open>,
}

/// One replica, as the stream knows it.
#[derive(Debug)]
struct Open {
    /// The name as the client gave it: a wrong store is answered under it.
    name: Name,
    slot: Arc<Slot>,
    replica: Option<Arc<Replica>>,
    /// Where the stream was refused: frames behind it were on their way.
    refused_at: Option<u64>,
}

impl AppendStream {
    pub fn new(store: Arc<Store>, outbox: Arc<Outbox>) -> Self {
        let [of_stream, ..] = store.settings.in_flight.units();
        Self { store, outbox, in_flight: Arc::new(Semaphore::new(of_stream)), open: BTreeMap::new() }
    }

    /// Reads to the end. What is on its way is answered after that.
    pub async fn run(mut self, mut frames: Streaming<AppendRequest>) -> Result<(), Status> {
        while let Some(frame) = frames.message().await? {
            self.take(frame).await?;
        }
        self.outbox.close(self.open.values().map(|open| open.slot.clone()).collect());
        // Held until the answers are gone: the replicas then know that the stream is.
        pending().await
    }

    async fn take(&mut self, frame: AppendRequest) -> Result<(), Status> {
        let AppendRequest { replica, epoch, first, entries, committed } = frame;
        let name = replica.ok_or_else(|| Status::invalid_argument("no replica is named"))?;
        if epoch == 0 || first.checked_add(entries.len() as u64).is_none() {
            return Err(Status::invalid_argument("epochs begin at 1, and entry numbers fit in 64 bits"));
        }
        let key = (name.namespace.clone(), name.log, name.segment);
        if self.open.get(&key).is_none_or(|open| open.name.store != name.store) {
            self.forget(&key);
            self.forget_settled(&key);
            let slot = self.outbox.slot(name.clone());
            self.open.insert(key.clone(), Open { name, slot, replica: None, refused_at: None });
        }
        let Some(open) = self.open.get_mut(&key) else { return Ok(()) };
        if entries.is_empty() {
            open.hear(&self.store, epoch, committed);
            return Ok(());
        }
        if open.refused_at.is_some_and(|at| first > at) {
            return Ok(());
        }
        let append = Append { epoch, first, entries };
        match open.take(&self.store, &self.in_flight, append).await {
            Ok(()) => {
                open.refused_at = None;
                open.hear(&self.store, epoch, committed);
            }
            Err(invalid @ Refusal::Invalid(_)) => return Err(invalid.into()),
            Err(refusal) => {
                open.refused_at = Some(first);
                open.slot.refuse(refusal);
            }
        }
        Ok(())
    }

    /// Forgets the log's other segments when nothing is to come of them: a stream outlives the segments it carries.
    fn forget_settled(&mut self, (namespace, log, _): &(String, u64, u64)) {
        let of_log = (namespace.clone(), *log, 0)..=(namespace.clone(), *log, u64::MAX);
        let settled: Vec<_> =
            self.open.range(of_log).filter(|(_, open)| open.slot.is_settled()).map(|(key, _)| key.clone()).collect();
        for key in settled {
            self.forget(&key);
        }
    }

    fn forget(&mut self, key: &(String, u64, u64)) {
        if let Some(open) = self.open.remove(key) {
            open.unsubscribe();
        }
    }
}

impl Drop for AppendStream {
    fn drop(&mut self) {
        for open in self.open.values() {
            open.unsubscribe();
        }
    }
}

impl Open {
    async fn take(&mut self, store: &Store, in_flight: &Arc<Semaphore>, append: Append) -> Result<(), Refusal> {
        let replica = match &self.replica {
            Some(known) => known,
            None => self.replica.insert(store.replica(&self.name).await?),
        };
        let need = replica.need(&append)?;
        let room = store.admit(replica, &append, need, in_flight).await?;
        replica.append(append, room, &self.slot)
    }

    /// What is acked is nothing to a replica that is not known.
    fn hear(&mut self, store: &Store, epoch: u64, committed: u64) {
        if self.replica.is_none() {
            self.replica = store.find(&self.name).ok().flatten();
        }
        if let Some(replica) = &self.replica {
            store.heard(replica, epoch, committed);
        }
    }

    fn unsubscribe(&self) {
        if let Some(replica) = &self.replica {
            replica.unsubscribe(&self.slot);
        }
    }
}

/// Why the reading side ended before the answers did.
pub fn why(over: Result<Option<Result<(), Status>>, JoinError>) -> Status {
    match over {
        Ok(Some(Err(status))) => status,
        Ok(None) => Status::unavailable("the store is stopping"),
        Ok(Some(Ok(()))) | Err(_) => Status::internal("the stream's reader is gone"),
    }
}
