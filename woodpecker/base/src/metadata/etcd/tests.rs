use std::sync::Arc;

use futures::{FutureExt, StreamExt};
use test_peers::{Etcd, EtcdOptions};

use super::*;
use crate::metadata::{
    WatchEvent,
    conformance::{self, Subject},
};

fn settings(etcd: &Etcd) -> EtcdSettings {
    let mut settings = EtcdSettings::new([etcd.endpoint()]);
    settings.request_timeout = Duration::from_secs(2);
    settings.user = etcd.user().map(|(name, password)| EtcdUser { name, password });
    if etcd.endpoint().starts_with("https") {
        let client = Some((etcd.client_cert_file(), etcd.client_key_file()));
        settings.tls = Some(EtcdTls { ca_file: etcd.ca_file(), client });
    }
    settings
}

async fn connect(etcd: &Etcd) -> EtcdStore {
    EtcdStore::connect(settings(etcd), Clock::system(), Random::seeded(1)).await.unwrap()
}

async fn keeps_the_contract(options: EtcdOptions) {
    let etcd = Arc::new(Etcd::start_with(options).await);
    let store = Arc::new(connect(&etcd).await);
    let compact = Box::new(move |revision| {
        let etcd = etcd.clone();
        async move { etcd.compact(revision).await }.boxed()
    });
    conformance::all(&Subject { store, clock: Clock::system(), compact }).await;
}

fn app_user() -> Option<(String, String)> {
    Some(("app".to_owned(), "secret".to_owned()))
}

async fn put(store: &EtcdStore, key: &str, value: &str) -> Revision {
    match store.commit(Txn::new().put(key, value.to_owned())).await.unwrap() {
        TxnOutcome::Committed(revision) => revision,
        TxnOutcome::Conflict => panic!("nothing to conflict with"),
    }
}

/// The next event; the reports that the server is away, if they are expected, are counted.
async fn next(watch: &mut Watch, reports: &mut usize) -> WatchEvent {
    loop {
        match Clock::system().timeout(Duration::from_secs(30), watch.next()).await.unwrap().unwrap() {
            Ok(event) => return event,
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                *reports += 1;
            }
        }
    }
}

// On one thread, so that the store's calls have this test's recorder.
#[tokio::test]
async fn requests_are_timed_by_what_was_asked_and_how_it_ended() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let _here = metrics::set_default_local_recorder(&recorder);
    let etcd = Etcd::start().await;
    let store = connect(&etcd).await;
    put(&store, "a", "1").await;
    store.list("").await.unwrap();
    store.keep_alive(LeaseId(7)).await.unwrap_err();
    drop(etcd);
    store.get("a").await.unwrap_err();
    let page = recorder.handle().render();
    for (operation, outcome) in [("get", "ok"), ("commit", "ok"), ("list", "ok")] {
        let labels = format!("_count{{operation=\"{operation}\",outcome=\"{outcome}\"}} 1\n");
        assert!(page.contains(&labels), "{labels} in {page}");
    }
    let failed = page.lines().filter(|line| line.contains("_count{operation=\"get\"") && !line.contains("\"ok\""));
    assert_eq!(failed.count(), 1, "{page}");
}

#[tokio::test]
async fn the_contract_holds() {
    keeps_the_contract(EtcdOptions::default()).await;
}

#[tokio::test]
async fn the_contract_holds_with_tls_and_a_user() {
    keeps_the_contract(EtcdOptions { tls: true, user: app_user(), token_ttl: None }).await;
}

#[tokio::test]
async fn wrong_credentials_files_and_addresses_are_told_apart() {
    let etcd = Etcd::start_with(EtcdOptions { tls: true, user: app_user(), token_ttl: None }).await;
    let open = |settings| EtcdStore::connect(settings, Clock::system(), Random::seeded(1));
    let mut wrong = settings(&etcd);
    wrong.user = Some(EtcdUser { name: "app".to_owned(), password: "guess".to_owned() });
    let error = open(wrong).await.unwrap_err();
    assert!(matches!(error, MetadataError::Invalid(_)), "{error}");
    let mut missing = settings(&etcd);
    missing.tls = Some(EtcdTls { ca_file: "/no/such/file".into(), client: None });
    let error = open(missing).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/file") && !error.is_retryable(), "{error}");
    let mut stranger = settings(&etcd);
    stranger.tls = Some(EtcdTls { ca_file: etcd.ca_file(), client: None });
    let error = open(stranger).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    let error = open(EtcdSettings::new(Vec::<String>::new())).await.unwrap_err();
    assert!(matches!(error, MetadataError::Invalid(_)), "{error}");
}

#[tokio::test]
async fn an_expired_token_is_renewed() {
    let token_ttl = Some(Duration::from_secs(1));
    let etcd = Etcd::start_with(EtcdOptions { tls: false, user: app_user(), token_ttl }).await;
    let store = connect(&etcd).await;
    let first = put(&store, "key", "1").await;
    let lease = store.grant_lease(Duration::from_secs(60)).await.unwrap();
    let mut watch = store.watch("key", first).await.unwrap();
    Clock::system().sleep(Duration::from_secs(3)).await;
    let mut reports = 0;
    // The watch comes first, as nothing else has renewed the token yet.
    assert!(matches!(next(&mut watch, &mut reports).await, WatchEvent::Put(item) if item.value == "1"));
    Clock::system().sleep(Duration::from_secs(3)).await;
    assert_eq!(put(&store, "key", "2").await, first + 1);
    Clock::system().sleep(Duration::from_secs(3)).await;
    store.keep_alive(lease).await.unwrap();
    store.revoke_lease(lease).await.unwrap();
    assert!(matches!(next(&mut watch, &mut reports).await, WatchEvent::Put(item) if item.value == "2"));
    assert!(reports <= 1, "{reports} reports");
}

/// Acknowledged writes outlive the server's process, whose tokens do not, and a watch meets each of them once.
#[tokio::test]
async fn a_killed_server_loses_nothing_and_watches_go_on() {
    let mut etcd = Etcd::start_with(EtcdOptions { tls: false, user: app_user(), token_ttl: None }).await;
    let store = connect(&etcd).await;
    let first = put(&store, "k/0", "").await;
    let mut watch = store.watch("k/", first).await.unwrap();
    let mut reports = 0;
    let mut told = Vec::new();
    let mut acked = vec![first];
    for round in 0..3 {
        acked.push(put(&store, &format!("k/{round}"), "").await);
        if round == 1 {
            etcd.kill();
            let refused = store.commit(Txn::new().put("k/lost", "")).await.unwrap_err();
            assert!(refused.is_retryable() && refused.has_side_effects(), "{refused}");
            assert!(store.get("k/0").await.unwrap_err().is_retryable());
            etcd.restart().await;
            while store.get("k/0").await.is_err() {}
        }
    }
    let last = *acked.last().unwrap();
    while told.last() < Some(&last) {
        let WatchEvent::Put(item) = next(&mut watch, &mut reports).await else { panic!("nothing but puts") };
        told.push(item.mod_revision);
    }
    assert!(told.is_sorted_by(|a, b| a < b), "repeated or out of order: {told:?}");
    assert!(acked.iter().all(|revision| told.contains(revision)), "{acked:?} but {told:?}");

    // History that is compacted while the watch is cut off is replaced by the present.
    etcd.kill();
    etcd.restart().await;
    while store.get("k/0").await.is_err() {}
    put(&store, "k/1", "after").await;
    store.commit(Txn::new().delete("k/2")).await.unwrap();
    let present = store.list("k/").await.unwrap();
    etcd.compact(present.revision).await;
    let WatchEvent::Resync(snapshot) = next(&mut watch, &mut reports).await else { panic!("history is gone") };
    assert_eq!(snapshot.items, present.items);
    let revision = put(&store, "k/3", "").await;
    assert!(matches!(next(&mut watch, &mut reports).await, WatchEvent::Put(item) if item.mod_revision == revision));
    assert!(reports <= 4, "{reports} reports of two outages");
}

#[tokio::test]
async fn a_silent_server_is_unavailable_and_then_caught_up_with() {
    let etcd = Etcd::start().await;
    let store = connect(&etcd).await;
    let lease = store.grant_lease(Duration::from_secs(30)).await.unwrap();
    let first = put(&store, "k", "1").await;
    let mut watch = store.watch("k", first).await.unwrap();
    let mut reports = 0;
    assert!(matches!(next(&mut watch, &mut reports).await, WatchEvent::Put(item) if item.value == "1"));
    etcd.stop();
    let started = Clock::system().now();
    assert!(store.get("k").await.unwrap_err().is_retryable());
    assert!(store.keep_alive(lease).await.unwrap_err().is_retryable());
    let unknown = store.commit(Txn::new().put("k", "2")).await.unwrap_err();
    assert!(unknown.has_side_effects());
    let waited = Clock::system().now() - started;
    assert!(waited < Duration::from_secs(8), "three calls of two seconds took {waited:?}");
    etcd.cont();
    let second = put(&store, "k", "3").await;
    store.keep_alive(lease).await.unwrap();
    // The write of unknown outcome was in the server's socket: it may have taken effect, once.
    let mut told = Vec::new();
    while told.last().is_none_or(|(revision, _)| *revision < second) {
        let WatchEvent::Put(item) = next(&mut watch, &mut reports).await else { panic!("nothing but puts") };
        told.push((item.mod_revision, item.value));
    }
    let values: Vec<_> = told.iter().map(|(_, value)| value.as_ref()).collect();
    assert!(values == [&b"2"[..], b"3"] || values == [&b"3"[..]], "{values:?}");
}
