//! One log store, as this process sees it: its connections, and the one stream that carries all appends to it.

use std::{
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{Stream, stream};
use streaming_proto::logstore::{
    self, AppendRequest, AppendResponse, Code, StatusRequest, append_response::Outcome,
    log_store_client::LogStoreClient,
};
use tokio::{select, sync::Notify};
use tonic::{Status, Streaming, transport::Endpoint};
use woodpecker_base::{
    backoff::Backoff,
    clock::{Clock, Instant},
    net::{Connector, Dialed},
    random::Random,
    tasks::Tasks,
};
use woodpecker_core::ids::{LogId, SegmentKey, StoreId};

use crate::disk::SHARED_BATCH_BYTES;

use super::{
    QuorumSettings,
    directory::Directory,
    lanes::{Frame, Lanes, Outgoing},
    latency::Latency,
    refusal::Refusal,
    segment::Segment,
};

/// Entry bytes that are put into one message, unless one append has more. A store writes what comes in one message as a
/// whole, so more would be a longer batch than other instances there are meant to wait for.
const MESSAGE_BYTES: usize = SHARED_BATCH_BYTES;
/// What one message may have beside the largest append.
const MAX_MESSAGE: usize = super::MAX_APPEND_BYTES + (8 << 20);
/// How much later than its ack a store is told of it, if no entries follow that could carry it.
const NOTICE_DELAY: Duration = Duration::from_millis(2);
/// A silent store is noticed after so many looks.
const LOOKS: u32 = 5;
/// What a slow network brings in one look at least: a large append is waited for longer.
const BYTES_A_LOOK: usize = 2 << 20;
/// Connections in a row that brought no confirmation before the store is given up.
const FRUITLESS: u32 = 3;
const RECONNECT: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));
/// Someone who answered this lately is not asked whether he is there.
const FRESH: Duration = Duration::from_secs(2);

const STREAM_WINDOW: u32 = 1 << 20;
/// Readers that do not read keep up to a stream window each; only the stream windows may bind, or some of them would stop
/// all others.
const READ_CONNECTION_WINDOW: u32 = 1 << 30;

/// What all peers of a backend share.
#[derive(Debug)]
pub(super) struct Context {
    pub settings: QuorumSettings,
    pub directory: Arc<Directory>,
    pub connector: Connector,
    pub clock: Clock,
    pub random: Random,
    pub tasks: Tasks,
}

/// What a connection carries: bulk must not delay acks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Appends, fences, and what else is short.
    Append,
    Read,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub id: StoreId,
    /// As it stands in messages.
    name: String,
    context: Arc<Context>,
    channels: Mutex<Channels>,
    lanes: Mutex<Lanes>,
    /// Something was queued.
    work: Notify,
    /// The task that talks to the store was started.
    running: AtomicBool,
    /// When it last answered.
    heard: Mutex<Option<Instant>>,
    pub latency: Latency,
}

/// Made when first used, and anew when the store has another address.
#[derive(Debug, Default)]
struct Channels {
    address: String,
    append: Option<Dialed>,
    read: Option<Dialed>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peer {
    pub fn new(id: StoreId, context: Arc<Context>) -> Arc<Self> {
        Arc::new(Self {
            id,
            name: id.to_string(),
            context,
            channels: Mutex::default(),
            lanes: Mutex::default(),
            work: Notify::new(),
            running: AtomicBool::new(false),
            heard: Mutex::default(),
            latency: Latency::default(),
        })
    }

    /// The replica of a segment that this store has.
    pub fn replica(&self, key: SegmentKey) -> logstore::Replica {
        logstore::Replica {
            store: self.name.clone(),
            namespace: self.context.settings.namespace.clone(),
            log: key.log.0,
            segment: key.segment,
        }
    }

    /// A way to call it. Connections are made by the first call, and again after they broke.
    pub fn client(&self, class: Class) -> Result<LogStoreClient<Dialed>, Status> {
        let Some(address) = self.context.directory.address(self.id) else {
            return Err(Status::unavailable(format!("log store {} is not registered", self.id)));
        };
        let mut channels = locked(&self.channels);
        if channels.address != address {
            *channels = Channels { address, ..Channels::default() };
        }
        let known = if class == Class::Append { &channels.append } else { &channels.read };
        let channel = match known {
            Some(channel) => channel.clone(),
            None => {
                let channel = self.dial(&channels.address, class)?;
                let slot = if class == Class::Append { &mut channels.append } else { &mut channels.read };
                slot.insert(channel).clone()
            }
        };
        Ok(LogStoreClient::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
    }

    fn dial(&self, address: &str, class: Class) -> Result<Dialed, Status> {
        let settings = &self.context.settings;
        let window = if class == Class::Read { READ_CONNECTION_WINDOW } else { 4 * STREAM_WINDOW };
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| Status::unavailable(format!("address {address:?}: {error}")))?;
        let endpoint = endpoint
            .connect_timeout(settings.silence)
            .http2_keep_alive_interval(settings.keepalive)
            .keep_alive_timeout(settings.keepalive)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(window);
        Ok(self.context.connector.dial(endpoint))
    }

    /// Drops connections that may hang.
    fn hang_up(&self) {
        *locked(&self.channels) = Channels::default();
    }

    /// A call's answer, in time.
    pub async fn answer<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Status> {
        let late = || Err(Status::deadline_exceeded(format!("no answer in {limit:?}")));
        let answer = self.context.clock.timeout(limit, call).await.unwrap_or_else(|_| late());
        if answer.is_ok() {
            self.was_heard();
        }
        answer.map(tonic::Response::into_inner)
    }

    fn was_heard(&self) {
        *locked(&self.heard) = Some(self.context.clock.now());
    }

    /// Whether the store is there and is the one it should be. Asks only one that was not heard of lately.
    pub async fn probe(&self) -> Result<(), Status> {
        let now = self.context.clock.now();
        if locked(&self.heard).is_some_and(|at| now.duration_since(at) < FRESH) {
            return Ok(());
        }
        let mut client = self.client(Class::Append)?;
        let status = self.answer(self.context.settings.silence, client.status(StatusRequest {})).await;
        let status = status.inspect_err(|_| self.hang_up())?;
        if status.store != self.name {
            let refusal = Refusal::new(Code::WrongStore, format!("log store {} answers", status.store));
            return Err(refusal.to_status());
        }
        self.context.directory.succeeded(self.id);
        Ok(())
    }

    /// Bytes on their way to the store.
    pub fn queued(&self) -> usize {
        locked(&self.lanes).bytes()
    }

    /// How many there may be.
    pub fn most_queued(&self) -> usize {
        self.context.settings.queue_bytes
    }

    /// The store is further behind the others than may be.
    pub fn fell_behind(&self) {
        self.context.directory.exclude(self.id, Duration::ZERO, "it is behind by all that may be queued for it");
    }

    pub fn push(self: &Arc<Self>, segment: &Arc<Segment>, replica: usize, frame: Frame) {
        locked(&self.lanes).push(segment, replica, frame);
        self.wake();
    }

    pub fn notice(self: &Arc<Self>, segment: &Arc<Segment>, replica: usize) {
        locked(&self.lanes).notice(segment, replica);
        self.wake();
    }

    pub fn drop_segment(&self, key: SegmentKey) {
        locked(&self.lanes).drop_segment(key);
    }

    pub fn has_notices(&self) -> bool {
        locked(&self.lanes).has_notices()
    }

    fn wake(self: &Arc<Self>) {
        if !self.running.swap(true, Ordering::AcqRel) {
            self.context.tasks.spawn_until_stopped(self.clone().run());
        }
        self.work.notify_one();
    }

    /// Talks to the store as long as there is something to say.
    async fn run(self: Arc<Self>) {
        let (clock, random) = (&self.context.clock, &self.context.random);
        let mut backoff = Backoff::new(clock.clone(), random, RECONNECT.0, RECONNECT.1);
        let mut fruitless = 0;
        loop {
            while !locked(&self.lanes).has_work() {
                self.work.notified().await;
            }
            let before = locked(&self.lanes).progress();
            let ended = select! {
                ended = self.session() => Some(ended),
                () = self.silence() => None,
            };
            // However lately it answered: before it gets another segment it is asked.
            *locked(&self.heard) = None;
            let Some(status) = ended else {
                self.hang_up();
                self.give_up("it is silent");
                fruitless = 0;
                continue;
            };
            tracing::debug!(store = %self.id, %status, "the stream of appends broke");
            if locked(&self.lanes).progress() == before {
                fruitless += 1;
            } else {
                fruitless = 1;
                backoff.reset();
            }
            if fruitless >= FRUITLESS {
                self.give_up(&format!("its stream of appends breaks: {}", status.message()));
                fruitless = 0;
                backoff.reset();
            } else {
                backoff.wait().await;
            }
        }
    }

    /// One stream, from its beginning to its end.
    async fn session(self: &Arc<Self>) -> Status {
        let stream = locked(&self.lanes).rewind();
        let opened = async {
            let mut client = self.client(Class::Append)?;
            client.append(self.clone().requests(stream)).await
        };
        let mut responses = match opened.await {
            Ok(response) => response.into_inner(),
            Err(status) => return status,
        };
        loop {
            match responses.message().await {
                Ok(Some(response)) => self.on_response(response),
                Ok(None) => return Status::unavailable("the store ended the stream"),
                Err(status) => return status,
            }
        }
    }

    /// What is sent, as the transport takes it. Lives as long as its stream.
    fn requests(self: Arc<Self>, stream: u64) -> impl Stream<Item = AppendRequest> + Send + 'static {
        stream::unfold(self, move |peer| async move {
            let outgoing = peer.next(stream).await?;
            let request = AppendRequest {
                replica: Some(peer.replica(outgoing.segment.key)),
                epoch: outgoing.segment.epoch.0,
                first: outgoing.first,
                entries: outgoing.entries,
                committed: outgoing.committed,
            };
            Some((request, peer))
        })
    }

    /// What is to be sent next; `None` when the stream was given up.
    async fn next(&self, stream: u64) -> Option<Outgoing> {
        let mut notices_at = None;
        loop {
            let work = self.work.notified();
            {
                let mut lanes = locked(&self.lanes);
                if !lanes.is_current(stream) {
                    // The signal was meant for the stream after it.
                    self.work.notify_one();
                    return None;
                }
                if let Some(outgoing) = lanes.next(MESSAGE_BYTES) {
                    return Some(outgoing);
                }
                if lanes.has_notices() {
                    let now = self.context.clock.now();
                    let at = *notices_at.get_or_insert(now + NOTICE_DELAY);
                    if now >= at
                        && let Some(outgoing) = lanes.next_notice()
                    {
                        return Some(outgoing);
                    }
                }
                // Entries may have carried what was to be told: then there is nothing to wake up for.
                if !lanes.has_notices() {
                    notices_at = None;
                }
            }
            match notices_at {
                Some(at) => {
                    select! {
                        () = work => {}
                        () = self.context.clock.sleep_until(at) => {}
                    }
                }
                None => work.await,
            }
        }
    }

    fn on_response(&self, response: AppendResponse) {
        let Some(replica) = response.replica else { return };
        self.was_heard();
        let key = SegmentKey { log: LogId(replica.log), segment: replica.segment };
        match response.outcome {
            Some(Outcome::Durable(durable)) => {
                let held = locked(&self.lanes).confirm(key, durable);
                if let Some((segment, replica)) = held {
                    segment.on_durable(replica, durable);
                }
            }
            Some(Outcome::Refused(refusal)) => self.on_refused(key, &Refusal::from_wire(refusal)),
            None => {}
        }
    }

    fn on_refused(&self, key: SegmentKey, refusal: &Refusal) {
        if refusal.is_slowing() {
            return self.on_slowed(key, refusal);
        }
        let Some((segment, _)) = locked(&self.lanes).drop_segment(key) else { return };
        if refusal.code == Code::Fenced {
            return segment.fenced();
        }
        tracing::warn!(store = %self.id, segment = %key, %refusal, "a log store takes no more of a segment");
        if refusal.is_of_store() {
            self.context.directory.exclude(self.id, refusal.retry_after, &refusal.reason);
        }
        metrics::counter!("woodpecker_quorum_replicas_lost_total").increment(1);
        segment.displace();
    }

    fn on_slowed(&self, key: SegmentKey, refusal: &Refusal) {
        let now = self.context.clock.now();
        let segment = {
            let mut lanes = locked(&self.lanes);
            lanes.pause(key, now + refusal.retry_after.max(Duration::from_millis(1)));
            lanes.segment(key).filter(|_| refusal.is_for_what_is_kept())
        };
        let Some(segment) = segment else { return };
        let acked = segment.acked();
        let since = locked(&self.lanes).over_quota(key, acked, now);
        // Closing what holds nothing would free nothing, and nothing is held up while the other stores ack.
        if acked > 0 && now.duration_since(since) >= self.context.settings.quota_patience {
            tracing::warn!(store = %self.id, segment = %key, %refusal, "a segment ends, so that it can be sealed");
            segment.over_quota();
        }
    }

    /// Resolves when the store owes confirmations and gives none for too long. Counted in looks, so that a process that
    /// was stopped for a while does not take itself for the others.
    async fn silence(&self) {
        let clock = &self.context.clock;
        let mut looks = clock.ticker(self.context.settings.silence / LOOKS);
        let (mut still, mut last) = (0, 0);
        loop {
            looks.tick().await;
            let mut lanes = locked(&self.lanes);
            if lanes.resume(clock.now()) {
                self.work.notify_one();
            }
            let progress = lanes.progress();
            if progress != last || !lanes.is_waiting() {
                (still, last) = (0, progress);
                continue;
            }
            still += 1;
            let travelling = u32::try_from(lanes.largest_first() / BYTES_A_LOOK).unwrap_or(u32::MAX);
            if still >= LOOKS.saturating_add(travelling) {
                return;
            }
        }
    }

    /// Every segment that the store owes something goes on without it.
    fn give_up(&self, why: &str) {
        let lost = locked(&self.lanes).drain();
        self.context.directory.exclude(self.id, Duration::ZERO, why);
        metrics::counter!("woodpecker_quorum_replicas_lost_total").increment(lost.len() as u64);
        for (segment, _) in lost {
            segment.displace();
        }
    }
}

/// The first message of a stream, in time.
pub(super) async fn first<T>(clock: &Clock, limit: Duration, stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
    let late = || Err(Status::deadline_exceeded(format!("no answer in {limit:?}")));
    clock.timeout(limit, stream.message()).await.unwrap_or_else(|_| late())
}
