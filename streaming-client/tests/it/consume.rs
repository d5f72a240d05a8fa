//! Reading: order, resumption, back-pressure, malformed servers.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use streaming_client::{ConsumeError, ConsumeOptions, Consumer, Delivery};
use streaming_proto::streaming::DeliverPolicy as WirePolicy;
use streaming_types::{DeliverFilter, DeliverPolicy, MessageId, MessageType, StreamingError, TimeTick};
use woodpecker_base::{clock::Clock, random::Random};

use crate::fake::{CHANNEL, Cluster, Node, OnOpen, VCHANNEL, channel, eventually, message, soon, text};

fn all(cluster: &Cluster) -> Consumer {
    cluster.client().consume(ConsumeOptions::new(CHANNEL, DeliverPolicy::All)).unwrap()
}

fn payload(delivery: &Delivery) -> String {
    match delivery {
        Delivery::Message(message) => String::from_utf8(message.payload.to_vec()).unwrap(),
        Delivery::Txn(txn) => {
            let bodies = txn.bodies.iter().map(|body| String::from_utf8_lossy(&body.payload).into_owned());
            format!("txn of {}", bodies.collect::<Vec<_>>().join(", "))
        }
        Delivery::TimeTick { time_tick, .. } => format!("tick {time_tick}"),
    }
}

async fn read(consumer: &mut Consumer, count: usize) -> Vec<String> {
    let mut payloads = Vec::new();
    for _ in 0..count {
        payloads.push(payload(&soon(consumer.next()).await.unwrap()));
    }
    payloads
}

fn texts(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(text).collect()
}

#[tokio::test]
async fn messages_come_in_order_without_ticks_unless_asked_for() {
    let cluster = Cluster::start().await;
    for number in 0..5 {
        cluster.wal.append(message(text(number)));
    }
    cluster.wal.tick();
    let mut consumer = all(&cluster);
    assert_eq!(read(&mut consumer, 5).await, texts(0..5));
    assert_eq!(consumer.progress(), Some(TimeTick(140)));

    let options = ConsumeOptions { time_ticks: true, ..ConsumeOptions::new(CHANNEL, DeliverPolicy::All) };
    let mut with_ticks = cluster.client().consume(options).unwrap();
    assert_eq!(read(&mut with_ticks, 6).await[5], "tick 150");
    cluster.wal.append(message(text(5)));
    assert_eq!(read(&mut consumer, 1).await, texts(5..6), "the tick before is hidden");
    assert_eq!(cluster.node.seen(|seen| seen.metadata[0].clone()), (Some("by-dev".into()), Some("10".into())));
}

#[tokio::test]
async fn a_vchannel_and_its_filters_are_asked_for() {
    let cluster = Cluster::start().await;
    cluster.wal.append(message("ours"));
    let mut other = message("other");
    other.properties.set_vchannel("by-dev-rootcoord-dml_0_2v0");
    cluster.wal.append(other);
    cluster.wal.append(message("ours too"));
    let filters =
        vec![DeliverFilter::message_types([MessageType::Insert]), DeliverFilter::TimeTickAtLeast(TimeTick(101))];
    let options = ConsumeOptions { filters, ..ConsumeOptions::new(VCHANNEL, DeliverPolicy::All) };
    let mut consumer = cluster.client().consume(options).unwrap();
    assert_eq!(read(&mut consumer, 1).await, ["ours too"]);
    assert_eq!(cluster.node.seen(|seen| seen.consumers[0].vchannel.clone()), VCHANNEL);
    let nothing = cluster.client().consume(ConsumeOptions::new("", DeliverPolicy::All));
    assert!(matches!(nothing, Err(ConsumeError::InvalidRequest(_))));
}

#[tokio::test]
async fn every_message_comes_once_and_in_order_through_random_breaks() {
    for seed in 0..8 {
        let cluster = Cluster::start().await;
        let mut rng = Random::seeded(seed).fork();
        let mut expected = Vec::new();
        for number in 0..300 {
            match rng.u32(0..10) {
                0 => cluster.wal.tick(),
                1 => {
                    let bodies = rng.usize(1..4);
                    let bodies: Vec<_> = (0..bodies).map(|body| format!("{number}.{body}")).collect();
                    expected.push(format!("txn of {}", bodies.join(", ")));
                    cluster.wal.txn(number, bodies.into_iter().map(message).collect());
                }
                _ => {
                    expected.push(number.to_string());
                    cluster.wal.append(message(number.to_string()));
                }
            }
        }
        let mut rng = Random::seeded(seed).fork();
        cluster.node.on_consume(move |_| rng.u32(0..25) == 0);
        let client = cluster.client_with(|settings| {
            settings.timeouts.backoff_min = Duration::from_millis(1);
            settings.timeouts.backoff_max = Duration::from_millis(5);
        });
        let mut consumer = client.consume(ConsumeOptions::new(CHANNEL, DeliverPolicy::All)).unwrap();
        assert_eq!(read(&mut consumer, expected.len()).await, expected, "seed {seed}");
        assert!(cluster.node.seen(|seen| seen.consume_opened) > 3, "it did break");
    }
}

#[tokio::test]
async fn resumption_asks_for_what_follows_the_last_delivery() {
    let cluster = Cluster::start().await;
    for number in 0..5 {
        cluster.wal.append(message(text(number)));
    }
    let mut breaks = 1;
    cluster.node.on_consume(move |message| message.id.entry == 3 && std::mem::take(&mut breaks) > 0);
    assert_eq!(read(&mut all(&cluster), 5).await, texts(0..5));
    let second = cluster.node.seen(|seen| seen.consumers[1].clone());
    // The third message has time tick 120 and last confirmed id 1/0.
    let policy: WirePolicy = DeliverPolicy::StartFrom(MessageId::new(1, 0)).to_proto();
    assert_eq!(second.deliver_policy, Some(policy));
    assert_eq!(second.deliver_filters, [DeliverFilter::TimeTickGreaterThan(TimeTick(120)).to_proto()]);
}

#[tokio::test]
async fn death_of_the_node_is_survived_at_the_next_owner() {
    let mut cluster = Cluster::start().await;
    let second = Node::start(11, cluster.wal.clone()).await;
    for number in 0..10 {
        cluster.wal.append(message(text(number)));
    }
    let mut consumer = all(&cluster);
    assert_eq!(read(&mut consumer, 10).await, texts(0..10));
    cluster.node.kill();
    cluster.wal.append(message(text(10)));
    cluster.coordinator.assign(&[(&second, &[channel(2)])]);
    assert_eq!(read(&mut consumer, 1).await, texts(10..11));
}

#[tokio::test]
async fn stream_is_left_when_the_channel_gets_a_new_owner() {
    let cluster = Cluster::start().await;
    let second = Node::start(11, cluster.wal.clone()).await;
    cluster.wal.append(message(text(0)));
    let mut consumer = all(&cluster);
    assert_eq!(read(&mut consumer, 1).await, texts(0..1));
    cluster.coordinator.assign(&[(&cluster.node, &[]), (&second, &[channel(2)])]);
    let (next, ()) = tokio::join!(read(&mut consumer, 1), async {
        eventually("moved", || second.seen(|seen| seen.consumers.len()) == 1).await;
        cluster.wal.append(message(text(1)));
    });
    assert_eq!(next, texts(1..2));
    assert_eq!(second.seen(|seen| seen.terms.clone()), [2]);
}

#[tokio::test]
async fn reader_that_does_not_read_holds_back_the_node_and_nobody_else() {
    const SIZE: usize = 128 << 10;
    const COUNT: usize = 120;
    let cluster = Cluster::start().await;
    for _ in 0..COUNT {
        cluster.wal.append(message(vec![b'x'; SIZE]));
    }
    let client = cluster.client();
    let open = || client.consume(ConsumeOptions::new(CHANNEL, DeliverPolicy::All)).unwrap();
    let mut idle: Vec<Consumer> = (0..6).map(|_| open()).collect();
    for consumer in &mut idle {
        soon(consumer.next()).await.unwrap();
    }
    Clock::system().sleep(Duration::from_millis(300)).await;
    // A stream window of 1 MiB, one message each in the server's channel, encoder and the client's decoder.
    let held = cluster.node.seen(|seen| seen.delivered) * SIZE / idle.len();
    assert!(held < 3 << 20, "{held} bytes left the node for a reader that took one message");

    let mut reader = open();
    for _ in 0..COUNT {
        soon(reader.next()).await.unwrap();
    }
    for _ in 1..COUNT {
        soon(idle[0].next()).await.unwrap();
    }
}

#[tokio::test]
async fn dropping_the_future_of_next_loses_nothing() {
    let cluster = Cluster::start().await;
    let mut consumer = all(&cluster);
    let clock = Clock::system();
    let mut payloads = Vec::new();
    let end = clock.now() + Duration::from_secs(20);
    while payloads.len() < 40 && clock.now() < end {
        if cluster.wal.len() < 40 {
            cluster.wal.append(message(text(cluster.wal.len())));
        }
        if let Ok(delivery) = clock.timeout(Duration::from_micros(200), consumer.next()).await {
            payloads.push(payload(&delivery.unwrap()));
        }
    }
    assert_eq!(payloads, texts(0..40));
    assert_eq!(cluster.node.seen(|seen| seen.consume_opened), 1, "not even opening was begun anew");
}

#[tokio::test]
async fn malformed_messages_are_reported_and_never_skipped() {
    type Change = fn(&mut streaming_types::ImmutableMessage);
    let changes: [(&str, Change); 5] = [
        ("_tt", |message| drop(message.properties.remove("_tt"))),
        ("_lc", |message| drop(message.properties.remove("_lc"))),
        ("_lc", |message| message.properties.set("_lc", "not base64")),
        ("_tx", |message| message.properties.set("_tx", "not base64")),
        ("was not begun", |message| message.properties.set("_tx", "COkHEJBO")),
    ];
    let tried = changes.map(|(cause, change)| async move {
        let cluster = Cluster::start().await;
        for number in 0..3 {
            cluster.wal.append(message(text(number)));
        }
        let good = cluster.wal.get(1).unwrap();
        cluster.wal.corrupt(1, change);
        let client = cluster.client_with(|settings| settings.timeouts.stall = Duration::from_secs(3));
        let mut consumer = client.consume(ConsumeOptions::new(CHANNEL, DeliverPolicy::All)).unwrap();
        assert_eq!(read(&mut consumer, 1).await, texts(0..1));
        let error = soon(consumer.next()).await.unwrap_err();
        assert!(matches!(&error, ConsumeError::Stalled { cause: why, .. } if why.contains(cause)), "{error}");
        assert!(error.is_retryable() && !error.has_side_effects());
        let opened = cluster.node.seen(|seen| seen.consume_opened);
        assert!((3..=25).contains(&opened), "{opened} streams in 3 s with pauses of 20 ms to 400 ms");
        cluster.wal.corrupt(1, |message| *message = good);
        assert_eq!(read(&mut consumer, 2).await, texts(1..3));
    });
    join_all(tried).await;
}

#[tokio::test]
async fn stream_that_begins_wrongly_or_not_at_all_is_opened_again() {
    let wrong_node = StreamingError::channel_not_exist(CHANNEL);
    for (action, reports) in [
        (OnOpen::WrongFirst, 0),
        (OnOpen::WrongSecond, 0),
        (OnOpen::Silent, 0),
        (OnOpen::Refuse(StreamingError::inner("busy")), 0),
        (OnOpen::Refuse(wrong_node), 1),
    ] {
        let cluster = Cluster::start().await;
        cluster.wal.append(message(text(0)));
        cluster.node.on_open(action);
        let client = cluster.client_with(|settings| settings.timeouts.open = Duration::from_secs(2));
        let mut consumer = client.consume(ConsumeOptions::new(CHANNEL, DeliverPolicy::All)).unwrap();
        assert_eq!(read(&mut consumer, 1).await, texts(0..1));
        assert_eq!(cluster.node.seen(|seen| seen.consume_opened), 2);
        eventually("reported", || cluster.coordinator.seen(|seen| seen.reports.len()) == reports).await;
    }
}

#[tokio::test]
async fn silent_stream_is_opened_again() {
    let cluster = Cluster::start().await;
    cluster.wal.append(message(text(0)));
    let client = cluster.client_with(|settings| settings.timeouts.silence = Duration::from_millis(200));
    let mut consumer = client.consume(ConsumeOptions::new(CHANNEL, DeliverPolicy::All)).unwrap();
    assert_eq!(read(&mut consumer, 1).await, texts(0..1));
    let (next, ()) = tokio::join!(read(&mut consumer, 1), async {
        eventually("opened again", || cluster.node.seen(|seen| seen.consume_opened) >= 2).await;
        cluster.wal.append(message(text(1)));
    });
    assert_eq!(next, texts(1..2));
}

#[tokio::test]
async fn silent_stream_is_opened_again_however_often_its_reader_turns_to_something_else() {
    let cluster = Cluster::start().await;
    cluster.wal.append(message(text(0)));
    let client = cluster.client_with(|settings| settings.timeouts.silence = Duration::from_millis(400));
    let mut consumer = client.consume(ConsumeOptions::new(CHANNEL, DeliverPolicy::All)).unwrap();
    assert_eq!(read(&mut consumer, 1).await, texts(0..1));
    let clock = Clock::system();
    let turns = async {
        while cluster.node.seen(|seen| seen.consume_opened) == 1 {
            let nothing = clock.timeout(Duration::from_millis(20), consumer.next()).await;
            assert!(nothing.is_err(), "{nothing:?}");
        }
    };
    soon(turns).await;
    cluster.wal.append(message(text(1)));
    assert_eq!(read(&mut consumer, 1).await, texts(1..2));
}

#[tokio::test]
async fn final_refusals_and_missing_owners_are_told() {
    let cluster = Cluster::start().await;
    cluster.node.on_open(OnOpen::Refuse(StreamingError::unrecoverable("never")));
    let error = soon(all(&cluster).next()).await.unwrap_err();
    assert!(matches!(&error, ConsumeError::Refused(_)), "{error}");
    assert!(!error.is_retryable() && error.code() == "CONSUME_REFUSED");

    let client = cluster.client_with(|settings| settings.timeouts.stall = Duration::from_millis(200));
    let nowhere = ConsumeOptions::new("by-dev-rootcoord-dml_7", DeliverPolicy::All);
    let error = soon(client.consume(nowhere).unwrap().next()).await.unwrap_err();
    assert!(matches!(&error, ConsumeError::Stalled { cause, .. } if cause.contains("dml_7")), "{error}");
}

#[tokio::test]
async fn transaction_beyond_the_limit_is_an_error() {
    let cluster = Cluster::start().await;
    cluster.wal.txn(1, vec![message(vec![b'x'; 600]), message(vec![b'x'; 600])]);
    let client = cluster.client_with(|settings| settings.limits.max_txn = 1000);
    let mut consumer = client.consume(ConsumeOptions::new(CHANNEL, DeliverPolicy::All)).unwrap();
    assert_eq!(soon(consumer.next()).await, Err(ConsumeError::TxnTooLarge { limit: 1000 }));
}

#[tokio::test]
async fn latest_starts_behind_the_end_and_loses_nothing_from_its_first_tick_on() {
    let cluster = Cluster::start().await;
    cluster.wal.append(message("old"));
    let breaks = Arc::new(AtomicUsize::new(0));
    let counted = breaks.clone();
    cluster.node.on_consume(move |message| message.payload == "new" && counted.fetch_add(1, Ordering::SeqCst) == 0);
    let options = ConsumeOptions { time_ticks: true, ..ConsumeOptions::new(CHANNEL, DeliverPolicy::Latest) };
    let mut consumer = cluster.client().consume(options).unwrap();
    let (first, ()) = tokio::join!(read(&mut consumer, 1), async {
        eventually("opened", || cluster.node.seen(|seen| seen.consumers.len()) == 1).await;
        cluster.wal.tick();
    });
    assert_eq!(first, ["tick 110"]);
    cluster.wal.append(message("new"));
    assert_eq!(read(&mut consumer, 1).await, ["new"]);
    assert_eq!(breaks.load(Ordering::SeqCst), 2, "the first try broke");
    let seen: BTreeSet<_> = cluster.node.seen(|seen| seen.terms.iter().copied().collect());
    assert_eq!(seen, BTreeSet::from([1]));
}
