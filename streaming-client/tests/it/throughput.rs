//! How many appends go through one stream. The node does nothing but answer, so this is the client and gRPC.
//! `cargo test --release -p streaming-client --test it throughput -- --nocapture` prints the figures.

use woodpecker_base::clock::Clock;

use crate::fake::{CHANNEL, Cluster, message, soon};

#[tokio::test]
async fn appends_are_pipelined() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    let producer = client.producer(CHANNEL);
    soon(soon(producer.append(message("first"))).await.unwrap()).await.unwrap();
    let clock = Clock::system();
    let start = clock.now();
    for _ in 0..500 {
        soon(soon(producer.append(message("one by one"))).await.unwrap()).await.unwrap();
    }
    let alone = 500.0 / (clock.now() - start).as_secs_f64();
    println!("one by one: {alone:.0} appends/s");
    for (size, count) in [(64, 5_000), (1 << 10, 5_000), (64 << 10, 500)] {
        let payload = bytes::Bytes::from(vec![b'x'; size]);
        let start = clock.now();
        let mut waiting = std::collections::VecDeque::new();
        for _ in 0..count {
            waiting.push_back(soon(producer.append(message(payload.clone()))).await.unwrap());
            if waiting.len() > 2000 {
                soon(waiting.pop_front().unwrap()).await.unwrap();
            }
        }
        for append in waiting {
            soon(append).await.unwrap();
        }
        let elapsed = clock.now() - start;
        let rate = f64::from(count) / elapsed.as_secs_f64();
        let mbps = rate * f64::from(u32::try_from(size).unwrap()) / 1e6;
        println!("{size} B: {rate:.0} appends/s, {mbps:.1} MB/s");
        assert!(size > 1024 || rate > 2.0 * alone, "{rate} appends/s pipelined, {alone} one by one");
    }
    assert_eq!(cluster.wal.len(), 11_001);
    assert_eq!(cluster.node.seen(|seen| seen.produce_opened), 1);
}
