use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::future::join_all;
use prost::Message;
use streaming_proto::streaming::{
    AssignmentDiscoverResponse, PChannelMeta, StreamingCode,
    streaming_coord_assignment_service_client::StreamingCoordAssignmentServiceClient,
};
use streaming_types::metadata::{ask_for_leader, leader};
use test_peers::Etcd;
use tonic::{Request, Status};
use woodpecker_base::{
    clock::Clock,
    health::State,
    metadata::{
        Call, EtcdSettings, EtcdStore, Interfered, Interference, MemoryStore, MetadataError, MetadataStore, Txn,
        TxnOutcome, Write,
    },
    random::Random,
};

use super::{
    cluster::{Cluster, ROOT, Told, code, eventually, layout, settings},
    loss::Loss,
};
use crate::{CoordinatorError, OnLeadershipLoss};

const CHANNEL: &str = "by-dev-rootcoord-dml_0";

/// Lets so many writes of channels through and nothing more, before or after the last takes effect.
#[derive(Debug)]
struct Dying {
    writes_left: AtomicI64,
    last_counts: bool,
}

impl Dying {
    fn alive(&self) -> Result<(), MetadataError> {
        let dead = self.writes_left.load(Ordering::Relaxed) < 0;
        if dead { Err(MetadataError::Unavailable("the process is dead".into())) } else { Ok(()) }
    }
}

#[async_trait]
impl Interference for Dying {
    async fn before(&self, _: Call) -> Result<(), MetadataError> {
        self.alive()
    }

    async fn commit(&self, store: &dyn MetadataStore, txn: Txn) -> Result<TxnOutcome, MetadataError> {
        self.alive()?;
        let of_channel =
            txn.writes.iter().any(|write| matches!(write, Write::Put { key, .. } if key.contains("/pchannel/")));
        if of_channel && self.writes_left.fetch_sub(1, Ordering::Relaxed) == 0 {
            if self.last_counts {
                store.commit(txn).await?;
            }
            return Err(MetadataError::Unavailable("the process died".into()));
        }
        store.commit(txn).await
    }
}

async fn stored(store: &Arc<dyn MetadataStore>) -> PChannelMeta {
    let key = format!("{ROOT}/streamingcoord-meta/pchannel/{CHANNEL}");
    let item = store.get(&key).await.unwrap().expect("the channel is stored");
    PChannelMeta::decode(item.value).unwrap()
}

/// Terms of the Assigns that any node was told, in no particular order.
fn assigned_terms<'a>(told: impl Iterator<Item = &'a Told>) -> Vec<i64> {
    told.filter_map(|told| if let Told::Assign(term) = told { Some(*term) } else { None }).collect()
}

#[tokio::test]
async fn a_crash_at_any_write_converges_under_a_larger_term() {
    let cases = [(false, 0), (false, 1), (true, 0), (true, 1)].map(|(last_counts, writes)| async move {
        let cluster = Cluster::new();
        let node = cluster.node().await;
        let dying = Interfered::new(cluster.store.clone(), Dying { writes_left: writes.into(), last_counts });
        let (doomed, doomed_tasks) = Cluster::on(Arc::new(dying)).bare(settings(1));
        let (successor, tasks) = cluster.bare(settings(1));
        // The dead one still has its session until the lease ends, and nothing it does counts any more.
        eventually("assigned by the successor", || layout(&successor.channels()).len() == 1).await;
        let meta = stored(&cluster.store).await;
        let terms = assigned_terms(node.told(CHANNEL).iter());
        let case = format!("{writes} writes, the next counts: {last_counts}, told {terms:?}");
        assert!(terms.is_sorted_by(|a, b| a < b), "{case}");
        assert_eq!(node.open().get(CHANNEL), terms.last(), "{case}");
        assert_eq!(meta.channel.unwrap().term, *terms.last().unwrap(), "{case}");
        assert_eq!(meta.histories, [], "{case}");
        let _ = doomed;
        doomed_tasks.stop();
        tasks.stop();
    });
    join_all(cases).await;
}

#[tokio::test]
async fn a_successor_keeps_what_is_assigned() {
    let cluster = Cluster::new();
    let node = cluster.node().await;
    let (first, first_tasks) = cluster.bare(settings(4));
    eventually("assigned", || layout(&first.channels()).get(&node.id) == Some(&4)).await;
    let (second, tasks) = cluster.bare(settings(4));
    eventually("standing by", || second.state() == State::StandBy).await;
    first_tasks.stop();
    eventually("taken over", || layout(&second.channels()).get(&node.id) == Some(&4)).await;
    cluster.clock.sleep(Duration::from_millis(200)).await;
    assert_eq!(node.told(CHANNEL), [Told::Assign(2)]);
    assert!(second.server_id() > first.server_id());
    tasks.stop();
}

#[tokio::test]
async fn every_leader_has_a_larger_id_than_the_one_before() {
    let cluster = Cluster::new();
    let (a, a_tasks) = cluster.bare(settings(1));
    assert!(a.until_active().await);
    let (b, b_tasks) = cluster.bare(settings(1));
    eventually("b stands by", || b.state() == State::StandBy).await;
    let (c, c_tasks) = cluster.bare(settings(1));
    eventually("c stands by", || c.state() == State::StandBy).await;
    // Whoever wins first, the other follows, and must not lead with an id that is smaller.
    a_tasks.stop();
    eventually("one leads", || [&b, &c].iter().any(|x| x.state() == State::Healthy)).await;
    let b_first = b.state() == State::Healthy;
    let ((winner, winner_tasks), other) = if b_first { ((&b, &b_tasks), &c) } else { ((&c, &c_tasks), &b) };
    let rank = winner.server_id();
    winner_tasks.stop();
    eventually("the other leads", || other.state() == State::Healthy).await;
    assert!(other.server_id() > rank);
    for tasks in [b_tasks, c_tasks] {
        tasks.stop();
    }
}

#[tokio::test]
async fn a_deposed_leader_stands_again_under_a_new_id() {
    let cluster = Cluster::new();
    let node = cluster.node().await;
    let (coordinator, tasks) = cluster.bare(settings(2));
    eventually("assigned", || layout(&coordinator.channels()).get(&node.id) == Some(&2)).await;
    let before = coordinator.server_id();
    cluster.store.commit(Txn::new().delete(format!("{ROOT}/session/mixcoord"))).await.unwrap();
    eventually("leads again", || coordinator.server_id() > before && coordinator.state() == State::Healthy).await;
    eventually("assigned", || layout(&coordinator.channels()).get(&node.id) == Some(&2)).await;
    assert_eq!(node.told(CHANNEL), [Told::Assign(2)]);
    tasks.stop();
}

#[tokio::test]
async fn a_leader_that_cannot_begin_at_first_tries_again_under_its_id() {
    let (rank, control_channel) =
        (|key: &str, _: &[u8]| key.ends_with("/leader-rank"), |key: &str, _: &[u8]| key.ends_with("/cchannel"));
    for unanswered in [rank, control_channel] {
        let store = Loss::on_a_new_store();
        store.by.fail_though_written(unanswered);
        let (coordinator, tasks) = Cluster::on(store.clone()).bare(settings(1));
        assert!(coordinator.until_active().await && store.by.is_over());
        assert_eq!(coordinator.server_id(), Some(1), "it has registered once");
        tasks.stop();
    }
}

#[tokio::test]
async fn a_deposed_leader_ends_if_it_is_told_to() {
    let cluster = Cluster::new();
    let exit = crate::Settings { on_leadership_loss: OnLeadershipLoss::Exit, ..settings(1) };
    let (mut coordinator, _tasks) = cluster.bare(exit);
    assert!(coordinator.until_active().await);
    cluster.store.commit(Txn::new().delete(format!("{ROOT}/session/mixcoord"))).await.unwrap();
    assert!(matches!(coordinator.ended().await, Err(CoordinatorError::LeadershipLost)));
    assert_eq!(coordinator.state(), State::Stopping);
}

#[tokio::test]
async fn an_outage_of_the_metadata_store_moves_nothing() {
    let memory = MemoryStore::new(Clock::system());
    let cluster = Cluster::on(Arc::new(memory.clone()));
    let node = cluster.node().await;
    let cut_off = memory.connect();
    let own = Cluster::on(Arc::new(cut_off.clone()));
    let (coordinator, tasks) = own.bare(settings(2));
    eventually("assigned", || layout(&coordinator.channels()).get(&node.id) == Some(&2)).await;
    cut_off.set_reachable(false);
    cluster.clock.sleep(Duration::from_millis(300)).await;
    assert_eq!(layout(&coordinator.channels()), BTreeMap::from([(node.id, 2)]));
    cut_off.set_reachable(true);
    let heir = cluster.node().await;
    drop(node);
    eventually("assignment goes on", || layout(&coordinator.channels()).get(&heir.id) == Some(&2)).await;
    tasks.stop();
}

#[tokio::test]
async fn works_on_etcd() {
    let etcd = Etcd::start().await;
    let connect = || async {
        let settings = EtcdSettings::new(vec![etcd.endpoint()]);
        Arc::new(EtcdStore::connect(settings, Clock::system(), Random::seeded(3)).await.unwrap())
            as Arc<dyn MetadataStore>
    };
    let cluster = Cluster::on(connect().await);
    let mut nodes = [cluster.node().await, cluster.node().await];
    let other = Cluster::on(connect().await);
    let (first, first_tasks) = cluster.bare(settings(8));
    eventually("spread", || layout(&first.channels()).values().eq([&4, &4])).await;
    let (second, tasks) = other.bare(settings(8));
    eventually("standing by", || second.state() == State::StandBy).await;
    first_tasks.stop();
    eventually("taken over", || layout(&second.channels()).values().eq([&4, &4])).await;
    nodes[0].kill();
    eventually("moved", || layout(&second.channels()).get(&nodes[1].id) == Some(&8)).await;
    let meta = stored(&cluster.store).await;
    assert_eq!(meta.node.unwrap().server_id, nodes[1].id);
    tasks.stop();
}

/// The first answer on a stream that asks who leads.
async fn asked(address: &str) -> Result<Option<AssignmentDiscoverResponse>, Status> {
    let mut client = StreamingCoordAssignmentServiceClient::connect(format!("http://{address}")).await.unwrap();
    let mut request = Request::new(futures::stream::pending());
    ask_for_leader(request.metadata_mut());
    let mut answers = client.assignment_discover(request).await?.into_inner();
    Clock::system().timeout(Duration::from_secs(10), answers.message()).await.expect("an answer in time")
}

#[tokio::test]
async fn who_asks_a_standby_is_told_at_once_who_leads() {
    let cluster = Cluster::new();
    let mut patient = settings(1);
    patient.standby_hold = Duration::from_secs(60);
    let active = cluster.coordinator(patient.clone()).await;
    assert!(asked(&active.address).await.unwrap().is_some(), "who leads serves it");
    let standby = cluster.coordinator(patient).await;
    let told = asked(&standby.address).await.unwrap_err();
    assert_eq!((code(&told), leader(told.metadata())), (StreamingCode::OnShutdown, Some(active.address.clone())));
    active.stop().await.unwrap();
    assert!(asked(&standby.address).await.unwrap().is_some(), "it leads by now");
    standby.stop().await.unwrap();
}
