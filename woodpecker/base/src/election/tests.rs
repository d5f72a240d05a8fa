use std::time::Duration;

use test_peers::Etcd;

use super::*;
use crate::{
    metadata::{EtcdSettings, EtcdStore, MemoryStore, Txn, TxnOutcome},
    session::SessionState,
    tasks::Tasks,
};

const ROLE_KEY: &str = "m/session/mixcoord";

/// A process that stands for election.
struct Candidate {
    store: Arc<dyn MetadataStore>,
    session: Session,
}

impl Candidate {
    async fn elected(&self) -> Result<Leadership, SessionError> {
        campaign(&self.store, &Clock::system(), "m", &self.session).await
    }
}

async fn enter(store: Arc<dyn MetadataStore>, server_id: i64, ttl: Duration) -> Candidate {
    let record = SessionRecord::new("mixcoord", server_id, &format!("h:{server_id}"), "2.6.2");
    let record = SessionRecord { exclusive: true, ..record };
    let session = Session::register(store.clone(), &Clock::system(), &Tasks::new(), "m", record, ttl).await.unwrap();
    Candidate { store, session }
}

async fn memory(store: &MemoryStore, server_id: i64) -> Candidate {
    enter(Arc::new(store.clone()), server_id, Duration::from_secs(9)).await
}

async fn active(store: &dyn MetadataStore) -> Option<i64> {
    Some(SessionRecord::decode(&store.get(ROLE_KEY).await.unwrap()?.value).unwrap().server_id)
}

/// Not elected, for as long as it takes to be sure.
async fn stands_by(candidate: &Candidate, seconds: u64) {
    let elected = Clock::system().timeout(Duration::from_secs(seconds), candidate.elected()).await;
    assert!(elected.is_err(), "{elected:?}");
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_the_next_follows_at_once_when_it_resigns() {
    let store = MemoryStore::new(Clock::system());
    let (one, two) = (memory(&store, 1).await, memory(&store, 2).await);
    let leadership = one.elected().await.unwrap();
    stands_by(&two, 60).await;
    assert_eq!(active(&store).await, Some(1));
    assert!(leadership.revision() > 0);
    let written = |proof: &Leadership| store.commit(Txn::new().when(proof.guard()).put("k", ""));
    assert!(matches!(written(&leadership).await.unwrap(), TxnOutcome::Committed(_)));
    let resigned = Clock::system().now();
    let (elected, resigned_well) = tokio::join!(two.elected(), one.session.revoke());
    resigned_well.unwrap();
    assert!(Clock::system().now() - resigned < Duration::from_secs(1));
    assert_eq!(active(&store).await, Some(2));
    assert_eq!(written(&leadership).await.unwrap(), TxnOutcome::Conflict, "a former leader writes nothing");
    assert!(matches!(written(&elected.unwrap()).await.unwrap(), TxnOutcome::Committed(_)));
    let keys = store.list("m/session/mixcoord").await.unwrap().items;
    assert_eq!(keys.iter().map(|item| item.key.as_str()).collect::<Vec<_>>(), [ROLE_KEY, "m/session/mixcoord-2"]);
    let records = [&keys[0], &keys[1]].map(|item| SessionRecord::decode(&item.value).unwrap());
    assert_eq!(records.map(|record| (record.server_id, record.exclusive)), [(2, true), (2, true)]);
    two.session.announce_stopping().await.unwrap();
    for item in store.list("m/session/mixcoord").await.unwrap().items {
        assert!(SessionRecord::decode(&item.value).unwrap().stopping, "{}", item.key);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_leader_is_followed_when_its_lease_ends() {
    let store = MemoryStore::new(Clock::system());
    let (one, two) = (memory(&store, 1).await, memory(&store, 2).await);
    one.elected().await.unwrap();
    let died = Clock::system().now();
    drop(one);
    two.elected().await.unwrap();
    let waited = Clock::system().now() - died;
    assert!(waited > Duration::from_secs(5) && waited < Duration::from_secs(10), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_cut_off_is_replaced_and_learns_it_when_it_is_back() {
    let store = MemoryStore::new(Clock::system());
    let cut = store.connect();
    let (one, two) = (memory(&cut, 1).await, memory(&store, 2).await);
    one.elected().await.unwrap();
    cut.set_reachable(false);
    two.elected().await.unwrap();
    assert!(matches!(*one.session.state().borrow(), SessionState::Unreachable { .. }));
    assert!(Clock::system().now() >= one.session.valid_until(), "replaced while it could still rely on its lease");
    cut.set_reachable(true);
    one.session.lost().await;
    assert_eq!(active(&store).await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn losing_the_role_alone_is_told_as_a_loss() {
    let store = MemoryStore::new(Clock::system());
    let (one, two) = (memory(&store, 1).await, memory(&store, 2).await);
    one.elected().await.unwrap();
    store.commit(Txn::new().delete(ROLE_KEY)).await.unwrap();
    one.session.lost().await;
    one.elected().await.unwrap_err();
    two.elected().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_standby_waits_out_an_outage_and_one_without_session_gives_up() {
    let store = MemoryStore::new(Clock::system());
    let cut = store.connect();
    let (one, two) = (memory(&store, 1).await, memory(&cut, 2).await);
    one.elected().await.unwrap();
    let outage = async {
        Clock::system().sleep(Duration::from_secs(1)).await;
        cut.set_reachable(false);
        Clock::system().sleep(Duration::from_secs(4)).await;
        one.session.revoke().await.unwrap();
        cut.set_reachable(true);
    };
    let (elected, ()) = tokio::join!(two.elected(), outage);
    elected.unwrap();
    let (three, four) = (memory(&store, 3).await, memory(&store, 4).await);
    store.revoke_lease(three.session.lease()).await.unwrap();
    three.elected().await.unwrap_err();
    stands_by(&four, 60).await;
}

#[tokio::test]
async fn on_etcd_leadership_survives_a_short_pause_and_passes_on_after_a_long_one() {
    let etcd = Etcd::start().await;
    let mut settings = EtcdSettings::new([etcd.endpoint()]);
    settings.request_timeout = Duration::from_secs(1);
    let store = EtcdStore::connect(settings, Clock::system(), Random::seeded(5)).await.unwrap();
    let store: Arc<dyn MetadataStore> = Arc::new(store);
    let ttl = Duration::from_secs(5);
    let (one, two) = (enter(store.clone(), 1, ttl).await, enter(store.clone(), 2, ttl).await);
    one.elected().await.unwrap();
    etcd.stop();
    Clock::system().sleep(ttl / 3).await;
    etcd.cont();
    stands_by(&two, 3).await;
    assert!(!matches!(*one.session.state().borrow(), SessionState::Lost));
    assert_eq!(active(store.as_ref()).await, Some(1));

    // Killed: nobody revokes the lease.
    drop(one);
    let died = Clock::system().now();
    Clock::system().timeout(ttl * 4, two.elected()).await.unwrap().unwrap();
    assert!(Clock::system().now() - died > ttl / 2);
    assert_eq!(active(store.as_ref()).await, Some(2));

    // Longer than the lease: the leader and its standby are both gone, and a new candidate leads.
    let standby = enter(store.clone(), 3, ttl).await;
    etcd.stop();
    Clock::system().sleep(ttl + Duration::from_secs(2)).await;
    etcd.cont();
    for candidate in [&two, &standby] {
        Clock::system().timeout(ttl * 4, candidate.session.lost()).await.unwrap();
    }
    let next = enter(store.clone(), 4, ttl).await;
    Clock::system().timeout(ttl * 4, next.elected()).await.unwrap().unwrap();
    assert_eq!(active(store.as_ref()).await, Some(4));
    next.session.revoke().await.unwrap();
    assert_eq!(active(store.as_ref()).await, None);
}
