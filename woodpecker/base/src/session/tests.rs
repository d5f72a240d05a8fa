use std::sync::Arc;

use super::*;
use crate::metadata::MemoryStore;

const ROOT: &str = "by-dev/meta";
const TTL: Duration = Duration::from_secs(10);

struct World {
    clock: Clock,
    store: MemoryStore,
    tasks: Tasks,
}

impl World {
    fn new() -> Self {
        let clock = Clock::system();
        Self { store: MemoryStore::new(clock.clone()), clock, tasks: Tasks::new() }
    }

    async fn register(&self, id: i64, address: &str) -> Result<Session, SessionError> {
        let record = SessionRecord::new("streamingnode", id, address, "2.6.2");
        Session::register(Arc::new(self.store.clone()), &self.clock, &self.tasks, ROOT, record, TTL).await
    }

    async fn record(&self, id: i64) -> Option<SessionRecord> {
        let key = format!("by-dev/meta/session/streamingnode-{id}");
        let found = self.store.connect().get(&key).await.unwrap()?;
        Some(SessionRecord::decode(&found.value).unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_stands_while_it_is_kept_and_goes_with_its_owner() {
    let world = World::new();
    let session = world.register(7, "a:1").await.unwrap();
    world.clock.sleep(TTL * 5).await;
    assert_eq!(world.record(7).await.unwrap().address, "a:1");
    assert!(session.valid_until() > world.clock.now());
    drop(session);
    world.clock.sleep(TTL + Duration::from_secs(1)).await;
    assert_eq!(world.record(7).await, None);
}

#[tokio::test(start_paused = true)]
async fn stopping_is_announced_and_revocation_is_at_once() {
    let world = World::new();
    let mut session = world.register(7, "a:1").await.unwrap();
    session.announce_stopping().await.unwrap();
    assert!(world.record(7).await.unwrap().stopping);
    world.clock.sleep(TTL * 3).await;
    assert_eq!(*session.state().borrow(), SessionState::Alive);
    session.revoke().await.unwrap();
    assert_eq!(world.record(7).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_is_not_a_loss() {
    let world = World::new();
    let session = world.register(7, "a:1").await.unwrap();
    let mut state = session.state();
    world.store.set_reachable(false);
    state.wait_for(|state| matches!(state, SessionState::Unreachable { .. })).await.unwrap();
    world.store.set_reachable(true);
    state.wait_for(|state| *state == SessionState::Alive).await.unwrap();
    assert!(world.record(7).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn an_outage_longer_than_the_lease_is_a_loss_and_known_by_the_clock_before() {
    let world = World::new();
    let session = world.register(7, "a:1").await.unwrap();
    let mut state = session.state();
    world.store.set_reachable(false);
    state.wait_for(|state| matches!(state, SessionState::Unreachable { .. })).await.unwrap();
    world.clock.sleep(TTL).await;
    assert!(world.clock.now() >= session.valid_until());
    assert!(matches!(*state.borrow(), SessionState::Unreachable { .. }), "nobody said that it is lost");
    world.store.set_reachable(true);
    session.lost().await;
    assert_eq!(*state.borrow(), SessionState::Lost);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_key_is_a_loss() {
    let world = World::new();
    let session = world.register(7, "a:1").await.unwrap();
    world.store.connect().commit(Txn::new().delete(session.key())).await.unwrap();
    session.lost().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_at_the_same_address_takes_the_key_of_the_dead() {
    let world = World::new();
    let old = world.register(7, "a:1").await.unwrap();
    let young = world.register(8, "a:1").await.unwrap();
    let record = SessionRecord::new("mixcoord", 8, "a:1", "2.6.2");
    old.claim("by-dev/meta/session/mixcoord", &SessionRecord { server_id: 7, ..record.clone() }).await.unwrap();
    young.claim("by-dev/meta/session/mixcoord", &record).await.unwrap();
    old.lost().await;
    let elsewhere = world.register(9, "b:1").await.unwrap();
    let record = SessionRecord::new("mixcoord", 9, "b:1", "2.6.2");
    let refused = elsewhere.claim("by-dev/meta/session/mixcoord", &record).await.unwrap_err();
    assert!(matches!(&refused, SessionError::Held { holder: 8, address, .. } if address == "a:1"), "{refused}");
}
