use super::*;
use crate::{
    metadata::{MemoryStore, Txn, TxnOutcome},
    tasks::Tasks,
};

const ROOT: &str = "by-dev/meta";
const TTL: Duration = Duration::from_secs(10);

struct Candidate {
    store: Arc<dyn MetadataStore>,
    clock: Clock,
    session: Session,
}

impl Candidate {
    async fn new(store: &MemoryStore, clock: &Clock, id: i64) -> Self {
        let shared: Arc<dyn MetadataStore> = Arc::new(store.clone());
        let record = SessionRecord::new("mixcoord", id, &format!("host-{id}:1"), "2.6.2");
        let session = Session::register(shared.clone(), clock, &Tasks::new(), ROOT, record, TTL).await.unwrap();
        Self { store: shared, clock: clock.clone(), session }
    }

    async fn campaign(&self) -> Result<Leadership, SessionError> {
        campaign(&self.store, &self.clock, ROOT, &self.session).await
    }
}

#[tokio::test(start_paused = true)]
async fn one_of_two_candidates_leads_and_the_other_follows_when_it_goes() {
    let clock = Clock::system();
    let store = MemoryStore::new(clock.clone());
    let first = Candidate::new(&store, &clock, 1).await;
    let second = Candidate::new(&store.connect(), &clock, 2).await;
    let leadership = first.campaign().await.unwrap();
    assert!(clock.timeout(TTL * 10, second.campaign()).await.is_err(), "the leader is kept alive");
    let found = store.get("by-dev/meta/session/mixcoord").await.unwrap().unwrap();
    let found = SessionRecord::decode(&found.value).unwrap();
    assert_eq!((found.server_id, found.exclusive), (1, true));

    drop(first);
    let next = clock.timeout(TTL * 2, second.campaign()).await.unwrap().unwrap();
    assert!(next.revision() > leadership.revision());
    let stale = Txn::new().when(leadership.guard()).put("written-by", "first");
    assert_eq!(store.commit(stale).await.unwrap(), TxnOutcome::Conflict);
    let fresh = Txn::new().when(next.guard()).put("written-by", "second");
    assert!(matches!(store.commit(fresh).await.unwrap(), TxnOutcome::Committed(_)));
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_loses_and_learns_of_it() {
    let clock = Clock::system();
    let cut = MemoryStore::new(clock.clone());
    let other = cut.connect();
    let first = Candidate::new(&cut, &clock, 1).await;
    let second = Candidate::new(&other, &clock, 2).await;
    first.campaign().await.unwrap();
    cut.set_reachable(false);
    second.campaign().await.unwrap();
    assert!(clock.now() >= first.session.valid_until(), "the old leader could know before the new one led");
    cut.set_reachable(true);
    first.session.lost().await;
    assert!(matches!(first.campaign().await, Err(SessionError::Lost)));
}

#[tokio::test(start_paused = true)]
async fn resigning_hands_over_at_once() {
    let clock = Clock::system();
    let store = MemoryStore::new(clock.clone());
    let first = Candidate::new(&store, &clock, 1).await;
    let second = Candidate::new(&store, &clock, 2).await;
    first.campaign().await.unwrap();
    first.session.revoke().await.unwrap();
    let begun = clock.now();
    second.campaign().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1));
}
