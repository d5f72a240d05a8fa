//! Appends three messages to a channel and reads them back, with the client library: it finds the owner of the channel by
//! itself, follows it when it changes, and stores each message once.
//!
//! `cargo run --example client -- 127.0.0.1:53100 by-dev-rootcoord-dml_0`

use std::{env, time::Duration};

use anyhow::Context;
use streaming_client::{Client, ConsumeOptions, Delivery, Discovery, Edges, Settings};
use streaming_proto::messages::InsertMessageHeader;
use streaming_types::{DeliverPolicy, MessageBuilder, channel::vchannel_name};
use woodpecker_base::{clock::Clock, net, random::Random};

const COLLECTION: i64 = 2;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = env::args().skip(1);
    let coordinator = arguments.next().context("the coordinator's address is missing")?;
    let channel = arguments.next().context("the channel is missing")?;

    let edges = Edges { connector: net::tcp_connector(), clock: Clock::system(), random: Random::system() };
    let client = Client::connect(Settings::new(Discovery::Address(coordinator)), edges)?;
    let found = client.wait_channel(&channel, Duration::from_secs(30)).await?;
    eprintln!("{channel} is at {}", found.owner.address);

    let vchannel = vchannel_name(&channel, COLLECTION, 0);
    let producer = client.producer(&vchannel);
    let mut first = None;
    for text in ["one", "two", "three"] {
        let message = MessageBuilder::new(&InsertMessageHeader::default()).vchannel(&vchannel).payload(text).build()?;
        // The first await is for room among the unacknowledged appends, the second for the ack: it is durable then.
        let appended = producer.append(message).await?.await?;
        first.get_or_insert(appended.id);
        println!("appended {text}");
    }

    let start = DeliverPolicy::StartFrom(first.context("nothing was appended")?);
    let mut consumer = client.consume(ConsumeOptions::new(&vchannel, start))?;
    let mut missing = 3;
    while missing > 0 {
        if let Delivery::Message(message) = consumer.next().await? {
            println!("read {}", String::from_utf8_lossy(&message.payload));
            missing -= 1;
        }
    }
    consumer.close().await;
    client.close().await;
    Ok(())
}
