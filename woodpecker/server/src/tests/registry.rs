//! How a store is found.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::watch;
use woodpecker_base::{
    clock::Clock,
    metadata::{Call, Interfered, Interference, MetadataError, MetadataStore, Txn, TxnOutcome},
};

use super::harness::{Site, within};

const KEYS: &str = "by-dev/woodpecker/logstores/";

async fn record(site: &Site) -> Option<serde_json::Value> {
    let found = site.registry.list(KEYS).await.unwrap();
    found.items.first().map(|item| serde_json::from_slice(&item.value).unwrap())
}

async fn until(site: &Site, what: &str, holds: impl Fn(Option<&serde_json::Value>) -> bool) {
    let held = async {
        while !holds(record(site).await.as_ref()) {
            Clock::system().sleep(Duration::from_millis(10)).await;
        }
    };
    within(what, held).await;
}

#[tokio::test]
async fn a_store_registers_tells_news_and_leaves() {
    let mut site = Site::default();
    site.settings.zone = "z1".into();
    site.settings.registries.push("other/woodpecker".into());
    let running = site.start().await;
    let (id, address) = (running.store.id().to_owned(), running.address.clone());
    until(&site, "registering", |record| record.is_some()).await;
    let said = record(&site).await.unwrap();
    assert_eq!((said["id"].as_str(), said["address"].as_str()), (Some(id.as_str()), Some(address.as_str())));
    assert_eq!((said["zone"].as_str(), said["state"].as_str()), (Some("z1"), Some("active")));
    assert_eq!(site.registry.list("other/woodpecker/logstores/").await.unwrap().items.len(), 1);
    running.fill(&running.replica(1, 1), 1, 0, 1).await;
    running.store.decommission(false).await.unwrap();
    until(&site, "the news", |record| record.is_some_and(|record| record["state"] == "decommissioning")).await;
    running.stop().await;
    assert_eq!(record(&site).await, None);
}

/// Refuses a commit when it is told to.
#[derive(Debug, Default)]
struct Refusing(AtomicBool);

#[async_trait]
impl Interference for Refusing {
    async fn commit(&self, store: &dyn MetadataStore, txn: Txn) -> Result<TxnOutcome, MetadataError> {
        if self.0.swap(false, Ordering::Relaxed) {
            return Err(MetadataError::Unavailable("no room".to_owned()));
        }
        store.commit(txn).await
    }
}

#[tokio::test]
async fn news_that_could_not_be_committed_are_told_again() {
    let site = Site::default();
    let registry = Arc::new(Interfered::new(site.registry.clone(), Refusing::default()));
    let running = site.start_found_in(registry.clone()).await;
    until(&site, "registering", |record| record.is_some()).await;
    registry.by.0.store(true, Ordering::Relaxed);
    running.store.decommission(false).await.unwrap();
    let said = |record: Option<&serde_json::Value>| {
        record.is_some_and(|record| record["state"].as_str().is_some_and(|state| state.starts_with("decommission")))
    };
    until(&site, "the news", said).await;
    assert!(!registry.by.0.load(Ordering::Relaxed), "nothing was refused");
    running.stop().await;
}

#[tokio::test]
async fn a_store_that_lost_its_registration_serves_on_and_registers_anew() {
    let site = Site::default();
    let running = site.start().await;
    until(&site, "registering", |record| record.is_some()).await;
    let replica = running.replica(1, 1);
    let mut stream = running.stream().await;
    stream.send(&replica, 1, 0, 5).await;
    stream.durable(&replica, 5).await;
    site.registry.commit(Txn::new().delete_prefix(KEYS)).await.unwrap();
    stream.send(&replica, 1, 5, 9).await;
    stream.durable(&replica, 9).await;
    until(&site, "registering anew", |record| record.is_some()).await;
    running.stop().await;
}

/// Counts how often somebody looks who has a key.
#[derive(Debug, Default)]
struct Looked(watch::Sender<u32>);

#[async_trait]
impl Interference for Looked {
    async fn before(&self, call: Call) -> Result<(), MetadataError> {
        self.0.send_modify(|looks| *looks += u32::from(call == Call::Get));
        Ok(())
    }
}

#[tokio::test]
async fn a_restarted_store_takes_its_key_back_and_a_copy_of_it_does_not() {
    let site = Site::default();
    let running = site.start().await;
    until(&site, "registering", |record| record.is_some()).await;
    let said = record(&site).await.unwrap();
    let key = format!("{KEYS}{}", running.store.id());
    running.stop().await;

    // An earlier run at another address, which may be a copy that lives.
    let mut other = said.clone();
    other["address"] = "10.0.0.1:1".into();
    let lease = site.registry.grant_lease(Duration::from_secs(3_600)).await.unwrap();
    let text = serde_json::to_vec(&other).unwrap();
    site.registry.commit(Txn::new().put_leased(&key, text, lease)).await.unwrap();
    let registry = Arc::new(Interfered::new(site.registry.clone(), Looked::default()));
    let running = site.start_found_in(registry.clone()).await;
    // Who looks again did not get it the first time.
    within("attempts", registry.by.0.subscribe().wait_for(|looks| *looks > 2)).await.unwrap();
    assert_eq!(record(&site).await.unwrap()["address"], "10.0.0.1:1");
    running.fill(&running.replica(1, 1), 1, 0, 1).await;
    site.registry.revoke_lease(lease).await.unwrap();
    let address = running.address.clone();
    until(&site, "registering", |record| record.is_some_and(|record| record["address"] == address.as_str())).await;
    running.stop().await;
}

#[tokio::test]
async fn health_and_reflection_answer() {
    let running = Site::default().start().await;
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", running.address)).unwrap();
    let channel = channel.connect().await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let service = "woodpecker.logstore.v1.LogStore".to_owned();
    let answer = health.check(tonic_health::pb::HealthCheckRequest { service }).await.unwrap().into_inner();
    assert_eq!(answer.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);
    drop(health);
    running.stop().await;
}
