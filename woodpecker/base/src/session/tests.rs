use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use futures::StreamExt;
use test_peers::Etcd;

use super::*;
use crate::metadata::{EtcdSettings, EtcdStore, Interfered, Interference, MemoryStore};

const TTL: Duration = Duration::from_secs(9);

async fn register(store: Arc<dyn MetadataStore>, server_id: i64, ttl: Duration) -> Result<Session, SessionError> {
    let record = SessionRecord::new("streamingnode", server_id, &format!("h:{server_id}"), "2.6.2");
    Session::register(store, &Clock::system(), &Tasks::new(), "m", record, ttl).await
}

async fn node(store: &MemoryStore, server_id: i64) -> Session {
    register(Arc::new(store.clone()), server_id, TTL).await.unwrap()
}

async fn sleep(seconds: u64) {
    Clock::system().sleep(Duration::from_secs(seconds)).await;
}

async fn json(store: &MemoryStore, key: &str) -> Option<String> {
    store.get(key).await.unwrap().map(|item| String::from_utf8_lossy(&item.value).into_owned())
}

#[tokio::test(start_paused = true)]
async fn a_session_stands_while_kept_says_it_is_stopping_and_goes_when_closed() {
    let store = MemoryStore::new(Clock::system());
    let session = node(&store, 7).await;
    let key = "m/session/streamingnode-7";
    let expected = |stopping: &str| {
        let head = r#"{"ServerID":7,"ServerName":"streamingnode","Address":"h:7","#;
        let tail = r#""TriggerKill":true,"Version":"2.6.2","IndexEngineVersion":{},"ScalarIndexEngineVersion":{},"#;
        Some(format!(r#"{head}{stopping}{tail}"LeaseID":{}}}"#, session.lease().0))
    };
    sleep(60).await;
    assert_eq!(json(&store, key).await, expected(""));
    assert_eq!(store.get(key).await.unwrap().unwrap().lease, Some(session.lease()));
    session.announce_stopping().await.unwrap();
    assert_eq!(json(&store, key).await, expected(r#""Stopping":true,"#));
    assert!(session.record().stopping);
    sleep(60).await;
    assert_eq!(json(&store, key).await, expected(r#""Stopping":true,"#));
    let state = session.state();
    assert_eq!(*state.borrow(), SessionState::Alive);
    session.revoke().await.unwrap();
    assert_eq!(json(&store, key).await, None);
    assert_eq!(*state.borrow(), SessionState::Alive, "an end that was asked for is no loss");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_session_ends_with_its_lease() {
    let store = MemoryStore::new(Clock::system());
    drop(node(&store, 1).await);
    sleep(8).await;
    assert!(json(&store, "m/session/streamingnode-1").await.is_some());
    sleep(2).await;
    assert!(json(&store, "m/session/streamingnode-1").await.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_outage_shorter_than_the_lease_is_not_a_loss() {
    let (store, clock) = (MemoryStore::new(Clock::system()), Clock::system());
    let mine = store.connect();
    let session = node(&mine, 1).await;
    let mut state = session.state();
    sleep(30).await;
    assert!(session.valid_until() > clock.now() + TTL / 2);
    mine.set_reachable(false);
    state.changed().await.unwrap();
    assert!(matches!(*state.borrow_and_update(), SessionState::Unreachable { since } if since <= clock.now()));
    let valid_until = session.valid_until();
    sleep(3).await;
    assert_eq!(session.valid_until(), valid_until, "what was not answered extends nothing");
    mine.set_reachable(true);
    state.changed().await.unwrap();
    assert_eq!(*state.borrow_and_update(), SessionState::Alive);
    assert!(session.valid_until() > valid_until);
    sleep(60).await;
    assert_eq!(*state.borrow(), SessionState::Alive);
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_longer_than_the_lease_the_session_is_lost() {
    let (store, clock) = (MemoryStore::new(Clock::system()), Clock::system());
    let mine = store.connect();
    let session = node(&mine, 1).await;
    mine.set_reachable(false);
    sleep(600).await;
    assert!(matches!(*session.state().borrow(), SessionState::Unreachable { .. }), "time alone is no proof");
    assert!(clock.now() > session.valid_until());
    mine.set_reachable(true);
    session.lost().await;
    let error = session.announce_stopping().await.unwrap_err();
    assert!(matches!(error, SessionError::Lost) && !error.is_retryable(), "{error}");
    assert_eq!(*session.state().borrow(), SessionState::Lost);
    session.revoke().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_deleted_or_taken_is_a_loss() {
    let store = MemoryStore::new(Clock::system());
    let session = node(&store, 1).await;
    // A longer key is another's.
    store.commit(Txn::new().put("m/session/streamingnode-10", "{}")).await.unwrap();
    store.commit(Txn::new().delete("m/session/streamingnode-10")).await.unwrap();
    sleep(1).await;
    assert_eq!(*session.state().borrow(), SessionState::Alive);
    store.commit(Txn::new().delete("m/session/streamingnode-1")).await.unwrap();
    session.lost().await;
    let session = node(&store, 2).await;
    store.commit(Txn::new().put("m/session/streamingnode-2", "{}")).await.unwrap();
    session.lost().await;
}

#[tokio::test(start_paused = true)]
async fn a_former_process_at_the_address_gives_way_and_another_does_not() {
    let store = MemoryStore::new(Clock::system());
    let (old, young) = (node(&store, 3).await, node(&store, 4).await);
    let key = "m/session/mixcoord";
    let record = |server_id, address| SessionRecord::new("mixcoord", server_id, address, "2.6.2");
    old.claim(key, &record(3, "a:1")).await.unwrap();
    let refused = young.claim(key, &record(4, "b:1")).await.unwrap_err();
    assert!(matches!(&refused, SessionError::Held { holder: 3, address, .. } if address == "a:1"), "{refused}");
    let created = young.claim(key, &record(4, "a:1")).await.unwrap();
    assert_eq!(young.claim(key, &record(4, "a:1")).await.unwrap(), created, "what is held is held");
    old.lost().await;
    let older = node(&store, 2).await;
    assert!(older.claim(key, &record(2, "a:1")).await.is_err());
    assert_eq!(*young.state().borrow(), SessionState::Alive);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_another_holds_is_waited_for_until_its_lease_ends() {
    let store = MemoryStore::new(Clock::system());
    let dead = store.grant_lease(TTL).await.unwrap();
    store.commit(Txn::new().put_leased("m/session/streamingnode-1", "{}", dead)).await.unwrap();
    let started = Clock::system().now();
    let session = node(&store, 1).await;
    assert!(Clock::system().now() - started >= TTL);
    store.commit(Txn::new().put("m/session/streamingnode-2", "{}")).await.unwrap();
    let error = register(Arc::new(store.clone()), 2, TTL).await.unwrap_err();
    assert!(matches!(error, SessionError::Held { .. }) && error.is_retryable(), "{error}");
    assert_eq!(*session.state().borrow(), SessionState::Alive);
}

/// Loses the answer to the next commit, after it was carried out.
#[derive(Debug)]
struct Forgetful(AtomicBool);

#[async_trait]
impl Interference for Forgetful {
    async fn commit(&self, store: &dyn MetadataStore, txn: Txn) -> Result<TxnOutcome, MetadataError> {
        let outcome = store.commit(txn).await;
        if self.0.swap(false, Ordering::Relaxed) {
            return Err(MetadataError::Unavailable("the answer was lost".to_owned()));
        }
        outcome
    }
}

#[tokio::test(start_paused = true)]
async fn a_registration_whose_answer_was_lost_is_recognized() {
    let store = MemoryStore::new(Clock::system());
    let forgetful = Arc::new(Interfered::new(Arc::new(store.clone()), Forgetful(AtomicBool::new(true))));
    let session = register(forgetful, 1, TTL).await.unwrap();
    let item = store.get("m/session/streamingnode-1").await.unwrap().unwrap();
    assert_eq!((item.lease, item.create_revision), (Some(session.lease()), item.mod_revision));
    sleep(30).await;
    assert_eq!(*session.state().borrow(), SessionState::Alive);
}

#[tokio::test(start_paused = true)]
async fn registration_waits_for_the_store_but_not_for_ever() {
    let store = MemoryStore::new(Clock::system());
    store.set_reachable(false);
    let shared: Arc<dyn MetadataStore> = Arc::new(store.clone());
    let error = register(shared.clone(), 1, TTL).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    let back = async {
        sleep(10).await;
        store.set_reachable(true);
    };
    let (session, ()) = tokio::join!(register(shared, 1, TTL), back);
    assert_eq!(*session.unwrap().state().borrow(), SessionState::Alive);
}

#[tokio::test(start_paused = true)]
async fn views_follow_sessions_as_they_come_change_and_go() {
    let store = MemoryStore::new(Clock::system());
    let mine = store.connect();
    let one = node(&store, 1).await;
    let txn = Txn::new().put("m/session/streamingnode-5", "{broken").put("m/session/streamingnodes", "{}");
    store.commit(txn.put("m/session/querynode-6", r#"{"ServerID":6}"#)).await.unwrap();
    let mut views = watch_sessions(
        Arc::new(mine.clone()),
        "m",
        SessionKeys::Shared("streamingnode"),
        Clock::system(),
        &Random::seeded(5),
    );
    let ids = |view: &SessionView| view.sessions.keys().copied().collect::<Vec<_>>();
    let first = views.next().await.unwrap().unwrap();
    assert_eq!(ids(&first), [1]);
    assert_eq!(first.sessions[&1], one.record());
    let two = node(&store, 2).await;
    let second = views.next().await.unwrap().unwrap();
    assert_eq!(ids(&second), [1, 2]);
    assert!(second.revision > first.revision);
    one.announce_stopping().await.unwrap();
    let stopping = views.next().await.unwrap().unwrap();
    assert!(stopping.sessions[&1].stopping && !stopping.sessions[&2].stopping);
    mine.set_reachable(false);
    assert!(views.next().await.unwrap().unwrap_err().is_retryable());
    one.revoke().await.unwrap();
    let old = r#"{"ServerID":9,"Version":"2.5.4"}"#;
    store.commit(Txn::new().put("m/session/streamingnode-9", old)).await.unwrap();
    mine.set_reachable(true);
    assert_eq!(ids(&views.next().await.unwrap().unwrap()), [2]);
    let last = views.next().await.unwrap().unwrap();
    assert_eq!(ids(&last), [2, 9]);
    assert_eq!(ids(&last.at_least(&first_streaming_version())), [2]);
    drop(two);
    assert_eq!(ids(&views.next().await.unwrap().unwrap()), [9]);
}

#[tokio::test(start_paused = true)]
async fn an_exclusive_view_holds_the_active_process_only() {
    let store = MemoryStore::new(Clock::system());
    store.set_reachable(false);
    let keys = SessionKeys::Exclusive("mixcoord");
    let mut views = watch_sessions(Arc::new(store.clone()), "m", keys, Clock::system(), &Random::seeded(5));
    assert!(views.next().await.unwrap().is_err(), "an outage at the start is told as well");
    store.set_reachable(true);
    assert!(views.next().await.unwrap().unwrap().sessions.is_empty());
    store.commit(Txn::new().put("m/session/mixcoord-4", r#"{"ServerID":4}"#)).await.unwrap();
    store.commit(Txn::new().put("m/session/mixcoord", r#"{"ServerID":3,"Address":"h:3"}"#)).await.unwrap();
    let view = views.next().await.unwrap().unwrap();
    assert_eq!(view.sessions.len(), 1);
    assert_eq!(view.sessions[&3].address, "h:3");
}

#[tokio::test]
async fn on_etcd_a_short_pause_is_unreachable_and_a_long_one_is_a_loss() {
    let etcd = Etcd::start().await;
    let mut settings = EtcdSettings::new([etcd.endpoint()]);
    settings.request_timeout = Duration::from_secs(1);
    let store = EtcdStore::connect(settings, Clock::system(), Random::seeded(5)).await.unwrap();
    let store: Arc<dyn MetadataStore> = Arc::new(store);
    let session = register(store.clone(), 1, Duration::from_secs(6)).await.unwrap();
    let mut state = session.state();
    etcd.stop();
    // Until a keep-alive fails: a third of the lease, and the time one call takes.
    state.changed().await.unwrap();
    assert!(matches!(*state.borrow_and_update(), SessionState::Unreachable { .. }));
    etcd.cont();
    state.changed().await.unwrap();
    assert_eq!(*state.borrow_and_update(), SessionState::Alive);
    assert!(store.get("m/session/streamingnode-1").await.unwrap().is_some());

    etcd.stop();
    Clock::system().sleep_until(session.valid_until() + Duration::from_secs(1)).await;
    assert!(matches!(*state.borrow_and_update(), SessionState::Unreachable { .. }));
    etcd.cont();
    Clock::system().timeout(Duration::from_secs(30), session.lost()).await.unwrap();
    assert!(store.get("m/session/streamingnode-1").await.unwrap().is_none());
}
