//! The reading side of one segment on several log stores.
//!
//! Any replica may answer. The nearest is asked first; when it takes longer than it nearly always does, another is asked
//! as well, within a budget. A replica that lacks an entry, is broken or does not answer is passed over: what is read is
//! the union of what all of them hold. At the tail one replica pushes what is acked, as it learns of it.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use streaming_proto::logstore::{DescribeRequest, DescribeResponse, ReadRequest, ReadResponse};
use tokio::{select, sync::Mutex};
use tonic::{Status, Streaming};
use woodpecker_base::backoff::Backoff;
use woodpecker_core::ids::SegmentKey;

use crate::backend::{SegmentReader, StoreError};

use super::{
    fence::read_once,
    latency::HedgeBudget,
    peer::{Class, Context, Peer},
    refusal::store_error,
    segment::Segment,
};

/// What one pushed answer carries at most.
const PUSH_BYTES: u64 = 256 << 10;
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// Pauses between questions whether what a replica holds is acked: its writer says so a moment after the ack.
const TELLING: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(32));

#[derive(Debug)]
pub(super) struct Reader {
    pub context: Arc<Context>,
    pub key: SegmentKey,
    /// By distance from here.
    pub peers: Vec<Arc<Peer>>,
    /// How many replicas must answer before one of them knows what was acked.
    pub needed: usize,
    /// How many entries the segment has, if that is final.
    pub end: Option<u64>,
    /// The segment as it is written in this process, if it is.
    pub local: Option<Arc<Segment>>,
    pub hedges: Arc<HedgeBudget>,
    /// How many entries are known to be acked.
    pub known: AtomicU64,
    /// The replica that pushes; the next one when it fails.
    pub pushing: AtomicUsize,
    pub pushed: Mutex<Pushed>,
}

/// What a replica pushed and was not read yet.
#[derive(Debug, Default)]
pub(super) struct Pushed {
    stream: Option<Streaming<ReadResponse>>,
    /// The number of the first entry, or of the next that the stream will bring.
    first: u64,
    entries: VecDeque<Bytes>,
}

impl Pushed {
    fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// What was pushed from `from` on, and forgets it and what is before it.
    fn take(&mut self, from: u64, max_bytes: usize) -> Vec<Bytes> {
        let mut taken: Vec<Bytes> = Vec::new();
        if !(self.first..self.next()).contains(&from) {
            return taken;
        }
        let mut bytes = 0;
        while let Some(entry) = self.entries.front() {
            if self.first >= from {
                if !taken.is_empty() && bytes + entry.len() > max_bytes {
                    break;
                }
                bytes += entry.len();
                taken.push(entry.clone());
            }
            self.entries.pop_front();
            self.first += 1;
        }
        taken
    }
}

impl Reader {
    fn what(&self) -> String {
        format!("segment {}", self.key)
    }

    /// How many entries may be read, as far as is known without asking.
    fn known(&self) -> u64 {
        match self.end {
            Some(end) => end,
            // What was acked stays so after the segment ended, though a later owner may know of more.
            None => {
                let acked = self.local.as_ref().map_or(0, |segment| segment.acked());
                acked.max(self.known.load(Ordering::Acquire))
            }
        }
    }

    /// The writer in this process, as long as it decides what is acked.
    fn local(&self) -> Option<&Arc<Segment>> {
        self.local.as_ref().filter(|segment| !segment.has_ended())
    }

    fn learn(&self, acked: u64) {
        self.known.fetch_max(acked, Ordering::AcqRel);
    }

    /// Asks the replicas what is acked: of so many one at least was told, if its writer or a taker told anybody. Says how
    /// much one of them holds, which is never less than what is acked.
    async fn ask(&self) -> Result<u64, StoreError> {
        let mut answers: FuturesUnordered<_> = self.peers.iter().map(|peer| self.describe(peer)).collect();
        let (mut answered, mut held, mut error) = (0, 0, None);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(response) => {
                    self.learn(response.committed);
                    held = held.max(response.durable);
                    answered += 1;
                    if answered == self.needed {
                        break;
                    }
                }
                Err(status) => error = Some(store_error(&status, &self.what())),
            }
        }
        match error {
            Some(error) if answered == 0 => Err(error),
            _ => Ok(held),
        }
    }

    async fn describe(&self, peer: &Peer) -> Result<DescribeResponse, Status> {
        let request = DescribeRequest { replica: Some(peer.replica(self.key)) };
        let mut client = peer.client(Class::Append)?;
        let limit = self.context.settings.request_timeout;
        peer.answer(limit, client.describe(request)).await
    }

    /// Entries from `from` on, from whichever replica has them first.
    async fn fetch(&self, from: u64, end: u64, max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        self.hedges.earn();
        let clock = &self.context.clock;
        let mut rest = self.peers.iter();
        let mut asked = FuturesUnordered::new();
        let mut errors = Vec::new();
        let mut patience = None;
        loop {
            if asked.is_empty() {
                let Some(peer) = rest.next() else { return Err(self.worst(from, errors)) };
                patience = Some(clock.now() + peer.latency.p95());
                asked.push(self.read_from(peer, from, end, max_bytes));
            }
            let late = async {
                match patience {
                    Some(at) => clock.sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            select! {
                biased;
                answer = asked.next() => match answer {
                    Some(Ok(entries)) if !entries.is_empty() => return Ok(entries),
                    Some(Ok(_)) | None => {}
                    Some(Err(error)) => errors.push(error),
                },
                () = late => {
                    patience = None;
                    if let Some(peer) = rest.clone().next().filter(|_| self.hedges.spend()) {
                        rest.next();
                        metrics::counter!("woodpecker_quorum_reads_hedged_total").increment(1);
                        asked.push(self.read_from(peer, from, end, max_bytes));
                    }
                }
            }
        }
    }

    async fn read_from(&self, peer: &Peer, from: u64, end: u64, max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        let (clock, limit) = (&self.context.clock, self.context.settings.request_timeout);
        let began = clock.now();
        let read = read_once(clock, limit, peer, self.key, from, end, max_bytes as u64).await;
        peer.latency.record(clock.now().duration_since(began));
        read.map_err(|status| store_error(&status, &self.what()))
    }

    /// No replica gave the entry. One that may come back may have it, unless it was released on purpose.
    fn worst(&self, from: u64, errors: Vec<StoreError>) -> StoreError {
        let gone = errors.iter().position(|error| matches!(error, StoreError::NotFound { .. }));
        let corrupt = errors.iter().all(|error| matches!(error, StoreError::Corrupt { .. }));
        // What a replica of a closed segment lacks it will not get.
        let final_answers = self.end.is_some() || errors.len() == self.peers.len();
        let mut errors = errors;
        match gone {
            Some(at) => errors.swap_remove(at),
            None if corrupt && final_answers && !errors.is_empty() => errors.swap_remove(0),
            None => {
                let why: Vec<String> = errors.iter().map(ToString::to_string).collect();
                let why = why.join("; ");
                StoreError::Unavailable(
                    format!("{}: no replica that answers has entry {from}: {why}", self.what()).into(),
                )
            }
        }
    }

    /// Opens a stream on which a replica pushes from `from` on.
    async fn follow(&self, from: u64) -> Result<Streaming<ReadResponse>, Status> {
        let at = self.pushing.load(Ordering::Relaxed) % self.peers.len().max(1);
        let Some(peer) = self.peers.get(at) else { return Err(Status::not_found("no replicas")) };
        let request =
            ReadRequest { replica: Some(peer.replica(self.key)), from, end: 0, follow: true, max_bytes: PUSH_BYTES };
        let mut client = peer.client(Class::Read)?;
        peer.answer(self.context.settings.request_timeout, client.read(request)).await
    }

    /// Waits for the next push, and keeps it. Cancel-safe: the stream stays where it is.
    async fn push(&self, from: u64) -> Result<(), Status> {
        let mut pushed = self.pushed.lock().await;
        if pushed.stream.is_none() || pushed.next() != from {
            *pushed = Pushed { stream: Some(self.follow(from).await?), first: from, entries: VecDeque::new() };
        }
        let Some(stream) = &mut pushed.stream else { return Ok(()) };
        let message = stream.message().await;
        match message {
            Ok(Some(response)) if response.first == from || response.entries.is_empty() => {
                self.learn(response.committed.max(response.first + response.entries.len() as u64));
                pushed.entries.extend(response.entries);
                Ok(())
            }
            Ok(Some(_)) => Err(Status::data_loss("the store pushed other entries than it was asked for")),
            Ok(None) => Err(Status::unavailable("the store pushes no more")),
            Err(status) => Err(status),
        }
        .inspect_err(|_| pushed.stream = None)
    }

    /// Waits until a replica pushes entry `from` or what lies behind it.
    async fn pushed(&self, from: u64) {
        let mut backoff = Backoff::new(self.context.clock.clone(), &self.context.random, RETRY.0, RETRY.1);
        while self.known() <= from {
            if let Err(status) = self.push(from).await {
                tracing::debug!(segment = %self.key, %status, "a replica does not push");
                self.pushing.fetch_add(1, Ordering::Relaxed);
                backoff.wait().await;
            }
        }
    }
}

#[async_trait]
impl SegmentReader for Reader {
    async fn read(&self, from: u64, max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        self.read_before(from, u64::MAX, max_bytes).await
    }

    async fn read_before(&self, from: u64, limit: u64, max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        if from >= self.known() && self.end.is_none() && self.local().is_none() {
            self.ask().await?;
        }
        let limit = limit.min(self.known());
        if from >= limit {
            return Ok(Vec::new());
        }
        // Whoever waits for a push meanwhile has nothing for this read.
        if let Ok(mut pushed) = self.pushed.try_lock() {
            let mut entries = pushed.take(from, max_bytes);
            entries.truncate(usize::try_from(limit - from).unwrap_or(usize::MAX));
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
        self.fetch(from, limit, max_bytes).await
    }

    async fn tail(&self) -> Result<u64, StoreError> {
        if self.end.is_some() || self.local().is_some() {
            return Ok(self.known());
        }
        let held = self.ask().await?;
        let mut pause = TELLING.0;
        // Of what a writer left that died nobody knows more.
        while self.known() < held && pause <= TELLING.1 {
            self.context.clock.sleep(pause).await;
            pause *= 2;
            self.ask().await?;
        }
        Ok(self.known())
    }

    async fn readable(&self, from: u64) {
        if self.known() > from {
            return;
        }
        if self.end.is_some() {
            // Nothing comes after the end.
            return std::future::pending().await;
        }
        match self.local() {
            Some(segment) => {
                let mut acked = segment.follow_acked();
                // When the segment ends here, who reads learns it from the log's record.
                let _ = acked.wait_for(|acked| *acked > from).await;
            }
            None => self.pushed(from).await,
        }
    }
}
