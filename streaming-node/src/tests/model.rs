//! Many writers and readers on several pchannels over several terms, with a write-ahead buffer so small that readers keep
//! moving between it and the log.

use std::{collections::BTreeMap, time::Duration};

use streaming_proto::streaming::ProduceMessageResponseResult;
use streaming_types::{DeliverFilter, DeliverPolicy, MessageId, PChannel, TimeTick};

use super::harness::{Consume, TestNode, World, id, insert, text};
use crate::Settings;

const PCHANNELS: usize = 3;
const TERMS: i64 = 3;
const WRITERS: usize = 5;
const MESSAGES: usize = 200;

type Written = BTreeMap<u64, (MessageId, MessageId, String)>;

fn pchannel(index: usize, term: i64) -> PChannel {
    PChannel::read_write(format!("by-dev-rootcoord-dml_{index}"), term).unwrap()
}

/// Appends from several producers at a time, with several requests in flight each.
async fn write(node: &TestNode, index: usize, term: i64) -> Written {
    let writers = (0..WRITERS).map(async |writer| {
        let mut produce = node.producer(&pchannel(index, term)).await;
        let mut written = Written::new();
        let sizes = fastrand::Rng::with_seed(u64::try_from(writer).unwrap());
        let mut sizes = sizes;
        let mut sent = BTreeMap::new();
        for n in 0..MESSAGES {
            let payload = format!("{term}/{writer}/{n} {}", "x".repeat(sizes.usize(0..200)));
            let vchannel = format!("by-dev-rootcoord-dml_{index}_{}v0", n % 3);
            sent.insert(produce.send(insert(&vchannel, &payload)).await, payload);
            if sent.len() == 16 {
                collect(&mut produce, &mut sent, &mut written).await;
            }
        }
        collect(&mut produce, &mut sent, &mut written).await;
        written
    });
    let mut all = Written::new();
    for written in futures::future::join_all(writers).await {
        for (tick, message) in written {
            assert!(all.insert(tick, message).is_none(), "tick {tick} twice");
        }
    }
    all
}

async fn collect(produce: &mut super::harness::Produce, sent: &mut BTreeMap<i64, String>, written: &mut Written) {
    while !sent.is_empty() {
        let (request_id, result) = produce.answer().await;
        let result: ProduceMessageResponseResult = result.unwrap();
        let confirmed = MessageId::from_proto(result.last_confirmed_id.as_ref()).unwrap();
        written.insert(result.timetick, (id(&result), confirmed, sent.remove(&request_id).unwrap()));
    }
}

/// Reads `count` messages with random pauses; ticks rise strictly, markers included.
async fn read(world: &World, consume: &mut Consume, count: usize, seed: u64) -> Vec<(u64, MessageId, String)> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut last, mut messages) = (0, Vec::new());
    while messages.len() < count {
        let message = consume.any().await;
        let tick = message.time_tick().unwrap().0;
        assert!(tick > last, "ticks rise strictly: {last} {tick}");
        last = tick;
        if message.properties.vchannel().is_some() {
            messages.push((tick, message.id, text(&message)));
        }
        if rng.u32(..400) == 0 {
            world.clock.sleep(Duration::from_millis(rng.u64(5..60))).await;
        }
    }
    messages
}

async fn one_pchannel(world: &World, nodes: &[TestNode; 2], index: usize) {
    let mut all = Written::new();
    for term in 1..=TERMS {
        let node = &nodes[usize::try_from(term).unwrap() % 2];
        node.assign(&pchannel(index, term)).await.unwrap();
        let total = all.len() + WRITERS * MESSAGES;
        let reader = async |seed| {
            let mut consume = node.consumer(&pchannel(index, term), DeliverPolicy::All, &[]).await;
            read(world, &mut consume, total, seed).await
        };
        let (written, first, second) = futures::join!(write(node, index, term), reader(1), reader(2));
        all.extend(written);
        let expected: Vec<_> = all.iter().map(|(tick, (id, _, payload))| (*tick, *id, payload.clone())).collect();
        assert!(first == expected, "pchannel {index} term {term}: the first reader differs");
        assert!(second == expected, "pchannel {index} term {term}: the second reader differs");
    }
    let node = &nodes[usize::try_from(TERMS).unwrap() % 2];
    let expected: Vec<_> = all.iter().map(|(tick, (id, _, payload))| (*tick, *id, payload.clone())).collect();
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..5 {
        let from = rng.usize(..expected.len());
        let (tick, confirmed) = all.iter().nth(from).map(|(tick, (_, confirmed, _))| (*tick, *confirmed)).unwrap();
        let filter = DeliverFilter::TimeTickAtLeast(TimeTick(tick));
        let policy = DeliverPolicy::StartFrom(confirmed);
        let mut consume = node.consumer(&pchannel(index, TERMS), policy, &[filter]).await;
        let resumed = read(world, &mut consume, expected.len() - from, 3).await;
        assert!(resumed == expected[from..], "resuming from message {from} of pchannel {index}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_reader_sees_exactly_what_was_appended_in_tick_order() {
    let world = World::new();
    let settings = Settings {
        buffer_bytes: 10 << 10,
        buffer_age: Duration::from_millis(500),
        heartbeat: Duration::from_millis(50),
        ..Settings::default()
    };
    let nodes = [world.node_with(1, settings.clone()).await, world.node_with(2, settings).await];
    let pchannels = (0..PCHANNELS).map(|index| one_pchannel(&world, &nodes, index));
    futures::future::join_all(pchannels).await;
}
