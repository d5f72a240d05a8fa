//! Storage that takes an append and never says what became of it.

use std::{sync::Weak, time::Duration};

use streaming_types::{DeliverPolicy, StreamingError, message::check_produced};
use tokio::sync::mpsc;
use woodpecker_base::tasks::Tasks;

use super::{
    harness::{PCHANNEL, VCHANNEL, World, rw},
    parts::{delete, keyed},
};
use crate::{
    Settings,
    wal::{
        Wal,
        group::{Append, Placed, Reply, samples::asked},
        scanner::ScanOptions,
    },
};

async fn append(world: &World, wal: &Wal) -> Result<Placed, StreamingError> {
    let message = keyed(delete(VCHANNEL, "x", None), "key");
    let produced = check_produced(&message, PCHANNEL, usize::MAX).unwrap();
    let appends = wal.appends().unwrap();
    let charge = appends.clone().charge(message.size()).await.unwrap();
    let (sender, mut answers) = mpsc::channel(1);
    appends.submit(Append::new(message, &produced, charge, Reply::new(PCHANNEL.into(), asked(1, 1), sender)));
    world.clock.timeout(Duration::from_secs(10), answers.recv()).await.expect("an answer in time").unwrap().result
}

fn impatient() -> Settings {
    Settings {
        append_timeout: Duration::from_secs(1),
        heartbeat: Duration::from_millis(20),
        close_timeout: Duration::from_secs(2),
        ..Settings::default()
    }
}

fn everything(policy: DeliverPolicy) -> ScanOptions {
    ScanOptions { vchannel: String::new(), policy, filters: Vec::new(), ignores_pause: false }
}

#[tokio::test]
async fn stuck_append_ends_the_wal_in_bounded_time_and_is_appended_once_by_the_next_owner() {
    let (world, tasks) = (World::new(), Tasks::new());
    let opener = world.opener(impatient(), &tasks, &tasks);
    let wal = opener.open(&rw(1), 1).await.unwrap();
    world.hung.send_replace(true);
    assert_eq!(append(&world, &wal).await, Err(StreamingError::channel_fenced(PCHANNEL)));
    assert!(wal.ended().is_cancelled(), "so that the coordinator finds another owner");
    assert_eq!(wal.read_point(VCHANNEL), None);
    let closing = world.clock.timeout(Duration::from_secs(10), wal.close());
    closing.await.expect("what is stuck is not waited for");

    world.hung.send_replace(false);
    let wal = opener.open(&rw(2), 1).await.unwrap();
    let placed = append(&world, &wal).await.unwrap();
    assert_eq!(append(&world, &wal).await, Ok(placed));
    let mut scanner = wal.scanner(everything(DeliverPolicy::All));
    let mut ids = Vec::new();
    while ids.last() != Some(&placed.id) {
        let messages = scanner.next().await.unwrap();
        ids.extend(messages.iter().filter(|stored| stored.message.payload == "x").map(|stored| stored.message.id));
    }
    assert_eq!(ids, [placed.id]);
    tasks.stop();
}

#[tokio::test]
async fn log_has_as_long_for_the_tick_of_an_idle_wal_as_for_any_append() {
    let (world, tasks) = (World::new(), Tasks::new());
    let limit = impatient().append_timeout;
    let opener = world.opener(impatient(), &tasks, &tasks);
    let wal = opener.open(&rw(1), 1).await.unwrap();
    let _follower = wal.scanner(everything(DeliverPolicy::Latest));
    world.clock.sleep(limit * 2).await;
    assert!(!wal.ended().is_cancelled(), "nothing waits");

    world.hung.send_replace(true);
    let began = world.clock.now();
    // As when the lease has run out unheard: now each tick goes to the log, which says whose it is.
    opener.tenure.rest_on(Weak::new());
    world.clock.timeout(Duration::from_secs(10), wal.ended().cancelled()).await.expect("the end in bounded time");
    let waited = world.clock.now() - began;
    assert!(waited >= limit, "{waited:?}");
    tasks.stop();
}
