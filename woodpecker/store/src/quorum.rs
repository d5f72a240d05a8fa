//! The `quorum` backend: segments on three or five log stores.
//!
//! Every entry is sent to all stores of its segment and acked when most of them have synced it. All segments of this
//! process share one connection and one stream to each store. A store that fails, is silent or falls too far behind
//! delays no ack: the segments that it owes something end, and go on in others without it. `docs/quorum.md` says what is
//! promised, the rules are in `woodpecker_core::quorum`, and the protocol is `logstore.proto`.

mod directory;
mod fence;
mod lanes;
mod latency;
mod peer;
mod reader;
pub mod refusal;
mod segment;
mod sweep;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::future::join_all;
use streaming_proto::logstore::Code;
use woodpecker_base::{
    clock::{Clock, Instant},
    metadata::MetadataStore,
    net::Connector,
    random::Random,
    tasks::Tasks,
};
use woodpecker_core::{
    ids::{Epoch, Placement, ReplicaSet, SegmentKey, StoreId},
    quorum::{recovery::Recovery, selection::SelectionPolicy},
};

pub use woodpecker_core::quorum::{selection, store_record};

use crate::backend::{Backend, Named, SegmentOwner, SegmentReader, SegmentWriter, StoreError, Surveyed};

use directory::Directory;
use fence::Taker;
use latency::HedgeBudget;
use peer::{Context, Peer};
use reader::{Pushed, Reader};
use refusal::{Refusal, store_error};
use segment::{Segment, Writer};

/// Largest total of entry bytes in one append.
const MAX_APPEND_BYTES: usize = 32 << 20;
/// How long the first segment waits for the list of stores.
const LISTED: Duration = Duration::from_secs(3);
/// Choices of stores before a segment is said to be impossible for now.
const CHOICES: usize = 4;
/// Segments that move to other stores at once.
const MENDED_AT_ONCE: usize = 64;
/// How often a closing backend looks whether it is done, and how long it tells the stores what was acked last.
const SETTLE: Duration = Duration::from_millis(2);
const LAST_NOTICES: Duration = Duration::from_millis(200);

/// How a [`QuorumBackend`] uses log stores.
#[derive(Debug, Clone)]
pub struct QuorumSettings {
    /// The instance, to log stores that several share: its logs meet no other's.
    pub namespace: String,
    /// Where this process runs: replicas near it are read first.
    pub region: String,
    pub zone: String,
    /// Which stores new segments go to.
    pub selection: SelectionPolicy,
    /// What may be on its way to one store, in entry bytes. A store that is behind by more is given up.
    pub queue_bytes: usize,
    /// A store that owes a confirmation and is silent for so long is given up.
    pub silence: Duration,
    /// Most that a single request may take.
    pub request_timeout: Duration,
    /// An idle connection is tried this often; one that does not answer as long is broken.
    pub keepalive: Duration,
    /// How often it is looked whether segments on fewer stores than wanted can have all of them, and whether any are on
    /// stores that are being given up.
    pub mending: Duration,
    /// A segment ends when a store refused its next entries for so long because the instance keeps all it may: only what
    /// is closed can be sealed, and comes off the quota then.
    pub quota_patience: Duration,
}

impl QuorumSettings {
    /// Settings for an instance, with what fits most.
    #[must_use]
    pub fn new(namespace: &str, selection: SelectionPolicy) -> Self {
        Self {
            namespace: namespace.to_owned(),
            region: String::new(),
            zone: String::new(),
            selection,
            queue_bytes: 256 << 20,
            silence: Duration::from_millis(800),
            request_timeout: Duration::from_secs(2),
            keepalive: Duration::from_secs(2),
            mending: Duration::from_secs(5),
            quota_patience: Duration::from_secs(10),
        }
    }
}

/// One process's access to segments on log stores.
pub struct QuorumBackend {
    context: Arc<Context>,
    hedges: Arc<HedgeBudget>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    closed: bool,
    peers: BTreeMap<StoreId, Arc<Peer>>,
    /// What this process writes: each of one owner, and of others that are about to find out that they are not it.
    segments: BTreeMap<SegmentKey, Vec<Weak<Segment>>>,
    /// When the map is swept: whenever it has doubled.
    sweep_at: usize,
    /// Ends that this process found and could not make last yet, by taker.
    decided: BTreeMap<(SegmentKey, Epoch), u64>,
    /// Replicas that no record named at the last sweep, and since when.
    nameless: BTreeMap<(StoreId, SegmentKey), Instant>,
}

impl State {
    fn written(&self) -> impl Iterator<Item = Arc<Segment>> {
        self.segments.values().flatten().filter_map(Weak::upgrade)
    }
}

impl fmt::Debug for QuorumBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuorumBackend").field("namespace", &self.context.settings.namespace).finish_non_exhaustive()
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set_of(placement: &Placement) -> Result<&ReplicaSet, StoreError> {
    match placement {
        Placement::Replicas(set) => Ok(set),
        Placement::Volume { .. } => Err(StoreError::Corrupt {
            what: format!("placement {placement}"),
            detail: "it names a volume and not log stores".to_owned(),
        }),
    }
}

impl QuorumBackend {
    /// A backend whose log stores are registered under `prefix` in the metadata store. It runs in `tasks`; what is not
    /// durable when they stop may be lost, as in a crash.
    #[must_use]
    pub fn start(
        settings: QuorumSettings,
        metadata: Arc<dyn MetadataStore>,
        prefix: &str,
        connector: Connector,
        (clock, random): (Clock, Random),
        tasks: &Tasks,
    ) -> Self {
        let tasks = tasks.child();
        let directory = Directory::start(metadata, prefix, clock.clone(), random.clone(), &tasks);
        let state = Arc::new(Mutex::new(State {
            closed: false,
            peers: BTreeMap::new(),
            segments: BTreeMap::new(),
            sweep_at: 64,
            decided: BTreeMap::new(),
            nameless: BTreeMap::new(),
        }));
        let context = Arc::new(Context { settings, directory, connector, clock, random, tasks });
        context.tasks.spawn_until_stopped(mend(context.clone(), state.clone()));
        Self { context, hedges: Arc::default(), state }
    }

    fn peers(&self, set: &ReplicaSet) -> Vec<Arc<Peer>> {
        self.peers_of(set.stores())
    }

    fn peers_of(&self, stores: &[StoreId]) -> Vec<Arc<Peer>> {
        peers(&self.context, &self.state, stores)
    }

    /// The segment as this process writes it, if it does. Where several were created, the stores know the owner's.
    fn local(&self, key: SegmentKey, placement: &Placement) -> Option<Arc<Segment>> {
        let segments: Vec<_> = locked(&self.state).segments.get(&key)?.iter().filter_map(Weak::upgrade).collect();
        let mut there = segments.into_iter().filter(|segment| segment.is_at(placement));
        let (Some(segment), None) = (there.next(), there.next()) else { return None };
        (!segment.has_ended()).then_some(segment)
    }

    /// Stores for a segment, each of which was heard of.
    async fn choose(&self) -> Result<(ReplicaSet, Vec<Arc<Peer>>), StoreError> {
        let directory = &self.context.directory;
        directory.listed(LISTED).await;
        let mut set = None;
        for _ in 0..CHOICES {
            let chosen = directory.select(&self.context.settings.selection);
            let chosen =
                chosen.map_err(|error| StoreError::Unavailable(format!("{error}{}", directory.why_not()).into()))?;
            let peers = self.peers(&chosen);
            if probe(&self.context, &peers).await {
                set = Some((chosen, peers));
                break;
            }
        }
        set.ok_or_else(|| StoreError::Unavailable("too few of the registered log stores answer".into()))
    }
}

fn peers(context: &Arc<Context>, state: &Mutex<State>, stores: &[StoreId]) -> Vec<Arc<Peer>> {
    let mut state = locked(state);
    let mut peer = |id: &StoreId| state.peers.entry(*id).or_insert_with(|| Peer::new(*id, context.clone())).clone();
    stores.iter().map(&mut peer).collect()
}

/// Whether all of them answer; those that do not are left out of the next choices.
async fn probe(context: &Context, peers: &[Arc<Peer>]) -> bool {
    let probes = join_all(peers.iter().map(|peer| peer.probe())).await;
    let mut all = true;
    for (peer, probe) in peers.iter().zip(probes) {
        if let Err(status) = probe {
            context.directory.exclude(peer.id, Duration::ZERO, status.message());
            all = false;
        }
    }
    all
}

/// Moves segments that have fewer replicas than wanted, when there are stores again, and segments on stores that are being
/// given up, a few at a time. Their logs may be idle: nobody else would move them.
async fn mend(context: Arc<Context>, state: Arc<Mutex<State>>) {
    let mut ticker = context.clock.ticker(context.settings.mending);
    let wanted = &context.settings.selection;
    loop {
        ticker.tick().await;
        let written: Vec<_> = locked(&state).written().collect();
        let written = || written.iter().filter(|segment| !segment.has_ended());
        let poor: Vec<_> = written().filter(|segment| segment.replicas() < wanted.replicas).collect();
        metrics::gauge!("woodpecker_quorum_segments_short_of_replicas").set(poor.len() as f64);
        let leaving = context.directory.leaving();
        let left: Vec<_> = written().filter(|segment| segment.is_held_by(&leaving)).collect();
        if poor.is_empty() && left.is_empty() {
            continue;
        }
        let Ok(set) = context.directory.select(wanted) else { continue };
        let found = set.stores().len();
        // Where a store leaves, as many as stay are enough. The others gain nothing but by having all of them.
        let left = left.into_iter().filter(|segment| found >= segment.staying(&leaving));
        let poor = poor.into_iter().filter(|_| found == wanted.replicas);
        let moving: Vec<_> = left.chain(poor).take(MENDED_AT_ONCE).collect();
        // Only to stores that are there, or the segments would come back here.
        if !moving.is_empty() && probe(&context, &peers(&context, &state, set.stores())).await {
            for segment in moving {
                segment.displace();
            }
        }
    }
}

impl Drop for QuorumBackend {
    fn drop(&mut self) {
        self.context.tasks.stop();
    }
}

#[async_trait]
impl Backend for QuorumBackend {
    fn name(&self) -> &'static str {
        "quorum"
    }

    fn max_append_bytes(&self) -> usize {
        MAX_APPEND_BYTES
    }

    async fn create(
        &self,
        key: SegmentKey,
        epoch: Epoch,
        owner: Arc<dyn SegmentOwner>,
    ) -> Result<Arc<dyn SegmentWriter>, StoreError> {
        let closed = || StoreError::Unavailable("the backend is closed".into());
        if locked(&self.state).closed {
            return Err(closed());
        }
        let (set, peers) = self.choose().await?;
        let segment = Arc::new(Segment::new(key, epoch, set, peers, owner, self.context.tasks.clone()));
        let mut state = locked(&self.state);
        if state.closed {
            return Err(closed());
        }
        if state.segments.len() >= state.sweep_at {
            state.segments.retain(|_, segments| {
                segments.retain(|segment| segment.strong_count() > 0);
                !segments.is_empty()
            });
            state.sweep_at = state.segments.len().max(32) * 2;
        }
        state.segments.entry(key).or_default().push(Arc::downgrade(&segment));
        Ok(Arc::new(Writer(segment)))
    }

    async fn open(
        &self,
        key: SegmentKey,
        placement: &Placement,
        end: Option<u64>,
    ) -> Result<Arc<dyn SegmentReader>, StoreError> {
        let set = set_of(placement)?;
        self.context.directory.listed(LISTED).await;
        let QuorumSettings { region, zone, .. } = &self.context.settings;
        let mut peers = self.peers(set);
        // Among those that are as near, each reader begins with another, so that they share the load.
        let spread = usize::try_from(self.context.random.u64() % peers.len().max(1) as u64).unwrap_or_default();
        peers.rotate_left(spread);
        peers.sort_by_key(|peer| self.context.directory.distance(peer.id, region, zone));
        Ok(Arc::new(Reader {
            context: self.context.clone(),
            key,
            peers,
            needed: set.stores().len() - set.ack() + 1,
            end,
            local: self.local(key, placement),
            hedges: self.hedges.clone(),
            known: AtomicU64::new(0),
            pushing: AtomicUsize::new(0),
            pushed: tokio::sync::Mutex::new(Pushed::default()),
        }))
    }

    async fn fence(&self, key: SegmentKey, placement: &Placement, epoch: Epoch) -> Result<u64, StoreError> {
        let set = set_of(placement)?;
        self.context.directory.listed(LISTED).await;
        let peers = self.peers(set);
        let decided = locked(&self.state).decided.get(&(key, epoch)).copied();
        let taker = Taker { context: &self.context, key, peers: &peers };
        let remember = |end| {
            locked(&self.state).decided.insert((key, epoch), end);
        };
        let end = taker.take(Recovery::new(set, epoch, decided), remember).await?;
        locked(&self.state).decided.remove(&(key, epoch));
        Ok(end)
    }

    async fn delete(&self, key: SegmentKey, placement: &Placement) -> Result<(), StoreError> {
        let set = set_of(placement)?;
        if !self.context.directory.listed(LISTED).await {
            return Err(StoreError::Unavailable("the log stores could not be listed yet".into()));
        }
        let peers = self.peers(set);
        let release = async |peer: &Arc<Peer>| {
            if !self.context.directory.is_registered(peer.id) {
                // A store that is gone must not keep logs from being deleted. One that comes back is swept.
                tracing::warn!(store = %peer.id, segment = %key, "a replica on a log store that is away is left to the sweep");
                return Ok(());
            }
            self.release(peer, key).await
        };
        for answer in join_all(peers.iter().map(release)).await {
            let Err(status) = answer else { continue };
            let gone = [Code::WrongStore, Code::Released];
            if !Refusal::from_status(&status).is_some_and(|refusal| gone.contains(&refusal.code)) {
                return Err(store_error(&status, &format!("segment {key}")));
            }
        }
        Ok(())
    }

    async fn survey(&self) -> Result<Vec<Surveyed>, StoreError> {
        Ok(self.list_replicas().await)
    }

    async fn reclaim(&self, surveyed: &[Surveyed], live: &[Named], idle: Duration) -> Result<u64, StoreError> {
        Ok(self.release_nameless(surveyed, live, idle).await)
    }

    async fn close(&self) {
        let segments: Vec<Arc<Segment>> = {
            let mut state = locked(&self.state);
            state.closed = true;
            state.written().collect()
        };
        for segment in &segments {
            segment.close();
        }
        let clock = &self.context.clock;
        while !segments.iter().all(|segment| segment.is_settled()) && !self.context.tasks.is_stopping() {
            clock.sleep(SETTLE).await;
        }
        let last = clock.now() + LAST_NOTICES;
        let peers: Vec<Arc<Peer>> = locked(&self.state).peers.values().cloned().collect();
        while peers.iter().any(|peer| peer.has_notices()) && clock.now() < last {
            clock.sleep(SETTLE).await;
        }
        self.context.tasks.stop();
    }
}
