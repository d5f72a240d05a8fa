//! How many appends go through one stream. The node does nothing but answer, so this is the client and gRPC.
//! `cargo test --release -p streaming-client --test it throughput -- --nocapture` prints the figures.

use std::collections::VecDeque;

use woodpecker_base::clock::Clock;

use crate::fake::{CHANNEL, Cluster, OnProduce, eventually, message, soon, text};

#[tokio::test]
async fn appends_do_not_wait_for_one_another() {
    const COUNT: usize = 1000;
    let cluster = Cluster::start().await;
    cluster.node.on_produce(|_| OnProduce::Ignore);
    let client = cluster.client();
    let producer = client.producer(CHANNEL);
    let mut waiting = Vec::new();
    for number in 0..COUNT {
        waiting.push(soon(producer.append(message(text(number)))).await.unwrap());
    }
    eventually("all are there", || cluster.node.seen(|seen| seen.requests.len()) == COUNT).await;
    let expected: Vec<_> = (0..COUNT).map(|number| (i64::try_from(number).unwrap() + 1, text(number))).collect();
    assert_eq!(cluster.node.seen(|seen| seen.requests.clone()), expected, "none of them was answered");
}

#[tokio::test]
async fn appends_of_every_size_go_through_one_stream() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    let producer = client.producer(CHANNEL);
    let clock = Clock::system();
    for (size, count) in [(64, 10_000), (1 << 10, 10_000), (64 << 10, 500), (8 << 20, 4)] {
        let payload = bytes::Bytes::from(vec![b'x'; size]);
        let start = clock.now();
        let mut waiting = VecDeque::new();
        for _ in 0..count {
            waiting.push_back(soon(producer.append(message(payload.clone()))).await.unwrap());
            if waiting.len() > 2000 {
                soon(waiting.pop_front().unwrap()).await.unwrap();
            }
        }
        for append in waiting {
            let placed = soon(append).await.unwrap();
            assert_eq!(cluster.wal.get(usize::try_from(placed.id.entry).unwrap()).unwrap().payload.len(), size);
        }
        let rate = f64::from(count) / (clock.now() - start).as_secs_f64();
        println!("{size} B: {rate:.0} appends/s, {:.1} MB/s", rate * f64::from(u32::try_from(size).unwrap()) / 1e6);
    }
    assert_eq!(cluster.wal.len(), 20_504);
    assert_eq!(cluster.node.seen(|seen| seen.produce_opened), 1);
}
