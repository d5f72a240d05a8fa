//! One pchannel and its counterpart: reads the one, sends to the other.
//!
//! All that is sent between two questions for the checkpoint is one session: one stream, to one owner of the target. What
//! goes wrong ends it, and the next one begins at the checkpoint of then, so nothing is lost and nothing counts twice.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::pin,
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, Fuse, FusedFuture},
};
use streaming_client::{
    Client, ConsumeError, ConsumeOptions, Consumer, Delivery, ReplicateAnswers, ReplicateError, ReplicateSender,
};
use streaming_proto::{common::ReplicateCheckpoint, messages::AlterReplicateConfigMessageHeader};
use streaming_types::{
    DeliverFilter, DeliverPolicy, ImmutableMessage, Message, TimeTick, channel::replica_consumer,
    message_id::MessageIdError, properties::PropertyError,
};
use woodpecker_base::{backoff::Backoff, clock::Clock, random::Random};

use crate::{
    Settings,
    introduction::{self, Place, follows},
    metrics::Metrics,
    rewrite::{Names, RewriteError},
};

/// How often it is shown how far the target is behind.
const LOOK: Duration = Duration::from_millis(200);

/// See the module.
pub(crate) struct Channel {
    pub(crate) source: Client,
    pub(crate) target: Client,
    pub(crate) names: Names,
    pub(crate) source_cluster: String,
    pub(crate) target_cluster: String,
    pub(crate) source_channel: String,
    pub(crate) target_channel: String,
    pub(crate) settings: Settings,
    pub(crate) clock: Clock,
    pub(crate) random: Random,
    pub(crate) metrics: Metrics,
}

/// Why a session ended before its time.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("reading the source: {0}")]
    Source(#[from] ConsumeError),
    #[error("the target: {0}")]
    Target(#[from] ReplicateError),
    #[error("a message of the source: {0}")]
    Rewrite(#[from] RewriteError),
    #[error("a message of the source: {0}")]
    Property(#[from] PropertyError),
    #[error("the target's checkpoint: {0}")]
    Checkpoint(#[from] MessageIdError),
}

/// How a session ended as it should.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// The target follows somebody else, or nobody.
    NotOurs,
    /// The target has everything up to the message by which it follows no more.
    Released,
}

impl Channel {
    /// Ships for as long as the target wants it; never ends by itself.
    pub(crate) async fn run(self) {
        let Settings { backoff_min, backoff_max, interval, .. } = self.settings;
        let mut backoff = Backoff::new(self.clock.clone(), &self.random, backoff_min, backoff_max);
        let (source, target) = (&self.source_channel, &self.target_channel);
        // As far as can be known until it answers.
        self.metrics.reached(self.clock.wall_ms(), 0);
        loop {
            let began = self.clock.now();
            match self.watched_session().await {
                Ok(Ended::Released) => {
                    tracing::info!(source, target, "the target has everything and follows no more");
                    self.metrics.reached(0, 0);
                }
                Ok(Ended::NotOurs) => {
                    self.metrics.reached(0, 0);
                    self.metrics.show(self.clock.wall_ms());
                    self.clock.sleep(interval).await;
                }
                Err(error) => {
                    tracing::warn!(source, target, %error, "shipping was interrupted");
                    self.metrics.show(self.clock.wall_ms());
                    if self.clock.now() - began > backoff_max {
                        backoff.reset();
                    }
                    backoff.wait().await;
                }
            }
        }
    }

    /// A session, and beside it how far the target is behind: most of all while nothing is answered.
    async fn watched_session(&self) -> Result<Ended, Broken> {
        let mut session = pin!(self.session());
        let mut looks = self.clock.ticker(LOOK);
        loop {
            tokio::select! {
                ended = &mut session => return ended,
                _ = looks.tick() => self.metrics.show(self.clock.wall_ms()),
            }
        }
    }

    async fn session(&self) -> Result<Ended, Broken> {
        let checkpoint = self.target.replicate_checkpoint(&self.target_channel).await?;
        let ours = |checkpoint: &ReplicateCheckpoint| {
            checkpoint.cluster_id == self.source_cluster && checkpoint.pchannel == self.source_channel
        };
        let Some(checkpoint) = checkpoint.filter(ours) else { return Ok(Ended::NotOurs) };
        let place = match &checkpoint.message_id {
            Some(id) => Place { id: id.try_into()?, tick: TimeTick(checkpoint.time_tick) },
            None => {
                let (clusters, left) = ((&*self.source_cluster, &*self.target_cluster), TimeTick(checkpoint.time_tick));
                introduction::find(&self.source, &self.source_channel, clusters, left).await?
            }
        };
        let (sender, answers) = self.target.replicate_stream(&self.target_channel).await?;
        let _connected = self.metrics.connected();
        tracing::info!(source = self.source_channel, target = self.target_channel, from = %place.id, "shipping");
        let mut options = ConsumeOptions::new(&self.source_channel, DeliverPolicy::StartFrom(place.id));
        options.filters.push(DeliverFilter::TimeTickGreaterThan(place.tick));
        options.time_ticks = true;
        let consumer = self.source.consume(options)?;
        let shipping = Shipping {
            channel: self,
            consumer,
            sender,
            answers,
            queue: VecDeque::new(),
            sent: BTreeMap::new(),
            bytes: 0,
            reached: place,
            released: false,
        };
        shipping.run().await
    }

    /// Tells the source from where on its log is needed. Nothing depends on it but the space that it takes.
    async fn report(&self, reached: Place) {
        let Self { source, source_channel, target_cluster, .. } = self;
        let consumer = replica_consumer(source_channel, target_cluster);
        if let Err(error) = source.report_position(&consumer, reached.id, reached.tick).await {
            tracing::debug!(source_channel, %error, "the source was not told what is needed of it");
        }
    }
}

/// What a session holds.
struct Shipping<'a> {
    channel: &'a Channel,
    consumer: Consumer,
    sender: ReplicateSender,
    answers: ReplicateAnswers,
    /// Read and not sent.
    queue: VecDeque<Item>,
    /// Sent and not answered, by number.
    sent: BTreeMap<i64, Sent>,
    /// Bytes of both.
    bytes: usize,
    /// What the target has.
    reached: Place,
    /// Whether the message was read by which the target follows no more.
    released: bool,
}

struct Item {
    message: Message,
    sent: Sent,
}

#[derive(Clone, Copy)]
struct Sent {
    bytes: usize,
    /// Where the target is when it has this; `None` amid a transaction.
    place: Option<Place>,
}

impl Shipping<'_> {
    async fn run(mut self) -> Result<Ended, Broken> {
        let channel = self.channel;
        let Channel { settings, clock, .. } = channel;
        let mut due = clock.ticker(settings.interval);
        // It goes on beside the shipping, which a slow metadata store of the source must not hold up.
        let mut reporting: Fuse<BoxFuture<'_, ()>> = Fuse::terminated();
        loop {
            let idle = self.queue.is_empty() && self.sent.is_empty();
            if self.released && idle {
                channel.report(self.reached).await;
                return Ok(Ended::Released);
            }
            let room = !self.released
                && self.queue.is_empty()
                && self.sent.len() < settings.in_flight_messages
                && self.bytes < settings.in_flight_bytes;
            tokio::select! {
                biased;
                answer = self.answers.next() => self.answered(answer?),
                ready = self.sender.ready(), if !self.queue.is_empty() => {
                    ready?;
                    if let Some(Item { message, sent }) = self.queue.pop_front() {
                        self.sent.insert(self.sender.send(message)?, sent);
                    }
                }
                delivery = self.consumer.next(), if room => self.take(delivery?)?,
                () = &mut reporting => {}
                _ = due.tick(), if reporting.is_terminated() => {
                    reporting = channel.report(self.reached).boxed().fuse();
                }
            }
        }
    }

    fn answered(&mut self, number: i64) {
        let Some(sent) = self.sent.remove(&number) else { return };
        self.bytes -= sent.bytes;
        self.channel.metrics.replicated(sent.bytes);
        // Answers come in order, so whoever is answered last is furthest.
        if let Some(place) = sent.place {
            self.reached = place;
        }
        self.gauge();
    }

    fn take(&mut self, delivery: Delivery) -> Result<(), Broken> {
        match delivery {
            Delivery::Message(message) => {
                let place = place_of(&message)?;
                let topology = message.header::<AlterReplicateConfigMessageHeader>().ok();
                if let Some(topology) = topology.and_then(|header| header.replicate_configuration)
                    && !follows(&topology, &self.channel.source_cluster, &self.channel.target_cluster)
                {
                    self.released = true;
                }
                self.push(message, None, Some(place))?;
            }
            Delivery::Txn(txn) => {
                let place = place_of(&txn.commit)?;
                for message in std::iter::once(txn.begin).chain(txn.bodies) {
                    self.push(message, Some(place.tick), None)?;
                }
                self.push(txn.commit, Some(place.tick), Some(place))?;
            }
            Delivery::TimeTick { time_tick, last_confirmed } => {
                // Nothing is read while something is queued.
                if self.sent.is_empty() {
                    self.reached = Place { id: last_confirmed, tick: time_tick };
                }
                self.gauge();
            }
        }
        Ok(())
    }

    fn push(
        &mut self,
        message: ImmutableMessage,
        commit: Option<TimeTick>,
        place: Option<Place>,
    ) -> Result<(), RewriteError> {
        if let Some(message) = self.channel.names.rewrite(message, commit)? {
            let bytes = message.payload.len() + message.properties.size();
            self.bytes += bytes;
            self.queue.push_back(Item { message, sent: Sent { bytes, place } });
        }
        Ok(())
    }

    fn gauge(&self) {
        let behind = self.sent.len() + self.queue.len();
        self.channel.metrics.reached(self.reached.tick.physical_ms(), behind);
    }
}

fn place_of(message: &ImmutableMessage) -> Result<Place, PropertyError> {
    Ok(Place { id: message.last_confirmed()?, tick: message.time_tick()? })
}
