//! What fails and ends, and what meets it: volumes, facts, releases.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use streaming_proto::logstore::{Code, DescribeRequest, ReleaseRequest, Replica, State};
use tokio::sync::{Semaphore, watch};
use woodpecker_base::{
    clock::Clock,
    disk::Space,
    metadata::{Interfered, Interference, MetadataError, MetadataStore, Txn, TxnOutcome},
};

use super::{
    disk::ValveDisk,
    fence::try_fence,
    harness::{Running, Site, entry, refusal, within},
    read::{expect, open, read, request},
};
use crate::Watermarks;

const ROOMY: Space = Space { total: 100 << 30, free: 50 << 30 };

/// Commits of the facts wait for a permit, or fail.
#[derive(Debug, Clone)]
struct Valve(Arc<Facts>);

#[derive(Debug)]
struct Facts {
    permits: Semaphore,
    /// Whether a commit waits.
    waits: watch::Sender<bool>,
    broken: AtomicBool,
}

#[async_trait]
impl Interference for Valve {
    async fn commit(&self, store: &dyn MetadataStore, txn: Txn) -> Result<TxnOutcome, MetadataError> {
        self.0.waits.send_replace(true);
        self.0.permits.acquire().await.unwrap().forget();
        self.0.waits.send_replace(false);
        if self.0.broken.load(Ordering::Relaxed) {
            return Err(MetadataError::Unavailable("an I/O error".to_owned()));
        }
        store.commit(txn).await
    }
}

impl Valve {
    fn new() -> Self {
        let permits = Semaphore::new(Semaphore::MAX_PERMITS / 4);
        Self(Arc::new(Facts { permits, waits: watch::Sender::default(), broken: AtomicBool::default() }))
    }

    async fn start(&self, site: &Site) -> Running {
        site.start_with(site.registry.clone(), |facts| Arc::new(Interfered::new(facts, self.clone()))).await
    }

    fn close(&self) {
        self.0.permits.forget_permits(Semaphore::MAX_PERMITS);
    }

    fn pass_one(&self) {
        self.0.permits.add_permits(1);
    }

    fn open(&self) {
        self.0.permits.add_permits(Semaphore::MAX_PERMITS / 4);
    }

    async fn until_a_commit_waits(&self) {
        within("a commit", self.0.waits.subscribe().wait_for(|waits| *waits)).await.unwrap();
    }
}

/// A site on a disk with room, that is looked at often.
fn site(disk: &ValveDisk) -> Site {
    let mut site = Site::on(Arc::new(disk.clone()));
    site.settings.watermarks = Watermarks::default();
    site.settings.disk_interval = Duration::from_millis(5);
    disk.set_space(ROOMY);
    site
}

/// The volume fails for want of room under an append to `replica`, and there is room again.
async fn fail_and_recover(running: &Running, disk: &ValveDisk, replica: &Replica, held: u64) {
    let mut stream = running.stream().await;
    disk.fill_up();
    stream.send(replica, 1, held, held + 2).await;
    assert_eq!(stream.refusal().await.code(), Code::Failed);
    running.until_state(State::ReadOnly).await;
    disk.make_room(ROOMY);
    running.until_state(State::Active).await;
}

async fn release(running: &Running, replica: &Replica) {
    let request = ReleaseRequest { replica: Some(replica.clone()) };
    within("a release", running.client.clone().release(request)).await.unwrap();
}

#[tokio::test]
async fn a_follower_goes_on_in_the_volume_after_one_that_failed() {
    let disk = ValveDisk::default();
    let running = site(&disk).start().await;
    let replica = running.replica(1, 1);
    running.fill(&replica, 1, 0, 3).await;
    let mut follower = open(&running, request(&replica, 0, 6, true)).await;
    expect(&mut follower, &replica, 0, 3).await;
    fail_and_recover(&running, &disk, &replica, 3).await;
    running.fill(&replica, 1, 3, 6).await;
    expect(&mut follower, &replica, 3, 6).await;
    running.stop().await;
}

#[tokio::test]
async fn a_replica_that_is_opened_while_its_volume_fails_is_opened_in_the_next() {
    let (disk, facts) = (ValveDisk::default(), Valve::new());
    let running = facts.start(&site(&disk)).await;
    let [known, first, second] = [9, 1, 2].map(|log| running.replica(log, 1));
    try_fence(&running, &known, 1).await.unwrap();
    facts.close();
    let [mut one, mut other] = [running.stream().await, running.stream().await];
    one.send(&first, 1, 0, 1).await;
    facts.until_a_commit_waits().await;
    other.send(&second, 1, 0, 1).await;
    // It has its writer, and waits until the volume is written down.
    running.until_in_flight(2).await;
    facts.pass_one();
    one.durable(&first, 1).await;
    fail_and_recover(&running, &disk, &first, 1).await;
    facts.open();
    assert_eq!(other.refusal().await.code(), Code::Failed);
    running.fill(&second, 1, 0, 3).await;
    let all: Vec<_> = (0..3).map(|number| entry(&second, number)).collect();
    assert_eq!(read(&running, &second, 0, 3).await, all);
    running.stop().await;
}

#[tokio::test]
async fn what_is_released_while_it_is_opened_counts_against_no_quota() {
    let (disk, facts) = (ValveDisk::default(), Valve::new());
    let running = facts.start(&site(&disk)).await;
    let [known, replica] = [9, 1].map(|log| running.replica(log, 1));
    try_fence(&running, &known, 1).await.unwrap();
    facts.close();
    let mut stream = running.stream().await;
    stream.send(&replica, 1, 0, 1).await;
    facts.until_a_commit_waits().await;
    let released = async {
        let request = DescribeRequest { replica: Some(replica.clone()) };
        while !running.client.clone().describe(request.clone()).await.unwrap().into_inner().released {
            Clock::system().sleep(Duration::from_millis(2)).await;
        }
        facts.open();
    };
    tokio::join!(release(&running, &replica), within("releasing", released));
    assert_eq!(stream.refusal().await.code(), Code::Released);
    assert_eq!(running.store.namespaces()[0].logs, 0);
    running.stop().await;
}

#[tokio::test]
async fn a_read_that_meets_a_release_is_told_of_it_and_not_of_damage() {
    let disk = ValveDisk::default();
    let mut site = site(&disk);
    site.settings.disk_interval = Duration::from_secs(3_600);
    let running = site.start().await;
    let replica = running.replica(1, 1);
    running.fill(&replica, 1, 0, 5).await;
    running.stop().await;
    // Of an earlier run's volume the files go at once.
    let running = site.start().await;
    let (asked, go_on) = disk.hold_next_work();
    let mut answers = open(&running, request(&replica, 0, 5, false)).await;
    within("a read of the disk", asked).await.unwrap();
    release(&running, &replica).await;
    go_on.send(()).unwrap();
    let status = within("the end", answers.message()).await.unwrap_err();
    assert_eq!(refusal(&status).code(), Code::Released, "{status}");
    running.stop().await;
}

#[tokio::test]
async fn a_fence_that_waits_for_the_disk_is_told_of_a_release() {
    let disk = ValveDisk::default();
    let running = site(&disk).start().await;
    let replica = running.replica(1, 1);
    let mut stream = running.stream().await;
    stream.send(&replica, 1, 0, 1).await;
    stream.durable(&replica, 1).await;
    disk.close();
    stream.send(&replica, 1, 1, 5).await;
    running.until_in_flight(1).await;
    let released = async {
        assert_eq!(stream.refusal().await.code(), Code::Fenced);
        release(&running, &replica).await;
    };
    let (fenced, ()) = tokio::join!(try_fence(&running, &replica, 2), released);
    assert_eq!(refusal(&fenced.unwrap_err()).code(), Code::Released);
    disk.open();
    running.stop().await;
}

/// Whoever is the first to notice, and until they can be written again.
#[tokio::test]
async fn a_store_whose_facts_cannot_be_written_says_so_and_goes_on_when_they_can() {
    let (disk, facts) = (ValveDisk::default(), Valve::new());
    let running = facts.start(&site(&disk)).await;
    let replica = running.replica(1, 1);
    facts.0.broken.store(true, Ordering::Relaxed);
    let mut stream = running.stream().await;
    stream.send(&replica, 1, 0, 3).await;
    assert_eq!(stream.refusal().await.code(), Code::Failed);
    running.until_state(State::ReadOnly).await;
    let said = running.store.failure().unwrap();
    assert!(said.contains("its facts cannot be written") && said.contains("an I/O error"), "{said}");
    let status = try_fence(&running, &replica, 2).await.unwrap_err();
    assert_eq!(refusal(&status).code(), Code::Failed);
    facts.0.broken.store(false, Ordering::Relaxed);
    running.until_state(State::Active).await;
    assert_eq!(running.store.failure(), None);
    try_fence(&running, &replica, 2).await.unwrap();
    running.fill(&replica, 2, 0, 3).await;
    running.stop().await;
}
