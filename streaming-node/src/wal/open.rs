//! Opening a WAL at a term: claim the term, fence the log, replay it, append the tick that begins the term, serve.

use std::{
    convert::Infallible,
    future::poll_fn,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::stream::FuturesOrdered;
use streaming_types::{ImmutableMessage, PChannel};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tower::Service;
use woodpecker::{AppendError, Log, LogError, OpenWriterError, Writer};
use woodpecker_base::{backoff::Backoff, clock::Clock, metadata::MetadataStore, random::Random, tasks::Tasks};

use super::{
    Appends, Live, Wal,
    allowance::Allowance,
    appender::{self, Appender, Stack, StackParts},
    buffer::{Buffer, Capacity, NodeBudget},
    group::{Append, Group},
    log_writer::LogWriter,
    mvcc::Mvcc,
    publisher::Publisher,
    record::{BadRecord, Stored},
    replicate::SharedReplication,
    scanner::ScanEdges,
    sessions::SharedSessions,
    ticks::Ticks,
    time_tick::SharedTicks,
};
use crate::{
    flow::{Gauges, Governor, Limiter, Memory},
    ids::IdSource,
    metrics,
    recovery::{
        acks::BroadcastAcks,
        catalog::{Catalog, CatalogError},
        follower::Follower,
        keeper::{Ends, Keeper, Progress},
        replay::{self, ReplayError, Replayed},
        seen::Seen,
        state::State,
    },
    settings::{Flow, Settings},
    shard::{Growth, IdPool, Sealer, ShardLayer, Shards, Table},
    tenure::Tenure,
    timestamps::TimestampSource,
};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// After failing for so long the coordinator learns why, and may try elsewhere.
const PATIENCE: Duration = Duration::from_secs(10);
/// Shares of the time that closing may take: the appender's, then the keeper's; the rest is slack.
const APPENDER_SHARE: f32 = 0.6;
const KEEPER_SHARE: f32 = 0.3;

/// What WALs are opened with.
#[derive(Debug, Clone)]
pub struct Opener {
    pub settings: Arc<Settings>,
    pub metadata: Arc<dyn MetadataStore>,
    pub logs: woodpecker::Client,
    pub timestamps: Arc<dyn TimestampSource>,
    pub ids: Arc<dyn IdSource>,
    pub acks: Arc<dyn BroadcastAcks>,
    pub memory: Memory,
    pub clock: Clock,
    pub random: Random,
    pub tasks: Tasks,
    pub buffers: Arc<NodeBudget>,
    pub allowance: Allowance,
    pub growth: Arc<Growth>,
    pub tenure: Tenure,
    pub paused: watch::Sender<bool>,
    pub flow: watch::Receiver<Flow>,
}

/// Why a WAL could not be opened; its term is burnt.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Writer(#[from] OpenWriterError),
    #[error("the metadata: {0}")]
    Catalog(#[from] CatalogError),
    #[error("replaying the log: {0}")]
    Replay(#[from] ReplayError),
    #[error("appending the first time tick: {0}")]
    FirstTick(#[from] AppendError),
    #[error("the first time tick: {0}")]
    BadFirstTick(#[from] BadRecord),
    #[error("the first time tick has no outcome after {0:?}")]
    Stuck(Duration),
    #[error("a newer term took over")]
    Overtaken,
}

impl OpenError {
    /// A stable code for documentation and programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Log(error) => error.code(),
            Self::Writer(error) => error.code(),
            Self::Catalog(CatalogError::Metadata(error)) => error.code(),
            Self::Replay(ReplayError::Log(error)) => error.code(),
            Self::Replay(ReplayError::Read(error)) => error.code(),
            Self::FirstTick(error) => error.code(),
            Self::BadFirstTick(_) => "WAL_BAD_RECORD",
            Self::Stuck(_) => "WAL_STUCK",
            Self::Catalog(CatalogError::Overtaken(_)) | Self::Overtaken => "WAL_OVERTAKEN",
        }
    }

    fn is_retryable(&self) -> bool {
        match self {
            Self::Log(error) | Self::Writer(OpenWriterError::Log(error)) => error.is_retryable(),
            Self::Catalog(error) => error.is_retryable(),
            Self::Replay(ReplayError::Log(error)) => error.is_retryable(),
            Self::Replay(ReplayError::Read(error)) => error.is_retryable(),
            // Whoever preempted this open has the later term.
            Self::Writer(OpenWriterError::Preempted)
            | Self::FirstTick(_)
            | Self::BadFirstTick(_)
            | Self::Stuck(_)
            | Self::Overtaken => false,
        }
    }
}

impl Opener {
    /// Opens a WAL as server `node`. Dropping the future gives up at the next await; the log is then as a crash leaves it.
    pub async fn open(&self, channel: &PChannel, node: i64) -> Result<Wal, OpenError> {
        let mut backoff = Backoff::new(self.clock.clone(), &self.random, FIRST_PAUSE, LONGEST_PAUSE);
        let mut failing_since = None;
        loop {
            let error = match self.attempt(channel, node).await {
                Err(error) if error.is_retryable() => error,
                result => return result,
            };
            let now = self.clock.now();
            if now.duration_since(*failing_since.get_or_insert(now)) >= PATIENCE {
                return Err(error);
            }
            tracing::warn!(pchannel = channel.name(), %error, "opening failed, trying again");
            backoff.wait().await;
        }
    }

    async fn attempt(&self, channel: &PChannel, node: i64) -> Result<Wal, OpenError> {
        let log = self.logs.open_or_create_log(channel.name()).await?;
        let ended = CancellationToken::new();
        let scan = |log: Log, buffer: Option<Arc<Buffer>>| ScanEdges {
            log,
            buffer,
            ended: ended.clone(),
            allowance: self.allowance.clone(),
            paused: self.paused.subscribe(),
            node,
            clock: self.clock.clone(),
            random: self.random.clone(),
        };
        if channel.is_read_only() {
            return Ok(Wal { channel: channel.clone(), scan: scan(log, None), live: None });
        }
        // The term is claimed before anything is fenced: one that is past disturbs nobody.
        let root = &self.settings.metadata_root;
        let catalog = Catalog::claim(Arc::clone(&self.metadata), root, channel.name(), channel.term()).await?;
        let writer = Arc::new(log.open_writer().await?);
        let recovered = self.recover(&log, catalog).await?;
        let (live, buffer) = self.begin(channel, node, writer, recovered, ended.clone()).await?;
        Ok(Wal { channel: channel.clone(), scan: scan(log, Some(buffer)), live: Some(live) })
    }

    /// Brings the state in the metadata up to the end of the log.
    async fn recover(&self, log: &Log, catalog: Catalog) -> Result<(Kept, Replayed), OpenError> {
        let Settings { recovery, idempotency_bytes, cluster, .. } = &*self.settings;
        let mut state = State::recovered(catalog.load().await?, cluster, log.name(), recovery.window_bytes);
        let began = self.clock.now();
        let replayed = replay::replay(log, &mut state, *idempotency_bytes, self.random.u128()).await?;
        let took = self.clock.now() - began;
        metrics::replayed(replayed.bytes, took);
        tracing::info!(log = log.name(), bytes = replayed.bytes, ?took, "replayed");
        Ok((Kept { log: log.clone(), catalog, state }, replayed))
    }

    /// Begins the term with a persisted tick that is greater than every tick before it, and starts to serve.
    async fn begin(
        &self,
        channel: &PChannel,
        node: i64,
        writer: Arc<Writer>,
        (kept, replayed): (Kept, Replayed),
        ended: CancellationToken,
    ) -> Result<(Live, Arc<Buffer>), OpenError> {
        let Replayed { last_tick, sessions, windows, bytes, broadcasts } = replayed;
        let pchannel: Arc<str> = channel.name().into();
        let ticks = Ticks::above(last_tick, Arc::clone(&self.timestamps), self.clock.clone(), &self.random).await;
        let ticks = SharedTicks::new(ticks);
        let log_writer = LogWriter::new(Arc::clone(&writer), channel.term(), node, self.settings.entry_bytes);
        let sessions = SharedSessions::new(sessions);
        let parts = StackParts {
            pchannel: Arc::clone(&pchannel),
            ticks: ticks.clone(),
            sessions: sessions.clone(),
            windows,
            replication: SharedReplication::new(kept.state.replication()),
            sharding: self.sharding(&pchannel, &kept.state),
            keepalive: self.settings.txn_keepalive,
        };
        let (shards, replication) = (parts.sharding.shards.clone(), parts.replication.clone());
        let mut stack = appender::stack(parts, log_writer);

        let first = self.first_tick(&mut stack).await?;

        let settings = &self.settings;
        let confirmed = sessions.lock().confirmed();
        let buffer = Arc::new(Buffer::new(&first, confirmed, self.capacity()));
        let mvcc = Arc::new(Mvcc::default());
        mvcc.told(first.tick);
        let (inbox, arrivals) = mpsc::channel(INBOX);
        let trouble = Arc::new(OnceLock::new());
        let appender = Appender {
            trouble: Arc::clone(&trouble),
            publisher: Publisher::of(channel, &buffer, &mvcc),
            pchannel,
            stack,
            ticks,
            sessions: sessions.clone(),
            tenure: self.tenure.clone(),
            writer,
            progress: self.clock.now(),
            inbox: arrivals,
            clock: self.clock.clone(),
            heartbeat: settings.heartbeat,
            close_timeout: settings.close_timeout.mul_f32(APPENDER_SHARE),
            append_timeout: settings.append_timeout,
            pending: Default::default(),
            parked: Vec::new(),
            in_flight: FuturesOrdered::new(),
            untold: false,
            beat_due: false,
            tick_due: false,
        };
        let tasks = self.tasks.branch();
        let stop = tasks.token().clone();
        let ends = Ends {
            ended: ended.clone(),
            quiet: CancellationToken::new(),
            lost: stop.clone(),
            grace: settings.close_timeout.mul_f32(KEEPER_SHARE),
        };
        let quiet = ends.quiet.clone();
        tasks.spawn(async move {
            let _quiet = quiet.drop_guard();
            appender.run(stop, ended).await;
        });
        let appends = self.appends(inbox);
        let (catalog, still) = (kept.catalog.clone(), ends.ended.clone());
        let progress = self.keep(kept, (bytes, broadcasts), &first, Arc::clone(&buffer), ends, &tasks);
        let gauges = Gauges { memory: self.memory.clone(), progress: Arc::clone(&progress) };
        self.look_after(channel, &tasks, &appends, (shards, sessions), gauges, still);
        let (close_timeout, tenure) = (settings.close_timeout, self.tenure.clone());
        let live = Live { appends, close_timeout, catalog, progress, mvcc, replication, tenure, tasks, trouble };
        Ok((live, buffer))
    }

    async fn first_tick(&self, stack: &mut Stack) -> Result<Stored, OpenError> {
        let limit = self.settings.append_timeout;
        self.clock.timeout(limit, first_tick(stack)).await.unwrap_or(Err(OpenError::Stuck(limit)))
    }

    fn appends(&self, inbox: mpsc::Sender<Box<Append>>) -> Appends {
        let Settings { flow, in_flight_bytes, .. } = &*self.settings;
        let limiter = Limiter::new(flow.burst, flow.trickle, self.clock.clone());
        let in_flight = self.allowance.of_wal(*in_flight_bytes, in_flight_bytes.div_ceil(INBOX));
        Appends { inbox, in_flight, limiter }
    }

    fn capacity(&self) -> Capacity {
        let settings = &self.settings;
        Capacity { bytes: settings.buffer_bytes, age: settings.buffer_age, node: Arc::clone(&self.buffers) }
    }

    fn sharding(&self, pchannel: &Arc<str>, state: &State) -> ShardLayer {
        let shards = Shards::new(Table::recovered(state, self.clock.now(), self.clock.wall().as_secs()));
        self.growth.add(shards.clone());
        ShardLayer {
            pchannel: Arc::clone(pchannel),
            shards,
            ids: IdPool::new(Arc::clone(&self.ids), self.clock.clone(), &self.random),
            limits: self.settings.segments.clone(),
            clock: self.clock.clone(),
            random: self.random.clone(),
        }
    }

    /// Starts the sealer of segments and the governor of the rate.
    fn look_after(
        &self,
        channel: &PChannel,
        tasks: &Tasks,
        appends: &Appends,
        (shards, sessions): (Shards, SharedSessions),
        gauges: Gauges,
        ended: CancellationToken,
    ) {
        let sealer = Sealer {
            shards,
            growth: Arc::clone(&self.growth),
            memory: self.memory.clone(),
            sessions,
            appends: appends.clone(),
            limits: self.settings.segments.clone(),
            clock: self.clock.clone(),
        };
        tasks.spawn(sealer.run(ended.clone()));
        let name = channel.name().into();
        let governor = Governor::new(name, self.flow.clone(), appends.limiter.clone(), self.clock.now());
        let governing = governor.run(gauges, self.clock.clone());
        tasks.spawn(async move { ended.run_until_cancelled(governing).await });
    }

    /// Keeps up with the WAL from its first tick on what its next owner needs.
    fn keep(
        &self,
        Kept { log, catalog, mut state }: Kept,
        (taken, broadcasts): (u64, Vec<ImmutableMessage>),
        first: &Stored,
        buffer: Arc<Buffer>,
        ends: Ends,
        tasks: &Tasks,
    ) -> Arc<Progress> {
        state.apply(&Seen::of(first));
        let progress = Arc::new(Progress::at(first.id, first.tick));
        let keeper = Keeper {
            pchannel: log.name().into(),
            state,
            follower: Follower::after(first.id, log.clone(), buffer),
            catalog,
            log,
            acks: Arc::clone(&self.acks),
            clock: self.clock.clone(),
            random: self.random.clone(),
            settings: self.settings.recovery.clone(),
            progress: Arc::clone(&progress),
            taken,
            saved: 0,
        };
        tasks.spawn(keeper.run(broadcasts, ends));
        progress
    }
}

/// Appends the tick that begins a term.
async fn first_tick(stack: &mut Stack) -> Result<Stored, OpenError> {
    let Ok(()) = poll_fn(|cx| stack.poll_ready(cx)).await;
    let opened: Result<Group, Infallible> = stack.call(Group::default()).await;
    let Ok(group) = opened;
    group.written.unwrap_or(Err(AppendError::Closed))?;
    let (id, tick) = group.tick.ok_or(AppendError::Closed)?;
    Ok(Stored::new(id, tick)?)
}

/// What a former owner left, as of the end of its log.
struct Kept {
    log: Log,
    catalog: Catalog,
    state: State,
}

/// Messages that wait for the appender at most. Each is charged at least its share, so there is always room.
const INBOX: usize = 1 << 14;
