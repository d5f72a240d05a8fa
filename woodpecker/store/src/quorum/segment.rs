//! The appending side of one segment on several log stores.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::watch;
use woodpecker_base::tasks::Tasks;
use woodpecker_core::{
    ids::{Epoch, Placement, ReplicaSet, SegmentKey, StoreId},
    quorum::appending::Appending,
};

use crate::backend::{SegmentEnd, SegmentOwner, SegmentWriter, StoreError};

use super::{MAX_APPEND_BYTES, lanes::Frame, peer::Peer};

/// An open segment that this process writes.
#[derive(Debug)]
pub(super) struct Segment {
    pub key: SegmentKey,
    pub epoch: Epoch,
    placement: Placement,
    ack: usize,
    peers: Vec<Arc<Peer>>,
    owner: Arc<dyn SegmentOwner>,
    state: Mutex<State>,
    /// Every entry below is acked.
    acked: watch::Sender<u64>,
    tasks: Tasks,
}

#[derive(Debug)]
struct State {
    appending: Appending,
    /// The backend closes: no more appends.
    closing: bool,
    /// Every entry below was reported to the owner.
    told: u64,
    /// Why it ended, until the owner is told.
    end: Option<SegmentEnd>,
    /// Someone is telling the owner: what comes meanwhile is told by him.
    telling: bool,
}

impl Segment {
    pub fn new(
        key: SegmentKey,
        epoch: Epoch,
        set: ReplicaSet,
        peers: Vec<Arc<Peer>>,
        owner: Arc<dyn SegmentOwner>,
        tasks: Tasks,
    ) -> Self {
        let appending = Appending::new(set.stores().len(), set.ack());
        let state = Mutex::new(State { appending, closing: false, told: 0, end: None, telling: false });
        let (ack, placement, acked) = (set.ack(), Placement::Replicas(set), watch::Sender::new(0));
        Self { key, epoch, placement, ack, peers, owner, state, acked, tasks }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn acked(&self) -> u64 {
        *self.acked.borrow()
    }

    pub fn follow_acked(&self) -> watch::Receiver<u64> {
        self.acked.subscribe()
    }

    pub fn replicas(&self) -> usize {
        self.peers.len()
    }

    /// How many of its stores are not among `leaving`.
    pub fn staying(&self, leaving: &BTreeSet<StoreId>) -> usize {
        self.peers.iter().filter(|peer| !leaving.contains(&peer.id)).count()
    }

    /// Whether it has entries, and one of `leaving` has to hold them.
    pub fn is_held_by(&self, leaving: &BTreeSet<StoreId>) -> bool {
        self.staying(leaving) < self.peers.len() && self.state().appending.issued() > 0
    }

    pub fn is_at(&self, placement: &Placement) -> bool {
        self.placement == *placement
    }

    pub fn has_ended(&self) -> bool {
        self.state().appending.has_ended()
    }

    /// Takes no more appends; says whether nothing is left to wait for.
    pub fn close(&self) {
        self.state().closing = true;
    }

    pub fn is_settled(&self) -> bool {
        let state = self.state();
        let acked = state.appending.acked();
        state.appending.has_ended() || (acked == state.appending.issued() && state.told == acked)
    }

    /// A replica has every entry below `durable`.
    pub fn on_durable(self: &Arc<Self>, replica: usize, durable: u64) {
        let acked = self.state().appending.on_durable(replica, durable);
        let Some(acked) = acked else { return };
        // Two replicas may come to this point in either order.
        self.acked.send_if_modified(|known| {
            let grew = acked > *known;
            *known = acked.max(*known);
            grew
        });
        self.tell_owner();
        for (replica, peer) in self.peers.iter().enumerate() {
            peer.notice(self, replica);
        }
    }

    /// A replica takes no more of it. The segment ends where it was acked, and its owner goes on in another: with the
    /// replicas that are left it would be kept less safely than was promised.
    pub fn displace(&self) {
        {
            let mut state = self.state();
            if state.appending.end() {
                state.end = Some(SegmentEnd::Displaced);
            }
        }
        self.tell_owner();
    }

    /// The stores keep as much of this instance as they may. What was acked is closed, so that it can be sealed and come
    /// off the quota; the rest waits in another segment, of which nothing is kept.
    pub fn over_quota(&self) {
        self.drop_from_peers();
        self.displace();
    }

    fn drop_from_peers(&self) {
        for peer in &self.peers {
            peer.drop_segment(self.key);
        }
    }

    /// Another process has the log.
    pub fn fenced(&self) {
        {
            let mut state = self.state();
            if state.appending.end() || state.end.is_some() {
                state.end = Some(SegmentEnd::Fenced);
            }
        }
        self.drop_from_peers();
        self.tell_owner();
    }

    /// The store whose queue has no room for `bytes` more while the others' have plenty: it is slower than they are.
    ///
    /// # Errors
    /// All queues are about as full: more is appended than the stores take.
    fn find_behind(&self, bytes: usize) -> Result<Option<&Arc<Peer>>, StoreError> {
        let queued = |peer: &Arc<Peer>| peer.queued();
        let Some(slowest) = self.peers.iter().max_by_key(|peer| queued(peer)) else { return Ok(None) };
        let (most, limit) = (queued(slowest), slowest.most_queued());
        if most == 0 || most + bytes <= limit {
            return Ok(None);
        }
        let mut all: Vec<usize> = self.peers.iter().map(queued).collect();
        all.sort_unstable();
        // Of those that ack, the slowest.
        let acking = self.ack.checked_sub(1).and_then(|last| all.get(last)).copied().unwrap_or_default();
        if acking > limit / 2 {
            return Err(StoreError::Unavailable("the log stores' queues are full".into()));
        }
        Ok(Some(slowest))
    }

    /// Tells the owner what it was not told yet, in order, whoever else comes here at the same time.
    fn tell_owner(&self) {
        loop {
            let end = {
                let mut state = self.state();
                if state.telling {
                    return;
                }
                let acked = state.appending.acked();
                let end = if acked > state.told {
                    state.told = acked;
                    Ok(acked)
                } else {
                    let Some(end) = state.end.take() else { return };
                    Err(end)
                };
                state.telling = true;
                end
            };
            match end {
                Ok(acked) => self.owner.acked(acked),
                Err(end) => self.owner.ended(end),
            }
            self.state().telling = false;
        }
    }
}

/// What the segment's owner has of it.
#[derive(Debug)]
pub(super) struct Writer(pub Arc<Segment>);

impl SegmentWriter for Writer {
    fn placement(&self) -> &Placement {
        &self.0.placement
    }

    fn append(&self, entries: Vec<Bytes>) -> Result<u64, StoreError> {
        let segment = &self.0;
        let bytes: usize = entries.iter().map(Bytes::len).sum();
        if bytes > MAX_APPEND_BYTES {
            return Err(StoreError::TooLarge { bytes, limit: MAX_APPEND_BYTES });
        }
        // Held until every store's queue has the entries, so that all have them in the order of their numbers.
        let mut state = segment.state();
        if state.closing || state.appending.has_ended() {
            return Err(StoreError::Ended);
        }
        if entries.is_empty() {
            return Ok(state.appending.issued());
        }
        if let Some(behind) = segment.find_behind(bytes)? {
            behind.fell_behind();
            // The owner may not be told from in here.
            drop(state);
            let segment = segment.clone();
            segment.tasks.clone().spawn(async move { segment.displace() });
            return Err(StoreError::Ended);
        }
        let Some(first) = state.appending.issue(entries.len() as u64) else { return Err(StoreError::Ended) };
        let frame = Frame { first, entries: Arc::new(entries), bytes };
        for (replica, peer) in segment.peers.iter().enumerate() {
            peer.push(segment, replica, frame.clone());
        }
        Ok(first)
    }
}
