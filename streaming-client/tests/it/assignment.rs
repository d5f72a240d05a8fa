//! Following the coordinator.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::join_all};
use streaming_client::{Client, ConsumeOptions, Consumer, Discovery, Version};
use streaming_types::{DeliverPolicy, PChannel, StreamingError};
use tokio::io::AsyncReadExt;
use woodpecker_base::{
    clock::Clock,
    metadata::{MemoryStore, MetadataStore, Txn},
    net::Listener,
};

use crate::fake::{
    CHANNEL, Cluster, Coordinator, OnOpen, SOON, VCHANNEL, channel, connect, eventually, lock, message, soon,
};

fn owner(client: &Client) -> Option<i64> {
    client.describe(CHANNEL).map(|channel| channel.owner.server_id)
}

#[tokio::test]
async fn channels_nodes_and_coordinator_are_described() {
    let cluster = Cluster::start().await;
    let idle = (12, "127.0.0.1:1".to_owned(), vec![]);
    cluster.coordinator.push(1, 7, vec![(10, cluster.node.address.clone(), vec![channel(3)]), idle]);
    let client = cluster.client();
    client.wait_ready(SOON).await.unwrap();
    let channel = client.wait_channel(VCHANNEL, SOON).await.unwrap();
    assert_eq!((channel.pchannel.name(), channel.pchannel.term()), (CHANNEL, 3));
    assert_eq!((channel.owner.server_id, &channel.owner.address), (10, &cluster.node.address));
    assert_eq!(client.channels(), std::slice::from_ref(&channel));
    assert_eq!(client.describe(VCHANNEL), Some(channel));
    assert_eq!(client.nodes().iter().map(|node| node.server_id).collect::<Vec<_>>(), [10, 12]);
    let coordinator = client.coordinator();
    assert_eq!(coordinator.address, Some(cluster.coordinator.address.clone()));
    assert_eq!(coordinator.version, Some(Version { global: 1, local: 7 }));
    assert_eq!(coordinator.control_channel.as_deref(), Some(CHANNEL));
    assert!(coordinator.connected && coordinator.last_failure.is_none());
}

#[tokio::test]
async fn only_a_newer_version_counts() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    let say = |global, local, owner| {
        cluster.coordinator.push(global, local, vec![(owner, "127.0.0.1:1".to_owned(), vec![channel(1)])]);
    };
    say(5, 3, 20);
    eventually("newer coordinator", || owner(&client) == Some(20)).await;
    for (global, local) in [(5, 3), (5, 2), (4, 900)] {
        say(global, local, 21);
        cluster.coordinator.end_streams();
        let opened = cluster.coordinator.seen(|seen| seen.opened);
        eventually("said again", || cluster.coordinator.seen(|seen| seen.opened) > opened).await;
        eventually("connected", || client.coordinator().connected).await;
        assert_eq!(owner(&client), Some(20), "{global}/{local}");
    }
    say(6, 0, 22);
    eventually("next coordinator", || owner(&client) == Some(22)).await;
}

#[tokio::test]
async fn ended_stream_is_opened_again_but_not_in_a_tight_loop() {
    let cluster = Cluster::start().await;
    *lock(&cluster.coordinator.state.hang_up) = true;
    let (clock, client) = (Clock::system(), cluster.client());
    let since = clock.now();
    eventually("opened again and again", || cluster.coordinator.seen(|seen| seen.opened) >= 8).await;
    // Half of what the pauses between them may be: 20, 40, 80, 160, 320, 400, 400 ms.
    let took = clock.now() - since;
    assert!(took >= Duration::from_millis(700), "8 streams in {took:?}");
    *lock(&cluster.coordinator.state.hang_up) = false;
    cluster.coordinator.assign(&[(&cluster.node, &[channel(9)])]);
    eventually("followed", || client.describe(CHANNEL).is_some_and(|channel| channel.pchannel.term() == 9)).await;
}

#[tokio::test]
async fn not_ready_says_what_is_missing() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    let error = client.wait_channel("by-dev-rootcoord-dml_7", Duration::from_millis(200)).await.unwrap_err();
    assert!(error.cause.contains("by-dev-rootcoord-dml_7"), "{error}");

    let nobody = connect(Discovery::Address("127.0.0.1:1".to_owned()), |_| {});
    eventually("tried", || nobody.coordinator().last_failure.is_some()).await;
    let error = nobody.wait_ready(Duration::from_millis(200)).await.unwrap_err();
    assert!(error.is_retryable() && error.cause.contains("no channel is assigned: "), "{error}");
}

fn session(coordinator: &Coordinator, id: i64) -> String {
    let address = &coordinator.address;
    format!(r#"{{"ServerID":{id},"ServerName":"mixcoord","Address":"{address}","Exclusive":true,"Version":"2.6.2"}}"#)
}

#[tokio::test]
async fn coordinator_is_found_in_the_metadata_store_and_followed() {
    const KEY: &str = "by-dev/meta/session/mixcoord";
    let (first, second) = (Coordinator::start(3).await, Coordinator::start(8).await);
    first.push(3, 0, vec![(10, "127.0.0.1:1".to_owned(), vec![channel(1)])]);
    second.push(8, 0, vec![(11, "127.0.0.1:1".to_owned(), vec![channel(2)])]);
    let store = MemoryStore::new(Clock::system());
    let ours = store.connect();
    let discovery = Discovery::Metadata { store: Arc::new(ours.clone()), meta_root: "by-dev/meta".to_owned() };
    let client = connect(discovery, |_| {});
    eventually("looked for", || client.coordinator().last_failure.is_some()).await;
    let error = client.wait_ready(Duration::from_millis(200)).await.unwrap_err();
    assert!(error.cause.contains("no coordinator is registered"), "{error}");

    // A candidate that waits for its turn is not the coordinator.
    store.commit(Txn::new().put(format!("{KEY}-8"), session(&second, 8))).await.unwrap();
    store.commit(Txn::new().put(KEY, session(&first, 3))).await.unwrap();
    eventually("first", || owner(&client) == Some(10)).await;
    assert_eq!(client.coordinator().server_id, Some(3));
    assert_eq!(first.seen(|seen| seen.metadata[0].clone()), (Some("by-dev".into()), Some("3".into())));

    ours.set_reachable(false);
    first.end_streams();
    eventually("reopened without the store", || first.seen(|seen| seen.opened) == 2).await;

    ours.set_reachable(true);
    store.commit(Txn::new().put(KEY, session(&second, 8))).await.unwrap();
    eventually("moved, although the first still answers", || owner(&client) == Some(11)).await;
    assert_eq!(second.seen(|seen| seen.metadata[0].clone()), (Some("by-dev".into()), Some("8".into())));
}

#[tokio::test]
async fn leader_is_found_behind_an_address_at_which_another_one_stands_by() {
    let (standby, leader) = (Coordinator::start(8).await, Coordinator::start(3).await);
    *lock(&standby.state.leader) = Some(leader.address.clone());
    leader.push(3, 0, vec![(10, "127.0.0.1:1".to_owned(), vec![channel(1)])]);
    let client = connect(Discovery::Address(standby.address.clone()), |_| {});
    eventually("found", || owner(&client) == Some(10)).await;
    assert_eq!(client.coordinator().address, Some(leader.address.clone()));
    // Who stands by does not know yet that it died, and holds a stream that does not ask until it leads itself.
    drop(leader);
    standby.push(8, 0, vec![(11, "127.0.0.1:1".to_owned(), vec![channel(2)])]);
    eventually("taken over", || owner(&client) == Some(11)).await;
    assert_eq!(client.coordinator().address, Some(standby.address.clone()));
}

#[tokio::test]
async fn who_leads_next_is_told_again_what_the_former_leader_may_not_have_heard() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    client.wait_ready(SOON).await.unwrap();
    for _ in 0..1000 {
        cluster.node.on_open(OnOpen::Refuse(StreamingError::channel_not_exist(CHANNEL)));
    }
    let producer = client.producer(CHANNEL);
    let _appended = producer.append(message("m")).await.unwrap();
    let reports = || cluster.coordinator.seen(|seen| seen.reports.len());
    eventually("reported", || reports() == 1).await;
    let owner = || vec![(cluster.node.id, cluster.node.address.clone(), vec![channel(1)])];
    let said = cluster.node.seen(|seen| seen.produce_opened);
    cluster.coordinator.push(1, 1, owner());
    eventually("tried again", || cluster.node.seen(|seen| seen.produce_opened) > said + 2).await;
    assert_eq!(reports(), 1, "one leader is told once");
    cluster.coordinator.push(2, 0, owner());
    eventually("reported to the next leader", || reports() == 2).await;
    assert_eq!(cluster.coordinator.seen(|seen| seen.opened), 1);
}

#[tokio::test]
async fn every_connection_to_a_node_that_is_gone_is_closed() {
    let cluster = Cluster::start().await;
    // It answers no ping, for which it shall not be hung up on.
    let client = cluster.client_with(|settings| settings.timeouts.keepalive_interval = Duration::from_secs(3600));
    let mut gone = Listener::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    cluster.coordinator.push(1, 1, vec![(11, gone.address().to_owned(), vec![channel(2)])]);
    eventually("assigned", || owner(&client) == Some(11)).await;
    let accepted = tokio::select! {
        answered = client.replicate_checkpoint(CHANNEL) => panic!("{answered:?}"),
        accepted = gone.next() => accepted,
    };
    let mut connection = accepted.unwrap().unwrap();
    cluster.coordinator.push(1, 2, vec![(10, cluster.node.address.clone(), vec![channel(3)])]);
    soon(connection.read_to_end(&mut Vec::new())).await.unwrap();
    assert_eq!(owner(&client), Some(10));
}

#[tokio::test]
async fn all_channels_of_a_node_may_fail_at_once() {
    const COUNT: usize = 48;
    let cluster = Cluster::start().await;
    let others: Vec<_> = (1..=COUNT).map(|n| format!("by-dev-rootcoord-dml_{n}")).collect();
    let pchannels: Vec<_> = others.iter().map(|name| PChannel::read_write(name, 1).unwrap()).collect();
    cluster.coordinator.assign(&[(&cluster.node, &[&pchannels[..], &[channel(1)]].concat())]);
    let client = cluster.client();
    client.wait_channel(&others[0], SOON).await.unwrap();
    let consume = |name: &str| client.consume(ConsumeOptions::new(name, DeliverPolicy::All)).unwrap();
    // On the connection that the others share.
    let mut first = consume(CHANNEL);
    cluster.wal.append(message("first"));
    soon(first.next()).await.unwrap();
    for _ in 0..COUNT {
        cluster.node.on_open(OnOpen::Refuse(StreamingError::channel_not_exist("it")));
    }
    // Nobody takes the refusals before all are there.
    let mut consumers: Vec<_> = others.iter().map(|name| consume(name)).collect();
    let all = join_all(consumers.iter_mut().map(Consumer::next)).now_or_never();
    assert!(all.is_none());
    eventually("asked", || cluster.node.seen(|seen| seen.consume_opened) == COUNT + 1).await;
    cluster.wal.append(message("second"));
    soon(first.next()).await.unwrap();
    let reading = join_all(consumers.iter_mut().map(Consumer::next));
    let reported = eventually("reported", || cluster.coordinator.seen(|seen| seen.reports.len()) == COUNT);
    tokio::select! {
        _ = reading => {}
        () = reported => {}
    }
    assert_eq!(cluster.coordinator.seen(|seen| (seen.reports.len(), seen.opened)), (COUNT, 1));
}
