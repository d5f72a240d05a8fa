//! A network that delays, loses and blinks, between a process and its object store and metadata store: it costs time,
//! and nothing else. No append, open, roll or read ends with an error, the writer stays the one that was opened, and
//! everything is read back as it was written, in order.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use futures::{TryStreamExt, future::join_all};
use object_store::path::Path;
use test_peers::s3::{Fault, Faults, Op};
use woodpecker::EntryId;
use woodpecker_base::{
    clock::Clock,
    metadata::{Call, Interference, MetadataError, MetadataStore, Txn, TxnOutcome},
};

use crate::world::{Process, World, append_all, payload, read_all, soon};

const ROUNDS: usize = 24;
const MOST_ROUNDS: usize = 1_000;
const PAUSE: Duration = Duration::from_millis(5);
const AT_ONCE: usize = 8;
const DELAY: Duration = Duration::from_millis(20);
const BLINK: Duration = Duration::from_secs(2);

/// Such a network before the metadata store.
#[derive(Debug)]
struct Rough {
    delay: Duration,
    /// Of so many calls one is lost: a commit after it was done, a read before. 0 is none.
    lose_one_in: u64,
    calls: AtomicU64,
    /// Calls until the network is gone for good.
    left: AtomicI64,
}

impl Rough {
    fn new() -> Self {
        let left = AtomicI64::new(i64::MAX);
        Self { delay: Duration::ZERO, lose_one_in: 0, calls: AtomicU64::new(0), left }
    }

    /// Lets a call through; whether its answer comes back.
    async fn pass(&self) -> Result<bool, MetadataError> {
        if self.left.fetch_sub(1, Ordering::Relaxed) <= 0 {
            return Err(lost());
        }
        if !self.delay.is_zero() {
            Clock::system().sleep(self.delay).await;
        }
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(self.lose_one_in == 0 || !call.is_multiple_of(self.lose_one_in))
    }

    /// A process behind it.
    async fn process(self, world: &World) -> Process {
        world.process_behind(self).await.0
    }
}

fn lost() -> MetadataError {
    MetadataError::Unavailable("lost on the way".to_owned())
}

#[async_trait]
impl Interference for Rough {
    async fn before(&self, call: Call) -> Result<(), MetadataError> {
        let read = matches!(call, Call::Get | Call::List);
        if !read || self.pass().await? { Ok(()) } else { Err(lost()) }
    }

    async fn commit(&self, store: &dyn MetadataStore, txn: Txn) -> Result<TxnOutcome, MetadataError> {
        let answered = self.pass().await?;
        let outcome = store.commit(txn).await?;
        if answered { Ok(outcome) } else { Err(lost()) }
    }
}

fn slow(faults: &Faults) {
    // Not all alike, so that answers overtake one another.
    for (op, times) in Op::ALL.into_iter().zip([2, 1, 1, 2, 1, 1]) {
        faults.delay(op, DELAY * times);
    }
}

/// One request in ten is lost, half of them after it was done.
fn lossy(faults: &Faults) {
    for op in Op::ALL {
        faults.chance(op, 0.05, Fault::LoseAnswer);
        faults.chance(op, 0.05, Fault::Refuse(500));
    }
}

/// Writes through such weather while it rolls, is sealed and read; `blink` is all that is unreachable for a while.
async fn endure(objects: fn(&Faults), metadata: impl FnOnce(&mut Rough), blink: Option<(bool, bool)>) {
    let (mut world, s3) = World::bucket().await;
    world.segment_bytes = 300;
    let world = world;
    let mut rough = Rough::new();
    metadata(&mut rough);
    let process = rough.process(&world).await;
    s3.faults().seed(7);
    objects(s3.faults());

    let log = process.log("log").await;
    let writer = soon("open", log.open_writer()).await.unwrap();
    let mut written: Vec<(EntryId, String)> = Vec::new();
    // Appends wait for no roll, so it may take a few more of them until it has rolled.
    let has_rolled = |written: &[(EntryId, String)]| written.last().is_some_and(|(id, _)| id.segment > 2);
    for round in 0..MOST_ROUNDS {
        if round >= ROUNDS && has_rolled(&written) {
            break;
        }
        if round == 4
            && let Some((objects, metadata)) = blink
        {
            let (faults, connection) = (s3.faults().clone(), process.metadata.clone());
            Op::ALL.iter().filter(|_| objects).for_each(|op| faults.chance(*op, 1.0, Fault::Refuse(503)));
            connection.set_reachable(!metadata);
            process.tasks.spawn(async move {
                Clock::system().sleep(BLINK).await;
                faults.clear();
                connection.set_reachable(true);
            });
        }
        let texts: Vec<_> = (0..AT_ONCE).map(|number| format!("{round}-{number}")).collect();
        let appends = join_all(texts.iter().map(|text| writer.append(vec![payload(text)])));
        let appended = soon("appends", appends).await;
        written.extend(appended.into_iter().map(|appended| appended.expect("no append fails").first).zip(texts));
        Clock::system().sleep(PAUSE).await;
    }
    assert!(has_rolled(&written), "it rolls: {:?}", written.last());
    assert_eq!(read_all(&log).await, written);
    let in_the_weather = process.maintain().await;
    soon("close", writer.close()).await.unwrap();
    assert_eq!(read_all(&log).await, written);

    s3.faults().clear();
    let other = world.process().await;
    let afterwards = other.maintain().await;
    assert!(in_the_weather.sealed + afterwards.sealed > 1, "{in_the_weather:?}, {afterwards:?}");
    assert_eq!(afterwards.failed, 0);
    assert_eq!(read_all(&other.log("log").await).await, written);
}

#[tokio::test]
async fn slow_object_storage_costs_time_and_nothing_else() {
    endure(slow, |_| (), None).await;
}

#[tokio::test]
async fn object_storage_that_loses_requests_costs_time_and_nothing_else() {
    endure(lossy, |_| (), None).await;
}

#[tokio::test]
async fn a_slow_metadata_store_costs_time_and_nothing_else() {
    endure(|_| (), |metadata| metadata.delay = DELAY, None).await;
}

#[tokio::test]
async fn a_process_on_a_slow_network_loses_time_and_nothing_else() {
    endure(slow, |metadata| metadata.delay = DELAY, None).await;
}

#[tokio::test]
async fn a_process_on_a_lossy_network_loses_time_and_nothing_else() {
    endure(lossy, |metadata| metadata.lose_one_in = 10, None).await;
}

#[tokio::test]
async fn object_storage_that_is_away_for_seconds_costs_them_and_nothing_else() {
    endure(|_| (), |_| (), Some((true, false))).await;
}

#[tokio::test]
async fn a_metadata_store_that_is_away_for_seconds_costs_them_and_nothing_else() {
    endure(|_| (), |_| (), Some((false, true))).await;
}

async fn at_the_end_of_its_network(world: &World, calls: i64) -> Process {
    let rough = Rough { left: AtomicI64::new(calls), ..Rough::new() };
    rough.process(world).await
}

/// Time is paused, so that patience is over at once.
#[tokio::test(start_paused = true)]
async fn a_delete_that_cannot_reach_its_records_is_no_success_and_the_next_one_finishes_it() {
    let mut failed = 0;
    for calls in 0.. {
        let mut world = World::memory().await;
        world.segment_bytes = 100;
        let process = world.process().await;
        let writer = process.log("log").await.open_writer().await.unwrap();
        append_all(&writer, "entry", 40).await;
        writer.close().await.unwrap();
        assert!(process.maintain().await.sealed > 1);

        let doomed = at_the_end_of_its_network(&world, calls).await;
        let deleted = doomed.client.delete_log("log").await;
        if let Err(error) = &deleted {
            failed += 1;
            assert!(error.is_retryable(), "after {calls} calls: {error}");
            process.client.delete_log("log").await.unwrap_or_else(|error| panic!("after {calls} calls: {error}"));
        }
        assert_eq!(process.client.list_logs("").await.unwrap(), [""; 0]);
        let left: Vec<_> = world.objects.list(Some(&Path::from("sealed"))).try_collect().await.unwrap();
        assert!(left.is_empty(), "after {calls} calls: {left:?}");
        if deleted.is_ok() {
            break;
        }
    }
    assert!(failed > 3, "{failed} failures were tried");
}
