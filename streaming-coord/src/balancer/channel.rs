//! One channel as the balancer sees it: its stored state, the job that is changing it, and when to try again.

use std::{collections::BTreeSet, time::Duration};

use woodpecker_base::{backoff::Backoff, clock::Instant};

use super::{
    Context, Now,
    attempt::AttemptError,
    status::{ChannelStatus, time},
};
use crate::{
    catalog::Record,
    nodes::Nodes,
    pchannel::{Ownership, PChannel},
    policy::ChannelView,
    settings::Balance,
};

/// A channel and what is being done about it.
pub(super) struct Channel {
    pchannel: PChannel,
    /// Lent to the job while one runs.
    record: Option<Record>,
    /// The node that the running job brings the channel to.
    target: Option<i64>,
    retry_at: Option<Instant>,
    /// When it was assigned, or failed though it is, until that has lasted for [`Self::proof`] or changes.
    unproven_since: Option<Instant>,
    /// How long an assignment lasts that was a good one. That a node could open the channel says little: on a full disk it
    /// fails soon after.
    proof: Duration,
    backoff: Backoff,
    failures: u32,
    /// When the first of them was, in seconds since the Unix epoch.
    failing_since_s: Option<u64>,
    last_error: Option<String>,
    avoid: Option<i64>,
    /// The term that a client saw fail while a job ran.
    reported: Option<i64>,
    /// When its node opened it, unless that was before this reign.
    opened: Option<Instant>,
}

impl Channel {
    pub(super) fn new(pchannel: PChannel, record: Record, context: &Context) -> Self {
        let settings = &context.settings.nodes;
        let (first, limit) = (settings.retry_initial, settings.retry_max);
        let backoff = Backoff::new(context.clock.clone(), &context.random, first, limit);
        Self {
            pchannel,
            record: Some(record),
            target: None,
            retry_at: None,
            unproven_since: None,
            proof: limit,
            backoff,
            failures: 0,
            failing_since_s: None,
            last_error: None,
            avoid: None,
            reported: None,
            opened: None,
        }
    }

    pub(super) fn pchannel(&self) -> &PChannel {
        &self.pchannel
    }

    /// Its name and its present term.
    pub(super) fn at_term(&self) -> (String, i64) {
        (self.pchannel.name().to_owned(), self.pchannel.term())
    }

    /// When there is something to do for it next.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        self.retry_at.or_else(|| self.proven_at().filter(|_| self.failures > 0))
    }

    fn proven_at(&self) -> Option<Instant> {
        self.pchannel.owner().and(self.unproven_since).map(|since| since + self.proof)
    }

    fn is_busy(&self) -> bool {
        self.record.is_none()
    }

    /// Lends the record to a new job; `None` if one is running.
    pub(super) fn start(&mut self, target: Option<i64>) -> Option<Record> {
        let record = self.record.take()?;
        self.target = target;
        self.retry_at = None;
        if target.is_some() {
            self.unproven_since = None;
        }
        Some(record)
    }

    /// Keeps a report until the job is over: no client says it twice.
    pub(super) fn keep_report(&mut self, term: i64) {
        self.reported = self.reported.max(Some(term));
    }

    pub(super) fn take_report(&mut self) -> Option<i64> {
        self.reported.take()
    }

    pub(super) fn stored(&mut self, pchannel: PChannel) {
        self.pchannel = pchannel;
    }

    /// Forgets what failed before, once the channel has been served for long enough.
    pub(super) fn prove(&mut self, now: Instant) {
        if self.proven_at().is_some_and(|at| at <= now) {
            self.unproven_since = None;
            self.backoff.reset();
            self.failures = 0;
            self.failing_since_s = None;
            self.last_error = None;
        }
    }

    /// Whether its node says that it does not serve it, though it has opened it and was not asked to let go.
    pub(super) fn has_ended(&self, nodes: &Nodes) -> bool {
        let owner = self.pchannel.owner().filter(|_| !self.is_busy());
        let status = owner.and_then(|owner| nodes.get(owner.server_id)).filter(|status| status.condition.retains());
        status.is_some_and(|status| status.lacks(self.pchannel.name(), self.pchannel.term(), self.opened))
    }

    /// The WAL has ended by itself. Soon after it was assigned that is an attempt that failed.
    pub(super) fn lost(&mut self, now: Now) {
        self.prove(now.0);
        self.avoid = self.pchannel.owner().map(|node| node.server_id).filter(|_| self.unproven_since.is_some());
        // Its node says why when it is asked to let go. Until then the reason is most likely that of the last time.
        let error = self.last_error.take().unwrap_or_else(|| format!("the WAL of term {} ended", self.pchannel.term()));
        self.failed(now, error);
    }

    /// The node has said why.
    pub(super) fn ended(&mut self, past: &Ownership, why: &str) {
        self.last_error = Some(format!("the WAL of term {} ended: node {}: {why}", past.term, past.node.server_id));
    }

    fn failed(&mut self, (now, now_s): Now, error: String) {
        let delay = self.backoff.delay();
        self.unproven_since = Some(now);
        self.retry_at = Some(now + delay);
        self.failures = self.failures.saturating_add(1);
        let since = time(*self.failing_since_s.get_or_insert(now_s));
        let (channel, term, failures) = (self.pchannel.name(), self.pchannel.term(), self.failures);
        tracing::warn!(channel, term, error, failures, since, ?delay, "not assigned");
        self.last_error = Some(error);
    }

    /// The job is over; a failed one is followed by another after a while.
    pub(super) fn finished(&mut self, pchannel: PChannel, record: Record, outcome: Result<(), AttemptError>, now: Now) {
        self.stored(pchannel);
        self.record = Some(record);
        let target = self.target.take();
        match outcome {
            Ok(()) if target.is_some() => {
                self.opened = Some(now.0);
                self.unproven_since = Some(now.0);
                self.avoid = None;
            }
            Ok(()) => {}
            Err(error) => {
                // A node is to blame only for what it did itself, not for an earlier owner that cannot be reached.
                self.avoid = target.filter(|_| matches!(error, AttemptError::Assign { .. }));
                self.failed(now, error.to_string());
            }
        }
    }

    /// What the policy should know; `None` while it is too early for the next try.
    pub(super) fn view(
        &self,
        nodes: &Nodes,
        homes: &BTreeSet<i64>,
        settings: &Balance,
        (now, now_s): Now,
    ) -> Option<ChannelView> {
        let name = self.pchannel.name().to_owned();
        if self.is_busy() {
            // Counted where it is going; a job that only stores something goes nowhere.
            let owner = self.target?;
            return Some(ChannelView { name, owner: Some(owner), movable: false, avoid: None });
        }
        let owner = self.pchannel.owner().map(|node| node.server_id).filter(|id| homes.contains(id));
        if let Some(owner) = owner {
            let movable = self.is_movable(nodes, owner, settings, now_s);
            return Some(ChannelView { name, owner: Some(owner), movable, avoid: None });
        }
        let due = self.retry_at.is_none_or(|at| at <= now);
        due.then_some(ChannelView { name, owner: None, movable: false, avoid: self.avoid })
    }

    /// Moved for balance only if that disturbs little: not again soon, and not while there is much to recover. What the
    /// node has not told about this term is not known to be little.
    fn is_movable(&self, nodes: &Nodes, owner: i64, settings: &Balance, now_s: u64) -> bool {
        let rested = now_s.saturating_sub(self.pchannel.assigned_at_s()) >= settings.min_rebalance_interval.as_secs();
        let wal = nodes.get(owner).and_then(|status| status.wals.get(self.pchannel.name()));
        let caught_up = wal.is_some_and(|wal| {
            wal.term == self.pchannel.term() && Duration::from_millis(wal.lag_ms) <= settings.max_recovery_lag
        });
        rested && caught_up
    }

    pub(super) fn status(&self, nodes: &Nodes) -> ChannelStatus {
        ChannelStatus {
            served: self.pchannel.owner().is_some_and(|node| nodes.retains(node.server_id)),
            name: self.pchannel.name().to_owned(),
            term: self.pchannel.term(),
            state: self.pchannel.state().into(),
            node: self.pchannel.node().map(|node| node.server_id),
            busy: self.is_busy(),
            failures: self.failures,
            failing_since_s: self.failing_since_s,
            last_error: self.last_error.clone(),
        }
    }
}
