//! What the store says of itself: to operators, to placement, to those who list what it holds.

use std::{collections::BTreeMap, ops::Bound, sync::atomic::Ordering};

use streaming_proto::logstore::{HeldReplica, Replica as Name, State, StatusResponse};
use tokio::sync::watch;

use super::Store;
use crate::{
    ledger::StoreMeta, lock, metrics, namespace::Namespace, refusal::Refusal, replica::ReplicaKey, watermark::Pressure,
};

/// Load is told to others in steps of this, so that not every append is news.
const LOAD_STEP: u32 = 50;
const FULL_LOAD: u32 = 1_000;
/// Replicas in one page of a list.
const PAGE: usize = 1_000;

/// What the store's registration says beside its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advertised {
    pub state: State,
    pub load: u32,
}

impl Store {
    pub fn is_decommissioning(&self) -> bool {
        self.decommissioning.load(Ordering::Relaxed)
    }

    fn state(&self, replicas: usize) -> State {
        if self.is_decommissioning() {
            return if replicas == 0 && self.doubt.is_none() { State::Decommissioned } else { State::Decommissioning };
        }
        match self.gauge.pressure() {
            _ if self.common.failure.reason().is_some() => State::ReadOnly,
            Pressure::Hard | Pressure::Full => State::ReadOnly,
            Pressure::Soft(_) => State::Slowed,
            Pressure::Low => State::Active,
        }
    }

    /// How much is on its way to the disk, in units.
    pub fn in_flight_units(&self) -> usize {
        let [.., most] = self.settings.in_flight.units();
        most.saturating_sub(self.in_flight.available_permits())
    }

    /// The same of one namespace, with what is about to be on its way.
    pub fn in_flight_units_of(&self, namespace: &Namespace) -> usize {
        let [_, most, _] = self.settings.in_flight.units();
        most.saturating_sub(namespace.in_flight.available_permits())
    }

    /// The fuller of the disk, up to its hard mark, and of what may be on its way.
    fn load(&self) -> u32 {
        let [.., most] = self.settings.in_flight.units();
        let crowd = part(self.in_flight_units() as u64, most as u64);
        let space = self.gauge.space();
        let used = part(space.total.saturating_sub(space.free), space.total);
        let by_disk = (used / self.settings.watermarks.hard.used.max(f64::EPSILON)).min(1.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of 1000")]
        let load = (crowd.max(by_disk) * f64::from(FULL_LOAD)) as u32;
        load.min(FULL_LOAD)
    }

    /// Identity, state, load and disk.
    pub fn status(&self) -> StatusResponse {
        let (replicas, bytes_held) = {
            let all = lock(&self.replicas);
            let held = all.values().filter(|replica| replica.holds());
            held.fold((0, 0), |(count, bytes), replica| (count + 1, bytes + replica.held().1))
        };
        let space = self.gauge.space();
        let state = self.state(replicas);
        StatusResponse {
            store: self.id.clone(),
            state: state.into(),
            replicas: replicas as u64,
            bytes_held,
            disk_total: space.total,
            disk_free: space.free,
            load: self.load(),
            safe_to_remove: state == State::Decommissioned,
        }
    }

    /// Tells those who watch what has changed, and the metrics.
    pub fn advertise(&self) {
        // Counted with care only where it decides something: this runs every second.
        let replicas = if self.is_decommissioning() { self.held_replicas() } else { lock(&self.replicas).len() };
        metrics::replicas(replicas);
        metrics::load(self.load());
        metrics::disk(self.gauge.space());
        metrics::writable(self.common.failure.reason().is_none() && !self.has_no_room());
        let now = Advertised { state: self.state(replicas), load: self.load().next_multiple_of(LOAD_STEP) };
        self.advertised.send_if_modified(|told| std::mem::replace(told, now) != now);
    }

    /// How many replicas are known, held or waited for.
    #[cfg(test)]
    pub fn known(&self) -> usize {
        lock(&self.replicas).len()
    }

    fn held_replicas(&self) -> usize {
        lock(&self.replicas).values().filter(|replica| replica.holds()).count()
    }

    /// What the registration is to say, now and from now on.
    pub fn advertised(&self) -> watch::Receiver<Advertised> {
        self.advertised.subscribe()
    }

    /// Why all appends are refused for want of room, from now on.
    pub fn refusing(&self) -> watch::Receiver<Option<&'static str>> {
        self.gauge.refusing()
    }

    /// Starts, or cancels, giving the store up; durable before it returns.
    ///
    /// # Errors
    /// The ledger's.
    pub async fn decommission(&self, cancel: bool) -> Result<StatusResponse, Refusal> {
        // Of two calls at once the later one counts, on the disk and here.
        let _one_at_a_time = self.deciding.lock().await;
        let meta = StoreMeta { id: self.identity, decommissioning: !cancel };
        self.ledger.settled(self.ledger.put_store(&meta)).await?;
        self.decommissioning.store(!cancel, Ordering::Relaxed);
        self.advertise();
        let status = self.status();
        tracing::info!(cancel, replicas = status.replicas, "decommissioning");
        Ok(status)
    }

    /// The next page of replicas behind `after`, of one namespace or of all; empty at the end.
    pub fn list(&self, namespace: Option<u32>, after: Option<ReplicaKey>) -> (Vec<HeldReplica>, Option<ReplicaKey>) {
        let names: BTreeMap<u32, _> =
            self.namespaces.all().into_iter().map(|namespace| (namespace.number, namespace.name.clone())).collect();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let replicas = lock(&self.replicas);
        let wanted = replicas.range((from, Bound::Unbounded));
        let wanted =
            wanted.filter(|(key, replica)| namespace.is_none_or(|number| number == key.namespace) && replica.holds());
        let mut last = None;
        let page = wanted
            .take(PAGE)
            .map(|(key, replica)| {
                last = Some(*key);
                let (durable, bytes) = replica.held();
                let namespace = names.get(&key.namespace).map(|name| name.to_string()).unwrap_or_default();
                let name = Name { store: self.id.clone(), namespace, log: key.log, segment: key.segment };
                HeldReplica { replica: Some(name), durable, bytes }
            })
            .collect();
        (page, last)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a part need not be exact")]
fn part(some: u64, all: u64) -> f64 {
    if all == 0 { 1.0 } else { some as f64 / all as f64 }
}
