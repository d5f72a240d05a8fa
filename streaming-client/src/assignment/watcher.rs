//! Keeps one AssignmentDiscover stream open for the client's life and publishes the newest assignment.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use streaming_proto::streaming::{
    AssignmentDiscoverRequest, AssignmentDiscoverResponse, CloseAssignmentDiscoverRequest,
    ReportAssignmentErrorRequest, assignment_discover_request::Command, assignment_discover_response::Response,
    streaming_coord_assignment_service_client::StreamingCoordAssignmentServiceClient,
};
use streaming_types::{
    PChannel, StreamingCode, StreamingError,
    metadata::{ask_for_leader, leader},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};
use woodpecker_base::{backoff::Backoff, clock::Clock, tasks::Tasks};

use super::{Assignment, Version, locator::Locator};
use crate::{
    connections::{Class, Connections, Server, status_error},
    settings::Settings,
};

/// Reports wait here for the stream; one that finds it full is dropped, for the failing call will report again.
const REPORTS: usize = 64;
/// Commands on their way into the stream.
const COMMANDS: usize = 16;

/// What the rest of the client sees of the watcher.
#[derive(Debug, Clone)]
pub(crate) struct Assignments {
    latest: watch::Receiver<Arc<Assignment>>,
    link: watch::Receiver<Link>,
    reports: mpsc::Sender<Report>,
}

/// The link to the coordinator.
#[derive(Debug, Clone, Default)]
pub(crate) struct Link {
    pub(crate) server: Option<Server>,
    pub(crate) connected: bool,
    pub(crate) last_failure: Option<String>,
}

#[derive(Debug)]
struct Report {
    pchannel: PChannel,
    error: StreamingError,
}

impl Assignments {
    pub(crate) fn latest(&self) -> Arc<Assignment> {
        self.latest.borrow().clone()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Assignment>> {
        self.latest.clone()
    }

    pub(crate) fn link(&self) -> Link {
        self.link.borrow().clone()
    }

    /// Tells the coordinator that the owner it named does not serve the channel, if that is what the error says. Once per
    /// channel and term to each leader.
    pub(crate) fn report(&self, pchannel: &PChannel, error: &StreamingError) {
        if !error.is_wrong_node() && error.code() != StreamingCode::ChannelFenced {
            return;
        }
        let report = Report { pchannel: pchannel.clone(), error: error.clone() };
        if self.reports.try_send(report).is_err() {
            tracing::debug!(%pchannel, "assignment error not reported: the queue is full");
        }
    }
}

/// The task that runs until `tasks` stop, then closes the stream by the protocol's handshake.
pub(crate) struct Watcher {
    locator: Locator,
    connections: Arc<Connections>,
    clock: Clock,
    drain: Duration,
    /// A stream that lived so long was a good one.
    healthy: Duration,
    max_receive: usize,
    backoff: Backoff,
    latest: watch::Sender<Arc<Assignment>>,
    link: watch::Sender<Link>,
    reports: mpsc::Receiver<Report>,
}

/// Why a stream ended that did not fail.
enum Ended {
    Stopped,
    ByServer,
    CoordinatorMoved,
    /// The coordinator at this address leads.
    LedElsewhere(String),
}

impl Ended {
    /// By a status.
    fn by(status: &Status) -> Result<Self, StreamingError> {
        leader(status.metadata()).map(Self::LedElsewhere).ok_or_else(|| status_error(status))
    }
}

impl Watcher {
    pub(crate) fn new(
        locator: Locator,
        connections: Arc<Connections>,
        clock: Clock,
        settings: &Settings,
        backoff: Backoff,
    ) -> (Self, Assignments) {
        let (latest, latest_out) = watch::channel(Arc::new(Assignment::none()));
        let (link, link_out) = watch::channel(Link::default());
        let (reports_in, reports) = mpsc::channel(REPORTS);
        let watcher = Self {
            locator,
            connections,
            clock,
            drain: settings.timeouts.drain,
            healthy: settings.timeouts.backoff_max,
            max_receive: settings.limits.max_receive,
            backoff,
            latest,
            link,
            reports,
        };
        (watcher, Assignments { latest: latest_out, link: link_out, reports: reports_in })
    }

    pub(crate) async fn run(mut self, tasks: Tasks) {
        while !tasks.is_stopping() {
            let opened = self.clock.now();
            let outcome = self.stream(&tasks).await;
            // A server that opens a stream and ends it at once must not be met by a tight loop: only time makes it good.
            if self.clock.now() - opened >= self.healthy {
                self.backoff.reset();
                self.locator.proven();
            }
            let failure = match outcome {
                Ok(Ended::Stopped) => return,
                Ok(Ended::CoordinatorMoved) => "the coordinator moved".to_owned(),
                Ok(Ended::ByServer) => "the coordinator ended the stream".to_owned(),
                Ok(Ended::LedElsewhere(address)) => {
                    let failure = format!("the coordinator at {address} leads");
                    self.locator.named(address);
                    failure
                }
                Err(failure) => failure.to_string(),
            };
            self.link.send_modify(|link| {
                link.connected = false;
                link.last_failure = Some(failure.clone());
            });
            let pause = self.backoff.delay();
            tracing::debug!(failure, ?pause, "assignment stream down");
            let _ = tasks.token().run_until_cancelled(self.clock.sleep(pause)).await;
        }
    }

    /// One stream, from finding the coordinator to the end of the stream.
    async fn stream(&mut self, tasks: &Tasks) -> Result<Ended, StreamingError> {
        let Some(server) = tasks.token().run_until_cancelled(self.locator.locate()).await else {
            return Ok(Ended::Stopped);
        };
        let server = server?;
        self.link.send_modify(|link| link.server = Some(server.clone()));
        self.connections.retain(|known, class| class != Class::Control || *known == server);

        let channel = self.connections.channel(&server, Class::Control)?;
        let mut client =
            StreamingCoordAssignmentServiceClient::new(channel).max_decoding_message_size(self.max_receive);
        let (commands, outbound) = mpsc::channel(COMMANDS);
        let mut request = Request::new(ReceiverStream::new(outbound));
        self.connections.address_call(&server, request.metadata_mut());
        if self.locator.asks_for_leader() {
            ask_for_leader(request.metadata_mut());
        }

        // No deadline: a coordinator that is not ready holds the stream open and silent, headers included. A dead one is
        // found by the connection's keepalive.
        let responses = tokio::select! {
            biased;
            () = tasks.stopped() => return Ok(Ended::Stopped),
            () = self.locator.moved() => return Ok(Ended::CoordinatorMoved),
            response = client.assignment_discover(request) => match response {
                Ok(response) => response.into_inner(),
                Err(status) => return Ended::by(&status),
            },
        };
        self.follow(responses, commands, tasks).await
    }

    async fn follow(
        &mut self,
        mut responses: Streaming<AssignmentDiscoverResponse>,
        commands: mpsc::Sender<AssignmentDiscoverRequest>,
        tasks: &Tasks,
    ) -> Result<Ended, StreamingError> {
        let (mut reign, mut reported) = (None, BTreeMap::<String, i64>::new());
        let moved = self.locator.moved();
        tokio::pin!(moved);
        loop {
            tokio::select! {
                biased;
                () = tasks.stopped() => {
                    close(responses, commands, &self.clock, self.drain).await;
                    return Ok(Ended::Stopped);
                }
                () = &mut moved => return Ok(Ended::CoordinatorMoved),
                response = responses.message() => {
                    let response = match response {
                        Ok(Some(response)) => response,
                        Ok(None) => return Ok(Ended::ByServer),
                        Err(status) => return Ended::by(&status),
                    };
                    match response.response {
                        Some(Response::FullAssignment(full)) => match Assignment::from_wire(full) {
                            Some(assignment) => {
                                // One that took office meanwhile may not have heard what was reported.
                                if reign.replace(assignment.version.global) != Some(assignment.version.global) {
                                    reported.clear();
                                }
                                publish(&self.latest, &self.link, &self.connections, assignment);
                            }
                            None => return Err(StreamingError::unknown("the coordinator sent an assignment without a version")),
                        },
                        Some(Response::Close(_)) => return Ok(Ended::ByServer),
                        // An arm of a later protocol version.
                        None => {}
                    }
                }
                Some((room, report)) = next_report(commands.clone(), &mut self.reports) => {
                    let (name, term) = (report.pchannel.name(), report.pchannel.term());
                    if reported.get(name).is_some_and(|known| *known >= term) {
                        continue;
                    }
                    reported.insert(name.to_owned(), term);
                    let report = ReportAssignmentErrorRequest {
                        pchannel: Some(report.pchannel.to_proto()),
                        err: Some(report.error.to_proto()),
                    };
                    let command = AssignmentDiscoverRequest { command: Some(Command::ReportError(report)) };
                    room.send(command);
                }
            }
        }
    }
}

/// The next report, when there is room for it on the stream: every channel of a node may fail at once. Cancel safe. `None`
/// when the stream takes none any more.
async fn next_report(
    commands: mpsc::Sender<AssignmentDiscoverRequest>,
    reports: &mut mpsc::Receiver<Report>,
) -> Option<(mpsc::OwnedPermit<AssignmentDiscoverRequest>, Report)> {
    let room = commands.reserve_owned().await.ok()?;
    Some((room, reports.recv().await?))
}

fn publish(
    latest: &watch::Sender<Arc<Assignment>>,
    link: &watch::Sender<Link>,
    connections: &Connections,
    assignment: Assignment,
) {
    link.send_modify(|link| {
        link.connected = true;
        link.last_failure = None;
    });
    let known: Version = latest.borrow().version;
    if assignment.version <= known {
        tracing::debug!(?known, got = ?assignment.version, "assignment is not newer: ignored");
        return;
    }
    let coordinator = link.borrow().server.clone();
    connections.retain(|server, class| {
        (class == Class::Control && coordinator.as_ref() == Some(server))
            || server.id.and_then(|id| assignment.nodes.get(&id)).is_some_and(|node| node.address == server.address)
    });
    latest.send_replace(Arc::new(assignment));
}

/// `close`, half-close, then the server's `close` and end, as long as that does not take too long.
async fn close(
    mut responses: Streaming<AssignmentDiscoverResponse>,
    commands: mpsc::Sender<AssignmentDiscoverRequest>,
    clock: &Clock,
    limit: Duration,
) {
    let command = AssignmentDiscoverRequest { command: Some(Command::Close(CloseAssignmentDiscoverRequest {})) };
    let handshake = async {
        if commands.send(command).await.is_ok() {
            drop(commands);
            while let Ok(Some(_)) = responses.message().await {}
        }
    };
    if clock.timeout(limit, handshake).await.is_err() {
        tracing::debug!("the coordinator did not answer the close of the assignment stream in time");
    }
}
