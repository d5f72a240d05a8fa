//! One AssignmentDiscover stream: the full assignment at once and after each change, until the client closes it.
//!
//! A client that finds a new stream ended opens the next one at once, so a stream is held, silent, while there is
//! nothing to say. One that came by an address, behind which there may be several coordinators, asks a standby who leads, and
//! is told. Nothing is queued for a slow client: it gets the newest assignment when it can take one.

use std::sync::Arc;

use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use streaming_proto::streaming::{
    AssignmentDiscoverRequest, AssignmentDiscoverResponse, CloseAssignmentDiscoverResponse, PChannelInfo,
    assignment_discover_request::Command, assignment_discover_response::Response,
};
use streaming_types::{StreamingError, metadata::set_leader};
use tokio::sync::watch;
use tonic::{Status, Streaming};
use woodpecker_base::clock::Instant;

use crate::{
    assignment::Published,
    balancer::Report,
    shared::{Phase, Shared},
};

/// The server's side of a stream.
pub(super) struct Discover {
    shared: Arc<Shared>,
    requests: Streaming<AssignmentDiscoverRequest>,
    assignment: watch::Receiver<Published>,
    phase: watch::Receiver<Phase>,
    /// Where another coordinator leads, for a client that goes there.
    leader: Option<watch::Receiver<Option<String>>>,
    /// Since when this coordinator has been a standby during this stream.
    standby_since: Option<Instant>,
    ended: bool,
    _counted: Counted,
}

/// What a stream does next.
enum Next {
    Push(AssignmentDiscoverResponse),
    Close,
    Fail(Status),
}

impl Discover {
    pub(super) fn new(
        shared: Arc<Shared>,
        requests: Streaming<AssignmentDiscoverRequest>,
        asks_for_leader: bool,
    ) -> Self {
        let mut assignment = shared.assignment.subscribe();
        // Whatever is published now has not been seen by this client.
        assignment.mark_changed();
        let mut phase = shared.phase.subscribe();
        phase.mark_changed();
        let leader = asks_for_leader.then(|| shared.leader.subscribe());
        let counted = Counted::new();
        Self { shared, requests, assignment, phase, leader, standby_since: None, ended: false, _counted: counted }
    }

    pub(super) fn into_stream(self) -> BoxStream<'static, Result<AssignmentDiscoverResponse, Status>> {
        stream::unfold(self, |mut discover| async move {
            if discover.ended {
                return None;
            }
            let item = match discover.next().await {
                Next::Push(response) => Ok(response),
                Next::Close => {
                    discover.ended = true;
                    Ok(response(Response::Close(CloseAssignmentDiscoverResponse {})))
                }
                Next::Fail(status) => {
                    discover.ended = true;
                    Err(status)
                }
            };
            Some((item, discover))
        })
        .boxed()
    }

    async fn next(&mut self) -> Next {
        loop {
            let clock = self.shared.clock.clone();
            let hold_until = self.standby_since.map(|since| since + self.shared.settings.standby_hold);
            let hold = async {
                match hold_until {
                    Some(at) => clock.sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let leader = self.leader.as_mut().filter(|_| self.standby_since.is_some());
            tokio::select! {
                biased;
                Ok(()) = self.phase.changed() => {
                    if let Some(end) = self.note_phase() {
                        return end;
                    }
                }
                request = self.requests.message() => match request {
                    Ok(Some(request)) => self.take(request).await,
                    Ok(None) => return Next::Close,
                    Err(_) => return Next::Fail(StreamingError::unreadable_request().into()),
                },
                Ok(()) = self.assignment.changed() => {
                    let published = self.assignment.borrow_and_update().clone();
                    if let Some(assignment) = published {
                        return Next::Push(response(Response::FullAssignment((*assignment).clone())));
                    }
                }
                leader = known(leader) => {
                    let mut status = led_elsewhere();
                    set_leader(status.metadata_mut(), &leader);
                    return Next::Fail(status);
                }
                () = hold => return Next::Fail(led_elsewhere()),
            }
        }
    }

    /// A stream to a standby would stay silent for ever after its client's view of the leader has changed; it ends
    /// after a while, slowly enough not to be re-opened in a tight loop.
    fn note_phase(&mut self) -> Option<Next> {
        match &*self.phase.borrow_and_update() {
            Phase::Stopping => Some(Next::Fail(StreamingError::on_shutdown("this coordinator is stopping").into())),
            Phase::StandBy => {
                self.standby_since.get_or_insert_with(|| self.shared.clock.now());
                None
            }
            Phase::Initializing | Phase::Active(_) => {
                self.standby_since = None;
                None
            }
        }
    }

    /// `close` by itself does nothing: the end of the client's side is what ends the stream. What is unknown is skipped.
    async fn take(&self, request: AssignmentDiscoverRequest) {
        let Some(Command::ReportError(report)) = request.command else { return };
        let Some(PChannelInfo { name: channel, term, .. }) = report.pchannel else { return };
        let cause = report.err.map(|error| error.cause).unwrap_or_default();
        tracing::debug!(channel, term, cause, "report of a failed channel");
        let active = match &*self.phase.borrow() {
            Phase::Active(active) => active.clone(),
            Phase::Initializing | Phase::StandBy | Phase::Stopping => return,
        };
        if active.reports.send(Report { channel, term }).await.is_err() {
            tracing::debug!("a report came after the end of the reign");
        }
    }
}

/// Where another coordinator leads, as soon as that is known.
async fn known(leader: Option<&mut watch::Receiver<Option<String>>>) -> String {
    let known = match leader {
        Some(leader) => leader.wait_for(Option::is_some).await.ok().and_then(|known| known.clone()),
        None => None,
    };
    match known {
        Some(address) => address,
        None => std::future::pending().await,
    }
}

fn led_elsewhere() -> Status {
    StreamingError::on_shutdown("another coordinator is active").into()
}

fn response(response: Response) -> AssignmentDiscoverResponse {
    AssignmentDiscoverResponse { response: Some(response) }
}

/// Counts open streams.
struct Counted;

impl Counted {
    fn new() -> Self {
        metrics::gauge!("milvus_streamingcoord_assignment_listener_total").increment(1.0);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!("milvus_streamingcoord_assignment_listener_total").decrement(1.0);
    }
}
