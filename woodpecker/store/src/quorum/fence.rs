//! Carries out a [`Recovery`]: talks to the log stores, and to as many at a time as it can.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream, stream::FuturesUnordered};
use streaming_proto::logstore::{AppendRequest, FenceRequest, FenceResponse, ReadRequest, append_response::Outcome};
use tokio::select;
use tonic::Status;
use woodpecker_base::{backoff::Backoff, clock::Clock};
use woodpecker_core::{
    ids::{Epoch, SegmentKey},
    quorum::recovery::{Held, Missing, Recovery, Told},
};

use crate::backend::StoreError;

use super::{
    peer::{Class, Context, Peer, first},
    refusal::{Refusal, store_error},
};

/// Enough replicas answered: those that are as fast are waited for so much longer, to keep less of what nobody acked.
const GRACE: Duration = Duration::from_millis(200);
/// All that must be copied is: so much longer may the rest take.
const COPY_GRACE: Duration = Duration::from_secs(1);
/// All that is needed from the stores; who asks has patience for a few of these.
const LIMIT: Duration = Duration::from_secs(8);
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
const COPY_BYTES: u64 = 1 << 20;

/// One taker's work on one segment.
#[derive(Debug)]
pub(super) struct Taker<'a> {
    pub context: &'a Context,
    pub key: SegmentKey,
    /// By replica.
    pub peers: &'a [Arc<Peer>],
}

impl Taker<'_> {
    /// Fences the segment, copies what replicas lack, and closes it. `decided` keeps the end from one attempt to the next.
    pub async fn take(&self, mut recovery: Recovery, decided: impl FnOnce(u64)) -> Result<u64, StoreError> {
        let deadline = self.context.clock.now() + LIMIT;
        let limit = || deadline.saturating_duration_since(self.context.clock.now());
        let end = self.fence(&mut recovery, limit()).await?;
        if let Some(closed) = recovery.closed() {
            return Ok(closed);
        }
        decided(end);
        if let Some(end) = recovery.end_without(|replica| self.is_gone(replica)) {
            tracing::warn!(segment = %self.key, end, "a segment is closed with the replicas that are left of it");
            return Ok(end);
        }
        self.copy(&mut recovery, limit()).await?;
        self.close(&mut recovery).await?;
        recovery.closed().ok_or_else(|| self.unavailable("too few replicas could be told where the segment ends"))
    }

    /// Whether the store's lease ran out: it is down, or it lost its disk and with it its name.
    fn is_gone(&self, replica: usize) -> bool {
        self.peers.get(replica).is_some_and(|peer| !self.context.directory.is_registered(peer.id))
    }

    fn unavailable(&self, why: &str) -> StoreError {
        StoreError::Unavailable(format!("segment {}: {why}", self.key).into())
    }

    /// Waits until the end can be known.
    async fn fence(&self, recovery: &mut Recovery, limit: Duration) -> Result<u64, StoreError> {
        let epoch = recovery.epoch();
        let mut answers: FuturesUnordered<_> = (0..self.peers.len()).map(|at| self.fence_one(at, epoch)).collect();
        let clock = &self.context.clock;
        let (over, mut grace) = (clock.now() + limit, None);
        loop {
            let until = grace.unwrap_or(over);
            let answer = select! {
                answer = answers.next() => answer,
                () = clock.sleep_until(until) => None,
            };
            match answer {
                Some((replica, Ok(held))) => recovery.on_fenced(replica, held),
                Some((_, Err(gone))) => return Err(gone),
                // Nobody else answers, or not soon enough.
                None => return recovery.decide().map_err(|undecided| self.unavailable(&undecided.to_string())),
            }
            if recovery.is_answered() && grace.is_none() {
                // A first look only: what must wait for others says so, and waits.
                let found = recovery.clone().decide().is_ok();
                grace = found.then(|| (clock.now() + GRACE).min(over));
            }
        }
    }

    /// Asks one replica until it answers; an error only when the segment is gone, or a later taker's.
    async fn fence_one(&self, replica: usize, epoch: Epoch) -> (usize, Result<Held, StoreError>) {
        let mut backoff = Backoff::new(self.context.clock.clone(), &self.context.random, RETRY.0, RETRY.1);
        loop {
            let Some(peer) = self.peers.get(replica) else { return std::future::pending().await };
            match self.ask(peer, epoch, None).await {
                Ok(response) => return (replica, Ok(held(&response))),
                Err(status) => {
                    let error = store_error(&status, &format!("segment {}", self.key));
                    if matches!(error, StoreError::NotFound { .. } | StoreError::Fenced { .. }) {
                        return (replica, Err(error));
                    }
                    tracing::debug!(store = %peer.id, segment = %self.key, %status, "a replica cannot be fenced yet");
                }
            }
            backoff.wait().await;
        }
    }

    async fn ask(&self, peer: &Peer, epoch: Epoch, end: Option<u64>) -> Result<FenceResponse, Status> {
        let request = FenceRequest { replica: Some(peer.replica(self.key)), epoch: epoch.0, end };
        let mut client = peer.client(Class::Append)?;
        peer.answer(self.context.settings.request_timeout, client.fence(request)).await
    }

    /// Copies until as many replicas as must have everything.
    async fn copy(&self, recovery: &mut Recovery, limit: Duration) -> Result<(), StoreError> {
        let clock = &self.context.clock;
        let over = clock.now() + limit;
        let plan: Vec<(Missing, Vec<usize>)> = recovery
            .missing()
            .into_iter()
            .map(|missing| {
                let sources = recovery.holders(missing.end.saturating_sub(1)).collect();
                (missing, sources)
            })
            .collect();
        let epoch = recovery.epoch();
        let mut copies: FuturesUnordered<_> =
            plan.iter().map(|(missing, sources)| self.copy_one(missing, sources, epoch)).collect();
        let mut until = over;
        while !copies.is_empty() {
            if recovery.closing().is_some() {
                until = until.min(clock.now() + COPY_GRACE);
            }
            select! {
                copied = copies.next() => match copied {
                    Some(Ok((replica, durable))) => recovery.on_copied(replica, durable),
                    Some(Err(error)) => tracing::warn!(segment = %self.key, %error, "a replica was not completed"),
                    None => break,
                },
                () = clock.sleep_until(until) => break,
            }
        }
        match recovery.closing() {
            Some(_) => Ok(()),
            None => Err(self.unavailable("too few replicas could be given what they lack")),
        }
    }

    /// Copies what one replica lacks, from whichever has it.
    async fn copy_one(&self, missing: &Missing, sources: &[usize], epoch: Epoch) -> Result<(usize, u64), StoreError> {
        let target = self.peers.get(missing.replica).ok_or_else(|| self.unavailable("no such replica"))?;
        let mut from = missing.from;
        let mut error = self.unavailable("no replica has what another lacks");
        for source in sources.iter().filter_map(|source| self.peers.get(*source)) {
            match self.copy_from(source, target, &mut from, missing.end, epoch).await {
                Ok(()) => return Ok((missing.replica, from)),
                Err(status) => error = store_error(&status, &format!("segment {}", self.key)),
            }
        }
        Err(error)
    }

    async fn copy_from(
        &self,
        source: &Peer,
        target: &Peer,
        from: &mut u64,
        end: u64,
        epoch: Epoch,
    ) -> Result<(), Status> {
        let limit = self.context.settings.request_timeout;
        while *from < end {
            let entries = read_once(&self.context.clock, limit, source, self.key, *from, end, COPY_BYTES).await?;
            let count = entries.len() as u64;
            if count == 0 {
                return Err(Status::not_found(format!("log store {} has no entry {from}", source.id)));
            }
            let request = AppendRequest {
                replica: Some(target.replica(self.key)),
                epoch: epoch.0,
                first: *from,
                entries,
                committed: 0,
            };
            append_once(&self.context.clock, limit, target, request, *from + count).await?;
            *from += count;
        }
        Ok(())
    }

    /// Tells those that have everything where the segment ends.
    async fn close(&self, recovery: &mut Recovery) -> Result<(), StoreError> {
        let Some((replicas, end)) = recovery.closing() else { return Ok(()) };
        let epoch = recovery.epoch();
        let mut answers: FuturesUnordered<_> = replicas
            .into_iter()
            .filter_map(|replica| Some((replica, self.peers.get(replica)?)))
            .map(|(replica, peer)| async move { (replica, self.ask(peer, epoch, Some(end)).await) })
            .collect();
        while let Some((replica, answer)) = answers.next().await {
            match answer {
                Ok(response) => {
                    if let Some(told) = held(&response).end {
                        recovery.on_closed(replica, told);
                    }
                }
                Err(status) => tracing::warn!(segment = %self.key, %status, "a replica was not told the end"),
            }
        }
        Ok(())
    }
}

fn held(response: &FenceResponse) -> Held {
    let end = response.end.map(|end| Told { epoch: Epoch(response.end_epoch), end });
    Held { durable: response.durable, committed: response.committed, end }
}

/// What one answer carries of a replica's entries `from..end`; nothing when it does not have the first.
pub(super) async fn read_once(
    clock: &Clock,
    limit: Duration,
    peer: &Peer,
    key: SegmentKey,
    from: u64,
    end: u64,
    max_bytes: u64,
) -> Result<Vec<Bytes>, Status> {
    // To a log store zero means that it may choose.
    let request =
        ReadRequest { replica: Some(peer.replica(key)), from, end, follow: false, max_bytes: max_bytes.max(1) };
    let mut client = peer.client(Class::Read)?;
    let mut stream = peer.answer(limit, client.read(request)).await?;
    let Some(response) = first(clock, limit, &mut stream).await? else { return Ok(Vec::new()) };
    if response.first != from {
        return Err(Status::data_loss(format!("asked for entry {from}, got {}", response.first)));
    }
    Ok(response.entries)
}

/// Appends by a stream of its own, and waits until it is durable.
async fn append_once(
    clock: &Clock,
    limit: Duration,
    peer: &Peer,
    request: AppendRequest,
    durable: u64,
) -> Result<(), Status> {
    let mut client = peer.client(Class::Append)?;
    // The stream stays open until the answer is here.
    let requests = stream::iter([request]).chain(stream::pending());
    let mut responses = peer.answer(limit, client.append(requests)).await?;
    loop {
        let response = first(clock, limit, &mut responses).await?;
        match response.and_then(|response| response.outcome) {
            Some(Outcome::Durable(now)) if now >= durable => return Ok(()),
            Some(Outcome::Durable(_)) => {}
            Some(Outcome::Refused(refusal)) => return Err(Refusal::from_wire(refusal).to_status()),
            None => return Err(Status::unavailable("the store ended the stream")),
        }
    }
}
