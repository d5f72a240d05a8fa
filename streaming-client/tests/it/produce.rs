//! Appending: order, retries, refusals, fail-over.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future::join_all;
use streaming_client::{AppendError, Order, Producer};
use streaming_proto::streaming::{ProduceMessageResponseResult, produce_message_response::Response as Answer};
use streaming_types::{Message, MessageId, PChannel, StreamingCode, StreamingError};
use woodpecker_base::{clock::Clock, random::Random};

use crate::fake::{CHANNEL, Cluster, Node, OnOpen, OnProduce, VCHANNEL, channel, eventually, message, soon, text};

/// Appends the texts of a range, pipelined, and waits for all.
async fn append_all(producer: &Producer, range: std::ops::Range<usize>) -> Vec<Result<MessageId, AppendError>> {
    let mut appends = Vec::new();
    for number in range {
        appends.push(soon(producer.append(message(text(number)))).await.unwrap());
    }
    soon(join_all(appends)).await.into_iter().map(|result| result.map(|result| result.id)).collect()
}

async fn append(producer: &Producer, payload: &str) -> Result<MessageId, AppendError> {
    let append = soon(producer.append(message(payload.to_owned()))).await?;
    soon(append).await.map(|result| result.id)
}

fn texts(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(text).collect()
}

fn is(message: &Message, number: usize) -> bool {
    message.payload == text(number)
}

/// What was acknowledged stands where the acknowledgement said.
fn assert_acknowledged(cluster: &Cluster, acknowledged: &[Result<MessageId, AppendError>]) {
    for (number, id) in acknowledged.iter().enumerate() {
        let entry = usize::try_from(id.as_ref().unwrap().entry).unwrap();
        assert_eq!(cluster.wal.get(entry).unwrap().payload, text(number));
    }
}

#[tokio::test]
async fn append_says_where_the_message_stands() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    let producer = client.producer(VCHANNEL);
    assert_eq!(producer.channel(), CHANNEL);
    append_all(&producer, 0..3).await;
    let result = soon(soon(producer.append(message("fourth"))).await.unwrap()).await.unwrap();
    assert_eq!(result.id, MessageId::new(1, 3));
    assert_eq!(result.time_tick.0, 130);
    assert_eq!(result.last_confirmed_id, Some(MessageId::new(1, 1)));
    assert_eq!(cluster.wal.len(), 4);
}

#[tokio::test]
async fn calls_name_the_cluster_and_the_server_they_are_meant_for() {
    let cluster = Cluster::start().await;
    let client = cluster.client_with(|settings| settings.cluster = "by-test".to_owned());
    append(&client.producer(CHANNEL), "m").await.unwrap();
    let node = cluster.node.seen(|seen| seen.metadata.clone());
    assert_eq!(node, [(Some("by-test".to_owned()), Some("10".to_owned()))]);
    let coordinator = cluster.coordinator.seen(|seen| seen.metadata.clone());
    assert_eq!(coordinator, [(Some("by-test".to_owned()), None)], "an address alone does not say which server it is");
}

#[tokio::test]
async fn producers_of_one_channel_share_a_stream() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    let producers = [client.producer(CHANNEL), client.producer(VCHANNEL), client.clone().producer(CHANNEL)];
    for producer in &producers {
        append(producer, "m").await.unwrap();
    }
    assert_eq!(cluster.node.seen(|seen| seen.produce_opened), 1);
}

#[tokio::test]
async fn appends_of_a_dropped_producer_come_before_those_of_the_next() {
    let cluster = Cluster::start().await;
    let mut breaks = 5;
    cluster.node.on_produce(move |message| {
        if is(message, 0) && breaks > 0 {
            breaks -= 1;
            return OnProduce::Break;
        }
        OnProduce::Append
    });
    let client = cluster.client();
    drop(soon(client.producer(CHANNEL).append(message(text(0)))).await.unwrap());
    eventually("the first break", || cluster.node.seen(|seen| !seen.requests.is_empty())).await;
    append(&client.producer(CHANNEL), &text(1)).await.unwrap();
    assert_eq!(cluster.wal.payloads(), texts(0..2));
    // When all is settled there is no stream left.
    eventually("closed", || cluster.node.seen(|seen| seen.half_closed == 1)).await;
}

#[tokio::test]
async fn broken_stream_sends_what_is_not_acknowledged_again_in_order() {
    let cluster = Cluster::start().await;
    let mut breaks = 1;
    cluster.node.on_produce(move |message| {
        if is(message, 3) && std::mem::take(&mut breaks) > 0 { OnProduce::AppendAndBreak } else { OnProduce::Append }
    });
    let acknowledged = append_all(&cluster.client().producer(CHANNEL), 0..10).await;
    assert_acknowledged(&cluster, &acknowledged);
    assert_eq!(cluster.wal.first_copies(), texts(0..10));
    assert_eq!(cluster.node.seen(|seen| seen.produce_opened), 2);
    let requests = cluster.node.seen(|seen| seen.requests.clone());
    let second: Vec<_> = requests.iter().skip(1).skip_while(|(id, _)| *id != 1).cloned().collect();
    let first = 10 - second.len();
    let resent: Vec<_> = (first..10).zip(1..).map(|(number, id)| (id, text(number))).collect();
    assert_eq!(second, resent, "one run in order, with request ids from 1");
}

#[tokio::test]
async fn order_survives_random_breaks_and_only_unacknowledged_messages_are_doubled() {
    for seed in 0..6 {
        let cluster = Cluster::start().await;
        let mut rng = Random::seeded(seed).fork();
        cluster.node.on_produce(move |_| match rng.u32(0..40) {
            0 => OnProduce::AppendAndBreak,
            1 => OnProduce::Break,
            _ => OnProduce::Append,
        });
        let client = cluster.client_with(|settings| {
            settings.limits.in_flight_messages = 16;
            settings.timeouts.backoff_min = Duration::from_millis(1);
            settings.timeouts.backoff_max = Duration::from_millis(5);
        });
        let acknowledged = append_all(&client.producer(CHANNEL), 0..200).await;
        assert_acknowledged(&cluster, &acknowledged);
        assert_eq!(cluster.wal.first_copies(), texts(0..200), "seed {seed}");
        let mut copies = BTreeMap::<String, usize>::new();
        for payload in cluster.wal.payloads() {
            *copies.entry(payload).or_default() += 1;
        }
        let breaks = cluster.node.seen(|seen| seen.produce_opened) - 1;
        let doubled: usize = copies.values().map(|count| count - 1).sum();
        assert!(breaks > 0 && doubled <= breaks * 16, "at most a window for each break: {doubled} in {breaks}");
    }
}

#[tokio::test]
async fn fenced_node_is_left_for_the_next_owner() {
    let cluster = Cluster::start().await;
    let second = Node::start(11, cluster.wal.clone()).await;
    cluster.node.on_produce(|message| if is(message, 5) { OnProduce::Fence } else { OnProduce::Append });
    let client = cluster.client();
    let producer = client.producer(CHANNEL);
    let moved = async {
        eventually("reported", || cluster.coordinator.seen(|seen| !seen.reports.is_empty())).await;
        cluster.coordinator.assign(&[(&cluster.node, &[]), (&second, &[channel(2)])]);
    };
    let (acknowledged, ()) = tokio::join!(append_all(&producer, 0..20), moved);
    assert_acknowledged(&cluster, &acknowledged);
    assert_eq!(cluster.wal.payloads(), texts(0..20), "what the fenced node answered is not sent again");
    assert_eq!(second.seen(|seen| seen.terms.clone()), [2]);
    assert_eq!(second.seen(|seen| seen.metadata[0].1.clone()), Some("11".to_owned()));
    let fenced = StreamingCode::ChannelFenced.into();
    assert!(cluster.coordinator.seen(|seen| seen.reports.contains(&(CHANNEL.to_owned(), 1, fenced))));
}

#[tokio::test]
async fn wrong_node_is_reported_once_and_a_new_assignment_waited_for() {
    for error in [StreamingError::channel_not_exist(CHANNEL), StreamingError::unmatched_channel_term(CHANNEL, 1, 2)] {
        let cluster = Cluster::start().await;
        let second = Node::start(11, cluster.wal.clone()).await;
        for _ in 0..1000 {
            cluster.node.on_open(OnOpen::Refuse(error.clone()));
        }
        let client = cluster.client();
        let producer = client.producer(CHANNEL);
        let appended = producer.append(message("m")).await.unwrap();
        eventually("tried again", || cluster.node.seen(|seen| seen.produce_opened) >= 3).await;
        cluster.coordinator.assign(&[(&cluster.node, &[]), (&second, &[channel(2)])]);
        soon(appended).await.unwrap();
        assert_eq!(second.seen(|seen| seen.terms.clone()), [2]);
        let reports = cluster.coordinator.seen(|seen| seen.reports.clone());
        assert_eq!(reports, [(CHANNEL.to_owned(), 1, error.code().into())]);
    }
}

#[tokio::test]
async fn a_node_that_will_not_have_us_is_told_to_who_waits_and_asked_again_by_the_next_append() {
    let cluster = Cluster::start().await;
    for _ in 0..100 {
        cluster.node.on_open(OnOpen::Refuse(StreamingError::unrecoverable("this needs the role write")));
    }
    let producer = cluster.client().producer(CHANNEL);
    let error = append(&producer, "first").await.unwrap_err();
    assert!(matches!(&error, AppendError::Refused(error) if error.to_string().contains("role write")), "{error}");
    assert!(!error.has_side_effects());
    cluster.node.open_normally();
    append(&producer, "second").await.unwrap();
    assert_eq!(cluster.wal.payloads(), ["second"]);
}

#[tokio::test]
async fn refusals_are_told_to_the_caller_and_stop_nobody_else() {
    let cluster = Cluster::start().await;
    cluster.node.on_produce(|message| match message.payload.as_ref() {
        b"unrecoverable" => OnProduce::Error(StreamingError::unrecoverable("no transactions yet")),
        b"expired" => OnProduce::Error(StreamingError::transaction_expired("late")),
        b"argument" => OnProduce::Error(StreamingError::invalid_argument("unsupported message type")),
        b"ignored" => OnProduce::Error(StreamingError::ignored_operation("done before")),
        _ => OnProduce::Append,
    });
    let producer = cluster.client().producer(CHANNEL);
    for (payload, code) in [
        ("unrecoverable", StreamingCode::Unrecoverable),
        ("expired", StreamingCode::TransactionExpired),
        ("argument", StreamingCode::InvaildArgument),
    ] {
        let error = append(&producer, payload).await.unwrap_err();
        assert!(matches!(&error, AppendError::Refused(error) if error.code() == code), "{error}");
        assert!(!error.is_retryable() && !error.has_side_effects() && error.code() == "APPEND_REFUSED");
    }
    let error = append(&producer, "ignored").await.unwrap_err();
    assert!(matches!(error, AppendError::Ignored(_)), "{error}");
    append(&producer, "fine").await.unwrap();
    assert_eq!(cluster.node.seen(|seen| (seen.produce_opened, seen.requests.len())), (1, 5), "nothing was retried");
}

#[tokio::test]
async fn inner_errors_are_retried_with_pauses() {
    let cluster = Cluster::start().await;
    let mut failing = 7;
    cluster.node.on_produce(move |_| {
        let fails = failing > 0;
        failing -= i32::from(fails);
        if fails { OnProduce::Error(StreamingError::inner("not now")) } else { OnProduce::Append }
    });
    let clock = Clock::system();
    let since = clock.now();
    append(&cluster.client().producer(CHANNEL), "m").await.unwrap();
    // Half of what the pauses may be: 20, 40, 80, 160, 320, 400, 400 ms.
    let took = clock.now() - since;
    assert!(took >= Duration::from_millis(700), "8 calls in {took:?}");
    assert_eq!(cluster.node.seen(|seen| seen.requests.len()), 8);
    assert_eq!(cluster.node.seen(|seen| seen.produce_opened), 1, "on the same stream");
    assert_eq!(cluster.wal.len(), 1);
}

#[tokio::test]
async fn strict_order_holds_back_what_follows_a_failed_append() {
    let cluster = Cluster::start().await;
    let mut failing = 4;
    cluster.node.on_produce(move |message| {
        // As a node does whose log takes nothing for a moment: everything from the third message on fails.
        if !is(message, 0) && !is(message, 1) && failing > 0 {
            failing -= 1;
            return OnProduce::Error(StreamingError::inner("not now"));
        }
        OnProduce::Append
    });
    let client = cluster.client_with(|settings| settings.limits.in_flight_messages = 6);
    let acknowledged = append_all(&client.producer(CHANNEL), 0..12).await;
    assert_acknowledged(&cluster, &acknowledged);
    assert_eq!(cluster.wal.payloads(), texts(0..12));
}

#[tokio::test]
async fn overtaken_append_fails_in_strict_order_and_is_retried_in_relaxed_order() {
    for order in [Order::Strict, Order::Relaxed] {
        let cluster = Cluster::start().await;
        let mut failing = 1;
        cluster.node.on_produce(move |message| {
            if is(message, 2) && std::mem::take(&mut failing) > 0 {
                return OnProduce::Error(StreamingError::inner("this one only"));
            }
            OnProduce::Append
        });
        // Opened first, so that all five go out together.
        let client = cluster.client_with(|settings| settings.order = order);
        let producer = client.producer(CHANNEL);
        let outcomes = append_all(&producer, 0..5).await;
        let expected = match order {
            Order::Strict => {
                assert_eq!(outcomes[2], Err(AppendError::Overtaken));
                vec![text(0), text(1), text(3), text(4)]
            }
            Order::Relaxed => vec![text(0), text(1), text(3), text(4), text(2)],
        };
        assert_eq!(cluster.wal.payloads(), expected, "{order:?}");
    }
}

#[tokio::test]
async fn stream_that_begins_wrongly_or_not_at_all_is_opened_again() {
    for action in [OnOpen::WrongFirst, OnOpen::Silent, OnOpen::Refuse(StreamingError::inner("busy"))] {
        let cluster = Cluster::start().await;
        cluster.node.on_open(action);
        let client = cluster.client_with(|settings| settings.timeouts.open = Duration::from_secs(2));
        append(&client.producer(CHANNEL), "m").await.unwrap();
        assert_eq!(cluster.node.seen(|seen| seen.produce_opened), 2);
        assert_eq!(cluster.coordinator.seen(|seen| seen.reports.len()), 0, "the node does own the channel");
    }
}

#[tokio::test]
async fn death_of_the_node_loses_nothing_that_was_acknowledged() {
    let mut cluster = Cluster::start().await;
    let second = Node::start(11, cluster.wal.clone()).await;
    let client = cluster.client();
    let producer = client.producer(CHANNEL);
    let mut appends = Vec::new();
    for number in 0..400 {
        appends.push(soon(producer.append(message(text(number)))).await.unwrap());
        if number == 200 {
            eventually("some are there", || cluster.wal.len() > 50).await;
            cluster.node.kill();
            cluster.coordinator.assign(&[(&second, &[channel(2)])]);
        }
    }
    let acknowledged: Vec<_> = soon(join_all(appends)).await.into_iter().map(|done| done.map(|done| done.id)).collect();
    assert_acknowledged(&cluster, &acknowledged);
    assert_eq!(cluster.wal.first_copies(), texts(0..400));
}

#[tokio::test]
async fn stream_is_left_when_the_channel_gets_a_new_owner() {
    let cluster = Cluster::start().await;
    let second = Node::start(11, cluster.wal.clone()).await;
    // The old owner lives but answers nothing.
    cluster.node.on_produce(|_| OnProduce::Ignore);
    let client = cluster.client();
    let producer = client.producer(CHANNEL);
    let appended = soon(producer.append(message("m"))).await.unwrap();
    eventually("arrived", || cluster.node.seen(|seen| seen.requests.len()) == 1).await;
    cluster.coordinator.assign(&[(&cluster.node, &[]), (&second, &[channel(2)])]);
    soon(appended).await.unwrap();
    eventually("left by the handshake", || cluster.node.seen(|seen| (seen.closed, seen.half_closed)) == (1, 1)).await;
}

#[tokio::test]
async fn bad_messages_are_refused_before_anything_is_sent() {
    let cluster = Cluster::start().await;
    let client = cluster.client_with(|settings| settings.limits.max_message = 1000);
    let producer = client.producer(CHANNEL);
    let error = producer.append(message(vec![0; 1000])).await.unwrap_err();
    assert!(matches!(error, AppendError::TooLarge { size: 1001.., limit: 1000 }), "{error}");
    assert!(error.code() == "APPEND_TOO_LARGE" && !error.is_retryable() && !error.has_side_effects());

    let mut elsewhere = message("m");
    elsewhere.properties.set_vchannel("other_1v0");
    let mut without_type = message("m");
    without_type.properties.remove("_t");
    let mut with_term = message("m");
    with_term.properties.set("_wt", "1");
    for bad in [elsewhere, without_type, with_term, message("")] {
        let error = producer.append(bad).await.unwrap_err();
        assert!(matches!(error, AppendError::InvalidMessage(_)), "{error}");
    }
    append(&producer, "good").await.unwrap();
    assert_eq!(cluster.node.seen(|seen| seen.requests.len()), 1);
}

#[tokio::test]
async fn unreadable_acknowledgements_are_errors() {
    let cluster = Cluster::start().await;
    let mut answers = vec![
        Some(Answer::Error(streaming_proto::streaming::StreamingError::default())),
        Some(Answer::Result(ProduceMessageResponseResult::default())),
        None,
    ];
    cluster.node.on_produce(move |_| answers.pop().map_or(OnProduce::Append, OnProduce::Answer));
    let producer = cluster.client().producer(CHANNEL);
    for number in 0..3 {
        let error = append(&producer, &text(number)).await.unwrap_err();
        assert!(matches!(error, AppendError::Malformed(_)), "{error}");
        assert!(error.has_side_effects() && !error.is_retryable());
    }
    append(&producer, "good").await.unwrap();
}

#[tokio::test]
async fn append_without_an_owner_or_an_answer_runs_out_of_time_and_says_why() {
    let cluster = Cluster::start().await;
    let client = cluster.client_with(|settings| settings.timeouts.append = Duration::from_millis(400));
    let unassigned = client.producer("by-dev-rootcoord-dml_7");
    let mut nowhere = message("m");
    nowhere.properties.set_vchannel("by-dev-rootcoord-dml_7_1v0");
    let error = soon(soon(unassigned.append(nowhere)).await.unwrap()).await.unwrap_err();
    assert!(matches!(&error, AppendError::Timeout { sent: false, cause, .. } if cause.contains("dml_7")), "{error}");
    assert!(error.is_retryable() && !error.has_side_effects());

    let read_only = PChannel::read_only(CHANNEL, 2).unwrap();
    cluster.coordinator.assign(&[(&cluster.node, &[read_only])]);
    eventually("read only", || client.describe(CHANNEL).is_some_and(|channel| channel.pchannel.is_read_only())).await;
    let error = append(&client.producer(CHANNEL), "m").await.unwrap_err();
    assert!(
        matches!(&error, AppendError::Timeout { sent: false, cause, .. } if cause.contains("can only be read")),
        "{error}"
    );

    cluster.coordinator.assign(&[(&cluster.node, &[channel(3)])]);
    cluster.node.on_produce(|message| if is(message, 0) { OnProduce::Ignore } else { OnProduce::Append });
    // The stream has to be opened within that.
    let client = cluster.client_with(|settings| settings.timeouts.append = Duration::from_secs(3));
    let outcomes = append_all(&client.producer(CHANNEL), 0..2).await;
    assert!(matches!(outcomes[0], Err(AppendError::Timeout { sent: true, .. })), "{outcomes:?}");
    assert!(outcomes[0].as_ref().unwrap_err().has_side_effects());
    assert!(outcomes[1].is_ok());
}

#[tokio::test]
async fn appends_wait_for_room_in_the_budget_of_bytes() {
    let cluster = Cluster::start().await;
    let answering = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asked = answering.clone();
    cluster.node.on_produce(move |_| match asked.load(std::sync::atomic::Ordering::SeqCst) {
        true => OnProduce::Append,
        false => OnProduce::Break,
    });
    let client = cluster.client_with(|settings| {
        settings.limits.max_message = 40_000;
        settings.limits.in_flight_bytes = 100_000;
    });
    let producer = client.producer(CHANNEL);
    let large = || message(vec![b'x'; 30_000]);
    let mut appends = Vec::new();
    for _ in 0..3 {
        appends.push(soon(producer.append(large())).await.unwrap());
    }
    let clock = Clock::system();
    let fourth = producer.append(large());
    tokio::pin!(fourth);
    assert!(clock.timeout(Duration::from_millis(300), &mut fourth).await.is_err(), "there is no room for a fourth");
    answering.store(true, std::sync::atomic::Ordering::SeqCst);
    appends.push(soon(fourth).await.unwrap());
    for append in soon(join_all(appends)).await {
        append.unwrap();
    }
}
