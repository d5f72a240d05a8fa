use std::{collections::BTreeMap, time::Duration};

use futures::StreamExt;
use streaming_proto::streaming::{
    AssignmentDiscoverRequest, AssignmentDiscoverResponse, BroadcastAckRequest, BroadcastRequest,
    CloseAssignmentDiscoverRequest, FullStreamingNodeAssignmentWithVersion, PChannelInfo, ReportAssignmentErrorRequest,
    StreamingCode, UpdateReplicateConfigurationRequest, UpdateWalBalancePolicyRequest, WalBalancePolicyConfig,
    WalBalancePolicyNodes, assignment_discover_request::Command, assignment_discover_response::Response,
    streaming_coord_assignment_service_client::StreamingCoordAssignmentServiceClient,
    streaming_coord_broadcast_service_client::StreamingCoordBroadcastServiceClient,
};
use streaming_types::metadata::{SERVER_ID, set_destination};
use tokio::sync::mpsc;
use tonic::{Request, Status, Streaming, transport::Channel};
use woodpecker_base::clock::Clock;

use super::cluster::{Cluster, Told, code, eventually, published, settings};

const CHANNEL: &str = "by-dev-rootcoord-dml_0";

/// A client of the assignment service that speaks the stubs only.
pub(super) struct Raw {
    requests: mpsc::Sender<AssignmentDiscoverRequest>,
    responses: Streaming<AssignmentDiscoverResponse>,
}

async fn client(address: &str) -> StreamingCoordAssignmentServiceClient<Channel> {
    StreamingCoordAssignmentServiceClient::connect(format!("http://{address}")).await.unwrap()
}

impl Raw {
    pub(super) async fn open(address: &str) -> Self {
        let (requests, queue) = mpsc::channel(8);
        let queue = futures::stream::unfold(queue, |mut queue| async { Some((queue.recv().await?, queue)) });
        let responses = client(address).await.assignment_discover(queue).await.unwrap().into_inner();
        Self { requests, responses }
    }

    async fn next(&mut self) -> Option<Result<AssignmentDiscoverResponse, Status>> {
        Clock::system().timeout(Duration::from_secs(20), self.responses.next()).await.expect("an answer in time")
    }

    async fn assignment(&mut self) -> FullStreamingNodeAssignmentWithVersion {
        match self.next().await.unwrap().unwrap().response.unwrap() {
            Response::FullAssignment(assignment) => assignment,
            other => panic!("no assignment: {other:?}"),
        }
    }

    /// The first assignment that is such; versions rise on the way.
    pub(super) async fn until(
        &mut self,
        mut holds: impl FnMut(&BTreeMap<i64, Vec<(String, i64)>>) -> bool,
    ) -> (i64, i64) {
        let mut last = (-1, -1);
        loop {
            let assignment = self.assignment().await;
            let version = assignment.version.unwrap();
            assert!((version.global, version.local) > last, "{version:?} after {last:?}");
            last = (version.global, version.local);
            assert_eq!(assignment.cchannel.as_ref().unwrap().meta.as_ref().unwrap().pchannel, CHANNEL);
            if holds(&published(&assignment)) {
                return last;
            }
        }
    }

    async fn is_silent(&mut self, period: Duration) -> bool {
        Clock::system().timeout(period, self.responses.next()).await.is_err()
    }

    async fn send(&self, command: Command) {
        self.requests.send(AssignmentDiscoverRequest { command: Some(command) }).await.unwrap();
    }

    pub(super) async fn report(&self, term: i64) {
        let pchannel = Some(PChannelInfo { name: CHANNEL.into(), term, ..PChannelInfo::default() });
        self.send(Command::ReportError(ReportAssignmentErrorRequest { pchannel, err: None })).await;
    }
}

#[tokio::test]
async fn pushes_at_once_and_on_every_change() {
    let cluster = Cluster::new();
    let coordinator = cluster.coordinator(settings(2)).await;
    let mut early = Raw::open(&coordinator.address).await;
    let first = early.assignment().await;
    assert_eq!(first.assignments, []);
    assert_eq!(first.cchannel.unwrap().meta.unwrap().pchannel, CHANNEL);

    let node = cluster.node().await;
    early.until(|layout| layout.get(&node.id).is_some_and(|channels| channels.len() == 2)).await;
    // A node without channels is listed as well, and so it is for one that comes late.
    let idle = cluster.node().await;
    let version = early.until(|layout| layout.get(&idle.id).is_some_and(Vec::is_empty)).await;
    let late = Raw::open(&coordinator.address).await.assignment().await;
    let late_version = late.version.unwrap();
    assert_eq!((late_version.global, late_version.local), version);
    assert_eq!(published(&late)[&node.id], [(CHANNEL.to_owned(), 2), ("by-dev-rootcoord-dml_1".to_owned(), 2)]);
    coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn a_report_about_the_present_term_brings_a_new_one() {
    let cluster = Cluster::new();
    let node = cluster.node().await;
    let coordinator = cluster.coordinator(settings(1)).await;
    let mut client = Raw::open(&coordinator.address).await;
    client.until(|layout| layout.get(&node.id).is_some_and(|channels| channels[..] == [(CHANNEL.into(), 2)])).await;
    client.report(1).await;
    client.report(9).await;
    client.requests.send(AssignmentDiscoverRequest { command: None }).await.unwrap();
    assert!(client.is_silent(Duration::from_millis(200)).await);
    client.report(2).await;
    client.until(|layout| layout.get(&node.id).is_some_and(|channels| channels[..] == [(CHANNEL.into(), 3)])).await;
    assert_eq!(node.told(CHANNEL), [Told::Assign(2), Told::Remove(2), Told::Assign(3)]);
    coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn a_report_about_a_channel_that_its_silent_owner_closed_unheard_counts_when_the_owner_is_back() {
    let cluster = Cluster::new();
    let node = cluster.node().await;
    let mut settings = settings(1);
    settings.nodes.lost_after = Duration::from_millis(100);
    settings.nodes.remove_timeout = Duration::from_secs(1);
    let coordinator = cluster.coordinator(settings).await;
    let mut client = Raw::open(&coordinator.address).await;
    client.until(|layout| layout.get(&node.id).is_some_and(|channels| channels[..] == [(CHANNEL.into(), 2)])).await;
    let _other = cluster.node().await;
    node.script(|script| (script.fail_status, script.hold_remove) = (true, true));
    eventually("closed", || node.open().is_empty()).await;
    client.report(2).await;
    node.script(|script| (script.fail_status, script.hold_remove) = (false, false));
    client.until(|layout| layout.values().any(|channels| channels[..] == [(CHANNEL.into(), 3)])).await;
    coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn close_and_half_close_are_answered_with_close() {
    let cluster = Cluster::new();
    let coordinator = cluster.coordinator(settings(1)).await;
    let mut client = Raw::open(&coordinator.address).await;
    client.assignment().await;
    client.send(Command::Close(CloseAssignmentDiscoverRequest {})).await;
    assert!(client.is_silent(Duration::from_millis(100)).await, "close alone does nothing");
    let Raw { requests, responses } = client;
    drop(requests);
    let rest: Vec<_> = responses.map(|response| response.unwrap().response.unwrap()).collect().await;
    assert!(matches!(rest[..], [Response::Close(_)]), "{rest:?}");
    coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn a_standby_is_silent_and_lets_go_after_a_while() {
    let cluster = Cluster::new();
    let active = cluster.coordinator(settings(1)).await;
    Raw::open(&active.address).await.assignment().await;
    let mut holds = settings(1);
    holds.standby_hold = Duration::from_secs(2);
    let standby = cluster.coordinator(holds).await;
    let mut client = Raw::open(&standby.address).await;
    assert!(client.is_silent(Duration::from_millis(150)).await);
    let end = client.next().await.unwrap().unwrap_err();
    assert_eq!(code(&end), StreamingCode::OnShutdown);
    active.stop().await.unwrap();
    // The successor takes over without waiting for a lease.
    Raw::open(&standby.address).await.assignment().await;
    standby.stop().await.unwrap();
}

#[tokio::test]
async fn a_stream_that_is_held_is_served_once_the_coordinator_is_active() {
    let cluster = Cluster::new();
    let active = cluster.coordinator(settings(1)).await;
    let first = Raw::open(&active.address).await.assignment().await.version.unwrap();
    let mut patient = settings(1);
    patient.standby_hold = Duration::from_secs(60);
    let standby = cluster.coordinator(patient).await;
    let mut client = Raw::open(&standby.address).await;
    assert!(client.is_silent(Duration::from_millis(100)).await);
    active.stop().await.unwrap();
    assert!(client.assignment().await.version.unwrap().global > first.global);
    standby.stop().await.unwrap();
}

#[tokio::test]
async fn calls_for_others_are_refused() {
    let cluster = Cluster::new();
    let coordinator = cluster.coordinator(settings(1)).await;
    let id = Raw::open(&coordinator.address).await.assignment().await.version.unwrap().global;
    let mut client = client(&coordinator.address).await;
    let mut call = async |cluster: &str, server_id: Option<i64>| {
        let mut request = Request::new(UpdateWalBalancePolicyRequest::default());
        set_destination(request.metadata_mut(), cluster, server_id);
        client.update_wal_balance_policy(request).await
    };
    assert_eq!(code(&call("other", None).await.unwrap_err()), StreamingCode::IgnoredOperation);
    assert_eq!(code(&call("by-dev", Some(id + 1)).await.unwrap_err()), StreamingCode::IgnoredOperation);
    assert!(call("by-dev", Some(id)).await.is_ok());
    assert!(call("", None).await.is_ok());

    let mut request = Request::new(futures::stream::pending());
    request.metadata_mut().insert(SERVER_ID, (id + 1).into());
    let refused = client.assignment_discover(request).await.unwrap_err();
    assert_eq!((code(&refused), refused.code()), (StreamingCode::IgnoredOperation, tonic::Code::FailedPrecondition));
    coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn a_frozen_node_is_emptied_and_filled_again() {
    let cluster = Cluster::new();
    let first = cluster.node().await;
    let mut settings = settings(4);
    settings.balance.min_rebalance_interval = Duration::ZERO;
    let coordinator = cluster.coordinator(settings).await;
    let mut watch = Raw::open(&coordinator.address).await;
    watch.until(|layout| layout.get(&first.id).is_some_and(|channels| channels.len() == 4)).await;
    let mut client = client(&coordinator.address).await;
    let mut policy = async |allow: Option<bool>, freeze: Vec<i64>, defreeze: Vec<i64>| {
        let request = UpdateWalBalancePolicyRequest {
            config: allow.map(|allow_rebalance| WalBalancePolicyConfig { allow_rebalance }),
            nodes: Some(WalBalancePolicyNodes { freeze_node_ids: freeze, defreeze_node_ids: defreeze }),
            update_mask: None,
        };
        client.update_wal_balance_policy(request).await.unwrap().into_inner()
    };
    assert!(!policy(Some(false), vec![], vec![]).await.config.unwrap().allow_rebalance);
    let second = cluster.node().await;
    assert_eq!(policy(None, vec![first.id], vec![]).await.freeze_node_ids, [first.id]);
    eventually("moved away", || first.open().is_empty() && second.open().len() == 4).await;
    assert_eq!(policy(Some(true), vec![], vec![first.id]).await.freeze_node_ids, [0i64; 0]);
    eventually("evened out", || first.open().len() == 2 && second.open().len() == 2).await;
    coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_not_there_says_so() {
    let cluster = Cluster::new();
    let coordinator = cluster.coordinator(settings(1)).await;
    let request = UpdateReplicateConfigurationRequest::default();
    let refused = client(&coordinator.address).await.update_replicate_configuration(request).await.unwrap_err();
    assert_eq!(code(&refused), StreamingCode::InvaildArgument);
    let address = format!("http://{}", coordinator.address);
    let mut broadcast = StreamingCoordBroadcastServiceClient::connect(address).await.unwrap();
    let refused = broadcast.broadcast(BroadcastRequest::default()).await.unwrap_err();
    assert_eq!(code(&refused), StreamingCode::Unrecoverable);
    assert!(broadcast.ack(BroadcastAckRequest::default()).await.is_ok());
    coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn a_slow_client_misses_assignments_but_not_the_last() {
    let cluster = Cluster::new();
    let node = cluster.node().await;
    let coordinator = cluster.coordinator(settings(1)).await;
    let mut slow = Raw::open(&coordinator.address).await;
    let mut quick = Raw::open(&coordinator.address).await;
    quick.until(|layout| layout.get(&node.id).is_some_and(|channels| channels.len() == 1)).await;
    for term in 2..12 {
        quick.report(term).await;
        let wanted = vec![(CHANNEL.to_owned(), term + 1)];
        quick.until(|layout| layout.get(&node.id) == Some(&wanted)).await;
    }
    slow.until(|layout| layout.get(&node.id).is_some_and(|channels| channels[..] == [(CHANNEL.into(), 12)])).await;
    coordinator.stop().await.unwrap();
}
